"""Confusion matrix and the numbers that follow from it.

C classes; truth and prediction are integer arrays of trainIds, truth 255 = not labelled; a confusion matrix is int64
(C, C), rows truth, columns prediction, in pixels. Matrices of several images add up: sum them first, then compute the
IoU once over the whole set. IoU and accuracies are in [0, 1].

Absent classes. A pixel without truth counts nowhere, whatever is predicted there. A class that occurs neither in the
truth nor in the prediction has no IoU: it is NaN and left out of the mean. A class that is predicted but never true has
IoU 0 and counts in the mean. (Over a whole validation set with all classes present this is the usual definition.)
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from cbst_mx.errors import ConfigError, DataError
from cbst_mx.label_space import IGNORE, LabelSpace

__all__ = ["class_accuracy", "confusion_matrix", "iou_per_class", "mean_iou", "pixel_accuracy", "summary"]


def confusion_matrix(truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """Count the pixels of each (true class, predicted class).

    Parameters
    ----------
    truth : ndarray of any shape, integer
        trainIds 0 to C - 1; 255 is not counted.
    prediction : ndarray of the same shape, integer
        trainIds 0 to C - 1 wherever `truth` is not 255; not looked at elsewhere.
    num_classes : int
        C, from 1 to 255.

    Returns
    -------
    ndarray of shape (C, C), int64
        Rows truth, columns prediction.

    Raises
    ------
    DataError
        If shapes differ, an array is not integer, or a counted value is not a class.
    ConfigError
        If `num_classes` is not such a number.
    """
    if isinstance(num_classes, bool) or not isinstance(num_classes, (int, np.integer)) or not 1 <= num_classes <= 255:
        raise ConfigError(f"num_classes must be an integer from 1 to 255, got {num_classes!r}")
    truth, prediction = np.asarray(truth), np.asarray(prediction)
    for name, array in (("truth", truth), ("prediction", prediction)):
        if array.dtype.kind not in "iu":
            raise DataError(f"{name} must hold integer trainIds, got {array.dtype}")
    if truth.shape != prediction.shape:
        raise DataError(f"truth and prediction must have one shape, got {truth.shape} and {prediction.shape}")
    if truth.dtype == prediction.dtype == np.uint8:
        pairs = _pairs(truth, prediction, num_classes)
        counts = pairs[:num_classes]
        left = truth.size - counts.sum()  # without truth, or a value is no class
        if left == pairs[IGNORE].sum() or left == np.count_nonzero(truth == IGNORE):
            return counts.copy()
    valid = truth != IGNORE
    rows, columns = truth[valid].astype(np.int64), prediction[valid].astype(np.int64)
    for name, ids, also in (("truth", rows, f" or {IGNORE}"), ("prediction", columns, " where truth is valid")):
        wrong = ids[(ids < 0) | (ids >= num_classes)]
        if wrong.size:
            raise DataError(f"{name} must be from 0 to {num_classes - 1}{also}, got {wrong[0]}")
    counts = np.bincount(rows * num_classes + columns, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes).astype(np.int64)


_PART = 1 << 22  # pixels at a time: memory does not grow with the image, and OpenCV's float32 counts stay exact
_WORD = 8  # pixels looked at together
_SAMPLES, _MOST_MIXED = 16, 0.3  # with a larger part of mixed words in the samples, pixel by pixel is faster
_MOST_ENDS = 0.5  # with a larger part of pixels that end a run, pixels need not be taken apart


def _pairs(truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """Return how often each pair of an 8-bit value and a predicted class occurs, int64 (256, C).

    Label maps are long runs of one class, so most words of eight pixels hold one pair, that of the word before. Those
    are counted by how many lie between two others, and pixels one by one in the others alone.
    """
    truth, prediction = np.ascontiguousarray(truth).reshape(-1), np.ascontiguousarray(prediction).reshape(-1)
    whole = truth.size // _WORD * _WORD
    counts = np.zeros((256, num_classes), np.int64)
    if whole < truth.size:
        counts += _by_pixel(truth[whole:], prediction[whole:], num_classes).astype(np.int64)
    for start in range(0, whole, _PART):
        part = slice(start, min(start + _PART, whole))
        counts += _pairs_of_words(truth[part], prediction[part], num_classes).astype(np.int64)
    return counts


def _pairs_of_words(rows: np.ndarray, columns: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the pairs of whole words of at most `_PART` pixels, float32 (256, C)."""
    mixed_words, run_ends = _sampled(rows, columns)
    if mixed_words > _MOST_MIXED:
        if run_ends <= _MOST_ENDS:
            # a count waits for the one before, where both are of one pair: pixels of different eighths take turns
            rows, columns = (cv2.transpose(each.reshape(_WORD, -1)) for each in (rows, columns))
        return _by_pixel(rows, columns, num_classes)
    ends = np.empty(rows.size, dtype=bool)  # a pixel behind which the pair is another one, and the last one
    np.not_equal(rows[1:], rows[:-1], out=ends[:-1])
    ends[:-1] |= columns[1:] != columns[:-1]
    ends[-1] = True
    mixed = np.flatnonzero(ends.view(np.uint64) != 0)
    rows, columns = (each.view(np.uint64).take(mixed).view(np.uint8) for each in (rows, columns))
    counts = _by_pixel(rows, columns, num_classes)
    # the words before a mixed one, back to the mixed one before, are of the pair that it begins with
    begin = columns[::_WORD].astype(np.uint16) << 8 | rows[::_WORD]
    words = np.bincount(begin, weights=np.diff(mixed, prepend=-1) - 1, minlength=num_classes << 8)
    counts += _WORD * words[: num_classes << 8].reshape(num_classes, 256).T
    return counts


