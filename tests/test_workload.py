"""What the stages of an experiment take, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from cbst_mx.config import load_experiment
from cbst_mx.errors import ConfigError
from cbst_mx.networks.build import build_network
from cbst_mx.networks.devices import parse_context
from cbst_mx.rounds import workload
from cbst_mx.run_dir import RunDir
from tests import dataset_fixtures

FOLDER = Path(__file__).parents[1] / "experiments"


def load(name, *changes):
    return load_experiment(FOLDER / f"{name}.yaml", ("network.options.width=0.03125", *changes))


def test_source_images_of_a_round():
    experiment = load("gta5-cbst", "self_training.source_portion={initial: 0.2, step: 0.1, maximum: 0.4}")
    first, third, tenth = (workload.source_indices(experiment, index, 50) for index in (1, 3, 10))
    assert [len(set(chosen)) for chosen in (first, third, tenth)] == [10, 20, 20]
    assert third[:10] == first  # "cumulative": the images of earlier rounds stay
    other = load("gta5-cbst", "seed=1", "self_training.source_portion={initial: 0.2, step: 0.1, maximum: 0.4}")
    assert workload.source_indices(other, 1, 50) != first
    every = load("gta5-cbst", "self_training.source_portion=null")
    assert workload.source_indices(every, 1, 50) == list(range(50))


def test_iterations_are_given_or_follow_from_epochs():
    retraining = load("gta5-cbst").self_training.retraining
    assert (retraining.epochs, retraining.batch_size) == (2, 2)
    assert workload.count_iterations(retraining, 3723) == 2 * 1861
    fixed = load("demo").self_training.retraining
    assert workload.count_iterations(fixed, 3723) == workload.count_iterations(fixed, 1) == 100


@pytest.mark.parametrize(("long_side", "side", "scaled"), [(None, 0.25, None), (1850, 0.25, 462), (64, 0.25, 32)])
def test_a_side_is_scaled_but_no_input_is_too_small(long_side, side, scaled):
    assert workload.scale_side(long_side, side) == scaled


def test_image_sets_are_the_publishers_where_there_are_none(tmp_path, monkeypatch):
    monkeypatch.delenv("CBST_DATA", raising=False)
    sets = workload.find_image_sets(load("gta5-cbst"))
    assert list(sets.named()) == ["source", "target", "validation target"]
    assert sets.source.number == 24_966
    assert sets.target == (500, (1024, 2048), True)
    assert sets.validation["target"].pixels == 500 * 1024 * 2048
    dataset_fixtures.write_gta5(tmp_path / "gta5")
    monkeypatch.setenv("CBST_DATA", str(tmp_path))
    sets = workload.find_image_sets(load("gta5-cbst"))
    assert not sets.source.published
    assert sets.target.published
    with pytest.raises(ConfigError, match="the number of images must be known, and the folder of cityscapes with the"):
        workload.find_image_sets(load("gta5-cbst-released"))


def test_what_a_run_needs_beside_its_network():
    network = build_network(load("gta5-cbst").network_spec(), parse_context("cpu"), seed=0)
    sets = {"source": 24_966, "target": 2975, "size": (1024, 2048), "validation": 500}
    maps = 2975 * 19 * 4 * 116 * 232
    on_disk, in_memory, again = (
        workload.estimate_needs(load("gta5-cbst", f"self_training.keep_maps={keep}"), network, **sets)
        for keep in ("auto", "memory", "recompute")
    )
    assert (on_disk.disk - again.disk, on_disk.memory) == (maps, again.memory)  # auto: too much for memory
    assert (in_memory.disk, in_memory.memory - again.memory) == (again.disk, maps)
    assert again.memory == 40 * 1024 * 2048  # counted, not sorted
    few = workload.estimate_needs(load("gta5-cbst"), network, source=8, target=4, size=(64, 128), validation=1)
    assert few.memory == (40 + 4 * 20) * 64 * 128 + 4 * 19 * 4 * 116 * 232  # sorted, and the maps in memory
    none = workload.estimate_needs(load("gta5-source", "self_training.rounds=0"), network, **sets)
    assert none.memory == 0
    assert none.disk < 20e6


def test_a_run_that_goes_on_needs_the_space_of_what_is_left(tmp_path):
    folder, settings = RunDir(tmp_path), load("gta5-cbst", "self_training.rounds=2")
    network = build_network(settings.network_spec(), parse_context("cpu"), seed=0)
    sets = {"source": 8, "target": 4, "size": (64, 128), "validation": 1}
    steps = [folder.stage(0).training, folder.stage(0).evaluation]
    steps += [getattr(folder.stage(r), name) for r in (1, 2) for name in ("thresholds", "training", "evaluation")]
    whole = workload.estimate_needs(settings, network, **sets)
    needs = [workload.estimate_needs(settings, network, left=find_left(settings, folder), **sets).disk]
    assert needs == [whole.disk]
    for path in steps:
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
        needs.append(workload.estimate_needs(settings, network, left=find_left(settings, folder), **sets).disk)
    assert needs == sorted(needs, reverse=True)
    assert len(set(needs)) == len(needs)
    assert needs[-1] == 0
    folder.stage(2).training.unlink()
    before = workload.estimate_needs(settings, network, left=find_left(settings, folder), **sets).disk
    folder.stage(2).checkpoint.write_bytes(b"0" * 1000)
    after = workload.estimate_needs(settings, network, left=find_left(settings, folder), **sets).disk
    assert after == before - 1000


def find_left(settings, folder):
    return workload.find_left(settings, folder, source=8)


def test_networks_are_evaluated_as_the_experiment_says():
    ctx = parse_context("cpu")
    options = workload.prediction_options(load("gta5-cbst-released"), ctx, side=0.5)
    assert options["interpolation"] == "pillow"
    assert options["resampling"] == "program"
    assert (options["flip"], options["long_side"], options["batch_size"]) == (True, 1024, 1)
    options = workload.prediction_options(load("demo", "evaluation.scales=[0.5, 1]"), ctx)
    assert (options["interpolation"], options["resampling"], options["scales"]) == ("bilinear", "linear", [0.5, 1])
    assert "upsampling" not in options


def test_target_maps_are_made_as_the_experiment_says(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(workload, "TargetMaps", lambda *given, **options: seen.update(options))
    workload.target_maps(load("gta5-cbst-released"), None, None, folder=tmp_path, ctx=None)
    assert (seen["interpolation"], seen["resampling"], seen["long_side"]) == ("pillow", "program", 1850)
