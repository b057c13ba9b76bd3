"""The pass of step a): thresholds from the confidences of all images, then their pseudo-labels, then the record.

C classes, H x W pixels. Algorithm 1 (ST) and Algorithm 2 (CBST) determine the thresholds, eq. 5, 8 and 9 the labels.
The rounds, the labelling job and the plan all go this way; what differs is where the views of the images come from,
whether confidences are sorted or counted, and where labels go.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, Iterable, Iterator, Mapping, NamedTuple, Protocol, Sequence

import numpy as np

from cbst_mx.label_space import IGNORE
from cbst_mx.messages import Progress, silent
from cbst_mx.selftrain import guard
from cbst_mx.selftrain.class_statistics import ImageStatistics
from cbst_mx.selftrain.thresholds import Thresholds
from cbst_mx.selftrain.views import View

__all__ = [
    "PIXEL_BYTES",
    "Collector",
    "Kept",
    "Labelling",
    "Needs",
    "Parts",
    "collect",
    "label",
    "label_set",
    "limited",
    "parts_of",
    "passes",
    "remarks",
]

BALANCED = "class-balanced"  # the rule that has a threshold for every class by itself
PIXEL_BYTES = 40  # of memory while an image is labelled, per pixel: the most that was measured

Views = Iterable["tuple[str, View]"]


class Needs(NamedTuple):
    """Disk space and memory that a job or a run takes, in bytes; generous estimates."""

    disk: int
    memory: int


class Collector(Protocol):
    """Confidences of a set on their way to thresholds: ``kc.ConfidencePool`` or ``counting.StreamingThresholds``."""

    num_classes: int

    def collect(self, name: str, view: Any) -> None:
        """Add the pixels of one image."""

    def refine(self, policies: Sequence[str], portions: Sequence[float]) -> bool:
        """Return whether these thresholds need every image once more."""

    def thresholds(self, policy: str, portion: float) -> Thresholds:
        """Determine k or k_c."""


@dataclasses.dataclass(frozen=True, eq=False)
class Kept:
    """Pixels of pseudo-labels, for each of several thresholds; parts of a set are added.

    Attributes
    ----------
    kept : ndarray of shape (T, C), int64
        Selected pixels by thresholds and class.
    pixels : int
        All pixels, selected or not.
    """

    kept: np.ndarray
    pixels: int

    def __add__(self, other: Kept) -> Kept:
        return Kept(self.kept + other.kept, self.pixels + other.pixels)

    @classmethod
    def none(cls, thresholds: int, num_classes: int) -> Kept:
        """Return the counts of no image."""
        return cls(np.zeros((thresholds, num_classes), dtype=np.int64), 0)


@dataclasses.dataclass(frozen=True, eq=False)
class Labelling:
    """What a pass gave: thresholds and the pixels they keep.

    Attributes
    ----------
    thresholds : Thresholds
    kept : ndarray of shape (C,), int64
        Selected pixels of every class.
    pixels : int
        All pixels, selected or not.
    confident : int
        Pixels that have a confidence: not those of masked regions, where all classes are 0.
    """

    thresholds: Thresholds
    kept: np.ndarray
    pixels: int
    confident: int

    @property
    def kept_portion(self) -> float:
        """Selected pixels of all pixels, in [0, 1]."""
        return float(self.kept.sum() / self.pixels)

    def to_json(
        self, names: Sequence[str], *, method: str | None = None, predicted: np.ndarray | None = None
    ) -> dict[str, Any]:
        """Return the record of the pass as plain JSON values.

        Parameters
        ----------
        names : sequence of str
            C class names by trainId.
        method : {"st", "cbst", "cbst-sp"}, optional
            Method of the round, where there is one.
        predicted : ndarray of shape (C,), int64, optional
            Pixels predicted as each class, all of them whatever enters the pools.
        """
        record = self.thresholds.to_json()
        if method is not None:
            record["method"] = method
        record["names"] = list(names)
        if predicted is not None:
            record["predicted"] = [int(count) for count in predicted]
        record["kept"] = [int(count) for count in self.kept]
        record["pixels"] = self.pixels
        record["kept_portion"] = self.kept_portion
        if self.confident < self.pixels:
            record["without_confidence"] = self.pixels - self.confident
        return record


def remarks(labelling: Labelling, predicted: np.ndarray, names: Sequence[str] | None = None) -> list[str]:
    """Return what is odd about a pass, a sentence each with the likely cause; nothing for most.

    Parameters
    ----------
    labelling : Labelling
        What the pass gave.
    predicted : ndarray of shape (C,), int64
        Pixels predicted as each class.
    names : sequence of str, optional
        C class names; with them one class that takes nearly all pixels is told too.
    """
    found = []
    portion, confident, number = labelling.thresholds.portion, labelling.confident, len(predicted)
    kept = int(labelling.kept.sum())
    if np.count_nonzero(predicted) == 1 and number > 1 and confident > 2 * number:
        found.append(
            f"all pixels are predicted as one class of {number}: the network has collapsed, or the softmax was taken "
            "over another axis"
        )
    elif names is not None:
        found += guard.extremes(predicted.tolist(), names)
    if kept > guard.FAR_MORE * portion * confident + number:  # ranks are rounded once a class
        found.append(
            f"{100 * kept / confident:.3g} % of the pixels are kept where {100 * portion:.3g} % were asked for: many "
            "are exactly as confident as a threshold (all 1, or one value everywhere)"
        )
    if confident < labelling.pixels:
        found.append(
            f"{labelling.pixels - confident:,} of {labelling.pixels:,} pixels have no confidence (all classes are 0): "
            "they are in no pool and get no label"
        )
    return found


def passes(collector: Collector, policies: Sequence[str], portions: Sequence[float]) -> Iterator[None]:
    """Yield once for every pass over all images that the thresholds need: each image is to be collected in it.

    Sorted confidences take one pass; counted ones a second in the critical bins where thresholds need it.
    """
    yield
    if collector.refine(policies, portions):
        yield


def collect(name: str, view: View, collector: Collector, statistics: ImageStatistics | None = None) -> None:
    """Add the pixels of one image to the confidences, and to the statistics of the set where they are wanted."""
    collector.collect(name, view)
    if statistics is not None:
        statistics.add_pixels(name, *view.confidence)


def label(views: Views, thresholds: Sequence[Thresholds], write: Callable[[str, np.ndarray], None] | None) -> Kept:
    """Select the pseudo-labels of some images (eq. 5, 8, 9).

    Parameters
    ----------
    views : iterable of (str, View)
        Names and images.
    thresholds : sequence of Thresholds
        T of them, for the same C classes.
    write : callable, optional
        Called with the name and the label, uint8 (H, W), that the first thresholds give.

    Returns
    -------
    Kept
        Selected pixels by thresholds and class.
    """
    total = Kept.none(len(thresholds), len(thresholds[0].values))
    for name, view in views:
        labels = view.select(thresholds)
        if write is not None:
            write(name, labels[0])
        counts = [np.bincount(chosen.reshape(-1), minlength=IGNORE + 1)[: total.kept.shape[1]] for chosen in labels]
        total += Kept(np.array(counts), labels[0].size)
    return total


def limited(collector: Collector, policy: str, portion: float, factors: Mapping[int, float]) -> Thresholds:
    """Determine the thresholds, higher ones for some classes.

    Parameters
    ----------
    collector : Collector
        All confidences.
    policy, portion
        As for :func:`label_set`.
    factors : mapping of int to float
        TrainId to a factor f in [0, 1): at most the portion f * p of the pixels predicted as the class gets the class
        as its pseudo-label by its own threshold, none at all where f is 0, as by a threshold of infinity. What other
        classes then win is theirs (eq. 5, 8 and 9).
    """
    thresholds = collector.thresholds(policy, portion)
    values = thresholds.values.copy()
    for index, factor in factors.items():
        own = collector.thresholds(BALANCED, portion * factor).values[index] if factor else np.inf
        values[index] = max(values[index], own)
    return dataclasses.replace(thresholds, values=values) if factors else thresholds


class Parts(Protocol):
    """A set whose images other processes look at; stands in the place of a set's views."""

    def __len__(self) -> int:
        """Return the number of images N."""

    def collected(
        self, collector: Collector | None, statistics: ImageStatistics | None, waiting_for: Callable[[], None]
    ) -> Iterator[int]:
        """Add all images as :func:`collect` does; yield how many came at a time."""

    def labelled(
        self,
        thresholds: Sequence[Thresholds],
        write: Callable[[str, np.ndarray], None],
        waiting_for: Callable[[], None],
    ) -> Iterator[tuple[int, Kept]]:
        """Label all images as :func:`label` does; yield how many came at a time, and what was kept of them."""


