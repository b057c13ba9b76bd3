"""Statistics of the classes a network predicts on a target set: their portions, the rare ones, scores of images.

C classes, N images, portions in [0, 1]. A pixel counts for its predicted class argmax_c p_n(c) with its confidence
max_c p_n(c), whether it is selected later or not.

Rare classes are those of the paper's hard-sample mining: the 5 worst (least predicted) classes are mined, and those
whose portion is below 0.1 % come first. A class that is never predicted has the portion 0: it is among the worst and
has priority, for it may well occur in the source labels, whose crops are mined by the same list.

The score of an image is the authors' stated measure (their answers, no published code): the mean confidence of each
class predicted in it, then the mean over those classes. The images above a threshold, 505 of the 2,975 of Cityscapes
train, were their target set; the threshold's value is not known, so the number of images is given here instead.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Iterable, Sequence

import numpy as np

from cbst_mx.errors import ConfigError, DataError, check_choice
from cbst_mx.files import open_npz, save_npz
from cbst_mx.label_space import IGNORE

__all__ = [
    "METHODS",
    "PRIORITY",
    "WORST",
    "ImageStatistics",
    "Selection",
    "portions",
    "priority_classes",
    "select_images",
    "summary",
    "worst_classes",
]

WORST = 5  # classes
PRIORITY = 0.001  # portion
METHODS = ("class-balanced", "confidence")
_PIXELS = 1 << 16  # summed at a time: small enough for the processor's cache


def portions(counts: np.ndarray) -> np.ndarray:
    """Return the predicted portion of every class.

    Parameters
    ----------
    counts : ndarray of shape (C,), integer
        Pixels predicted as each class.

    Returns
    -------
    ndarray of shape (C,), float64
        They sum to 1.

    Raises
    ------
    DataError
        If there is no pixel at all.
    """
    total = int(counts.sum())
    if total == 0:
        raise DataError("counts must hold at least one predicted pixel, got none")
    return counts / total


def worst_classes(counts: np.ndarray, number: int = WORST) -> list[int]:
    """Return the `number` least predicted classes, the least first, equal ones in the order of their trainIds.

    Classes that are never predicted are among them, and so first. Of fewer than `number` classes all are returned.

    Raises
    ------
    ConfigError
        If `number` is below 1.
    """
    if number < 1:
        raise ConfigError(f"worst must be at least 1 class, got {number}")
    return [int(index) for index in np.argsort(counts, kind="stable")[:number]]


def priority_classes(counts: np.ndarray, below: float = PRIORITY) -> list[int]:
    """Return the classes whose predicted portion is below `below`, in the order of their trainIds.

    Classes that are never predicted are among them. There may be more of them than worst classes.

    Raises
    ------
    ConfigError
        If `below` is not in [0, 1].
    DataError
        If there is no pixel at all.
    """
    if not 0 <= below <= 1:
        raise ConfigError(f"priority must be a portion in [0, 1], got {below}")
    return [int(index) for index in np.flatnonzero(portions(counts) < below)]


def summary(
    counts: np.ndarray, names: Sequence[str], *, worst: int = WORST, priority: float = PRIORITY
) -> dict[str, Any]:
    """Return the class statistics as JSON values.

    Parameters
    ----------
    counts : ndarray of shape (C,), integer
        Pixels predicted as each class.
    names : sequence of str
        C class names.
    worst, priority
        As `number` of :func:`worst_classes` and `below` of :func:`priority_classes`.

    Returns
    -------
    dict
        ``names``, ``count``, ``portion``, one entry per class; ``worst`` (the least predicted first) and ``priority``,
        lists of trainIds.
    """
    return {
        "names": list(names),
        "count": [int(count) for count in counts],
        "portion": [float(portion) for portion in portions(counts)],
        "worst": worst_classes(counts, worst),
        "priority": priority_classes(counts, priority),
    }


class ImageStatistics:
    """How many pixels of each image were predicted as each class, and how confidently.

    A few hundred bytes per image; the order in which images are added or merged changes nothing.

    Parameters
    ----------
    num_classes : int
        Number of classes C.
    class_names : sequence of str, optional
        C names by trainId, kept with the numbers.
    """

    def __init__(self, num_classes: int, class_names: Sequence[str] | None = None):
        if class_names is not None and len(class_names) != num_classes:
            raise ConfigError(f"class_names must be {num_classes} names, got {len(class_names)}")
        self.num_classes = num_classes
        self.class_names = None if class_names is None else tuple(class_names)
        self._images: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self._images)

    @property
    def names(self) -> tuple[str, ...]:
        """The images' names, sorted; the rows of the arrays are in this order."""
        return tuple(sorted(self._images))

    @property
    def counts(self) -> np.ndarray:
        """Pixels by image and predicted class, int64 (N, C)."""
        return np.array([self._images[name][0] for name in self.names], np.int64).reshape(-1, self.num_classes)

    @property
    def confidence_sums(self) -> np.ndarray:
        """Sum of the confidences of those pixels, float64 (N, C)."""
        return np.array([self._images[name][1] for name in self.names], np.float64).reshape(-1, self.num_classes)

    def add(self, name: str, counts: np.ndarray, confidence_sums: np.ndarray) -> None:
        """Add one image.

        Parameters
        ----------
        name : str
            Name of the image, which may come once only.
        counts : ndarray of shape (C,), integer
            Pixels predicted as each class.
        confidence_sums : ndarray of shape (C,), float
            Sum of their confidences, which bicubic upsampling may leave a little below 0; 0 for a class that is not
            predicted.

        Raises
        ------
        DataError
            If an argument does not fit, or there is an image of that name already.
        """
        if not name or len(name.splitlines()) != 1:  # names are written one per line
            raise DataError(f"the name of an image must be one line of text, got {name!r}")
        if name in self._images:
            raise DataError(f"the statistics of image {name} must be added once only, they are there already")
        counts, sums = np.asarray(counts), np.asarray(confidence_sums, dtype=np.float64)
        for what, array in (("counts", counts), ("confidence_sums", sums)):
            if array.shape != (self.num_classes,):
                raise DataError(f"{what} of image {name} must have shape ({self.num_classes},), got {array.shape}")
        if counts.dtype.kind not in "iu" or (counts < 0).any():
            raise DataError(f"counts of image {name} must be integers of at least 0, got {counts}")
        if not np.isfinite(sums).all() or sums[counts == 0].any():
            raise DataError(f"confidence_sums of image {name} must be finite, and 0 where counts is 0, got {sums}")
        self._images[name] = (counts.astype(np.int64), sums.copy())

    def add_pixels(self, name: str, confidence: np.ndarray, predicted: np.ndarray) -> None:
        """Add one image by its pixels.

        Parameters
        ----------
        name : str
            Name of the image, which may come once only.
        confidence : ndarray of shape (H, W), float32
            max_c p_n(c), or of q_n(c) * p_n(c) with a spatial prior.
        predicted : ndarray of shape (H, W), uint8
            argmax_c of the same; 255, which is not counted, where no class has any confidence.

        Raises
        ------
        DataError
            As :meth:`add`.
        """
        values, classes = confidence.reshape(-1), predicted.reshape(-1)
        sure = classes != IGNORE
        if not sure.all():
            values, classes = values[sure], classes[sure]
        self.add(name, *_per_class(values, classes, self.num_classes))

    def merge(self, other: ImageStatistics) -> None:
        """Add the images of `other`.

        Raises
        ------
        DataError
            If the classes differ or an image is in both; then nothing is added.
        """
        if other.num_classes != self.num_classes:
            raise DataError(f"statistics to merge must be of {self.num_classes} classes, got {other.num_classes}")
        if self.class_names and other.class_names and self.class_names != other.class_names:
            raise DataError("statistics to merge must be of the same classes, got other class names")
        twice = sorted(self._images.keys() & other._images.keys())
        if twice:
            raise DataError(f"statistics to merge must be of different images, got {twice[0]} in both")
        self.class_names = self.class_names or other.class_names
        self._images.update(other._images)

    def mean_confidence(self) -> np.ndarray:
        """Return the mean confidence of the pixels predicted as each class, float64 (C,); NaN where there is none."""
        counts = self.total()
        return np.where(counts > 0, self.confidence_sums.sum(axis=0) / np.maximum(counts, 1), np.nan)

    def total(self, names: Iterable[str] | None = None) -> np.ndarray:
        """Return the pixels predicted as each class in the images called `names`, by default in all: int64 (C,)."""
        chosen = self._images if names is None else names
        return sum((self._images[name][0] for name in chosen), np.zeros(self.num_classes, dtype=np.int64))

    def scores(self, method: str = "class-balanced") -> np.ndarray:
        """Return the score of every image, in the order of `names`.

        Parameters
        ----------
        method : {"class-balanced", "confidence"}
            The mean over the classes predicted in the image of the mean confidence of each, which is the authors'
            measure; or the plain mean confidence of all pixels, where large classes rule. An image without any
            confident pixel has the score 0.

        Returns
        -------
        ndarray of shape (N,), float64

        Raises
        ------
        ConfigError
            If `method` is unknown.
        """
        check_choice("method", method, METHODS)
        counts, sums = self.counts, self.confidence_sums
        if method == "confidence":
            return sums.sum(axis=1) / np.maximum(counts.sum(axis=1), 1)
        predicted = counts > 0
        means = np.divide(sums, counts, out=np.zeros(sums.shape), where=predicted)  # (N, C)
        return means.sum(axis=1) / np.maximum(predicted.sum(axis=1), 1)

    def save(self, path: Path) -> None:
        """Write the arrays ``names``, ``counts``, ``confidence_sums`` (and ``class_names``) as ``.npz``, atomically."""
        arrays = {
            "names": np.array(self.names, dtype=np.str_),
            "counts": self.counts,
            "confidence_sums": self.confidence_sums,
        }
        if self.class_names is not None:
            arrays["class_names"] = np.array(self.class_names, dtype=np.str_)
        save_npz(path, arrays)

    @classmethod
    def load(cls, path: Path) -> ImageStatistics:
        """Read what :meth:`save` has written; ``class_names`` may be missing.

        Raises
        ------
        DataError
            If the file is missing, damaged, or does not hold such statistics.
        """
        with open_npz(path, "file of image statistics") as stored:
            names, counts, sums = stored["names"], stored["counts"], stored["confidence_sums"]
            class_names = stored["class_names"] if "class_names" in stored.files else None
            return cls._from_arrays(path, names, counts, sums, class_names)

    @classmethod
    def _from_arrays(
        cls, path: Path, names: np.ndarray, counts: np.ndarray, sums: np.ndarray, class_names: np.ndarray | None
    ) -> ImageStatistics:
        if names.ndim != 1 or names.dtype.kind != "U" or counts.ndim != 2 or len(counts) != len(names):
            raise DataError(
                f"{path} must hold N names and counts of shape (N, C), got {names.dtype} of shape {names.shape} "
                f"and {counts.dtype} of shape {counts.shape}"
            )
        if sums.shape != counts.shape or sums.dtype.kind != "f":
            raise DataError(
                f"{path} must hold confidence_sums as numbers of shape {counts.shape}, "
                f"got {sums.dtype} of shape {sums.shape}"
            )
        if class_names is not None and (class_names.dtype.kind != "U" or class_names.shape != counts.shape[1:]):
            raise DataError(
                f"{path} must hold class_names as {counts.shape[1]} texts, "
                f"got {class_names.dtype} of shape {class_names.shape}"
            )
        statistics = cls(counts.shape[1], None if class_names is None else [str(name) for name in class_names])
        try:
            for name, *numbers in zip(names, counts, sums):
                statistics.add(str(name), *numbers)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        return statistics


