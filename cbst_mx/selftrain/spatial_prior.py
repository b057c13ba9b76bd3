"""Spatial prior q_n(c): how frequent class c is at pixel n in the source labels (CBST-SP, eq. 9).

C classes, H x W pixels of one grid. The class counts per pixel are smoothed by a Gaussian kernel, which is 70 x 70
pixels at 1024 x 2048 (the paper's) and scaled with the grid; its standard deviation, not published, is a sixth of its
size by default, so that the kernel spans three standard deviations to either side.

The smoothed counts are divided by one number:

``sum``        each class map by its mean over the pixels: mean 1, hence the distribution over the image that sums to 1
               times H W, a factor common to all classes. The default, and what the paper asks for (from memory: the
               sentence is cut in every copy that was found). An answer by an author, that scores fall by some orders of
               magnitude under the prior (issue 15 of yzou2/CRST), fits it.
``maximum``    each class map by its largest value: q_n(c) is 1 where class c is most frequent. Ours; the only one of
               experiments before there was a choice.
``frequency``  all maps by the number of label maps, which normalises no class: the share of them that show class c at
               pixel n. Ours; the plain reading of "frequency".

The authors' program reads a finished file, ``prior_array.mat``, and normalises nothing (see ``prior_files``).

A factor common to all classes changes nothing: the pools of Algorithm 2 stay, every exp(-k_c) takes the factor, and the
ratio of eq. 8 and 9 loses it. A factor of one class does change the selection: exp(-k_c) takes it too, but the class
argmax_c q_n(c) p_n(c), which says whose pool a pixel belongs to, does not lose it. Pixels move between pools, with them
the ranks and the thresholds, and the predicted shares that steer rare-class mining. The three choices differ by factors
of single classes: with ``sum`` a class confined to a small region wins pixels there that it loses with ``maximum``.

One rule of the released program is not free of scale: a class without a rank has the threshold 1, which no product of
a probability and a prior at most 1 exceeds. :func:`within_one` brings a prior below 1 by a power of two before it is
used, so that a common factor changes nothing by those rules either.
"""

from __future__ import annotations

import math
from typing import Sequence

import numpy as np
from scipy import ndimage

from cbst_mx.data.datasets import LabelledImageSet
from cbst_mx.data.transforms import resize_label
from cbst_mx.errors import ConfigError, DataError, check_choice
from cbst_mx.label_space import IGNORE
from cbst_mx.messages import Counter, silent
from cbst_mx.selftrain.class_maps import ClassMaps

__all__ = [
    "FULL_SIZE",
    "KERNEL",
    "NORMALISATIONS",
    "check_grid",
    "check_not_zero",
    "checked",
    "estimate",
    "normalised",
    "resized",
    "smooth",
    "standard_deviation",
    "within_one",
]

FULL_SIZE = (1024, 2048)  # pixels of a Cityscapes image, for which the kernel's size is published
KERNEL = 70.0
NORMALISATIONS = ("sum", "maximum", "frequency")


def standard_deviation(kernel: float, sigma: float | None = None) -> float:
    """Return the standard deviation of the kernel in pixels at ``FULL_SIZE``: `sigma`, or a sixth of `kernel`.

    Raises
    ------
    ConfigError
        If `kernel` is negative, `sigma` not above 0, or `sigma` is given for a `kernel` of 0, which does not smooth.
    """
    if not 0 <= kernel < float("inf"):
        raise ConfigError(f"kernel must be 0 or more pixels, got {kernel}")
    if sigma is None:
        return kernel / 6
    if not 0 < sigma < float("inf"):
        raise ConfigError(f"sigma must be more than 0 pixels, got {sigma}")
    if kernel == 0:
        raise ConfigError(f"sigma must not be given with a kernel of 0, which does not smooth, got {sigma}")
    return sigma


def smooth(
    counts: np.ndarray,
    *,
    kernel: float = KERNEL,
    sigma: float | None = None,
    normalisation: str = "sum",
    images: int = 1,
) -> np.ndarray:
    """Smooth and normalise class counts.

    Parameters
    ----------
    counts : ndarray of shape (C, H, W), number
        How often each class occurs at each pixel of the grid.
    kernel : float
        Size of the Gaussian kernel in pixels at ``FULL_SIZE``; 0 does not smooth.
    sigma : float, optional
        Its standard deviation in the same pixels; by default a sixth of `kernel`.
    normalisation : {"sum", "maximum", "frequency"}
        What the smoothed counts are divided by; see the module's text.
    images : int
        How many label maps were counted; used by "frequency" alone.

    Returns
    -------
    ndarray of shape (C, H, W), float32
        At least 0; all 0 for a class that never occurs. The mean of each other map is 1 with "sum", its largest value
        is 1 with "maximum".

    Raises
    ------
    ConfigError
        If an argument is not allowed.
    """
    deviation = standard_deviation(kernel, sigma)
    _check_normalisation(normalisation)
    height, width = counts.shape[1:]
    deviations = (deviation * height / FULL_SIZE[0], deviation * width / FULL_SIZE[1])
    truncate = 3.0 if sigma is None else kernel / 2 / deviation  # in standard deviations: half a kernel to either side
    prior = np.empty(counts.shape, dtype=np.float32)
    for index, plane in enumerate(counts):  # one by one: in float64 all maps of full size would take 320 MB
        blurred = ndimage.gaussian_filter(plane.astype(np.float64), deviations, mode="nearest", truncate=truncate)
        prior[index] = normalised(blurred[None], normalisation, images=images)[0]
    return prior


