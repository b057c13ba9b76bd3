"""Forms of a network for inference: fused operators, and bands of rows for large images; int8 is :mod:`.int8`.

Every form is called like the network, images (B, 3, h, w) to logits, has its attribute ``stride``, and leaves the
network as it is: parameters are shared where they are the same. A form is for inference only; after a change of the
parameters make a new one. B images, C classes, h x w pixels.

A whole network cannot be cut into tiles cheaply: an output row of FCN8s depends on 491 rows of the image, one of
ResNet-38 on 941 (:func:`.graph.extents`). What takes memory are few maps near the image and near the
classifier, so :class:`BandedNetwork` runs only those in bands, each band with the margin its piece needs.
"""

from __future__ import annotations

from typing import Callable

import numpy as np

from cbst_mx.errors import ConfigError, check_choice
from cbst_mx.networks.graph import Graph, Piece, fold_batch_norms, pieces, pooled_last
from symbols.backend import gluon, mx

__all__ = [
    "FORMS",
    "BandedNetwork",
    "check_form",
    "folded",
    "folded_graph",
    "network_graph",
    "to_block",
    "exact_form",
]

FORMS = ("plain", "fused", "int8")
_ONEDNN = "MKLDNN"  # MXNet's name of the backend


def check_form(form: str, ctx: mx.Context, band_rows: int | None = None) -> None:
    """Refuse a form that this device or the bands do not allow.

    Raises
    ------
    ConfigError
        If `form` is unknown, `ctx` cannot compute it, or `band_rows` is below 1 or given with int8.
    """
    check_choice("inference", form, FORMS)
    if form != "plain" and ctx.device_type != "cpu":
        raise ConfigError(f"inference {form} works on the CPU only (oneDNN), got ctx {ctx.device_type}; use plain")
    if form == "int8" and ctx != mx.cpu():
        raise ConfigError(f"inference int8 works with ctx cpu only, which is the same processor, got {ctx}")
    if band_rows is not None and band_rows < 1:
        raise ConfigError(f"tile must be at least 1 row, got {band_rows}")
    if band_rows is not None and form == "int8":
        raise ConfigError("tile works with inference plain or fused, not with int8")


def network_graph(network: gluon.HybridBlock, *, mixed: bool = False) -> Graph:
    """Return the graph of `network`, ReLUs before poolings (:func:`.graph.pooled_last`).

    In float32 unless `mixed`, which keeps the process's mixed precision.
    """
    return pooled_last(Graph.from_json(network(mx.sym.var("data")).tojson(remove_amp_cast=not mixed)))


def to_block(graph: Graph, parameters: gluon.ParameterDict) -> gluon.SymbolBlock:
    """Return the block that computes `graph`, with the given parameters themselves, not copies."""
    images = mx.sym.var("data", dtype="float32")
    return gluon.SymbolBlock(mx.sym.load_json(graph.to_json()), images, params=parameters)


def folded_graph(network: gluon.HybridBlock, ctx: mx.Context) -> tuple[Graph, dict[str, np.ndarray], int]:
    """Return graph and parameters of `network` with batch norms put into convolutions, and how many.

    Parameters
    ----------
    network : HybridBlock
        With its parameters.
    ctx : mx.Context
        From where they are read.
    """
    values = {name: parameter.data(ctx).asnumpy() for name, parameter in network.collect_params().items()}
    return fold_batch_norms(network_graph(network), values)


def folded(network: gluon.HybridBlock, ctx: mx.Context) -> tuple[gluon.SymbolBlock, int]:
    """Return `network` with batch norms put into convolutions, and how many (:func:`.graph.fold_batch_norms`).

    Parameters
    ----------
    network : HybridBlock
        With its parameters; those that do not change are shared.
    ctx : mx.Context
        Where they are.
    """
    graph, new, count = folded_graph(network, ctx)
    given = network.collect_params()
    parameters = gluon.ParameterDict()
    for name, value in new.items():
        if not np.array_equal(value, given[name].data(ctx).asnumpy()):
            parameter = parameters.get(name, shape=value.shape, grad_req="null", init=mx.init.Zero())
            parameter.initialize(ctx=ctx)
            parameter.set_data(mx.nd.array(value, ctx=ctx))
    parameters.update({name: parameter for name, parameter in given.items() if name not in parameters})
    return to_block(graph, parameters), count


