"""Pseudo-labels: the solution of step a) for given thresholds (eq. 5 for ST, eq. 8 for CBST).

C classes, H x W pixels; thresholds are exp(-k_c).
"""

from __future__ import annotations

import numpy as np

from cbst_mx.errors import DataError
from cbst_mx.label_space import IGNORE
from cbst_mx.selftrain.thresholds import Thresholds
from symbols.backend import mx

__all__ = ["select"]


def select(probability: mx.nd.NDArray, thresholds: Thresholds) -> np.ndarray:
    """Return the pseudo-label of every pixel.

    The class is argmax_c p_n(c) / exp(-k_c); it is kept where that ratio is at least 1 (eq. 8; with one threshold for
    all classes this is eq. 5). The equations print a strict inequality; equality is kept so that exactly the stated
    number of pixels remains and a class whose most confident pixels all saturate at 1 is not emptied.

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
    if (thresholds.values < 0).any():  # negative values let a class win of which nothing may be kept
        excluded = np.where(np.isinf(thresholds.limits), -np.inf, 0).reshape(shape)
        ratio = mx.nd.broadcast_add(ratio, mx.nd.array(excluded, ctx=probability.context))
    winner = ratio.argmax(axis=0)  # (H, W)
    kept = mx.nd.broadcast_greater_equal(probability, value).max(axis=0)  # (H, W), 1 where some class passes
    return mx.nd.where(kept, winner, mx.nd.full(winner.shape, IGNORE, ctx=winner.context)).asnumpy().astype(np.uint8)
