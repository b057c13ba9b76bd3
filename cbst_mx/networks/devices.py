"""Contexts by name, and the precision in which networks compute on them."""

from __future__ import annotations

import re
from typing import Sequence

from cbst_mx.errors import ConfigError
from symbols.backend import enable_amp, has_bfloat16, mx

__all__ = ["parse_context", "parse_contexts", "set_precision"]


def parse_context(name: str) -> mx.Context:
    """Return the MXNet context called `name`.

    Parameters
    ----------
    name : str
        ``"cpu"``, ``"cpu:1"``, ``"gpu"`` or ``"gpu:0"``.

    Raises
    ------
    ConfigError
        If the name has another form or the GPU is not there.
    """
    contexts = parse_contexts(name)
    if len(contexts) > 1:
        raise ConfigError(f"ctx must be one device here (cpu, cpu:N, gpu or gpu:N), got {name!r}")
    return contexts[0]


def parse_contexts(name: str) -> list[mx.Context]:
    """Return the MXNet contexts called `name`, over which training spreads every batch.

    Parameters
    ----------
    name : str
        ``"cpu"``, ``"cpu:1"``, ``"gpu"``, ``"gpu:0"``, or several of one kind: ``"gpu:0,1"``. CPU contexts are all the
        same processor; several of them serve tests only.

    Raises
    ------
    ConfigError
        If the name has another form, names a device twice, or a GPU is not there.
    """
    kind, colon, numbers = name.partition(":")
    indices = numbers.split(",") if colon else ["0"]
    # four digits are more than any machine has, and less than what overflows in MXNet
    if kind not in ("cpu", "gpu") or not all(re.fullmatch("[0-9]{1,4}", index) for index in indices):
        raise ConfigError(f"ctx must be cpu, cpu:N, gpu, gpu:N or several as in gpu:0,1, got {name!r}")
    devices = [int(index) for index in indices]
    if len(set(devices)) < len(devices):
        raise ConfigError(f"ctx must name every device once, got {name!r}")
    if kind == "gpu" and max(devices) >= mx.context.num_gpus():
        raise ConfigError(f"ctx {name} is not available: this MXNet sees {mx.context.num_gpus()} GPUs; use cpu")
    return [mx.Context(kind, device) for device in devices]


def set_precision(amp: str, contexts: Sequence[mx.Context]) -> None:
    """Choose the precision of convolutions and matrix products, for the whole process; call it before building.

    Parameters
    ----------
    amp : {"none", "bfloat16", "float16"}
        "none" is float32 throughout.
    contexts : sequence of mx.Context
        Where the networks will compute: bfloat16 needs CPUs with AVX512_BF16, float16 needs GPUs.

    Raises
    ------
    ConfigError
        If the devices cannot do it or this process has another precision already (see
        :func:`symbols.backend.enable_amp`).
    """
    kind = contexts[0].device_type
    if amp == "float16" and kind != "gpu":
        raise ConfigError(f"amp float16 needs GPUs, got ctx {kind}: use bfloat16 on a CPU that has it, or none")
    if amp == "bfloat16" and kind != "cpu":
        raise ConfigError(f"amp bfloat16 needs a CPU, got ctx {kind}: use float16")
    if amp == "bfloat16" and not has_bfloat16():
        raise ConfigError("amp bfloat16 needs a CPU with AVX512_BF16, which this one lacks: use none")
    try:
        enable_amp(amp)
    except RuntimeError as error:
        raise ConfigError(f"amp: {error}") from error
