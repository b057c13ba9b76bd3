"""FCN8s: the published layers, sizes, imperative == hybridised, gradients everywhere."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

from cbst_mx.training import sgd
from cbst_mx.training.phase import Schedule
from symbols import get_network
from symbols.backend import autograd, mx
from symbols.bilinear import bilinear_kernel, bilinear_matrix
from symbols.softmax import CrossEntropy
from symbols.vgg16 import VGG16


def small(hybrid=False, **options):
    mx.random.seed(0)
    network = get_network("fcn8s", 5, **{"width": 0.0625, "batch_norm": "batch", "dropout": 0.0, **options})
    network.initialize(mx.init.Xavier())
    network(mx.nd.zeros((1, 3, 32, 32)))
    if hybrid:
        network.hybridize(static_alloc=True, static_shape=True)
    return network


# Parameters of the published network: VGG-16 without its classifier has 14,714,688 (Simonyan and Zisserman count 138 M
# with it), fc6 and fc7 as convolutions 102,764,544 and 16,781,312; Long et al., table 1, give 134 M for FCN-VGG16. The
# totals add the scores and the upsampling of the authors' published voc-fcn8s definition for C classes.
@pytest.mark.parametrize(("classes", "total"), [(21, 134_489_759), (19, 134_456_985)])
def test_published_layers_at_width_1(classes, total):
    network = get_network("fcn8s", classes)
    network.initialize()
    shapes = {}
    # shapes without running 134 million weights: infer them from the symbol
    symbol = network(mx.sym.Variable("data"))
    arguments, _, _ = symbol.infer_shape(data=(1, 3, 64, 64))
    names = {p.name: key for key, p in network._collect_params_with_prefix().items()}
    for name, shape in zip(symbol.list_arguments(), arguments):
        if name in names:
            shapes[names[name]] = shape
    convolutions = [shapes[f"trunk.stage{s}.{i}.0.weight"] for s, n in enumerate((2, 2, 3, 3, 3), 1) for i in range(n)]
    channels = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    assert convolutions == [(c, b, 3, 3) for b, c in zip([3, *channels], channels)]
    assert shapes["fc6.0.weight"] == (4096, 512, 7, 7)
    assert shapes["fc7.0.weight"] == (4096, 4096, 1, 1)
    assert shapes["score_fr.weight"] == (classes, 4096, 1, 1)
    assert shapes["score_pool4.weight"] == (classes, 512, 1, 1)
    assert shapes["score_pool3.weight"] == (classes, 256, 1, 1)
    assert shapes["upscore2.weight"] == shapes["upscore_pool4.weight"] == (classes, classes, 4, 4)
    assert shapes["upscore8.weight"] == (classes, classes, 16, 16)
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == total


def test_only_learned_upsampling_is_trained():
    for setting, trained in (("frozen", False), ("learned", True)):
        parameters = small(upsampling=setting)._collect_params_with_prefix()
        requests = {parameters[f"{name}.weight"].grad_req for name in ("upscore2", "upscore_pool4", "upscore8")}
        assert requests == {"write" if trained else "null"}
    with pytest.raises(ValueError, match="upsampling must be one of frozen, learned, got 'free'"):
        small(upsampling="free")


@pytest.mark.parametrize("size", [(64, 160), (37, 45), (17, 17), (33, 100)])
def test_output_has_the_size_of_the_input(size):
    assert small(hybrid=True)(mx.nd.ones((2, 3, *size))).shape == (2, 5, *size)


def test_bilinear_upsampling_reproduces_a_ramp():
    kernel = bilinear_kernel(2, 4)
    ramp = mx.nd.array(np.tile(np.arange(6.0), (1, 2, 6, 1)))
    up = mx.nd.Deconvolution(
        ramp, mx.nd.array(kernel), kernel=(8, 8), stride=(4, 4), pad=(2, 2), num_filter=2, no_bias=True
    ).asnumpy()
    assert up.shape == (1, 2, 24, 24)
    # pixel centres: output i lies at (i + 0.5) / 4 - 0.5 of the input; the outermost pixels fade to the zero border
    np.testing.assert_allclose(up[0, 1, 12, 4:-4], (np.arange(4, 20) + 0.5) / 4 - 0.5, rtol=1e-6)


def outcome(network, x):
    """Return logits and the gradients of the images and of fc6, and the operators that the network is made of."""
    x.attach_grad()
    with autograd.record():
        logits = network(x)
    logits.backward(mx.nd.array(np.random.default_rng(1).normal(size=logits.shape)))
    operators = network(mx.sym.Variable("data")).tojson().count('"Deconvolution"')
    return (logits.asnumpy(), x.grad.asnumpy(), network.fc6[0].weight.grad().asnumpy()), operators


@pytest.mark.parametrize("size", [(64, 160), (37, 45)])
@pytest.mark.parametrize("hybrid", [False, True])
def test_frozen_upsampling_is_that_of_the_transposed_convolution(size, hybrid, monkeypatch):
    x = mx.nd.array(np.random.default_rng(0).normal(size=(2, 3, *size)))
    fast, passes = outcome(small(hybrid), x)
    monkeypatch.setattr("symbols.fcn8s._Upsampling.is_bilinear", lambda self: False)
    plain, layers = outcome(small(hybrid), x)
    assert (passes, layers) == (6, 3)  # rows and columns one after the other
    for one, other in zip(fast, plain):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * np.abs(other).max())  # another order of sums


def test_weights_that_a_training_learned_are_used_by_a_frozen_network(tmp_path):
    x = mx.nd.array(np.random.default_rng(2).normal(size=(1, 3, 33, 40)))
    learned = small(upsampling="learned")
    weights = learned.upscore8.weight.data() * 1.5
    learned.upscore8.weight.set_data(weights)
    expected = learned(x).asnumpy()
    learned.save_parameters(str(tmp_path / "learned.params"))
    small().save_parameters(str(tmp_path / "bilinear.params"))
    network = small(hybrid=True)
    before = network(x).asnumpy()  # compiled for bilinear weights
    assert np.abs(before - expected).max() > 0.1 * np.abs(before).max()
    for change in (
        lambda: network.load_parameters(str(tmp_path / "learned.params")),
        lambda: network.upscore8.weight.set_data(weights),
    ):
        change()
        np.testing.assert_allclose(network(x).asnumpy(), expected, rtol=1e-5, atol=1e-6)
        network.load_parameters(str(tmp_path / "bilinear.params"))
        np.testing.assert_array_equal(network(x).asnumpy(), before)


def test_upsampling_that_is_trained_from_now_on_gets_its_whole_gradient():
    x, gradients = mx.nd.array(np.random.default_rng(3).normal(size=(1, 3, 32, 32))), []
    for first in (False, True):
        network = small(hybrid=True)
        if first:
            network(x)
        network.upscore8.weight.grad_req = "write"
        with autograd.record():
            logits = network(x)
        logits.backward()
        gradients.append(network.upscore8.weight.grad().asnumpy())
    assert np.count_nonzero(gradients[0]) > 1000
    np.testing.assert_array_equal(*gradients)


def test_images_that_need_no_cut_and_others_take_turns():
    network, plain = small(hybrid=True), small()
    for size in ((64, 96), (37, 45), (64, 96), (40, 33), (64, 96)):
        x = mx.nd.array(np.random.default_rng(size[1]).normal(size=(1, 3, *size)))
        expected = plain(x).asnumpy()
        np.testing.assert_allclose(network(x).asnumpy(), expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())
        assert expected.shape[2:] == size
        assert network(mx.sym.Variable("data")).infer_shape(data=(1, 3, 37, 45))[1] == [(1, 5, 37, 45)]


def test_gpus_keep_the_transposed_convolution(monkeypatch):
    block = small().upscore8
    assert block.is_bilinear()
    monkeypatch.setattr(block.weight, "list_ctx", lambda: [mx.cpu(0), mx.gpu(0)])
    assert not block.is_bilinear()


@pytest.mark.parametrize("batch_norm", ["none", "batch", "frozen"])
def test_imperative_equals_hybridised_and_every_parameter_gets_a_gradient(batch_norm):
    results = []
    for hybrid in (False, True):
        network = small(hybrid, batch_norm=batch_norm, upsampling="learned")
        x = mx.nd.array(np.random.default_rng(0).normal(size=(2, 3, 40, 56)))
        x.attach_grad()
        with autograd.record():
            out = network(x)
            loss = (out**2).mean()
        loss.backward()
        results.append((out.asnumpy(), network(x).asnumpy(), x.grad.asnumpy()))
        for name, parameter in network._collect_params_with_prefix().items():
            if parameter.grad_req != "null":
                assert np.abs(parameter.grad().asnumpy()).sum() > 0, name
    for imperative, hybridised in zip(*results):
        np.testing.assert_allclose(hybridised, imperative, rtol=1e-5, atol=1e-6)


def test_frozen_batch_norm_keeps_its_statistics_while_training():
    for setting, moves in (("frozen", False), ("batch", True)):
        network = small(batch_norm=setting)
        name = "trunk.stage1.0.1.running_mean"
        before = network._collect_params_with_prefix()[name].data().asnumpy()
        with autograd.record():
            out = network(mx.nd.random.normal(shape=(2, 3, 32, 32)))
        out.backward()  # MXNet moves the statistics in the backward pass
        after = network._collect_params_with_prefix()[name].data().asnumpy()
        assert (before != after).any() == moves


def test_refusals():
    with pytest.raises(ValueError, match="network must be one of .*fcn8s.*, got 'unet'"):
        get_network("unet", 19)
    with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
        get_network("fcn8s", 1)
    with pytest.raises(ValueError, match="batch_norm must be one of none, batch, frozen, got 'sync'"):
        get_network("fcn8s", 3, batch_norm="sync")
    with pytest.raises(ValueError, match="num_classes must be at least 2, got 2.5"):
        get_network("fcn8s", 2.5)
    for width in (0, 1e9, float("inf"), True):
        with pytest.raises(ValueError, match=f"width must be greater than 0 and at most 8, got {width}"):
            get_network("fcn8s", 3, width=width)
    for rate in (7, 1.0, -0.5, "a", [0.5]):
        with pytest.raises(ValueError, match="dropout must be a rate in .0, 1., got"):
            get_network("fcn8s", 3, dropout=rate)
    for factors in ([1, 2, 3], 7, [0, 1], ["a", "b"], [1, float("nan")]):
        with pytest.raises(ValueError, match="skip_scale must hold two numbers above 0, for pool3 and pool4, got"):
            get_network("fcn8s", 3, skip_scale=factors)


def test_the_fully_connected_layers_can_be_smaller():
    network = small(hidden=24, kernel=3)
    shapes = {name: p.shape for name, p in network._collect_params_with_prefix().items()}
    assert shapes["fc6.0.weight"][::2] == (24, 3)
    assert shapes["fc7.0.weight"] == (24, 24, 1, 1)
    assert network(mx.nd.ones((1, 3, 33, 40))).shape == (1, 5, 33, 40)
    assert get_network("fcn8s", 5).fc6[0].weight.shape == (4096, 0, 7, 7)  # as published; inputs not known yet
    for options, sentence in (
        ({"hidden": 0}, "hidden must be a whole number of channels from 1 to 32768, got 0"),
        ({"hidden": 1.5}, "hidden must be a whole number of channels from 1 to 32768, got 1.5"),
        ({"kernel": 4}, "kernel must be an odd number of pixels from 1 to 31, got 4"),
        ({"kernel": True}, "kernel must be an odd number of pixels from 1 to 31, got True"),
    ):
        with pytest.raises(ValueError, match=sentence):
            get_network("fcn8s", 3, **options)


def test_relus_behind_the_poolings_give_the_same_numbers_and_gradients():
    rng = np.random.default_rng(6)
    stage = VGG16(width=1 / 32).stage3
    stage.initialize(mx.init.Uniform(1.0))
    *before, pooling, relu = stage
    images = rng.normal(size=(2, 4, 13, 18)).astype(np.float32)
    images[:, :, 4:9] = 0  # windows of equal numbers
    slopes = mx.nd.array(rng.normal(size=(2, 8, 7, 9)))
    results = []
    for last in ((pooling, relu), (relu, pooling)):
        x = mx.nd.array(images)
        x.attach_grad()
        with autograd.record():
            value = x
            for block in (*before, *last):
                value = block(value)
            (value * slopes).sum().backward()
        results.append((value.asnumpy(), x.grad.asnumpy()))
    assert 0 < (results[0][0] == 0).mean() < 1
    for first, second in zip(*results):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("size", [(40, 56), (37, 45)])
def test_segments_compose_to_the_network(size):
    network = small(skip_scale=(0.5, 0.25))
    x = mx.nd.random.normal(shape=(1, 3, *size))
    maps = [x]
    for segment in network.segments():
        result = segment(*maps)
        maps = result if isinstance(result, (list, tuple)) else [result]
    (logits,) = maps
    assert (logits == network(x)).asnumpy().all()
    names = [name for segment in network.segments() for name in segment.collect_params()]
    assert sorted(names) == sorted(network.collect_params())  # each parameter in one of them


def test_what_is_left_to_the_loss_is_the_last_upsampling():
    network = small(hybrid=True)
    for size in ((64, 96), (37, 45), (64, 96)):
        x = mx.nd.array(np.random.default_rng(size[1]).normal(size=(2, 3, *size)))
        expected = network(x).asnumpy()
        with network.without_last_upsampling() as factor:
            with network.without_last_upsampling():
                pass
            scores = network(x)
            before = [(x,)]
            for segment in network.segments():
                passed = segment(*before[-1])
                before.append(passed if isinstance(passed, (list, tuple)) else (passed,))
        assert factor == 8
        assert scores.shape == (2, 5, -(-size[0] // 8), -(-size[1] // 8))
        np.testing.assert_allclose(before[-1][0].asnumpy(), scores.asnumpy(), rtol=1e-5, atol=1e-6)
        assert [len(maps) for maps in before] == [1, 1, 1, 1, 2, 3, 3, 1]  # images are not needed for their size
        down, across = (bilinear_matrix(*sides) for sides in zip(scores.shape[2:], (8, 8), size))
        upsampled = np.einsum("hi,bcij,wj->bchw", down, scores.asnumpy(), across)
        np.testing.assert_allclose(upsampled, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
        np.testing.assert_array_equal(network(x).asnumpy(), expected)  # whole again


def test_an_upsampling_that_is_no_bilinear_one_is_left_to_nobody():
    for network in (small(upsampling="learned"), small()):
        network.upscore8.weight.set_data(network.upscore8.weight.data() * 1.5)
        with network.without_last_upsampling() as factor:
            assert factor == 1
            assert network(mx.nd.zeros((1, 3, 32, 40))).shape == (1, 5, 32, 40)


@pytest.mark.parametrize(("size", "contexts"), [((48, 64), 1), ((48, 64), 2), ((37, 45), 1)])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_leaves_the_upsampling_to_the_loss(size, contexts, checkpointing, monkeypatch):
    rng = np.random.default_rng(4)
    images = rng.normal(size=(4, 3, *size)).astype(np.float32)
    labels = rng.integers(0, 5, (4, *size)).astype(np.float32)
    labels[1] = 255

    factors = []

    class Spied(CrossEntropy):
        def __init__(self, labels, valid, count, factor):
            factors.append(factor)
            super().__init__(labels, valid, count, factor)

    monkeypatch.setattr("cbst_mx.training.losses.CrossEntropy", Spied)

    def trained():
        network = small(hybrid=True, batch_norm="none")
        record = sgd.train(
            network,
            lambda first: ((images, labels) for _ in range(3 - first)),
            schedule=Schedule(0.1, 3),
            ctx=[mx.cpu(index) for index in range(contexts)],
            seed=0,
            gradient_checkpointing=checkpointing,
        )
        assert network(mx.nd.zeros((1, 3, 32, 40))).shape == (1, 5, 32, 40)  # as ever, behind the training
        return record.losses, network._collect_params_with_prefix()

    losses, parameters = trained()
    monkeypatch.setattr("symbols.fcn8s.FCN8s.without_last_upsampling", lambda self: contextlib.nullcontext(1))
    plain_losses, plain = trained()
    assert factors == [8] * 3 * contexts + [1] * 3 * contexts
    np.testing.assert_allclose(losses, plain_losses, rtol=1e-5)  # other orders of sums
    for name, parameter in parameters.items():
        value, other = parameter.data().asnumpy(), plain[name].data().asnumpy()
        np.testing.assert_allclose(value, other, rtol=1e-4, atol=1e-5 * np.abs(other).max(), err_msg=name)
