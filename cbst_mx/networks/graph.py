"""The graph of operators of a network, as MXNet writes it to JSON: what depends on what, and exact rewrites.

Plain Python on names and numbers; :mod:`.forms` turns graphs into blocks again. Nodes stand in an order in
which every node follows its inputs. "Rows" can be read as "columns" throughout: axis 0 or 1 of the image.
"""

from __future__ import annotations

import ast
import json
import math
from fractions import Fraction
from typing import Mapping, NamedTuple

import numpy as np

from cbst_mx.errors import ConfigError

__all__ = ["Extent", "Graph", "Node", "Piece", "extents", "fold_batch_norms", "pieces", "pooled_last"]

_INPUT = "data"
_SAME_PLACE = (
    "Activation", "BatchNorm", "Dropout", "_copy", "_mul_scalar", "amp_cast", "amp_multicast", "elemwise_add",
    "identity", "relu",
)  # fmt: skip


class Node(NamedTuple):
    """One operator, or with the operator "null" a variable.

    Attributes
    ----------
    op, name : str
        Operator, and the node's name.
    attrs : dict of str to str
        The operator's settings, as MXNet writes them.
    inputs : tuple of (int, int)
        Index of a node, and which of its outputs.
    """

    op: str
    name: str
    attrs: Mapping[str, str]
    inputs: tuple[tuple[int, int], ...]

    def pair(self, key: str, axis: int, default: int) -> int:
        """Return the value of a setting such as kernel, stride or pad along `axis`."""
        values = ast.literal_eval(self.attrs.get(key, "()"))
        return values[axis] if values else default


class Graph(NamedTuple):
    """Nodes, each after its inputs, and the index of the node whose first output is the network's."""

    nodes: tuple[Node, ...]
    head: int

    @classmethod
    def from_json(cls, text: str) -> Graph:
        """Read a symbol of one output, as ``Symbol.tojson`` writes it; names that occur twice are made different.

        MXNet gives two nodes the same name where blocks have no name of their own, and calibration and other runtimes
        tell nodes apart by name.
        """
        content = json.loads(text)
        seen: set[str] = set()
        nodes = []
        for index, node in enumerate(content["nodes"]):
            name = node["name"] if node["name"] not in seen else f"{node['name']}_{index}"
            seen.add(name)
            inputs = tuple((source, output) for source, output, *_ in node["inputs"])
            nodes.append(Node(node["op"], name, node.get("attrs", {}), inputs))
        ((head, _, *_),) = content["heads"]
        return cls(tuple(nodes), head)

    def to_json(self) -> str:
        """Return the graph in the form that ``mxnet.symbol.load_json`` reads."""
        nodes = [
            {"op": n.op, "name": n.name, "attrs": dict(n.attrs), "inputs": [[*entry, 0] for entry in n.inputs]}
            for n in self.nodes
        ]
        variables = [index for index, node in enumerate(self.nodes) if node.op == "null"]
        version = {"mxnet_version": ["int", 10901]}
        return json.dumps({"nodes": nodes, "arg_nodes": variables, "heads": [[self.head, 0, 0]], "attrs": version})

    @property
    def input(self) -> int:
        """Index of the variable that holds the images."""
        return next(index for index, node in enumerate(self.nodes) if node.op == "null" and node.name == _INPUT)

    def flow(self) -> list[int]:
        """Return the nodes whose values depend on the images, the images' own variable first."""
        found = {self.input}
        for index, node in enumerate(self.nodes):
            if any(source in found for source, _ in node.inputs):
                found.add(index)
        return sorted(found)

    def between(self, start: int, end: int) -> Graph:
        """Return the graph that computes node `end` from the value of node `start`, now the variable ``data``.

        What does not depend on `start` (parameters) is included; everything else between must not bypass `start`.
        """
        needed, queue = set(), [end]
        while queue:
            index = queue.pop()
            if index not in needed:
                needed.add(index)
                if index != start:
                    queue.extend(source for source, _ in self.nodes[index].inputs)
        kept = sorted(needed)
        place = {old: new for new, old in enumerate(kept)}
        nodes = []
        for old in kept:
            node = self.nodes[old]
            inputs = () if old == start else tuple((place[source], output) for source, output in node.inputs)
            nodes.append(Node("null", _INPUT, {}, ()) if old == start else node._replace(inputs=inputs))
        return Graph(tuple(nodes), place[end])


