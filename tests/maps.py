"""Random probability maps, for every test that needs some."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the softmax over the classes of maps (..., C, H, W), in the float type of `logits`."""
    exponentials = np.exp(logits - logits.max(axis=-3, keepdims=True))
    return exponentials / exponentials.sum(axis=-3, keepdims=True)


def random_maps(seed: int, shape: tuple[int, ...], sharpness: float = 3.0) -> np.ndarray:
    """Return random class probabilities.

    Parameters
    ----------
    seed : int
        Seed of the logits, which are normally distributed.
    shape : tuple of int
        (C, H, W) of one image or (N, C, H, W) of several.
    sharpness : float
        Standard deviation of the logits: the larger, the more confident.

    Returns
    -------
    ndarray of `shape`, float32
    """
    logits = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return softmax(np.float32(sharpness) * logits)


def write_maps(folder: Path, maps: np.ndarray, dtype: type = np.float32) -> Path:
    """Write maps (N, C, H, W) as ``image-0.npy`` and so on into `folder`, which is made; return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, array in enumerate(maps):
        np.save(folder / f"image-{index}.npy", array.astype(dtype))
    return folder
