"""Files of spatial priors: this package's ``.npz``, and the authors' MATLAB file ``prior_array.mat``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Mapping, Sequence

import cv2
import numpy as np

from cbst_mx.errors import ConfigError, DataError
from cbst_mx.files import file_digest, open_file, open_npz, reading, save_npz
from cbst_mx.messages import listed
from cbst_mx.selftrain.matlab_files import read_variable
from cbst_mx.selftrain.spatial_prior import check_grid, check_not_zero, checked, within_one

__all__ = ["FORMAT", "load", "read", "read_given", "read_matlab", "save"]

FORMAT = 1  # of the files; those of format 0 hold the array and nothing else

_MATLAB_KEY = "prior_array"
_HDF5 = b"\x89HDF\r\n\x1a\n"
# What a bicubic resize leaves below 0 is less than this share of the largest value.
_LARGEST_OVERSHOOT = 0.1


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
    own = {"format": FORMAT, "grid": list(prior.shape[1:])}
    facts = {**own, **(metadata or {}), **own}
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
    prior = checked(prior, str(path))
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
        Number of classes C.
    names : sequence of str, optional
        Class names by trainId; compared with the file's, where it has them.

    Returns
    -------
    ndarray of shape (C, H, W), float32
        What the file holds, or that times a power of two so that no value is above 1: see
        :func:`.spatial_prior.within_one`.

    Raises
    ------
    DataError
        If the file cannot be used, or is for other classes.
    """
    prior, metadata = read(path)
    _check_classes(path, prior, metadata, num_classes, names)
    return within_one(prior)


def read_given(path: Path, num_classes: int, names: Sequence[str] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
    """Read a prior that somebody gives to an experiment, as it is: nothing is normalised.

    Parameters
    ----------
    path : Path
        A file as for :func:`read`, or the authors' ``prior_array.mat`` as for :func:`read_matlab`, by its ending.
    num_classes : int
        Number of classes C.
    names : sequence of str, optional
        Class names by trainId; compared with the file's, where it has them.

    Returns
    -------
    prior : ndarray of shape (C, H, W), float32
    metadata : dict
        What is known of it, to be given to :func:`save`: what the file says itself, ``file``, its name, ``sha256``, its
        digest, and ``clamped``, how many small negative values of a MATLAB file became 0.

    Raises
    ------
    DataError
        If the file is missing, has another ending, cannot be used, is 0 everywhere, or is for other classes.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"spatial prior {path} does not exist: put the file there, or name another")
    ending = path.suffix.lower()
    if ending == ".mat":
        prior, clamped, _ = read_matlab(path)
        prior = checked(prior, str(path))
        metadata: dict[str, Any] = {"normalisation": "as given", "clamped": clamped}
    elif ending == ".npz":
        prior, metadata = read(path)
    else:
        raise DataError(f"spatial prior {path} must be a .npz file or the authors' .mat file")
    _check_classes(path, prior, metadata, num_classes, names)
    check_not_zero(prior, str(path))
    if names is not None:
        metadata["names"] = list(names)
    with reading(f"spatial prior {path}"):
        digest = file_digest(path)
    return prior, {**metadata, "file": path.name, "sha256": digest}


def _check_classes(
    path: Path, prior: np.ndarray, metadata: Mapping[str, Any], num_classes: int, names: Sequence[str] | None
) -> None:
    """Refuse a prior of another number of classes, or whose file names other ones."""
    if len(prior) != num_classes:
        raise DataError(f"{path} must hold a prior of shape ({num_classes}, H, W), got {prior.shape}")
    stored = metadata.get("names")
    if stored is not None and names is not None:
        for index, (ours, theirs) in enumerate(zip(names, stored)):
            if ours != theirs:
                raise DataError(
                    f"{path} must hold a prior of the same classes: class {index} is {theirs!r}, not {ours!r}"
                )


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
        check_grid(grid)
        if grid[0] > prior.shape[1] or grid[1] > prior.shape[2]:
            raise ConfigError(f"grid must be at most {prior.shape[1]} x {prior.shape[2]}, got {grid[0]} x {grid[1]}")
        prior = np.stack([cv2.resize(plane, (grid[1], grid[0]), interpolation=cv2.INTER_AREA) for plane in prior])
    return prior, clamped, smallest


def _matlab_array(path: Path) -> np.ndarray:
    try:
        with open_file(path) as stream:
            start = stream.read(512 + len(_HDF5))  # MATLAB puts 512 bytes of its own before an HDF5 file
        is_hdf5 = _HDF5 in (start[: len(_HDF5)], start[512:])
        found = {} if is_hdf5 else read_variable(path, _MATLAB_KEY, 3)
    except Exception as error:  # whatever a damaged file leads to
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"{path} is not a readable MATLAB file: {reason}") from error
    if is_hdf5:
        raise DataError(f"{path} is a MATLAB v7.3 (HDF5) file: save it with MATLAB's option -v7 and import that")
    if _MATLAB_KEY not in found:
        names = [name if name.isprintable() else repr(name) for name in found]
        raise DataError(f"{path} must hold the array {_MATLAB_KEY!r}, got {listed(names) or 'none'}")
    kind, shape, values = found[_MATLAB_KEY]
    if values is None:
        raise DataError(
            f"{path} must hold {_MATLAB_KEY!r} as real numbers of shape (C, H, W), got {kind} of shape {shape}"
        )
    return values
