"""The doctor: sound data pass, every mistake is found, named and given its remedy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from cbst_mx.cli import main
from cbst_mx.cli.doctor import doctor as command
from cbst_mx.data import ImageSet, gta5, published
from cbst_mx.data.doctor import examine
from cbst_mx.errors import ConfigError
from cbst_mx.label_space import CITYSCAPES_19
from tests.dataset_fixtures import (
    CITYSCAPES_IDS,
    SIZE,
    truncate,
    write_cityscapes,
    write_gta5,
    write_ids,
    write_rgb,
)
from tests.doctor_fixtures import WRITERS, errors, the_error

# --- sound data -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", WRITERS)
def test_sound_data_pass_without_a_word(roots, dataset):
    report = examine(dataset, roots[dataset])
    assert report.findings == ()
    assert report.ok
    assert sum(report.images.values()) == report.examined
    assert sum(report.frequencies.values()) == pytest.approx(1)


def test_frequencies_are_those_of_the_labels(roots):
    report = examine("gta5", roots["gta5"])
    labels = gta5.open_labelled(roots["gta5"], CITYSCAPES_19)
    train_ids = np.concatenate([labels.label(i).ravel() for i in range(3)])
    for i, name in enumerate(CITYSCAPES_19.names):
        assert report.frequencies[name] == pytest.approx((train_ids == i).sum() / (train_ids != 255).sum())
        assert report.presence[name] == (3 if i in (0, 1, 2, 8, 10, 13) else 0)
    assert report.ignored == pytest.approx((train_ids == 255).mean())


def test_parts_of_a_data_set(roots):
    assert examine("cityscapes", roots["cityscapes"]).images == {"train": 3, "val": 2}
    assert examine("cityscapes", roots["cityscapes"], split="val").images == {"val": 2}
    assert examine("nthu", roots["nthu"], city="Rio").images == {"Rio train": 4, "Rio test": 3}
    assert examine("nthu", roots["nthu"] / "Rio", split="test").images == {"Rio test": 3}
    write_cityscapes(roots["cityscapes"], cities=(("test", "bonn", 1),))
    report = examine("cityscapes", roots["cityscapes"])
    assert report.ok
    assert report.images["test"] == 1


def test_cityscapes_needs_no_train_ids_but_reads_them(roots):
    report = examine("cityscapes", roots["cityscapes"], labels="labelTrainIds")
    assert [finding.what for finding in errors(report)] == ["3 labels are missing", "2 labels are missing"]
    assert errors(report)[0].fix == f"cbst-mx prepare cityscapes {roots['cityscapes']}"


def test_sample_is_spread_over_the_images(roots, monkeypatch):
    seen = []
    monkeypatch.setattr(ImageSet, "image", lambda self, index: seen.append(index))
    assert examine("gta5", roots["gta5"], sample=2).examined == 2
    assert seen == [0, 2]
    assert examine("nthu", roots["nthu"], sample=1).examined == 8  # of each part
    assert examine("gta5", roots["gta5"], sample=None).examined == 3


# --- lists and folders ------------------------------------------------------------------------------------------------


def test_lists(roots, tmp_path):
    root = roots["gta5"]
    (root / "two.txt").write_text("1\n3\n")
    (root / "images/00002.png").unlink()
    (root / "labels/00002.png").unlink()
    report = examine("gta5", root, list="two.txt")
    assert report.findings == ()
    assert report.images == {"images": 2}
    (root / "two.txt").write_text("1\n2\n")
    finding = the_error(examine("gta5", root, list="two.txt"))
    assert "names 1 of 2 images not there: 2" in finding.what
    assert finding.fix
    (roots["cityscapes"] / "x.txt").write_text("ulm_000001_000019\n")
    assert examine("cityscapes", roots["cityscapes"], list="x.txt").images == {"train": 1}
    (roots["nthu"] / "x.txt").write_text("pano_00001_2_0\n")
    with pytest.raises(ConfigError, match="among the images of one part, got Rome train, Rome test, Rio train"):
        examine("nthu", roots["nthu"], list="x.txt")
    assert examine("nthu", roots["nthu"], city="Rio", split="test", list="x.txt").images == {"Rio test": 1}


@pytest.fixture
def described(tmp_path):
    root = tmp_path / "own"
    for name in ("a", "b"):
        write_rgb(root / f"day/{name}.png")
        write_ids(root / f"day_labels/{name}.png", [0, 1, 9])
        write_rgb(root / f"dusk/{name}.png")
    path = tmp_path / "own.yaml"
    path.write_text(
        "label_space:\n  name: two\n  names: [sky, road]\n  palette: [[70, 130, 180], [128, 64, 128]]\n"
        "  ids: {0: 0, 1: 1, 9: ignore}\n"
        'splits:\n  day: {images: ["day/*.png"], labels: "{folder}_labels/{stem}.png"}\n'
        '  dusk: {images: ["dusk/*.png"]}\n'
    )
    return root, path


def test_described_folders(described):
    root, path = described
    report = examine("folder", root, description=path)
    assert report.findings == ()
    assert report.images == {"day": 2, "dusk": 2}
    assert report.labels_read == 2
    assert set(report.frequencies) == {"sky", "road"}
    write_ids(root / "day_labels/b.png", [0, 5])
    assert the_error(examine("folder", root, description=path)).what == "1 label has unknown ids (5)"
    (root / "day_labels/b.png").unlink()
    assert "1 of 2 images has no label" in the_error(examine("folder", root, description=path)).what
    assert examine("folder", root, description=path, split="dusk").ok


def test_every_remedy_is_in_the_wheel(roots):
    write_rgb(roots["gta5"] / "images/00002.png", size=(SIZE[0] - 1, SIZE[1]))
    write_ids(roots["gta5"] / "labels/00002.png", CITYSCAPES_IDS, size=(SIZE[0] - 1, SIZE[1]), palette=True)
    options = {"gta5": {}, "synthia": {"labels": "trainIds"}, "cityscapes": {"labels": "labelTrainIds"}}
    for dataset, labels in options.items():
        fix = examine(dataset, roots[dataset], **labels).findings[0].fix
        program, *arguments = fix.partition(", where")[0].split()
        assert program == "cbst-mx"
        size = ["--size", *map(str, SIZE)] if dataset == "gta5" else []
        result = CliRunner().invoke(main, arguments + size)
        assert result.exit_code == 0, result.output
        mended = roots[dataset] if dataset != "gta5" else Path(f"{roots['gta5']}-8x12")
        assert examine(dataset, mended, **labels).findings == ()
    # a wheel has no tools/
    for module in Path(published.__file__).parent.rglob("*.py"):
        assert "tools/" not in module.read_text("utf-8"), module


@pytest.mark.parametrize(
    ("dataset", "options", "sentence"),
    [
        ("voc", {}, "dataset must be one of gta5, synthia, cityscapes, nthu, folder, got 'voc'"),
        ("gta5", {"split": "train"}, "split must not be given for gta5, got 'train'"),
        ("cityscapes", {"split": "dev"}, "split must be one of train, val, test for cityscapes, got 'dev'"),
        ("cityscapes", {"labels": "raw"}, "labels must be one of labelIds, labelTrainIds for cityscapes, got 'raw'"),
        ("synthia", {"labels": "x"}, "labels must be one of raw, ids, trainIds for synthia, got 'x'"),
        ("nthu", {"city": "Paris"}, "city must be one of Rome, Rio, Tokyo, Taipei, got 'Paris'"),
        ("nthu", {"split": "rest"}, "split must be one of train, test for nthu, got 'rest'"),
        ("folder", {}, "description must be given for folder"),
        ("gta5", {"sample": 0}, "sample must be 1 or more, got 0"),
    ],
)
def test_wrong_arguments(roots, dataset, options, sentence):
    with pytest.raises(ConfigError) as error:
        examine(dataset, roots.get(dataset, "x"), **options)
    assert str(error.value) == sentence


# --- the command ------------------------------------------------------------------------------------------------------


def run(*arguments):
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_command_on_sound_data(roots, tmp_path):
    result = run("gta5", roots["gta5"], "--all", "--json", tmp_path / "report.json")
    assert result.exit_code == 0, result.output
    assert "classes in 3 labels" in result.output
    assert "3 of 3 images read in full" in result.output
    assert f"gta5 in {roots['gta5']}: fine, 0 errors, 0 warnings" in result.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["ok"]
    assert report["images"] == {"images": 3}
    assert report["findings"] == []
    assert report["frequencies"]["train"] == 0


def test_command_on_wrong_data(roots, tmp_path):
    truncate(roots["gta5"] / "labels/00003.png")
    result = run("gta5", roots["gta5"], "--sample", 2, "--json", tmp_path / "report.json")
    assert result.exit_code == 1
    line = next(line for line in result.output.splitlines() if line.startswith("error: "))
    assert line == (
        f"error: 1 label is truncated ({roots['gta5']}/labels/00003.png); "
        f"fix: unzip -o 01_labels.zip -d {roots['gta5']}"
    )
    report = json.loads((tmp_path / "report.json").read_text())
    assert not report["ok"]
    assert report["findings"][0]["severity"] == "error"


def test_warnings_do_not_fail(roots):
    write_gta5(roots["gta5"], (4,))
    result = run("gta5", roots["gta5"])
    assert result.exit_code == 0
    assert "warning: 1 image is not the publisher's" in result.output


def test_command_finds_lists_from_here_and_below_the_root(roots, tmp_path, monkeypatch):
    (roots["gta5"] / "below.txt").write_text("1\n")
    (tmp_path / "here.txt").write_text("1\n2\n")
    monkeypatch.chdir(tmp_path)
    assert "1 of 1 image read" in run("gta5", roots["gta5"], "--list", "below.txt").output
    assert "2 of 2 images read" in run("gta5", roots["gta5"], "--list", "here.txt").output
