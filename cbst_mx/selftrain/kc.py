"""k and k_c as sorted confidence quantiles on NDArrays: the form for small sets.

The rules are those of ``thresholds``, whose names can be imported from here as well. C classes, H x W pixels.
`ConfidencePool` holds and sorts every value, and is what ``counting`` is tested against.
"""

from __future__ import annotations

import numpy as np

from cbst_mx.errors import DataError
from cbst_mx.selftrain.on_device import confidence
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

__all__ = ["FIDELITIES", "POLICIES", "ConfidencePool", "Thresholds", "rank"]

_LARGEST = 2**31 - 1  # elements of an NDArray in the MXNet wheels


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
        self._confidences: list[mx.nd.NDArray] = []
        self._predicted: list[mx.nd.NDArray] = []

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
