"""Confidence and pseudo-labels of one image on arrays: the solution of step a) for given thresholds (eq. 5, 8 and 9).

C classes, H x W pixels; thresholds are exp(-k_c). ``on_device`` has the same verbs for NDArrays, with equal results.
"""

from __future__ import annotations

from typing import Sequence

import numpy as np

from cbst_mx.errors import DataError, NotFiniteError
from cbst_mx.label_space import IGNORE
from cbst_mx.selftrain.class_maps import ClassMaps
from cbst_mx.selftrain.thresholds import Thresholds

__all__ = ["check_range", "confidence", "select"]

# See _candidates.
_HOPELESS = np.float32(0.2)
_LARGEST_RATIO = 1e4
_SMALLEST = 1e-30
_OVERSHOOT = (-0.5, 1.5)  # what a bicubic kernel leaves of probabilities is between: from -0.45 to 1.45


def _candidates(
    maps: ClassMaps, prior: ClassMaps | None, rows: slice, columns: slice, limits: Sequence[np.ndarray]
) -> np.ndarray | None:
    """Return the classes that can be the strongest one at a pixel of a tile; None for all.

    A class whose value is below a fifth of the strongest class's at every cell of the tile is the strongest at none of
    its pixels. For, with weights w_g of the four cells g around a pixel and m_g the strongest value at g, the strongest
    value v at the pixel is at least the largest w_g m_g, hence at least a quarter of the sum of all w_g m_g, of which
    the class has less than a fifth: at most 0.8 v. The rest is for rounding, which is relative to the largest value of
    the tile: at most 1e-6 of it, hence at most 0.04 v as long as no value is above 1e4 times the smallest m_g.
    With a prior, the strongest class has at least its smallest factor in the tile, any other at most its largest.
    """
    if not maps.between:
        return None
    cells = maps.cells(rows, columns)
    low = high = np.ones(maps.num_classes, dtype=np.float32)
    if prior is not None:
        low, high = (bound.astype(np.float32) for bound in prior.bounds(rows, columns))
    possible = np.zeros(maps.num_classes, dtype=bool)
    for limit in limits:
        peak = (cells * (low / limit)[:, None, None]).max(axis=0)  # (m, n)
        values = cells * (high / limit)[:, None, None]
        if not (peak.min() > _SMALLEST and values.max() <= _LARGEST_RATIO * peak.min()):  # or NaN
            return None
        possible |= (values >= peak * _HOPELESS).any(axis=(1, 2))
    return np.flatnonzero(possible)


