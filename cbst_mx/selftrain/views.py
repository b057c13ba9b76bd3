"""One image of a target set as the pass sees it: its confidence, its way into the thresholds, its pseudo-labels.

C classes, H x W pixels. ``target_maps`` has the same for an image whose maps are on a device.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Protocol, Sequence

import numpy as np

from cbst_mx.errors import DataError, NotFiniteError
from cbst_mx.selftrain.class_maps import ClassMaps
from cbst_mx.selftrain.counting import StreamingThresholds
from cbst_mx.selftrain.pseudo_labels import confidence, select
from cbst_mx.selftrain.thresholds import Thresholds

if TYPE_CHECKING:
    from cbst_mx.selftrain.kc import ConfidencePool

__all__ = ["HostMap", "View"]


class View(Protocol):
    """What the pass asks of one image."""

    @property
    def confidence(self) -> tuple[np.ndarray, np.ndarray]:
        """Confidence, float32, and predicted class, uint8, both (H, W)."""

    def sort_into(self, pool: ConfidencePool) -> None:
        """Add the pixels to a pool that sorts them."""

    def count_into(self, state: StreamingThresholds, name: str) -> None:
        """Add the pixels to a state that counts them."""

    def select(self, thresholds: Sequence[Thresholds]) -> list[np.ndarray]:
        """Return the pseudo-labels for each of several thresholds, uint8 (H, W), 255 = not selected."""


class HostMap:
    """One image's maps in the computer's memory, upsampled in tiles.

    Parameters
    ----------
    maps : ClassMaps
        Probabilities p_n(c).
    prior : ClassMaps, optional
        q_n(c), of the same size.
    origin : str
        Name of the image or its file, which errors start with.
    bounded : bool
        Whether values far above 1 are refused, as probabilities cannot be.
    """

    def __init__(self, maps: ClassMaps, prior: ClassMaps | None = None, origin: str = "", *, bounded: bool = True):
        self._maps, self._prior, self._origin, self._bounded = maps, prior, origin, bounded

    @functools.cached_property
    def confidence(self) -> tuple[np.ndarray, np.ndarray]:
        """Confidence, float32, and predicted class, uint8, both (H, W).

        Raises
        ------
        DataError
            If the maps or the prior cannot be used, see :func:`.pseudo_labels.confidence`.
        """
        try:
            return confidence(self._maps, self._prior, bounded=self._bounded)
        except NotFiniteError as error:
            raise NotFiniteError(f"{self._origin}: {error}" if self._origin else str(error)) from error
        except DataError as error:
            raise DataError(f"{self._origin}: {error}" if self._origin else str(error)) from error

    def sort_into(self, pool: ConfidencePool) -> None:
        """Add the pixels to a pool that sorts them."""
        pool.add_pixels(*self.confidence)

    def count_into(self, state: StreamingThresholds, name: str) -> None:
        """Add the pixels to a state that counts them."""
        state.add(name, *self.confidence)

    def select(self, thresholds: Sequence[Thresholds]) -> list[np.ndarray]:
        """Return the pseudo-labels for each of several thresholds, uint8 (H, W), 255 = not selected."""
        return select(self._maps, thresholds, self._prior)
