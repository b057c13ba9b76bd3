from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from cbst_mx.cli import paper, results
from cbst_mx.cli.base import OneSentence
from cbst_mx.data.image_files import write_label_png
from cbst_mx.evaluation.confusion import confusion_matrix, summary
from cbst_mx.evaluation.paper_tables import expected
from cbst_mx.evaluation.protocols import ImageMatrices
from cbst_mx.evaluation.run_results import RunResults
from cbst_mx.files import write_json
from cbst_mx.label_space import CITYSCAPES_19
from cbst_mx.run_dir import RunDir
from tests.test_paper_check import exact, make_run

MAIN = OneSentence("cbst-mx", commands={c.name: c for c in (*paper.COMMANDS, *results.COMMANDS)})


def call(*arguments, code=0):
    outcome = CliRunner().invoke(MAIN, [str(argument) for argument in arguments], env={"COLUMNS": "80"})
    assert outcome.exit_code == code, (outcome.output, outcome.exception)
    return outcome.output


def cells(text, first):
    """Return the cells of the table line that begins with `first`."""
    return next(line.split()[1:] for line in text.splitlines() if line.split()[:1] == [first])


@pytest.mark.parametrize(
    ("file", "content"), [("summary.json", "[]"), ("manifest.json", "[]"), ("summary.json", "stage")]
)
def test_files_of_another_form_are_one_sentence(file, content, tmp_path):
    row = expected(3, "CBST", network="resnet38")
    run = make_run(tmp_path / "run", "gta5-cbst", exact(row))
    if content == "stage":
        summary = json.loads((run / file).read_text())
        summary["stages"][-1]["evaluation"][summary["leading"]] = [1, 2]
        content = json.dumps(summary)
    (run / file).write_text(content)
    text = call("check-paper", run, code=1)
    assert text.startswith("Error: ")
    assert file in text
    assert "must hold names" in text
    assert text.count("\n") == 1


# --------------------------------------------------------------------------------------------------------- paper table


def test_table_3_has_the_authors_rows():
    text = call("paper", "table", 3)
    fcn8s, resnet38 = text.split("ResNet-38", 1)
    assert cells(fcn8s, "mIoU") == ["24.3", "28.1", "30.9", "36.1"]
    assert cells(resnet38, "mIoU") == ["35.4", "41.5?", "41.5?", "45.2", "46.2", "47.0"]
    assert cells(resnet38, "bicycle") == ["12.0", "46.2", "3.7", "45.1", "37.0", "35.3"]
    assert "? ResNet-38, ST (paper row): mIoU is stated as 41.5, but the row's cells average 48.36" in text
    assert "R0 the same before 2018-11-20" in text
    assert "compared" not in text
    assert all(len(line) <= 80 for line in text.split("? ResNet")[0].splitlines())
    assert "…" not in text


@pytest.mark.parametrize("number", [1, 2, 3])
def test_all_has_the_compared_methods(number):
    text = call("paper", "table", number, "--all")
    assert "DeepLab-v2, compared methods" in text
    assert "…" not in text
    tables = text.split("\n? ")[0].split("evidence, with")[0]
    assert all(len(line) <= 80 for line in tables.splitlines())


def test_means_over_thirteen_stand_in_table_2():
    text = call("paper", "table", 2, "--all")
    deeplab = text.split("DeepLab-v2, compared methods")[1].split("\n\n")[0]
    assert cells(deeplab, "mIoU*") == ["38.6", "46.7"]
    assert cells(deeplab, "wall") == ["–", "–"]
    assert "\n mIoU " not in deeplab  # the paper has no mean over 16 for these
    assert "? FCN8s-VGG16, CBST: mIoU* is stated as 36.1, but the row's cells average 40.73" in text


# --------------------------------------------------------------------------------------------------------- check-paper


