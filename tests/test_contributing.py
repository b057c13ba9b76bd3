"""The worked examples of CONTRIBUTING.md: each is run, and what it adds does its work."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import symbols
from cbst_mx.evaluation import protocols
from cbst_mx.evaluation.confusion import confusion_matrix
from cbst_mx.files import read_json
from cbst_mx.label_space import CITYSCAPES_19
from cbst_mx.networks.build import build_network, output_size
from cbst_mx.networks.spec import NetworkSpec
from cbst_mx.rounds import Run
from symbols.backend import autograd, mx
from tests.tiny import experiment, write_scenes

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")


def examples():
    """Return the code of the page by the heading above it."""
    return dict(re.findall(r"^### ([^\n]+)\n(?:(?!^#).)*?^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))


EXAMPLES = examples()


def run(heading):
    """Run an example; return the names it defines."""
    names = {"__name__": "example"}
    exec(compile(EXAMPLES[heading], f"CONTRIBUTING.md, {heading}", "exec"), names)
    return names


@pytest.fixture
def restored():
    """What examples add is taken away again."""
    before = [(registry, dict(registry)) for registry in (symbols.NETWORKS, protocols.PROTOCOLS)]
    yield
    for registry, entries in before:
        registry.clear()
        registry.update(entries)


def test_every_block_of_code_is_an_example():
    assert len(EXAMPLES) == PAGE.count("```python")
    assert {"A network", "An evaluation protocol"} <= set(EXAMPLES)


@pytest.mark.parametrize("heading", EXAMPLES)
def test_an_example_is_one_short_file_in_a_package_there_is(heading):
    first, *lines = EXAMPLES[heading].splitlines()
    assert (ROOT / first[2:]).parent.joinpath("__init__.py").is_file()
    assert f"`{first[2:].rpartition('/')[0]}/" in PAGE.partition("## Where things go")[2].partition("###")[0]
    code = [line for line in lines if line.strip()]
    assert len(code) <= 45
    assert max(map(len, lines)) <= 120


def test_the_files_that_the_page_names_exist():
    # of an example's own file only the folder has to be there
    own = {code.splitlines()[0][2:] for code in EXAMPLES.values()}
    named = set(re.findall(r"`((?:cbst_mx|symbols|tests|experiments|tools|\.ci)/[\w/.]*)`", PAGE)) - own
    assert named
    assert not [name for name in named if not (ROOT / name).exists()]


# ----------------------------------------------------------------------------------------------------------- network


@pytest.fixture
def dilated(restored):
    run("A network")
    return NetworkSpec("dilated", 5, {"width": 0.25})


def test_the_network_is_the_same_hybridised_and_every_parameter_gets_a_gradient(dilated):
    results = []
    for hybrid in (False, True):
        network = build_network(dilated, mx.cpu(), seed=0)
        network.hybridize(hybrid)
        x = mx.nd.array(np.random.default_rng(0).normal(size=(2, 3, 13, 18)))
        x.attach_grad()
        with autograd.record():
            logits = network(x)
            loss = (logits**2).mean()
        loss.backward()
        parameters = network._collect_params_with_prefix().values()
        assert all(np.abs(parameter.grad().asnumpy()).max() > 0 for parameter in parameters)
        results.append((logits.asnumpy(), x.grad.asnumpy()))
    assert results[0][0].shape == (2, 5, 7, 9)
    assert output_size(network, (13, 18)) == (7, 9)
    for imperative, hybridised in zip(*results):
        np.testing.assert_allclose(hybridised, imperative, rtol=1e-5, atol=1e-6)  # the same sums in another order


def test_an_experiment_trains_labels_and_evaluates_with_the_network(dilated, tmp_path, monkeypatch):
    scenes = write_scenes(tmp_path / "data", source=4, source_val=1, target=2, target_val=1)
    monkeypatch.setenv("CBST_DATA", str(scenes))
    network = "network={name: dilated, options: {width: 0.25}}"
    Run(experiment(network, "self_training.rounds=1"), tmp_path / "run").run()
    assert len(list((tmp_path / "run/round-1/pseudo_labels").glob("*.png"))) == 2
    assert 0 <= read_json(tmp_path / "run/round-1/evaluation.json")["target"]["miou"] <= 1


# ---------------------------------------------------------------------------------------------------------- protocol


def test_the_protocol_averages_its_classes_and_counts_all_truth(restored):
    run("An evaluation protocol")
    names = CITYSCAPES_19.names
    road, car, bus = (names.index(name) for name in ("road", "car", "bus"))
    # 4 pixels of road, one of them taken for a car; 3 of a car; one of a bus that is taken for a car
    truth = np.uint8([road] * 4 + [car] * 3 + [bus])
    prediction = np.uint8([road] * 3 + [car] * 5)
    matrices = protocols.ImageMatrices(names, ("image",), confusion_matrix(truth, prediction, 19)[None])
    results, _ = protocols.evaluate(matrices, samples=1)
    by_name = {result.protocol.name: result for result in results}
    # IoU of car 3 / 5, of bus 0; the other classes that move are not there
    assert by_name["8 of 19"].miou == pytest.approx((3 / 5 + 0) / 2)
    assert by_name["19"].miou == pytest.approx((3 / 4 + 3 / 5 + 0) / 3)
    assert len(results) == len({result.protocol.name for result in results})


def test_examples_leave_nothing_behind():
    assert "dilated" not in symbols.NETWORKS
    assert "8 of 19" not in {protocol.name for protocol in protocols.protocols_of(CITYSCAPES_19.names)}