def _sampled(rows: np.ndarray, columns: np.ndarray) -> tuple[float, float]:
    """Return what part of the words holds several pairs, and of the pixels ends a run, as a few samples tell."""
    length = rows.size // _SAMPLES
    if length <= 1024:
        return 0, 0
    rows, columns = (each[: _SAMPLES * length].reshape(_SAMPLES, length)[:, :1025] for each in (rows, columns))
    ends = (rows[:, 1:] != rows[:, :-1]) | (columns[:, 1:] != columns[:, :-1])
    words = ends.view(np.uint64)
    return np.count_nonzero(words) / words.size, np.count_nonzero(ends) / ends.size


def _by_pixel(rows: np.ndarray, columns: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the pairs whose second value is a class, float32 (256, C)."""
    # one column for each class: rows of 256 counts get into each other's way in the processor's cache
    sizes, ranges = [256, num_classes], [0, 256, 0, num_classes]
    # OpenCV's types for Python 3.8 do not know that NumPy's arrays are its own
    return cv2.calcHist([rows, columns], [0, 1], None, sizes, ranges)  # type: ignore[list-item]


def iou_per_class(confusion: np.ndarray) -> np.ndarray:
    """Return true positives / (truth + prediction - true positives) of each class.

    Parameters
    ----------
    confusion : ndarray of shape (C, C), integer
        Rows truth, columns prediction.

    Returns
    -------
    ndarray of shape (C,), float64
        NaN for a class in neither truth nor prediction; 0 for one that is predicted but never true.

    Raises
    ------
    DataError
        If `confusion` is not a square matrix of counts.
    """
    confusion = _checked(confusion)
    hits = np.diag(confusion)
    return _ratio(hits, confusion.sum(axis=0) + confusion.sum(axis=1) - hits)


def mean_iou(confusion: np.ndarray) -> float:
    """Return the mean IoU over the classes that have one; means over some classes are those of `protocols`.

    Parameters
    ----------
    confusion : ndarray of shape (C, C), integer
        Rows truth, columns prediction.

    Raises
    ------
    DataError
        If no class has an IoU.
    """
    iou = iou_per_class(confusion)
    present = iou[~np.isnan(iou)]
    if present.size == 0:
        raise DataError("mean IoU needs at least one class in the truth or the prediction, got none")
    return float(present.mean())


def class_accuracy(confusion: np.ndarray) -> np.ndarray:
    """Return the part of each true class's pixels that is predicted right, float64 (C,); NaN where never true."""
    confusion = _checked(confusion)
    return _ratio(np.diag(confusion), confusion.sum(axis=1))


def pixel_accuracy(confusion: np.ndarray) -> float:
    """Return the part of all labelled pixels that is predicted right.

    Raises
    ------
    DataError
        If no pixel is labelled.
    """
    confusion = _checked(confusion)
    pixels = int(confusion.sum())
    if pixels == 0:
        raise DataError("pixel accuracy needs at least one labelled pixel, got none")
    return float(np.trace(confusion) / pixels)


def summary(confusion: np.ndarray, label_space: LabelSpace) -> dict[str, Any]:
    """Return all results of one evaluation, ready for JSON.

    Parameters
    ----------
    confusion : ndarray of shape (C, C), integer
        Rows truth, columns prediction.
    label_space : LabelSpace
        The same C classes.

    Returns
    -------
    dict
        ``miou`` (float), ``iou`` (class name to float, None for a class without IoU), ``pixel_accuracy`` (float),
        ``classes_counted`` (classes behind ``miou``) and ``pixels`` (labelled pixels).

    Raises
    ------
    DataError
        If the number of classes differs, or no pixel was labelled.
    """
    iou = iou_per_class(confusion)
    if len(iou) != label_space.num_classes:
        raise DataError(
            f"confusion must have the {label_space.num_classes} classes of {label_space.name}, got {len(iou)}"
        )
    return {
        "miou": mean_iou(confusion),
        "iou": {name: None if np.isnan(value) else float(value) for name, value in zip(label_space.names, iou)},
        "pixel_accuracy": pixel_accuracy(confusion),
        "classes_counted": int(np.count_nonzero(~np.isnan(iou))),
        "pixels": int(np.sum(confusion)),
    }


def _checked(confusion: np.ndarray) -> np.ndarray:
    confusion = np.asarray(confusion)
    square = confusion.ndim == 2 and confusion.shape[0] == confusion.shape[1] and confusion.size > 0
    if not square or confusion.dtype.kind not in "iu" or (confusion < 0).any():
        raise DataError(
            f"confusion must be a square matrix of counts, got {confusion.dtype} of shape {confusion.shape}"
            + (" with negative entries" if square and confusion.dtype.kind in "iu" else "")
        )
    return confusion.astype(np.int64)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
