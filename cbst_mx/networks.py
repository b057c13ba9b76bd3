"""Build, initialise and hybridise networks on a context; the only module besides checkpoints that knows how.

B images, C classes, h x w pixels.
"""

from __future__ import annotations

import inspect
import math
import re
from typing import Any, Dict, List, Sequence, Tuple

from cbst_mx.errors import ConfigError
from cbst_mx.network_spec import NetworkSpec
from symbols import NETWORKS, get_network
from symbols.backend import enable_amp, gluon, has_bfloat16, mx

__all__ = [
    "build_network",
    "network_options",
    "output_size",
    "parameter_bytes",
    "parse_context",
    "parse_contexts",
    "set_precision",
]


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


def parse_contexts(name: str) -> List[mx.Context]:
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


def network_options(name: str) -> Dict[str, Any]:
    """Return the options of the network called `name` with their defaults; none where there is no such network."""
    constructor = NETWORKS.get(name)
    parameters = inspect.signature(constructor).parameters.values() if constructor else ()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def build_network(
    spec: NetworkSpec, ctx: mx.Context, *, seed: int | None = None, classifier: bool = False
) -> gluon.HybridBlock:
    """Build the network of `spec` on `ctx`, hybridised.

    Parameters
    ----------
    spec : NetworkSpec
        The network.
    ctx : mx.Context
        Where its parameters live.
    seed : int, optional
        Initialise the parameters at random from this seed (He et al. 2015, fan-in); without it they are left for
        :func:`cbst_mx.checkpoints.load_parameters` to fill.
    classifier : bool
        Allow a classifier of whole images, which gives no map of logits.

    Raises
    ------
    ConfigError
        If the network is unknown, its options are not its constructor's, or it is a classifier that is not allowed.
    """
    known = network_options(spec.name)
    unknown = [key for key in spec.options if key not in known]
    if known and unknown:
        raise ConfigError(
            f"network: the options of {spec.name} must be among {', '.join(sorted(known))}, got {unknown[0]!r}"
        )
    try:
        network = get_network(spec.name, spec.num_classes, **spec.options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"network: {error}") from error
    if network.stride is None and not classifier:
        options = ", ".join(f"{key}={value}" for key, value in sorted(spec.options.items()))
        raise ConfigError(
            f"network: {spec.name} must give a label per pixel here, got a classifier of whole images ({options}): "
            "cbst-mx import-weights turns its file into the segmentation network"
        )
    if seed is not None:
        mx.random.seed(seed)
        network.initialize(mx.init.Xavier(rnd_type="gaussian", factor_type="in", magnitude=2), ctx=ctx)
        network(mx.nd.zeros((1, 3, 32, 32), ctx=ctx))  # fixes the deferred shapes and so the order of random draws
    network.hybridize(static_alloc=True, static_shape=True)
    return network


def parameter_bytes(network: gluon.HybridBlock) -> int:
    """Return the bytes of all parameters in float32; their shapes must be known."""
    return sum(4 * math.prod(parameter.shape) for parameter in network.collect_params().values())


def output_size(network: gluon.HybridBlock, size: Tuple[int, int]) -> Tuple[int, int]:
    """Return the (rows, columns) of the logits for images of `size` (h, w), without computing them."""
    _, shapes, _ = network(mx.sym.Variable("images")).infer_shape(images=(1, 3, *size))
    return shapes[0][2:]