class Extent(NamedTuple):
    """Input rows that a row of a map depends on: row o on rows stride * o + first to stride * o + last.

    Attributes
    ----------
    stride : Fraction
        Input rows per row of the map; below 1 behind an upsampling.
    first, last : Fraction
        First and last of these rows, inclusive; only whole rows between them count.
    """

    stride: Fraction
    first: Fraction
    last: Fraction

    def rows(self, start: int, end: int) -> tuple[int, int]:
        """Return the input's rows [start, end) that rows [`start`, `end`) of the map depend on, borders ignored."""
        return math.ceil(self.stride * start + self.first), math.floor(self.stride * (end - 1) + self.last) + 1


def extents(graph: Graph, axis: int) -> dict[int, Extent]:
    """Return what every map depends on, by the index of its node: the receptive fields.

    Parameters
    ----------
    graph : Graph
        The network; its nodes that do not depend on the images are left out.
    axis : {0, 1}
        Rows or columns.

    Raises
    ------
    ConfigError
        If an operator's reach is not known.
    """
    flow = graph.flow()
    found = {flow[0]: Extent(Fraction(1), Fraction(0), Fraction(0))}
    for index in flow[1:]:
        node = graph.nodes[index]
        below = [found[source] for source, _ in node.inputs if source in found]
        stride, first, last = below[0]
        if node.op in ("Convolution", "Pooling") and node.attrs.get("global_pool", "False") == "False":
            step, pad = node.pair("stride", axis, 1), node.pair("pad", axis, 0)
            reach = (node.pair("kernel", axis, 1) - 1) * node.pair("dilate", axis, 1) - pad
            found[index] = Extent(stride * step, first - stride * pad, last + stride * reach)
        elif node.op == "Deconvolution":
            step, pad = node.pair("stride", axis, 1), node.pair("pad", axis, 0)
            reach = (node.pair("kernel", axis, 1) - 1) * node.pair("dilate", axis, 1) - pad
            # input row i adds to the rows i * step - pad + tap
            found[index] = Extent(stride / step, first - stride * reach / step, last + stride * pad / step)
        elif node.op == "slice_like":
            found[index] = below[0]  # of the second input only the shape is used
        elif node.op in _SAME_PLACE and len({extent.stride for extent in below}) == 1:
            found[index] = Extent(stride, min(e.first for e in below), max(e.last for e in below))
        else:
            raise ConfigError(f"the receptive field of operator {node.op} ({node.name}) is not known")
    return found


class Piece(NamedTuple):
    """A part of a network that has one map as input and one as output.

    Attributes
    ----------
    graph : Graph
        Computes the output from the input.
    extent : Extent
        What a row of the output depends on, in rows of the input.
    image_stride : Fraction
        Image rows per row of the output.
    align : int
        A band of the input must start at a multiple of this row for all its strides to fall as in the whole map.
    large : bool
        Whether a map inside, or its output, is large.
    """

    graph: Graph
    extent: Extent
    image_stride: Fraction
    align: int
    large: bool


def pieces(graph: Graph) -> list[Piece]:
    """Split a network at small maps that everything behind depends on.

    A map is large when it has more than a quarter of the numbers of the network's largest, the output aside. The output
    is needed as a whole, but where it is large, what computes it needs as much memory again, so that runs in bands too.
    Neighbours without a large map are one piece. A slice to the size of the images as the last operator is left out.
    """
    last = graph.nodes[graph.head]
    if last.op == "slice_like" and last.inputs[1][0] == graph.input:
        graph = graph.between(graph.input, last.inputs[0][0])
    rows, columns = (extents(graph, axis) for axis in (0, 1))
    flow = graph.flow()
    channels: dict[int, int] = {flow[0]: 3}
    numbers: dict[int, Fraction] = {}  # per pixel of the images
    for index in flow[1:]:
        node = graph.nodes[index]
        below = next(source for source, _ in node.inputs if source in channels)
        channels[index] = int(node.attrs.get("num_filter", channels[below]))
        numbers[index] = channels[index] / (rows[index].stride * columns[index].stride)
    limit = max((numbers[index] for index in flow[1:-1]), default=Fraction(0)) / 4
    several = {source for node in graph.nodes for source, output in node.inputs if output}  # more than one output used
    last_use = {source: index for index in flow[1:] for source, _ in graph.nodes[index].inputs}
    found: list[Piece] = []
    start, whole_from = flow[0], flow[0]
    for place, end in enumerate(flow[1:], start=1):
        bypassed = any(last_use.get(index, 0) > end for index in flow[:place]) or end in several
        if end != graph.head and (bypassed or numbers[end] > limit):
            continue
        large = any(start < index and numbers[index] > limit for index in flow[1 : place + 1])
        if found and not large and not found[-1].large:
            found.pop()
        else:
            whole_from = start
        part = graph.between(whole_from, end)
        inside = extents(part, 0)
        align = max(extent.stride.numerator for extent in inside.values())
        found.append(Piece(part, inside[part.head], rows[end].stride, align, large))
        start = end
    return found


