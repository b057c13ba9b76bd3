"""Checks of what the constructors of the networks are given; the errors are one sentence that names the option."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["check_factors", "check_rate", "check_rates", "check_width"]

WIDEST = 8  # the published networks have width 1


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_pair(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(map(_is_number, value))


def check_width(width: Any) -> None:
    """Refuse a multiplier of channels outside (0, 8]."""
    if not _is_number(width) or not 0 < width <= WIDEST:
        raise ValueError(f"width must be greater than 0 and at most {WIDEST}, got {width!r}")


def check_rate(dropout: Any) -> None:
    """Refuse a dropout rate outside [0, 1)."""
    if not _is_number(dropout) or not 0 <= dropout < 1:
        raise ValueError(f"dropout must be a rate in [0, 1), got {dropout!r}")


def check_rates(dropout: Any) -> None:
    """Refuse anything but two dropout rates in [0, 1)."""
    if not _is_pair(dropout) or not all(0 <= rate < 1 for rate in dropout):
        raise ValueError(f"dropout must hold the rates of the last two units, each in [0, 1), got {dropout!r}")


def check_factors(skip_scale: Any) -> None:
    """Refuse anything but two positive factors."""
    if not _is_pair(skip_scale) or not all(factor > 0 for factor in skip_scale):
        raise ValueError(f"skip_scale must hold two numbers above 0, for pool3 and pool4, got {skip_scale!r}")
