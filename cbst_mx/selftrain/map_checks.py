"""Whether class maps are what they are taken for: probabilities, whose classes sum to 1 at every pixel.

C classes, h x w cells. A softmax over another axis, sigmoids, scores, or a class that was left out give values of the
right range and pseudo-labels that mean nothing, so the sum is looked at: at up to 1,024 cells of every map, on a grid
that holds its borders and corners. Cells where all classes are 0 (a masked region) have no sum to look at.

The tolerance leaves room for float16 (0.0005 for a softmax), and for values that were rounded to three decimals: as
many half thousandths as there are classes, at least 0.01.
"""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

import numpy as np

from cbst_mx.errors import DataError, check_choice
from cbst_mx.messages import silent

__all__ = ["ORIGINS", "Sums", "check_origin", "check_sums", "tolerance"]

#: Origin of maps -> what it makes of the sum over the classes.
ORIGINS = {
    "plain": "1",
    "bicubic": "1, give or take 0.25 where interpolation overshoots",
    "maximum": "1 or more, the maximum over several scales",
    "prior": "any number above 0, the probabilities times a spatial prior",
    "scores": "any number above 0, scores that are no distribution on purpose",
}
_GRID = 32  # rows and columns looked at
_OVERSHOOT = 0.25


class Sums(NamedTuple):
    """The smallest and the largest sum over the classes at the cells looked at."""

    smallest: float
    largest: float

    def __str__(self) -> str:
        return f"{self.smallest:.3g} to {self.largest:.3g}"


def check_origin(origin: str) -> None:
    """Refuse an unknown origin.

    Raises
    ------
    ConfigError
        If it is not one of ``ORIGINS``.
    """
    check_choice("origin", origin, ORIGINS)


def tolerance(num_classes: int) -> float:
    """Return how far from 1 the sum of a plain map's classes may be."""
    return max(0.01, 0.0005 * num_classes)


def check_sums(maps: np.ndarray, origin: str = "plain", *, release: Callable[[], Any] = silent) -> Sums | None:
    """Refuse class maps whose classes do not sum to what their origin says.

    Parameters
    ----------
    maps : ndarray of shape (C, h, w), float
        Class maps; NaN is left to other checks.
    origin : {"plain", "bicubic", "maximum", "prior", "scores"}
        Where they come from, see ``ORIGINS``.
    release : callable, optional
        Called after every row, to give back the memory of a mapped file.

    Returns
    -------
    Sums or None
        What was found; None where every cell looked at has no confidence or is not finite.

    Raises
    ------
    DataError
        If the sums are others; the sentence has the figures and the likely cause.
    """
    rows, columns = (np.unique(np.linspace(0, size - 1, _GRID).astype(int)) for size in maps.shape[1:])
    parts = []
    for row in rows:
        parts.append(maps[:, row, columns].astype(np.float64))
        release()  # each row of a class is on other pages
    values = np.concatenate(parts, axis=1)  # (C, n)
    with np.errstate(all="ignore"):  # NaN and infinity are refused elsewhere
        sums = values.sum(axis=0)
        seen = np.isfinite(sums) & (values.max(axis=0) > 0)
    if not seen.any():
        return None
    found = Sums(float(sums[seen].min()), float(sums[seen].max()))
    low, high = _bounds(origin, len(maps))
    if low <= found.smallest and found.largest <= high:
        return found
    with np.errstate(all="ignore"):
        cause = _cause(maps, rows, columns, values[:, seen], sums[seen])
    if cause is _LAST:
        raise DataError(_LAST)
    raise DataError(
        f"the classes of a pixel must sum to {ORIGINS[origin]}"
        + (f" (within {tolerance(len(maps)):.2g})" if origin == "plain" else "")
        + f", got {found}: {cause}"
    )


def _bounds(origin: str, num_classes: int) -> tuple[float, float]:
    slack = tolerance(num_classes)
    return {
        "plain": (1 - slack, 1 + slack),
        "bicubic": (1 - _OVERSHOOT, 1 + _OVERSHOOT),
        "maximum": (1 - slack, num_classes * (1 + slack)),
    }.get(origin, (0.0, np.inf))


_LAST = "probabilities must be of shape (C, H, W), they sum to 1 along the last axis instead"


def _cause(maps: np.ndarray, rows: np.ndarray, columns: np.ndarray, values: np.ndarray, sums: np.ndarray) -> str:
    """Return the likely cause of wrong sums."""
    for axis, chosen in ((2, maps[:, rows]), (1, maps[:, :, columns])):
        along = chosen.astype(np.float64).sum(axis=axis)
        if maps.shape[axis] > 1 and np.abs(along - 1).max() < tolerance(maps.shape[axis]):
            return _LAST if axis == 2 else "they sum to 1 along the rows, so the softmax was taken over the wrong axis"
    if (values > 1 - 1e-3).all() and (values < 1 + 1e-3).all():
        return "every value is 1, as a softmax over the images of a batch gives them"
    if values.min() >= 0 and np.ptp(sums) < 0.02 * sums.mean():
        return "every pixel has the same sum, by which the maps can be divided"
    if values.min() < 0 or values.max() > 1.5:
        return "logits have to go through a softmax"
    if sums.min() >= 1 - tolerance(len(maps)):
        return "a maximum over scales does that (then say origin maximum), or sigmoids in place of a softmax"
    if sums.max() <= 1 + tolerance(len(maps)):
        return "a class was left out, or the maps were multiplied by something (then say origin prior)"
    return "sigmoids do that, or maps times a spatial prior (then say origin prior)"
