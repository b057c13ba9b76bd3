"""What a run folder remembers: finished steps are verified, changes that alter them are refused, others go on."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from cbst_mx.errors import RunError
from cbst_mx.evaluation.run_results import RunResults
from cbst_mx.rounds import Run
from cbst_mx.run_dir import RunDir, versions
from cbst_mx.run_dir.ledger import Ledger
from cbst_mx.run_dir.steps import find_step
from tests.tiny import experiment, write_scenes

STEPS = ["source/training", "source/evaluation"]
STEPS += [f"round-{r}/{name}" for r in (1, 2) for name in ("pseudo-labels", "retraining", "evaluation")]
# what one run and a continued one must have in common, byte for byte
EQUAL = ("*.params", "pseudo_labels/*.png", "thresholds.json", "evaluation.json", "summary.json", "confusion.npz")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes") / "data")


@pytest.fixture(scope="module")
def whole(scenes, tmp_path_factory):
    """Return the folder of a run of two rounds."""
    run = Run(experiment(), tmp_path_factory.mktemp("runs") / "whole", data_root=scenes)
    run.run()
    return run.dir.path


@pytest.fixture(scope="module")
def half(scenes, tmp_path_factory):
    """Return the folder of a run that has made the pseudo-labels of its first round."""
    run = Run(experiment(), tmp_path_factory.mktemp("runs") / "half", data_root=scenes)
    run.train_source()
    run.evaluate(0)
    run.pseudo_label(1)
    return run.dir.path


@pytest.fixture
def data(scenes, tmp_path):
    """Return a copy of the scenes that a test may change."""
    return shutil.copytree(scenes, tmp_path / "data")


@pytest.fixture
def copied(tmp_path):
    """Return a function that copies a run folder."""
    return lambda folder: shutil.copytree(folder, tmp_path / "run", ignore=shutil.ignore_patterns("lock"))


def contents(folder):
    paths = [path for pattern in EQUAL for path in folder.rglob(pattern)]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}


def go_on(folder, data, *changes):
    run = Run(experiment(*changes), folder, data_root=data)
    run.run()
    return run


def log_of(folder):
    return (folder / "log.txt").read_text()


def entry(folder, step):
    return Ledger(RunDir(folder)).finished(step)


# ------------------------------------------------------------------------------------------------------ the ledger


def test_the_ledger_has_a_line_for_every_finished_step(whole):
    lines = [json.loads(line) for line in (whole / "ledger.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["end"]] == STEPS
    found = entry(whole, "round-1/retraining")
    assert found.inputs["parameters"] == entry(whole, "source/training").outputs["source/parameters.params"]["sha256"]
    labels = entry(whole, "round-1/pseudo-labels").outputs["round-1/pseudo_labels"]
    assert found.inputs["pseudo-labels"] == labels["sha256"]
    assert labels["files"] == 5
    assert found.keys["self_training.retraining.learning_rate"] == 0.01
    assert found.versions["numpy"] == np.__version__
    assert found.begun < found.end
    assert not any("checkpoint_every" in key or "workers" in key for key in found.keys)


def test_nothing_is_done_twice(whole, scenes, copied):
    folder = copied(whole)
    before = (folder / "ledger.jsonl").read_bytes()
    go_on(folder, scenes)
    assert (folder / "ledger.jsonl").read_bytes() == before
    assert contents(folder) == contents(whole)


@pytest.mark.parametrize("content", ["{", "[]", '{"step": 1}', "null", "\x00"])
def test_a_damaged_ledger_is_one_sentence(whole, tmp_path, content):
    folder = RunDir(tmp_path)
    folder.ledger.write_text((whole / "ledger.jsonl").read_text() + content + "\n")
    with pytest.raises(RunError, match=r"ledger.jsonl is damaged \(line 9: .*\): put it back .*, or remove it"):
        Ledger(folder)


def test_a_damaged_ledger_may_be_removed(whole, scenes, copied):
    folder = copied(whole)
    ledger = folder / "ledger.jsonl"
    ledger.write_text(ledger.read_text()[50:])
    with pytest.raises(RunError, match=r"ledger.jsonl is damaged \(line 1: .*put it back from a copy, or remove it"):
        go_on(folder, scenes)
    ledger.unlink()
    go_on(folder, scenes)
    assert contents(folder) == contents(whole)


@pytest.mark.parametrize("left", [0, 1, 0.5, 0.9, -1])
def test_a_ledger_whose_end_is_lost_goes_on(whole, scenes, copied, left):
    folder = copied(whole)
    ledger = folder / "ledger.jsonl"
    content = ledger.read_bytes()
    ledger.write_bytes(content[: int(left * len(content)) if 0 < left < 1 else left])
    before = len(Ledger(RunDir(folder)).entries)
    go_on(folder, scenes)
    assert contents(folder) == contents(whole)
    assert len(Ledger(RunDir(folder)).entries) == 8
    assert ("ledger.jsonl is cut off" in log_of(folder)) == (left not in (0, -1))
    assert ("not in the ledger, taken as found" in log_of(folder)) == (before < 8)


def test_a_ledger_of_another_run_is_refused(whole, half, scenes, copied):
    folder = copied(whole)
    shutil.copy(half / "ledger.jsonl", folder)
    with pytest.raises(RunError, match=r"ledger.jsonl is of another run \(\w+\) than manifest.json \(\w+\): put the"):
        go_on(folder, scenes)
    (folder / "ledger.jsonl").unlink()
    go_on(folder, scenes)
    assert contents(folder) == contents(whole)


@pytest.mark.parametrize("key", ["inputs", "outputs", "seed", "begun", "versions"])
def test_no_value_of_a_ledger_can_be_flipped(whole, copied, key):
    ledger = copied(whole) / "ledger.jsonl"
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    text = json.dumps(lines[2][key])
    place = re.search(r"[0-9]", text).start()
    lines[2][key] = json.loads(text[:place] + str(int(text[place]) ^ 1) + text[place + 1 :])
    ledger.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(RunError, match=r"ledger.jsonl is damaged \(line 3: it was altered"):
        Ledger(RunDir(ledger.parent))


@pytest.mark.parametrize("content", ["", "{", '{"name": 1}'])
def test_a_damaged_manifest_is_written_anew(whole, scenes, copied, content):
    folder = copied(whole)
    (folder / "manifest.json").write_text(content)
    go_on(folder, scenes)
    found, before = (json.loads((place / "manifest.json").read_text()) for place in (folder, whole))
    for key in ("id", "name", "config_sha256", "experiment_sha256", "inputs", "versions"):
        assert found[key] == before[key]
    (folder / "manifest.json").write_text(content)
    (folder / "ledger.jsonl").unlink()
    with pytest.raises(RunError, match=r"manifest.json .*; put it back from a copy, or give a new folder"):
        go_on(folder, scenes)


def test_an_altered_experiment_is_not_read_back(whole, scenes, copied):
    folder = copied(whole)
    path = folder / "experiment.yaml"
    path.write_text(path.read_text().replace("learning_rate: 0.01", "learning_rate: 0.11"))
    with pytest.raises(RunError, match=r"experiment.yaml is not what manifest.json says was run: the next cbst-mx run"):
        RunResults(folder)
    go_on(folder, scenes)
    assert path.read_bytes() == (whole / "experiment.yaml").read_bytes()
    RunResults(folder)


def test_a_flipped_value_in_the_ledger_is_damage(whole, copied):
    ledger = copied(whole) / "ledger.jsonl"
    ledger.write_text(ledger.read_text().replace('"self_training.portion": 0.2,', '"self_training.portion": 0.3,'))
    with pytest.raises(RunError, match=r"ledger.jsonl is damaged \(line 3"):
        Ledger(RunDir(ledger.parent))


# ------------------------------------------------------------------------------------------- files that were altered


def permute(folder):
    for path in (folder / "round-1" / "pseudo_labels").iterdir():
        with Image.open(path) as image:
            label, palette = np.asarray(image), image.getpalette()
        changed = Image.fromarray(np.where(label == 255, 255, (label + 1) % 19).astype(np.uint8))
        changed.putpalette(palette)
        changed.save(path)


def empty(folder):
    for path in (folder / "round-1" / "pseudo_labels").iterdir():
        with Image.open(path) as image:
            changed = Image.new("P", image.size, 255)
            changed.putpalette(image.getpalette())
        changed.save(path)


def one(folder):
    return sorted((folder / "round-1" / "pseudo_labels").iterdir())[0]


def exchange(folder):
    first, second = sorted((folder / "round-1" / "pseudo_labels").iterdir())[:2]
    first.rename(folder / "x")
    second.rename(first)
    (folder / "x").rename(second)


def alter_thresholds(folder):
    path = folder / "round-1" / "thresholds.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "predicted": record["predicted"][::-1]}))


DAMAGES = {
    "deleted": lambda folder: one(folder).unlink(),
    "truncated": lambda folder: one(folder).write_bytes(one(folder).read_bytes()[:40]),
    "emptied file": lambda folder: one(folder).write_bytes(b""),
    "added": lambda folder: shutil.copy(one(folder), one(folder).with_name("more.png")),
    "all gone": lambda folder: shutil.rmtree(folder / "round-1" / "pseudo_labels"),
    "permuted ids": permute,
    "all ignored": empty,
    "exchanged": exchange,
    "thresholds": alter_thresholds,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_altered_pseudo_labels_are_noticed(half, copied, damage):
    folder = RunDir(copied(half))
    step = find_step(folder, "labels", 1)
    assert Ledger(folder).problems(step, full=True) == {}
    DAMAGES[damage](folder.path)
    (problem,) = Ledger(folder).problems(step).values()
    assert problem.startswith("round-1/")


@pytest.mark.parametrize("damage", ["deleted", "exchanged"])
def test_altered_pseudo_labels_are_made_again_where_the_sentence_says(half, scenes, copied, damage):
    folder = copied(half)
    DAMAGES[damage](folder)
    with pytest.raises(RunError, match="not what the pseudo-labels of round 1 wrote: .* run pseudo-label for"):
        Run(experiment(), folder, data_root=scenes).retrain(1)
    assert not (folder / "round-1" / "training.json").exists()
    run = Run(experiment(), folder, data_root=scenes)
    with run.dir.logging():
        run.pseudo_label(1)  # the advice of the sentence
    assert "pseudo-labels of round 1: round-1/" in log_of(folder)
    assert contents(folder / "round-1") == contents(half / "round-1")


@pytest.mark.parametrize("damage", ["permuted ids"])
def test_run_makes_altered_pseudo_labels_again_itself(half, whole, scenes, copied, damage):
    folder = copied(half)
    DAMAGES[damage](folder)
    go_on(folder, scenes)
    assert "; it is made again" in log_of(folder)
    assert contents(folder) == contents(whole)


@pytest.mark.parametrize("damage", ["all gone"])
def test_pseudo_labels_of_rounds_that_are_over_are_not_needed(whole, scenes, copied, damage):
    folder = copied(whole)
    DAMAGES[damage](folder)
    go_on(folder, scenes)
    assert "it is not needed for what is left" in log_of(folder)
    Run(experiment(), folder, data_root=scenes).pseudo_label(1)
    assert contents(folder) == contents(whole)


def test_altered_thresholds_of_a_round_that_is_over_are_made_again(whole, scenes, copied):
    folder = copied(whole)
    alter_thresholds(folder)
    go_on(folder, scenes)
    assert contents(folder) == contents(whole)


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def foreign_parameters(folder):
    for name in ("parameters.params", "parameters.params.json"):
        shutil.copy(folder / "source" / name, folder / "round-1" / name)


@pytest.mark.parametrize("damage", ["flipped", "foreign"])
def test_altered_parameters_are_noticed_and_can_be_made_again(whole, scenes, copied, damage):
    folder = copied(whole)
    shutil.rmtree(folder / "round-2")
    path = folder / "round-1" / "parameters.params"
    {"flipped": flip_bit, "foreign": lambda path: foreign_parameters(folder)}[damage](path)
    sentence = (
        r"round-1/parameters.params.* in .*run, which is not what the retraining of round 1 wrote: put it back .*"
    )
    for call in (Run.run, lambda run: run.pseudo_label(2)):
        with pytest.raises(RunError, match=sentence + ", or run retrain for round 1 again"):
            call(Run(experiment(), folder, data_root=scenes))
    Run(experiment(), folder, data_root=scenes).retrain(1)
    go_on(folder, scenes)
    assert contents(folder) == contents(whole)


def test_parameters_that_nothing_needs_any_more_may_go(whole, scenes, copied):
    folder = copied(whole)
    (folder / "round-1" / "parameters.params").unlink()
    go_on(folder, scenes)
    assert "round-1/parameters.params is missing; it is not needed for what is left" in log_of(folder)


@pytest.mark.parametrize("name", ["evaluation.json", "confusion.npz"])
def test_altered_evaluations_are_made_again(whole, scenes, copied, name):
    folder = copied(whole)
    path = folder / "round-1" / name
    path.write_bytes(b"{}" if name.endswith("json") else path.read_bytes()[:-1])
    go_on(folder, scenes)
    assert contents(folder) == contents(whole)


# --------------------------------------------------------------------------------------- what a run goes on with


FREE = {
    "rounds": ("self_training.rounds=3",),
    "where and how": ("self_training.retraining.checkpoint_every=1", "workers=0", "name=other", "inference_batch=1"),
    "schedule of the rounds to come": ("self_training.portion.step=0.1",),
}


@pytest.mark.parametrize("changes", FREE.values(), ids=FREE)
def test_changes_that_alter_nothing_that_is_finished_go_on(half, scenes, copied, changes):
    folder = copied(half)
    before = contents(folder)
    Run(experiment(*changes), folder, data_root=scenes).retrain(1)
    assert {name: contents(folder)[name] for name in before} == before


def test_a_run_that_is_given_more_rounds_is_the_run_of_more_rounds(whole, scenes, copied, tmp_path):
    folder = copied(whole)
    run = go_on(folder, scenes, "self_training.rounds=3")
    assert [stage["round"] for stage in run.results.summary["stages"]] == [0, 1, 2, 3]
    fresh = go_on(tmp_path / "fresh", scenes, "self_training.rounds=3")
    assert contents(folder) == contents(fresh.dir.path)


def test_other_evaluation_settings_make_the_evaluations_again(whole, scenes, copied, tmp_path):
    folder = copied(whole)
    changes = ("evaluation.flip=false", "evaluation.scales=[0.5, 1.0]")
    go_on(folder, scenes, *changes)
    fresh = go_on(tmp_path / "fresh", scenes, *changes)
    assert contents(folder) == contents(fresh.dir.path)
    assert "evaluation of round 1 is made again: evaluation.flip False (was True)" in log_of(folder)
    assert sum(line.count('"end": "') for line in (folder / "ledger.jsonl").read_text().splitlines()) == 8 + 3


def test_a_moved_folder_and_moved_data_go_on(half, whole, data, tmp_path):
    folder = shutil.copytree(half, tmp_path / "an other place ü", copy_function=shutil.copy)  # other times
    for path in data.rglob("*.png"):
        os.utime(path, (1, 1))
    go_on(folder, data)
    assert contents(folder) == contents(whole)


ALTERING = {
    "seed": ("seed=1", "training of the source network would be altered by seed 1 (was 0)"),
    "crop": ("augmentation.crop=[32, 32]", "augmentation.crop [32, 32] (was [32, 64])"),
    "rate": ("source_training.learning_rate=0.1", "source_training.learning_rate 0.1 (was 0.05)"),
    "portion": (
        "self_training.portion.initial=0.3",
        "pseudo-labels of round 1 would be altered by self_training.portion 0.3 (was 0.2)",
    ),
    "flip": ("self_training.flip=false", "self_training.flip False (was True)"),
    "network": ("network.options.dropout=0.2", "network.options.dropout 0.2 (was 0.1)"),
    "start": ("initial_parameters=x.params", "by source_training None (was {"),
}


@pytest.mark.parametrize(("change", "sentence"), ALTERING.values(), ids=ALTERING)
def test_changes_that_would_alter_what_is_finished_are_refused(half, scenes, copied, change, sentence):
    folder = copied(half)
    before = files(folder)
    changes = (change, "source_training=null") if change.startswith("initial") else (change,)
    if change.startswith("initial"):
        changes = (f"initial_parameters={folder / 'source' / 'parameters.params'}", "source_training=null")
    with pytest.raises(RunError, match=r"^output folder .*run belongs to another run: ") as refused:
        Run(experiment(*changes), folder, data_root=scenes)
    assert sentence in str(refused.value)
    assert ("cbst-mx branch" in str(refused.value)) == ("of round 1" in str(refused.value))
    assert files(folder) == before


def test_only_rounds_that_are_trained_bind_their_settings(half, whole, scenes, copied):
    folder = copied(half)
    Run(experiment("self_training.retraining.learning_rate=0.02"), folder, data_root=scenes)
    Run(experiment(), folder, data_root=scenes).retrain(1)
    with pytest.raises(RunError, match=r"retraining of round 1 would be altered by self_training.retraining.learn"):
        Run(experiment("self_training.retraining.learning_rate=0.02"), folder, data_root=scenes)


def test_a_training_that_has_begun_goes_on_as_it_began_or_anew(half, scenes, copied):
    folder = copied(half)
    slow, fast = (
        f"self_training.retraining={{iterations: 4, batch_size: 4, learning_rate: {r}}}" for r in (0.01, 0.02)
    )
    slow, fast = (text.replace("}", ", checkpoint_every: 1}") for text in (slow, fast))

    def stop(what, done, total):
        if done == 2:
            raise KeyboardInterrupt

    run = Run(experiment(slow), folder, data_root=scenes)
    run.progress = stop
    with pytest.raises(KeyboardInterrupt):
        run.retrain(1)
    checkpoint = folder / "round-1" / "checkpoint.params"
    assert checkpoint.is_file()
    with pytest.raises(RunError, match=r"round 1, which has begun, would be .*rate 0.02 \(was 0.01\) .*remove "):
        Run(experiment(fast), folder, data_root=scenes)
    checkpoint.unlink()
    Run(experiment(fast), folder, data_root=scenes).retrain(1)


# ------------------------------------------------------------------------------------------------------- the inputs


def change_image(path):
    with Image.open(path) as image:
        Image.fromarray(255 - np.asarray(image)).save(path)


def target(data):
    return sorted((data / "cityscapes" / "leftImg8bit" / "train").rglob("*.png"))


INPUTS = {
    "target image changed": (lambda data: change_image(target(data)[0]), r"target images: 1 changed \(\w+\)"),
    "target image removed": (lambda data: target(data)[0].unlink(), r"target images: 1 removed"),
    "target image added": (
        lambda data: shutil.copy(target(data)[0], str(target(data)[0]).replace("00000", "99999")),
        "target images: 1 added",
    ),
    "source image changed": (
        lambda data: change_image(sorted((data / "gta5" / "images").iterdir())[0]),
        r"training of the source network would be altered by source images: 1 changed \(\w+\)",
    ),
    "source label changed": (
        lambda data: shutil.copy(*sorted((data / "gta5" / "labels").iterdir())[:2]),
        "source images: 1 with changed labels",
    ),
    "source pair removed": (
        lambda data: [sorted((data / "gta5" / kind).iterdir())[-1].unlink() for kind in ("images", "labels")],
        "source images: 1 removed",
    ),
}


@pytest.mark.parametrize(("change", "sentence"), INPUTS.values(), ids=INPUTS)
def test_changed_images_and_labels_are_named(half, data, copied, change, sentence):
    folder = copied(half)
    change(data)
    with pytest.raises(RunError, match=sentence):
        Run(experiment(), folder, data_root=data)


def test_changed_evaluation_images_make_the_evaluations_again(half, data, copied):
    folder = copied(half)
    before = (folder / "source" / "confusion.npz").read_bytes()
    for path in (data / "cityscapes" / "leftImg8bit" / "val").rglob("*.png"):
        change_image(path)
    run = Run(experiment(), folder, data_root=data)
    with run.dir.logging():
        run.evaluate(0)
    assert (folder / "source" / "confusion.npz").read_bytes() != before
    assert "made again: validation target images: 3 changed" in log_of(folder)


def test_images_that_change_within_one_command_are_noticed(data, tmp_path):
    run = Run(experiment(), tmp_path / "run", data_root=data)
    run.train_source()
    run.pseudo_label(1)
    change_image(target(data)[0])
    with pytest.raises(RunError, match="target images have changed since the run began: 1 changed"):
        run.retrain(1)


DESCRIPTION = """
label_space:
  name: three
  names: [road, sidewalk, building]
  palette: [[128, 64, 128], [244, 35, 232], [70, 70, 70]]
  ids: {OTHERS, 7: 0, 8: 1, 11: 2}
