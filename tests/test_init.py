"""`cbst-mx init`: the loader reads the files it writes, the doctor finds nothing wrong, nothing is half written."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import yaml
from click.testing import CliRunner

from cbst_mx.cli import main
from cbst_mx.config import draft_files, load_experiment
from cbst_mx.data.description import read_description
from cbst_mx.data.doctor import examine
from cbst_mx.errors import RunError
from tests.own_photos import mask, pairs, photograph


def init(folder, out, *arguments, code=0, answers=None):
    """Run `init` and return what it says, in one line."""
    result = CliRunner().invoke(main, ["init", str(folder), "--out", str(out), *map(str, arguments)], input=answers)
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


@pytest.fixture
def photos(tmp_path):
    """Return a folder with a labelled day, one image of it without a label, dusk, and labelled dusk."""
    folder = tmp_path / "my photos"
    pairs(folder, "day/a/IMG {}.jpg", "day-masks/a/IMG {}_mask.png", count=12)
    pairs(folder, "day/b/PIC {}.JPG", "day-masks/b/PIC {}_mask.png", count=12, size=(80, 60))
    photograph(folder / "day" / "a" / "grey.jpg", grey=True)
    pairs(folder, "dusk/Ä{}.jpg", "", count=5)
    pairs(folder, "dusk-check/{}.png", "dusk-check-masks/{}_mask.png", count=4)
    return folder


def check(folder, out, stem):
    """Return the experiment; the doctor has no error to tell of the description."""
    experiment = load_experiment(out / f"{stem}-cbst.yaml")
    report = examine("folder", folder, sample=None, description=out / f"{stem}-data.yaml")
    assert report.ok, [finding for finding in report.findings if finding.severity == "error"]
    return experiment


def test_without_questions(photos, tmp_path):
    out = tmp_path / "out"
    said = init(photos, out, "--yes")
    experiment = check(photos, out, "my-photos")
    assert sorted(path.name for path in out.iterdir()) == ["my-photos-cbst.yaml", "my-photos-data.yaml"]
    assert (len(experiment.open_source()), experiment.open_source().left_out) == (24, 1)
    assert len(experiment.open_target()) == 5
    assert {name: len(images) for name, images in experiment.open_validation().items()} == {"target": 4}
    assert experiment.classes().names == ("class-0", "class-1", "class-2", "class-3")
    rates = experiment.source_training.learning_rate, experiment.self_training.retraining.learning_rate
    assert rates[1] == rates[0] / 16
    assert max(experiment.augmentation.crop) <= 80
    for text in ("1 image of day without a label", "names not known: 4 of 4", "evaluation: dusk-check"):
        assert text in said
    commands = re.findall(r"cbst-mx (\w+)", said)
    assert commands[-5:] == ["doctor", "plan", "run", "report", "predict"]


def test_the_commands_that_it_ends_with_are_right(photos, tmp_path):
    result = CliRunner().invoke(main, ["init", str(photos), "--out", str(tmp_path / "out"), "--yes"])
    import shlex

    lines = [shlex.split(line) for line in result.output.splitlines() if line.strip().startswith("cbst-mx ")]
    assert [line[1] for line in lines] == ["doctor", "plan", "run", "report", "predict"]
    assert CliRunner().invoke(main, lines[0][1:]).exit_code == 0
    assert load_experiment(lines[1][2]).name == load_experiment(lines[2][2]).name == "my-photos-cbst"
    assert lines[4][2].endswith("dusk")


def test_answers(photos, tmp_path):
    out = tmp_path / "out"
    pairs(photos, "night/{}.jpg", "", count=9)
    said = init(photos, out, answers="dusk\nday\ndusk-check\nroad\nplants\nsky\nvoid\n")
    assert "target, images to adapt to (day, dusk, dusk-check, night) [night]: dusk" in said
    experiment = check(photos, out, "my-photos")
    assert experiment.target.split == "dusk"
    assert experiment.classes().names == ("road", "plants", "sky")
    description = yaml.safe_load((out / "my-photos-data.yaml").read_text(encoding="utf-8"))
    assert description["label_space"]["ids"] == {0: "road", 1: "plants", 2: "sky", 3: "ignore"}


def test_options_answer_everything(photos, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "names.csv").write_text("id,name\n0,road\n1,plants\n2,sky\n", encoding="utf-8")
    init(
        photos, out, "--yes", "--name", "x", "--source", "dusk-check", "--target", "day", "--evaluate", "day",
        "--classes", tmp_path / "names.csv", "--class", "3=car",
    )  # fmt: skip
    experiment = check(photos, out, "x")
    assert (experiment.source.split, experiment.target.split) == ("dusk-check", "day")
    assert len(experiment.open_validation()["target"]) == 24
    assert experiment.classes().names == ("road", "plants", "sky", "car")
    assert experiment.name == "x-cbst"


def test_an_unanswered_question_writes_nothing(photos, tmp_path):
    # a process: before click 8.2 its runner takes the end of the input for empty answers
    code = "from cbst_mx.cli import main; main()"
    command = [sys.executable, "-W", "ignore", "-c", code, "init", str(photos), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, input="road\n", capture_output=True, text=True)
    assert done.returncode == 1
    said = " ".join((done.stdout + done.stderr).split())
    assert "nothing is written, a question was not answered: --yes asks none" in said
    assert not (tmp_path / "out").exists()


def test_without_a_labelled_target_some_source_images_are_held_out(tmp_path):
    pairs(tmp_path / "in", "day/{}.jpg", "gt/{}.png", count=60, kind="palette")
    pairs(tmp_path / "in", "other/x{}.png", "", count=5)
    said = init(tmp_path / "in", tmp_path / "out", "--yes")
    assert "the last 6 labelled images of day are held out" in said
    experiment = check(tmp_path / "in", tmp_path / "out", "in")
    held, kept = experiment.open_validation()["source"], experiment.open_source()
    assert (len(held), len(kept), set(held.names) & set(kept.names)) == (6, 54, set())
    assert experiment.classes().palette[0] == (128, 64, 128)


def test_colour_masks_beside_the_images(tmp_path):
    pairs(tmp_path / "in", "day/{}.png", "day/{}_mask.png", count=6, kind="colours")
    pairs(tmp_path / "in", "real/{}.png", "", count=3)
    (tmp_path / "in" / "classes.txt").write_text("128 64 128 road\n107,142,35\tplants\nsky:70,130,180::\n")
    init(tmp_path / "in", tmp_path / "out", "--yes")
    experiment = check(tmp_path / "in", tmp_path / "out", "in")
    assert len(experiment.open_source()) == 6
    assert sorted(experiment.classes().names) == ["plants", "road", "sky"]
    assert set(experiment.open_source().label(0).ravel()) == {0, 1, 2, 255}


def test_few_labelled_images_and_nothing_to_measure_on(tmp_path):
    pairs(tmp_path / "in", "day/{}.jpg", "gt/{}.png", count=3)
    pairs(tmp_path / "in", "other/x{}.png", "", count=2)
    said = init(tmp_path / "in", tmp_path / "out", "--yes")
    assert "none held out (only 3 labelled images)" in said
    experiment = check(tmp_path / "in", tmp_path / "out", "in")
    assert experiment.validation == {}
    assert experiment.source_training.batch_size <= 3


def test_one_folder_of_which_half_has_labels(tmp_path):
    pairs(tmp_path / "in", "all/{}.jpg", "masks/{}.png", count=12)
    pairs(tmp_path / "in", "all/x{}.jpg", "", count=11)
    init(tmp_path / "in", tmp_path / "out", "--yes")
    experiment = check(tmp_path / "in", tmp_path / "out", "in")
    assert (len(experiment.open_source()), len(experiment.open_target())) == (12, 11)


def test_large_images_are_seen_smaller(tmp_path):
    pairs(tmp_path / "in", "day/{}.jpg", "gt/{}.png", count=3, size=(900, 1200))
    pairs(tmp_path / "in", "other/x{}.png", "", count=2, size=(1200, 900))
    init(tmp_path / "in", tmp_path / "out", "--yes")
    experiment = check(tmp_path / "in", tmp_path / "out", "in")
    side = experiment.self_training.long_side
    assert side in (480, 768)
    assert experiment.evaluation.long_side == side
    assert experiment.augmentation.scale[0] == pytest.approx(0.7 * side / 1200, abs=1e-3)  # rounded to 3 digits


def test_published_data_and_own_photographs(tmp_path):
    pairs(tmp_path / "in", "gta5/images/0{}.png", "gta5/labels/0{}.png", count=3, kind="palette")
    pairs(tmp_path / "in", "mine/{}.jpg", "", count=3)
    said = init(tmp_path / "in", tmp_path / "out", "--yes")
    assert "has the layout of gta5" in said
    experiment = load_experiment(tmp_path / "out" / "in-cbst.yaml")
    assert (experiment.source.format, experiment.label_space, len(experiment.open_target())) == (
        "gta5",
        "cityscapes-19",
        3,
    )
    assert read_description(tmp_path / "out" / "in-data.yaml").splits["mine"].labels is None


def test_generated_scenes_are_two_published_sets(tmp_path):
    demo = ["demo-data", str(tmp_path / "in"), "--size", "32", "64"]
    for name, count in (("source", 4), ("source-val", 2), ("target", 3), ("target-val", 2)):
        demo += [f"--{name}", str(count)]
    assert CliRunner().invoke(main, demo).exit_code == 0
    said = init(tmp_path / "in", tmp_path / "out", "--yes")
    experiment = load_experiment(tmp_path / "out" / "in-cbst.yaml")
    assert (experiment.source.format, len(experiment.open_source())) == ("gta5", 4)
    assert (experiment.target.split, len(experiment.open_target())) == ("train", 3)
    assert {name: len(images) for name, images in experiment.open_validation().items()} == {"target": 2}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["in-cbst.yaml"]
    assert "cbst-mx doctor gta5" in said
    assert "leftImg8bit/train" in said


def test_names_of_cityscapes_files_are_enough(tmp_path):
    pairs(tmp_path / "in", "day/{}.png", "day/{}_gtFine_labelTrainIds.png", count=3)
    pairs(tmp_path / "in", "mine/{}.jpg", "", count=3)
    assert "hold Cityscapes' trainIds" in init(tmp_path / "in", tmp_path / "out", "--yes")
    assert check(tmp_path / "in", tmp_path / "out", "in").classes().name == "cityscapes-19"


def test_nothing_is_overwritten_without_being_asked(photos, tmp_path):
    out = tmp_path / "out"
    init(photos, out, "--yes")
    (out / "my-photos-data.yaml").write_text("mine\n")
    before = (out / "my-photos-cbst.yaml").read_bytes()
    assert "my-photos-data.yaml exists already: give another --name or --out, or --overwrite" in init(
        photos, out, "--yes", code=1
    )
    assert (out / "my-photos-data.yaml").read_text() == "mine\n"
    init(photos, out, "--yes", "--overwrite")
    assert (out / "my-photos-cbst.yaml").read_bytes() == before


def test_what_the_loader_refuses_leaves_nothing(photos, tmp_path, monkeypatch):
    written = draft_files.write_text

    def fail(path, text):
        if "cbst.yaml" in path.name:
            raise RunError("cannot write: disk full")
        written(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(draft_files, "write_text", fail)
        assert "disk full" in init(photos, tmp_path / "out", "--yes", code=1)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--source", "no"), "--source must be one of day, dusk, dusk-check, got 'no'"),
        (("--source", "dusk"), "--source dusk must have labels"),
        (("--source", "day", "--target", "day"), "source and target must be different images"),
        (("--class", "9=road"), "--class 9 must be a value of the masks: 0, 1, 2, 3"),
        (("--classes", "no.txt"), "list of classes no.txt does not exist"),
        (("--pretrained", "no.params"), "--pretrained cannot be used: parameter file no.params does not exist"),
        (("--exclude", "day-masks", "--exclude", "dusk-check-masks"), "no image has a label"),
    ],
)
def test_refusals_are_one_sentence(photos, tmp_path, arguments, sentence):
    assert sentence in init(photos, tmp_path / "out", "--yes", *arguments, code=1)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_odd_names_stay_text(tmp_path):
    folder = tmp_path / "in"
    pairs(folder, "yes/{}.jpg", "yes-gt/{}.png", count=3)
    pairs(folder, "# {{x}}: '1'/{}.jpg", "", count=3)
    mask(folder / "yes-gt" / "0000.png", values=(0, 1, 2, 255))
    init(folder, tmp_path / "out", "--yes", "--class", "0=no", "--class", '1=a "b": #c', "--class", "2={{ 7 * 7 }}")
    experiment = check(folder, tmp_path / "out", "in")
    assert experiment.classes().names[:3] == ("no", 'a "b": #c', "{{ 7 * 7 }}")
    assert experiment.target.split == "# {x}: '1'"


def test_files_that_are_there_are_told_before_anything_is_asked(photos, tmp_path):
    out = tmp_path / "out"
    init(photos, out, "--yes")
    result = CliRunner().invoke(main, ["init", str(photos), "--out", str(out)])
    assert result.exit_code == 1
    assert result.output.splitlines() == [
        f"Error: {out / 'my-photos-data.yaml'} exists already: give another --name or --out, or --overwrite"
    ]
