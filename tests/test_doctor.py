"""The doctor: sound data pass, every mistake is found, named and given its remedy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from cbst_mx.cli import main
from cbst_mx.cli.doctor import doctor as command
from cbst_mx.data import FORMATS, Format, ImageSet, gta5, published
from cbst_mx.data.doctor import examine
from cbst_mx.errors import ConfigError
from cbst_mx.label_space import CITYSCAPES_19, SYNTHIA_16
from tests.dataset_fixtures import (
    CITYSCAPES_IDS,
    SIZE,
    damage,
    png,
    to_8_bits,
    truncate,
    write_cityscapes,
    write_gta5,
    write_ids,
    write_nthu,
    write_rgb,
    write_synthia,
    write_synthia_label,
)

WRITERS = {"gta5": write_gta5, "synthia": write_synthia, "cityscapes": write_cityscapes, "nthu": write_nthu}


@pytest.fixture
def small(monkeypatch):
    """Let the publishers have published the fixtures."""
    monkeypatch.setattr(published, "GTA5", range(1, 4))
    monkeypatch.setattr(published, "SYNTHIA", range(3))
    monkeypatch.setattr(published, "CITYSCAPES", {"train": {"ulm": 3}, "val": {"lindau": 2}, "test": {"bonn": 1}})
    monkeypatch.setattr(published, "NTHU", {"Train": 4, "Test": 3})
    monkeypatch.setattr(published, "SIZES", dict.fromkeys(published.SIZES, SIZE))
    monkeypatch.setattr(published, "GTA5_HEIGHTS", range(SIZE[0] - 1, SIZE[0] + 2))


@pytest.fixture
def roots(tmp_path, small):
    return {name: write(tmp_path / name) for name, write in WRITERS.items()}


def errors(report):
    return [finding for finding in report.findings if finding.severity == "error"]


def the_error(report):
    """Give the only error."""
    assert len(errors(report)) == 1, report.findings
    return errors(report)[0]


# --- sound data ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", WRITERS)
def test_sound_data_pass_without_a_word(roots, dataset):
    report = examine(dataset, roots[dataset])
    assert report.findings == ()
    assert report.ok
    assert sum(report.images.values()) == report.examined
    assert sum(report.frequencies.values()) == pytest.approx(1)


def test_counts_of_the_publishers():
    assert len(published.GTA5) == 24966
    assert len(published.SYNTHIA) == 9400
    assert {split: sum(cities.values()) for split, cities in published.CITYSCAPES.items()} == {
        "train": 2975,
        "val": 500,
        "test": 1525,
    }
    assert len(published.CITYSCAPES["train"]) == 18


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


# --- what is missing ----------------------------------------------------------------------------------------------


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
    assert finding.what == "8 of 11 images of train are missing: aachen 0 of 7, ulm 3 of 4"
    assert finding.fix.startswith("unzip -o leftImg8bit_trainvaltest.zip")
    shutil.rmtree(roots["cityscapes"] / "leftImg8bit/val")
    assert len(errors(examine("cityscapes", roots["cityscapes"]))) == 2


def test_half_unpacked_nthu(roots):
    (roots["nthu"] / "Rome/Images/Train/pano_00000_0_180.jpg").unlink()
    shutil.rmtree(roots["nthu"] / "Rio/Images/Test")
    whats = [finding.what for finding in errors(examine("nthu", roots["nthu"]))]
    assert whats == ["Rio has no image in Images/Test", "Rome train has 3 images, the publisher's 4"]


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
    # The end of a JPEG says nothing without its pixels.
    expected = "1 image is damaged" if path.suffix == ".jpg" else "1 image is truncated"
    assert the_error(examine(dataset, roots[dataset])).what == expected


def test_labels_without_image(roots):
    (roots["gta5"] / "images/00002.png").unlink()
    whats = [finding.what for finding in errors(examine("gta5", roots["gta5"]))]
    assert whats == ["1 label has no image", "1 image is missing: 00002"]


def test_several_files_are_one_finding(roots):
    for number in (1, 3):
        truncate(roots["gta5"] / f"labels/0000{number}.png")
    finding = the_error(examine("gta5", roots["gta5"]))
    assert finding.what == "2 labels are truncated"
    assert finding.where == f"{roots['gta5']}/labels/00001.png and 1 more"


def test_more_than_published_is_a_warning(roots):
    write_gta5(roots["gta5"], (4,))
    write_cityscapes(roots["cityscapes"], cities=(("train", "bonn", 1),))
    write_nthu(roots["nthu"], cities=("Rome",), train=5)
    for dataset in ("gta5", "cityscapes", "nthu"):
        report = examine(dataset, roots[dataset])
        assert report.ok
        assert [finding.severity for finding in report.findings] == ["warning"]


# --- what is wrong with the labels --------------------------------------------------------------------------------


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


def test_cityscapes_with_train_ids_alone(roots):
    for path in (roots["cityscapes"] / "gtFine/val/lindau").iterdir():
        path.rename(path.with_name(path.name.replace("labelIds", "labelTrainIds")))
    finding = the_error(examine("cityscapes", roots["cityscapes"]))
    assert finding.what == "the labelIds of val are missing, there are labelTrainIds alone"
    assert finding.fix.startswith(
        f"unzip -o gtFine_trainvaltest.zip -d {roots['cityscapes']}; or use labels: labelTrain"
    )


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


# --- lists and folders --------------------------------------------------------------------------------------------


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
    assert "names 1 of 2 images that are not there: 2" in finding.what
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
    assert "1 of 2 images have no label" in the_error(examine("folder", root, description=path)).what
    assert examine("folder", root, description=path, split="dusk").ok


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
    assert the_error(examine("toy", roots["gta5"], split="train")).what.startswith("1 of 3 images have no label")
    with pytest.raises(ConfigError, match="^split must be given for toy$"):
        examine("toy", roots["gta5"])


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


# --- the command --------------------------------------------------------------------------------------------------


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
    assert "1 of 1 images read" in run("gta5", roots["gta5"], "--list", "below.txt").output
    assert "2 of 2 images read" in run("gta5", roots["gta5"], "--list", "here.txt").output
