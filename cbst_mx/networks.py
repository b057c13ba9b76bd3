"""Build, initialise and hybridise networks on a context; the only module besides checkpoints that knows how.

B images, C classes, h x w pixels.
"""

from __future__ import annotations

from cbst_mx.errors import ConfigError
from cbst_mx.network_spec import NetworkSpec
from symbols import get_network
from symbols.backend import gluon, mx

__all__ = ["build_network", "parse_context"]


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
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "gpu") or (index and not index.isdigit()):
        raise ConfigError(f"ctx must be cpu, cpu:N, gpu or gpu:N, got {name!r}")
    device = int(index or 0)
    if kind == "gpu" and device >= mx.context.num_gpus():
        raise ConfigError(f"ctx {name} is not available: this MXNet sees {mx.context.num_gpus()} GPUs; use cpu")
    return mx.Context(kind, device)


def build_network(spec: NetworkSpec, ctx: mx.Context, *, seed: int | None = None) -> gluon.HybridBlock:
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

    Raises
    ------
    ConfigError
        If the network is unknown or its options are not its constructor's.
    """
    try:
        network = get_network(spec.name, spec.num_classes, **spec.options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"network: {error}") from error
    if seed is not None:
        mx.random.seed(seed)
        network.initialize(mx.init.Xavier(rnd_type="gaussian", factor_type="in", magnitude=2), ctx=ctx)
        network(mx.nd.zeros((1, 3, 32, 32), ctx=ctx))  # fixes the deferred shapes and so the order of random draws
    network.hybridize(static_alloc=True, static_shape=True)
    return network