def test_a_run_within_tolerance(tmp_path):
    run = make_run(tmp_path / "run", "gta5-cbst-sp", exact(expected(3, "CBST-SP")))
    text = call("check-paper", run, "--table", 3, "--row", "CBST-SP")
    assert text.startswith("table 3, ResNet-38, CBST-SP: ")
    assert "round 7, the last" in text
    assert cells(text, "sky") == ["60.3", "60.3", "+0.0", "±8.7", "within"]
    assert cells(text, "mIoU") == ["46.2", "46.2", "-0.0", "±2.0", "within"]  # 46.18 of cells
    assert "tolerance: 2 points up or down for means, 8.7 for classes; our choice" in text
    assert "note: adapted on cityscapes without labels\n" in text
    best = "best of the rounds, chosen with target labels, as the program's README suggests: round 7, mIoU 46.2: within"
    assert text.endswith(f"{best} tolerance\nverdict: within tolerance\n")
    assert call("check-paper", run) == text  # the experiment knows its row


def test_a_miss_has_exit_code_3(tmp_path):
    values = exact(expected(3, "CBST-SP"))
    values["miou"] += 0.03
    values["iou"]["train"] = None
    run = make_run(tmp_path / "run", "gta5-cbst-sp", values)
    text = call("check-paper", run, code=3)
    assert cells(text, "train") == ["–", "15.2", "–", "±8.7", "missing"]
    assert text.endswith("verdict: off\n")
    values["iou"]["train"] = 0.152
    values["iou"] = {name: value + 0.03 for name, value in values["iou"].items()}
    run = make_run(tmp_path / "2", "gta5-cbst-sp", values)
    assert cells(call("check-paper", run, code=3), "mIoU") == ["49.2", "46.2", "+3.0", "±2.0", "off"]
    assert "tolerance: 3.5 points up or down for means, 15.3 for classes\n" in call(
        "check-paper", run, "--tolerance", 3.5
    )


def test_only_means_of_a_row_that_does_not_add_up(tmp_path):
    run = make_run(tmp_path / "run", "gta5-st", {"iou": {name: 0.4 for name in CITYSCAPES_19.names}, "miou": 0.4})
    text = call("check-paper", run, "--row", "ST", "--network", "resnet38")
    assert "note: mIoU is stated as 41.5, but the row's cells average 40.00\nnote: so classes are not judged" in text
    assert cells(text, "road")[-2:] == ["not", "judged"]
    assert cells(text, "mIoU")[-1] == "within"


def test_smoke_is_no_miss(tmp_path):
    run = make_run(tmp_path / "run", "gta5-cbst", {"iou": {}, "miou": 0.02}, smoke=True, images=2)
    assert call("check-paper", run).endswith("verdict: not comparable (smoke)\n")


def test_refusals_are_one_sentence(tmp_path):
    run = make_run(tmp_path / "run", "gta5-cbst", exact(expected(3, "CBST")))
    text = call("check-paper", run, "--table", 2, "--row", "CBST", code=1)
    assert "cannot be compared with table 2, CBST: its label space must be synthia-16, got cityscapes-19\n" in text
    assert text.startswith("Error: ")
    assert text.count("\n") == 1
    assert "its network must be fcn8s, got resnet38" in call("check-paper", run, "--network", "fcn8s", code=1)
    assert "row must be one of 'Source only'" in call("check-paper", run, "--row", "CRST", code=1)
    assert "is no run folder and holds none" in call("check-paper", tmp_path / "none", code=1)
    call("check-paper", run, "--table", 4, code=2)
    call("check-paper", run, "--tolerance", 0, code=2)


def test_folds_of_a_city(tmp_path):
    row = expected(1, "CBST", city="Taipei")
    folders = [make_run(tmp_path / f"fold-{k}", "nthu-taipei-cbst", exact(row), fold=k) for k in range(10)]
    for given in (folders, [tmp_path]):
        text = call("check-paper", *given)
        assert text.startswith("table 1, Taipei, ResNet-38, CBST: ")
        assert "note: mean over 10 folds\n" in text
    assert "needs one run of each fold" in call("check-paper", *folders[:9], code=1)


