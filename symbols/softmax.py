"""Softmax and its cross-entropy on the processor, by NumPy in a fraction of the time of MXNet's operators.

MXNet 1.9.1 computes the exponentials of a softmax over the classes twice, those of its loss three times, each by
itself; NumPy has them in registers of 8 or 16, once. They differ from MXNet's in the last digits.

B images, C classes, h x w pixels.
"""

from __future__ import annotations

from typing import Iterator

import numpy as np

from symbols.backend import autograd, mx
from symbols.bilinear import bilinear_matrix

__all__ = ["CrossEntropy", "is_fast", "shared", "softmax"]

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
            _shift(part)
            np.exp(part, out=part)
            part /= _sum(part)
    return values


def _parts(image: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield the pixels of an image (C, h, w), flattened, part by part, and the view (C, n) of their numbers."""
    flat = image.reshape(len(image), -1)
    for start in range(0, flat.shape[1], _PIXELS):
        pixels = slice(start, start + _PIXELS)
        yield pixels, flat[:, pixels]


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
    for pixels, values in _parts(logits):
        _shift(values)
        chosen = classes[pixels], np.arange(values.shape[1])
        likelihood = values[chosen]
        np.exp(values, out=values)
        sums = _sum(values)
        # numbers that are not finite must show, wherever they are: 0 times NaN is NaN
        likelihoods[pixels] = (likelihood - np.log(sums)) * counts[pixels]
        values *= counts[pixels] / (sums * count)
        values[chosen] -= counts[pixels] / count


def _differentiate_small(
    small: np.ndarray, labels: np.ndarray, valid: np.ndarray, found: np.ndarray, count: np.float32, factor: int
) -> None:
    """Do the same with logits (C, h / factor, w / factor), rounded up, of which bilinear upsampling makes (C, h, w)."""
    height, width = labels.shape
    down, across = (bilinear_matrix(*sizes) for sizes in zip(small.shape[1:], (factor, factor), (height, width)))
    most = max(1, _PIXELS // width)
    with np.errstate(invalid="ignore"):  # as in _shift
        rows = small @ across.T  # (C, h / factor, w)
        gradient = np.zeros_like(rows)
        for start in range(0, height, most):
            part = slice(start, min(start + most, height))
            near = slice(max(0, start - factor // 2) // factor, (part.stop - 1 + factor // 2) // factor + 1)
            weights = down[part, near]
            logits = weights @ rows[:, near]
            _differentiate(logits, labels[part], valid[part], found[part], count)
            gradient[:, near] += weights.T @ logits
        small[:] = gradient @ across
