"""Thresholds on the network's context: sorted confidences on NDArrays, and counting on a GPU for the streaming form.

The rules are those of ``thresholds``, whose names can be imported from here as well. C classes, H x W pixels.
`ConfidencePool` holds and sorts every value: the form for small sets, and what ``streaming`` is tested against.
`count_on_device` counts one image for ``streaming.StreamingThresholds`` where its confidences are.
"""

from __future__ import annotations

from typing import List

import numpy as np

from cbst_mx.errors import DataError
from cbst_mx.selftrain.streaming import LOWER, LOWER_BITS, UPPER, StreamingThresholds, keys_of
from cbst_mx.selftrain.thresholds import (
    FIDELITIES,
    POLICIES,
    RELEASED_STEP,
    Thresholds,
    check_fidelity,
    check_policy,
    extra_zeros,
    nothing,
    rank,
    settled,
)
from symbols.backend import mx

__all__ = ["FIDELITIES", "POLICIES", "ConfidencePool", "Thresholds", "confidence", "count_on_device", "rank"]

_LARGEST = 2**31 - 1  # elements of an NDArray in the MXNet wheels
# Counted on the device: values from 2^-15 to below 2. A bin is 1/1024 of an octave.
_FIRST_EXPONENT, _OCTAVES, _PER_OCTAVE = -15, 16, 1024
_BINS = _OCTAVES * _PER_OCTAVE
_FIRST_BIN = int(keys_of(np.float32([2.0**_FIRST_EXPONENT]))[0]) >> LOWER_BITS
_EXACT = 2**23  # from here on float32 has no halves


def confidence(probability: mx.nd.NDArray) -> tuple:
    """Return confidence and predicted class of every pixel.

    Parameters
    ----------
    probability : NDArray of shape (C, H, W), float32
        p_n(c), or q_n(c) * p_n(c) with a spatial prior.

    Returns
    -------
    confidence : NDArray of shape (H, W), float32
        max_c p_n(c).
    predicted : NDArray of shape (H, W), float32
        argmax_c p_n(c); the first class where several are equal.
    """
    return probability.max(axis=0), probability.argmax(axis=0)


class ConfidencePool:
    """Collect the confidences of a target set and turn them into thresholds.

    The pool holds every value (five bytes a pixel) on the context of the maps it is given and sorts them there: the
    form for sets of up to 2^31 - 1 pixels.

    Parameters
    ----------
    num_classes : int
        C.
    fidelity : {"paper", "released"}
        Which values enter the pool and how ranks are counted.

    Raises
    ------
    ConfigError
        If `fidelity` is unknown.
    """

    def __init__(self, num_classes: int, *, fidelity: str = "paper"):
        check_fidelity(fidelity)
        self.num_classes = num_classes
        self.fidelity = fidelity
        self.counts = np.zeros(num_classes, dtype=np.int64)
        self._confidences: List[mx.nd.NDArray] = []
        self._predicted: List[mx.nd.NDArray] = []

    def add(self, probability: mx.nd.NDArray) -> None:
        """Add the pixels of one image.

        Parameters
        ----------
        probability : NDArray of shape (C, H, W), float32
            p_n(c), or q_n(c) * p_n(c) with a spatial prior.

        Raises
        ------
        DataError
            If the map has another number of classes, a value that is not finite, or the pool grows beyond what an
            NDArray can hold.
        """
        if probability.ndim != 3 or probability.shape[0] != self.num_classes:
            raise DataError(f"probability must have shape ({self.num_classes}, H, W), got {probability.shape}")
        self.add_pixels(*confidence(probability))

    def add_pixels(self, values: mx.nd.NDArray, predicted: mx.nd.NDArray) -> None:
        """Add the pixels of one image whose confidence and predicted class are known.

        Parameters
        ----------
        values : NDArray of shape (H, W), float32
            Confidences.
        predicted : NDArray of shape (H, W), number
            Predicted classes.

        Raises
        ------
        DataError
            As :meth:`add`.
        """
        values, predicted = values.reshape(-1), predicted.reshape(-1)
        host = values.asnumpy()
        if not np.isfinite(host).all():
            raise DataError("probability must be finite, got a map with NaN or infinity")
        classes = predicted.asnumpy().astype(np.int64)
        if self.fidelity == "released":
            # indices of one class after the other, in raster order within each
            kept = [np.flatnonzero(classes == index)[::RELEASED_STEP] for index in range(self.num_classes)]
            chosen = np.concatenate(kept)
            values = mx.nd.array(host[chosen], ctx=values.context)
            classes = classes[chosen]
        self.counts += np.bincount(classes, minlength=self.num_classes)
        if self.counts.sum() > _LARGEST:
            raise DataError(f"target set has more than {_LARGEST} pixels: more than one MXNet array can hold")
        self._confidences.append(values)
        self._predicted.append(mx.nd.array(classes, ctx=values.context, dtype=np.uint8))

    def thresholds(self, policy: str, portion: float) -> Thresholds:
        """Determine k (Algorithm 1, `policy` "global") or k_c (Algorithm 2, `policy` "class-balanced").

        Parameters
        ----------
        policy : {"global", "class-balanced"}
        portion : float
            p in (0, 1].

        Raises
        ------
        ConfigError
            If an argument is not allowed.
        """
        check_policy(policy, portion)
        if not self._confidences:
            raise DataError("no image was added to the pool of confidences: the target set is empty")
        pool = mx.nd.concat(*self._confidences, dim=0)
        zeros = extra_zeros(policy, self.num_classes, self.fidelity)
        if policy == "global":
            value = self._quantile(pool, portion, zeros)
            values = np.full(self.num_classes, value, dtype=np.float32)
        else:
            predicted = mx.nd.concat(*self._predicted, dim=0)
            values = np.full(self.num_classes, nothing(self.fidelity), dtype=np.float32)
            for index in np.flatnonzero(self.counts):
                members = mx.nd.contrib.boolean_mask(pool, predicted == int(index))
                values[index] = self._quantile(members, portion, zeros)
        return Thresholds(policy, self.fidelity, float(portion), settled(values, self.fidelity), self.counts.copy())

    def _quantile(self, values: mx.nd.NDArray, portion: float, zeros: int) -> float:
        """Return the confidence at the rank of `portion` in descending order; the released pools' zeros sort last."""
        position = rank(portion, values.shape[0] + zeros, self.fidelity)
        if position == 0:
            return nothing(self.fidelity)
        if position > values.shape[0]:
            return 0.0
        ordered = mx.nd.sort(values, axis=0, is_ascend=False)
        return float(ordered[position - 1 : position].asscalar())


