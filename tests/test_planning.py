"""The cost of an experiment: counts by hand, measurements that scale, and the command."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from cbst_mx import planning
from cbst_mx.cli import main
from cbst_mx.config import load_experiment
from cbst_mx.data import ImageSet
from cbst_mx.errors import ConfigError
from cbst_mx.networks.build import build_network
from cbst_mx.planning import Sharing, measure, work
from cbst_mx.planning.measure import Series, Timing, between, now
from cbst_mx.report.tables import plan_table
from cbst_mx.rounds.workload import Images
from symbols.backend import mx
from tests import dataset_fixtures, tiny

FOLDER = Path(__file__).parents[1] / "experiments"


@pytest.fixture
def constant(monkeypatch):
    """Give every measurement a fixed result: 2 s a training step, 3 s a labelled, 5 s an evaluated image."""
    monkeypatch.delenv("CBST_DATA", raising=False)

    def same(seconds):
        """Return a series that says `seconds` for any amount."""
        series = Series(peaks=[10**9])
        series.seconds_at, series.bytes_at, series.stretch = (lambda _: seconds), (lambda _: 10**9), (lambda _: 1.0)
        return series

    monkeypatch.setattr(work, "training", lambda *arguments: same(2.0))
    monkeypatch.setattr(work, "labelling", lambda *arguments: same(3.0))
    measured = []

    def evaluation(experiment, network, ctx, size, number, *rest):
        measured.append(number)
        return same(5.0 * number)  # of as many at a time as are predicted at once

    monkeypatch.setattr(work, "evaluation", evaluation)
    return measured


@pytest.mark.parametrize(("stretch", "warned"), [(4.0, False), (16.0, True)])
def test_a_guess_from_little_time_is_called_one(constant, monkeypatch, stretch, warned):
    measured = work.labelling()
    measured.stretch = lambda _: stretch
    monkeypatch.setattr(work, "labelling", lambda *arguments: measured)
    plan = planning.make_plan(load("gta5-cbst"), seconds=3)
    sentence = (
        "in 3 s no more than 0.062 of what is done at a time could be measured; the times are hardly more than a "
        "guess, give --seconds 60"
    )
    assert (sentence in plan.warnings) is warned


def test_repeats_that_differ_widen_the_range(constant, monkeypatch):
    measured = work.labelling()
    monkeypatch.setattr(work, "labelling", lambda *arguments: measured)
    sure = planning.make_plan(load("gta5-cbst")).unsure
    for busy, factor in ((1.2, 1.2), (3.0, 1.5)):
        measured.busy = busy
        assert planning.make_plan(load("gta5-cbst")).unsure == pytest.approx(sure * factor)


def load(name, *changes):
    return load_experiment(FOLDER / f"{name}.yaml", ("network.options.width=0.03125", *changes))


@pytest.mark.parametrize(
    ("name", "changes", "number"),
    [
        ("gta5-cbst", ["inference_batch=4"], 4),
        ("nthu-rome-cbst", ["inference_batch=16"], 10),  # there are no more
        ("gta5-cbst", [], 1),  # of their size
    ],
)
def test_as_many_images_are_measured_as_will_be_evaluated_at_once(constant, name, changes, number):
    plan = planning.make_plan(load(name, *changes))
    assert constant == [number]
    images = "image" if number == 1 else "images"
    assert any(f"measured: evaluation of {number} {images} of " in note for note in plan.notes)


def test_on_a_gpu_images_are_evaluated_one_by_one():
    small, size = load("gta5-cbst", "inference_batch=null", "evaluation.long_side=null"), (128, 256)
    assert work.evaluated_at_once(small, mx.cpu(), size) == 8
    assert work.evaluated_at_once(small, mx.gpu(0), size) == 1
    assert work.evaluated_at_once(small.model_copy(update={"inference_batch": 2}), mx.gpu(0), size) == 2


def test_numbers_of_gta5_by_hand(constant):
    plan = planning.make_plan(load("gta5-cbst"))
    source, first, *_, last = plan.stages
    assert len(plan.stages) == 8
    # 24,966 images in batches of 16, 30 times; 500 validation images
    assert (source.images, source.iterations) == (24_966, 30 * 1560)
    assert (source.labelling, source.training, source.evaluation) == (0, 2 * 46_800, 5 * 500)
    # 3 % of the source, 748 images, and 500 target images, in batches of 2, twice; 4.5 % in round 7, 1,123 images
    assert (first.images, first.iterations, first.labelling) == (1248, 2 * 624, 3 * 500)
    assert (last.images, last.iterations) == (1123 + 500, 2 * 811)
    assert last.labelling == 2 * 3 * 500  # the network of the last round looks at the target, too
    assert plan.seconds == sum(stage.labelling + stage.training + stage.evaluation for stage in plan.stages)
    # between the looks, stride-8 maps of an input of 925 x 1850: 19 classes, 4 bytes, 500 images
    maps = 500 * 19 * 4 * 116 * 232
    assert maps < plan.disk < maps + 8 * 500 * (2048 * 1024 // 8 + 2048) + 500e6
    assert any("publishers' numbers" in note for note in plan.notes)


@pytest.mark.parametrize("key", ["pretrained", "initial_parameters"])
def test_parameters_that_are_not_there_are_noted(constant, tmp_path, monkeypatch, key):
    monkeypatch.setenv("CBST_DATA", str(tmp_path))
    monkeypatch.setattr(planning, "follow_start", lambda experiment: (experiment, []))  # reads them
    path = tmp_path / "vgg.params"
    changes = ["pretrained=null", "source_training=null"] if key == "initial_parameters" else []
    sentence = f"{path} is not there: the run starts from these parameters"
    experiment = load("gta5-fcn8s-cbst", *changes, f"{key}={path}")
    assert sentence in planning.make_plan(experiment).warnings
    path.write_bytes(b"")
    assert sentence not in planning.make_plan(experiment).warnings


def test_a_start_that_is_not_there_does_not_end_the_plan(constant, tmp_path, monkeypatch):
    monkeypatch.setenv("CBST_DATA", str(tmp_path))
    plan = planning.make_plan(load("gta5-fcn8s-cbst", "pretrained=vgg.params"))
    assert f"{tmp_path / 'vgg.params'} is not there: the run starts from these parameters" in plan.warnings


def test_crops_larger_than_the_images_are_told(constant):
    found = " ".join(planning.make_plan(load("gta5-cbst", "augmentation.crop=[1100, 504]")).warnings)
    assert "crops of 1100 x 504 are larger than the source images of " in found
    assert "larger than the target images of 1024 x 2048: their rest is padding" in found
    usual = " ".join(planning.make_plan(load("gta5-cbst", "augmentation.crop=[504, 504]")).warnings)
    assert "are larger" not in usual


def test_without_validation_the_target_is_predicted(constant):
    planned = planning.make_plan(load("gta5-cbst", "validation={}", "target.split=train"))
    assert {stage.evaluation for stage in planned.stages} == {5 * 2975}
    assert [stage.training for stage in planned.stages] == [
        stage.training for stage in planning.make_plan(load("gta5-cbst", "target.split=train")).stages
    ]
    console = Console(file=io.StringIO(), width=100)
    console.print(plan_table(planned.stages))
    assert "round 7" in console.file.getvalue()


def test_only_an_estimate_of_the_prior_is_not_counted(constant):
    def notes(name):
        return " ".join(planning.make_plan(load(name, "target.list=null")).notes)

    assert "estimating the spatial prior" in notes("gta5-cbst-sp")
    assert "estimating the spatial prior" not in notes("gta5-cbst-sp-prior-released")
    assert "estimating the spatial prior" not in notes("gta5-cbst-sp-mst")  # it has no rounds


def test_the_maps_need_no_disk_where_the_network_runs_again(constant):
    kept, recomputed = (
        planning.make_plan(load("gta5-cbst", f"self_training.keep_maps={keep}")).disk for keep in ("disk", "recompute")
    )
    assert kept - recomputed == 500 * 19 * 4 * 116 * 232


def test_the_last_look_runs_the_network_once(constant):
    # as labelling does where maps are kept; it runs it twice where they are not
    last = planning.make_plan(load("gta5-cbst", "self_training.keep_maps=recompute")).stages[-1]
    assert last.labelling == 1.5 * 3 * 500


def test_what_a_cluster_divides_by_hand(constant, monkeypatch):
    steps = {}

    def training(experiment, network, contexts, batches, share, peak):
        series = Series(peaks=[10**9])
        series.seconds_at, series.bytes_at, series.stretch = (lambda crops: 0.5 * crops), (lambda _: 1), (lambda _: 1.0)
        steps.update(dict.fromkeys(batches))
        return series

    monkeypatch.setattr(work, "training", training)
    experiment = load("gta5-cbst", "self_training.retraining.batch_size=3")
    alone, shared = (planning.make_plan(experiment, sharing=Sharing(n)) for n in (1, 2))
    assert sorted(steps) == [2, 3, 8, 16]  # 16 crops and 3, and the larger half of both
    for one, two in zip(alone.stages, shared.stages):
        assert two.training == one.training * (8 / 16 if one.name == "source" else 2 / 3)
        assert (two.labelling, two.evaluation) == (one.labelling / 2, one.evaluation / 2)
    network = build_network(experiment.network_spec(), mx.cpu(), seed=0)
    trained = sum(one.data().size for one in network.collect_params().values() if one.grad_req != "null")
    # of two machines each sends half of its gradient, and the sum of the other half
    assert (
        f"in every step each machine sends and receives {4e-6 * trained:,.1f} MB, which is not co" in shared.notes[-2]
    )
    slow = planning.make_plan(experiment, sharing=Sharing(2, mbit=100.0))
    for one, two in zip(shared.stages, slow.stages):
        assert two.training - one.training == pytest.approx(one.iterations * 4 * 8 * trained / 100e6)
    eight = Sharing(8, mbit=1e4)
    assert eight.exchanged(network) == pytest.approx(4 * trained * 2 * 7 / 8)
    assert Sharing(8).exchange(network) == 0


def test_what_no_cluster_can_do_is_refused(constant):
    for sharing, sentence in (
        (Sharing(0), "processes must be at least 1, got 0"),
        (Sharing(1, 10.0), "a network is of two processes or more and has a speed above 0, got 10 Mbit/s"),
        (Sharing(3), "batch_size must be at least the number of devices in ctx cpu of 3 processes, got 2"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            planning.make_plan(load("gta5-cbst"), sharing=sharing)
    result = CliRunner().invoke(main, ["plan", str(FOLDER / "gta5-cbst.yaml"), "--network-mbit", "10"])
    assert result.exit_code == 2
    assert "--network-mbit needs --train-workers of 2 or more" in result.output


def test_a_fold_of_nthu(constant):
    plan = planning.make_plan(load("nthu-rome-cbst"))
    assert plan.stages[1].images == 89 + 90  # 3 % of the source
    assert plan.stages[1].evaluation == 5 * 10
    assert "one fold of 10; the source network is shared" in plan.notes


def test_an_unknown_number_of_images_is_refused(constant):
    with pytest.raises(ConfigError, match="the folder of cityscapes with the list train-505.txt is not there: set CBS"):
        planning.make_plan(load("gta5-cbst-released"))
    with pytest.raises(ConfigError, match="seconds must be above 0, got 0"):
        planning.make_plan(load("gta5-cbst"), seconds=0)


def test_reading_costs_time_where_no_core_is_free(monkeypatch):
    experiment = load("gta5-cbst", "workers=2")
    monkeypatch.setattr(work, "cores", lambda: 2)
    monkeypatch.setattr(work, "count_threads", lambda: 2)
    assert work.with_reading(1.0, 0.5, experiment) == 1.5
    monkeypatch.setattr(work, "count_threads", lambda: 0)  # OMP_NUM_THREADS is not set: MXNet takes all cores
    assert work.with_reading(1.0, 0.5, experiment) == 1.5
    monkeypatch.setattr(work, "count_threads", lambda: 1)
    assert work.with_reading(1.0, 0.5, experiment) == 1.0  # beside the step
    assert work.with_reading(1.0, 1.5, experiment) == 1.5
    assert work.with_reading(1.0, 0.5, load("gta5-cbst", "workers=0")) == 1.5
    assert work.with_reading(1.0, 3.0, load("gta5-cbst", "workers=2", "ctx=gpu:0")) == 1.5


@pytest.mark.parametrize(("images", "looks"), [(1, 1), (10_000, 1), (100_000, 3)])
def test_one_image_is_labelled_as_all_of_them_will_be(images, looks, monkeypatch):
    experiment = load_experiment(FOLDER / "demo.yaml", ("network.options.width=0.03125",))
    network = build_network(experiment.network_spec(), mx.cpu(), seed=0)
    calls = []
    monkeypatch.setattr(work, "_images", lambda once, *rest: once)  # measures nothing
    once = work.labelling(experiment, network, mx.cpu(), Images(images, (32, 64), False), 1.0, None)
    network.register_forward_hook(lambda *_: calls.append(1))
    path = Path(__file__)  # is not read
    picture = np.zeros((32, 64, 3), np.uint8)
    monkeypatch.setattr(ImageSet, "image", lambda self, index: picture)
    once(ImageSet(["one"], [path]), 1.0)
    # with the mirror image: maps of a stride of 1 fit into memory, compact or not, or the network runs for every look
    assert len(calls) == 2 * looks


def test_on_a_quiet_machine_the_usual_time_counts_and_else_the_least():
    wall, cpu = [1.0, 1.2, 1.4, 1.6, 1.8], [2.0, 2.4, 2.8, 3.2, 3.6]
    quiet, beside, unknown = (Timing(wall, cpu, others) for others in (0.05, 0.8, None))
    measured = {}
    for name, times in (("quiet", quiet), ("beside", beside), ("unknown", unknown)):
        series = Series()
        series.add(1.0, times, 1)
        measured[name] = series.seconds[0], series.busy
    assert measured == {"quiet": (1.4, 1.0), "beside": (1.0, 1.4), "unknown": (1.0, 1.4)}


def test_what_other_programs_take_is_measured(monkeypatch):
    every = iter([100.0, 101.0, 103.5])
    monkeypatch.setattr(measure, "_spent", lambda: next(every))
    monkeypatch.setattr(measure.time, "perf_counter", iter([10.0, 11.0, 12.0]).__next__)
    monkeypatch.setattr(measure.time, "process_time", iter([5.0, 6.0, 7.5]).__next__)
    times = between([now(), now(), now()])
    assert times == ([1.0, 1.0], [1.0, 1.5], 0.5)  # 3.5 s of all cores in 2 s, 2.5 of them ours
    monkeypatch.undo()
    assert between([now(), now()]).others is None or between([now(), now()]).others >= 0


@pytest.mark.parametrize("given", ["data", "nothing"])
def test_the_command_measures_and_writes(given, tmp_path, monkeypatch):
    monkeypatch.delenv("CBST_DATA", raising=False)
    if given == "data":
        dataset_fixtures.write_gta5(tmp_path / "gta5")
        dataset_fixtures.write_cityscapes(tmp_path / "cityscapes")
        monkeypatch.setenv("CBST_DATA", str(tmp_path))
    out = tmp_path / "plan.json"
    arguments = ["plan", str(FOLDER / "gta5-cbst.yaml"), "--smoke", "--seconds", "1", "--out", str(out)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    plan = json.loads(out.read_text())
    assert [stage["name"] for stage in plan["stages"]] == ["source", "round 1", "round 2"]
    assert all(stage["training"] > 0 and stage["evaluation"] > 0 for stage in plan["stages"])
    assert plan["seconds"] > 0
    assert plan["disk"] > 0
    assert plan["memory"] > 1e8
    assert ("publishers' numbers" in result.output) == (given == "nothing")
    assert "GPU: not measured" in result.output
    assert "round 2" in result.output
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".part"]


# A process inherits the peak of who starts it, which must not be the tests' own.
PEAK = """
import os, subprocess, sys
process = subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], stdout=subprocess.DEVNULL)
_, status, used = os.wait4(process.pid, 0)
print(status, used.ru_maxrss << 10)
"""


def peak(*command, **environment):
    """Return the largest memory of a Python process, in bytes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(FOLDER.parent), **environment}
    done = subprocess.run([sys.executable, "-c", PEAK, *command], env=environment, stdout=subprocess.PIPE, check=True)
    status, used = map(int, done.stdout.split())
    assert status == 0
    return used


