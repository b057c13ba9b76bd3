"""Every published way to score a segmentation, from one confusion matrix per image.

N images, C classes, K classes of a protocol; matrices are int64 (N, C, C), rows truth, columns prediction, in pixels;
IoU and mIoU are in [0, 1]. A protocol says which truth counts, which classes have an IoU and which of them are
averaged; numbers of different protocols must not be compared, so each names the table of the paper it belongs to:

====================  ====================================================================  =================
name                  mean over                                                             protocol of
====================  ====================================================================  =================
19                    the 19 classes                                                        Table 3
16                    the 16 classes of SYNTHIA; truth of terrain, truck, train is ignored  Table 2, mIoU
13 of 16              13 of these 16 IoUs: without wall, fence, pole                        Table 2, mIoU*
13                    the 13 classes of NTHU                                                Table 1
16 of 19, 13 of 19    16 or 13 of the 19 IoUs, all truth counting                           none
19 x 19/16            the 19 classes, 3 of them never predicted, times 19/16                none
====================  ====================================================================  =================

The authors train and test SYNTHIA with 16 classes and ignore the other truth; their 13-class figure is a mean over a
subset of the 16-class model's IoUs (yzou2/CBST, issue 7). Others score a 16-class model with the 19-class program and
multiply the mean by 19/16 (lhoyer/DAFormer, issue 18); there pixels of terrain, truck and train count as false
positives of what they are taken for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Mapping, Sequence

import numpy as np

from cbst_mx.errors import ConfigError, DataError
from cbst_mx.label_space import CITYSCAPES_19, IGNORE, NTHU_13, SYNTHIA_13, SYNTHIA_16
from cbst_mx.seeding import generator

__all__ = [
    "LEVEL",
    "PROTOCOLS",
    "THIRTEEN",
    "ImageMatrices",
    "Protocol",
    "Result",
    "WorstImage",
    "draw_images",
    "evaluate",
    "find_protocols",
    "mean_over",
    "narrow",
    "resampled_miou",
    "widen",
    "worst_images",
]

LEVEL = 0.95  #: part of the bootstrap means inside an interval

_ALL = CITYSCAPES_19.names
_SIXTEEN = SYNTHIA_16.names
#: The 13 of SYNTHIA's 16 classes that mIoU* of Table 2 is the mean over: without wall, fence and pole.
THIRTEEN = tuple(SYNTHIA_16.names[index] for index in SYNTHIA_13)
_OTHERS = tuple(name for name in _ALL if name not in _SIXTEEN)


@dataclass(frozen=True)
class Protocol:
    """One way to score.

    Parameters
    ----------
    name : str
        As in the table above.
    meaning : str
        What is averaged, in words.
    table : str
        The table of the paper whose numbers follow this protocol; empty when there is none.
    truth : tuple of str
        Classes whose truth counts, each with an IoU; pixels of other truth are ignored.
    averaged : tuple of str
        Those of `truth` in the mean.
    factor : float
        Factor of the mean.
    never : tuple of str
        Classes that the network must not know for the number to make sense.
    """

    name: str
    meaning: str
    table: str
    truth: tuple[str, ...]
    averaged: tuple[str, ...]
    factor: float = 1.0
    never: tuple[str, ...] = ()


_NINETEEN = Protocol("19", "all 19 classes", "Table 3", _ALL, _ALL)
_AUTHORS_16 = Protocol("16", f"16 classes, truth of {', '.join(_OTHERS)} ignored", "Table 2, mIoU", _SIXTEEN, _SIXTEEN)
_AUTHORS_13 = Protocol("13 of 16", "13 of the IoUs of protocol 16", "Table 2, mIoU*", _SIXTEEN, THIRTEEN)
# What matrices are scored by, by their classes in the order of trainIds; another protocol is one more entry.
PROTOCOLS: dict[tuple[str, ...], tuple[Protocol, ...]] = {
    _ALL: (
        _NINETEEN,
        _AUTHORS_16,
        _AUTHORS_13,
        Protocol("16 of 19", "16 of the IoUs of protocol 19", "", _ALL, _SIXTEEN),
        Protocol("13 of 19", "13 of the IoUs of protocol 19", "", _ALL, THIRTEEN),
        Protocol("19 x 19/16", "mean of protocol 19 times 19/16", "", _ALL, _ALL, 19 / 16, _OTHERS),
    ),
    _SIXTEEN: (_AUTHORS_16, _AUTHORS_13),
    NTHU_13.names: (Protocol("13", "all 13 classes", "Table 1", NTHU_13.names, NTHU_13.names),),
}


def find_protocols(classes: Sequence[str]) -> tuple[Protocol, ...]:
    """Return the protocols that matrices of these classes allow; for classes of no table, their plain mean."""
    names = tuple(classes)
    return PROTOCOLS.get(names, (Protocol("all", f"all {len(names)} classes", "", names, names),))


def mean_over(iou: Mapping[str, float | None], classes: Sequence[str]) -> float | None:
    """Return the mean of the listed IoUs of `classes`, in their unit; None if one of them is missing.

    For numbers that are known by class only, such as the paper's; of matrices, :func:`evaluate` gives the mean.
    """
    values = [iou.get(name) for name in classes]
    there = [value for value in values if value is not None]
    return math.fsum(there) / len(there) if there and len(there) == len(values) else None


@dataclass(frozen=True, eq=False)
class ImageMatrices:
    """The confusion matrices of an image set; two of them are equal only if they are the same object.

    Parameters
    ----------
    classes : tuple of str
        Class names by trainId.
    images : tuple of str
        Image names.
    counts : ndarray of shape (N, C, C), int64
        Rows truth, columns prediction.

    Raises
    ------
    DataError
        If the parts do not fit together, or `counts` holds no pixel counts.
    """

    classes: tuple[str, ...]
    images: tuple[str, ...]
    counts: np.ndarray

    def __post_init__(self) -> None:
        expected = (len(self.images), len(self.classes), len(self.classes))
        if self.counts.shape != expected or self.counts.dtype.kind not in "iu" or (self.counts < 0).any():
            raise DataError(
                f"counts must be pixel counts of shape {expected}, got {self.counts.dtype} of shape "
                f"{self.counts.shape}" + (", some negative" if self.counts.shape == expected else "")
            )

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """Return what a stage's ``confusion.npz`` keeps of the image set `name`."""
        return {name: self.counts, f"{name}.classes": np.array(self.classes), f"{name}.images": np.array(self.images)}


