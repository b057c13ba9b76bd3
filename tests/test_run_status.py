"""The commands on run folders: status, verify, diff, branch."""

from __future__ import annotations

import json
import os
import re
import shutil

import pytest
from click.testing import CliRunner

import cbst_mx
from cbst_mx.cli import main
from cbst_mx.evaluation.run_status import find_parting
from cbst_mx.rounds import Run
from cbst_mx.run_dir import lock_folder
from tests.fake_run import write_run
from tests.tiny import experiment, write_scenes


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes") / "data")


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """Return the folder of a run of two rounds."""
    run = Run(experiment(), tmp_path_factory.mktemp("runs") / "whole", data_root=data)
    run.run()
    return run.dir.path


@pytest.fixture
def copied(whole, tmp_path):
    """Return a copy of the run folder that a test may change."""
    return shutil.copytree(whole, tmp_path / "run", ignore=shutil.ignore_patterns("lock"))


def call(*arguments, code=0):
    result = CliRunner(env={"COLUMNS": "80"}).invoke(main, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result.output


def test_status_of_a_finished_run(copied):
    output = call("status", copied)
    assert "demo, 2 rounds of cbst" in output
    assert re.search(r"retraining of round 2 +finished +\d\d-\d\d \d\d:\d\d +0:\d\d:\d\d", output)
    miou = cbst_mx.open_run(copied).miou(2)
    assert re.search(rf"evaluation of round 2 +finished .* {100 * miou:.1f} *\n", output)
    assert output.endswith("next: nothing is left to do\n")
    assert max(map(len, output.split("next:")[0].split("warning:")[0].splitlines())) <= 80


def test_status_on_the_way(copied):
    shutil.rmtree(copied / "round-2")
    (copied / "summary.json").unlink()
    assert "next: run does the pseudo-labels of round 2, then 2 more steps" in call("status", copied)
    path = copied / "round-1" / "evaluation.json"
    path.write_text(path.read_text() + " ")
    record = json.loads(call("status", copied, "--json"))
    states = {step["step"]: step["state"] for step in record["steps"]}
    assert states["round-1/evaluation"] == "altered"
    assert states["round-1/retraining"] == "finished"
    assert states["round-2/retraining"] == "to do"
    assert set(record) == {"run", "name", "rounds", "next", "not_in_ledger", "steps"}
    assert "altered: round-1/evaluation.json is altered" in call("status", copied)


def test_status_says_who_works_in_it_and_takes_no_lock(copied):
    held = lock_folder(copied)
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    assert "next: process " in call("status", copied)
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*")} == before
    held.release()
    (copied / "lock").write_text(held.path.name)  # left by a killed process on another computer, damaged
    assert "next: another process works in it" in call("status", copied)


def test_status_of_a_folder_from_before_the_ledger(tmp_path):
    output = call("status", write_run(tmp_path / "run").path)
    assert re.search(r"evaluation of round 1 +finished", output)
    assert "next: run does the training of the source network" in output


def test_verify_reads_every_file(copied):
    assert call("verify", copied).endswith(": 8 steps, nothing altered\n")
    path = copied / "round-1" / "parameters.params"
    content, status = bytearray(path.read_bytes()), path.stat()
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a disk flips it
    sorted((copied / "round-2" / "pseudo_labels").iterdir())[0].unlink()
    (copied / "round-2" / "thresholds.json").write_text("")
    lines = call("verify", copied, code=1).splitlines()
    assert lines[:3] == [
        "round-1/parameters.params is altered",
        "round-2/thresholds.json is empty",
        "round-2/pseudo_labels has 4 files in place of 5",
    ]
    assert lines[3].endswith("3 problems in 8 steps")


def test_verify_names_steps_made_from_what_there_is_no_more(copied):
    ledger = copied / "ledger.jsonl"
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    for line in lines:
        line.pop("line_sha256")  # as of an earlier version
        if line["step"] == "round-1/retraining":
            line["inputs"]["pseudo-labels"] = "0" * 64
    ledger.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "round-1/retraining was made from other pseudo-labels than there are" in call("verify", copied, code=1)


@pytest.mark.parametrize("command", [("verify",), ("diff", "."), ("branch", "--from", "round-1", "--out", "new")])
def test_a_folder_without_ledger_is_one_sentence(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    folder = write_run(tmp_path / "run").path
    arguments = [folder if part == "." else part for part in command[1:]]
    assert "has no ledger.jsonl: " in " ".join(call(command[0], folder, *arguments, code=1).split())


def test_diff_names_step_and_number(copied, whole, data, tmp_path):
    assert "no difference" in call("diff", whole, copied)
    other = Run(experiment("self_training.portion.step=0.1"), tmp_path / "other", data_root=data)
    other.run()
    output = call("diff", whole, other.dir.path, code=1)
    assert output.startswith("they part at round-2/pseudo-labels\n")
    assert "round-2/thresholds.json: portion is 0.25 and 0.3\n" in output
    assert "made from: self_training.portion: 0.25 and 0.3\n" in output
    more = Run(experiment("self_training.rounds=3"), copied, data_root=data)
    more.pseudo_label(3)
    assert find_parting(cbst_mx.open_run(whole), cbst_mx.open_run(copied)).step == "round-3/pseudo-labels"
    seed = Run(experiment("seed=1"), tmp_path / "seed", data_root=data)
    seed.train_source()
    output = call("diff", whole, seed.dir.path, code=1)
    assert re.search(r"source/training.json: loss\[0\] is [\d.]+ and [\d.]+\n", output)
    assert "made from: seed: 0 and 1\n" in output


# ------------------------------------------------------------------------------------------------------- branches


def parts(folder, *names):
    return {name: (folder / name).read_bytes() for name in names}


SHARED = ("source/parameters.params", "round-1/parameters.params", "round-1/thresholds.json", "round-1/evaluation.json")


def test_a_branch_shares_what_is_equal_and_goes_on_otherwise(copied, data, tmp_path):
    change = "self_training.portion.initial=0.4"
    fresh = Run(experiment(change), tmp_path / "fresh", data_root=data)
    with pytest.raises(Exception, match="cbst-mx branch"):
        Run(experiment(change), copied, data_root=data)
    output = call("branch", copied, "--from", "round-2", "--set", change, "--out", tmp_path / "new")
    assert "without effect, since its step is shared: self_training.portion (pseudo-labels of round 1)" in output
    new = tmp_path / "new"
    assert f"go on with: cbst-mx run {new / 'experiment.yaml'} --out {new}" in output
    assert parts(new, *SHARED) == parts(copied, *SHARED)
    assert (new / SHARED[0]).stat().st_ino == (copied / SHARED[0]).stat().st_ino
    assert not (new / "round-2").exists()
    assert call("verify", new).endswith(": 5 steps, nothing altered\n")
    run = Run(experiment(change), new, data_root=data)
    run.run()
    assert run.results.thresholds(2)["portion"] == pytest.approx(0.45)
    assert parts(new, *SHARED) == parts(copied, *SHARED)
    assert call("verify", copied).endswith(": 8 steps, nothing altered\n")  # nothing was written into shared files
    again = Run(experiment(change), new, data_root=data)
    assert again.run() == run.results.summary
    with pytest.raises(Exception, match=r"self_training.portion 0.3 \(was 0.4\)"):
        Run(experiment("self_training.portion.initial=0.3"), new, data_root=data)
    del fresh


def test_a_branch_may_keep_pseudo_labels_and_change_the_images(copied, data, tmp_path):
    new, change = tmp_path / "new", "self_training.retraining.learning_rate=0.02"
    call("branch", copied, "--from", "round-1/retraining", "--set", change, "--out", new)
    assert parts(new, "round-1/thresholds.json") == parts(copied, "round-1/thresholds.json")
    assert not (new / "round-1" / "training.json").exists()
    moved = shutil.copytree(data, tmp_path / "data")
    extra = sorted((moved / "gta5" / "images").iterdir())[-1]
    for kind in ("images", "labels"):
        (moved / "gta5" / kind / extra.name).unlink()
    run = Run(experiment(change), new, data_root=moved)
    assert "kept as it is, although what it was made from has changed" in run.dir.log.read_text()
    run.retrain(1)
    with pytest.raises(Exception, match="source images: 1 added"):
        Run(experiment(change), new, data_root=data)


def test_what_cannot_be_branched_is_one_sentence(copied, tmp_path):
    def refused(*arguments):
        output = call("branch", copied, *arguments, "--out", tmp_path / "new", code=1)
        assert not (tmp_path / "new").exists()
        return " ".join(output.split())

    for step in ("round-3", "round-0", "source", "round-1/evaluation", "x/y"):
        assert "from must be round-N or round-N/retraining with N from 1 to 2" in refused("--from", step)
    assert "unknown key" in refused("--from", "round-1", "--set", "rounds=3")
    (copied / "round-1" / "parameters.params").write_bytes(b"")
    assert "cannot be branched: round-1/parameters.params is empty, see cbst-mx verify" in refused("--from", "round-2")
    (copied / "round-1" / "training.json").unlink()
    assert "has no retraining of round 1, which comes before round-2" in refused("--from", "round-2")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    assert "is not empty" in call("branch", copied, "--from", "round-1", "--out", tmp_path / "full", code=1)


# --------------------------------------------------------------------------------------------------- the images


@pytest.fixture
def moved(data, copied, tmp_path, monkeypatch):
    """Return the folder of a run and of data of its own."""
    root = shutil.copytree(data, tmp_path / "data")  # keeps the times
    monkeypatch.setenv("CBST_DATA", str(root))
    return copied, root


def words(*arguments, code=0):
    return " ".join(call("verify", *arguments, code=code).split())


def test_verify_looks_at_the_images(moved):
    run, root = moved
    assert "18 images as recorded (by size and time, --images reads them in full)" in words(run)
    assert "18 images as recorded (read in full)" in words("--images", run)
    images = sorted((root / "gta5" / "images").iterdir())
    labels = root / "gta5" / "labels"
    images[0].write_bytes(images[1].read_bytes())
    (labels / images[2].name).write_bytes((labels / images[3].name).read_bytes())
    images[4].unlink()
    (labels / images[4].name).unlink()
    shutil.copy(images[5], images[5].with_name("99999.png"))
    shutil.copy(labels / images[5].name, labels / "99999.png")
    for option in ((), ("--images",)):
        output = words(*option, run, code=1)
        assert (
            f"source images: 1 changed: {images[0].stem} source images: 1 with a changed label: {images[2].stem}"
            in output
        )
        assert f"source images: 1 missing: {images[4].stem} source images: 1 added: 99999" in output
        assert "4 problems in 8 steps" in output
        assert f"cbst-mx branch {run} --from round-1 --out NEW" in output
    assert "nothing altered" in words("--no-images", run)


def test_the_way_out_of_changed_images_is_one(moved, tmp_path):
    run, root = moved
    path = sorted((root / "cityscapes" / "leftImg8bit" / "train").rglob("*.png"))[0]
    content, status = path.read_bytes(), path.stat()
    path.write_bytes(sorted(path.parent.iterdir())[1].read_bytes())
    assert "target images: 1 changed" in words(run, code=1)
    new = tmp_path / "new"
    call("branch", run, "--from", "round-1", "--out", new)
    path.write_bytes(content)  # put back, at another time: by its content it is the same
    assert "nothing altered" in words(run)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_images_that_changed_under_the_same_size_and_time_are_found_in_full(moved):
    run, root = moved
    path = sorted((root / "gta5" / "images").iterdir())[0]
    content, status = bytearray(path.read_bytes()), path.stat()
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "nothing altered" in words(run)
    assert f"source images: 1 changed: {path.stem}" in words("--images", run, code=1)


def test_images_that_cannot_be_looked_at_are_told(moved, monkeypatch):
    run, root = moved
    (root / "gta5" / "labels" / sorted(os.listdir(root / "gta5" / "labels"))[0]).unlink()
    assert "source images: 1 of 8 images has no label" in words(run, code=1)
    shutil.rmtree(root / "gta5")
    assert "source images: GTA5 data root" in words(run, code=1)
    monkeypatch.delenv("CBST_DATA")
    assert "images were not looked at: path gta5 is relative: set the environment variable CBST_DATA" in words(run)
    (run / "inputs.json").write_text("[]")
    assert "inputs.json is damaged: remove it, and the next command writes it anew" in words(run, code=1)
    (run / "inputs.json").unlink()
    assert "images were not looked at: inputs.json is not there" in words(run)
