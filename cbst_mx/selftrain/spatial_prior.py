"""Spatial prior q_n(c): how frequent class c is at pixel n in the source labels (CBST-SP, eq. 9).

C classes, H x W pixels of one grid. The class counts per pixel are smoothed by a Gaussian kernel, which is 70 x 70
pixels at 1024 x 2048 and scaled with the grid; its standard deviation, not published, is a sixth of its size by
default, so that the kernel spans three standard deviations to either side.

The published text of the normalisation is not known with certainty, so it is a choice here. All three divide each class
map by one number:

``maximum``    its largest value: q_n(c) is 1 where class c is most frequent (the default);
``sum``        its sum over the pixels: a distribution over the image for each class;
``frequency``  the number of source images: the share of them that show class c at pixel n (each is 1 at most).

What a factor per class changes: the selection by eq. 8 and 9 does not see it when exp(-k_c) takes the same factor, and
Algorithm 2 gives exp(-k_c) that factor as long as no pixel changes its predicted class argmax_c q_n(c) p_n(c). A factor
large enough to do that moves pixels from one class's pool to another's; then the ranks, and the selection, do change:
with ``sum`` a class confined to a small region wins pixels that it loses with ``maximum``. One factor for all classes
never changes anything. ST has one k for all classes, so there the choice always matters.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

import cv2
import numpy as np
from scipy import io, ndimage

from cbst_mx.data.datasets import LabelledImageSet
from cbst_mx.data.transforms import resize_label
from cbst_mx.errors import ConfigError, DataError
from cbst_mx.files import open_npz, save_npz
from cbst_mx.label_space import IGNORE
from cbst_mx.selftrain.class_maps import ClassMaps

__all__ = [
    "FORMAT",
    "FULL_SIZE",
    "KERNEL",
    "NORMALISATIONS",
    "estimate",
    "load",
    "normalised",
    "read",
    "read_matlab",
    "resized",
    "save",
    "smooth",
    "standard_deviation",
]

FORMAT = 1  # of the files; those of format 0 hold the array and nothing else
FULL_SIZE = (1024, 2048)  # pixels of a Cityscapes image, for which the kernel's size is published
KERNEL = 70.0
NORMALISATIONS = ("maximum", "sum", "frequency")

_MATLAB_KEY = "prior_array"
_MATLAB_NUMBERS = ("double", "single", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
_HDF5 = b"\x89HDF\r\n\x1a\n"
# What a bicubic resize leaves below 0 is less than this share of the largest value.
_LARGEST_OVERSHOOT = 0.1


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
    normalisation: str = "maximum",
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
    normalisation : {"maximum", "sum", "frequency"}
        What each class map is divided by; see the module's text.
    images : int
        How many label maps were counted; used by "frequency" alone.

    Returns
    -------
    ndarray of shape (C, H, W), float32
        At least 0; all 0 for a class that never occurs. With "maximum" the largest value per class is 1.

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


def normalised(maps: np.ndarray, normalisation: str = "maximum", *, images: int = 1) -> np.ndarray:
    """Return class maps (C, H, W) divided by one number each, float32; a map of zeros stays one.

    The parameters are those of :func:`smooth`. With "maximum" and "sum" the result does not depend on a factor of a
    class map: not by one bit when it is a power of two, else within the rounding of float32.
    """
    _check_normalisation(normalisation)
    if normalisation == "maximum":
        divisors = maps.max(axis=(1, 2), keepdims=True)
    elif normalisation == "sum":
        divisors = maps.sum(axis=(1, 2), keepdims=True, dtype=np.float64)
    else:
        divisors = np.full((len(maps), 1, 1), float(images))
    return np.divide(maps, divisors, out=np.zeros(maps.shape), where=divisors > 0).astype(np.float32)


def _check_normalisation(normalisation: str) -> None:
    if normalisation not in NORMALISATIONS:
        raise ConfigError(f"normalisation must be one of {', '.join(NORMALISATIONS)}, got {normalisation!r}")


def _check_grid(grid: Sequence[int]) -> None:
    if len(grid) != 2 or min(grid) < 1:
        raise ConfigError(f"grid must be a height and a width of at least 1 pixel, got {tuple(grid)}")


def estimate(
    source: LabelledImageSet,
    grid: tuple[int, int],
    *,
    kernel: float = KERNEL,
    sigma: float | None = None,
    normalisation: str = "maximum",
    progress: Callable[[int, int], None] | None = None,
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
    _check_grid(grid)
    _check_normalisation(normalisation)
    standard_deviation(kernel, sigma)
    classes = source.label_space.num_classes
    counts = np.zeros((classes + 1, *grid), dtype=np.int32)
    rows, columns = np.indices(grid, sparse=True)
    for index in range(len(source)):
        label = resize_label(source.label(index), grid)
        counts[np.where(label == IGNORE, classes, label), rows, columns] += 1
        if progress:
            progress(index + 1, len(source))
    return smooth(counts[:classes], kernel=kernel, sigma=sigma, normalisation=normalisation, images=len(source))


def resized(prior: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return `prior` (C, H, W), float32, as :class:`.upsampling.ClassMaps` see it at the image size (height, width)."""
    if prior.shape[1:] == tuple(size):
        return prior
    result = np.empty((len(prior), *size), dtype=np.float32)
    for index in range(len(prior)):
        result[index] = ClassMaps(prior[index : index + 1], size).rows(0, size[0])[0]
    return result


