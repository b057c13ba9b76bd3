"""The worked examples of CONTRIBUTING.md: each is run, and what it adds does its work."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import symbols
from cbst_mx import selftrain
from cbst_mx.data import FORMATS, open_images, open_labelled
from cbst_mx.data.image_files import write_rgb_png
from cbst_mx.errors import ConfigError, DataError
from cbst_mx.evaluation import protocols
from cbst_mx.evaluation.confusion import confusion_matrix
from cbst_mx.files import read_json
from cbst_mx.label_space import CITYSCAPES_19
from cbst_mx.networks.build import build_network, output_size
from cbst_mx.networks.spec import NetworkSpec
from cbst_mx.rounds import Run
from cbst_mx.selftrain.kc import ConfidencePool
from cbst_mx.selftrain.thresholds import POLICIES
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
    before = [(registry, dict(registry)) for registry in (symbols.NETWORKS, protocols.PROTOCOLS, FORMATS, POLICIES)]
    yield
    for registry, entries in before:
        registry.clear()
        registry.update(entries)


def test_every_block_of_code_is_an_example():
    assert len(EXAMPLES) == PAGE.count("```python")
    assert set(EXAMPLES) == {"A data format", "A selection policy", "A network", "An evaluation protocol"}


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


# ------------------------------------------------------------------------------------------------------------ format


def test_the_format_opens_pairs_and_names_what_is_missing(restored, tmp_path):
    run("A data format")
    rng = np.random.default_rng(0)
    for name in ("b", "a"):
        write_rgb_png(tmp_path / "drive 1" / f"{name}.png", rng.integers(0, 256, (6, 8, 3), np.uint8))
        Image.fromarray(np.full((6, 8), 7, np.uint8)).save(tmp_path / "drive 1" / f"{name}_mask.png")
    assert open_images("lanes", tmp_path, drive="drive 1").names == ("a", "b")
    labelled = open_labelled("lanes", tmp_path, label_space=CITYSCAPES_19, drive="drive 1")
    assert (labelled.label(1) == CITYSCAPES_19.names.index("road")).all()  # id 7
    (tmp_path / "drive 1" / "b_mask.png").unlink()
    with pytest.raises(DataError, match="b_mask.png"):
        open_labelled("lanes", tmp_path, label_space=CITYSCAPES_19, drive="drive 1")
    with pytest.raises(DataError, match="folder of the drive .* does not exist: expected NAME.png"):
        open_images("lanes", tmp_path, drive="drive 2")
    with pytest.raises(ConfigError, match="^drive must be given for data of format lanes$"):
        open_images("lanes", tmp_path)


# ------------------------------------------------------------------------------------------------------------ policy


def test_the_policies_give_their_thresholds_sorted_and_counted(restored):
    run("A selection policy")
    # 100 pixels of class 0 with confidences 0.50, ..., 0.995; 20 of class 1 with 0.7, ..., 0.89; none of class 2
    confidence = np.concatenate([0.5 + np.arange(100) * 0.005, 0.7 + np.arange(20) * 0.01]).astype(np.float32)
    predicted = np.repeat([0, 1], [100, 20])
    maps = np.zeros((3, 1, 120), np.float32)
    maps[predicted, 0, np.arange(120)] = confidence
    maps[2] = 1 - confidence
    maps[2] *= maps[2] < confidence
    pool = ConfidencePool(3)
    pool.add(mx.nd.array(maps))
    for policy, values in (("fixed", [0.9] * 3), ("at most", [confidence[96], confidence[116], np.inf])):
        for found in (
            pool.thresholds(policy, 0.2),
            selftrain.thresholds([maps], portion=0.2, policy=policy, origin="scores"),
        ):
            assert found.counts.tolist() == [100, 20, 0]
            # the middle one of 100, 20 and 0 pixels is 20: 4 of each are kept
            np.testing.assert_array_equal(found.values, np.float32(values))


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
    assert "8 of 19" not in {protocol.name for protocol in protocols.find_protocols(CITYSCAPES_19.names)}