def _per_class(values: np.ndarray, classes: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return how many values belong to each class, int64 (C,), and their sums, float64 (C,)."""
    # Neighbours mostly belong to one class: with eight sums a class the processor need not wait for the one before.
    length = 8 * num_classes
    counts, sums = np.zeros(length, dtype=np.int64), np.zeros(length)
    turns = np.arange(_PIXELS) % 8
    for start in range(0, len(values), _PIXELS):
        part = classes[start : start + _PIXELS].astype(np.intp)
        part *= 8
        part += turns[: len(part)]
        counts += np.bincount(part, minlength=length)
        sums += np.bincount(part, weights=values[start : start + _PIXELS], minlength=length)
    return counts.reshape(-1, 8).sum(axis=1), sums.reshape(-1, 8).sum(axis=1)


@dataclasses.dataclass(frozen=True, eq=False)
class Selection:
    """Images chosen by their scores.

    Attributes
    ----------
    names : tuple of str
        Names of the chosen images, sorted.
    threshold : float
        Lowest score among them.
    scores : dict of str to float
        Scores of all images.
    counts : ndarray of shape (C,), int64
        Pixels predicted as each class in the chosen images.
    """

    names: tuple[str, ...]
    threshold: float
    scores: dict[str, float]
    counts: np.ndarray


def select_images(statistics: ImageStatistics, keep: int, method: str = "class-balanced") -> Selection:
    """Choose the `keep` images of the highest scores; of equal scores, those whose names come first.

    Parameters
    ----------
    statistics : ImageStatistics
        Statistics of all images to choose from.
    keep : int
        How many, 1 to N.
    method : {"class-balanced", "confidence"}
        The score, see :meth:`ImageStatistics.scores`.

    Raises
    ------
    ConfigError
        If an argument is not allowed.
    """
    if not 1 <= keep <= len(statistics):
        raise ConfigError(f"keep must be from 1 to the {len(statistics)} images there are, got {keep}")
    scores = statistics.scores(method)
    order = np.argsort(-scores, kind="stable")  # the names are sorted, so equal scores stay in their order
    chosen = np.sort(order[:keep])
    names = statistics.names
    return Selection(
        names=tuple(names[index] for index in chosen),
        threshold=float(scores[order[keep - 1]]),
        scores={name: float(score) for name, score in zip(names, scores)},
        counts=statistics.counts[chosen].sum(axis=0, dtype=np.int64),
    )
