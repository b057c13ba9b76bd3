"""How many pixels of each class a folder of label maps holds. C classes, H x W pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

import cv2
import numpy as np

from cbst_mx.data.image_files import read_label
from cbst_mx.errors import DataError
from cbst_mx.label_space import IGNORE
from cbst_mx.messages import Counter, Share, Shares, shares_of, silent

__all__ = ["count_labels", "count_values"]

_BLOCK = 64  # label maps of a share
_PART = 1 << 22  # pixels at a time, whose float32 counts of OpenCV are exact


def count_values(label: np.ndarray) -> np.ndarray:
    """Count the pixels of every value of a label map.

    Parameters
    ----------
    label : ndarray of any shape, integer, not negative

    Returns
    -------
    ndarray of shape (n,), int64
        Of the values 0 to n - 1; n is 256, or more where a value is larger.
    """
    flat = np.ascontiguousarray(label).reshape(-1)
    if flat.dtype != np.uint8:
        return np.bincount(flat, minlength=IGNORE + 1)
    counts = np.zeros(IGNORE + 1, dtype=np.int64)
    for start in range(0, flat.size, _PART):
        # a third of the time of np.bincount, which makes wide integers of them first
        part = flat[start : start + _PART]
        # OpenCV's types for Python 3.8 do not know that NumPy's arrays are its own
        found = cv2.calcHist([part], [0], None, [IGNORE + 1], [0, IGNORE + 1])  # type: ignore[list-item]
        counts += found.reshape(-1).astype(np.int64)
    return counts


def count_labels(
    folder: Path, num_classes: int, *, cluster: Shares | None = None, progress: Counter = silent
) -> np.ndarray:
    """Count the pixels of every class in all label maps below a folder.

    Parameters
    ----------
    folder : Path
        Its ``.png`` files, in sub-folders too, hold trainIds, 255 = none.
    num_classes : int
        C.
    cluster : Shares, optional
        A :class:`cbst_mx.cluster.Cluster`, whose workers count; they must see the same files.
    progress : callable, optional
        Called with (files done, files in all).

    Returns
    -------
    ndarray of shape (C,), int64

    Raises
    ------
    DataError
        If there is no such file, one cannot be read, or one holds a class that is not there.
    """
    paths = sorted(path.absolute() for path in folder.rglob("*.png") if not path.name.startswith("."))
    if not paths:
        raise DataError(f"{folder} must hold label maps (.png of trainIds), it has none")
    total, done = np.zeros(num_classes, np.int64), 0

    def tell() -> None:
        progress(done, len(paths))

    def share(block: Sequence[Path]) -> Share:
        return Share((block, num_classes), [path.name for path in block], block[0])

    shares = shares_of(share, [paths[start : start + _BLOCK] for start in range(0, len(paths), _BLOCK)])
    if cluster is None:
        results = ((index, _count(*one.arguments)) for index, one in enumerate(shares))
    else:
        results = cluster.each(_count, shares, waiting_for=tell)  # type: ignore[assignment]
    for index, counts in results:
        total += counts
        done += len(shares[index].names)
        tell()
    return total


def _count(paths: Sequence[Path], num_classes: int) -> np.ndarray:
    """Return the pixels of every class in some label maps; on a worker, too."""
    total = np.zeros(num_classes, np.int64)
    for path in paths:
        found = count_values(read_label(path))
        beyond = found[num_classes:].nonzero()[0] + num_classes
        unknown = [int(value) for value in beyond if value != IGNORE]
        if unknown:
            raise DataError(
                f"{path} must hold trainIds below {num_classes} or 255, got {unknown[0]}: is it of another label "
                "space, or of ids?"
            )
        total += found[:num_classes]
    return total
