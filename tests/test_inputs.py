"""The images that a file of weights was trained on: stated, compared with what the weights tell, fed by readers."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import cbst_mx
from cbst_mx.cli import main
from cbst_mx.data.transforms import normalise
from cbst_mx.errors import ConfigError
from cbst_mx.networks import inputs, parameters
from cbst_mx.networks.build import build_network
from cbst_mx.networks.export import export_network
from cbst_mx.networks.inputs import InputForm
from cbst_mx.networks.spec import NetworkSpec
from symbols.backend import mx

CAFFE_MEAN = np.array([123.68, 116.779, 103.939])
# root mean squares of the first layers of real networks (red, green, blue), measured; the text of `inputs` names them
FIRST_LAYERS = {
    "HED's VGG-16, from Caffe's": (64, (0.181, 0.204, 0.158)),
    "CRAFT's VGG-16, from torchvision's": (64, (0.176, 0.225, 0.130)),
    "EfficientNet-Lite0": (32, (0.547, 1.133, 0.449)),
    "R-Net of MTCNN": (28, (0.268, 0.228, 0.189)),
}


def photograph_filters(filters, sizes, seed=0):
    """Return first-layer weights (filters, 3, 3, 3) as trained ones are: colours go together, with the given sizes."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(filters, 1, 3, 3)) + 0.4 * rng.normal(size=(filters, 3, 3, 3))
    weight /= np.sqrt((weight**2).mean(axis=(0, 2, 3), keepdims=True))
    return (weight * np.reshape(sizes, (1, 3, 1, 1))).astype(np.float32)


def vgg(width=0.125, *, spread=1.0, seed=0, options=None):
    """Return an FCN8s whose trunk looks trained on images of `spread`: at it, images and biases weigh alike."""
    network = build_network(NetworkSpec("fcn8s", 19, {"width": width, **(options or {})}), mx.cpu(), seed=seed)
    rng = np.random.default_rng(seed)
    _, weight = inputs.first_convolution(network)
    weight.set_data(mx.nd.array(photograph_filters(weight.shape[0], (0.18, 0.2, 0.11)) / spread))
    for name, parameter in network._collect_params_with_prefix("").items():
        if name.startswith("trunk.") and name.endswith("bias"):
            parameter.set_data(mx.nd.array(rng.normal(0, 0.15, parameter.shape)))
    return network


def as_file(path, network):
    """Write the trunk of `network` with the names of torchvision's VGG-16."""
    indices = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    values = [p.data() for name, p in network._collect_params_with_prefix().items() if name.startswith("trunk.")]
    names = [f"features.{index}.{part}" for index in indices for part in ("weight", "bias")]
    mx.nd.save(str(path), dict(zip(names, values)))
    return path


def importing(file, out, *arguments, width=0.125):
    command = ["import-weights", file, "--network", "fcn8s", "--num-classes", 19, "--out", out, "--width", width]
    result = CliRunner().invoke(main, [str(word) for word in (*command, "--allow-missing", "fc*", *arguments)])
    assert result.exit_code == 0, result.output
    return result


# ------------------------------------------------------------------------------------------------ what is fed to it


def test_order_and_range_change_only_how_the_same_image_is_written(tmp_path):
    original = vgg(spread=57.0)
    file, out = as_file(tmp_path / "caffe.params", original), tmp_path / "out.params"
    result = importing(file, out, "--channels", "bgr", "--range", "caffe")
    image = np.random.default_rng(1).integers(0, 256, (40, 56, 3), np.uint8)
    theirs = (image.astype(np.float64) - CAFFE_MEAN)[:, :, ::-1]  # as Caffe's program feeds it
    expected = original.trunk(mx.nd.array(np.ascontiguousarray(theirs.transpose(2, 0, 1))[None]))
    network, spec, _ = parameters.load_network(out, mx.cpu())
    got = network.trunk(mx.nd.array(normalise(image, spec.mean, spec.std)[None]))
    for mine, wanted in zip(got, expected):
        # sums in another order; values around 1
        np.testing.assert_allclose(mine.asnumpy(), wanted.asnumpy(), rtol=1e-4, atol=1e-4)
    sidecar = json.loads(parameters.sidecar_path(out).read_text())
    assert sidecar["imported"]["input"] == {"channels": "bgr", "range": "caffe"}
    assert "RGB images of 0 to 255 minus mean [123.68, 116.779, 103.939] (caffe.params took BGR" in result.output