splits: {all: {images: [images/*.png], labels: {replace: [["^images/", "labels/"]]}}}
"""
DESCRIPTION = DESCRIPTION.replace("OTHERS", ", ".join(f"{i}: ignore" for i in range(35) if i not in (7, 8, 11)))


def described(data, folder, text):
    """Return the changes that read the source by a description of one's own."""
    (folder / "d.yaml").write_text(text)
    where = f"{{format: folder, root: {data / 'gta5'}, split: all, description: {folder / 'd.yaml'}}}"
    return (f"source={where}", "label_space=folder", "self_training.rounds=0", "validation={}")


def test_a_description_may_be_written_otherwise_but_not_mean_otherwise(data, tmp_path):
    go_on(tmp_path / "run", data, *described(data, tmp_path, DESCRIPTION))
    before = files(tmp_path / "run" / "source")
    go_on(tmp_path / "run", data, *described(data, tmp_path, "# x\n" + yaml.safe_dump(yaml.safe_load(DESCRIPTION))))
    assert files(tmp_path / "run" / "source") == before
    swapped = DESCRIPTION.replace("7: 0, 8: 1", "7: 1, 8: 0")
    with pytest.raises(RunError, match=re.escape("source labels: ids.7 'sidewalk' (was 'road')")):
        go_on(tmp_path / "run", data, *described(data, tmp_path, swapped))
    renamed = DESCRIPTION.replace("[road, sidewalk,", "[sidewalk, road,")
    with pytest.raises(RunError, match=re.escape("classes ['sidewalk', 'road', 'building'] (was ['road', ")):
        go_on(tmp_path / "run", data, *described(data, tmp_path, renamed))


def test_parameters_at_the_start_are_known_by_content(whole, scenes, tmp_path):
    for name in ("parameters.params", "parameters.params.json"):
        shutil.copy(whole / "source" / name, tmp_path / name)
        shutil.copy(whole / "source" / name, tmp_path / f"elsewhere.{name.partition('.')[2]}")
    start = tmp_path / "parameters.params"

    def changes(path):
        return (f"initial_parameters={path}", "source_training=null", "self_training.rounds=1")

    Run(experiment(*changes(start)), tmp_path / "run", data_root=scenes).train_source()
    Run(experiment(*changes(tmp_path / "elsewhere.params")), tmp_path / "run", data_root=scenes)  # another path
    for name in ("parameters.params", "parameters.params.json"):
        shutil.copy(whole / "round-1" / name, tmp_path / name)
    with pytest.raises(RunError, match=r"other content of .*parameters.params \(parameters at the start\)"):
        Run(experiment(*changes(start)), tmp_path / "run", data_root=scenes)
    start.unlink()
    go_on(tmp_path / "run", scenes, *changes(start))  # its copy is in the folder


# -------------------------------------------------------------------------------------------- folders without ledger


def test_folders_from_before_the_ledger_are_adopted(half, whole, scenes, copied):
    folder = copied(half)
    for name in ("ledger.jsonl", "inputs.json"):
        (folder / name).unlink()
    with pytest.raises(RunError, match=r"would be altered by seed 1 \(was 0\)"):
        Run(experiment("seed=1"), folder, data_root=scenes)
    go_on(folder, scenes)
    assert "not in the ledger, taken as found: training of the source network, " in log_of(folder)
    assert contents(folder) == contents(whole)
    assert entry(folder, "source/training").note == "adopted"
    with pytest.raises(RunError, match=r"would be altered by seed 1 \(was 0\)"):
        Run(experiment("seed=1"), folder, data_root=scenes)


@pytest.mark.parametrize("damage", ["deleted", "permuted ids", "truncated"])
def test_damage_in_folders_from_before_the_ledger_is_noticed_too(half, whole, scenes, copied, damage):
    folder = copied(half)
    (folder / "ledger.jsonl").unlink()
    DAMAGES[damage](folder)
    go_on(folder, scenes)
    assert contents(folder) == contents(whole)


@pytest.mark.parametrize("step", [0, 2])
def test_killed_between_the_end_of_a_step_and_its_line(whole, scenes, copied, step, monkeypatch):
    folder = copied(whole)
    lines = (folder / "ledger.jsonl").read_text().splitlines(keepends=True)
    index = [number for number, line in enumerate(lines) if json.loads(line)["end"]][step]
    (folder / "ledger.jsonl").write_text("".join(lines[:index]))
    go_on(folder, scenes)
    assert contents(folder) == contents(whole)


def test_a_run_that_is_finished_needs_no_space(whole, scenes, copied, monkeypatch):
    usage = shutil.disk_usage(whole)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    folder = copied(whole)
    go_on(folder, scenes)
    with pytest.raises(RunError, match="not enough disk space for the run folder"):
        go_on(folder, scenes, "self_training.rounds=3")


def test_other_versions_and_threads_are_told(half, scenes, copied, monkeypatch):
    folder = copied(half)
    path = folder / "ledger.jsonl"
    lines = re.sub(r', "line_sha256": "[^"]*"', "", path.read_text())
    path.write_text(re.sub(r'"numpy": "[^"]*"', '"numpy": "1.0"', lines))
    monkeypatch.setenv("OMP_NUM_THREADS", "77")
    Run(experiment(), folder, data_root=scenes)
    assert re.search(r"goes on with numpy [\d.]+ \(was 1.0\), OMP_NUM_THREADS 77 \(was \w+\)", log_of(folder))


def test_another_processor_is_told(half, scenes, copied, monkeypatch, tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nmodel name\t: One of Tests\nflags\t\t: fpu sse4_1 avx avx2\n")
    monkeypatch.setattr("cbst_mx.run_dir.folder._CPUINFO", path)
    folder = copied(half)
    before = versions()["processor"]
    assert before == "One of Tests, avx2"
    Run(experiment(), folder, data_root=scenes)
    assert re.search(r"goes on with processor One of Tests, avx2 \(was .+\): numbers may differ", log_of(folder))


def test_a_processor_of_which_nothing_is_known_has_a_name(monkeypatch, tmp_path):
    monkeypatch.setattr("cbst_mx.run_dir.folder._CPUINFO", tmp_path / "none")
    assert versions()["processor"] in (platform.processor(), platform.machine())
