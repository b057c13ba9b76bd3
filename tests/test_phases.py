"""Phases of a run: the network it starts from, rare-class mining, and what is refused before hours of training."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from cbst_mx.config import load_experiment
from cbst_mx.errors import CheckpointError, ConfigError
from cbst_mx.networks.build import build_network
from cbst_mx.networks.devices import parse_contexts
from cbst_mx.networks.parameters import save_parameters
from cbst_mx.rounds import phases

DEMO = Path(__file__).parents[1] / "experiments" / "demo.yaml"


def experiment(*changes):
    return load_experiment(DEMO, ("network.options={width: 0.03125, dropout: 0.0}", *changes))


def values_of(network):
    return [parameter.data().asnumpy() for parameter in network.collect_params().values()]


def start(*changes, **options):
    return phases.start_network(experiment(*changes), parse_contexts("cpu"), **options)


def test_the_start_is_seeded_or_read_from_a_file(tmp_path):
    network, again, other = start(), start(), start("seed=1")
    for mine, same in zip(values_of(network), values_of(again)):
        np.testing.assert_array_equal(mine, same)
    assert any((mine != another).any() for mine, another in zip(values_of(network), values_of(other)))
    path = tmp_path / "weights.params"
    settings = experiment()
    save_parameters(path, other, settings.network_spec(), settings.classes(), config_hash="0" * 64)
    for changes, options in (
        (("source_training=null", f"initial_parameters={path}"), {}),
        ((f"pretrained={path}",), {}),
        (("pretrained=weights.params",), {"data_root": tmp_path}),  # relative to the data root
    ):
        for mine, theirs in zip(values_of(start(*changes, **options)), values_of(other)):
            np.testing.assert_array_equal(mine, theirs)


def test_the_input_is_that_of_the_parameters_at_the_start(tmp_path):
    settings, path = experiment(), tmp_path / "weights.params"
    caffe = dataclasses.replace(settings.network_spec(), mean=(0.485, 0.458, 0.4076), std=(1 / 255, 1 / 255, 1 / 255))
    save_parameters(path, start(), caffe, settings.classes())
    for changes in (("source_training=null", f"initial_parameters={path}"), (f"pretrained={path}",)):
        given = experiment(*changes)
        followed, sentences = phases.follow_start(given)
        assert (followed.network.mean, followed.network.std) == (list(caffe.mean), list(caffe.std))
        assert followed.network_spec() == caffe
        assert sentences == [
            f"input as of {path}: RGB images of 0 to 255 minus mean [123.675, 116.79, 103.938], not RGB images in "
            "[0, 1] normalised by mean [0.485, 0.456, 0.406] and std [0.229, 0.224, 0.225] as in the experiment"
        ]
        assert phases.follow_start(followed) == (followed, [])
        phases.start_network(followed, parse_contexts("cpu"))
    for unchanged in (settings, experiment(f"pretrained={tmp_path / 'none.params'}")):
        assert phases.follow_start(unchanged)[0] is unchanged


def test_options_that_belong_to_the_weights_are_taken_where_none_are_stated(tmp_path):
    settings, path = experiment(), tmp_path / "weights.params"
    spec = settings.network_spec()
    spec = dataclasses.replace(spec, options={**spec.options, "skip_scale": [0.5, 0.25], "hidden": 8, "kernel": 3})
    save_parameters(path, build_network(spec, parse_contexts("cpu")[0], seed=1), spec, settings.classes())
    followed, sentences = phases.follow_start(experiment(f"pretrained={path}"))
    assert followed.network_spec() == spec
    assert sentences == [f"network as of {path}: skip_scale [0.5, 0.25], hidden 8, kernel 3"]
    phases.start_network(followed, parse_contexts("cpu"))
    stated = "network.options={width: 0.03125, dropout: 0.0, skip_scale: [1.0, 1.0]}"
    followed, _ = phases.follow_start(experiment(f"pretrained={path}", stated))
    assert followed.network.options["skip_scale"] == [1.0, 1.0]
    with pytest.raises(CheckpointError, match="holds parameters of another network"):
        phases.start_network(followed, parse_contexts("cpu"))


def test_missing_pretrained_weights_are_refused_with_the_way_to_make_them(tmp_path):
    with pytest.raises(ConfigError, match="none.params do not exist: make them with cbst-mx import-weights FILE "):
        start("pretrained=none.params", data_root=tmp_path)


def test_a_warm_up_on_several_devices_is_refused():
    optimiser = "{iterations: 1, batch_size: 8, learning_rate: 0.1}"
    settings = experiment(f"warm_up={{optimiser: {optimiser}}}", "ctx=cpu:0,1")
    with pytest.raises(ConfigError, match="warm_up runs on one device without float16, got ctx cpu:0,1, amp none"):
        phases.start_network(settings, parse_contexts("cpu:0,1"))


def test_mined_classes_are_those_predicted_least():
    record = {"predicted": [1000 - 50 * c for c in range(19)]}
    mining = phases.mine_classes(experiment("self_training.mining={worst: 2, priority: 0.011}"), record)
    # 18 and 17 are predicted at 100 and 150 of 10,450 pixels; only the former is below 1.1 %
    assert set(mining.worst) == {17, 18}
    assert list(mining.priority) == [18]
    assert mining.probability == 0.8


def test_nothing_is_mined_without_the_setting_and_by_st():
    record = {"predicted": [1] * 19}
    assert phases.mine_classes(experiment(), record) is None
    fixed = "self_training.mining={methods: [st], classes: [train, road], probability: 0.5}"
    st = phases.mine_classes(experiment(fixed, "self_training.method=st"), record)
    assert (st.worst, st.priority, st.probability) == ((16, 0), (), 0.5)
    assert phases.mine_classes(experiment(fixed), record) is None
    assert phases.mine_classes(experiment("self_training.mining={}", "self_training.method=st"), record) is None


def test_mined_classes_that_are_none_are_refused_before_any_training():
    mining = "self_training.mining={methods: [st], classes: [road, tram]}"
    with pytest.raises(ConfigError, match=r"^mining.classes must be one of road, .*, got 'tram'$"):
        start(mining)
