"""Softmax and its cross-entropy on the processor, by NumPy in a fraction of the time of MXNet's operators.

MXNet 1.9.1 computes the exponentials of a softmax over the classes twice, those of its loss three times, each by
itself; NumPy has them in registers of 8 or 16, once. They differ from MXNet's in the last digits.

B images, C classes, h x w pixels.
"""

from __future__ import annotations

from typing import Iterator, Sequence

import numpy as np

from symbols.backend import autograd, mx
from symbols.bilinear import Upsampled

__all__ = ["CrossEntropy", "is_fast", "shared", "softmax", "upsampled_softmax"]

_PIXELS = 1 << 14  # looked at together: their logits stay in the processor's cache


def is_fast(logits: mx.nd.NDArray) -> bool:
    """Return whether the functions here are for these logits: float32 on the processor."""
    return logits.context.device_type == "cpu" and logits.dtype == np.float32


def softmax(logits: mx.nd.NDArray) -> np.ndarray:
    """Return the probabilities of logits (B, C, h, w) for which :func:`is_fast` holds; waits for them.

    Returns
    -------
    ndarray of shape (B, C, h, w), float32
        What ``mx.nd.softmax(logits, axis=1)`` gives, but for rounding.
    """
    values = logits.asnumpy()
    for image in values:
        for _, part in _parts(image):
            _normalise(part)
    return values


def upsampled_softmax(looks: Sequence[mx.nd.NDArray], factor: int, size: tuple[int, int]) -> np.ndarray:
    """Return the probabilities of what bilinear upsampling makes of scores; logits of full size are never there.

    Parameters
    ----------
    looks : sequence of one or two NDArrays of shape (B, C, h / factor, w / factor), rounded up, float32
        Scores of images, and of the mirrored images, with whose probabilities those of the images are averaged. On the
        processor; waits for them.
    factor : int
        Of the upsampling, even, see :class:`.bilinear.Upsampled`.
    size : (int, int)
        h and w.

    Returns
    -------
    ndarray of shape (B, C, h, w), float32
    """
    scores = [look.asnumpy() for look in looks]
    result = np.empty((*looks[0].shape[:2], *size), np.float32)
    for image, *smalls in zip(result, *scores):
        pixels = _PIXELS // len(smalls)
        views = (Upsampled(small, factor, size, mirrored=bool(n)).parts(pixels) for n, small in enumerate(smalls))
        for parts in zip(*views):
            for part in parts:
                _normalise(part.values.reshape(len(image), -1))
            first = parts[0].values
            if len(parts) > 1:
                first += parts[1].values
                first /= 2
            image[:, parts[0].rows] = first
    return result


def _parts(image: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield the pixels of an image (C, h, w), flattened, part by part, and the view (C, n) of their numbers."""
    flat = image.reshape(len(image), -1)
    for start in range(0, flat.shape[1], _PIXELS):
        pixels = slice(start, start + _PIXELS)
        yield pixels, flat[:, pixels]


def _normalise(values: np.ndarray) -> None:
    """Turn logits (C, n) into probabilities."""
    _shift(values)
    np.exp(values, out=values)
    values /= _sum(values)


def _shift(values: np.ndarray) -> None:
    """Take the largest logit of every pixel from its logits (C, n)."""
    with np.errstate(invalid="ignore"):  # of logits that are not finite NaN is made, as by MXNet
        values -= np.maximum.reduce(values, axis=0)


def _sum(values: np.ndarray) -> np.ndarray:
    """Return the sum over the first axis in its order, however many pixels: NumPy adds single ones in pairs."""
    total: np.ndarray = values[0].copy()
    for one in values[1:]:
        total += one
    return total


def shared(values: np.ndarray, context: mx.Context) -> mx.nd.NDArray:
    """Return an array of MXNet that has the memory of `values` where `context` is the first processor, else a copy."""
    if context != mx.cpu():
        return mx.nd.array(values, ctx=context)
    return mx.nd.from_numpy(values[:], zero_copy=True)  # of a view, since it makes its argument read-only


class CrossEntropy(autograd.Function):
    """Sum of the negative log-likelihoods of labels, divided by a number; the gradient is computed with it.

    Parameters
    ----------
    labels : ndarray of shape (B, h, w), integer
        Classes; where `valid` is false, any class.
    valid : ndarray of shape (B, h, w), bool
        Pixels that count.
    count : float
        Number to divide by, at least 1.
    factor : int
        Factor of the bilinear upsampling (:func:`.bilinear.bilinear_matrix`) between what is given and the logits; 1:
        none.
    """

    def __init__(self, labels: np.ndarray, valid: np.ndarray, count: float, factor: int = 1):
        super().__init__()
        self._labels, self._valid, self._count, self._factor = labels, valid, np.float32(count), factor

    def forward(self, logits: mx.nd.NDArray) -> mx.nd.NDArray:
        """Return the loss, float32 (1,), of logits for which :func:`is_fast` holds.

        They are (B, C, h, w), before an upsampling (B, C, h / factor, w / factor), rounded up.
        """
        values = logits.asnumpy()
        picked = np.zeros(self._labels.shape, np.float32)
        for image, label, valid, found in zip(values, self._labels, self._valid, picked):
            if self._factor > 1:
                _differentiate_small(image, label, valid, found, self._count, self._factor)
            else:
                _differentiate(image, label, valid, found, self._count)
        self._gradient = shared(values, logits.context)
        del self._labels, self._valid  # MXNet leaves this object to Python's search for circles of references
        total = mx.nd.sum(mx.nd.sum(mx.nd.array(picked, ctx=logits.context), axis=(1, 2)))
        return -total / float(self._count)

    def backward(self, slope: mx.nd.NDArray) -> mx.nd.NDArray:
        """Return the gradient, float32, of the shape of what was given."""
        factor = float(slope.asscalar())
        gradient = self.__dict__.pop("_gradient")  # as above
        return gradient if factor == 1 else gradient * factor


def _differentiate(
    logits: np.ndarray, labels: np.ndarray, valid: np.ndarray, found: np.ndarray, count: np.float32
) -> None:
    """Turn the logits (C, h, w) of an image into the gradient of the loss; `found` gets the log-likelihoods, or 0."""
    classes, counts, likelihoods = labels.reshape(-1), valid.reshape(-1), found.reshape(-1)
    every = logits.reshape(-1)
    for pixels, values in _parts(logits):
        chosen = classes[pixels] * counts.size  # of `every`
        chosen += np.arange(pixels.start, pixels.start + chosen.size)
        _shift(values)
        likelihood = every.take(chosen)
        np.exp(values, out=values)
        sums = _sum(values)
        # numbers that are not finite must show, wherever they are: 0 times NaN is NaN
        likelihoods[pixels] = (likelihood - np.log(sums)) * counts[pixels]
        values *= counts[pixels] / (sums * count)
        every[chosen] -= counts[pixels] / count


def _differentiate_small(
    small: np.ndarray, labels: np.ndarray, valid: np.ndarray, found: np.ndarray, count: np.float32, factor: int
) -> None:
    """Do the same with logits (C, h / factor, w / factor), rounded up, of which bilinear upsampling makes (C, h, w)."""
    upsampled = Upsampled(small, factor, (labels.shape[0], labels.shape[1]))
    gradient = np.zeros_like(upsampled.columns)
    with np.errstate(invalid="ignore"):  # as in _shift
        for part in upsampled.parts(_PIXELS):
            rows = part.rows
            _differentiate(part.values, labels[rows], valid[rows], found[rows], count)
            gradient[:, part.near] += part.weights.T @ part.values
        small[:] = gradient @ upsampled.across