def exact_form(
    network: gluon.HybridBlock, *, ctx: mx.Context, form: str = "plain", band_rows: int | None = None
) -> Callable[[mx.nd.NDArray], mx.nd.NDArray]:
    """Return `network` in a form that needs no images: for int8 see :func:`.int8.quantised`.

    Parameters
    ----------
    network : HybridBlock
        With its parameters.
    ctx : mx.Context
        Where they are.
    form : {"plain", "fused"}
        "fused" lets oneDNN do convolution, batch norm, ReLU and sum in one pass.
    band_rows : int, optional
        Run large maps in bands of this many image rows.

    Returns
    -------
    callable
        Images to logits; equal to `network` up to rounding.

    Raises
    ------
    ConfigError
        If the form is not possible on `ctx` or for this network.
    """
    check_form(form, ctx, band_rows)
    if form == "int8":
        raise ConfigError("inference int8 needs images to calibrate on")
    if band_rows is not None:
        return BandedNetwork(network, band_rows, fused=form == "fused")
    if form == "plain":
        return network
    block = to_block(network_graph(network, mixed=True), network.collect_params())
    block.hybridize(backend=_ONEDNN, static_alloc=True, static_shape=True)
    block.stride, block.smallest = network.stride, network.smallest
    return block


class BandedNetwork:
    """A network that holds no large map as a whole but its output.

    The network is split into pieces (:func:`.graph.pieces`). A piece with a large map inside runs in bands of
    rows of its output; a band's input has as many rows more on either side as its output depends on, so each row comes
    from the same numbers as without bands. Sums are done in another order: differences are rounding (about 1e-6 of the
    largest logit). Mirroring does not matter, rows are whole.

    Parameters
    ----------
    network : HybridBlock
        With its parameters, which are shared.
    rows : int
        Image rows per band; rounded up to what the network's strides allow. Smaller bands need less memory and, since
        their margins are computed more than once, more time.
    fused : bool
        Fuse operators by oneDNN (CPU).
    """

    def __init__(self, network: gluon.HybridBlock, rows: int, *, fused: bool = False):
        if rows < 1:
            raise ConfigError(f"tile must be at least 1 row, got {rows}")
        self.stride, self.smallest = network.stride, network.smallest
        self._rows = rows
        self._parts: list[tuple[Piece, gluon.SymbolBlock]] = []
        for piece in pieces(network_graph(network, mixed=True)):
            block = to_block(piece.graph, network.collect_params())
            # static memory would be kept between calls, which is what this class is to avoid
            block.hybridize(backend=_ONEDNN if fused else None)
            self._parts.append((piece, block))

    def __call__(self, images: mx.nd.NDArray) -> mx.nd.NDArray:
        """Return the logits of `images`, float32 (B, 3, h, w)."""
        height, width = images.shape[2:]
        value = images
        for piece, block in self._parts:
            value = self._in_bands(piece, block, value) if piece.large else _float32(block(value))
            value.wait_to_read()  # else the inputs of what is queued stay in memory
        # the last operator of FCN8s, which is not in the pieces
        return value[:, :, :height, :width] if self.stride == 1 and value.shape[2:] != (height, width) else value

    def _in_bands(self, piece: Piece, block: gluon.SymbolBlock, value: mx.nd.NDArray) -> mx.nd.NDArray:
        """Return the output of `piece`, computed band by band."""
        (shape,) = block(mx.sym.var("data")).infer_shape(data=value.shape)[1]
        count = -(-self._rows // piece.image_stride)
        result = mx.nd.empty(shape, ctx=value.context)
        for start in range(0, shape[2], count):
            end = min(start + count, shape[2])
            first, last = piece.extent.rows(start, end)
            first = max(0, first) // piece.align * piece.align
            band = _float32(block(value[:, :, first : min(last, value.shape[2])]))
            skipped = start - int(first / piece.extent.stride)
            result[:, :, start:end] = band[:, :, skipped : skipped + end - start]
            result.wait_to_read()
        return result


def _float32(value: mx.nd.NDArray) -> mx.nd.NDArray:
    """Return `value` in float32: assigning a part of a bfloat16 array goes wrong in MXNet 1.9."""
    return value if value.dtype == np.float32 else value.astype("float32")
