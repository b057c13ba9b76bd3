"""Spatial prior q_n(c): how frequent class c is at pixel n in the source labels (CBST-SP, eq. 9).

C classes, H x W pixels of one grid. The class counts per pixel are smoothed by a Gaussian kernel and every class map is
divided by its largest value: q_n(c) is 1 where class c is most frequent and says how much rarer it is elsewhere. A
factor per class is free, since k_c absorbs it; with this one the prior never favours a class that is merely confined to
a small region, as maps that sum to 1 do. ST has one k for all classes, so there the choice matters.
The kernel is 70 x 70 pixels at 1024 x 2048 and scaled with the grid; its standard deviation, not published, is a sixth
of its size, so that the kernel spans three standard deviations to either side.
"""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Optional, Tuple

import cv2
import numpy as np
from scipy import ndimage

from cbst_mx.data.datasets import LabelledImageSet
from cbst_mx.data.transforms import resize_label
from cbst_mx.errors import ConfigError, DataError
from cbst_mx.files import save_npz
from cbst_mx.label_space import IGNORE

__all__ = ["FULL_SIZE", "KERNEL", "estimate", "load", "normalised", "resized", "save", "smooth"]

FULL_SIZE = (1024, 2048)  # pixels of a Cityscapes image, for which the kernel's size is published
KERNEL = 70.0


def smooth(counts: np.ndarray, *, kernel: float = KERNEL) -> np.ndarray:
    """Smooth and normalise class counts.

    Parameters
    ----------
    counts : ndarray of shape (C, H, W), number
        How often each class occurs at each pixel of the grid.
    kernel : float
        Size of the Gaussian kernel in pixels at ``FULL_SIZE``; 0 does not smooth.

    Returns
    -------
    ndarray of shape (C, H, W), float32
        In [0, 1], largest value 1 per class; all 0 for a class that never occurs.

    Raises
    ------
    ConfigError
        If `kernel` is negative.
    """
    if not kernel >= 0:
        raise ConfigError(f"kernel must be 0 or more pixels, got {kernel}")
    height, width = counts.shape[1:]
    sigma = (0, kernel / 6 * height / FULL_SIZE[0], kernel / 6 * width / FULL_SIZE[1])
    maps = ndimage.gaussian_filter(counts.astype(np.float64), sigma, mode="nearest", truncate=3.0)
    return normalised(maps)


def normalised(maps: np.ndarray) -> np.ndarray:
    """Return class maps (C, H, W) divided by their largest values, float32; a map of zeros stays one."""
    largest = maps.max(axis=(1, 2), keepdims=True)
    return np.divide(maps, largest, out=np.zeros(maps.shape), where=largest > 0).astype(np.float32)


def estimate(
    source: LabelledImageSet,
    grid: Tuple[int, int],
    *,
    kernel: float = KERNEL,
    progress: Optional[Callable[[int, int], None]] = None,
) -> np.ndarray:
    """Estimate the spatial prior from the source labels.

    Parameters
    ----------
    source : LabelledImageSet
        Labelled source images; their labels are resized to `grid` (nearest pixel).
    grid : tuple of int
        H and W of the prior.
    kernel : float
        As in :func:`smooth`.
    progress : callable, optional
        Called with (labels done, labels in all).

    Returns
    -------
    ndarray of shape (C, H, W), float32
        q_n(c), as :func:`smooth` returns it.
    """
    classes = source.label_space.num_classes
    counts = np.zeros((classes + 1, *grid), dtype=np.int64)
    rows, columns = np.indices(grid, sparse=True)
    for index in range(len(source)):
        label = resize_label(source.label(index), grid)
        counts[np.where(label == IGNORE, classes, label), rows, columns] += 1
        if progress:
            progress(index + 1, len(source))
    return smooth(counts[:classes], kernel=kernel)


def resized(prior: np.ndarray, size: Tuple[int, int]) -> np.ndarray:
    """Return `prior` (C, H, W), bilinearly resized to the image size (height, width); float32, not negative."""
    if prior.shape[1:] == tuple(size):
        return prior
    height, width = size
    return np.stack([cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR) for plane in prior])


def save(path: Path, prior: np.ndarray) -> None:
    """Write the prior (C, H, W), float32, as ``prior`` of an ``.npz`` file, atomically."""
    save_npz(path, {"prior": prior.astype(np.float32)})


def load(path: Path, num_classes: int) -> np.ndarray:
    """Read a prior written by :func:`save`.

    Raises
    ------
    DataError
        If the file is missing, damaged, of another number of classes, negative or not finite.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            prior = stored["prior"].astype(np.float32)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} is not a readable spatial prior (.npz with the array 'prior'): {error}") from error
    if prior.ndim != 3 or prior.shape[0] != num_classes:
        raise DataError(f"{path} must hold a prior of shape ({num_classes}, H, W), got {prior.shape}")
    if not np.isfinite(prior).all() or (prior < 0).any():
        raise DataError(f"{path} must hold finite values of at least 0")
    return prior
