"""Folds for cross-validation: which of the labelled images are held out.

The assignment depends on the images' names, the number of folds and the seed alone: not on the order of the names, the
machine or a library's random numbers. Names are sorted by the SHA-256 of ``"seed/name"`` and dealt to the folds in
turn, so folds differ by one image at most. The folds of the published NTHU results are not known.
"""

from __future__ import annotations

import hashlib
from typing import Sequence

import numpy as np

from cbst_mx.errors import ConfigError

__all__ = ["assign_folds", "split_fold"]


def assign_folds(names: Sequence[str], *, folds: int = 10, seed: int = 0) -> np.ndarray:
    """Return the fold of every image.

    Parameters
    ----------
    names : sequence of str
        Unique names.
    folds : int
        Number of folds, at least 2 and at most one per image.
    seed : int
        Another seed gives another assignment.

    Returns
    -------
    ndarray of shape (N,), int64
        0 to `folds` - 1.

    Raises
    ------
    ConfigError
        If `folds` or `seed` is outside its range.
    """
    if not 2 <= folds <= len(names):
        raise ConfigError(f"folds must be from 2 to the number of images, {len(names)}, got {folds}")
    if seed < 0:
        raise ConfigError(f"fold_seed must be 0 or more, got {seed}")
    digests = [hashlib.sha256(f"{seed}/{name}".encode()).digest() for name in names]
    fold = np.empty(len(names), dtype=np.int64)
    fold[sorted(range(len(names)), key=digests.__getitem__)] = np.arange(len(names)) % folds
    return fold


def split_fold(
    names: Sequence[str], fold: int, *, folds: int = 10, seed: int = 0
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the images outside and inside one fold.

    Parameters
    ----------
    names : sequence of str
        Unique names.
    fold : int
        0 to `folds` - 1.
    folds, seed
        As for `assign_folds`.

    Returns
    -------
    rest, held_out : tuple of int
        Ascending indices into `names`; together they are all of them.

    Raises
    ------
    ConfigError
        If `fold`, `folds` or `seed` is outside its range.
    """
    assigned = assign_folds(names, folds=folds, seed=seed)
    if not 0 <= fold < folds:
        raise ConfigError(f"fold must be from 0 to {folds - 1}, got {fold}")
    inside = assigned == fold
    return tuple(np.flatnonzero(~inside).tolist()), tuple(np.flatnonzero(inside).tolist())
