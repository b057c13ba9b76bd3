"""Full-size class maps in about a tenth of the memory: without the probabilities that no pseudo-label can come of.

C classes, H x W pixels. A confidence is the largest of C probabilities that sum to 1, hence at least 1 / C; so is every
threshold, which is one of the confidences; and a class whose probability is below its threshold is no pseudo-label.
What is below 1 / C can be left out, with the same confidences, thresholds and pseudo-labels to the last bit. Both ends
are checked rather than believed: a map with a less confident pixel is not made compact, and lower thresholds, which
were set by hand, get the whole map.
"""

from __future__ import annotations

from typing import Callable, Sequence

import numpy as np

from cbst_mx.selftrain.class_maps import ClassMaps
from cbst_mx.selftrain.thresholds import Thresholds
from cbst_mx.selftrain.views import HostMap, View

__all__ = ["PIXEL_BYTES", "CompactMap", "CompactView"]

PIXEL_BYTES = 12  # of memory a pixel, for 19 classes of which three are likely: more than networks mostly give


class CompactMap:
    """One image's map without its small probabilities; made by :meth:`of`.

    Attributes
    ----------
    floor : float
        What is kept is at least that.
    """

    def __init__(self, shape: tuple[int, ...], bits: np.ndarray, values: np.ndarray, floor: float):
        self.floor, self._shape, self._bits, self._values = floor, shape, bits, values

    @classmethod
    def of(cls, maps: np.ndarray) -> CompactMap | None:
        """Return a map in its compact form, or None where it has none.

        Parameters
        ----------
        maps : ndarray of shape (C, H, W), float32
            Probabilities at the image's size.
        """
        floor = np.float32(0.99 / len(maps))  # below 1 / C by more than sums are rounded
        if not np.maximum.reduce(maps, axis=0).min() >= floor:  # or NaN
            return None
        likely = maps >= floor
        return cls(maps.shape, np.packbits(likely), maps[likely], float(floor))

    @property
    def nbytes(self) -> int:
        """Size in memory."""
        return self._bits.nbytes + self._values.nbytes

    def whole(self) -> np.ndarray:
        """Return the map with zeros for what was left out, float32 (C, H, W)."""
        maps = np.zeros(self._shape, np.float32)
        likely = np.unpackbits(self._bits, count=maps.size).view(bool)
        maps.reshape(-1)[likely] = self._values
        return maps


class CompactView(HostMap):
    """One image's compact map as the pass sees it.

    Parameters
    ----------
    compact : CompactMap
        The map.
    origin : str
        Name of the image, which errors start with.
    again : callable
        Gives the view of the whole map.
    """

    def __init__(self, compact: CompactMap, origin: str, again: Callable[[], View]):
        super().__init__(ClassMaps(compact.whole()), None, origin)
        self._floor, self._again = compact.floor, again

    def select(self, thresholds: Sequence[Thresholds]) -> list[np.ndarray]:
        """Return the pseudo-labels for each of several thresholds, uint8 (H, W), 255 = not selected."""
        if min(float(chosen.values.min()) for chosen in thresholds) < self._floor:
            return self._again().select(thresholds)
        return super().select(thresholds)