# ------------------------------------------------------------------------------------------------------------- files


def save(path: Path, prior: np.ndarray, metadata: Mapping[str, Any] | None = None) -> None:
    """Write a prior as an ``.npz`` file, atomically.

    Parameters
    ----------
    path : Path
        The file. It holds the arrays ``prior``, float32 (C, H, W), and ``metadata``, one text of JSON.
    prior : ndarray of shape (C, H, W), number
        q_n(c).
    metadata : mapping, optional
        JSON values to keep with it. ``names``, the class names by trainId, is compared on use; ``format`` and ``grid``
        are added here.
    """
    facts = {"format": FORMAT, "grid": list(prior.shape[1:]), **(metadata or {})}
    save_npz(path, {"prior": prior.astype(np.float32), "metadata": np.array(json.dumps(facts, allow_nan=False))})


def read(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Read a prior written by :func:`save`, or an ``.npz`` file that holds the array ``prior`` alone.

    Returns
    -------
    prior : ndarray of shape (C, H, W), float32
    metadata : dict
        What the file says of it; empty where it says nothing.

    Raises
    ------
    DataError
        If the file is missing or damaged, or the array has another shape, a negative value or one that is not finite.
    """
    with open_npz(path, "spatial prior (.npz with the array 'prior')") as stored:
        prior = stored["prior"]
        metadata = json.loads(str(stored["metadata"])) if "metadata" in stored.files else {}
        if prior.dtype.kind not in "fiu":
            raise ValueError(f"its numbers are of type {prior.dtype}")
        if not isinstance(metadata, dict):
            raise ValueError("its metadata are no mapping")
    version = metadata.get("format", 0)
    if not isinstance(version, int) or version > FORMAT:
        raise DataError(f"{path} must be of format {FORMAT} or older, got {version!r}: a newer cbst_mx wrote it")
    if prior.ndim != 3 or 0 in prior.shape:
        raise DataError(f"{path} must hold a prior of shape (C, H, W), got {prior.shape}")
    with np.errstate(over="ignore"):  # becomes infinite, which is refused
        prior = prior.astype(np.float32, copy=False)
    for plane in prior:  # one by one: all maps of full size take 159 MB
        if not (np.isfinite(plane).all() and plane.min() >= 0):
            raise DataError(f"{path} must hold finite values of at least 0")
    names = metadata.get("names")
    if names is not None and not (
        isinstance(names, list) and len(names) == len(prior) and all(isinstance(name, str) for name in names)
    ):
        raise DataError(f"{path} must name each of its {len(prior)} classes, got {names!r}")
    return prior, metadata


def load(path: Path, num_classes: int, names: Sequence[str] | None = None) -> np.ndarray:
    """Read a prior for given classes.

    Parameters
    ----------
    path : Path
        As for :func:`read`.
    num_classes : int
        C.
    names : sequence of str, optional
        Class names by trainId; compared with the file's, where it has them.

    Returns
    -------
    ndarray of shape (C, H, W), float32

    Raises
    ------
    DataError
        If the file cannot be used, or is for other classes.
    """
    prior, metadata = read(path)
    if len(prior) != num_classes:
        raise DataError(f"{path} must hold a prior of shape ({num_classes}, H, W), got {prior.shape}")
    stored = metadata.get("names")
    if stored is not None and names is not None:
        for index, (ours, theirs) in enumerate(zip(names, stored)):
            if ours != theirs:
                raise DataError(
                    f"{path} must hold a prior of the same classes: class {index} is {theirs!r}, not {ours!r}"
                )
    return prior


def read_matlab(path: Path, *, grid: tuple[int, int] | None = None) -> tuple[np.ndarray, int, float]:
    """Read the authors' file of priors, ``prior_array.mat``.

    Parameters
    ----------
    path : Path
        MATLAB file (up to v7) with the array ``prior_array`` of shape (C, H, W); the authors' is (19, 1024, 2048).
    grid : tuple of int, optional
        H and W to shrink the maps to, each new pixel the mean of those it covers.

    Returns
    -------
    prior : ndarray of shape (C, H, W), float32
        Not normalised; small negative values, as a bicubic resize leaves them, are 0.
    clamped : int
        How many values were negative.
    smallest : float
        The smallest value there was.

    Raises
    ------
    DataError
        If the file is missing, damaged, of MATLAB v7.3, or its array of another kind, not finite, or too negative.
    ConfigError
        If `grid` is larger than the maps.
    """
    values = _matlab_array(path)
    with np.errstate(over="ignore"):  # becomes infinite, which is refused
        prior = np.ascontiguousarray(values, dtype=np.float32)
    del values
    if not np.isfinite(prior).all():
        raise DataError(f"{path} must hold finite values, got NaN or infinity in {_MATLAB_KEY!r}")
    smallest, largest = float(prior.min()), float(prior.max())
    if smallest < -_LARGEST_OVERSHOOT * max(largest, 0.0):
        raise DataError(
            f"{path} must hold frequencies, whose negative values are small, got {smallest:.4g} to {largest:.4g}"
        )
    clamped = int(np.count_nonzero(prior < 0))
    np.maximum(prior, 0, out=prior)
    if grid is not None:
        _check_grid(grid)
        if grid[0] > prior.shape[1] or grid[1] > prior.shape[2]:
            raise ConfigError(f"grid must be at most {prior.shape[1]} x {prior.shape[2]}, got {grid[0]} x {grid[1]}")
        prior = np.stack([cv2.resize(plane, (grid[1], grid[0]), interpolation=cv2.INTER_AREA) for plane in prior])
    return prior, clamped, smallest


def _matlab_array(path: Path) -> np.ndarray:
    try:
        with open(path, "rb") as stream:
            start = stream.read(512 + len(_HDF5))  # MATLAB puts 512 bytes of its own before an HDF5 file
        if _HDF5 in (start[: len(_HDF5)], start[512:]):
            raise NotImplementedError
        # the list of contents first: it is short, whatever the file holds
        contents = {name: (shape, kind) for name, shape, kind in io.whosmat(path, appendmat=False)}
        if _MATLAB_KEY in contents:
            shape, kind = contents[_MATLAB_KEY]
            if kind in _MATLAB_NUMBERS and len(shape) == 3 and 0 not in shape:
                values = io.loadmat(path, appendmat=False, variable_names=[_MATLAB_KEY])[_MATLAB_KEY]
                if values.dtype.kind in "fiu":  # not complex
                    return values
                kind = str(values.dtype)
    except NotImplementedError as error:
        raise DataError(
            f"{path} is a MATLAB v7.3 (HDF5) file: save it with MATLAB's option -v7 and import that"
        ) from error
    except Exception as error:  # scipy's reader raises whatever it stumbles on in a damaged file
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"{path} is not a readable MATLAB file: {reason}") from error
    if _MATLAB_KEY not in contents:
        raise DataError(f"{path} must hold the array {_MATLAB_KEY!r}, got {', '.join(contents) or 'none'}")
    raise DataError(f"{path} must hold {_MATLAB_KEY!r} as real numbers of shape (C, H, W), got {kind} of shape {shape}")
