"""int8: weights on the grid that MXNet uses, roundings that cancel, and as many convolutions as keep the classes."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

from cbst_mx.networks.forms import network_graph
from cbst_mx.networks.graph import Node
from cbst_mx.networks.int8 import SAME_CLASS, _Calibrated, quantised
from cbst_mx.networks.rounding import Moments, patches, round_weights
from symbols.backend import gluon, mx
from tests.test_forms import LOOKS, pictures, random_network


@pytest.mark.parametrize(
    "settings", [{}, {"strides": 2}, {"dilation": 2}, {"strides": (2, 1), "dilation": (1, 3)}], ids=str
)
def test_patches_are_what_a_convolution_reads(settings):
    convolution = gluon.nn.Conv2D(4, (3, 2), in_channels=3, use_bias=False, **settings)
    convolution.initialize(mx.init.Xavier())
    maps = mx.nd.random.normal(shape=(2, 3, 9, 11))
    expected = convolution(maps).asnumpy()
    (node,) = (node for node in network_graph(convolution).nodes if node.op == "Convolution")
    weight = convolution.weight.data().asnumpy()
    got = patches(maps.asnumpy(), node) @ weight.reshape(4, -1).T
    # float64 here, float32 there
    np.testing.assert_allclose(got, expected.transpose(0, 2, 3, 1).reshape(-1, 4), rtol=1e-5, atol=1e-6)


def test_patches_of_large_maps_are_thinned_and_of_tiny_ones_none():
    node = Node("Convolution", "c", {"kernel": "(3, 3)"}, ())
    assert patches(np.zeros((1, 2, 300, 400), np.float32), node).shape[0] <= 4096
    assert patches(np.zeros((1, 2, 300, 400), np.float32), node).shape[0] > 2000
    assert patches(np.zeros((1, 2, 2, 40), np.float32), node).shape == (0, 18)


def readings(count, length, seed):
    """Return what stands behind a ReLU in neighbouring pixels: nothing negative, and much in common."""
    mixing = np.random.default_rng(7).normal(size=(3, length))
    rng = np.random.default_rng(seed)
    return np.maximum(rng.normal(size=(count, 3)) @ mixing + 0.3 * rng.normal(size=(count, length)), 0)


@pytest.mark.parametrize("bias", [True, False])
def test_rounded_weights_err_less_than_nearest_ones(bias):
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(8, 5, 3, 3)).astype(np.float32)
    weight[3] = 0
    seen, new = readings(2000, 45, 1), readings(2000, 45, 2)
    moments = Moments(45)
    for part in np.array_split(seen, 3):
        moments.add(part)
    rounded, shift = round_weights(weight, moments, bias=bias)
    step = np.abs(weight).reshape(8, -1).max(axis=1).reshape(8, 1, 1, 1) / 127
    step[3] = 1
    codes = rounded / step
    np.testing.assert_allclose(codes, np.rint(codes), atol=1e-3)  # float32
    assert np.abs(codes).max() < 127.001
    np.testing.assert_allclose(np.abs(rounded).reshape(8, -1).max(axis=1), 127 * step.ravel() * (np.arange(8) != 3))

    def error(values, other):
        return values @ (other - weight).reshape(8, -1).astype(np.float64).T

    nearest = error(new, np.rint(weight / step) * step)
    assert ((error(new, rounded) + shift) ** 2).mean() < 0.25 * (nearest**2).mean()
    if bias:
        np.testing.assert_allclose(error(seen, rounded).mean(axis=0), -shift, atol=1e-5)  # of float32 numbers
    else:
        assert not shift.any()


def test_mxnet_computes_with_exactly_the_weights_of_the_grid(monkeypatch):
    """Each pixel reads one weight alone; a step of it is nearly two of the 255 of the output."""
    rng = np.random.default_rng(1)
    codes = rng.integers(1, 127, (8, 16))
    codes[:, 0] = 127
    weight = codes * rng.uniform(0.9, 1, (8, 1)) / 127
    network = gluon.nn.Conv2D(8, 1, in_channels=16, activation="relu", prefix="one_")
    network.initialize()
    network.weight.set_data(mx.nd.array(weight[..., None, None]))
    network.stride, network.smallest = 1, 1
    images = mx.nd.array(255 * np.eye(16).reshape(1, 16, 16, 1))
    errors = {}
    for name, most in (("as they are", 0), ("on the grid", 1200)):
        monkeypatch.setattr("cbst_mx.networks.int8._MOST", most)
        made = _Calibrated(network, mx.cpu())
        made.watch(images)
        made._last = set()
        block, count = made.block(0)
        assert count == 1
        got = block(images).asnumpy()[0, :, :, 0]
        errors[name] = np.abs(got - 254.5 * weight).max()  # 255 is cut as the largest weight is
    step = 255 * weight.max() / 255.5
    assert errors["on the grid"] < 0.51 * step
    assert errors["as they are"] > step


def test_int8_keeps_the_classes_that_it_promises():
    network = random_network("resnet38", width=0.03125)
    images = pictures(2)
    _, loose = quantised(network, images, ctx=mx.cpu(), same_class=0, **LOOKS)
    block, near = quantised(network, images, ctx=mx.cpu(), **LOOKS)
    # random weights leave logits close together, so the first try is not enough
    assert loose.same_class < SAME_CLASS <= near.same_class
    assert near.int8 < loose.int8 < near.convolutions == loose.convolutions
    assert near.relative_error < loose.relative_error
    operators = [node.op for node in network_graph(block).nodes]
    assert ("_contrib_quantize_v2" in operators) == (near.int8 > 0)


def test_tries_leave_nothing_in_memory_and_run_the_original_twice(monkeypatch):
    network, calls, made = random_network("fcn8s", width=0.03125), [], []
    network.register_forward_hook(lambda block, inputs, result: calls.append(type(result)))
    block_of = _Calibrated.block

    def watched(self, first):
        assert not [one for one in made if one() is not None]
        block, count = block_of(self, first)
        made.append(weakref.ref(block))
        return block, count

    monkeypatch.setattr(_Calibrated, "block", watched)
    gc.disable()  # Python must not happen to look for circles
    try:
        quantised(network, pictures(2), ctx=mx.cpu(), same_class=1.1, **LOOKS)
    finally:
        gc.enable()
    assert len(made) > 3
    assert calls.count(mx.nd.NDArray) == 2  # each image at the end, and once in the form that is calibrated


def test_int8_ends_with_float32_where_nothing_less_keeps_the_classes():
    network = random_network("fcn8s", width=0.03125)
    images = pictures(1)
    block, near = quantised(network, images, ctx=mx.cpu(), same_class=1.1, **LOOKS)
    assert near.int8 == 0
    assert near.same_class > 0.9999
    assert near.relative_error < 1e-5  # batch norms are folded, sums in another order


def test_rounding_brings_networks_nearer(monkeypatch):
    network = random_network("fcn8s", width=0.03125, batch_norm="frozen")
    images = pictures(3)
    _, near = quantised(network, images, ctx=mx.cpu(), same_class=0, **LOOKS)
    monkeypatch.setattr("cbst_mx.networks.int8._MOST", 0)
    _, nearest = quantised(network, images, ctx=mx.cpu(), same_class=0, **LOOKS)
    assert near.int8 == nearest.int8
    assert near.relative_error < 0.9 * nearest.relative_error
