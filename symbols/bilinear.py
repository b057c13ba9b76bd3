"""Bilinear upsampling by an even factor, as the weight of a transposed convolution and as a matrix for each axis."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from symbols.backend import mx

__all__ = ["BilinearUpsampling", "bilinear_kernel", "bilinear_matrix"]


def _ramp(factor: int) -> np.ndarray:
    """Return the weights, float64 (2 * factor,), of one number for the pixels around it along one axis."""
    size = 2 * factor
    return 1 - np.abs(np.arange(size) - (size - 1) / 2) / factor


def bilinear_kernel(channels: int, factor: int) -> np.ndarray:
    """Return the weight of a transposed convolution that interpolates each channel bilinearly.

    Parameters
    ----------
    channels : int
        Number of channels C.
    factor : int
        Even upsampling factor.

    Returns
    -------
    ndarray of shape (C, C, 2 * factor, 2 * factor), float32
        Zero between different channels.
    """
    ramp = _ramp(factor)
    weight = np.zeros((channels, channels, 2 * factor, 2 * factor), dtype=np.float32)
    weight[np.arange(channels), np.arange(channels)] = ramp[:, None] * ramp[None, :]
    return weight


@functools.lru_cache(maxsize=64)  # a training has few sizes, and asks for every image
def bilinear_matrix(small: int, factor: int, large: int) -> np.ndarray:
    """Return what :func:`bilinear_kernel` does along one axis, where the result is cut at its end.

    Parameters
    ----------
    small : int
        Numbers before the upsampling.
    factor : int
        Even upsampling factor.
    large : int
        Numbers behind it, at most ``factor * small``.

    Returns
    -------
    ndarray of shape (large, small), float32
        To be multiplied by the numbers; one or two of a row are not 0. It cannot be written to.
    """
    matrix = np.zeros((small, factor * (small + 1)), np.float32)
    for index, row in enumerate(matrix):
        row[factor * index :][: 2 * factor] = _ramp(factor)
    result = np.ascontiguousarray(matrix[:, factor // 2 :][:, :large].T)
    result.setflags(write=False)
    return result


@mx.init.register
class BilinearUpsampling(mx.init.Initializer):
    """Initialise a transposed convolution with :func:`bilinear_kernel`."""

    def _init_weight(self, name: str, array: Any) -> None:
        array[:] = bilinear_kernel(array.shape[0], array.shape[2] // 2)
