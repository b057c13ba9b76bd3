"""Graphs of operators: receptive fields against what a lit pixel reaches, pieces, names, rewrites."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest

from cbst_mx.errors import ConfigError
from cbst_mx.networks.graph import Graph, extents, fold_batch_norms, pieces, pooled_last
from symbols import get_network
from symbols.backend import gluon, mx


def graph_of(network):
    return Graph.from_json(network(mx.sym.var("data")).tojson())


def published(name):
    return graph_of(get_network(name, 19))  # width 1: shapes only, nothing is allocated


def reached(name, axis, length, phases):
    """Return the places of the output that a lit pixel reaches, for pixels at `phases` places along `axis`.

    Weights are positive, everything else is black and biases are 0, so whatever depends on the pixel is positive: there
    is no sum of large numbers in which a small change could be lost.
    """
    network = get_network(name, 2, width=0.03125)
    network.initialize(mx.init.Uniform(1.0))
    network(mx.nd.zeros((1, 3, 32, 32)))
    for key, parameter in network.collect_params().items():
        if key.endswith("weight"):
            parameter.set_data(mx.nd.abs(parameter.data()) + 0.1)
    images = np.zeros((len(phases), 3, length, 32), dtype=np.float32)
    for index, place in enumerate(phases):
        images[index, :, place, 16] = 1.0
    if axis == 1:
        images = np.ascontiguousarray(images.swapaxes(2, 3))
    lit = network(mx.nd.array(images)).asnumpy().max(axis=(1, 3 - axis)) > 0  # (B, h or w)
    return [np.flatnonzero(row) for row in lit]


def of_the_output(graph, axis=0):
    return extents(graph, axis)[graph.head]


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("name", "stride", "size"), [("fcn8s", 1, 491), ("resnet38", 8, 941)])
def test_receptive_field_is_what_a_lit_pixel_reaches(name, stride, size, axis):
    field = of_the_output(published(name), axis)
    assert (field.stride, field.last - field.first + 1) == (stride, size)
    period = 32 if name == "fcn8s" else 8  # after which pixels lie at the strides as before
    phases = list(range(512, 512 + period))
    distances = set()
    for pixel, places in zip(phases, reached(name, axis, 1088, phases)):
        distances.update(pixel - stride * int(place) for place in places)
    assert (min(distances), max(distances)) == (field.first, field.last)


def test_extents_of_single_layers_worked_by_hand():
    def field(layer):
        layer.initialize()
        return of_the_output(graph_of(layer))

    # output row o of a 3 x 3 convolution, dilation 12, padding 12: rows o - 12 to o + 12
    assert field(gluon.nn.Conv2D(2, 3, padding=12, dilation=12, in_channels=1)) == (1, -12, 12)
    assert field(gluon.nn.Conv2D(2, 3, strides=2, padding=1, in_channels=1)) == (2, -1, 1)
    assert field(gluon.nn.MaxPool2D(2, 2)) == (2, 0, 1)
    up = field(gluon.nn.Conv2DTranspose(1, 4, strides=2, padding=1, in_channels=1))
    # input row i lights rows 2 i - 1 to 2 i + 2; so row 4 comes from rows 1 and 2, row 5 from 2 and 3
    assert up.stride == Fraction(1, 2)
    assert up.rows(4, 5) == (1, 3)
    assert up.rows(5, 6) == (2, 4)
    assert up.rows(4, 6) == (1, 4)


def test_an_operator_without_known_reach_is_refused():
    with pytest.raises(ConfigError, match="the receptive field of operator Pooling .* is not known"):
        extents(graph_of(gluon.nn.GlobalAvgPool2D()), 0)


def test_pieces_of_the_published_networks():
    # (image stride, margin above in rows of the piece's input, large) from the layers. VGG's first two stages are two
    # 3 x 3 convolutions and a pooling each; then come 3 x 1 + 3 x 2 + 3 x 4 from its other convolutions, 24 from fc6,
    # 8 and 4 from the upsampling. ResNet-38's largest maps, 64 numbers per pixel, are in level 1 and in level 7.
    cut = {name: pieces(pooled_last(published(name))) for name in PARTS}
    assert {name: [(p.image_stride, -p.extent.first, p.large) for p in cut[name]] for name in PARTS} == PARTS


PARTS = {
    "fcn8s": [(2, 2, True), (4, 2, True), (8, 57, False), (1, Fraction(11, 8), True)],
    "resnet38": [(4, 18, True), (8, 49, False), (8, 20, True), (8, 12, False)],
}


def test_equal_names_become_different_and_the_json_can_be_read():
    network = get_network("resnet38", 3, width=0.03125)
    text = network(mx.sym.var("data")).tojson()
    before = [node["name"] for node in json.loads(text)["nodes"]]
    assert len(set(before)) < len(before)  # MXNet's own names do collide
    graph = Graph.from_json(text)
    names = [node.name for node in graph.nodes]
    assert len(set(names)) == len(names)
    again = mx.sym.load_json(graph.to_json())
    assert again.list_arguments() == network(mx.sym.var("data")).list_arguments()
    assert Graph.from_json(again.tojson()) == graph


def test_batch_norms_are_folded_only_where_they_alone_read_a_convolution():
    data = mx.sym.var("data")
    inner = mx.sym.Convolution(data, kernel=(1, 1), num_filter=2, name="inner")
    shared = mx.sym.Convolution(mx.sym.BatchNorm(inner, name="a"), kernel=(1, 1), num_filter=2, name="shared")
    graph = Graph.from_json((mx.sym.BatchNorm(shared, name="b", fix_gamma=False) + shared).tojson())
    values = {n.name: np.full(2, 4.0, np.float32) for n in graph.nodes if n.op == "null" and n.name != "data"}
    values.update(inner_weight=np.ones((2, 3, 1, 1), np.float32), shared_weight=np.ones((2, 2, 1, 1), np.float32))
    result, new, count = fold_batch_norms(graph, values)
    assert count == 1
    assert [node.name for node in result.nodes if node.op == "BatchNorm"] == ["b"]
    assert set(new) == {node.name for node in result.nodes if node.op == "null"} - {"data"}
    # by hand: gamma is fixed to 1, variance 4, epsilon 1e-3: scale 0.49994; bias 4 - mean 4, plus beta 4
    np.testing.assert_allclose(new["inner_weight"], 1 / np.sqrt(4.001), rtol=1e-6)
    np.testing.assert_allclose(new["a_beta"], 4.0, rtol=1e-6)
    assert new["shared_weight"] is values["shared_weight"]
    assert values["inner_weight"].max() == 1.0


def layers(graph):
    """Return the operators that the images pass, in their order."""
    return [graph.nodes[index].op for index in graph.flow() if graph.nodes[index].op != "null"]


def test_relus_are_put_before_the_poolings_that_they_alone_read():
    graph = graph_of(get_network("fcn8s", 5, width=0.03125))
    new = pooled_last(graph)
    behind = ["Convolution", "Pooling", "Activation"]
    found = [[layers(one)[start : start + 3] for start in range(len(layers(one)))] for one in (graph, new)]
    assert [one.count(behind) for one in found] == [5, 0]
    assert [one.count(["Convolution", "Activation", "Pooling"]) for one in found] == [0, 5]
    assert sorted(node.name for node in new.nodes) == sorted(node.name for node in graph.nodes)
    x = mx.sym.var("data")
    average = mx.sym.Activation(mx.sym.Pooling(x, kernel=(2, 2), pool_type="avg"), act_type="relu")
    shared = mx.sym.Pooling(x, kernel=(2, 2), pool_type="max")
    for other in (average, mx.sym.Activation(shared, act_type="relu") + shared):
        assert pooled_last(Graph.from_json(other.tojson())) == Graph.from_json(other.tojson())