def _strongest(values: np.ndarray, classes: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest of the values (K, n, m) and its class, the first of equal ones: float32 and uint8 (n, m)."""
    count = len(values)
    if classes is None:
        classes = np.arange(count)
    if count == 1:
        return values[0], np.full(values.shape[1:], classes[0], dtype=np.uint8)
    best = np.maximum.reduce(values, axis=0)
    # argmax along the first axis is slow: the first class of those that equal the maximum has the largest complement
    complement = np.equal(values, best).view(np.uint8)
    complement *= (255 - classes).astype(np.uint8)[:, None, None]
    return best, 255 - np.maximum.reduce(complement, axis=0)


def _check_prior(maps: ClassMaps, prior: ClassMaps | None) -> None:
    if prior is not None and (prior.num_classes, prior.size) != (maps.num_classes, maps.size):
        raise DataError(
            f"prior must be of {maps.num_classes} classes and size {maps.size}, "
            f"got {prior.num_classes} and {prior.size}"
        )


def check_range(smallest: float, largest: float, *, bounded: bool = True) -> None:
    """Refuse what is no probability, by the smallest and the largest value of a map; bicubic maps overshoot a little.

    Raises
    ------
    DataError
        If a value is not finite, far below 0 or, where they are `bounded`, far above 1.
    """
    if not (np.isfinite(smallest) and np.isfinite(largest)):
        raise NotFiniteError("probabilities must be finite, got NaN or infinity")
    if smallest < _OVERSHOOT[0]:
        raise DataError(f"probabilities must be at least 0, got {smallest}: logits have to go through a softmax")
    if bounded and largest > _OVERSHOOT[1]:
        raise DataError(f"probabilities must be at most 1, got {largest}: logits have to go through a softmax")


def confidence(
    maps: ClassMaps, prior: ClassMaps | None = None, *, bounded: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Return confidence and predicted class of every pixel.

    Parameters
    ----------
    maps : ClassMaps
        Probabilities p_n(c).
    prior : ClassMaps, optional
        q_n(c), of the same size; the probabilities are multiplied by it.
    bounded : bool
        Whether values far above 1 are refused.

    Returns
    -------
    confidence : ndarray of shape (H, W), float32
        max_c p_n(c), or of q_n(c) * p_n(c).
    predicted : ndarray of shape (H, W), uint8
        argmax_c of the same; the first class where several are equal, 255 where no class is above 0: a pixel without
        confidence, as a masked region has them, belongs to no class.

    Raises
    ------
    DataError
        If the prior does not fit, or a probability is not finite, far below 0 or far above 1 (bicubic maps are by a
        little).
    """
    _check_prior(maps, prior)
    if maps.range is not None:
        check_range(*maps.range, bounded=bounded)
    value = np.empty(maps.size, dtype=np.float32)
    predicted = np.empty(maps.size, dtype=np.uint8)
    none = [np.ones(maps.num_classes, dtype=np.float32)]
    for rows, columns in maps.tiles():
        classes = _candidates(maps, prior, rows, columns, none)
        values = maps.tile(rows, columns, classes)
        if maps.range is None:
            check_range(float(values.min()), float(values.max()), bounded=bounded)
        if prior is not None:
            values *= prior.tile(rows, columns, classes)
        value[rows, columns], predicted[rows, columns] = _strongest(values, classes)
    if value.min() <= 0:
        predicted[value <= 0] = IGNORE
    return value, predicted


def select(maps: ClassMaps, thresholds: Sequence[Thresholds], prior: ClassMaps | None = None) -> list[np.ndarray]:
    """Return the pseudo-label of every pixel, for each of several sets of thresholds.

    The class is argmax_c p_n(c) / exp(-k_c); it is kept where some class above 0 reaches its threshold (eq. 8; with one
    threshold for all classes this is eq. 5; with a prior eq. 9). The equations print a strict inequality; equality is
    kept so that exactly the stated number of pixels remains and a class whose most confident pixels all saturate at 1
    is not emptied.

    Parameters
    ----------
    maps : ClassMaps
        Probabilities p_n(c).
    thresholds : sequence of Thresholds
        For the same C classes.
    prior : ClassMaps, optional
        q_n(c), of the same size.

    Returns
    -------
    list of ndarray of shape (H, W), uint8
        TrainIds, 255 where the pixel is not selected.

    Raises
    ------
    DataError
        If the prior or the thresholds do not fit.
    """
    _check_prior(maps, prior)
    for chosen in thresholds:
        if len(chosen.values) != maps.num_classes:
            raise DataError(f"thresholds must be of {maps.num_classes} classes, got {len(chosen.values)}")
    limits = [chosen.limits for chosen in thresholds]
    # below the limits only thresholds of 0 and denormal ones: there a ratio below 1 may still be kept
    plain = all((limit == chosen.values).all() for limit, chosen in zip(limits, thresholds))
    labels = [np.empty(maps.size, dtype=np.uint8) for _ in thresholds]
    for rows, columns in maps.tiles():
        with np.errstate(over="ignore", invalid="ignore"):  # by the tiniest limits
            classes = _candidates(maps, prior, rows, columns, limits) if plain else None
        values = maps.tile(rows, columns, classes)
        if prior is not None:
            values *= prior.tile(rows, columns, classes)
        among = slice(None) if classes is None else classes
        for label, chosen, limit in zip(labels, thresholds, limits):
            with np.errstate(over="ignore"):
                ratios = values / limit[among, None, None]
                ratio, winner = _strongest(ratios, classes)
            # a float32 quotient reaches 1 exactly when the dividend reaches the divisor
            passes = (values >= chosen.values[among, None, None]) & (values > 0) if not plain else None
            kept = ratio >= 1 if passes is None else passes.any(axis=0)
            winner[~kept] = IGNORE
            label[rows, columns] = winner
    return labels
