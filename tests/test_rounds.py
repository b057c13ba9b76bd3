"""The whole job on a few small scenes: stages, files, continuation, evaluation, refusals."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from cbst_mx.cli import main
from cbst_mx.cli.experiments import _print_stages
from cbst_mx.errors import CheckpointError, ConfigError, DataError, RunError
from cbst_mx.evaluation.confusion import mean_iou
from cbst_mx.networks.build import build_network
from cbst_mx.networks.parameters import load_network, save_parameters
from cbst_mx.networks.sidecars import read_sidecar
from cbst_mx.rounds import Run, phases
from symbols.backend import mx
from tests.tiny import DEMO, experiment, options, write_scenes


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
        run = Run(experiment(), tmp_path_factory.mktemp("runs") / "cbst")
        return run, run.run()


def test_a_run_leaves_every_artefact(finished):
    run, summary = finished
    assert [stage["round"] for stage in summary["stages"]] == [0, 1, 2]
    for index in range(3):
        stage = run.dir.stage(index)
        assert stage.parameters.is_file()
        assert not stage.checkpoint.exists()
        results = json.loads(stage.evaluation.read_text())
        with np.load(stage.confusion) as matrices:
            assert matrices["target"].shape == (3, 19, 19)
            assert matrices["target"].dtype == np.int64
            assert results["target"]["miou"] == pytest.approx(mean_iou(matrices["target"].sum(axis=0)))
    assert "mIoU on target" in run.dir.log.read_text()


def test_images_without_labels_are_told_at_the_start(data, tmp_path):
    labels = '{replace: [["^images/", "labels/"]]}'
    (tmp_path / "d.yaml").write_text(
        "label_space: cityscapes-19\nids: cityscapes\n"
        f"splits: {{all: {{images: [images/*.png], labels: {labels}, unlabelled: skip}}}}\n"
    )
    shutil.copytree(data / "gta5", tmp_path / "gta5")
    first = sorted((tmp_path / "gta5" / "labels").iterdir())[0]
    first.unlink()
    where = f"{{format: folder, root: {tmp_path / 'gta5'}, split: all, description: {tmp_path / 'd.yaml'}}}"
    run = Run(experiment(f"source={where}", f"validation={{source: {where}}}"), tmp_path / "run")
    assert len(run.source) == 7
    lines = [line.partition("INFO ")[2] for line in run.dir.log.read_text().splitlines()]
    assert lines == [f"{name}: 1 of 8 images left out, without a label" for name in ("source", "validation source")]


def test_pseudo_labels_agree_with_their_record(finished):
    run, _ = finished
    for index, portion in ((1, 0.20), (2, 0.25)):
        stage = run.dir.stage(index)
        record = json.loads(stage.thresholds.read_text())
        assert (record["portion"], record["policy"], record["fidelity"]) == (portion, "class-balanced", "paper")
        kept = np.zeros(19, dtype=np.int64)
        assert sorted(p.stem for p in stage.pseudo_labels.iterdir()) == sorted(run.target.names)
        for path in stage.pseudo_labels.iterdir():
            with Image.open(path) as image:
                assert image.mode == "P"
                assert image.size == (64, 32)
                assert image.getpalette()[:3] == [128, 64, 128]
                label = np.asarray(image)
            kept += np.bincount(label[label != 255], minlength=19)
        np.testing.assert_array_equal(kept, record["kept"])
        assert sum(record["count"]) == record["pixels"] == 5 * 32 * 64
        # every class keeps at least its portion's rank, some more where the winner is not the plain argmax
        assert kept.sum() >= sum(round(portion * count) for count in record["count"])
        never = [n for n, count in enumerate(record["count"]) if count == 0]
        assert not kept[never].any()
        assert all(record["threshold"][n] is None for n in never)


def test_a_finished_run_is_not_run_again(finished):
    run, summary = finished
    times = {path: path.stat().st_mtime_ns for path in run.dir.path.rglob("*.params")}
    assert Run(experiment(), run.dir.path).run() == summary
    assert {path: path.stat().st_mtime_ns for path in run.dir.path.rglob("*.params")} == times


@pytest.mark.parametrize(
    "killed_at", [("demo, source: training", 7), ("demo, round 1: pseudo-labels", 8), ("demo, round 2: training", 2)]
)
def test_a_killed_run_continues_to_the_same_result(finished, tmp_path, killed_at):
    class Killed(BaseException):
        pass

    def kill(what, done, total):
        if (what, done) == killed_at:
            raise Killed

    with pytest.raises(Killed):
        Run(experiment(), tmp_path / "run", progress=kill).run()
    assert not (tmp_path / "run" / "summary.json").exists()
    continued = Run(experiment(), tmp_path / "run")
    assert continued.run() == finished[1]
    for index in range(3):
        mine, theirs = continued.dir.stage(index).parameters, finished[0].dir.stage(index).parameters
        assert mine.read_bytes() == theirs.read_bytes()
    assert not [path for path in (tmp_path / "run").rglob(".*")]


def test_a_collapse_is_noticed_without_labels(finished, tmp_path):
    run, _ = finished
    shutil.copytree(run.dir.path, tmp_path / "run")
    again = Run(experiment(), tmp_path / "run")
    names = again.label_space.names
    predicted = [0] * len(names)
    predicted[names.index("road")] = 1
    for index, counts in ((1, [1] * len(names)), (2, predicted)):  # all classes at first, one of them in the end
        path = again.dir.stage(index).thresholds
        path.write_text(json.dumps({**json.loads(path.read_text()), "predicted": counts}))
    again.dir.ledger.unlink()  # else it is noticed that the records are not what the rounds wrote
    for stage in (again.dir.stage(1), again.dir.stage(2), again.dir.last):
        stage.guard.unlink()  # which say what they judged
    # what round 2 counts is of the network that round 1 made
    sentence = "on the target's images, road is predicted at 100 % of the pixels, at first 5.26 %: "
    sentence += "its pseudo-labels may be wrong"
    assert any(text.startswith(sentence) for text in again.results.warnings(1))
    again.dir.stage(2).evaluation.unlink()  # else there is nothing left to do, and to print
    result = CliRunner().invoke(main, ["run", str(DEMO), "--out", str(tmp_path / "run"), *options()])
    assert result.exit_code == 0
    # of which kind is told last follows from the last digits, and so from how many threads there are
    assert re.search("warning: after round 2, on (validation set target|the target's images), ", result.output)
    summary = json.loads(again.dir.summary.read_text())
    assert re.search("warning: after round 2, (.*)", result.output)[1] in summary["stages"][2]["warnings"]
    assert summary["stages"][0]["warnings"] == []
    assert any(text.startswith(sentence) for text in summary["stages"][1]["warnings"])


@pytest.mark.parametrize(
    ("label", "sentence"),
    [
        # 0 is no class of GTA5's 19
        (Image.new("L", (64, 32), 0), "none of its .* labels has a labelled pixel, as those of a benchmark's test set"),
        (Image.new("L", (32, 32), 7), "must have the height and width of image .*, 32 x 64, got 32 x 32"),
    ],
    ids=["unlabelled", "size"],
)
@pytest.mark.parametrize(
    ("folder", "beginning"),
    [("gta5_val", "validation set source cannot be evaluated"), ("gta5", "the source cannot be trained on")],
)
def test_labels_of_no_use_are_refused_before_the_training(
    data, tmp_path, monkeypatch, label, sentence, folder, beginning
):
    broken = tmp_path / "data"
    shutil.copytree(data, broken)
    paths = sorted((broken / folder / "labels").iterdir())
    if label.size == (32, 32):
        paths = paths[-1:]
    for path in paths:
        label.save(path)
    monkeypatch.setenv("CBST_DATA", str(broken))
    changes = options("self_training.rounds=0")
    result = CliRunner().invoke(main, ["run", str(DEMO), "--out", str(tmp_path / "run"), *changes])
    assert result.exit_code == 1, result.output
    assert re.search(f"^Error: {beginning}: .*{sentence}$", result.output, re.MULTILINE)
    assert not (tmp_path / "run" / "source" / "checkpoint.params").exists()
    assert not (tmp_path / "run" / "source" / "parameters.params").exists()


@pytest.mark.parametrize(
    ("label", "sentence"),
    [
        (Image.new("L", (64, 32), 99), "has label id 99, unknown in the 'cityscapes' convention"),
        (Image.new("RGB", (64, 32)), "must hold one class id per pixel"),
    ],
    ids=["unknown id", "colours"],
)
def test_the_last_label_of_a_validation_set_is_read_before_the_training(data, tmp_path, monkeypatch, label, sentence):
    broken = tmp_path / "data"
    shutil.copytree(data, broken)
    last = max((broken / "gta5_val" / "labels").iterdir())
    label.save(last)
    monkeypatch.setenv("CBST_DATA", str(broken))
    result = CliRunner().invoke(main, ["run", str(DEMO), "--out", str(tmp_path / "run"), *options()])
    assert result.exit_code == 1
    assert re.search(rf"^Error: .*{last.name}.* {sentence}", result.output, re.MULTILINE), result.output
    assert not (tmp_path / "run" / "source" / "parameters.params").exists()


def test_a_source_image_that_is_none_is_refused_before_the_training(data, tmp_path, monkeypatch):
    broken = tmp_path / "data"
    shutil.copytree(data, broken)
    last = max((broken / "gta5" / "images").iterdir())
    last.write_bytes(b"")
    monkeypatch.setenv("CBST_DATA", str(broken))
    result = CliRunner().invoke(main, ["run", str(DEMO), "--out", str(tmp_path / "run"), *options()])
    assert result.exit_code == 1
    assert f"Error: image {last} is empty (0 bytes)" in result.output
    assert not (tmp_path / "run").exists()  # nothing had begun


def test_the_start_network_is_built_once(tmp_path, monkeypatch):
    built = []

    def build(*arguments, **options):
        built.append(arguments)
        return build_network(*arguments, **options)

    monkeypatch.setattr(phases, "build_network", build)
    run = Run(experiment("self_training.rounds=0"), tmp_path / "run")
    run.train_source()
    assert len(built) == 1


def test_cli_a_table_of_many_rounds_is_not_cut(capsys):
    space = experiment().classes()
    result = {"miou": 0.5, "iou": dict.fromkeys(space.names, 0.123)}
    stages = [{"round": index, "evaluation": {"target": result}, "warnings": []} for index in range(13)]
    _print_stages({"leading": "target", "stages": stages}, space)
    lines = capsys.readouterr().out.splitlines()
    assert any("round 12" in line for line in lines)
    assert [line.count("12.3") for line in lines if "vegetation" in line] == [13]


@pytest.mark.parametrize("workers", [0, 1])
def test_workers_do_not_change_the_result(finished, tmp_path, workers):
    assert finished[0].experiment.workers == 2
    run = Run(experiment(f"workers={workers}", "self_training.rounds=0"), tmp_path / "run")
    run.train_source()
    assert run.dir.stage(0).parameters.read_bytes() == finished[0].dir.stage(0).parameters.read_bytes()


def test_a_run_may_move_to_several_devices(tmp_path):
    class Killed(BaseException):
        pass

    def kill(what, done, total):
        if (what, done) == ("demo, source: training", 7):
            raise Killed

    changes = ("network.options={width: 0.03125, batch_norm: frozen}", "self_training.rounds=0")
    alone = Run(experiment(*changes), tmp_path / "alone")
    alone.train_source()
    with pytest.raises(Killed):
        Run(experiment(*changes), tmp_path / "moved", progress=kill).train_source()
    moved = Run(experiment(*changes, "ctx=cpu:0,1"), tmp_path / "moved")  # goes on at iteration 5
    moved.run()
    losses = [json.loads(run.dir.stage(0).training.read_text())["loss"] for run in (alone, moved)]
    assert losses[0] != losses[1]  # dropout draws other masks on two devices
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_resnet38_with_gradient_checkpointing(tmp_path):
    changes = (
        "network={name: resnet38, options: {width: 0.03125}}",
        "source_training={iterations: 2, batch_size: 2, learning_rate: 0.01}",
        "self_training.rounds=1",
        "self_training.retraining={iterations: 1, batch_size: 3, learning_rate: 0.01}",
    )
    losses = []
    for value in ("false", "true"):
        run = Run(experiment(*changes, f"gradient_checkpointing={value}"), tmp_path / value)
        run.run()
        losses.append([json.loads(run.dir.stage(index).training.read_text())["loss"] for index in (0, 1)])
    assert losses[0] != losses[1]  # dropout masks differ
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.2)


@pytest.mark.parametrize("method", ["st", "cbst-sp"])
def test_other_methods_start_from_given_parameters(finished, tmp_path, method):
    source = finished[0].dir.stage(0).parameters
    changes = (
        f"self_training.method={method}",
        "source_training=null",
        f"initial_parameters={source}",
        "self_training.rounds=1",
    )
    run = Run(experiment(*changes), tmp_path / "run")
    summary = run.run()
    assert summary["stages"][0]["evaluation"] == finished[1]["stages"][0]["evaluation"]
    assert summary["stages"][1]["evaluation"] != finished[1]["stages"][1]["evaluation"]
    record = json.loads(run.dir.stage(1).thresholds.read_text())
    if method == "st":
        assert len({value for value in record["threshold"] if value is not None}) == 1
    else:
        with np.load(run.dir.spatial_prior) as stored:
            assert stored["prior"].shape == (19, 16, 32)


def test_steps_out_of_order_are_refused(tmp_path):
    run = Run(experiment(), tmp_path / "run")
    with pytest.raises(RunError, match="source/parameters.params is not there or not finished: run source first"):
        run.pseudo_label(1)
    with pytest.raises(RunError, match="thresholds.json does not exist: run pseudo-label for round 1 first"):
        run.retrain(1)
    with pytest.raises(ConfigError, match=r"round must be from 1 to 2 \(self_training.rounds\), got 3"):
        run.pseudo_label(3)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["ctx=cpu:0,1,2,3,4"], "batch_size must be at least the number of devices in ctx cpu:0,1,2,3,4, got 4"),
        (["gradient_checkpointing=true"], "gradient_checkpointing needs frozen batch norm"),
        (
            ["network={name: resnet38, options: {width: 0.03125}}", "augmentation.crop=[36, 64]"],
            "training crops must be multiples of the network's stride, got 36 x 64, for which it gives 5 x 8 logits",
        ),
        (["amp=float16"], "amp float16 needs GPUs, got ctx cpu"),
    ],
)
def test_training_that_cannot_work_is_refused_before_anything_is_written(tmp_path, changes, sentence):
    with pytest.raises(ConfigError) as error:
        Run(experiment(*changes), tmp_path / "run")
    assert sentence in str(error.value)
    assert not (tmp_path / "run").exists()


def test_nothing_is_written_for_inputs_that_cannot_be_used(finished, tmp_path):
    wrong = experiment(
        "source_training=null",
        f"initial_parameters={finished[0].dir.stage(0).parameters}",
        "network.options={width: 0.0625}",
    )
    with pytest.raises(CheckpointError, match="holds parameters of another network"):
        Run(wrong, tmp_path / "run")
    with pytest.raises(RunError, match="belongs to another run"):
        Run(experiment("seed=5"), finished[0].dir.path)
    assert not (tmp_path / "run").exists()


def test_a_run_feeds_its_network_what_the_parameters_at_the_start_took(finished, tmp_path):
    stage = finished[0].dir.stage(0)
    network, spec, space = load_network(stage.parameters, mx.cpu())
    caffe = dataclasses.replace(spec, mean=(0.485, 0.458, 0.4076), std=(1 / 255, 1 / 255, 1 / 255))
    path = tmp_path / "caffe.params"
    # the same function of the image: its first layer gets values 57 times as large, on the average of the colours
    weight = network._collect_params_with_prefix()["trunk.stage1.0.0.weight"]
    weight.set_data(weight.data() / (255 * mx.nd.array(spec.std).reshape((1, 3, 1, 1))))
    save_parameters(path, network, dataclasses.replace(caffe, mean=spec.mean), space)
    run = Run(experiment("source_training=null", f"initial_parameters={path}"), tmp_path / "run")
    assert f"input as of {path}: RGB images of 0 to 255 minus mean" in run.dir.log.read_text()
    miou = run.evaluate(0)["target"]["miou"]
    # rounding alone can move a pixel's class
    assert miou == pytest.approx(json.loads(stage.evaluation.read_text())["target"]["miou"], abs=1e-3)
    run.pseudo_label(1)
    run.retrain(1)
    assert read_sidecar(run.dir.stage(1).parameters)[0].std == caffe.std
    again = Run(experiment("source_training=null", f"initial_parameters={path}"), tmp_path / "run")  # the same run
    assert again.experiment.network.std == list(caffe.std)


def cli(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_cli_single_steps_evaluate_and_predict(finished, data, tmp_path):
    changes = options()
    out = tmp_path / "run"
    for step in (
        ["source"],
        ["pseudo-label", "--round", 1],
        ["retrain", "--round", 1],
        ["round", "--round", 2],
        ["run"],
    ):
        result = cli(step[0], DEMO, "--out", out, *changes, *step[1:])
        assert result.exit_code == 0, result.output
    assert json.loads((out / "summary.json").read_text()) == finished[1]
    assert "round 2" in result.output
    assert "mIoU" in result.output
    parameters = out / "round-2" / "parameters.params"
    result = cli(
        "evaluate", "--parameters", parameters, "--format", "cityscapes", "--root", data / "cityscapes",
        "--split", "val", "--out", tmp_path / "e.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "e.json").read_text())
    expected = finished[1]["stages"][2]["evaluation"]["target"]
    assert {key: written[key] for key in expected} == expected
    assert written["protocol"]["name"] == "19"
    assert written["settings"]["scales"] == [1.0]
    assert written["data"] == {
        "format": "cityscapes", "root": str(data / "cityscapes"), "split": "val", "list": None, "city": None,
        "fold": None, "images": 3,
    }  # fmt: skip
    assert "protocol 19: all 19 classes, that of Table 3; scales 1, with flip" in result.output
    result = cli("predict", "--parameters", parameters, data / "gta5_val" / "images", "--out", tmp_path / "p")
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) == [
        "00001_label.png", "00001_overlay.png", "00002_label.png", "00002_overlay.png", "predict.json"
    ]  # fmt: skip
    with Image.open(tmp_path / "p" / "00001_label.png") as label, Image.open(
        tmp_path / "p" / "00001_overlay.png"
    ) as overlay:
        assert (label.mode, label.size, overlay.mode, overlay.size) == ("P", (64, 32), "RGB", (64, 32))
    again = cli("predict", "--parameters", parameters, data / "gta5_val" / "images", "--out", tmp_path / "p")
    assert again.exit_code == 0
    assert "2 of 2 images are done already" in again.output


def test_cli_refusals_are_one_sentence(finished, data, tmp_path):
    parameters = finished[0].dir.stage(0).parameters
    cases = [
        (["run", tmp_path / "none.yaml", "--out", tmp_path / "o"], 1, "none.yaml does not exist"),
        (["run", DEMO, "--out", tmp_path / "o", "--set", "rounds=3"], 1, "unknown key 'rounds' (allowed: name, seed"),
        (["run", DEMO, "--out", finished[0].dir.path], 1, "belongs to another run"),
        (["run", DEMO, "--out", tmp_path / "o", "--ctx", "gpu:7"], 1, "ctx gpu:7 is not available"),
        (["run", DEMO, "--out", tmp_path / "o", "--ctx", "cpu:0,0"], 1, "ctx must name every device once"),
        (["run", DEMO, "--out", tmp_path / "o", "--amp", "float16"], 1, "amp float16 needs GPUs, got ctx cpu"),
        (["run", DEMO, "--out", tmp_path / "o", "--amp", "int8"], 2, "'int8' is not one of"),
        (["predict", "--parameters", parameters, tmp_path / "no.png", "--out", tmp_path / "o"], 1,
         "no.png does not exist"),
        (["predict", "--parameters", tmp_path / "x.params", data / "gta5_val" / "images", "--out", tmp_path / "o"], 1,
         "x.params does not exist"),
        (["evaluate", "--parameters", parameters, "--format", "gta5", "--root", tmp_path, "--scales", ""], 2,
         "must be numbers from 0.05 to 16 with commas between them, got ''"),
        (["run", DEMO, "--out", tmp_path / "o", "--set", "pretrained=weights.params"], 1,
         "weights.params do not exist: make them with cbst-mx import-weights FILE --network fcn8s --num-classes 19"),
        (["run", DEMO, "--out", tmp_path / "o", "--fold", 1], 2, "--fold needs an experiment with folds"),
        (["run", DEMO], 2, "Missing option '--out'"),
        (["pseudo-label", DEMO, "--out", tmp_path / "o", "--round", 0], 2, "0 is not in the range x>=1"),
    ]  # fmt: skip
    for arguments, code, sentence in cases:
        result = cli(*arguments)
        assert result.exit_code == code, result.output
        assert sentence in result.output, result.output
        if code == 1:
            assert result.output.startswith("Error: ")
            assert result.output.count("\n") == 1
    assert not (tmp_path / "o").exists()


def test_a_round_takes_over_initial_parameters_itself(finished, tmp_path):
    parameters = finished[0].dir.stage(0).parameters
    changes = options()
    result = cli("pseudo-label", DEMO, "--out", tmp_path / "r", *changes, "--init", parameters, "--round", 1)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "r/source/parameters.params").read_bytes() == parameters.read_bytes()
    stored = (finished[0].dir.stage(1).thresholds, tmp_path / "r/round-1/thresholds.json")
    assert json.loads(stored[0].read_text()) == json.loads(stored[1].read_text())


def test_cli_help_says_what_is_read_and_written():
    overview = cli("--help").output
    for name in ("demo-data", "source", "pseudo-label", "retrain", "round", "run", "evaluate", "predict", "demo"):
        assert f"  {name} " in overview
        text = cli(name, "--help").output.lower()
        assert "write" in text or "prints" in text, name


def test_cli_demo_data(tmp_path):
    result = cli(
        "demo-data",
        tmp_path / "d",
        "--source",
        2,
        "--source-val",
        1,
        "--target",
        1,
        "--target-val",
        1,
        "--size",
        32,
        64,
    )
    assert result.exit_code == 0, result.output
    assert (tmp_path / "d" / "gta5" / "labels" / "00002.png").is_file()
    again = cli("demo-data", tmp_path / "d")
    assert again.exit_code == 1
    assert again.output.startswith("Error: ")


def missing_root(root):
    shutil.rmtree(root / "gta5")
    return "gta5"


def missing_label(root):
    (root / "gta5" / "labels" / "00003.png").unlink()
    return "00003"


def unknown_id(root):
    path = root / "gta5" / "labels" / "00003.png"
    with Image.open(path) as image:
        label = np.array(image)
    label[0, 0] = 77
    Image.fromarray(label).save(path)
    return "label id 77, unknown"


def colour_label(root):
    Image.new("RGB", (64, 32)).save(root / "gta5" / "labels" / "00003.png")
    return "00003.png"


def truncated_image(root):
    path = root / "gta5" / "images" / "00003.png"
    path.write_bytes(path.read_bytes()[:500])
    return "damaged or truncated"


def other_size(root):
    Image.new("L", (60, 32)).save(root / "gta5" / "labels" / "00003.png")
    return "32 x 64, got 32 x 60"


def truncated_target(root):
    path = sorted((root / "cityscapes" / "leftImg8bit" / "train").rglob("*.png"))[0]
    path.write_bytes(path.read_bytes()[:500])
    return "damaged or truncated"


@pytest.mark.parametrize(
    "fault",
    [missing_root, missing_label, unknown_id, colour_label, truncated_image, other_size, truncated_target],
    ids=lambda fault: fault.__name__,
)
def test_cli_damaged_data_is_one_sentence_and_can_be_mended(data, tmp_path, monkeypatch, fault):
    broken = tmp_path / "data"
    shutil.copytree(data, broken)
    monkeypatch.setenv("CBST_DATA", str(broken))
    expected = fault(broken)
    changes = options("self_training.rounds=0")
    result = cli("run", DEMO, "--out", tmp_path / "run", *changes)
    sentence = result.output.splitlines()[-1]
    assert result.exit_code == 1, result.output
    assert sentence.startswith("Error: ")
    assert expected in sentence
    assert not list((tmp_path / "run").rglob("*.params"))
    assert not list((tmp_path / "run").rglob(".*"))
    shutil.rmtree(broken)
    shutil.copytree(data, broken)
    again = cli("run", DEMO, "--out", tmp_path / "run", *changes)
    assert again.exit_code == 0, again.output
    assert (tmp_path / "run" / "log.txt").read_text().count("mIoU on target") == 1


def test_cli_a_full_disk_is_one_sentence(tmp_path):
    # a limit on the size of files stands for the full disk; it holds for a whole process, so the command gets its own
    code = (
        "import resource, signal, sys; from cbst_mx.cli import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "main(sys.argv[1:])\n"
    )
    changes = options("self_training.rounds=0")
    command = [sys.executable, "-c", code, "run", str(DEMO), "--out", str(tmp_path / "run"), *changes]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("Error: cannot write ")
    assert "no space left on the disk" in done.stderr
    assert not list((tmp_path / "run").rglob("*.params*"))


TRUNCATED = ("gta5/images", "gta5/labels", "cityscapes/leftImg8bit/train", "cityscapes/leftImg8bit/val")


@pytest.mark.parametrize("part", TRUNCATED)
def test_truncated_images_are_refused_before_the_training(data, tmp_path, part):
    root = shutil.copytree(data, tmp_path / "data")
    path = sorted((root / part).rglob("*.png"))[-1]
    path.write_bytes(path.read_bytes()[:-20])  # the header is whole
    run = Run(experiment(), tmp_path / "run", data_root=root)
    with pytest.raises(DataError, match=f"{path} cannot be read, the file is damaged or truncated"):
        run.run()
    assert not list((tmp_path / "run").rglob("*.params"))


@pytest.mark.parametrize("verb", ["pseudo-label", "retrain", "round"])
@pytest.mark.parametrize("there", [True, False])
def test_a_step_that_cannot_be_done_leaves_nothing(data, tmp_path, monkeypatch, verb, there):
    monkeypatch.setenv("CBST_DATA", str(data))
    out = tmp_path / "out"
    if there:
        out.mkdir()
    assert cli(verb, DEMO, "--out", out, "--round", 1, *options()).exit_code == 1
    assert not out.exists()


def test_a_folder_that_has_begun_stays(data, tmp_path, monkeypatch):
    monkeypatch.setenv("CBST_DATA", str(data))
    out = tmp_path / "out"
    assert cli("source", DEMO, "--out", out, *options()).exit_code == 0
    assert cli("retrain", DEMO, "--out", out, "--round", 1, *options()).exit_code == 1
    assert (out / "source" / "parameters.params").is_file()
