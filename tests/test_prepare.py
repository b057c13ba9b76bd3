"""Files made from a data set's own: what is written, that it continues, and that originals stay."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from cbst_mx.cli.base import OneSentence
from cbst_mx.cli.prepare import COMMANDS
from cbst_mx.data import cityscapes, gta5, open_labelled, synthia
from cbst_mx.data.prepare import resize_pairs, write_missing, write_train_ids
from cbst_mx.errors import DataError, RunError
from cbst_mx.label_space import CITYSCAPES_19, SYNTHIA_16
from tests.dataset_fixtures import (
    CITYSCAPES_IDS,
    to_8_bits,
    write_cityscapes,
    write_gta5,
    write_ids,
    write_rgb,
    write_synthia,
)


def run(*arguments: object) -> Result:
    """Run ``prepare`` as the program does: errors become one sentence and an exit code."""
    main = OneSentence(commands={command.name: command for command in COMMANDS})
    return CliRunner().invoke(main, ["prepare", *map(str, arguments)], prog_name="cbst-mx")


def contents(root: Path) -> dict:
    return {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


# --- the loop -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 3])
def test_only_what_is_missing_is_written(tmp_path, workers):
    outputs = [tmp_path / "a" / f"{i}" for i in range(4)] + [tmp_path / "b" / "4"]
    (tmp_path / "a").mkdir()
    outputs[2].write_text("old")
    calls = []

    def write(i):
        outputs[i].parent.mkdir(exist_ok=True)
        outputs[i].write_text("new")

    assert write_missing(outputs, write, workers=workers, progress=lambda *done: calls.append(done)) == 4
    assert [path.read_text() for path in outputs] == ["new", "new", "old", "new", "new"]
    assert calls == [(2, 5), (3, 5), (4, 5), (5, 5)]
    assert write_missing(outputs, write) == 0


def test_an_error_waits_for_the_files_that_are_being_written(tmp_path):
    outputs = [tmp_path / f"{i}" for i in range(9)]
    begun, failed = threading.Event(), threading.Event()

    def write(i):
        if i == 0:
            begun.wait(10)
            failed.set()
            raise DataError("0 is damaged")
        begun.set()
        failed.wait(10)
        time.sleep(0.1)  # the error has been seen by now
        outputs[i].write_text("whole")

    with pytest.raises(DataError, match="0 is damaged"):
        write_missing(outputs, write, workers=2)
    assert outputs[1].read_text() == "whole"
    before = contents(tmp_path)
    time.sleep(0.2)
    assert contents(tmp_path) == before  # nothing goes on behind the caller's back
    assert len(before) < 8


def test_an_error_ends_the_work_and_what_is_done_stays(tmp_path):
    outputs = [tmp_path / f"{i}" for i in range(3)]

    def write(i):
        if i == 1:
            raise DataError("label 1 is damaged")
        outputs[i].write_text("new")

    with pytest.raises(DataError, match="label 1 is damaged"):
        write_missing(outputs, write)
    assert outputs[0].exists()


# --- labels -------------------------------------------------------------------------------------------------------


def test_synthia_labels_as_train_ids(tmp_path):
    root = write_synthia(tmp_path / "s")
    before = contents(root)
    result = run("synthia", root, "--workers", 2)
    assert result.exit_code == 0, result.output
    assert "3 labels written" in result.output
    raw = open_labelled("synthia", root, label_space=SYNTHIA_16)
    made = open_labelled("synthia", root, label_space=SYNTHIA_16, labels="trainIds")
    for i in range(3):
        np.testing.assert_array_equal(made.label(i), raw.label(i))
        assert made.label_paths[i].read_bytes()[24] == 8
    after = contents(root)
    assert {path: after[path] for path in before} == before

    made.label_paths[1].unlink()
    stamp = made.label_paths[0].stat().st_mtime_ns
    assert "1 of 3 labels written" in run("synthia", root).output
    assert contents(root) == after
    assert made.label_paths[0].stat().st_mtime_ns == stamp


def test_wrong_data_is_one_sentence(tmp_path):
    root = write_synthia(tmp_path / "s")
    to_8_bits(root / "GT/LABELS/0000001.png")
    result = run("synthia", root, "--workers", 1)
    assert result.exit_code == 1
    assert result.output.strip().startswith(f"Error: label {root}/GT/LABELS/0000001.png must have 16 bits per channel")
    assert result.output.strip().count("\n") == 0
    made = [path.name for path in (root / "GT/LABELS_synthia-16").iterdir()]
    assert "0000001.png" not in made
    assert not [name for name in made if name.endswith(".part")]


def test_cityscapes_labels_as_train_ids(tmp_path):
    root = write_cityscapes(tmp_path / "c")
    own = root / "gtFine/train/ulm/ulm_000001_000019_gtFine_labelTrainIds.png"
    Image.fromarray(np.full((8, 12), 255, np.uint8)).save(own)
    before = contents(root)
    result = run("cityscapes", root)
    assert result.exit_code == 0, result.output
    assert "train: 2 of 3 labels written" in result.output
    assert "val: 2 labels written" in result.output
    after = contents(root)
    assert {path: after[path] for path in before} == before
    ids = cityscapes.open_labelled(root, "val", CITYSCAPES_19)
    train_ids = cityscapes.open_labelled(root, "val", CITYSCAPES_19, labels="labelTrainIds")
    for i in range(2):
        np.testing.assert_array_equal(train_ids.label(i), ids.label(i))


def test_labels_are_never_written_over_their_originals(tmp_path):
    images = synthia.open_labelled(write_synthia(tmp_path / "s"), SYNTHIA_16)
    before = contents(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "s/GT/LABELS")
    for folder in (tmp_path / "s/GT/LABELS", tmp_path / "link", tmp_path / "s/GT/../GT/LABELS"):
        outputs = [folder / path.name for path in images.label_paths]
        with pytest.raises(RunError, match="0000000.png is an original and is never overwritten"):
            write_train_ids(images, outputs)
    assert contents(tmp_path) == before


# --- sizes --------------------------------------------------------------------------------------------------------


@pytest.fixture
def gta5_root(tmp_path):
    root = write_gta5(tmp_path / "g", numbers=(1, 2))
    # A lower image, and one whose label has another size than itself.
    write_rgb(root / "images/00003.png", 3, (7, 12))
    write_ids(root / "labels/00003.png", CITYSCAPES_IDS, 3, (7, 12), palette=True)
    write_rgb(root / "images/00004.png", 4, (16, 24))
    write_ids(root / "labels/00004.png", CITYSCAPES_IDS, 4, (24, 36), palette=True)
    return root


def test_gta5_of_one_size(gta5_root, tmp_path):
    before = contents(gta5_root)
    out = tmp_path / "out"
    result = run("gta5", gta5_root, "--out", out, "--size", 8, 12)
    assert result.exit_code == 0, result.output
    assert "8 files made" in result.output
    assert contents(gta5_root) == before
    original, made = (gta5.open_labelled(root, CITYSCAPES_19) for root in (gta5_root, out))
    for i in range(4):
        image, label = made.pair(i)
        assert image.shape == (8, 12, 3)
        if i < 2:
            np.testing.assert_array_equal(image, original.image(i))
            np.testing.assert_array_equal(label, original.label(i))
    with Image.open(out / "labels/00003.png") as made_label, Image.open(gta5_root / "labels/00003.png") as label:
        assert made_label.mode == "P"  # raw ids and palette as published
        assert made_label.getpalette()[: 3 * 35] == label.getpalette()[: 3 * 35]
        assert set(np.unique(np.array(made_label))) <= set(CITYSCAPES_IDS)
    # Exactly three times the size: the nearest pixel is the middle one of each block.
    with Image.open(out / "labels/00004.png") as made_label, Image.open(gta5_root / "labels/00004.png") as label:
        np.testing.assert_array_equal(np.array(made_label), np.array(label)[1::3, 1::3])


def test_files_of_the_right_size_take_no_space(gta5_root, tmp_path):
    out = tmp_path / "out"
    resize_pairs(gta5.open_labelled(gta5_root, CITYSCAPES_19), out / "images", out / "labels", (8, 12))
    assert (out / "images/00001.png").samefile(gta5_root / "images/00001.png")
    assert not (out / "images/00003.png").samefile(gta5_root / "images/00003.png")


def test_copies_where_links_are_not_possible(gta5_root, tmp_path, monkeypatch):
    def refuse(*paths):
        raise OSError("another disk")

    monkeypatch.setattr("os.link", refuse)
    out = tmp_path / "out"
    resize_pairs(gta5.open_labelled(gta5_root, CITYSCAPES_19), out / "images", out / "labels", (8, 12))
    assert not (out / "images/00001.png").samefile(gta5_root / "images/00001.png")
    assert (out / "images/00001.png").read_bytes() == (gta5_root / "images/00001.png").read_bytes()
    assert sorted(path.name for path in (out / "images").iterdir()) == [f"0000{i}.png" for i in range(1, 5)]


def test_a_stopped_copy_continues_and_another_size_is_refused(gta5_root, tmp_path):
    out = tmp_path / "out"
    assert "8 files made" in run("gta5", gta5_root, "--out", out, "--size", 8, 12).output
    after = contents(out)
    (out / "labels/00003.png").unlink()
    assert "1 of 8 files made" in run("gta5", gta5_root, "--out", out, "--size", 8, 12).output
    assert contents(out) == after
    result = run("gta5", gta5_root, "--out", out)
    assert result.exit_code == 1
    assert "must be 1052 x 1914, got 8 x 12: delete it or choose another" in result.output
    result = run("gta5", gta5_root, "--out", gta5_root, "--size", 8, 12)
    assert result.exit_code == 1
    assert "is an original and is never overwritten" in result.output
