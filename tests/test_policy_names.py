"""One vocabulary of policies: st, cbst and cbst-sp for persons, the names of the threshold rules in files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from cbst_mx.cli import main
from cbst_mx.config import SelfTraining
from cbst_mx.errors import ConfigError
from cbst_mx.selftrain.thresholds import threshold_rule
from tests.maps import random_maps, write_maps

RULES = {"st": "global", "cbst": "class-balanced", "cbst-sp": "class-balanced"}


@pytest.fixture
def maps(tmp_path):
    prior = np.random.default_rng(0).random((19, 4, 8)).astype(np.float32)
    np.savez(tmp_path / "prior.npz", prior=prior / prior.mean(axis=(1, 2), keepdims=True))
    return write_maps(tmp_path / "maps", random_maps(0, (2, 19, 4, 8)))


def label(*arguments):
    return CliRunner().invoke(main, ["label", *map(str, arguments)])


def test_a_method_names_its_threshold_rule_and_a_rule_itself():
    assert {method: threshold_rule(method) for method in RULES} == RULES
    assert all(threshold_rule(rule) == rule for rule in RULES.values())
    sentence = "^policy must be one of st, cbst, cbst-sp, global, class-balanced, got 'best'$"
    with pytest.raises(ConfigError, match=sentence):
        threshold_rule("best")


@pytest.mark.parametrize("method", RULES)
def test_an_experiment_and_label_mean_the_same_by_a_method(method):
    retraining = {"iterations": 1, "batch_size": 1, "learning_rate": 1.0}
    assert SelfTraining(method=method, retraining=retraining).policy == threshold_rule(method)


@pytest.mark.parametrize(("name", "rule"), [("st", "global"), ("cbst", "class-balanced"), (None, "class-balanced")])
def test_both_names_of_a_policy_write_the_same_bytes(maps, tmp_path, name, rule):
    written = []
    for policy in (name, rule):
        out = tmp_path / f"out-{policy}"
        given = ("--policy", policy) if policy else ()
        result = label("--probabilities", maps, "--portion", 0.3, "--out", out, *given)
        assert result.exit_code == 0, result.output
        assert f"{'ST' if rule == 'global' else 'CBST'}, p = 0.3" in result.output
        written.append(
            [
                (out / file).read_bytes()
                for file in ("kc.json", "pseudo_labels/image-0.png", "pseudo_labels/image-1.png")
            ]
        )
        assert json.loads((out / "kc.json").read_text())["policy"] == rule
    assert written[0] == written[1]


def test_cbst_sp_is_cbst_with_a_prior(maps, tmp_path):
    records = []
    for policy in ("cbst-sp", "cbst"):
        given = ("--portion", 0.3, "--policy", policy, "--spatial-prior", tmp_path / "prior.npz")
        result = label("--probabilities", maps, "--out", tmp_path / policy, *given)
        assert result.exit_code == 0, result.output
        assert "CBST-SP, p = 0.3" in result.output
        records.append((tmp_path / policy / "kc.json").read_bytes())
    assert records[0] == records[1]


def test_cbst_sp_without_a_prior_is_refused_in_one_sentence(maps, tmp_path):
    state = tmp_path / "state.npz"
    assert label("count", "--probabilities", maps, "--out", state).exit_code == 0
    for arguments in (
        ("--probabilities", maps, "--portion", 0.3, "--out", tmp_path / "out"),
        ("count", "--probabilities", maps, "--refine", state, "--portion", 0.3, "--out", tmp_path / "refined.npz"),
        ("select", "--state", state, "--probabilities", maps, "--portion", 0.3, "--out", tmp_path / "out"),
    ):
        result = label(*arguments, "--policy", "cbst-sp")
        assert result.exit_code == 2
        assert result.output.splitlines()[-1] == "Error: --policy cbst-sp needs --spatial-prior"
    assert {path.name for path in tmp_path.iterdir()} == {"maps", "prior.npz", "state.npz"}


@pytest.mark.parametrize("command", [(), ("count",), ("select",)])
def test_help_says_how_the_names_relate(command):
    shown = " ".join(label(*command, "--help").output.split()).replace("- ", "-")  # lines also break behind hyphens
    assert "--policy [st|cbst|cbst-sp] st: one threshold for all classes (global, Algorithm 1); cbst: one per" in shown
    assert "(class-balanced, Algorithm 2); cbst-sp is cbst with --spatial-prior. [default: cbst]" in shown
