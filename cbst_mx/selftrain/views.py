"""One image of a target set as the pass sees it: its confidence, its way into the thresholds, its pseudo-labels.

C classes, H x W pixels.
"""

from __future__ import annotations

import functools

import numpy as np

from cbst_mx.selftrain import on_device, pseudo_labels
from cbst_mx.selftrain.class_maps import ClassMaps
from cbst_mx.selftrain.counting import StreamingThresholds
from cbst_mx.selftrain.kc import ConfidencePool
from cbst_mx.selftrain.on_device import count_on_device
from cbst_mx.selftrain.thresholds import Thresholds
from symbols.backend import mx

__all__ = ["DeviceMap", "HostMap"]


class HostMap:
    """One image's map in the computer's memory, upsampled in tiles."""

    def __init__(self, maps: ClassMaps, prior: ClassMaps | None):
        self._maps, self._prior = maps, prior

    @functools.cached_property
    def confidence(self) -> tuple[np.ndarray, np.ndarray]:
        """Confidence, float32, and predicted class, uint8, both (H, W)."""
        return pseudo_labels.confidence(self._maps, self._prior)

    def sort_into(self, pool: ConfidencePool) -> None:
        """Add the pixels to a pool that sorts them."""
        pool.add_pixels(*(mx.nd.array(array, dtype=array.dtype) for array in self.confidence))

    def count_into(self, state: StreamingThresholds, name: str) -> None:
        """Add the pixels to a state that counts them."""
        state.add(name, *self.confidence)

    def select(self, thresholds: Thresholds) -> np.ndarray:
        """Return the pseudo-labels, uint8 (H, W), 255 = not selected."""
        return pseudo_labels.select(self._maps, [thresholds], self._prior)[0]


class DeviceMap:
    """One image's full-size map on a device, where everything is computed.

    Parameters
    ----------
    probability : NDArray of shape (C, H, W), float32
        p_n(c), or q_n(c) * p_n(c).
    """

    def __init__(self, probability: mx.nd.NDArray):
        self._probability = probability

    @functools.cached_property
    def _pixels(self) -> tuple[mx.nd.NDArray, mx.nd.NDArray]:
        return on_device.confidence(self._probability)

    @property
    def confidence(self) -> tuple[np.ndarray, np.ndarray]:
        """Confidence, float32, and predicted class, uint8, both (H, W)."""
        value, predicted = self._pixels
        return value.asnumpy(), predicted.asnumpy().astype(np.uint8)

    def sort_into(self, pool: ConfidencePool) -> None:
        """Add the pixels to a pool that sorts them."""
        pool.add_pixels(*self._pixels)

    def count_into(self, state: StreamingThresholds, name: str) -> None:
        """Add the pixels to a state that counts them."""
        count_on_device(state, name, *self._pixels)

    def select(self, thresholds: Thresholds) -> np.ndarray:
        """Return the pseudo-labels, uint8 (H, W), 255 = not selected."""
        return on_device.select(self._probability, thresholds)
