"""Which tensor belongs to which, by names and shapes alone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cbst_mx.errors import CheckpointError, ConfigError
from cbst_mx.networks import weights
from cbst_mx.networks.matching import match
from symbols import get_network
from symbols.backend import mx

GOLDEN = json.loads((Path(__file__).parent / "golden" / "resnet38_parameters.json").read_text())
VGG_CONVOLUTIONS = [(64, 3), (64, 64), (128, 64), (128, 128), (256, 128), (256, 256), (256, 256), (512, 256)]
VGG_CONVOLUTIONS += [(512, 512)] * 5


def statuses(comparison):
    return {status: comparison.count(status) for status in ("matched", "missing", "shape mismatch", "unexpected")}


def width_1(name, num_classes):
    """Return names and shapes of a network at width 1, without its 130 million values."""
    network = get_network(name, num_classes)
    symbol = network(mx.sym.Variable("data"))
    arguments, _, states = symbol.infer_shape(data=(1, 3, 64, 64))
    shapes = dict(zip(symbol.list_arguments(), arguments))
    shapes.update(zip(symbol.list_auxiliary_states(), states))
    parameters = network._collect_params_with_prefix()
    return {name: shapes[parameters[key].name] for key, name in weights.tensor_names(network).items()}


def golden_file():
    tensors = {f"arg:{name}": tuple(shape) for name, shape in GOLDEN["arguments"]}
    return {**tensors, **{f"aux:{name}": tuple(shape) for name, shape in GOLDEN["auxiliary"]}}


def test_the_released_resnet38_fits_completely():
    comparison = match(golden_file(), width_1("resnet38", 19))
    assert statuses(comparison) == {"matched": 121 + 74, "missing": 0, "shape mismatch": 0, "unexpected": 0}
    assert all(row.shape == row.source_shape for row in comparison.rows)
    comparison.check("file")


def test_another_number_of_classes_is_refused_unless_allowed():
    ours = width_1("resnet38", 16)
    comparison = match(golden_file(), ours, origin="f.params")
    assert comparison.refused == ("linear16_weight", "linear16_bias")
    assert comparison.classifier == ""
    assert statuses(comparison) == {"matched": 193, "missing": 2, "shape mismatch": 0, "unexpected": 2}
    with pytest.raises(CheckpointError) as error:
        comparison.check("f.params")
    assert str(error.value) == (
        "f.params fills 193 of the network's 195 tensors: linear16_weight, linear16_bias would stay as initialised, "
        "which has to be allowed with --allow-missing PATTERN"
    )
    comparison = match(golden_file(), ours, allow_missing=["linear16_*"])
    comparison.check("f.params")
    assert comparison.initialised == ("linear16_weight", "linear16_bias")
    with pytest.raises(CheckpointError, match="linear16_bias would stay"):
        match(golden_file(), ours, allow_missing=["linear16_w?ight"]).check("f.params")


@pytest.mark.parametrize("classifier", [(1000, 4096), (1000, 4096, 1, 1)])
def test_imagenet_resnet38_leaves_the_classifier_initialised(classifier):
    file = {name: shape for name, shape in golden_file().items() if not re.search("conv6a|linear", name)}
    file.update({"arg:linear1000_weight": classifier, "arg:linear1000_bias": (1000,)})
    ours = width_1("resnet38", 19)
    comparison = match(file, ours, origin="a1.params")
    comparison.check("a1.params")
    assert comparison.initialised == ("conv6a_weight", "conv6a_bias", "linear19_weight", "linear19_bias")
    assert comparison.classifier == (
        "a1.params is a classifier of whole images: conv6a_weight, conv6a_bias, linear19_weight, linear19_bias cannot "
        "be in it and stay as initialised"
    )
    assert [row.source for row in comparison.rows if row.status == "unexpected"] == [
        "arg:linear1000_weight",
        "arg:linear1000_bias",
    ]
    # only these: whatever else is missing is refused, and without the classifier the file proves nothing
    del file["arg:bn7_beta"]
    assert match(file, ours).refused == ("bn7_beta",)
    del file["arg:linear1000_weight"]
    assert "conv6a_weight" in match(file, ours).refused


def vgg_shapes(style):
    """Return names and shapes of the published VGG-16 files."""
    convolution, dense, last = {
        "gluon": ("features.{}.", ["features.31.", "features.33."], "output."),
        "prefixed": ("vgg0_conv{}_", ["vgg0_dense0_", "vgg0_dense1_"], "vgg0_dense2_"),
        "torchvision": ("features.{}.", ["classifier.0.", "classifier.3."], "classifier.6."),
    }[style]
    shapes, pooled = {}, {2, 4, 7, 10, 13}  # a pooling follows the second, fourth, ... convolution
    index = 0
    for count, (out, before) in enumerate(VGG_CONVOLUTIONS):
        name = convolution.format(count if style == "prefixed" else index)
        shapes[name + "weight"], shapes[name + "bias"] = (out, before, 3, 3), (out,)
        index += 3 if count + 1 in pooled else 2
    for name, shape in zip([*dense, last], [(4096, 25088), (4096, 4096), (1000, 4096)]):
        shapes[name + "weight"], shapes[name + "bias"] = shape, shape[:1]
    return shapes


def test_the_gluon_names_are_those_of_the_model_zoo():
    names = [*mx.gluon.model_zoo.vision.vgg16(prefix="vgg0_")._collect_params_with_prefix()]
    assert names == list(vgg_shapes("gluon"))
    assert [*mx.gluon.model_zoo.vision.vgg16(prefix="vgg0_").collect_params()] == list(vgg_shapes("prefixed"))


@pytest.mark.parametrize("classes", [19, 21])
@pytest.mark.parametrize("style", ["gluon", "prefixed", "torchvision"])
def test_vgg16_fills_fcn8s_but_for_the_scores(style, classes):
    comparison = match(vgg_shapes(style), width_1("fcn8s", classes), origin="vgg")
    comparison.check("vgg")
    assert statuses(comparison) == {"matched": 30, "missing": 9, "shape mismatch": 0, "unexpected": 2}
    assert set(comparison.initialised) == {
        *(f"score_{layer}.{part}" for layer in ("fr", "pool4", "pool3") for part in ("weight", "bias")),
        *(f"{layer}.weight" for layer in ("upscore2", "upscore_pool4", "upscore8")),
    }
    assert "vgg is a classifier of whole images: score_fr.weight" in comparison.classifier
    by_name = {row.name: row for row in comparison.rows}
    assert by_name["fc6.0.weight"].shape == (4096, 512, 7, 7)
    assert by_name["fc6.0.weight"].source_shape == (4096, 25088)


def test_vgg16_with_batch_norm_is_refused():
    shapes = {**vgg_shapes("prefixed"), "vgg0_batchnorm0_gamma": (64,)}
    with pytest.raises(CheckpointError, match=r"f is a VGG-16 with batch norm \(vgg0_batchnorm0_gamma\), and only"):
        match(shapes, width_1("fcn8s", 19), origin="f")


def test_two_tensors_for_one_place_are_refused():
    shapes = {**vgg_shapes("gluon"), "classifier.0.weight": (4096, 25088)}
    with pytest.raises(CheckpointError, match="f has two tensors for fc6.0.weight: features.31.weight and classifier"):
        match(shapes, width_1("fcn8s", 19), origin="f")


def test_what_fits_nowhere_is_refused_even_if_all_may_be_missing():
    ours = width_1("resnet38", 19)
    with pytest.raises(CheckpointError, match="vgg has no tensor that fits one of the network's 195 by name and shape"):
        match(vgg_shapes("gluon"), ours, allow_missing=["*"]).check("vgg")
    with pytest.raises(
        ConfigError,
        match=r"--allow-missing must name .* such as conv6a_bias, linear19_weight, linear19_bias, got 'score_\*'",
    ):
        match(golden_file(), ours, allow_missing=["score_*"])