# ------------------------------------------------------------------------------------------------------------- results


@pytest.fixture
def run(tmp_path):
    rng = np.random.default_rng(0)
    folder = RunDir(tmp_path / "run")
    counts = []
    for wrong in (0.1, 0.9, 0.3):
        truth = rng.integers(0, 19, (16, 32))
        counts.append(confusion_matrix(truth, np.where(rng.random(truth.shape) < wrong, 0, truth), 19))
    matrices = ImageMatrices(CITYSCAPES_19.names, ("good", "bad", "fair"), np.stack(counts))
    for index in (0, 1):
        stage = folder.stage(index)
        first = ImageMatrices(matrices.classes, ("image 0",), matrices.counts[:1])
        stage.save_confusion({**matrices.arrays("target"), **first.arrays("source")})
        result = {
            "target": summary(matrices.counts.sum(axis=0), CITYSCAPES_19),
            "source": summary(matrices.counts[0], CITYSCAPES_19),
        }
        write_json(stage.evaluation, result)
    settings = {
        "name": "x",
        "source": {"format": "gta5", "root": "gta5"},
        "target": {"format": "cityscapes", "root": "cityscapes", "split": "train"},
        "initial_parameters": "source.params",
        "self_training": {
            "method": "cbst",
            "rounds": 2,
            "retraining": {"iterations": 1, "batch_size": 1, "learning_rate": 0.1},
        },
        "validation": {
            "target": {"format": "cityscapes", "root": "cityscapes", "split": "val"},
            "source": {"format": "gta5", "root": "gta5"},
        },
    }
    folder.experiment.write_text(yaml.safe_dump(settings, sort_keys=False))
    write_json(folder.manifest, {"inputs": {"images": {"validation target": 500, "validation source": 1}}})
    return folder.path


def test_results_by_every_protocol(run, tmp_path):
    out = tmp_path / "results.json"
    text = call("results", run, "--out", out, "--worst", 2)
    assert text.startswith("round 1 of 2, target, 3 images; 1,000 bootstrap samples, seed 0\n")
    (target, source) = json.loads(out.read_text())
    best = "best of the rounds, chosen with target labels, as the program's README suggests on target: round 1, mIoU"
    mean = 100 * target["protocols"][0]["miou"]
    assert f"{best} {mean:.1f}\n" in text  # of no row: no verdict
    assert (target["best_round"]["round"], target["best_round"]["verdict"]) == (1, "")
    assert target["best_round"]["miou"] == pytest.approx(mean)
    assert "best_round" not in source
    assert [entry["protocol"] for entry in target["protocols"]] == ["19", "16", "13 of 16", "16 of 19", "13 of 19"]
    assert target["tables"] == [2, 3]
    assert source["tables"] == []
    assert [image["name"] for image in target["worst_images"]] == ["bad", "fair"]
    low, high = target["protocols"][0]["interval"]
    first = cells(text, "19")
    assert first[:4] == [f"{100 * target['protocols'][0]['miou']:.1f}", f"{100 * low:.1f}", "to", f"{100 * high:.1f}"]
    assert "Table 3" in text
    assert "Table 2, mIoU*" in text
    assert "bad" in text
    assert "good" not in text.split("source,")[0]
    assert len(cells(text, "bicycle")) == 2  # its IoU, and the part of its pixels that is right
    assert "19 x 19/16 cannot be computed: only for networks without terrain, truck, train" in text
    # the images of the target are the tables' (as far as the manifest says), those of the source are not
    assert text.count("These are not the images of the paper's tables") == 1


