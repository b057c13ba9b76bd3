"""k and k_c as sorted confidence quantiles on NDArrays, or arrays of NumPy: the form for small sets.

The rules are those of ``thresholds``. C classes, H x W pixels. `ConfidencePool` holds and sorts every value, and
``counting`` is tested against it.
"""

from __future__ import annotations

import functools
from typing import Any, Protocol, Sequence

import numpy as np

from cbst_mx.errors import DataError, NotFiniteError
from cbst_mx.label_space import IGNORE
from cbst_mx.selftrain.on_device import confidence
from cbst_mx.selftrain.thresholds import (
    RELEASED_STEP,
    Rank,
    Thresholds,
    check_fidelity,
    check_policy,
    find_values,
)
from symbols.backend import mx

__all__ = ["ConfidencePool"]

_LARGEST = 2**31 - 1  # elements of an NDArray in the MXNet wheels
# The sort on a GPU counts the bytes of its workspace, 28 for each value, in 32 bits: above this it says "out of
# memory", and above twice as much it writes behind a workspace that is too small.
_LARGEST_ON_GPU = _LARGEST // 28


class _Sortable(Protocol):
    def sort_into(self, pool: ConfidencePool) -> None: ...


def check_size(pixels: int, device: str) -> None:
    """Refuse more values than MXNet 1.9.1 can sort.

    Parameters
    ----------
    pixels : int
        Number of values.
    device : str
        "cpu" or "gpu".

    Raises
    ------
    DataError
        If there are more than 2^31 - 1, or on a GPU more than 76.7 million.
    """
    if pixels > _LARGEST:
        raise DataError(f"target set has more than {_LARGEST} pixels: more than one MXNet array can hold")
    if device == "gpu" and pixels > _LARGEST_ON_GPU:
        raise DataError(
            f"target set has more than {_LARGEST_ON_GPU:,} pixels, which MXNet 1.9.1 cannot sort on a GPU: count "
            "instead (StreamingThresholds), as the commands do, or sort on the CPU"
        )


class ConfidencePool:
    """Collect the confidences of a target set and turn them into thresholds.

    The pool holds every value (five bytes a pixel) and sorts them where they are: NDArrays on their context, arrays of
    NumPy only as far as a rank needs, which takes a quarter of the time of MXNet's sort on the processor. One pool gets
    the one or the other. The form for sets of up to 2^31 - 1 pixels.

    Parameters
    ----------
    num_classes : int
        Number of classes C.
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
        self._images = 0
        self._confidences: list[Any] = []  # arrays of NumPy, or of MXNet on a GPU
        self._predicted: list[Any] = []

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

    def add_pixels(self, values: Any, predicted: Any) -> None:
        """Add the pixels of one image whose confidence and predicted class are known.

        Parameters
        ----------
        values : NDArray or ndarray of shape (H, W), float32
            Confidences.
        predicted : NDArray or ndarray of shape (H, W), number
            Predicted classes; 255 where no class has any confidence. Such pixels are in no pool, but by the released
            rules in that of class 0, as the program has it.

        Raises
        ------
        DataError
            As :meth:`add`.
        """
        on_device = isinstance(values, mx.nd.NDArray)
        context = values.context if on_device else mx.cpu()
        host, classes = (_on_host(array).reshape(-1) for array in (values, predicted))
        if not np.isfinite(host).all():
            raise NotFiniteError("probability must be finite, got a map with NaN or infinity")
        classes = classes.astype(np.uint8)
        unsure, chosen = classes == IGNORE, None
        if self.fidelity == "released":
            classes[unsure] = 0
            # indices of one class after the other, in raster order within each
            kept = [np.flatnonzero(classes == index)[::RELEASED_STEP] for index in range(self.num_classes)]
            chosen = np.concatenate(kept)
        elif unsure.any():
            chosen = np.flatnonzero(~unsure)
        if chosen is not None:
            host, classes = host[chosen], classes[chosen]
        self._images += 1
        if not classes.size:
            return
        self.counts += np.bincount(classes, minlength=self.num_classes)
        check_size(int(self.counts.sum()), context.device_type)
        if not on_device:
            self._confidences.append(host)
            self._predicted.append(classes)
            return
        self._confidences.append(values.reshape(-1) if chosen is None else mx.nd.array(host, ctx=context))
        self._predicted.append(mx.nd.array(classes, ctx=context, dtype=np.uint8))

    def collect(self, name: str, view: _Sortable) -> None:
        """Add the pixels of one image of a set."""
        view.sort_into(self)

    def refine(self, policies: Sequence[str], portions: Sequence[float]) -> bool:
        """Return whether these thresholds need every image once more: never, all values are here."""
        return False

    def thresholds(self, policy: str, portion: float) -> Thresholds:
        """Determine k (Algorithm 1, `policy` "global") or k_c (Algorithm 2, `policy` "class-balanced").

        Parameters
        ----------
        policy : str
            Threshold rule, of ``thresholds.POLICIES``.
        portion : float
            p in (0, 1].

        Raises
        ------
        ConfigError
            If an argument is not allowed.
        DataError
            If no image was added.
        """
        check_policy(policy, portion)
        if not self._images:
            raise DataError("no image was added to the pool of confidences: the target set is empty")
        if not self._confidences:
            raise DataError("no pixel of the target set has a confidence above 0: all maps hold zeros only")
        find = _found_on_host if isinstance(self._confidences[0], np.ndarray) else _found_on_device
        value = functools.partial(find, self._confidences, self._predicted, self.num_classes)
        return find_values(policy, portion, self.counts.copy(), self.fidelity, value)


def _found_on_host(confidences: list[np.ndarray], predicted: list[np.ndarray], num_classes: int, wanted: Rank) -> float:
    """Return the confidence at a rank."""
    parts = confidences
    if wanted.pool != num_classes:
        parts = [values[classes == wanted.pool] for values, classes in zip(confidences, predicted)]
    members = np.concatenate(parts)
    place = len(members) - wanted.position
    members.partition(place)
    return float(members[place])


def _found_on_device(confidences: list[Any], predicted: list[Any], num_classes: int, wanted: Rank) -> float:
    """Return the confidence at a rank."""
    members = mx.nd.concat(*confidences, dim=0)
    if wanted.pool != num_classes:
        members = mx.nd.contrib.boolean_mask(members, mx.nd.concat(*predicted, dim=0) == wanted.pool)
    ordered = mx.nd.sort(members, axis=0, is_ascend=False)
    return float(ordered[wanted.position - 1 : wanted.position].asscalar())


def _on_host(array: Any) -> np.ndarray:
    return array.asnumpy() if isinstance(array, mx.nd.NDArray) else np.asarray(array)
