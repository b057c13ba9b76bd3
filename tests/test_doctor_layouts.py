"""The doctor on files that are missing, lie elsewhere, or are too many."""

from __future__ import annotations

import shutil

import pytest

from cbst_mx.data import FORMATS, Format, gta5, published
from cbst_mx.data.doctor import examine
from cbst_mx.errors import ConfigError
from tests.dataset_fixtures import (
    truncate,
    write_cityscapes,
    write_gta5,
    write_nthu,
    write_rgb,
    write_synthia,
)
from tests.doctor_fixtures import WRITERS, errors, the_error


def test_a_root_that_is_none(tmp_path):
    for dataset in WRITERS:
        finding = the_error(examine(dataset, tmp_path / "none"))
        assert finding.what == "the data root is no folder"
        assert finding.fix


@pytest.mark.parametrize("dataset", WRITERS)
def test_data_one_folder_further_down(roots, dataset):
    finding = the_error(examine(dataset, roots[dataset].parent / ".." / roots[dataset].parent.name))
    assert finding.what == f"the data are one folder further down, in {dataset}"
    assert finding.fix.startswith("use ")
    assert finding.fix.endswith(f"/{dataset}")


@pytest.mark.parametrize(
    ("dataset", "folder", "what", "fix"),
    [
        (
            "gta5",
            "labels",
            "labels is not there",
            "unzip -o '*_images.zip' -d {root}; unzip -o '*_labels.zip' -d {root}",
        ),
        ("synthia", "GT", "GT/LABELS is not there", "unrar x -o+ SYNTHIA_RAND_CITYSCAPES.rar (the data root is "),
        ("cityscapes", "leftImg8bit", "leftImg8bit is not there", "unzip -o leftImg8bit_trainvaltest.zip -d {root}"),
        ("nthu", "Tokyo", "Tokyo is not there", "unpack the download of NTHU Cross-City again; or check one city"),
    ],
)
def test_missing_folders(roots, dataset, folder, what, fix):
    shutil.rmtree(roots[dataset] / folder)
    finding = the_error(examine(dataset, roots[dataset]))
    assert finding.what == what
    assert finding.fix.startswith(fix.format(root=roots[dataset]))


def test_half_unpacked_gta5(tmp_path, monkeypatch):
    monkeypatch.setattr(published, "GTA5", range(1, 5002))
    root = write_gta5(tmp_path / "g", (1, 2, 5001))
    (root / "02_images.zip").write_bytes(b"")
    report = examine("gta5", root)
    images, labels = errors(report)
    assert images.what == "4,998 images are missing: 00003-05000"
    assert labels.what == "4,998 labels are missing: 00003-05000"
    assert images.fix == (
        f"unzip -o 01_images.zip -d {root}; unzip -o 02_images.zip -d {root} (still packed there: 02_images.zip)"
    )
    assert labels.fix.startswith(f"unzip -o 01_labels.zip -d {root}; unzip -o 02_labels.zip -d {root}")


def test_many_gaps_are_cut_short(tmp_path, monkeypatch):
    monkeypatch.setattr(published, "SYNTHIA", range(0, 20))
    root = write_synthia(tmp_path / "s", 18)
    for number in range(0, 16, 2):
        (root / f"RGB/{number:07}.png").unlink()
        (root / f"GT/LABELS/{number:07}.png").unlink()
    finding = the_error(examine("synthia", root))
    assert finding.what == ("10 images are missing: 0000000, 0000002, 0000004, 0000006, 0000008 and 4 more gaps")


def test_half_unpacked_cityscapes(roots, monkeypatch):
    monkeypatch.setattr(
        published, "CITYSCAPES", {"train": {"aachen": 7, "ulm": 4}, "val": {"lindau": 2}, "test": {"bonn": 1}}
    )
    finding = the_error(examine("cityscapes", roots["cityscapes"]))
    assert finding.what == "8 of 11 images of train missing: aachen 0 of 7, ulm 3 of 4"
    assert finding.fix.startswith("unzip -o leftImg8bit_trainvaltest.zip")
    shutil.rmtree(roots["cityscapes"] / "leftImg8bit/val")
    assert len(errors(examine("cityscapes", roots["cityscapes"]))) == 2


def test_half_unpacked_nthu(roots):
    (roots["nthu"] / "Rome/Images/Train/pano_00000_0_180.jpg").unlink()
    shutil.rmtree(roots["nthu"] / "Rio/Images/Test")
    whats = [finding.what for finding in errors(examine("nthu", roots["nthu"]))]
    assert whats == ["Rio has no image in Images/Test", "Rome train has 3 images, the publisher's 4"]


def test_labels_without_image(roots):
    (roots["gta5"] / "images/00002.png").unlink()
    whats = [finding.what for finding in errors(examine("gta5", roots["gta5"]))]
    assert whats == ["1 label has no image", "1 image is missing: 00002"]


def test_more_than_published_is_a_warning(roots):
    write_gta5(roots["gta5"], (4,))
    write_cityscapes(roots["cityscapes"], cities=(("train", "bonn", 1),))
    write_nthu(roots["nthu"], cities=("Rome",), train=5)
    for dataset in ("gta5", "cityscapes", "nthu"):
        report = examine(dataset, roots[dataset])
        assert report.ok
        assert [finding.severity for finding in report.findings] == ["warning"]


def test_cityscapes_with_train_ids_alone(roots):
    for path in (roots["cityscapes"] / "gtFine/val/lindau").iterdir():
        path.rename(path.with_name(path.name.replace("labelIds", "labelTrainIds")))
    finding = the_error(examine("cityscapes", roots["cityscapes"]))
    assert finding.what == "the labelIds of val are missing, there are labelTrainIds alone"
    assert finding.fix.startswith(
        f"unzip -o gtFine_trainvaltest.zip -d {roots['cityscapes']}; or use labels: labelTrain"
    )


def test_nthu_names_that_coincide_are_noted(roots):
    root = roots["nthu"]
    (root / "Rome/Images/Train/pano_00000_0_180.jpg").rename(root / "Rome/Images/Train/pano_00001_2_0.jpg")
    (finding,) = examine("nthu", root).findings
    assert finding.severity == "note"
    assert finding.what.startswith("of the unlabelled images of Rome, 1 with the name")


def test_nthu_images_twice(roots):
    path = roots["nthu"] / "Rome/Images/Train/pano_00000_0_180.jpg"
    write_rgb(path.with_suffix(".png"))
    finding = the_error(examine("nthu", roots["nthu"], split="train"))
    assert finding.what.startswith("image names must be unique, got 'pano_00000_0_180' for ")


def test_a_format_without_a_layout_is_opened_by_its_reader(roots, monkeypatch):
    toy = Format(
        gta5.open_images, lambda root, *, label_space, split: gta5.open_labelled(root, label_space), ("split",)
    )
    monkeypatch.setitem(FORMATS, "toy", toy)
    report = examine("toy", roots["gta5"], split="train")
    assert (report.findings, report.images, report.labels_read) == ((), {"images": 3}, 3)
    truncate(roots["gta5"] / "labels/00001.png")
    assert the_error(examine("toy", roots["gta5"], split="train")).what == "1 label is truncated"
    (roots["gta5"] / "labels/00002.png").unlink()
    assert the_error(examine("toy", roots["gta5"], split="train")).what.startswith("1 of 3 images has no label")
    with pytest.raises(ConfigError, match="^split must be given for toy$"):
        examine("toy", roots["gta5"])