def test_results_of_a_row_of_the_paper_have_the_verdict_of_check_paper(run, tmp_path):
    path = RunDir(run).experiment
    settings = yaml.safe_load(path.read_text())
    settings["self_training"]["rounds"] = 1
    path.write_text(yaml.safe_dump({**settings, "name": "gta5-cbst", "network": {"name": "resnet38"}}, sort_keys=False))
    write_json(RunDir(run).summary, RunResults(run).summarise())
    (line,) = [one for one in call("check-paper", run, code=3).splitlines() if one.startswith("best of the rounds")]
    assert line.endswith(": off")
    text = call("results", run, "--out", tmp_path / "out.json")
    assert line.replace("suggests:", "suggests on target:") + "\n" in text
    assert json.loads((tmp_path / "out.json").read_text())[0]["best_round"]["verdict"] == "off"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "smoke": True}, sort_keys=False))
    assert "not comparable (smoke)\n" in call("results", run)


def test_results_of_one_round_and_set(run):
    text = call("results", run, "--round", 0, "--set", "source", "--samples", 10, "--worst", 0)
    assert text.startswith("source, source, 1 image; 10 bootstrap samples")
    assert "source, target" not in text
    assert "adapted on" in text
    assert "image 0" not in text
    assert "image 0" in call("results", run, "--set", "source", "--samples", 10)


def test_results_without_labels_are_one_sentence(run):
    stage = RunDir(run).stage(1)
    empty = ImageMatrices(CITYSCAPES_19.names, ("a", "b", "c"), np.zeros((3, 19, 19), np.int64))
    with np.load(stage.confusion) as stored:
        stage.save_confusion({**stored, **empty.arrays("target")})
    text = call("results", run, code=1)
    assert text == (
        f"Error: {stage.confusion}, target: protocol 19 needs at least one of its classes in the images, got none\n"
    )
    assert call("results", run, "--set", "source").startswith("round 1 of 2, source, 1 image;")


def test_results_of_an_incomplete_experiment_are_one_sentence(run):
    path = RunDir(run).experiment
    settings = yaml.safe_load(path.read_text())
    del settings["self_training"]
    path.write_text(yaml.safe_dump(settings))
    text = call("results", run, code=1)
    assert text.startswith(f"Error: {path}: key 'self_training' is missing")
    assert text.count("\n") == 1


def test_results_refuse(run, tmp_path):
    assert "set must be one of target, source, got 'val'" in call("results", run, "--set", "val", code=1)
    assert "evaluation.json does not exist" in call("results", run, "--round", 2, code=1)
    for index in (0, 1):
        RunDir(run).stage(index).evaluation.unlink()
    assert "has no results yet: no stage has been evaluated" in call("results", run, code=1)
    assert "experiment.yaml does not exist" in call("results", tmp_path, code=1)


# -------------------------------------------------------------------------------------------------------------- server


def test_export_and_validate_for_the_server(tmp_path):
    folder, archive = tmp_path / "predictions", tmp_path / "a.zip"
    write_label_png(
        folder / "lindau_000000_000019_leftImg8bit_label.png", np.zeros((1024, 2048), np.uint8), CITYSCAPES_19
    )
    text = call("export-server", folder, "--out", archive, "--split", "val", code=1)
    assert f"1 image in {archive}" in text
    assert "1 image, val has 500\n" in text
    assert "4 problems\n" in text
    with zipfile.ZipFile(archive) as opened:
        assert opened.namelist() == ["lindau_000000_000019.png"]
    assert call("validate-server", archive, "--split", "val", code=1).endswith(f"{archive}: 4 problems\n")
    assert "does not exist" in call("validate-server", tmp_path / "b.zip", code=1)


def test_a_good_archive_has_exit_code_0(tmp_path, monkeypatch):
    from cbst_mx.evaluation import server_export

    monkeypatch.setattr(server_export, "SPLITS", {"val": {"lindau": 1}})
    folder = tmp_path / "predictions"
    write_label_png(folder / "lindau_000000_000019.png", np.full((1024, 2048), 18, np.uint8), CITYSCAPES_19)
    text = call("export-server", folder, "--out", tmp_path / "a.zip", "--split", "val")
    assert text.endswith("a.zip: nothing wrong\n")
