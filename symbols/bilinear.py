"""Bilinear upsampling by an even factor, as the weight of a transposed convolution and as a matrix for each axis."""

from __future__ import annotations

import contextlib
import functools
from typing import Any, ContextManager, Iterator, NamedTuple

import numpy as np

from symbols.backend import mx

__all__ = ["BilinearUpsampling", "Part", "Upsampled", "bilinear_kernel", "bilinear_matrix", "ending_early"]


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


@functools.lru_cache(maxsize=8)  # a training and most data sets have few sizes, and ask for every image
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


def ending_early(network: Any) -> ContextManager[int]:
    """Let `network` end before its last upsampling inside the block, where it can.

    Parameters
    ----------
    network : HybridBlock or callable
        Offers ``without_last_upsampling()`` where it can, see :meth:`symbols.fcn8s.FCN8s.without_last_upsampling`.

    Returns
    -------
    context manager
        It gives the factor of the upsampling that is left to the caller; 1: none.
    """
    begin = getattr(network, "without_last_upsampling", None)
    return contextlib.nullcontext(1) if begin is None else begin()  # type: ignore[no-any-return]


class Part(NamedTuple):
    """Rows of an image of C maps that were upsampled.

    Attributes
    ----------
    rows : slice
        Which.
    values : ndarray of shape (C, rows, w), float32
        The maps there.
    near : slice
        Rows of :attr:`Upsampled.columns` of which they are made.
    weights : ndarray, float32
        By them: ``values`` is ``weights @ columns[:, near]``.
    """

    rows: slice
    values: np.ndarray
    near: slice
    weights: np.ndarray


class Upsampled:
    """Maps that are upsampled bilinearly, as :func:`bilinear_kernel` does it, a part that fits a cache at a time.

    Parameters
    ----------
    small : ndarray of shape (C, h / factor, w / factor), rounded up, float32
    factor : int
        Even upsampling factor.
    size : (int, int)
        h and w.
    mirrored : bool
        Mirror the result.

    Attributes
    ----------
    across : ndarray of shape (w, w / factor)
        The weights of the columns.
    columns : ndarray of shape (C, h / factor, w)
        The maps with all columns, and the rows that were given.
    """

    def __init__(self, small: np.ndarray, factor: int, size: tuple[int, int], *, mirrored: bool = False):
        self._factor, self._size = factor, size
        self._down, self.across = (bilinear_matrix(n, factor, large) for n, large in zip(small.shape[1:], size))
        across = np.ascontiguousarray(self.across[::-1]) if mirrored else self.across
        with np.errstate(invalid="ignore"):  # NaN is made of what is not finite, as by MXNet
            self.columns = small @ across.T

    def parts(self, pixels: int) -> Iterator[Part]:
        """Yield the rows in order, as many together as have at most so many `pixels`, and at least one."""
        height, width = self._size
        most, half = max(1, pixels // width), self._factor // 2
        for start in range(0, height, most):
            rows = slice(start, min(start + most, height))
            near = slice(max(0, start - half) // self._factor, (rows.stop - 1 + half) // self._factor + 1)
            weights = self._down[rows, near]
            with np.errstate(invalid="ignore"):
                values = weights @ self.columns[:, near]
            yield Part(rows, values, near, weights)


@mx.init.register
class BilinearUpsampling(mx.init.Initializer):
    """Initialise a transposed convolution with :func:`bilinear_kernel`."""

    def _init_weight(self, name: str, array: Any) -> None:
        array[:] = bilinear_kernel(array.shape[0], array.shape[2] // 2)