@dataclass(frozen=True)
class Result:
    """Score by one protocol.

    Parameters
    ----------
    protocol : Protocol
        How it was scored.
    iou : dict of str to (float or None)
        In [0, 1] by class; None for a class in neither truth nor prediction.
    miou : float
        The mean over the averaged classes that have an IoU, times the protocol's factor.
    low, high : float
        Percentile interval of the mean over bootstrap samples of the images.
    """

    protocol: Protocol
    iou: dict[str, float | None]
    miou: float
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {
            "protocol": self.protocol.name,
            "meaning": self.protocol.meaning,
            "table": self.protocol.table or None,
            "miou": self.miou,
            "interval": [self.low, self.high],
            "iou": self.iou,
        }


def evaluate(matrices: ImageMatrices, *, samples: int = 1000, seed: int = 0) -> tuple[list[Result], dict[str, str]]:
    """Score by every protocol the matrices allow.

    The interval answers how much the mean depends on which images happen to be in the set: images are drawn with
    replacement, as many as there are, `samples` times, and the interval holds the middle `LEVEL` of the means. It says
    nothing of another training run. All protocols see the same samples.

    Parameters
    ----------
    matrices : ImageMatrices
        Matrices of at least one image.
    samples : int
        Bootstrap samples, at least 1.
    seed : int
        Seed of the samples.

    Returns
    -------
    results : list of Result
        Scores, in the order of the table above.
    refused : dict of str to str
        Why a protocol cannot be computed, by its name.

    Raises
    ------
    DataError
        If there is no image, or no class of a protocol occurs in the images.
    ConfigError
        If `samples` is below 1.
    """
    draws = draw_images(len(matrices.images), samples=samples, seed=seed)
    results, refused = [], {}
    for protocol in find_protocols(matrices.classes):
        predicted = [name for name in protocol.never if matrices.counts[:, :, matrices.classes.index(name)].any()]
        if predicted:
            refused[protocol.name] = f"only for networks without {', '.join(protocol.never)}; predicted: {predicted[0]}"
            continue
        hits, unions = _counts(matrices, protocol)
        averaged = np.array([name in protocol.averaged for name in protocol.truth])
        iou = _ratio(hits.sum(axis=0), unions.sum(axis=0))
        # float64 holds these sums of pixels exactly, up to 2^53
        resampled = _ratio(draws @ hits.astype(np.float64), draws @ unions.astype(np.float64))  # (samples, K)
        miou = protocol.factor * _mean(iou[averaged])
        if np.isnan(miou):
            raise DataError(f"protocol {protocol.name} needs at least one of its classes in the images, got none")
        means = protocol.factor * _mean(resampled[:, averaged])
        low, high = np.nanpercentile(means, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
        listed = {name: None if np.isnan(value) else float(value) for name, value in zip(protocol.truth, iou)}
        results.append(Result(protocol, listed, float(miou), float(low), float(high)))
    if matrices.classes == _SIXTEEN:
        refused["19 x 19/16"] = f"the truth of {', '.join(_OTHERS)} was ignored when the labels were read"
    return results, refused


def draw_images(count: int, *, samples: int, seed: int) -> np.ndarray:
    """Return how often each of `count` images is in each bootstrap sample, int64 (samples, count).

    Raises
    ------
    DataError
        If there is no image.
    ConfigError
        If `samples` is below 1.
    """
    if samples < 1:
        raise ConfigError(f"samples must be at least 1, got {samples}")
    if count == 0:
        raise DataError("matrices must be of at least one image, got none")
    return generator(seed, purpose="bootstrap").multinomial(count, np.full(count, 1 / count), size=samples)


def resampled_miou(matrices: ImageMatrices, draws: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the mean IoU over all classes that have one, and that of every sample of :func:`draw_images`.

    Returns
    -------
    miou : float
        In [0, 1].
    resampled : ndarray of shape (samples,), float64
    """
    hits, unions = _counts(matrices, Protocol("", "", "", matrices.classes, matrices.classes))
    resampled = _mean(_ratio(draws @ hits.astype(np.float64), draws @ unions.astype(np.float64)))
    return float(_mean(_ratio(hits.sum(axis=0), unions.sum(axis=0)))), resampled


@dataclass(frozen=True)
class WorstImage:
    """One image's score: mean IoU over the `classes` classes its truth has, and the worst of them."""

    name: str
    miou: float
    classes: int
    worst_class: str
    worst_iou: float


def worst_images(matrices: ImageMatrices, count: int) -> list[WorstImage]:
    """Return the `count` images with the lowest mean IoU over the classes present in their truth, worst first.

    A class that is only predicted has no part in an image's mean: one stray pixel of it would weigh as much as the
    whole road. Images without truth are left out.
    """
    hits, unions = _counts(matrices, Protocol("", "", "", matrices.classes, matrices.classes))
    present = matrices.counts.sum(axis=2) > 0  # (N, C)
    iou = np.where(present, _ratio(hits, unions), np.nan)
    found = []
    for index, name in enumerate(matrices.images):
        if present[index].any():
            worst = int(np.nanargmin(iou[index]))
            miou, lowest = float(_mean(iou[index])), float(iou[index, worst])
            found.append(WorstImage(name, miou, int(present[index].sum()), matrices.classes[worst], lowest))
    return sorted(found, key=lambda image: (image.miou, image.name))[:count]


def widen(train_ids: np.ndarray, classes: Sequence[str], wider: Sequence[str]) -> np.ndarray:
    """Turn the trainIds of some classes into those of a list that has them all.

    With this a 16-class network is scored on 19-class truth, from which every protocol follows.

    Parameters
    ----------
    train_ids : ndarray of any shape, uint8
        TrainIds of `classes`, 255 = ignore.
    classes, wider : sequence of str
        Class names by trainId.

    Returns
    -------
    ndarray of the same shape, uint8

    Raises
    ------
    ConfigError
        If a class is missing in `wider`.
    DataError
        If a value is no trainId.
    """
    missing = [name for name in classes if name not in wider]
    if missing:
        raise ConfigError(f"wider must have all of the classes, {missing[0]!r} is missing")
    table = np.full(256, IGNORE, dtype=np.uint8)
    table[: len(classes)] = [list(wider).index(name) for name in classes]
    wrong = (train_ids >= len(classes)) & (train_ids != IGNORE)
    if wrong.any():
        raise DataError(
            f"train_ids must be from 0 to {len(classes) - 1} or {IGNORE}, got {train_ids[wrong].reshape(-1)[0]}"
        )
    return table[train_ids]


def narrow(matrices: ImageMatrices, classes: Sequence[str]) -> ImageMatrices:
    """Return the matrices over some of the classes only, the other truth ignored.

    Raises
    ------
    ConfigError
        If a class is unknown.
    DataError
        If pixels of these classes were predicted as another: no smaller matrix holds them.
    """
    unknown = [name for name in classes if name not in matrices.classes]
    if unknown:
        raise ConfigError(f"classes must be among those of the matrices, got {unknown[0]!r}")
    kept = [matrices.classes.index(name) for name in classes]
    rows = matrices.counts[:, kept, :]
    result = rows[:, :, kept]
    if rows.sum() != result.sum():
        raise DataError(f"pixels of the {len(kept)} classes were predicted as other classes")
    return ImageMatrices(tuple(classes), matrices.images, result)


def _counts(matrices: ImageMatrices, protocol: Protocol) -> tuple[np.ndarray, np.ndarray]:
    """Return true positives and unions, int64 (N, K): both add up over images."""
    kept = [matrices.classes.index(name) for name in protocol.truth]
    rows = matrices.counts[:, kept, :].astype(np.int64)  # (N, K, C): the truth that counts
    hits = rows[:, range(len(kept)), kept]
    return hits, rows.sum(axis=2) + rows.sum(axis=1)[:, kept] - hits


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def _mean(values: np.ndarray) -> np.ndarray:
    """Return the mean along the last axis of what is not NaN; NaN where nothing is."""
    valid = ~np.isnan(values)
    return _ratio(np.where(valid, values, 0.0).sum(axis=-1), np.asarray(valid.sum(axis=-1)))