def test_every_reader_feeds_the_network_what_its_sidecar_says(tmp_path):
    out = tmp_path / "out.params"
    importing(as_file(tmp_path / "f.params", vgg(spread=57.0)), out, "--range", "caffe")
    network, spec, space = parameters.load_network(out, mx.cpu())
    np.testing.assert_allclose(255 * np.array(spec.mean), CAFFE_MEAN, rtol=1e-12)
    image = np.random.default_rng(1).integers(0, 256, (32, 48, 3), np.uint8)
    theirs = (image.astype(np.float64) - CAFFE_MEAN).transpose(2, 0, 1)[None]
    expected = mx.nd.softmax(network(mx.nd.array(theirs)), axis=1).asnumpy()[0]
    predictor = cbst_mx.load_network(out, flip=False)
    np.testing.assert_allclose(predictor.predict(image), expected, rtol=1e-3, atol=1e-5)  # rounding of the input
    export_network(network, tmp_path / "out", spec, space)
    described = json.loads((tmp_path / "out" / "fcn8s.json").read_text())["input"]
    assert (described["mean"], described["std"]) == (list(spec.mean), [1 / 255] * 3)
    assert described["same_as"] == "RGB images of 0 to 255 minus mean [123.68, 116.779, 103.939]"
    again = importing(out, tmp_path / "again.params")  # a file of this program says it itself
    assert "for RGB images of 0 to 255 minus mean [123.68, 116.779, 103.939]; again" in again.output
    result = CliRunner().invoke(
        main,
        [
            *("import-weights", str(out), "--network", "fcn8s", "--num-classes", "19", "--out", str(tmp_path / "x")),
            *("--channels", "bgr"),
        ],
    )
    assert (result.exit_code, (tmp_path / "x").exists()) == (1, False)
    assert f"must be left out for {out}: its sidecar says RGB images of 0 to 255 minus mean" in result.output


def test_forms_are_checked():
    assert InputForm().normalisation() == (NetworkSpec("x", 2).mean, NetworkSpec("x", 2).std)
    assert InputForm(range="caffe", mean=(0.0, 51.0, 255.0)).normalisation() == ((0.0, 0.2, 1.0), (1 / 255,) * 3)
    for options, sentence in (
        ({"channels": "grb"}, "channels must be"),
        ({"range": "0-1"}, "range must be"),
        ({"mean": (123.0, 116.0, 103.0)}, "mean must hold three numbers from 0 to 1 for range normalised"),
        ({"std": (1.0, 0.0, 1.0)}, "std must hold three numbers from 1e-06 to 1"),
        ({"range": "caffe", "mean": (1.0, 2.0)}, "mean must hold three numbers from 0 to 255 for range caffe"),
    ):
        with pytest.raises(ConfigError, match=re.escape(sentence)):
            InputForm(**options)


# --------------------------------------------------------------------------------------------- what the weights tell


@pytest.mark.parametrize("name", FIRST_LAYERS)
@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_the_order_is_told_for_first_layers_like_real_ones(name, order):
    filters, sizes = FIRST_LAYERS[name]
    weight = photograph_filters(filters, sizes)
    assert inputs.tell_order(weight if order == "rgb" else weight[:, ::-1]) == order


def test_random_first_layers_tell_nothing():
    for seed in range(5):
        for spec in (NetworkSpec("fcn8s", 19, {"width": 0.125}), NetworkSpec("resnet38", 19, {"width": 0.125})):
            told = inputs.tell_input(build_network(spec, mx.cpu(), seed=seed))
            assert told == (None, None, {})
    assert inputs.told_text(told) == "the weights do not tell the order and range of their input"


@pytest.mark.parametrize(("spread", "scale"), [(1.0, "normalised"), (57.0, "caffe")])
def test_biases_tell_the_range_without_batch_norm(spread, scale):
    told = inputs.tell_input(vgg(spread=spread))
    assert (told.channels, told.range) == ("rgb", scale)
    assert "times as much as the biases" in told.figures["range"]


@pytest.mark.parametrize(("spread", "scale"), [(1.0, "normalised"), (57.0, "caffe")])
def test_running_variances_tell_the_range(spread, scale):
    network = vgg(options={"batch_norm": "frozen"})
    statistics = network._collect_params_with_prefix()["trunk.stage1.0.1.running_var"]
    assert inputs.tell_input(network).range is None  # initial statistics
    x = mx.nd.array(spread * np.random.default_rng(3).normal(size=(1, 3, 64, 64)))
    statistics.set_data(network.trunk.stage1[0][0](x).asnumpy().var(axis=(0, 2, 3)))
    assert inputs.tell_input(network).range == scale


def test_what_contradicts_the_weights_is_a_warning_with_figures(tmp_path):
    file, out = as_file(tmp_path / "f.params", vgg(spread=57.0)), tmp_path / "out.params"
    right = importing(file, out, "--range", "caffe")
    assert "warning" not in right.output
    assert "the weights look trained on RGB (root mean squares of the first layer's weights, as red, green and" in (
        right.output
    )
    assert "and values of 0 to 255 (the image moves the last pooling" in right.output
    wrong = importing(file, out, "--channels", "bgr")
    assert "warning: the file was said to take BGR and looks trained on RGB (root mean squares" in wrong.output
    assert "red is larger than blue): --channels rgb reads it so" in wrong.output
    assert (
        "warning: the file was said to take normalised values and looks trained on values of 0 to 255" in wrong.output
    )
    assert "--range caffe reads it so" in wrong.output