def normalised(maps: np.ndarray, normalisation: str = "sum", *, images: int = 1) -> np.ndarray:
    """Return class maps (C, H, W) divided by one number each, float32; a map of zeros stays one.

    The parameters are those of :func:`smooth`. "sum" and "maximum" take a factor of a class map away:
    to the last bit when it is a power of two, else within the rounding of float32.
    """
    _check_normalisation(normalisation)
    if normalisation == "maximum":
        divisors = maps.max(axis=(1, 2), keepdims=True)
    elif normalisation == "sum":
        divisors = maps.mean(axis=(1, 2), keepdims=True, dtype=np.float64)
    else:
        divisors = np.full((len(maps), 1, 1), float(images))
    return np.divide(maps, divisors, out=np.zeros(maps.shape), where=divisors > 0).astype(np.float32)


def _check_normalisation(normalisation: str) -> None:
    check_choice("normalisation", normalisation, NORMALISATIONS)


def check_grid(grid: Sequence[int]) -> None:
    """Refuse a grid that is not a height and a width of at least 1 pixel.

    Raises
    ------
    ConfigError
        If it is another.
    """
    if len(grid) != 2 or min(grid) < 1:
        raise ConfigError(f"grid must be a height and a width of at least 1 pixel, got {tuple(grid)}")


def estimate(
    source: LabelledImageSet,
    grid: tuple[int, int],
    *,
    kernel: float = KERNEL,
    sigma: float | None = None,
    normalisation: str = "sum",
    progress: Counter = silent,
) -> np.ndarray:
    """Estimate the spatial prior from the source labels.

    Parameters
    ----------
    source : LabelledImageSet
        Labelled source images; their labels are resized to `grid` (nearest pixel).
    grid : tuple of int
        H and W of the prior.
    kernel, sigma, normalisation
        As in :func:`smooth`.
    progress : callable, optional
        Called with (labels done, labels in all).

    Returns
    -------
    ndarray of shape (C, H, W), float32
        q_n(c), as :func:`smooth` returns it.

    Raises
    ------
    ConfigError
        If an argument is not allowed: before the first label is read.
    DataError
        If a label cannot be used.
    """
    check_grid(grid)
    _check_normalisation(normalisation)
    standard_deviation(kernel, sigma)
    classes = source.label_space.num_classes
    counts = np.zeros((classes + 1, *grid), dtype=np.int32)
    rows, columns = np.indices(grid, sparse=True)
    for index in range(len(source)):
        label = resize_label(source.label(index), grid)
        counts[np.where(label == IGNORE, classes, label), rows, columns] += 1
        progress(index + 1, len(source))
    return smooth(counts[:classes], kernel=kernel, sigma=sigma, normalisation=normalisation, images=len(source))


def checked(prior: np.ndarray, what: str) -> np.ndarray:
    """Return a spatial prior as float32 (C, H, W); refuse what cannot be one.

    Parameters
    ----------
    prior : ndarray of shape (C, H, W), number
        q_n(c).
    what : str
        Its name or file, for errors.

    Raises
    ------
    DataError
        If it has another shape or type, or a value that is negative or not finite.
    """
    prior = np.asarray(prior)
    if prior.dtype.kind not in "fiu":
        raise DataError(f"{what} must hold numbers, got {prior.dtype}")
    if prior.ndim != 3 or 0 in prior.shape:
        raise DataError(f"{what} must hold a prior of shape (C, H, W), got {prior.shape}")
    with np.errstate(over="ignore"):  # becomes infinite, which is refused
        prior = prior.astype(np.float32, copy=False)
    for plane in prior:  # one by one: all maps of full size take 159 MB
        if not (np.isfinite(plane).all() and plane.min() >= 0):
            raise DataError(f"{what} must hold finite values of at least 0")
    return prior


def check_not_zero(prior: np.ndarray, what: str) -> None:
    """Refuse a prior that is 0 everywhere.

    Raises
    ------
    DataError
        If `prior` has no value above 0; the message names it `what`.
    """
    if not prior.any():
        raise DataError(f"{what} must hold a value above 0, got zeros only: no pixel could get a label")


def within_one(prior: np.ndarray) -> np.ndarray:
    """Return `prior` (C, H, W), float32, times the power of two that makes its largest value at most 1; 1 if it is.

    A factor common to all classes changes no pseudo-label, see the module's text; a power of two rounds nothing. The
    thresholds exp(-k_c) take the factor.
    """
    largest = float(prior.max())
    return prior if largest <= 1 else np.ldexp(prior, -math.frexp(largest)[1])


def resized(prior: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return `prior` (C, H, W), float32, as :class:`.class_maps.ClassMaps` see it at the image size (height, width)."""
    if prior.shape[1:] == tuple(size):
        return prior
    result = np.empty((len(prior), *size), dtype=np.float32)
    for index in range(len(prior)):
        result[index] = ClassMaps(prior[index : index + 1], size).rows(0, size[0])[0]
    return result
