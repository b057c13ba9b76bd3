"""Snapshots of the source training: kept, evaluated, and chosen from by three rules."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

import cbst_mx
from cbst_mx.cli import main
from cbst_mx.errors import RunError
from cbst_mx.evaluation.snapshots import Snapshot, choose, read_snapshots
from cbst_mx.networks.parameters import load_arrays
from cbst_mx.rounds import Run
from cbst_mx.rounds.workload import count_snapshots
from tests.tiny import experiment, write_scenes

# 8 source images in batches of 4: an epoch has 2 iterations, 12 iterations are 6 epochs
EVERY_TWO_EPOCHS = (
    "source_training={iterations: 12, batch_size: 4, learning_rate: 0.05, checkpoint_every: 5, snapshots: 2}",
    "self_training.rounds=0",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes") / "data")


@pytest.fixture(autouse=True)
def _root(data, monkeypatch):
    monkeypatch.setenv("CBST_DATA", str(data))


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CBST_DATA", str(data))
        run = Run(experiment(*EVERY_TWO_EPOCHS), tmp_path_factory.mktemp("runs") / "source")
        run.run()
        return run


def parameters(path):
    return {name: array.asnumpy().tobytes() for name, array in load_arrays(path).items()}


def test_every_second_epoch_is_kept_and_evaluated(finished):
    assert finished.dir.snapshots() == [2, 4, 6]
    found = read_snapshots(cbst_mx.open_run(finished.dir.path))
    assert [one.epoch for one in found] == [2, 4, 6]
    for one in found:
        stage = finished.dir.snapshot(one.epoch)
        assert json.loads(stage.evaluation.read_text())["target"]["miou"] == one.miou["target"]
        assert sum(one.predicted) == 5 * 32 * 64
    last, source = finished.dir.snapshot(6), finished.dir.stage(0)
    assert parameters(last.parameters) == parameters(source.parameters)
    assert parameters(finished.dir.snapshot(4).parameters) != parameters(source.parameters)
    assert last.evaluation.read_bytes() == source.evaluation.read_bytes()


def test_keeping_snapshots_changes_no_number(finished, tmp_path):
    plain = Run(experiment(EVERY_TWO_EPOCHS[0].replace(", snapshots: 2", ""), EVERY_TWO_EPOCHS[1]), tmp_path / "run")
    plain.train_source()
    assert plain.dir.snapshots() == []
    assert parameters(plain.dir.stage(0).parameters) == parameters(finished.dir.stage(0).parameters)
    assert plain.experiment.identity == finished.experiment.identity


def test_a_source_training_that_was_stopped_keeps_what_one_in_one_go_keeps(finished, tmp_path, monkeypatch):
    run = Run(experiment(*EVERY_TWO_EPOCHS), tmp_path / "run")

    def stop(what, done, total):
        if done == 9:
            raise KeyboardInterrupt

    run.progress = stop
    with pytest.raises(KeyboardInterrupt):
        run.train_source()
    assert run.dir.snapshots() == [2, 4]
    again = Run(experiment(*EVERY_TWO_EPOCHS), tmp_path / "run")
    again.run()
    for epoch in (2, 4, 6):
        assert parameters(again.dir.snapshot(epoch).parameters) == parameters(finished.dir.snapshot(epoch).parameters)


def test_the_table_says_which_epoch_each_rule_takes(finished, tmp_path):
    command = ["results", str(finished.dir.path), "--snapshots", "--out", str(tmp_path / "out.json")]
    shown = CliRunner(env={"COLUMNS": "80"}).invoke(main, command)
    assert shown.exit_code == 0, shown.output
    assert "source network after 2, 4, 6 epochs" in shown.output
    assert "oracle: highest mIoU, chosen with target labels" in shown.output
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["chosen"]["last"] == 6
    means = {one["epoch"]: one["miou"]["target"] for one in record["snapshots"]}
    assert means[record["chosen"]["oracle"]] == max(means.values())


def snapshot(epoch, miou, predicted, signs=()):
    return Snapshot(epoch, {"target": miou}, predicted, 0.5, list(signs))


def test_each_rule_by_hand():
    # mean shares 0.45, 0.55: the third is 0.05 from it, the first 0.15, the second 0.1 but with a sign
    found = [snapshot(1, 0.5, [60, 40]), snapshot(2, 0.4, [35, 65], ["a sign"]), snapshot(3, 0.3, [40, 60])]
    assert choose(found) == {"last": 3, "label-free": 3, "oracle": 1}
    found.append(snapshot(4, 0.2, [45, 55], ["a", "b"]))
    assert choose(found) == {"last": 4, "label-free": 3, "oracle": 1}
    assert "oracle" not in choose([one._replace(miou={}) for one in found])


def test_a_run_without_snapshots_says_how_to_have_some(tmp_path):
    from tests.fake_run import write_run

    run = cbst_mx.open_run(write_run(tmp_path / "run").path)
    with pytest.raises(
        RunError, match="has no evaluated snapshot: give source_training.snapshots, the epochs from one"
    ):
        read_snapshots(run)


def test_snapshots_are_counted_for_the_disk():
    training = experiment(*EVERY_TWO_EPOCHS).source_training
    assert count_snapshots(training, 8) == 3
    assert count_snapshots(training, 100) == 1  # 12 iterations are no two epochs: the end is kept
    assert count_snapshots(training.model_copy(update={"iterations": 13}), 8) == 4
    assert count_snapshots(None, 8) == 0


def test_the_end_is_kept_where_the_snapshots_do_not_divide_the_epochs(tmp_path):
    # 5 iterations are 2.5 epochs: kept after 2, and at the end in the third
    changes = (EVERY_TWO_EPOCHS[0].replace("iterations: 12", "iterations: 5"), EVERY_TWO_EPOCHS[1])
    run = Run(experiment(*changes), tmp_path / "run")
    run.train_source()
    run.evaluate_snapshots()
    found = read_snapshots(cbst_mx.open_run(run.dir.path))
    assert [one.epoch for one in found] == [2, 3]
    assert choose(found)["last"] == 3
    assert parameters(run.dir.snapshot(3).parameters) == parameters(run.dir.stage(0).parameters)
    assert parameters(run.dir.snapshot(2).parameters) != parameters(run.dir.stage(0).parameters)
    assert count_snapshots(run.experiment.source_training, 8) == 2
