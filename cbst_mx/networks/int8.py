"""A network in int8: 8-bit integers by oneDNN, where that keeps the classes.

Ranges of maps and roundings of weights come from images. What eight bits cost is not spread evenly: early convolutions
read few numbers, whose errors hardly cancel, and everything behind them inherits the errors; the last ones give the
logits themselves. So the last convolutions stay in float32, which costs next to no time, and of the first as many as it
takes for the same classes on the images. B images, C classes, h x w pixels.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import warnings
from typing import Any, Callable, Iterator, NamedTuple, Sequence

import numpy as np

from cbst_mx.data.transforms import normalise
from cbst_mx.errors import ConfigError
from cbst_mx.networks.devices import release_memory
from cbst_mx.networks.forms import check_form, folded_graph
from cbst_mx.networks.graph import Graph, Node
from cbst_mx.networks.rounding import Moments, on_grid, patches, round_weights
from symbols.backend import gluon, mx

__all__ = ["SAME_CLASS", "Agreement", "quantised"]

#: Share of positions that must keep their class: where it was reached, the demo's mIoU moved by less than 0.2
#: (docs/performance.md).
SAME_CLASS = 0.9975

_BACKEND = "MKLDNN_QUANTIZE"  # MXNet's name
_CONVOLUTION = "_sg_mkldnn_conv"
_MOST = 1200  # weights per output channel that are rounded by what they read; the errors of more average out
_Call = Callable[[mx.nd.NDArray], mx.nd.NDArray]


class Agreement(NamedTuple):
    """How near a network in int8 comes to the original on some images.

    Attributes
    ----------
    images : int
        Number of images.
    same_class : float
        Share of the positions of the output where both give the same class.
    relative_error : float
        Norm of the logits' difference over the norm of the original's logits.
    int8, convolutions : int
        How many convolutions are in int8, and how many there are.
    """

    images: int
    same_class: float
    relative_error: float
    int8: int
    convolutions: int


def quantised(
    network: gluon.HybridBlock,
    images: Sequence[Any],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    ctx: mx.Context,
    run: Callable[[Any, np.ndarray], Any] | None = None,
    same_class: float = SAME_CLASS,
) -> tuple[gluon.SymbolBlock, Agreement]:
    """Return `network` in int8, with value ranges taken from images, and how near it comes on them.

    Weights and activations of convolutions, pooling and sums become 8-bit integers; upsampling and the batch norms
    that cannot be folded stay in float32, and so do the last convolutions and the first one. Where the result has
    another class at too many positions, the first 2, 3, 4, 6, 9, ... convolutions stay in float32, at the end all.
    The images pass the original network twice, and int8 once in every try and once more.

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
    same_class : float
        Share of the positions of `images` that must keep their class, in [0, 1].

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

    def run_all(call: _Call) -> None:
        for image in images:
            (run or run_whole)(_Called(network, call), image)

    made = _Calibrated(network, ctx)
    classes: list[np.ndarray] = []

    def watch(batch: mx.nd.NDArray) -> mx.nd.NDArray:
        logits = made.watch(batch)
        classes.append(_classes(logits))
        return logits

    run_all(watch)
    first = 1
    while True:
        block, count = made.block(first)
        if first >= made.convolutions or _same_share(block, run_all, classes) >= same_class:
            break
        del block
        release_memory()
        first += max(1, first // 2)
    same, error = _compared(network, block, run_all)
    return block, Agreement(len(images), same, error, count, made.convolutions)


def _classes(logits: mx.nd.NDArray) -> np.ndarray:
    """Return the classes (B, h, w) of logits (B, C, h, w), in the smallest type."""
    return logits.asnumpy().argmax(axis=1).astype(np.min_scalar_type(logits.shape[1]))


def _same_share(block: _Call, run_all: Callable[[_Call], None], classes: Sequence[np.ndarray]) -> float:
    """Return the share of positions at which `block` gives the classes of the calls that `run_all` makes."""
    expected, same = iter(classes), 0

    def compare(batch: mx.nd.NDArray) -> mx.nd.NDArray:
        nonlocal same
        logits = block(batch)
        same += np.count_nonzero(_classes(logits) == next(expected))
        return logits

    run_all(compare)
    return same / sum(one.size for one in classes)


def _compared(network: gluon.HybridBlock, block: _Call, run_all: Callable[[_Call], None]) -> tuple[float, float]:
    """Return the share of equal classes and the relative error of the logits in the calls that `run_all` makes."""
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
    return same / positions, (difference / max(norm, 1e-30)) ** 0.5


class _Called:
    """Something that is called in the place of `network`."""

    def __init__(self, network: gluon.HybridBlock, call: _Call):
        self.stride, self.smallest = network.stride, network.smallest
        self._call = call

    def __call__(self, images: mx.nd.NDArray) -> mx.nd.NDArray:
        return self._call(images)


class _Convolution(NamedTuple):
    """A convolution of the graph, the operator that oneDNN makes of it, and what that reads."""

    node: Node
    weight: str
    bias: str | None
    fused: str
    reads: str


class _Calibrated:
    """A network with what its maps were in some calls, from which int8 networks are made.

    ``quantize_net_v2`` of MXNet is not used, because it binds the network to the size of the first image.
    """

    def __init__(self, network: gluon.HybridBlock, ctx: mx.Context):
        self._network_like = (network.stride, network.smallest)
        self._ctx = ctx
        graph, self._values, _ = folded_graph(network, ctx)
        with _quiet():
            self._symbol = mx.sym.load_json(graph.to_json()).get_backend_symbol(_BACKEND)
        fused = Graph.from_json(self._symbol.tojson())
        self._maps = {_output(node) for node in fused.nodes if node.op != "null"} | {fused.nodes[fused.input].name}
        self._found = _convolutions(graph, fused)
        self._last = {node.name for node in _last_convolutions(graph)}
        self._moments = {
            one.weight: Moments(self._values[one.weight][0].size)
            for one in self._found
            if one.node.attrs.get("num_group", "1") == "1" and self._values[one.weight][0].size <= _MOST
        }
        self.min_max_dict: dict[str, tuple[float, float]] = {}  # where MXNet looks for the ranges
        self._rounded: dict[str, np.ndarray] | None = None
        self._parameters = {name: mx.nd.array(value, ctx=ctx) for name, value in self._values.items()}

    @property
    def convolutions(self) -> int:
        """Number of convolutions."""
        return len(self._found)

    def watch(self, images: mx.nd.NDArray) -> mx.nd.NDArray:
        """Return the logits of `images` in float32, and take in the values of all maps."""
        arguments = {name: self._parameters[name] for name in self._symbol.list_arguments() if name in self._parameters}
        states = {name: self._parameters[name] for name in self._symbol.list_auxiliary_states()}
        with _quiet():
            executor = self._symbol.bind(self._ctx, {**arguments, "data": images}, grad_req="null", aux_states=states)
        executor.set_monitor_callback(self._collect, monitor_all=True)
        (logits,) = executor.forward(is_train=False)
        logits.wait_to_read()
        return logits

    def _collect(self, name: bytes, handle: Any) -> None:
        """Take in a map, as MXNet gives it to monitors."""
        text = name.decode()
        if text not in self._maps:
            return
        values = mx.nd.NDArray(ctypes.cast(handle, mx.base.NDArrayHandle), writable=False)
        low, high = float(values.min().asscalar()), float(values.max().asscalar())
        known = self.min_max_dict.get(text, (low, high))
        self.min_max_dict[text] = (min(low, known[0]), max(high, known[1]))
        readers = [one for one in self._found if one.reads == text and one.weight in self._moments]
        if readers:
            array = values.asnumpy()
            for one in readers:
                self._moments[one.weight].add(patches(array, one.node))

    def block(self, first: int) -> tuple[gluon.SymbolBlock, int]:
        """Return the network in int8 but for the last and the `first` convolutions, and how many are in int8."""
        tools = mx.contrib.quantization
        kept = [one for index, one in enumerate(self._found) if index < first or one.node.name in self._last]
        parameters = {**self._parameters, **self._rounded_but(kept)}
        with _quiet():
            arguments = {name: parameters[name] for name in self._symbol.list_arguments() if name in parameters}
            states = {name: parameters[name] for name in self._symbol.list_auxiliary_states()}
            # Ranges from minimum and maximum; "entropy" took 40 times as long and was no nearer, nor were ranges of the
            # least squared error. "smart" leaves operators between float32 neighbours in float32, which was nearer than
            # "full" on both networks.
            symbol, _, _, _ = tools.quantize_graph(
                self._symbol,
                arguments,
                states,
                ctx=self._ctx,
                excluded_sym_names=[one.fused for one in kept],
                excluded_op_names=[],
                calib_mode="none",
                quantized_dtype="auto",
                quantize_mode="smart",
            )
            symbol, arguments, states = tools.calib_graph(
                symbol, arguments, states, self, calib_mode="naive", quantized_dtype="auto", logger=None
            )
            symbol = symbol.get_backend_symbol(_BACKEND)
            block = _block(symbol, {**arguments, **states}, self._ctx)
        block.stride, block.smallest = self._network_like
        nodes = Graph.from_json(symbol.tojson()).nodes
        return block, sum(node.op == _CONVOLUTION and node.attrs.get("quantized") == "true" for node in nodes)

    def _rounded_but(self, kept: Sequence[_Convolution]) -> dict[str, mx.nd.NDArray]:
        """Return the rounded weights and their biases, but those of the convolutions that are kept."""
        if self._rounded is None:
            self._rounded = {}
            for one in self._found:
                moments = self._moments.get(one.weight)
                if moments is not None and moments.count:
                    weight, shift = round_weights(self._values[one.weight], moments, bias=one.bias is not None)
                    self._rounded[one.weight] = on_grid(weight)
                    if one.bias is not None:
                        self._rounded[one.bias] = self._values[one.bias] + shift
        exact = {name for one in kept for name in (one.weight, one.bias)}
        return {n: mx.nd.array(value, ctx=self._ctx) for n, value in self._rounded.items() if n not in exact}


def _output(node: Node) -> str:
    """Return MXNet's name of a node's first output."""
    return f"{node.name}_output"


def _convolutions(graph: Graph, fused: Graph) -> list[_Convolution]:
    """Return the convolutions of a network in order, found in both graphs by their weights, which no two share."""
    nodes = {graph.nodes[node.inputs[1][0]].name: node for node in graph.nodes if node.op == "Convolution"}
    found = {}
    for node in fused.nodes:
        if node.op == _CONVOLUTION:
            source = fused.nodes[node.inputs[0][0]]
            weight = fused.nodes[node.inputs[1][0]].name
            found[weight] = (node.name, source.name if source.op == "null" else _output(source))
    return [
        _Convolution(
            node, weight, graph.nodes[node.inputs[2][0]].name if len(node.inputs) == 3 else None, *found[weight]
        )
        for weight, node in nodes.items()
        if weight in found
    ]


def _last_convolutions(graph: Graph) -> list[Node]:
    """Return the convolutions that no other one follows."""
    behind: set[int] = set()  # nodes that a convolution follows
    for index in reversed(range(len(graph.nodes))):
        node = graph.nodes[index]
        if node.op == "Convolution" or index in behind:
            behind.update(source for source, _ in node.inputs)
    return [node for index, node in enumerate(graph.nodes) if node.op == "Convolution" and index not in behind]


def _block(symbol: mx.sym.Symbol, values: dict[str, mx.nd.NDArray], ctx: mx.Context) -> gluon.SymbolBlock:
    """Return the block that computes `symbol` with the given parameters."""
    parameters = gluon.ParameterDict()
    for name, value in values.items():
        parameter = parameters.get(name, shape=value.shape, dtype=value.dtype, grad_req="null", init=mx.init.Zero())
        parameter.initialize(ctx=ctx)
        parameter.set_data(value)
    block = gluon.SymbolBlock(symbol, mx.sym.var("data", dtype="float32"), params=parameters)
    block.hybridize(static_alloc=True, static_shape=True)
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
