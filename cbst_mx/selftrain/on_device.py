"""Confidence, counting and pseudo-labels of one image on its device: the verbs of ``pseudo_labels`` on NDArrays.

C classes, H x W pixels; thresholds are exp(-k_c). `count_on_device` counts one image for ``counting`` where its
confidences are.
"""

from __future__ import annotations

import numpy as np

from cbst_mx.errors import DataError
from cbst_mx.label_space import IGNORE
from cbst_mx.selftrain.counting import LOWER, LOWER_BITS, UPPER, StreamingThresholds, keys_of
from cbst_mx.selftrain.interpolation import plan_axis
from cbst_mx.selftrain.thresholds import Thresholds
from symbols.backend import mx

__all__ = ["confidence", "count_on_device", "full_size", "select"]

# Counted on the device: values from 2^-15 to below 2. A bin is 1/1024 of an octave.
_FIRST_EXPONENT, _OCTAVES, _PER_OCTAVE = -15, 16, 1024
_BINS = _OCTAVES * _PER_OCTAVE
_FIRST_BIN = int(keys_of(np.array([2.0**_FIRST_EXPONENT], dtype=np.float32))[0]) >> LOWER_BITS
_EXACT = 2**23  # from here on float32 has no halves


def full_size(
    maps: mx.nd.NDArray,
    size: tuple[int, int],
    *,
    extent: tuple[float, float] | None = None,
    interpolation: str = "bilinear",
    stride: int = 1,
) -> mx.nd.NDArray:
    """Return class maps at the images' size: what :class:`.class_maps.ClassMaps` gives, bit for bit.

    Parameters
    ----------
    maps : NDArray of shape (B, C, h, w), float32
        At the network's stride.
    size : tuple of int
        H and W of the images.
    extent : tuple of float, optional
        How many cells the images cover along each axis, from the first one; by default all, h and w.
    interpolation : {"bilinear", "bicubic", "pillow"}
    stride : int
        Pixels of the network's input per cell, for "pillow".

    Returns
    -------
    NDArray of shape (B, C, H, W), float32
    """
    covered = extent or maps.shape[2:]
    for along in (3, 2):  # from left to right, then from top to bottom
        axis = plan_axis(maps.shape[along], size[along - 2], interpolation, covered[along - 2], stride)
        if axis is None:
            continue
        base = _taken(maps, axis.base, along)
        result = base
        for cells, weights in axis.others:
            factors = mx.nd.array(weights, ctx=maps.context).reshape((-1,) if along == 3 else (-1, 1))
            result = result + mx.nd.broadcast_mul(_taken(maps, cells, along) - base, factors)
        maps = result
    return maps


def _taken(maps: mx.nd.NDArray, cells: np.ndarray, along: int) -> mx.nd.NDArray:
    return mx.nd.take(maps, mx.nd.array(cells, ctx=maps.context, dtype=np.int32), axis=along)


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
        argmax_c p_n(c); the first class where several are equal, 255 where no class is above 0.
    """
    value = probability.max(axis=0)
    return value, mx.nd.where(value > 0, probability.argmax(axis=0), mx.nd.full(value.shape, IGNORE, ctx=value.context))


def count_on_device(state: StreamingThresholds, name: str, confidence: mx.nd.NDArray, predicted: mx.nd.NDArray) -> None:
    """Count the pixels of one image where they are and add the counts to a streaming state.

    The result is that of ``state.add``, bit for bit: every number is scaled by powers of two and cut, which float32
    does without rounding. What the counting on the device does not cover (the released rules' every 4th pixel, a
    confidence below 2^-15 or from 2 on) is fetched and counted on the host.

    Parameters
    ----------
    state : StreamingThresholds
        Counts so far, in either step.
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
    covered = lowest >= 2.0**_FIRST_EXPONENT and highest < 2.0 ** (_FIRST_EXPONENT + _OCTAVES)  # false for NaN
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
        any_lower = float(lower.max().asscalar()) > 0
        state.add_counts(name, found // _BINS * UPPER + _FIRST_BIN + found % _BINS, counts[found], any_lower)
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


def select(probability: mx.nd.NDArray, thresholds: Thresholds) -> np.ndarray:
    """Return the pseudo-label of every pixel.

    The class is argmax_c p_n(c) / exp(-k_c); it is kept where some class above 0 reaches its threshold (eq. 8; with one
    threshold for all classes this is eq. 5), as in :func:`.pseudo_labels.select`.

    Parameters
    ----------
    probability : NDArray of shape (C, H, W), float32
        p_n(c), or q_n(c) * p_n(c) with a spatial prior (eq. 9).
    thresholds : Thresholds
        For the same C classes.

    Returns
    -------
    ndarray of shape (H, W), uint8
        trainIds, 255 where the pixel is not selected.

    Raises
    ------
    DataError
        If `probability` and `thresholds` have different numbers of classes.
    """
    count = len(thresholds.values)
    if probability.ndim != 3 or probability.shape[0] != count:
        raise DataError(f"probability must have shape ({count}, H, W), got {probability.shape}")
    shape = (count, 1, 1)
    limit = mx.nd.array(thresholds.limits, ctx=probability.context).reshape(shape)
    value = mx.nd.array(thresholds.values, ctx=probability.context).reshape(shape)
    ratio = mx.nd.broadcast_div(probability, limit)
    winner = ratio.argmax(axis=0)  # (H, W)
    passes = mx.nd.broadcast_greater_equal(probability, value) * (probability > 0)
    kept = passes.max(axis=0)  # (H, W), 1 where some class passes
    return mx.nd.where(kept, winner, mx.nd.full(winner.shape, IGNORE, ctx=winner.context)).asnumpy().astype(np.uint8)
