"""What reports show of a network: predictions on some images, made small, and how often it is right when it is sure.

B levels of confidence, P images that are shown, h x w pixels of a small prediction.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterable, Mapping, NamedTuple

import cv2
import numpy as np

from cbst_mx.errors import DataError
from cbst_mx.files import open_npz, save_npz
from cbst_mx.label_space import IGNORE

__all__ = [
    "IMAGES",
    "LEVELS",
    "LONG_SIDE",
    "TARGET",
    "Shown",
    "Shows",
    "chosen_images",
    "load_shown",
    "pack",
    "save_shown",
    "shrink",
    "unpack",
]

IMAGES = 20  #: images of a set that are shown
LONG_SIDE = 512  #: pixels of the longer side at most
TARGET = "target images"  #: name of the set where there is no validation set
LEVELS = 20  #: levels of confidence, of equal width in [0, 1]


def chosen_images(count: int, shown: int = IMAGES) -> list[int]:
    """Return which of `count` images are shown: all, or `shown` at even distances.

    Examples
    --------
    >>> chosen_images(3), chosen_images(60, 4)
    ([0, 1, 2], [7, 22, 37, 52])
    """
    if count <= shown:
        return list(range(count))
    return [(2 * index + 1) * count // (2 * shown) for index in range(shown)]


def shrink(train_ids: np.ndarray, long_side: int = LONG_SIDE) -> np.ndarray:
    """Return a map of classes of which the longer side has at most `long_side` pixels, each the nearest one's class.

    Parameters
    ----------
    train_ids : ndarray of shape (H, W), uint8
    long_side : int
        At least 1.

    Returns
    -------
    ndarray of shape (h, w), uint8
    """
    height, width = train_ids.shape
    scale = long_side / max(height, width)
    if scale >= 1:
        return train_ids
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(train_ids, size, interpolation=cv2.INTER_NEAREST_EXACT)


class Shown(NamedTuple):
    """What is shown of a network on one image set.

    Attributes
    ----------
    predictions : dict of str to ndarray of shape (h, w), uint8
        Predicted class by image, trainIds of the labels.
    pixels, right : ndarray of shape (B,), int64
        Labelled pixels by level of confidence, and those predicted rightly; of all images of the set.
    confidence : ndarray of shape (B,), float64
        Sum of their confidences max_c p_n(c).
    """

    predictions: dict[str, np.ndarray]
    pixels: np.ndarray
    right: np.ndarray
    confidence: np.ndarray

    @property
    def calibration_error(self) -> float | None:
        """Expected calibration error in [0, 1]: mean distance of confidence and accuracy; None without a pixel."""
        total = int(self.pixels.sum())
        return float(np.abs(self.confidence - self.right).sum() / total) if total else None


class Shows:
    """Collects what is shown of a network, image by image.

    Parameters
    ----------
    count : int
        Images of the set.
    """

    def __init__(self, count: int) -> None:
        self._chosen = frozenset(chosen_images(count))
        none = np.zeros(LEVELS, np.int64)
        self.shown = Shown({}, none, none.copy(), np.zeros(LEVELS, np.float64))

    def add(
        self, index: int, name: str, confidence: np.ndarray, predicted: np.ndarray, truth: np.ndarray | None = None
    ) -> None:
        """Add an image.

        Parameters
        ----------
        index : int
            Its place in the set.
        name : str
            Its name.
        confidence : ndarray of shape (H, W), float32
            max_c p_n(c).
        predicted, truth : ndarray of shape (H, W), uint8
            TrainIds of the same classes; without labels only predictions are kept.
        """
        if index in self._chosen:
            self.shown.predictions[name] = shrink(predicted).copy()
        if truth is None:
            return
        _, pixels, rightly, sums = self.shown
        labelled = truth != IGNORE
        sure = confidence[labelled]
        level = np.minimum((sure * LEVELS).astype(np.int64), LEVELS - 1)
        right = level[(predicted == truth)[labelled]]
        pixels += np.bincount(level, minlength=LEVELS)
        rightly += np.bincount(right, minlength=LEVELS)
        sums += np.bincount(level, weights=sure, minlength=LEVELS)

    def merge(self, others: Iterable[Shown]) -> None:
        """Add what was collected of other images, each by itself, so that sums are those of one process to the bit."""
        _, pixels, right, confidence = self.shown
        for other in others:
            self.shown.predictions.update(other.predictions)
            pixels += other.pixels
            right += other.right
            confidence += other.confidence


def pack(maps: Mapping[str, np.ndarray], prefix: str = "") -> dict[str, np.ndarray]:
    """Return named maps of classes as arrays: ``names``, ``sizes`` (h and w) and ``classes``, one map after the other.

    Parameters
    ----------
    maps : mapping of str to ndarray of shape (h, w), uint8
    prefix : str
        Put before the arrays' names.
    """
    return {
        f"{prefix}names": np.array(list(maps), dtype=np.str_),
        f"{prefix}sizes": np.array([one.shape for one in maps.values()], dtype=np.int64).reshape(-1, 2),
        f"{prefix}classes": np.concatenate([*(one.reshape(-1) for one in maps.values()), np.zeros(0, np.uint8)]),
    }


def unpack(arrays: Mapping[str, np.ndarray], path: Path, prefix: str = "") -> dict[str, np.ndarray]:
    """Return the maps that :func:`pack` made arrays of.

    Raises
    ------
    DataError
        If the arrays do not fit together; the sentence names `path`.
    """
    names, sizes, classes = (arrays[f"{prefix}{key}"] for key in ("names", "sizes", "classes"))
    kinds = (names.dtype.kind, names.ndim, sizes.dtype.kind, sizes.shape, classes.dtype, classes.ndim)
    if kinds != ("U", 1, "i", (len(names), 2), np.uint8, 1) or (sizes < 0).any():
        raise DataError(f"{path} must hold N names, N sizes and the classes of the grids, got other arrays")
    ends = np.cumsum(sizes.prod(axis=1))
    if len(classes) != (ends[-1] if len(ends) else 0):
        raise DataError(f"{path} must hold as many classes as its sizes say, got {len(classes)}")
    parts = np.split(classes, ends[:-1]) if len(ends) else []
    return {str(name): part.reshape(size) for name, part, size in zip(names, parts, sizes)}


def save_shown(path: Path, sets: Mapping[str, Shown]) -> None:
    """Write what is shown of a network, by image set, atomically."""
    arrays: dict[str, np.ndarray] = {"sets": np.array(list(sets), dtype=np.str_)}
    for name, shown in sets.items():
        arrays.update(pack(shown.predictions, f"{name}."))
        arrays.update({f"{name}.{key}": getattr(shown, key) for key in ("pixels", "right", "confidence")})
    save_npz(path, arrays)


def load_shown(path: Path) -> dict[str, Shown]:
    """Read what :func:`save_shown` has written.

    Raises
    ------
    DataError
        If the file is missing, damaged, or holds something else.
    """
    with open_npz(path, "file of shown predictions") as stored:
        arrays: dict[str, Any] = dict(stored)
        found = {}
        for name in map(str, arrays["sets"]):
            levels = [arrays[f"{name}.{key}"] for key in ("pixels", "right", "confidence")]
            if any(one.ndim != 1 or one.shape != levels[0].shape or one.dtype.kind not in "if" for one in levels):
                raise DataError(f"{path} must hold pixels, right and confidence of the same levels, got other arrays")
            found[name] = Shown(unpack(arrays, path, f"{name}."), *levels)
    return found