class _Alone:
    """The images of a set, looked at by this process one after the other: the usual `Parts`."""

    def __init__(self, views: Any):
        self._views = views

    def __len__(self) -> int:
        return len(self._views)

    def collected(
        self, collector: Collector | None, statistics: ImageStatistics | None, waiting_for: Callable[[], None]
    ) -> Iterator[int]:
        for name, view in self._views:
            if collector is not None:
                collector.collect(name, view)
            if statistics is not None:
                statistics.add_pixels(name, *view.confidence)
            yield 1

    def labelled(
        self,
        thresholds: Sequence[Thresholds],
        write: Callable[[str, np.ndarray], None],
        waiting_for: Callable[[], None],
    ) -> Iterator[tuple[int, Kept]]:
        for pair in self._views:
            yield 1, label([pair], thresholds, write)


def parts_of(views: Any) -> Parts:
    """Return the parts of a set: `views` where these are parts already, else those of this process."""
    return views if hasattr(views, "collected") else _Alone(views)


def label_set(
    views: Any,
    collector: Collector,
    *,
    policy: str,
    portion: float,
    write: Callable[[str, np.ndarray], None],
    what: str = "pseudo-labels",
    statistics: ImageStatistics,
    progress: Progress = silent,
    limit: Callable[[np.ndarray], Mapping[int, float]] | None = None,
) -> Labelling:
    """Run the whole pass over a set of images: Algorithm 1 or 2, then eq. 5, 8 or 9.

    Parameters
    ----------
    views : re-iterable of (str, View) with a length, or Parts
        Names and images, the same in every iteration.
    collector : Collector
        Empty.
    policy : str
        Threshold rule, of ``thresholds.POLICIES``.
    portion : float
        p in (0, 1].
    write : callable
        Called with the name of every image and its label, uint8 (H, W).
    what : str
        Name of the work for `progress`.
    statistics : ImageStatistics
        Empty; takes the predictions per image and class.
    progress : callable, optional
        Called with (what, done, in all) after every image of every pass.
    limit : callable, optional
        Called with the pixels predicted as each class, int64 (C,); gives classes that get fewer pseudo-labels, trainId
        to a factor of p in [0, 1), see :func:`limited`.

    Raises
    ------
    CBSTError
        If an argument is not allowed or an image cannot be used.
    """
    factors: Mapping[int, float] = {}
    parts, count = parts_of(views), len(views)
    total, done = 2 * count, 0  # a second pass over critical confidences is quick, and only known when it comes
    policies, portions = [policy], [portion]

    def tell(more: int = 0) -> None:
        nonlocal done
        done += more
        progress(what, done, total)

    for number, _ in enumerate(passes(collector, policies, portions)):
        for more in parts.collected(collector, None if number else statistics, tell):
            tell(min(more, total - 1 - done))
        if limit is not None and not number:  # before the collector is asked what it needs another pass for
            factors = limit(statistics.total())
            if factors:
                policies += [BALANCED] if policy != BALANCED else []
                portions += [portion * factor for factor in factors.values() if factor]
    thresholds = limited(collector, policy, portion, factors)
    kept, done = Kept.none(1, collector.num_classes), count
    for more, found in parts.labelled([thresholds], write, tell):
        kept += found
        tell(more)
    return Labelling(thresholds, kept.kept[0], kept.pixels, int(statistics.total().sum()))
