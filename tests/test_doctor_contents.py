"""The doctor on damaged files, wrong labels and other sizes."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from cbst_mx.data import published
from cbst_mx.data.doctor import examine
from cbst_mx.label_space import SYNTHIA_16
from tests.dataset_fixtures import (
    CITYSCAPES_IDS,
    SIZE,
    damage,
    png,
    to_8_bits,
    truncate,
    write_gta5,
    write_ids,
    write_rgb,
    write_synthia_label,
)
from tests.doctor_fixtures import the_error

# --- files and sizes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "label", "fix"),
    [
        ("gta5", "labels/00002.png", "unzip -o 01_labels.zip -d {root}"),
        ("synthia", "GT/LABELS/0000001.png", "unrar x -o+"),
        (
            "cityscapes",
            "gtFine/val/lindau/lindau_000001_000019_gtFine_labelIds.png",
            "unzip -o gtFine_trainvaltest.zip",
        ),
        ("nthu", "Rio/Labels/Test/pano_00002_2_0_eval.png", "unpack the download"),
    ],
)
def test_images_without_label_and_damaged_labels(roots, dataset, label, fix):
    root = roots[dataset]
    path, fix = root / label, fix.format(root=root)
    content = path.read_bytes()

    def found(content):
        path.write_bytes(content)
        finding = the_error(examine(dataset, root))
        assert finding.where == str(path)
        assert finding.fix.startswith(fix)
        return finding.what

    assert found(b"") == "1 label is empty (0 bytes)"
    assert found(content[:-5]) == "1 label is truncated"
    assert found(b"moved to another server") == "1 label is no image that can be read"
    path.write_bytes(content)
    damage(path)
    assert found(path.read_bytes()) == "1 label is damaged"
    path.unlink()
    finding = the_error(examine(dataset, root))
    assert (finding.what, finding.where) == ("1 label is missing", str(path))
    assert finding.fix.startswith(fix)


@pytest.mark.parametrize(
    ("dataset", "image"),
    [("gta5", "images/00002.png"), ("synthia", "RGB/0000001.png"), ("nthu", "Rio/Images/Train/pano_00002_0_180.jpg")]
    + [("cityscapes", "leftImg8bit/val/lindau/lindau_000001_000019_leftImg8bit.png")],
)
def test_damaged_images(roots, dataset, image):
    path = roots[dataset] / image
    content = path.read_bytes()
    path.write_bytes(b"")
    assert the_error(examine(dataset, roots[dataset])).what == "1 image is empty (0 bytes)"
    path.write_bytes(content[:-20])
    assert the_error(examine(dataset, roots[dataset])).what == "1 image is truncated"


def test_several_files_are_one_finding(roots):
    for number in (1, 3):
        truncate(roots["gta5"] / f"labels/0000{number}.png")
    finding = the_error(examine("gta5", roots["gta5"]))
    assert finding.what == "2 labels are truncated"
    assert finding.where == f"{roots['gta5']}/labels/00001.png and 1 more"


def test_two_heights_of_gta5_are_published(roots):
    write_rgb(roots["gta5"] / "images/00002.png", size=(SIZE[0] - 1, SIZE[1]))
    write_ids(roots["gta5"] / "labels/00002.png", CITYSCAPES_IDS, size=(SIZE[0] - 1, SIZE[1]), palette=True)
    report = examine("gta5", roots["gta5"])
    (finding,) = report.findings
    assert report.ok
    assert finding.severity == "note"
    assert finding.what == "1 image is 7 x 12 as published, most are 8 x 12"
    assert "cbst-mx prepare gta5" in finding.fix


def test_the_published_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr(published, "GTA5", range(1, 3))
    root = write_gta5(tmp_path / "g", (1,), size=(1052, 1914))
    write_gta5(root, (2,), size=(1046, 1914))
    (finding,) = examine("gta5", root, sample=1).findings
    assert (finding.severity, finding.what) == ("note", "1 image is 1046 x 1914 as published, most are 1052 x 1914")


# --- labels -----------------------------------------------------------------------------------------------------------


def test_synthia_truncated_to_8_bits(roots):
    for path in (roots["synthia"] / "GT/LABELS").iterdir():
        to_8_bits(path)
    finding = the_error(examine("synthia", roots["synthia"]))
    assert finding.what == (
        "3 labels have 8 bits per channel instead of 16: another program has truncated them, every class id is 0"
    )
    assert finding.fix.startswith("unrar x -o+")


def test_synthia_labels_without_any_class(roots):
    # what is left where a program has read 16 bits as 8 and written 16 again
    for path in (roots["synthia"] / "GT/LABELS").iterdir():
        write_synthia_label(path, ids=[0])
    finding = the_error(examine("synthia", roots["synthia"]))
    assert "hold no class: the class ids are lost" in finding.what
    assert "unrar" in finding.fix


def test_synthia_colours_in_the_place_of_labels(roots):
    path = roots["synthia"] / "GT/LABELS/0000000.png"
    Image.fromarray(SYNTHIA_16.colorize(np.full(SIZE, 3, np.uint8))).save(path)
    assert "these are colours (GT/COLOR" in the_error(examine("synthia", roots["synthia"])).what


@pytest.mark.parametrize(
    ("values", "what", "fix"),
    [
        (
            [1, 3, 21],
            "1 label has one channel instead of three: somebody has converted them to SYNTHIA's",
            "use labels: ",
        ),
        ([0, 9, 255], "1 label has one channel instead of three: they look like trainIds (255 occurs)", "unrar x"),
    ],
)
def test_synthia_converted_to_one_channel(roots, values, what, fix):
    path = roots["synthia"] / "GT/LABELS/0000000.png"
    path.write_bytes(png(np.resize(np.array(values, np.uint8), SIZE)))
    finding = the_error(examine("synthia", roots["synthia"]))
    assert finding.what.startswith(what)
    assert finding.fix.startswith(fix)


def test_synthia_ids_in_one_channel_are_fine_when_said(roots):
    for seed, path in enumerate(sorted((roots["synthia"] / "GT/LABELS").iterdir())):
        path.write_bytes(png(write_synthia_label(path, seed=seed).astype(np.uint8)))
    assert not examine("synthia", roots["synthia"]).ok
    assert examine("synthia", roots["synthia"], labels="ids").findings == ()
    finding = the_error(examine("synthia", roots["synthia"], labels="trainIds"))
    assert finding.what == "3 labels are missing"
    assert "cbst-mx prepare synthia" in finding.fix


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_made_labels(roots, dtype):
    folder = roots["synthia"] / "GT/LABELS_synthia-16"
    folder.mkdir()
    for path in (roots["synthia"] / "GT/LABELS").iterdir():
        (folder / path.name).write_bytes(png(np.resize(np.array([0, 9, 255], dtype), SIZE)))
    assert examine("synthia", roots["synthia"], labels="trainIds").findings == ()
    truncate(folder / "0000001.png", 1)
    finding = the_error(examine("synthia", roots["synthia"], labels="trainIds"))
    assert finding.fix == f"delete it, then cbst-mx prepare synthia {roots['synthia']}"


@pytest.mark.parametrize(
    ("dataset", "label"),
    [
        ("gta5", "labels/00001.png"),
        ("cityscapes", "gtFine/val/lindau/lindau_000000_000019_gtFine_labelIds.png"),
        ("nthu", "Rio/Labels/Test/pano_00000_2_0_eval.png"),
    ],
)
def test_wrong_values(roots, dataset, label):
    path = roots[dataset] / label
    write_ids(path, [7, 26, 40, 77])
    finding = the_error(examine(dataset, roots[dataset]))
    assert finding.what == "1 label has unknown ids (40, 77)"
    assert finding.where == str(path)
    write_rgb(path)
    assert the_error(examine(dataset, roots[dataset])).what == "1 label holds colours instead of class ids"
    write_ids(path, [7, 26], size=(4, 12))
    finding = the_error(examine(dataset, roots[dataset]))
    assert finding.what == "1 label does not have the size of the image"
    assert finding.fix
    for other in path.parent.iterdir():
        write_ids(other, [0, 1, 2, 8, 10, 13, 255])
    assert "look like trainIds: no id is above 18" in the_error(examine(dataset, roots[dataset])).what
    for other in path.parent.iterdir():
        write_ids(other, [0])
    report = examine(dataset, roots[dataset])
    assert report.ok
    assert "no evaluated class at all" in report.findings[0].what


def test_jpeg_labels(roots):
    path = roots["gta5"] / "labels/00001.png"
    Image.new("L", (SIZE[1], SIZE[0]), 7).save(path, format="JPEG")
    assert the_error(examine("gta5", roots["gta5"])).what == "1 label is JPEG, whose ids are not reliable"


def test_images_of_another_kind(roots):
    root = roots["gta5"]
    (root / "images/00001.png").write_bytes(png(np.full((*SIZE, 3), 300, np.uint16)))
    write_ids(root / "images/00002.png", [1, 2], palette=True)
    write_ids(root / "images/00003.png", [1, 2])
    report = examine("gta5", root)
    whats = {finding.what: finding.severity for finding in report.findings}
    assert whats["1 image has more than 8 bits per channel"] == "error"
    assert whats["1 image has a palette: labels in the images' place?"] == "error"
    assert whats["1 image is not RGB"] == "warning"


def test_a_resized_copy_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(published, "GTA5", range(1, 4))
    report = examine("gta5", write_gta5(tmp_path / "g"))
    (finding,) = report.findings
    assert report.ok
    assert (finding.severity, finding.what) == ("warning", "3 images are 8 x 12, not 1052 x 1914")