def test_a_first_layer_that_the_file_lacks_is_not_judged(tmp_path):
    tensors = mx.nd.load(str(as_file(tmp_path / "f.params", vgg())))
    del tensors["features.0.weight"]
    mx.nd.save(str(tmp_path / "f.params"), tensors)
    result = importing(tmp_path / "f.params", tmp_path / "out.params", "--allow-missing", "trunk.stage1.0.0.weight")
    assert "the weights do not tell the order and range of their input" in result.output


def test_other_values_of_the_two_programs_are_refused_by_name(tmp_path):
    file = as_file(tmp_path / "f.params", vgg())
    command = ["import-weights", str(file), "--network", "fcn8s", "--num-classes", "19", "--out", str(tmp_path / "o")]
    for arguments, sentence in (
        (("--mean", "1,2"), "mean must hold three numbers from 0 to 1 for range normalised (R, G, B), got [1.0, 2.0]"),
        (("--std", "a,b,c"), "std must be three numbers R,G,B, got 'a,b,c'"),
    ):
        result = CliRunner().invoke(main, [*command, *arguments])
        assert (result.exit_code, sentence in result.output) == (1, True), result.output


# ------------------------------------------------------------------------------------------------------ skips of FCN8s


@pytest.mark.parametrize(("spread", "std"), [(1.0, (0.229, 0.224, 0.225)), (57.0, (1 / 255, 1 / 255, 1 / 255))])
def test_every_branch_learns_with_factors_of_one_and_pool3_not_with_the_published(spread, std):
    moved = {}
    for factors in ((1.0, 1.0), (1e-4, 1e-2)):
        network = vgg(spread=spread, options={"skip_scale": factors, "dropout": 0.0})
        sizes = inputs.branch_sizes(network, std)
        assert bool(inputs.slow_branches(network, std)) == (factors[0] != 1)
        branches = (network.score_pool3, network.score_pool4, network.score_fr)
        x = mx.nd.array(spread * np.random.default_rng(0).normal(size=(1, 3, 64, 96)))
        with mx.autograd.record():
            loss = (network(x)[:, 0]).mean()  # pulls at one class
        loss.backward()
        # a step of SGD changes the scores by the gradient of their weights times what they see
        moved[factors] = [
            float(mx.nd.norm(branch.weight.grad()).asscalar()) * size for branch, size in zip(branches, sizes)
        ]
    every, published = moved.values()
    assert min(every) > 1e-4 * max(every)  # within the square of a hundredth
    assert published[0] < 1e-6 * published[2]


REAL = sorted(Path(os.environ.get("CBST_DATA", "/nowhere"), "weights").glob("fcn8s-vgg16*.params"))


@pytest.mark.skipif(not REAL, reason="no weights/fcn8s-vgg16*.params below CBST_DATA")
@pytest.mark.parametrize("file", REAL[:1])
@pytest.mark.parametrize("scale", ["caffe", "normalised"])
def test_every_branch_learns_from_real_weights_at_either_scale(file, scale):
    """The table of docs/reproducing.md, whose figures are printed (pytest -s); the weights are not kept here."""
    network, spec, _ = parameters.load_network(file, mx.cpu())
    std = InputForm(range=scale).normalisation()[1]
    sizes = inputs.branch_sizes(network, std)
    print(f"{file.name}, {spec.options}, {scale}: root mean squares of pool3, pool4 and fc7", sizes)
    assert not inputs.slow_branches(network, std)
    x = mx.nd.array(np.random.default_rng(0).normal(size=(1, 3, 64, 96)) * (0.225 / np.reshape(std, (1, 3, 1, 1))))
    with mx.autograd.record():
        loss = network(x)[:, 0].mean()
    loss.backward()
    for branch in (network.score_pool3, network.score_pool4, network.score_fr):
        assert float(mx.nd.norm(branch.weight.grad()).asscalar()) > 0


def test_factors_that_cut_a_branch_off_are_a_warning(tmp_path):
    file, out = as_file(tmp_path / "f.params", vgg()), tmp_path / "out.params"
    assert "skip_scale" not in importing(file, out).output
    cut = importing(file, out, "--option", "skip_scale=[1e-4, 1e-2]", "--option", "hidden=32", "--option", "kernel=3")
    assert "warning: skip_scale [0.0001, 0.01] leaves a branch that cannot learn: root mean squares of" in cut.output
    assert parameters.read_sidecar(out)[0].options == {
        "skip_scale": [1e-4, 1e-2], "hidden": 32, "kernel": 3, "width": 0.125,
    }  # fmt: skip