def pooled_last(graph: Graph) -> Graph:
    """Return a graph with every ReLU that reads nothing but a max pooling put before it.

    The numbers are the same, in either order. Behind the pooling a ReLU has less to do; next to its convolution the
    two are one operator in oneDNN, and its result has no sign, which 8 bits make use of.
    """
    nodes = list(graph.nodes)
    readers = [source for node in nodes for source, _ in node.inputs]
    for index, node in enumerate(nodes):
        if node.op != "Activation" or node.attrs.get("act_type") != "relu":
            continue
        ((source, _),) = node.inputs
        pooling = nodes[source]
        if pooling.op == "Pooling" and pooling.attrs.get("pool_type", "max") == "max" and readers.count(source) == 1:
            nodes[source] = node._replace(inputs=pooling.inputs)
            nodes[index] = pooling._replace(inputs=((source, 0),))
    return graph._replace(nodes=tuple(nodes))


def fold_batch_norms(graph: Graph, parameters: Mapping[str, np.ndarray]) -> tuple[Graph, dict[str, np.ndarray], int]:
    """Put batch norms with fixed statistics into the convolutions before them.

    A batch norm is folded where it alone reads the output of a convolution. In a pre-activated network such as
    ResNet-38 that holds for the batch norms inside the units and behind the first convolution; those that read a sum
    stay. Equal up to rounding: W' = W g / sqrt(v + eps), b' = (b - m) g / sqrt(v + eps) + beta.

    Parameters
    ----------
    graph : Graph
        The network.
    parameters : mapping of str to ndarray
        Values by the names of the graph's variables.

    Returns
    -------
    graph : Graph
        The network without the folded batch norms.
    parameters : dict of str to ndarray
        Values that the new graph needs; arrays that did not change are the given ones.
    folded : int
        Number of batch norms that were folded.
    """
    nodes = list(graph.nodes)
    values = dict(parameters)
    readers: dict[int, set[int]] = {}
    for index, node in enumerate(nodes):
        for source, _ in node.inputs:
            readers.setdefault(source, set()).add(index)
    folded = 0
    for index, node in enumerate(nodes):
        if node.op != "BatchNorm" or node.attrs.get("axis", "1") != "1":
            continue
        convolution = nodes[node.inputs[0][0]]
        if convolution.op != "Convolution" or readers[node.inputs[0][0]] != {index}:
            continue
        name = nodes[convolution.inputs[1][0]].name
        if name not in values or len(readers[convolution.inputs[1][0]]) > 1:  # a weight that is computed or shared
            continue
        gamma, beta, mean, variance = (values[nodes[entry].name].astype(np.float64) for entry, _ in node.inputs[1:])
        if node.attrs.get("fix_gamma", "True") == "True":  # MXNet then ignores what is stored
            gamma = np.ones_like(gamma)
        scale = gamma / np.sqrt(variance + float(node.attrs.get("eps", "1e-3")))
        bias = values[nodes[convolution.inputs[2][0]].name] if len(convolution.inputs) == 3 else 0.0
        shape = (-1,) + (1,) * (values[name].ndim - 1)
        values[name] = (values[name] * scale.reshape(shape)).astype(np.float32)
        # the batch norm's shift takes the place of the bias: it has the right shape and no other reader
        values[nodes[node.inputs[2][0]].name] = ((bias - mean) * scale + beta).astype(np.float32)
        # the batch norm's place, not the convolution's: behind all of its inputs
        attrs = {**convolution.attrs, "no_bias": "False"}
        nodes[index] = convolution._replace(attrs=attrs, inputs=(*convolution.inputs[:2], node.inputs[2]))
        folded += 1
    result = Graph(tuple(nodes), graph.head).between(graph.input, graph.head)
    kept = {node.name for node in result.nodes}
    return result, {name: array for name, array in values.items() if name in kept}, folded
