"""Run folders read back: finished, still running, damaged; signs of a collapse; and the front door's example."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys

import numpy as np
import pytest
import yaml

import cbst_mx
from cbst_mx.errors import ConfigError, DataError, RunError
from cbst_mx.evaluation import run_results
from cbst_mx.evaluation.run_experiment import find_runs
from cbst_mx.evaluation.run_results import RunResults
from cbst_mx.evaluation.run_signs import guard_signs, news, target_signs, validation_signs
from cbst_mx.files import write_json
from cbst_mx.selftrain.class_statistics import ImageStatistics
from cbst_mx.selftrain.signs import ADVICE
from tests.fake_run import NAMES, write_run, write_thresholds

ROAD, SKY = NAMES.index("road"), NAMES.index("sky")


@pytest.fixture
def folder(tmp_path):
    return write_run(tmp_path / "run")


def test_the_front_doors_example_runs(tmp_path, monkeypatch):
    write_run(tmp_path / "runs" / "gta5-cbst")
    monkeypatch.chdir(tmp_path)
    outcome = doctest.testmod(run_results)
    assert outcome.failed == 0
    assert outcome.attempted >= 7


def test_the_public_names_are_those_of_the_table():
    assert "open_run" in cbst_mx.__all__
    assert set(cbst_mx.__all__) <= set(dir(cbst_mx))
    assert cbst_mx.open_run is run_results.open_run
    with pytest.raises(AttributeError, match="module 'cbst_mx' has no attribute 'open_runs'"):
        cbst_mx.open_runs  # noqa: B018


def test_the_package_alone_imports_neither_mxnet_nor_numpy():
    code = "import sys, cbst_mx; print(sorted({'mxnet', 'numpy', 'cbst_mx.config'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_running_run_is_read_as_far_as_it_is(folder):
    run = cbst_mx.open_run(str(folder.path))
    assert (run.rounds, run.evaluated, run.finished, run.leading) == (2, [0, 1], False, "target")
    assert run.miou() == run.miou(1) == pytest.approx((4 / 6 + 2 / 4) / 2)
    assert run.miou(0) == pytest.approx((4 / 8 + 0) / 2)
    iou = run.iou(1, "target")
    assert list(iou) == list(NAMES)
    assert (iou["road"], iou["sky"]) == (pytest.approx(4 / 6), 0.5)
    assert np.isnan(iou["train"])
    assert run.confusion(1).dtype == np.int64
    assert run.confusion(1)[:, SKY, ROAD].tolist() == [1, 1]
    assert run.matrices(1)["target"].images == ("frame 0", "frame 1")
    with pytest.raises(RunError, match=r"round-2/evaluation.json does not exist"):
        run.iou(2)
    with pytest.raises(ConfigError, match=r"^stage must be from 0 to 2 \(self_training.rounds\), got 3$"):
        run.iou(3)
    with pytest.raises(ConfigError, match=r"^set must be one of target, got 'val'$"):
        run.confusion(1, "val")


def test_a_finished_run_is_read_whole(tmp_path):
    folder = write_run(tmp_path / "run", done=2)
    run = RunResults(folder.path)
    assert not run.finished  # its last file is the summary
    write_json(folder.summary, run.summarise())
    assert run.finished
    assert [stage["round"] for stage in run.summary["stages"]] == [0, 1, 2]
    assert run.summary["stages"][2]["evaluation"] == run.evaluation() == run.evaluation(2)
    assert (run.summary["leading"], run.summary["method"], run.summary["seed"]) == ("target", "cbst", 0)


def test_nothing_is_evaluated_yet(tmp_path):
    run = RunResults(write_run(tmp_path / "run", done=-1).path)
    assert run.evaluated == []
    with pytest.raises(RunError, match=r"run has no results yet: no stage has been evaluated$"):
        run.miou()
    assert list(run.paths()) == ["experiment", "manifest"]
    assert run.paths(1) == {}


def test_thresholds_are_arrays(folder):
    found = RunResults(folder.path).thresholds(1)
    assert (found["portion"], found["policy"], found["fidelity"], found["names"]) == (0.2, "cbst", "paper", NAMES)
    assert found["values"].dtype == np.float32
    assert found["k"].dtype == np.float64
    assert found["values"][[ROAD, SKY]].tolist() == [0.5, 0.25]
    np.testing.assert_allclose(found["k"][[ROAD, SKY]], np.log([2, 4]), rtol=1e-12)
    # a class that is never predicted keeps nothing
    assert np.isinf(found["values"]).sum() == np.isneginf(found["k"]).sum() == 17
    assert found["counts"].sum() == found["predicted"].sum() == 20
    assert found["kept"][SKY] == 2
    with pytest.raises(ConfigError, match=r"^stage must be from 1 to 2"):
        RunResults(folder.path).thresholds(0)


def test_paths_are_those_that_are_there(folder):
    run = RunResults(folder.path)
    assert run.paths()["experiment"] == folder.experiment
    assert set(run.paths(1)) == {"pseudo_labels", "thresholds", "confusion", "evaluation"}
    assert set(run.paths(0)) == {"confusion", "evaluation"}


def test_the_experiment_is_plain_values_with_defaults(folder):
    experiment = RunResults(folder.path).experiment
    assert experiment["self_training"]["portion"] == {"initial": 0.2, "step": 0.05, "maximum": 0.5}
    assert json.loads(json.dumps(experiment)) == experiment


def test_signs_need_no_network(tmp_path):
    folder = write_run(tmp_path / "run", rounds=3, done=2)
    for round_, values in ((1, {c: 0.5 for c in range(19)}), (2, {ROAD: 0.5})):
        write_thresholds(folder.stage(round_), values)
    run = RunResults(folder.path)
    # what round 2 counts is of the network that round 1 made
    assert target_signs(run, 1)[0] == (
        "on the target's images, road is predicted at 100 % of the pixels, at first 5.26 %: "
        f"its pseudo-labels may be wrong; {ADVICE['grown']}"
    )
    assert target_signs(run, 0) == target_signs(run, 2) == target_signs(run, 3) == []
    # everything was road at first; a quarter of it is sky now
    assert validation_signs(run, 1) == [  # that sky has appeared is no alarm
        "on validation set target, 25 % of the pixels have moved to other classes since before round 1; "
        + ADVICE["moved"],
    ]
    assert validation_signs(run, 0) == validation_signs(run, 3) == []
    assert run.warnings(1) == target_signs(run, 1) + validation_signs(run, 1)


def test_unusable_matrices_are_refused(folder):
    run, stage = RunResults(folder.path), folder.stage(1)
    matrices = run.matrices(1)["target"]
    stage.save_confusion(matrices.arrays("other"))
    with pytest.raises(RunError, match=r"confusion.npz and .*evaluation.json do not fit together: 'target.classes'$"):
        run.matrices(1)
    # no names are invented for classes and images
    stage.save_confusion({"target": matrices.counts})
    with pytest.raises(RunError, match=r"do not fit together: 'target.classes'$"):
        run.matrices(1)
    stage.save_confusion({**matrices.arrays("target"), "target": matrices.counts[:, :3, :3]})
    with pytest.raises(RunError, match=r"do not fit together: counts must be pixel counts of shape \(2, 19, 19\)"):
        run.matrices(1)
    stage.confusion.write_bytes(stage.confusion.read_bytes()[:100])
    with pytest.raises(DataError, match=r"confusion.npz is not a readable file of confusion matrices: "):
        run.matrices(1)
    stage.confusion.unlink()
    with pytest.raises(RunError, match=r"confusion.npz does not exist: the stage has not been evaluated$"):
        run.matrices(1)
    stage.evaluation.unlink()
    with pytest.raises(RunError, match=r"evaluation.json does not exist"):
        run.matrices(1)


@pytest.mark.parametrize(
    ("file", "text", "sentence"),
    [
        ("evaluation", "[]", "evaluation.json must hold names and values, got list"),
        ("evaluation", '{"target": {"miou": "high"}}', "evaluation.json is no evaluation: a validation set must have"),
        ("evaluation", '{"target": 3}', "evaluation.json is no evaluation: a validation set must have"),
        ("evaluation", "{", "evaluation.json cannot be read"),
        ("thresholds", "{}", "thresholds.json is no record of pseudo-labels: it must have 'names'"),
        ("thresholds", '{"threshold": ["a"], "policy": "", "fidelity": "", "portion": 1}', "is no record of pseudo-la"),
    ],
)
def test_damaged_files_are_one_sentence(folder, file, text, sentence):
    getattr(folder.stage(1), file).write_text(text)
    run = RunResults(folder.path)
    with pytest.raises(RunError, match=sentence) as error:
        run.miou(1) if file == "evaluation" else run.thresholds(1)
    assert "\n" not in str(error.value)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"experiment.yaml does not exist"):
        cbst_mx.open_run(tmp_path)
    with pytest.raises(RunError, match=r"is no run folder and holds none"):
        find_runs(tmp_path)


def test_images_are_those_of_the_manifest(folder):
    run = RunResults(folder.path)
    assert (run.images("target"), run.images("other")) == (2, 0)
    assert run.validation("target").split == "val"
    assert run.validation("other") is None


def test_a_network_that_was_collapsed_from_the_start_is_noticed(tmp_path):
    folder = write_run(tmp_path / "run", rounds=2, done=1)
    for round_ in (1, 2):
        path = folder.stage(round_).thresholds
        write_thresholds(folder.stage(round_), {ROAD: 0.5})
        record = json.loads(path.read_text())
        path.write_text(json.dumps({**record, "predicted": [990_000, 10_000] + [0] * 17}))
    run = RunResults(folder.path)
    expected = (
        "on the target's images, 99 % of the pixels are predicted as road, one class of 19: the network predicts "
        f"nearly the same everywhere, and its pseudo-labels will say so; {ADVICE['constant']}"
    )
    assert target_signs(run, 0) == target_signs(run, 1) == [expected]
    assert expected in run.warnings(0)
    run.folder.stage(1).thresholds.unlink()
    assert target_signs(run, 0) == []


def write_statistics(stage, confidence):
    """Write statistics of one image: four pixels of road and of sky, the latter of this confidence."""
    statistics = ImageStatistics(19, NAMES)
    counts, sums = np.zeros(19, np.int64), np.zeros(19)
    counts[[ROAD, SKY]] = 4
    sums[[ROAD, SKY]] = 4 * 0.9, 4 * confidence
    statistics.add("frame 0", counts, sums)
    stage.path.mkdir(exist_ok=True)
    statistics.save(stage.image_statistics)


def test_the_round_of_the_highest_score_is_known_once_the_last_one_has_been_over_the_target(tmp_path):
    folder = write_run(tmp_path / "run", rounds=2, done=2)
    run = RunResults(folder.path)
    assert run.label_free_scores() == {}
    for stage, confidence in ((1, 0.99), (2, 0.5)):  # of the source network, and of round 1
        write_statistics(folder.stage(stage), confidence)
    assert run.label_free_scores() == {0: pytest.approx(1.89 / 19), 1: pytest.approx(1.4 / 19)}
    assert run.label_free_choice() is None
    write_statistics(folder.last, 0.4)
    write_json(folder.last.guard, {"network": 1, "signs": []})  # of a run that had one round less
    assert run.label_free_choice() is None
    write_json(folder.last.guard, {"network": 2, "signs": []})
    assert run.label_free_choice() == (1, pytest.approx(1.4 / 19))  # the source network is no round
    write_statistics(folder.last, 0.5)
    assert run.label_free_choice().stage == 2  # of equal ones the last


def test_faults_that_the_guard_saw_are_warnings(folder):
    run = RunResults(folder.path)
    seen = [{"kind": "saturated", "sentence": "all is 1"}, {"kind": "constant", "sentence": "said by target_signs"}]
    write_json(folder.stage(1).guard, {"network": 0, "signs": seen})
    assert guard_signs(run, 0) == [f"on the target's images, all is 1; {ADVICE['saturated']}"]
    assert news(run, 0) == []
    assert guard_signs(run, 0)[0] in run.warnings(0)
    assert guard_signs(run, 1) == []
    write_json(folder.stage(1).guard, {"network": 0, "signs": [{"kind": "appeared", "sentence": "sky"}]})
    assert news(run, 0) == [f"on the target's images, sky; {ADVICE['appeared']}"]
    assert guard_signs(run, 0) == []
    write_json(folder.stage(1).guard, {"network": 0, "signs": [3]})
    with pytest.raises(
        RunError, match=r"guard.json is no judgement of the guard: its signs must have kind and sentence"
    ):
        guard_signs(run, 0)


def test_a_run_without_rounds_says_what_its_start_was_adapted_on(tmp_path):
    start = write_run(tmp_path / "start")
    tested = write_run(tmp_path / "tested", rounds=0, done=0)

    def adaptation(parameters):
        settings = yaml.safe_load(tested.experiment.read_text())
        tested.experiment.write_text(yaml.safe_dump({**settings, "initial_parameters": str(parameters)}))
        return RunResults(tested.path).adaptation

    one = start.stage(1).parameters
    assert adaptation(one) == f"no round here; starts from {one}, adapted on cityscapes train without labels"
    # the source network of a run is not adapted, and of other files nothing is known
    for other in (start.stage(0).parameters, tmp_path / "gone/round-1/parameters.params", tmp_path / "own.params"):
        assert adaptation(other) == f"no round here; starts from {other}"
    # nor is a run asked about itself
    assert adaptation(tested.stage(0).parameters) == f"no round here; starts from {tested.stage(0).parameters}"
