"""How the pixels of an image are made from the cells of a class map, along one axis; needs NumPy alone.

Interpolation is separable: what is said here of one axis is done from left to right, then from top to bottom. With
half-pixel centres, of N pixels over n cells pixel i has its centre at (i + 0.5) n / N - 0.5 cells.

* "bilinear" is the networks' own upsampling in this project: two cells; beyond the edges cells are repeated.
* "bicubic" is OpenCV's: four cells by Keys' kernel with a = -0.75; beyond the edges cells are repeated.
* "pillow" is the authors' released program's: Pillow's bicubic resize, twice. A map at stride s becomes s times as
  large, the size of the network's padded input; that is cropped to the input itself and resized to the image. Pillow's
  kernel is Keys' with a = -0.5, widened where it shrinks; beyond the edges there are no cells, and the weights of the
  others sum to 1. Both steps are linear, so one weight per pixel and cell does both. Pillow keeps float32 between its
  four passes (mode "F"; nothing is clipped), so its values differ from those here by a few roundings.

R. Keys, "Cubic convolution interpolation for digital image processing", 1981.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cbst_mx.errors import ConfigError, check_choice

__all__ = ["INTERPOLATIONS", "Axis", "check_interpolation", "plan_axis"]

INTERPOLATIONS = ("bilinear", "bicubic", "pillow")

_OPENCV, _PILLOW = -0.75, -0.5  # a of their bicubic kernels


def check_interpolation(interpolation: str) -> None:
    """Refuse an unknown interpolation.

    Raises
    ------
    ConfigError
        If it is not one of ``INTERPOLATIONS``.
    """
    check_choice("interpolation", interpolation, INTERPOLATIONS)


class Axis(NamedTuple):
    """How the pixels along one axis are made from the cells."""

    base: np.ndarray  # intp (N,): cell before the centre of each of N pixels
    others: list[tuple[np.ndarray, np.ndarray]]  # further cells intp (N,) and their weights float32 (N,)

    def cells(self, pixels: slice) -> tuple[int, int]:
        """Return the first and the end of the cells that `pixels` are made from."""
        parts = [self.base, *(cells for cells, _ in self.others)]  # none of them ever goes back
        return min(int(part[pixels.start]) for part in parts), max(int(part[pixels.stop - 1]) for part in parts) + 1


def plan_axis(cells: int, pixels: int, interpolation: str, extent: float, stride: int = 1) -> Axis | None:
    """Return how pixels are made from cells along one axis; None where the pixels are the cells.

    Parameters
    ----------
    cells, pixels : int
        How many there are.
    interpolation : {"bilinear", "bicubic", "pillow"}
    extent : float
        How many of the cells, from the first one, the pixels lie over.
    stride : int
        Pixels of the network's input per cell, for "pillow"; 1 resizes once.

    Raises
    ------
    ConfigError
        If "pillow" would have to crop within a pixel of the input.
    """
    if cells == pixels == extent and (interpolation != "pillow" or stride == 1):
        return None
    centres = (np.arange(pixels) + 0.5) * (extent / pixels) - 0.5
    before = np.floor(centres)
    t = centres - before
    base = before.astype(np.intp)
    last = cells - 1
    if interpolation == "pillow":
        base = np.clip(base, 0, last)
        weights = _pillow_weights(cells, pixels, extent, stride, base)
    elif interpolation == "bilinear":
        weights = {1: t}
    else:
        weights = {step: _cubic(np.abs(step - t), _OPENCV) for step in (-1, 1, 2)}
    others = [(np.clip(base + step, 0, last), weight.astype(np.float32)) for step, weight in weights.items()]
    return Axis(np.clip(base, 0, last), others)


def _pillow_weights(cells: int, pixels: int, extent: float, stride: int, base: np.ndarray) -> dict[int, np.ndarray]:
    """Return the weights (N,) of the cells at every step from `base` but 0 that Pillow's two resizes give."""
    part = round(extent * stride)
    if abs(part - extent * stride) > 1e-6:
        raise ConfigError(f"extent must be whole pixels at stride {stride} for pillow, got {extent} cells")
    # each pixel of the input from cells, then each pixel of the image from those
    first, weights = _resized(cells, cells * stride)
    outer, outer_weights = _resized(part, pixels)
    middle = np.minimum(outer[:, None] + np.arange(outer_weights.shape[1]), part - 1)  # beyond it weights are 0
    used = first[middle][..., None] + np.arange(weights.shape[1])  # (N, outer taps, inner taps)
    products = outer_weights[..., None] * weights[middle]
    steps = used - base[:, None, None]
    combined = {int(step): np.where(steps == step, products, 0).sum(axis=(1, 2)) for step in np.unique(steps) if step}
    return {step: weight for step, weight in combined.items() if weight.any()}


def _resized(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first of `old` elements and the weights (new, K) of K that Pillow makes each new element from."""
    if old == new:
        return np.arange(new), np.ones((new, 1))
    scale = old / new
    widened = max(scale, 1.0)
    centres = (np.arange(new) + 0.5) * scale
    low = np.maximum((centres - 2 * widened + 0.5).astype(np.intp), 0)
    high = np.minimum((centres + 2 * widened + 0.5).astype(np.intp), old)
    elements = low[:, None] + np.arange((high - low).max())
    weights = _cubic(np.abs(elements + 0.5 - centres[:, None]) / widened, _PILLOW)
    weights[elements >= high[:, None]] = 0
    return low, weights / weights.sum(axis=1, keepdims=True)


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Return Keys' kernel at `distance` >= 0, in elements."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
