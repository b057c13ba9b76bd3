"""Build, initialise and hybridise networks on a context, and say how large they are.

B images, C classes, h x w pixels.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

from cbst_mx.errors import ConfigError
from cbst_mx.networks.spec import NetworkSpec
from symbols import NETWORKS, get_network
from symbols.backend import gluon, mx

__all__ = [
    "build_network",
    "network_options",
    "output_size",
    "parameter_bytes",
    "spec_bytes",
]


def network_options(name: str) -> dict[str, Any]:
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
        :func:`.parameters.load_parameters` to fill.
    classifier : bool
        Allow a classifier of whole images, which gives no map of logits.

    Raises
    ------
    ConfigError
        If the network is unknown, its options are not its constructor's, or it is a classifier that is not allowed.
    """
    network = _constructed(spec)
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


def _constructed(spec: NetworkSpec) -> gluon.HybridBlock:
    """Return the network of `spec`, without parameters."""
    known = network_options(spec.name)
    unknown = [key for key in spec.options if key not in known]
    if known and unknown:
        raise ConfigError(
            f"network: the options of {spec.name} must be among {', '.join(sorted(known))}, got {unknown[0]!r}"
        )
    try:
        return get_network(spec.name, spec.num_classes, **spec.options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"network: {error}") from error


def parameter_bytes(network: gluon.HybridBlock) -> int:
    """Return the bytes of all parameters in float32; their shapes must be known."""
    return sum(4 * math.prod(parameter.shape) for parameter in network.collect_params().values())


def spec_bytes(spec: NetworkSpec) -> int:
    """Return the bytes of all parameters in float32 of a network that is not built.

    Raises
    ------
    ConfigError
        As :func:`build_network`.
    """
    parts, _, moving = _constructed(spec)(mx.sym.Variable("images")).infer_shape(images=(1, 3, 32, 32))
    return 4 * (sum(map(math.prod, [*parts, *moving])) - 3 * 32 * 32)


def output_size(network: gluon.HybridBlock, size: tuple[int, int]) -> tuple[int, int]:
    """Return the (rows, columns) of the logits for images of `size` (h, w), without computing them."""
    _, shapes, _ = network(mx.sym.Variable("images")).infer_shape(images=(1, 3, *size))
    return shapes[0][2:]
