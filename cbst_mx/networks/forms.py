"""Forms of a network for inference: fused operators, int8, and bands of rows for large images.

Every form is called like the network, images (B, 3, h, w) to logits, has its attribute ``stride``, and leaves the
network as it is: parameters are shared where they are the same. A form is for inference only; after a change of the
parameters make a new one. B images, C classes, h x w pixels.

A whole network cannot be cut into tiles cheaply: an output row of FCN8s depends on 491 rows of the image, one of
ResNet-38 on 941 (:func:`.graph.extents`). What takes memory are few maps near the image and near the
classifier, so :class:`BandedNetwork` runs only those in bands, each band with the margin its piece needs.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from typing import Any, Callable, Iterator, NamedTuple, Sequence

import numpy as np

from cbst_mx.data.transforms import normalise
from cbst_mx.errors import ConfigError, check_choice
from cbst_mx.networks.graph import Graph, Piece, fold_batch_norms, pieces
from symbols.backend import gluon, mx

__all__ = [
    "FORMS",
    "Agreement",
    "BandedNetwork",
    "check_form",
    "folded",
    "network_graph",
    "quantised",
    "to_block",
    "exact_form",
]

FORMS = ("plain", "fused", "int8")
_ONEDNN, _QUANTISED = "MKLDNN", "MKLDNN_QUANTIZE"  # MXNet's names of the backend


class Agreement(NamedTuple):
    """How near an approximate network comes to the original on some images.

    Attributes
    ----------
    images : int
        Number of images.
    same_class : float
        Share of the positions of the output where both give the same class.
    relative_error : float
        Norm of the logits' difference over the norm of the original's logits.
    """

    images: int
    same_class: float
    relative_error: float


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
    """Return the graph of `network`; in float32 unless `mixed`, which keeps the process's mixed precision."""
    return Graph.from_json(network(mx.sym.var("data")).tojson(remove_amp_cast=not mixed))


def to_block(graph: Graph, parameters: gluon.ParameterDict) -> gluon.SymbolBlock:
    """Return the block that computes `graph`, with the given parameters themselves, not copies."""
    images = mx.sym.var("data", dtype="float32")
    return gluon.SymbolBlock(mx.sym.load_json(graph.to_json()), images, params=parameters)


def folded(network: gluon.HybridBlock, ctx: mx.Context) -> tuple[gluon.SymbolBlock, int]:
    """Return `network` with batch norms put into convolutions, and how many (:func:`.graph.fold_batch_norms`).

    Parameters
    ----------
    network : HybridBlock
        With its parameters; those that do not change are shared.
    ctx : mx.Context
        Where they are.
    """
    given = network.collect_params()
    values = {name: parameter.data(ctx).asnumpy() for name, parameter in given.items()}
    graph, new, count = fold_batch_norms(network_graph(network), values)
    parameters = gluon.ParameterDict()
    for name, value in new.items():
        if value is not values[name]:
            parameter = parameters.get(name, shape=value.shape, grad_req="null", init=mx.init.Zero())
            parameter.initialize(ctx=ctx)
            parameter.set_data(mx.nd.array(value, ctx=ctx))
    parameters.update({name: parameter for name, parameter in given.items() if name not in parameters})
    return to_block(graph, parameters), count


