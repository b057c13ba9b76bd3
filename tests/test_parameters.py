"""Parameter files: round trip, sidecar, refusals."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from cbst_mx.errors import CheckpointError, ConfigError, RunError
from cbst_mx.label_space import CITYSCAPES_19, SYNTHIA_16
from cbst_mx.networks import parameters
from cbst_mx.networks.build import build_network
from cbst_mx.networks.devices import parse_context
from cbst_mx.networks.spec import NetworkSpec
from symbols.backend import mx

SPEC = NetworkSpec("fcn8s", 19, {"width": 0.03125, "batch_norm": "batch"})


@pytest.fixture
def saved(tmp_path):
    network = build_network(SPEC, mx.cpu(), seed=0)
    path = tmp_path / "parameters.params"
    parameters.save_parameters(path, network, SPEC, CITYSCAPES_19, config_hash="abc")
    return path, network


def test_round_trip_gives_the_same_network(saved):
    path, network = saved
    again, spec, space = parameters.load_network(path, mx.cpu())
    assert spec == SPEC
    assert space.names == CITYSCAPES_19.names
    assert space.palette == CITYSCAPES_19.palette
    x = mx.nd.random.normal(shape=(1, 3, 32, 48))
    np.testing.assert_array_equal(again(x).asnumpy(), network(x).asnumpy())
    assert sorted(p.name for p in path.parent.iterdir()) == ["parameters.params", "parameters.params.json"]


def test_the_same_seed_gives_the_same_network_on_another_context(saved):
    other = build_network(SPEC, mx.cpu(1), seed=0)
    x = mx.nd.ones((1, 3, 32, 32))
    np.testing.assert_array_equal(other(x.as_in_context(mx.cpu(1))).asnumpy(), saved[1](x).asnumpy())


def refused(path, spec=SPEC, space=CITYSCAPES_19):
    with pytest.raises(CheckpointError) as error:
        parameters.load_parameters(build_network(spec, mx.cpu()), path, spec, space)
    return str(error.value)


def test_parameters_of_another_network_or_label_space_are_refused(saved):
    path, _ = saved
    wider = NetworkSpec("fcn8s", 19, {"width": 0.0625, "batch_norm": "batch"})
    assert refused(path, wider) == (
        f"{path} holds parameters of another network: fcn8s with 19 classes (batch_norm=batch, width=0.03125), "
        "not fcn8s with 19 classes (batch_norm=batch, width=0.0625)"
    )
    assert "trained for label space cityscapes-19 (19 classes), not synthia-16 (16 classes)" in refused(
        path, space=SYNTHIA_16
    )


def test_options_that_only_change_training_may_differ(saved):
    path, network = saved
    # defaults may be written out, and lists stand for tuples
    same = {**SPEC.options, "dropout": 0.1, "upsampling": "learned", "skip_scale": [1.0, 1.0]}
    other = build_network(NetworkSpec("fcn8s", 19, same), mx.cpu())
    parameters.load_parameters(other, path, NetworkSpec("fcn8s", 19, same), CITYSCAPES_19)
    x = mx.nd.ones((1, 3, 32, 32))
    expected = network(x).asnumpy()  # whose upsampling is frozen, and interpolates in another order of sums
    np.testing.assert_allclose(other(x).asnumpy(), expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())
    for key, value in (("skip_scale", [0.5, 1.0]), ("batch_norm", "frozen")):
        assert "holds parameters of another network" in refused(path, NetworkSpec("fcn8s", 19, {**same, key: value}))


def test_parameters_of_another_normalisation_are_refused(saved):
    path, _ = saved
    other = NetworkSpec("fcn8s", 19, SPEC.options, std=(1.0, 1.0, 1.0))
    assert refused(path, other) == (
        f"{path} was trained on images normalised by mean [0.485, 0.456, 0.406] and std [0.229, 0.224, 0.225], "
        "not mean [0.485, 0.456, 0.406] and std [1.0, 1.0, 1.0]"
    )


def test_the_sidecar_says_what_the_file_is(saved):
    path, network = saved
    sidecar = json.loads(parameters.sidecar_path(path).read_text())
    assert sidecar == {
        "format": 1,
        "network": {
            "name": "fcn8s",
            "num_classes": 19,
            "options": SPEC.options,
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
        },
        "label_space": {
            "name": "cityscapes-19",
            "names": list(CITYSCAPES_19.names),
            "palette": [list(colour) for colour in CITYSCAPES_19.palette],
        },
        "config_sha256": "abc",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    parameters.save_parameters(path, network, SPEC, CITYSCAPES_19, imported={"file": "vgg16.pth"})
    assert json.loads(parameters.sidecar_path(path).read_text())["imported"] == {"file": "vgg16.pth"}


def test_damaged_files_are_refused(saved):
    path, _ = saved
    data = path.read_bytes()
    for changed in (data[: len(data) // 2], data[:-1] + bytes([data[-1] ^ 1]), b""):
        path.write_bytes(changed)
        assert "was altered or truncated" in refused(path)
    side = parameters.sidecar_path(path)
    stored = json.loads(side.read_text())
    side.write_text("{")
    assert "is damaged" in refused(path)
    for values in ({"network": {}}, {"format": 1, "network": {}}, [], {**stored, "label_space": {}}):
        side.write_text(json.dumps(values))
        assert "is damaged" in refused(path)
    twice = {**stored["label_space"], "names": ["road"] * 19}
    side.write_text(json.dumps({**stored, "label_space": twice}))
    assert "is damaged: ConfigError: label space cityscapes-19 must name each class once" in refused(path)
    network, space = stored["network"], stored["label_space"]
    for values, sentence in (
        ({"network": {**network, "num_classes": 18}}, "label_space must name the network's 18 classes, got 19 names"),
        ({"network": {**network, "num_classes": "19"}}, "network must have a name and at least 2 classes"),
        ({"network": {**network, "name": []}}, "network must have a name and at least 2 classes"),
        ({"network": {**network, "options": ["width"]}}, "network must have options by name"),
        ({"network": {**network, "mean": [0.5, 0.5]}}, "network must have three finite numbers each as mean and std"),
        ({"network": {**network, "mean": [0.5, 0.5, float("nan")]}}, "three finite numbers"),
        ({"network": {**network, "std": ["1", 1, 1]}}, "three finite numbers"),
        ({"network": {**network, "std": [1, 0, 1]}}, "network must have a std above 0"),
        ({"network": {**network, "depth": 3}}, "depth"),
        ({"label_space": {**space, "names": [1, *space["names"][1:]]}}, "label_space must have names that can be prin"),
        ({"label_space": {**space, "name": "\x1b[2J"}}, "label_space must have names that can be printed"),
        ({"label_space": {**space, "palette": [[0.5, 0, 0]] * 19}}, "label_space must have a palette of whole numbers"),
        ({"sha256": "abc"}, "sha256 must be 64 hexadecimal digits"),
        ({"sha256": 5}, "TypeError"),
    ):
        side.write_text(json.dumps({**stored, **values}))
        assert f"sidecar {side} is damaged: " in refused(path)
        assert sentence in refused(path)
    side.write_text("[" * 100_000)
    assert "is damaged: RecursionError" in refused(path)
    side.write_text(json.dumps({**stored, "label_space": None}))
    assert refused(path) == f"{path} holds a classifier of whole images: it has no label space"
    with pytest.raises(CheckpointError, match="cannot be loaded: its sidecar has no label space"):
        parameters.load_network(path, mx.cpu())
    side.write_text(json.dumps({**stored, "format": 2}))
    assert refused(path) == f"sidecar {side} must have format 1, got 2"
    side.unlink()
    assert "has no sidecar parameters.params.json" in refused(path)
    path.unlink()
    assert refused(path) == f"parameter file {path} does not exist"


def test_parameters_that_are_not_finite_are_not_saved(saved):
    path, network = saved
    before = path.read_bytes()
    network.score_fr.bias.data()[:] = np.nan
    with pytest.raises(CheckpointError, match="score_fr.bias has values that are not finite"):
        parameters.save_parameters(path, network, SPEC, CITYSCAPES_19)
    assert path.read_bytes() == before


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("fails", ["parameters.params", "parameters.params.json"])
def test_parameters_and_sidecar_are_written_both_or_neither(tmp_path, monkeypatch, there, fails):
    network, path = build_network(SPEC, mx.cpu(), seed=0), tmp_path / "parameters.params"
    if there:
        parameters.save_parameters(path, network, SPEC, CITYSCAPES_19)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    network.score_fr.bias.data()[:] = 1
    replace = os.replace

    def full(source, target):
        if Path(target).name == fails:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RunError, match="no space left on the disk"):
        parameters.save_parameters(path, network, SPEC, CITYSCAPES_19)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_networks_that_cannot_be_built_are_refused():
    with pytest.raises(ConfigError, match="network: network must be one of .*fcn8s"):
        build_network(NetworkSpec("unet", 19), mx.cpu())
    for option in ("depth", "prefix", "params", "num_classes"):
        with pytest.raises(ConfigError) as error:
            build_network(NetworkSpec("fcn8s", 19, {option: "foo_"}), mx.cpu())
        assert str(error.value) == (
            "network: the options of fcn8s must be among batch_norm, dropout, hidden, kernel, skip_scale, upsampling, "
            f"width, got {option!r}"
        )
    with pytest.raises(ConfigError, match="network: dropout must be a rate in .0, 1., got 7"):
        build_network(NetworkSpec("fcn8s", 19, {"dropout": 7}), mx.cpu())


def test_a_classifier_of_whole_images_labels_no_pixels(tmp_path):
    spec = NetworkSpec("resnet38", 300, {"width": 0.03125, "form": "classifier"})
    sentence = (
        "network: resnet38 must give a label per pixel here, got a classifier of whole images (form=classifier, "
        "width=0.03125): cbst-mx import-weights turns its file into the segmentation network"
    )
    with pytest.raises(ConfigError) as error:
        build_network(spec, mx.cpu())
    assert str(error.value) == sentence
    path = tmp_path / "c.params"
    parameters.save_parameters(path, build_network(spec, mx.cpu(), seed=0, classifier=True), spec, None)
    assert parameters.read_sidecar(path)[:2] == (spec, None)
    with pytest.raises(CheckpointError) as error:
        parameters.load_network(path, mx.cpu())
    assert str(error.value) == f"{path} cannot be loaded: {sentence}"


@pytest.mark.parametrize("name", ["tpu", "cpu:x", "gpu:99", ""])
def test_contexts_that_are_not_there_are_refused(name):
    with pytest.raises(ConfigError, match="ctx"):
        parse_context(name)
    assert parse_context("cpu:1") == mx.cpu(1)
