"""Weights of convolutions on MXNet's int8 grid, rounded so that what they compute changes least.

Rounding each weight to the nearest step forgets what the convolution reads: neighbouring pixels are alike, and behind
a ReLU nothing is negative, so errors of the weights add up instead of cancelling. With the second moments of what it
reads, E[x x'], the mean squared error of the output of weights q for weights w is (q - w)' E[x x'] (q - w), which is
made smaller one weight at a time (coordinate descent). The mean error goes into the bias where there is one.

Plain NumPy. C channels, h x w pixels, k weights per output channel, n positions.
"""

from __future__ import annotations

import math

import numpy as np

from cbst_mx.networks.graph import Node

__all__ = ["Moments", "on_grid", "patches", "round_weights"]

_POSITIONS = 4096  # of each image of a map, that are looked at
_SWEEPS = 5  # over all weights; most of the gain comes with the first
_LARGEST = 127  # of the grid
_SCALED = 127.5  # what MXNet makes of the largest weight of an output channel, before it rounds and cuts


def patches(values: np.ndarray, convolution: Node) -> np.ndarray:
    """Return what `convolution` reads from a map, at up to about 4096 positions of each image that need no padding.

    Parameters
    ----------
    values : ndarray of shape (B, C, h, w), float32
        The map.
    convolution : Node
        Its kernel, stride and dilation are used.

    Returns
    -------
    ndarray of shape (n, k), float64
        In the order of the weights, n is 0 where the map is smaller than the kernel reaches.
    """
    kernel, stride, dilation = (
        [convolution.pair(key, axis, 1) for axis in (0, 1)] for key in ("kernel", "stride", "dilate")
    )
    counts = [(values.shape[2 + axis] - (kernel[axis] - 1) * dilation[axis] - 1) // stride[axis] + 1 for axis in (0, 1)]
    length = values.shape[1] * kernel[0] * kernel[1]
    if min(counts) < 1:
        return np.empty((0, length))
    thin = math.ceil((counts[0] * counts[1] / _POSITIONS) ** 0.5)
    taps = []
    for row in range(kernel[0]):
        for column in range(kernel[1]):
            starts = (row * dilation[0], column * dilation[1])
            rows, columns = (
                slice(start, start + (count - 1) * step + 1, step * thin)
                for start, count, step in zip(starts, counts, stride)
            )
            taps.append(values[:, :, rows, columns])
    return np.stack(taps, axis=-1).transpose(0, 2, 3, 1, 4).reshape(-1, length).astype(np.float64)


class Moments:
    """Mean and second moments of what a convolution reads.

    Parameters
    ----------
    length : int
        Number of weights k per output channel.
    """

    def __init__(self, length: int):
        self.count = 0
        self._sums = np.zeros(length)
        self._products = np.zeros((length, length))

    def add(self, values: np.ndarray) -> None:
        """Take in values of shape (n, k), float64."""
        self.count += len(values)
        self._sums += values.sum(axis=0)
        self._products += values.T @ values

    def mean(self) -> np.ndarray:
        """Return the means, shape (k,)."""
        return self._sums / self.count

    def second(self, *, centred: bool) -> np.ndarray:
        """Return the second moments, shape (k, k), about the mean if `centred`.

        What lies off the diagonal is made smaller where there are few positions for it: times n / (n + k).
        """
        found = self._products / self.count
        if centred:
            found = found - np.outer(self.mean(), self.mean())
        diagonal = np.diag(np.diag(found))
        return diagonal + (found - diagonal) * (self.count / (self.count + len(found)))


def round_weights(weight: np.ndarray, moments: Moments, *, bias: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return weights on the int8 grid of each output channel, and what the bias must make good.

    Parameters
    ----------
    weight : ndarray of shape (O, C, rows, columns), float32
        Weights; the largest of an output channel gives its step, a 127th of it, and stays as it is.
    moments : Moments
        Of what they are multiplied with, of at least one position.
    bias : bool
        Whether the convolution has a bias, which takes the mean of the error.

    Returns
    -------
    weight : ndarray of the same shape, float32
        Multiples of the step.
    shift : ndarray of shape (O,), float32
        To be added to the bias; zeros without one.
    """
    exact = weight.reshape(len(weight), -1).astype(np.float64)
    largest = np.abs(exact).argmax(axis=1)
    step = np.abs(exact).max(axis=1) / _LARGEST
    step[step == 0] = 1
    codes = np.rint(exact / step[:, None])
    second = moments.second(centred=bias)
    weights_of = np.flatnonzero(np.diag(second) > 1e-9 * np.diag(second).max())  # of others nothing is known
    slope = (codes * step[:, None] - exact) @ second
    for _ in range(_SWEEPS):
        before = codes.copy()
        for index in weights_of:
            better = codes[:, index] - np.rint(slope[:, index] / (second[index, index] * step))
            better = np.where(largest == index, codes[:, index], np.clip(better, -_LARGEST, _LARGEST))
            moved = (better - codes[:, index]) * step
            if moved.any():
                slope += moved[:, None] * second[index]
                codes[:, index] = better
        if np.array_equal(before, codes):
            break
    result = codes * step[:, None]
    shift = (exact - result) @ moments.mean() if bias else np.zeros(len(exact))
    return result.reshape(weight.shape).astype(np.float32), shift.astype(np.float32)


def on_grid(weight: np.ndarray) -> np.ndarray:
    """Return the weights that MXNet turns into exactly the given multiples of a 127th of each channel's largest.

    It multiplies by 127.5 over the largest, rounds, and cuts at 127: as they are, all steps would be too short. Where
    the largest is 127.5 steps, a step is a step, and the largest is cut to the 127 that it was.
    """
    largest = np.abs(weight).reshape(len(weight), -1).max(axis=1).reshape(-1, 1, 1, 1)
    return np.where(np.abs(weight) > largest * (1 - 0.5 / _LARGEST), weight * (_SCALED / _LARGEST), weight)