def exact_form(
    network: gluon.HybridBlock, *, ctx: mx.Context, form: str = "plain", band_rows: int | None = None
) -> Callable[[mx.nd.NDArray], mx.nd.NDArray]:
    """Return `network` in a form that needs no images: for int8 see :func:`quantised`.

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


def quantised(
    network: gluon.HybridBlock,
    images: Sequence[Any],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    ctx: mx.Context,
    run: Callable[[Any, np.ndarray], Any] | None = None,
) -> tuple[gluon.SymbolBlock, Agreement]:
    """Return `network` in int8, with value ranges taken from images, and how near it comes on them.

    Weights and activations of convolutions, pooling and sums become 8-bit integers; upsampling and the batch norms
    that cannot be folded stay in float32.

    Parameters
    ----------
    network : HybridBlock
        With its parameters on a CPU.
    images : sequence of ndarray of shape (H, W, 3), uint8
        At least one, of any sizes; with `run`, what that takes.
    mean, std : sequence of 3 float
        Normalisation, RGB in [0, 1].
    ctx : mx.Context
        The CPU.
    run : callable, optional
        ``run(network, image)`` calls the network as it will be called for an image: at its scales, mirrored. Ranges and
        agreement are those of these calls; by default one call with the whole image.

    Returns
    -------
    network : SymbolBlock
        The network for images of any size; logits are float32.
    agreement : Agreement
        How near it comes to `network` on `images`.

    Raises
    ------
    ConfigError
        If the device is another, or there are no images.
    """
    check_form("int8", ctx)
    if not images:
        raise ConfigError("inference int8 needs at least one image to calibrate on, got none")

    def run_whole(net: Any, image: Any) -> None:
        net(mx.nd.array(normalise(image, mean, std)[np.newaxis], ctx=ctx))

    def run_all(call: Callable[[mx.nd.NDArray], mx.nd.NDArray]) -> None:
        for image in images:
            (run or run_whole)(_Called(network, call), image)

    block = _calibrated(network, run_all, ctx)
    same = difference = norm = 0.0
    positions = 0

    def compare(batch: mx.nd.NDArray) -> mx.nd.NDArray:
        nonlocal same, difference, norm, positions
        logits = network(batch)
        expected, got = logits.asnumpy(), block(batch).asnumpy()
        equal = expected.argmax(axis=1) == got.argmax(axis=1)
        same += float(equal.sum())
        positions += equal.size
        difference += float(((got - expected) ** 2).sum(dtype=np.float64))
        norm += float((expected**2).sum(dtype=np.float64))
        return logits

    run_all(compare)
    return block, Agreement(len(images), same / positions, (difference / max(norm, 1e-30)) ** 0.5)


class _Called:
    """Something that is called in the place of `network`."""

    def __init__(self, network: gluon.HybridBlock, call: Callable[[mx.nd.NDArray], mx.nd.NDArray]):
        self.stride, self.smallest = network.stride, network.smallest
        self._call = call

    def __call__(self, images: mx.nd.NDArray) -> mx.nd.NDArray:
        return self._call(images)


def _calibrated(
    network: gluon.HybridBlock, run_all: Callable[[Callable[[mx.nd.NDArray], mx.nd.NDArray]], None], ctx: mx.Context
) -> gluon.SymbolBlock:
    """Return `network` in int8, with the ranges that its maps have in the calls that `run_all` makes.

    ``quantize_net_v2`` of MXNet is not used, because it binds the network to the size of the first image.
    """
    tools = mx.contrib.quantization
    values = {name: parameter.data(ctx) for name, parameter in network.collect_params().items()}
    symbol = mx.sym.load_json(network_graph(network).to_json())
    with _quiet():
        symbol = symbol.get_backend_symbol(_QUANTISED)
        arguments = {name: values[name] for name in symbol.list_arguments() if name in values}
        states = {name: values[name] for name in symbol.list_auxiliary_states()}
        # Ranges from minimum and maximum; "entropy" took 40 times as long and was no nearer. "smart" leaves operators
        # between float32 neighbours in float32, which was nearer than "full" on both networks.
        quantised_symbol, _, _, collector = tools.quantize_graph(
            symbol,
            arguments,
            states,
            ctx=ctx,
            excluded_sym_names=[],
            excluded_op_names=[],
            calib_mode="naive",
            quantized_dtype="auto",
            quantize_mode="smart",
        )

        def call(images: mx.nd.NDArray) -> mx.nd.NDArray:
            executor = symbol.bind(ctx, {**arguments, "data": images}, grad_req="null", aux_states=states)
            executor.set_monitor_callback(collector.collect, monitor_all=True)
            (logits,) = executor.forward(is_train=False)
            logits.wait_to_read()
            return logits

        run_all(call)
        quantised_symbol, arguments, states = tools.calib_graph(
            quantised_symbol, arguments, states, collector, calib_mode="naive", quantized_dtype="auto", logger=None
        )
        quantised_symbol = quantised_symbol.get_backend_symbol(_QUANTISED)
        parameters = gluon.ParameterDict()
        for name, value in {**arguments, **states}.items():
            parameter = parameters.get(name, shape=value.shape, dtype=value.dtype, grad_req="null", init=mx.init.Zero())
            parameter.initialize(ctx=ctx)
            parameter.set_data(value)
        block = gluon.SymbolBlock(quantised_symbol, mx.sym.var("data", dtype="float32"), params=parameters)
    block.hybridize(static_alloc=True, static_shape=True)
    block.stride, block.smallest = network.stride, network.smallest
    return block


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep MXNet from announcing that it fuses operators and that it does not know yet that images are float32."""
    name = "MXNET_SUBGRAPH_VERBOSE"
    before = os.environ.get(name)
    os.environ[name] = "0"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Cannot decide type", category=UserWarning)
            yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
