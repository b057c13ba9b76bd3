"""Parts that the networks share, and checks of their options: errors are one sentence that names the option.

B images, C channels, h x w pixels.
"""

from __future__ import annotations

import math
from typing import Any, Sequence

from symbols.backend import gluon

nn = gluon.nn

__all__ = [
    "BATCH_NORM",
    "Dropout",
    "check_choice",
    "check_factors",
    "check_hidden",
    "check_kernel",
    "check_rate",
    "check_rates",
    "check_width",
    "conv_unit",
    "scaled",
]

WIDEST = 8  # the published networks have width 1

# Gluon's use_global_stats per named batch-norm setting; None = no batch norm in the network
BATCH_NORM = {"none": None, "batch": False, "frozen": True}


class Dropout(gluon.nn.Dropout):
    """Dropout whose masks follow from the seed on every device.

    Gluon's own lets cuDNN draw them on a GPU. That draws from a state of its own, which MXNet 1.9.1 seeds from the C
    library's ``rand`` and no seed of MXNet reaches.

    Inputs:
        - **data**: of any shape.

    Outputs:
        - **out**: of the same shape; while training each value is 0 with probability `rate`, else divided by 1 - rate.
    """

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        if self._rate > 0:
            return F.Dropout(x, p=self._rate, axes=self._axes, name="fwd", cudnn_off=True)
        return F.identity(x)


def scaled(channels: int, width: float) -> int:
    """Return the channel count of a layer that has `channels` at width 1."""
    return max(1, int(round(channels * width)))


def conv_unit(channels: int, kernel: int, batch_norm: str, *, relu: bool = True) -> gluon.HybridBlock:
    """Return convolution ("same" padding), optional batch norm and ReLU as one block.

    Parameters
    ----------
    channels : int
        Output channels.
    kernel : int
        Odd kernel size in pixels.
    batch_norm : {"none", "batch", "frozen"}
        No batch norm; batch statistics while training; moving statistics even while training (gamma and beta train).
    relu : bool
        False leaves it out, for a caller that puts it behind a max pooling: the same numbers and gradients, of smaller
        maps.
    """
    use_global_stats = BATCH_NORM[batch_norm]
    unit = nn.HybridSequential()
    with unit.name_scope():
        unit.add(nn.Conv2D(channels, kernel, padding=kernel // 2, use_bias=use_global_stats is None))
        if use_global_stats is not None:
            unit.add(nn.BatchNorm(use_global_stats=use_global_stats))
        if relu:
            unit.add(nn.Activation("relu"))
    return unit


# ---------------------------------------------------------------------------------------------------------- options


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_pair(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(map(_is_number, value))


def check_choice(option: str, value: Any, allowed: Sequence[str]) -> None:
    """Refuse a value of `option` that is not one of `allowed`."""
    if value not in tuple(allowed):  # a tuple: what cannot be hashed, such as a list, is refused as well
        raise ValueError(f"{option} must be one of {', '.join(allowed)}, got {value!r}")


def check_width(width: Any) -> None:
    """Refuse a multiplier of channels outside (0, 8]."""
    if not _is_number(width) or not 0 < width <= WIDEST:
        raise ValueError(f"width must be greater than 0 and at most {WIDEST}, got {width!r}")


def check_hidden(hidden: Any) -> None:
    """Refuse anything but None or a number of channels that the widest network could have."""
    most = 4096 * WIDEST
    if hidden is not None and not (type(hidden) is int and 1 <= hidden <= most):
        raise ValueError(f"hidden must be a whole number of channels from 1 to {most}, got {hidden!r}")


def check_kernel(kernel: Any) -> None:
    """Refuse anything but an odd size in pixels from 1 to 31."""
    if not (type(kernel) is int and 1 <= kernel <= 31 and kernel % 2 == 1):
        raise ValueError(f"kernel must be an odd number of pixels from 1 to 31, got {kernel!r}")


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