@pytest.mark.slow  # 10 s on a quiet machine
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems count memory in other units")
def test_the_memory_of_a_plan_is_near_that_of_the_run(tmp_path):
    data = str(tiny.write_scenes(tmp_path / "data", source_val=1, target=2, target_val=8, size=(256, 512)))
    changes = tiny.options(
        "network.options={width: 0.0625, batch_norm: batch, dropout: 0.0}",
        "augmentation.crop=[256, 512]",
        "source_training={iterations: 2, batch_size: 4, learning_rate: 0.01}",
        "self_training.retraining={iterations: 2, batch_size: 4, learning_rate: 0.01}",
        "self_training.rounds=1",
    )
    program, out = "from cbst_mx.cli import main; main()", tmp_path / "plan.json"
    empty = peak("import cbst_mx.rounds")
    peak(program, "plan", str(tiny.DEMO), *changes, "--seconds", "6", "--out", str(out), CBST_DATA=data)
    real = peak(program, "run", str(tiny.DEMO), *changes, "--out", str(tmp_path / "run"), "--quiet", CBST_DATA=data)
    planned = json.loads(out.read_text())["memory"]
    assert real - empty > 400e6  # else Python and MXNet themselves were compared
    # 0.76 to 1.11 was seen: buffers that glibc keeps, readers, and work that a busy machine leaves to the line
    assert 1 / 1.5 < (planned - empty) / (real - empty) < 1.5, (planned, real, empty)


def test_the_table_fits_a_terminal(constant):
    table = plan_table(planning.make_plan(load("gta5-cbst")).stages)
    stream = io.StringIO()
    Console(file=stream, width=80).print(table)
    lines = [line.split() for line in stream.getvalue().splitlines() if line.strip()]
    assert lines[0] == ["stage", "images", "iterations", "labels", "training", "test", "all"]
    assert ["source", "24,966", "46,800", "\N{EN DASH}", "26.0", "h", "41.7", "min", "26.7", "h"] in lines
    assert len(lines) == 2 + 8 + 1  # no cell wraps
