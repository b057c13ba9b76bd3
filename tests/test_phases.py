"""Phases of a run: the network it starts from, rare-class mining, and what is refused before hours of training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cbst_mx.config import load_experiment
from cbst_mx.errors import ConfigError
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
    assert phases.mine_classes(experiment("self_training.mining={}", "self_training.method=st"), record) is None
