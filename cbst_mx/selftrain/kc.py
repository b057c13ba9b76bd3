"""Thresholds: k of self-training (Algorithm 1) and k_c of class-balanced self-training (Algorithm 2).

C classes, n pixels, p the portion in (0, 1], k and k_c in nats. A pixel of confidence max_c p_n(c) belongs to its
predicted class argmax_c p_n(c); N_c pixels belong to class c. With the confidences of a pool in descending order,
exp(-k) is the value ranked round(p * n) over all pixels and exp(-k_c) the one ranked round(p * N_c) over the pixels of
c (``round`` is Python's: halves to even). Pixels at the threshold are kept, so ties may keep more than that portion.

The rules of the authors' released program, ``fidelity="released"``, differ: every 4th pixel of an image and predicted
class enters the pool, the pool of a class starts with one extra 0.0, the pool of all pixels with one more besides those
of all C classes, and the rank is floor(p * length). A class whose rank is 0 gets the threshold 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Dict, List

import numpy as np

from cbst_mx.errors import ConfigError, DataError
from cbst_mx.selftrain.portion import check_portion
from symbols.backend import mx

__all__ = ["FIDELITIES", "POLICIES", "ConfidencePool", "Thresholds", "confidence", "rank"]

FIDELITIES = ("paper", "released")
POLICIES = ("global", "class-balanced")
_LARGEST = 2**31 - 1  # elements of an NDArray in the MXNet wheels
_RELEASED_STEP = 4


def rank(portion: float, count: int, fidelity: str = "paper") -> int:
    """Return the 1-based rank, in descending order, of the confidence that is the threshold; 0 keeps nothing.

    Parameters
    ----------
    portion : float
        p in (0, 1].
    count : int
        Length of the pool.
    fidelity : {"paper", "released"}
        ``round(p * count)`` or ``floor(p * count)``.
    """
    return int(round(portion * count)) if fidelity == "paper" else int(math.floor(portion * count))


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


@dataclass(frozen=True)
class Thresholds:
    """Thresholds of one pseudo-labelling pass.

    Attributes
    ----------
    policy : {"global", "class-balanced"}
        One threshold for all classes (ST) or one per class (CBST).
    fidelity : {"paper", "released"}
        Whose rules they follow.
    portion : float
        p.
    values : ndarray of shape (C,), float32
        exp(-k_c); infinity for a class of which nothing may be kept. Released rules: 1 instead of infinity.
    counts : ndarray of shape (C,), int64
        N_c, the pixels predicted as each class (with the released rules: those that entered the pool).
    """

    policy: str
    fidelity: str
    portion: float
    values: np.ndarray
    counts: np.ndarray

    @property
    def k(self) -> np.ndarray:
        """k_c in nats, float64 (C,); -infinity for a class of which nothing may be kept."""
        return -np.log(self.values.astype(np.float64))

    def to_json(self) -> Dict[str, Any]:
        """Return plain JSON values; None stands where nothing may be kept."""
        return {
            "policy": self.policy,
            "fidelity": self.fidelity,
            "portion": self.portion,
            "threshold": [float(value) if np.isfinite(value) else None for value in self.values],
            "kc": [float(value) if np.isfinite(value) else None for value in self.k],
            "count": [int(count) for count in self.counts],
        }


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
        if fidelity not in FIDELITIES:
            raise ConfigError(f"fidelity must be one of {', '.join(FIDELITIES)}, got {fidelity!r}")
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
        values, predicted = (array.reshape(-1) for array in confidence(probability))
        host = values.asnumpy()
        if not np.isfinite(host).all():
            raise DataError("probability must be finite, got a map with NaN or infinity")
        classes = predicted.asnumpy().astype(np.int64)
        if self.fidelity == "released":
            # indices of one class after the other, in raster order within each
            kept = [np.flatnonzero(classes == index)[::_RELEASED_STEP] for index in range(self.num_classes)]
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
        check_portion(portion)
        if policy not in POLICIES:
            raise ConfigError(f"policy must be one of {', '.join(POLICIES)}, got {policy!r}")
        if not self._confidences:
            raise DataError("no image was added to the pool of confidences: the target set is empty")
        pool = mx.nd.concat(*self._confidences, dim=0)
        if policy == "global":
            value = self._quantile(pool, portion, extra_zeros=1 + self.num_classes)
            values = np.full(self.num_classes, value, dtype=np.float32)
        else:
            predicted = mx.nd.concat(*self._predicted, dim=0)
            values = np.full(self.num_classes, self._nothing, dtype=np.float32)
            for index in np.flatnonzero(self.counts):
                members = mx.nd.contrib.boolean_mask(pool, predicted == int(index))
                values[index] = self._quantile(members, portion, extra_zeros=1)
        return Thresholds(policy, self.fidelity, float(portion), values, self.counts.copy())

    @property
    def _nothing(self) -> float:
        """The threshold of a class of which nothing may be kept."""
        return math.inf if self.fidelity == "paper" else 1.0

    def _quantile(self, values: mx.nd.NDArray, portion: float, extra_zeros: int) -> float:
        """Return the confidence at the rank of `portion` in descending order; the released pools' zeros sort last."""
        length = values.shape[0] + (extra_zeros if self.fidelity == "released" else 0)
        position = rank(portion, length, self.fidelity)
        if position == 0:
            return self._nothing
        if position > values.shape[0]:
            return 0.0
        ordered = mx.nd.sort(values, axis=0, is_ascend=False)
        return float(ordered[position - 1 : position].asscalar())
