"""What a run that goes on has to know: identity of its checkpoints, other threads, and the way out of a divergence."""

from __future__ import annotations

import json
import re
import shlex

import pytest
from click.testing import CliRunner

from cbst_mx.cli import main
from cbst_mx.errors import StoppedError
from cbst_mx.files import write_json
from cbst_mx.rounds import Run
from cbst_mx.rounds.continuation import phase_identity, warn_of_threads
from cbst_mx.run_dir import RunDir
from tests import tiny

WARM_UP = "warm_up={optimiser: {iterations: 4, batch_size: 4, learning_rate: 0.01}, discriminator_width: 4}"


@pytest.fixture(autouse=True)
def scenes(tmp_path_factory, monkeypatch):
    root = tmp_path_factory.getbasetemp() / "continuation-scenes"
    monkeypatch.setenv("CBST_DATA", str(root if root.is_dir() else tiny.write_scenes(root)))


@pytest.mark.parametrize(
    "change",
    [
        "name=other",
        "workers=0",
        "inference_batch=1",
        "self_training.rounds=1",
        "self_training.keep_maps=recompute",
        "evaluation.flip=false",
        "source_training.checkpoint_every=7",
        "source_training.checkpoint_minutes=1",
        "self_training.retraining.checkpoint_every=7",
        "self_training.retraining.checkpoint_minutes=0",
    ],
)
def test_a_checkpoint_stays_the_phases_own_where_its_numbers_stay(change):
    for index in (0, 1):
        assert phase_identity(tiny.experiment(change), index, "training") == phase_identity(
            tiny.experiment(), index, "training"
        )


@pytest.mark.parametrize(
    ("change", "source", "round_"),
    [
        ("seed=5", False, False),
        ("augmentation.flip=false", False, False),
        ("source_training.learning_rate=0.01", False, False),
        ("network.options.dropout=0.2", False, False),
        ("self_training.portion.initial=0.1", True, False),
        ("self_training.retraining.learning_rate=0.02", True, False),
        (WARM_UP, True, False),
    ],
)
def test_a_checkpoint_of_other_settings_is_another_phases(change, source, round_):
    for index, same in ((0, source), (1, round_)):
        here, there = (phase_identity(tiny.experiment(*c), index, "training") for c in ((), (change,)))
        assert (here == there) is same


def test_stages_and_phases_have_checkpoints_of_their_own():
    experiment = tiny.experiment(WARM_UP)
    found = [phase_identity(experiment, 0, phase) for phase in ("training", "warm-up")]
    found += [phase_identity(experiment, index, "training") for index in (1, 2)]
    assert len({json.dumps(identity) for identity in found}) == 4


def test_minutes_between_checkpoints_belong_to_no_run():
    plain, other = tiny.experiment(WARM_UP), tiny.experiment(WARM_UP, "warm_up.optimiser.checkpoint_minutes=1")
    assert plain.identity == other.identity
    assert "checkpoint_minutes" not in plain.to_yaml()
    assert "checkpoint_minutes: 1" in other.to_yaml()


def test_other_threads_between_stages_are_told(tmp_path, caplog, monkeypatch):
    folder = RunDir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    warn_of_threads(folder)
    write_json(folder.stage(0).training, {"threads": 2})
    write_json(folder.stage(1).training, ["damaged"])
    warn_of_threads(folder)
    assert caplog.text == ""
    write_json(folder.stage(0).training, {"threads": [2, 4]})
    warn_of_threads(folder)
    assert "began with 4 threads (OMP_NUM_THREADS) and goes on with 2" in caplog.text


def invoke(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("phase", "key"),
    [
        ("source", "source_training"),
        ("warm-up", "warm_up.optimiser"),
        ("round", "self_training.retraining"),
    ],
)
def test_the_way_out_of_a_divergence_can_be_taken(tmp_path, phase, key):
    changes = [WARM_UP, "self_training.rounds=1"] if phase != "source" else ["self_training.rounds=0"]
    given = ["run", tiny.DEMO, *tiny.options(*changes)]
    result = invoke(*given, "--set", f"{key}.learning_rate=1e6", "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert "diverged" in result.output
    assert "where the learning rate was 1e+06" in result.output
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "ERROR" in log
    assert "diverged" in log
    if phase == "round":  # the command of the sentence, word by word, and the one that it prints
        begin = re.escape(f"branch {tmp_path / 'run'} --from round-1/retraining --set {key}.learning_rate=500000")
        advice = re.search(
            rf"lower the learning rate \(1e\+06\): cbst-mx ({begin} --out NEW) makes a folder", result.output
        )
        assert advice
        # half of 1e6 is no better; the key is what is tried
        command = advice[1].replace("=500000", "=0.01").replace("NEW", str(tmp_path / "new"))
        result = invoke(*shlex.split(command))
        assert result.exit_code == 0, result.output
        result = invoke(*shlex.split(result.output.partition("go on with: cbst-mx ")[2]))
        assert result.exit_code == 0, result.output
        for name in ("source/parameters.params", "round-1/thresholds.json"):
            assert (tmp_path / "new" / name).samefile(tmp_path / "run" / name)  # not done again
        return
    assert f"(1e+06): --set {key}.learning_rate=500000 and a new folder for --out" in result.output
    result = invoke(*given, "--set", f"{key}.learning_rate=0.01", "--out", tmp_path / "new")
    assert result.exit_code == 0, result.output


def test_a_round_is_no_phase_of_a_run_with_another_prior():
    sp = ("self_training.method=cbst-sp",)
    here, there = (
        phase_identity(tiny.experiment(*sp, *more), 1, "training")
        for more in ((), ("self_training.spatial_prior.grid=[8, 16]",))
    )
    assert here != there


def test_a_library_caller_stops_a_run_through_its_progress(tmp_path):
    def stop(what, done, total):
        if (what, done) == ("demo, source: training", 3):
            raise StoppedError(what, done, total)

    with pytest.raises(StoppedError, match="the same command continues$"):
        Run(tiny.experiment("self_training.rounds=0"), tmp_path, progress=stop).run()
    Run(tiny.experiment("self_training.rounds=0"), tmp_path).run()
    log = (tmp_path / "log.txt").read_text()
    assert "INFO demo, source: training: stopped at 3 of 12; the same command continues" in log
    assert "continuing at iteration 3 of 12" in log