def count_on_device(state: StreamingThresholds, name: str, confidence: mx.nd.NDArray, predicted: mx.nd.NDArray) -> None:
    """Count the pixels of one image where they are and add the counts to a streaming state.

    The result is that of ``state.add``, bit for bit: every number is scaled by powers of two and cut, which float32
    does without rounding. What the counting on the device does not cover (the released rules' every 4th pixel, a
    confidence below 2^-15 or from 2 on) is fetched and counted on the host.

    Parameters
    ----------
    state : StreamingThresholds
        In either step.
    name : str
        The image's name.
    confidence, predicted : NDArray of shape (H, W), float32
        As :func:`confidence` returns them.

    Raises
    ------
    DataError
        As ``state.add``.
    """
    lowest, highest = float(confidence.min().asscalar()), float(confidence.max().asscalar())
    covered = 2.0**_FIRST_EXPONENT <= lowest and highest < 2.0 ** (_FIRST_EXPONENT + _OCTAVES)  # false for NaN
    critical = state.critical if state.refining else np.zeros(0, dtype=np.int64)
    if state.fidelity == "released" or not covered or len(critical) * LOWER > _EXACT:
        state.add(name, confidence.asnumpy(), predicted.asnumpy().astype(np.uint8))
        return
    octave = mx.nd.zeros_like(confidence) - 1
    scaled = confidence
    for exponent in range(_FIRST_EXPONENT, _FIRST_EXPONENT + _OCTAVES):
        reached = confidence >= 2.0**exponent
        octave = octave + reached
        scaled = mx.nd.where(reached, confidence * 2.0**-exponent, scaled)  # in the end from 1 to below 2
    place = (scaled - 1) * _PER_OCTAVE
    upper = place.floor()
    lower = (place - upper) * LOWER
    upper = upper + octave * _PER_OCTAVE
    if not state.refining:
        counts = _histogram(predicted * _BINS + upper, state.num_classes * _BINS)
        found = np.flatnonzero(counts)
        row, column = np.divmod(found, _BINS)
        any_lower = float(lower.max().asscalar()) > 0
        state.add_counts(name, row * UPPER + _FIRST_BIN + column, counts[found], any_lower)
        return
    total = np.zeros(len(critical) * LOWER, dtype=np.int64)
    # slots of the classes and slots of all classes together are counted apart: a pixel may be in one of each
    for together in (False, True):
        slots = mx.nd.zeros_like(upper) - 1
        for slot, index in enumerate(critical):
            row, column = divmod(int(index), UPPER)
            if (row == state.num_classes) == together:
                inside = upper == column - _FIRST_BIN
                slots = mx.nd.where(inside if together else inside * (predicted == row), slots * 0 + slot, slots)
        total += _histogram(slots * LOWER + lower, len(total))
    found = np.flatnonzero(total)
    state.add_counts(name, found, total[found])


def _histogram(numbers: mx.nd.NDArray, end: int) -> np.ndarray:
    """Return how often each of 0 to `end` - 1 occurs among whole numbers, int64; negative ones are not counted."""
    if end == 0:
        return np.zeros(0, dtype=np.int64)
    counts, _ = mx.nd.histogram(numbers + 0.5, bins=end, range=(0, end))  # centres of bins: no edge is ever met
    return counts.asnumpy()
