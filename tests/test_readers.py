"""Readers for GTA5, Cityscapes and described folders, on small files in their exact formats."""

from __future__ import annotations

import pickle
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cbst_mx.data import (
    FORMATS,
    Format,
    ImageSet,
    LabelledImageSet,
    cityscapes,
    folder,
    gta5,
    open_images,
    open_labelled,
)
from cbst_mx.data.doctor import examine
from cbst_mx.errors import ConfigError, DataError
from cbst_mx.label_space import CITYSCAPES_19, IGNORE, NTHU_13, SYNTHIA_16
from tests.doctor_fixtures import WRITERS

SIZE = (6, 10)

DESCRIPTION = """\
label_space:
  name: three
  names: [sky, road, car]
  palette: [[70, 130, 180], [128, 64, 128], [0, 0, 142]]
  ids: {0: 0, 1: 1, 7: 2, 11: ignore}
splits:
  day: {images: ["train/a_*.png", "val/*.png"], labels: "{folder}annot/{stem}.png"}
  dusk: {images: ["train/b_*.png"]}
"""


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    rgb = np.random.default_rng(seed).integers(0, 256, size=(*size, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb).save(path)
    return rgb


def write_ids(path: Path, ids, seed: int = 0, size: tuple[int, int] = SIZE, palette: bool = False) -> np.ndarray:
    raw = np.random.default_rng(seed).choice(np.array(ids, dtype=np.uint8), size=size)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(raw)
    if palette:
        image.putpalette(bytes(range(256)) * 3)
    image.save(path)
    return raw


@pytest.fixture
def gta5_root(tmp_path):
    root = tmp_path / "gta5"
    for number in (2, 1, 10):
        # The data set mixes sizes.
        size = (6, 10 + number)
        write_image(root / "images" / f"{number:05}.png", number, size)
        write_ids(root / "labels" / f"{number:05}.png", range(35), number, size, palette=True)
    return root


@pytest.fixture
def cityscapes_root(tmp_path):
    root = tmp_path / "cityscapes"
    for split, city, frame in [
        ("train", "ulm", "000000_000019"),
        ("train", "aachen", "000001_000019"),
        ("train", "aachen", "000000_000019"),
        ("val", "frankfurt", "000000_000294"),
        ("test", "berlin", "000000_000019"),
    ]:
        name = f"{city}_{frame}"
        write_image(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png")
        labels = root / "gtFine" / split / city
        raw = write_ids(labels / f"{name}_gtFine_labelIds.png", range(34))
        train_ids = CITYSCAPES_19.encode(raw, "cityscapes", name)
        Image.fromarray(train_ids).save(labels / f"{name}_gtFine_labelTrainIds.png")
        (labels / f"{name}_gtFine_color.png").write_bytes(b"not read")
    return root


@pytest.fixture
def folder_root(tmp_path):
    root = tmp_path / "own"
    for path in ("train/a_1", "train/a_2", "train/b_1", "val/c_1"):
        write_image(root / f"{path}.png")
        if "b_" not in path:
            write_ids(root / (path.replace("/", "annot/") + ".png"), [0, 1, 7, 11])
    return root


@pytest.fixture
def description_file(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(DESCRIPTION)
    return path


# --- sets ---------------------------------------------------------------------------------------------------------


def test_unlabelled_set_has_no_way_to_a_label(gta5_root, cityscapes_root, folder_root, description_file):
    for images in (
        open_images("gta5", gta5_root),
        open_images("cityscapes", cityscapes_root, split="train"),
        open_images("folder", folder_root, split="day", description=description_file),
    ):
        assert type(images) is ImageSet
        assert type(images.subset([0])) is ImageSet
        assert [name for name in dir(images) if "label" in name.lower()] == []
        assert not hasattr(images, "pair")
        with pytest.raises(AttributeError):
            images.label_paths = ()


def test_subset_keeps_the_order_asked_for(gta5_root):
    labelled = open_labelled("gta5", gta5_root, label_space=CITYSCAPES_19)
    chosen = labelled.subset(np.array([2, 0]))
    assert isinstance(chosen, LabelledImageSet)
    assert chosen.names == ("00010", "00001")
    assert len(chosen) == 2
    for i, original in enumerate([2, 0]):
        np.testing.assert_array_equal(chosen.image(i), labelled.image(original))
        np.testing.assert_array_equal(chosen.label(i), labelled.label(original))
    assert len(labelled.subset([])) == 0


@pytest.mark.parametrize("index", [3, -1])
def test_subset_refuses_indices_outside_the_set(gta5_root, index):
    with pytest.raises(ConfigError, match=f"indices must be from 0 to 2, got {index}"):
        open_images("gta5", gta5_root).subset([0, index])


def test_names_are_unique(tmp_path):
    with pytest.raises(DataError) as error:
        ImageSet(["x", "y", "x"], ["a/x.png", "a/y.png", "b/x.png"])
    assert str(error.value) == "image names must be unique, got 'x' for a/x.png and b/x.png"


@pytest.mark.parametrize("name", ["", "a/b", "a\\b", ".hidden"])
def test_names_can_be_file_names(name):
    with pytest.raises(DataError, match=r"the name of image x\.png must be usable as a file name, got"):
        ImageSet([name], ["x.png"])


def test_lengths_must_agree():
    with pytest.raises(ConfigError, match="image_paths must have one file per name, got 1 for 2 names"):
        ImageSet(["x", "y"], ["x.png"])
    with pytest.raises(ConfigError, match="label_paths must have one file per image, got 0 for 1 image"):
        LabelledImageSet(["x"], ["x.png"], [], CITYSCAPES_19, "trainId")


def test_pair_needs_equal_sizes(gta5_root):
    write_ids(gta5_root / "labels" / "00002.png", [7], size=(6, 11), palette=True)
    labelled = open_labelled("gta5", gta5_root, label_space=CITYSCAPES_19)
    labelled.label(1)  # alone it is fine
    with pytest.raises(DataError) as error:
        labelled.pair(1)
    assert str(error.value) == (
        f"label {gta5_root}/labels/00002.png must have the height and width of image {gta5_root}/images/00002.png, "
        "6 x 12, got 6 x 11"
    )


def test_sets_travel_to_worker_processes(gta5_root):
    labelled = open_labelled("gta5", gta5_root, label_space=CITYSCAPES_19)
    copy = pickle.loads(pickle.dumps(labelled))
    assert copy.names == labelled.names
    np.testing.assert_array_equal(copy.label(0), labelled.label(0))


# --- GTA5 ---------------------------------------------------------------------------------------------------------


def test_gta5_pairs(gta5_root):
    (gta5_root / "images" / "._00001.png").write_bytes(b"left by another system")
    labelled = gta5.open_labelled(gta5_root, CITYSCAPES_19)
    assert labelled.names == ("00001", "00002", "00010")
    for i, number in enumerate((1, 2, 10)):
        image, label = labelled.pair(i)
        assert image.shape == (6, 10 + number, 3)
        with Image.open(gta5_root / "labels" / f"{number:05}.png") as file:
            assert file.mode == "P"
            raw = np.array(file)
        table = CITYSCAPES_19.raw_ids["cityscapes"]
        np.testing.assert_array_equal(label, np.vectorize(table.get)(raw))
    np.testing.assert_array_equal(gta5.open_images(gta5_root).image(0), labelled.image(0))


def test_gta5_in_16_classes(gta5_root):
    raw = write_ids(gta5_root / "labels" / "00001.png", [7, 22, 33], size=(6, 11), palette=True)
    _, label = gta5.open_labelled(gta5_root, SYNTHIA_16).pair(0)
    np.testing.assert_array_equal(label, np.select([raw == 7, raw == 33], [0, 15], IGNORE))


def test_gta5_missing_root(tmp_path):
    for function in (lambda root: open_images("gta5", root), lambda root: gta5.open_labelled(root, CITYSCAPES_19)):
        with pytest.raises(DataError) as error:
            function(tmp_path / "nowhere")
        assert str(error.value) == (
            f"GTA5 data root {tmp_path}/nowhere does not exist: expected a folder with images/*.png and labels/*.png "
            "with the same file names"
        )


def test_gta5_missing_and_empty_folders(tmp_path, gta5_root):
    with pytest.raises(DataError, match="GTA5 image folder .*/images does not exist: expected images"):
        gta5.open_images(tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match="GTA5 image folder .*/images has no image: expected images"):
        gta5.open_images(tmp_path)
    with pytest.raises(DataError, match="is not a folder: expected"):
        gta5.open_images(gta5_root / "images" / "00001.png")
    (gta5_root / "labels").rename(gta5_root / "moved")
    with pytest.raises(DataError, match="GTA5 label folder .*/labels does not exist"):
        gta5.open_labelled(gta5_root, CITYSCAPES_19)


def test_images_without_label_are_counted(gta5_root):
    for name in ("00002.png", "00010.png"):
        (gta5_root / "labels" / name).unlink()
    with pytest.raises(DataError) as error:
        gta5.open_labelled(gta5_root, CITYSCAPES_19)
    assert str(error.value) == (
        f"2 of 3 images have no label, the first is {gta5_root}/images/00002.png: expected {gta5_root}/labels/00002.png"
    )
    assert len(gta5.open_images(gta5_root)) == 3  # without labels they can be used


def test_unknown_ids_name_the_file(gta5_root):
    write_ids(gta5_root / "labels" / "00001.png", [40, 41], size=(6, 11), palette=True)
    labelled = gta5.open_labelled(gta5_root, CITYSCAPES_19)
    with pytest.raises(DataError) as error:
        labelled.pair(0)
    assert str(error.value) == (
        f"{gta5_root}/labels/00001.png has label ids 40, 41, unknown in the 'cityscapes' convention of cityscapes-19 "
        "(known: 0-34, 255)"
    )


def test_colour_labels_are_refused(gta5_root):
    write_image(gta5_root / "labels" / "00001.png")
    with pytest.raises(DataError, match=r"00001\.png must hold one class id per pixel .*got RGB colours"):
        gta5.open_labelled(gta5_root, CITYSCAPES_19).label(0)


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_truncated_files_are_named(gta5_root, kind):
    path = gta5_root / kind / "00001.png"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 40])
    labelled = gta5.open_labelled(gta5_root, CITYSCAPES_19)
    with pytest.raises(DataError, match=f"{kind[:-1]} {path} cannot be read, the file is damaged or truncated"):
        labelled.pair(0)


# --- Cityscapes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", ["labelIds", "labelTrainIds"])
def test_cityscapes_pairs(cityscapes_root, labels):
    labelled = cityscapes.open_labelled(cityscapes_root, "train", CITYSCAPES_19, labels=labels)
    assert labelled.names == ("aachen_000000_000019", "aachen_000001_000019", "ulm_000000_000019")
    image, label = labelled.pair(2)
    with Image.open(cityscapes_root / "gtFine/train/ulm/ulm_000000_000019_gtFine_labelTrainIds.png") as file:
        np.testing.assert_array_equal(label, np.array(file))
    with Image.open(cityscapes_root / "leftImg8bit/train/ulm/ulm_000000_000019_leftImg8bit.png") as file:
        np.testing.assert_array_equal(image, np.array(file))


def test_cityscapes_val_and_test(cityscapes_root):
    assert cityscapes.open_images(cityscapes_root, "val").names == ("frankfurt_000000_000294",)
    assert len(cityscapes.open_images(cityscapes_root, "test")) == 1
    with pytest.raises(ConfigError, match="split must be 'train' or 'val' where labels are needed"):
        cityscapes.open_labelled(cityscapes_root, "test", CITYSCAPES_19)


def test_cityscapes_refusals(cityscapes_root, tmp_path):
    with pytest.raises(DataError) as error:
        cityscapes.open_images(tmp_path / "nowhere", "train")
    assert str(error.value) == (
        f"Cityscapes data root {tmp_path}/nowhere does not exist: "
        "expected a folder with leftImg8bit/<split>/<city>/*_leftImg8bit.png"
    )
    with pytest.raises(DataError, match=r"split must be a folder of .*/leftImg8bit \(test, train, val\), got 'trian'"):
        cityscapes.open_images(cityscapes_root, "trian")
    (cityscapes_root / "leftImg8bit" / "empty" / "ulm").mkdir(parents=True)
    with pytest.raises(DataError, match="Cityscapes split .*/empty has no image: expected leftImg8bit"):
        cityscapes.open_images(cityscapes_root, "empty")
    with pytest.raises(ConfigError, match="labels must be one of labelIds, labelTrainIds, got 'color'"):
        cityscapes.open_labelled(cityscapes_root, "val", CITYSCAPES_19, labels="color")
    (cityscapes_root / "gtFine/val/frankfurt/frankfurt_000000_000294_gtFine_labelIds.png").unlink()
    with pytest.raises(DataError, match="1 of 1 image has no label, the first is .*frankfurt_000000_000294"):
        cityscapes.open_labelled(cityscapes_root, "val", CITYSCAPES_19)


# --- folder -------------------------------------------------------------------------------------------------------


def test_folder_of_own_classes(folder_root, description_file):
    description = folder.read_description(description_file)
    space = folder.label_space(description)
    assert space.name == "three"
    assert space.names == ("sky", "road", "car")
    assert space.palette[2] == (0, 0, 142)

    labelled = folder.open_labelled(description, folder_root, "day")
    assert labelled.names == ("a_1", "a_2", "c_1")
    assert labelled.label_space == space
    _, label = labelled.pair(2)
    with Image.open(folder_root / "valannot" / "c_1.png") as file:
        raw = np.array(file)
    np.testing.assert_array_equal(label, np.select([raw == 0, raw == 1, raw == 7], [0, 1, 2], IGNORE))

    assert folder.open_images(description, folder_root, "dusk").names == ("b_1",)
    with pytest.raises(ConfigError) as error:
        folder.open_labelled(description, folder_root, "dusk")
    assert str(error.value) == (
        f"split 'dusk' of {description_file} has no key 'labels': it can only be used without labels"
    )


@pytest.mark.parametrize("convention", ["cityscapes", "trainId"])
def test_folder_of_known_classes(tmp_path, convention):
    train_ids = np.array([[0, 13, IGNORE]], dtype=np.uint8)
    write_image(tmp_path / "x.png", size=(1, 3))
    (tmp_path / "labels").mkdir()
    Image.fromarray(CITYSCAPES_19.decode(train_ids, convention)).save(tmp_path / "labels" / "x.png")
    path = tmp_path / "own.yaml"
    # Images in the root itself have an empty {folder}; the pattern must still stay below the root.
    path.write_text(
        f"label_space: cityscapes-19\nids: {convention}\n"
        'splits: {all: {images: ["*.png"], labels: "{folder}/labels/{stem}.png"}}\n'
    )
    labelled = open_labelled("folder", tmp_path, label_space=CITYSCAPES_19, split="all", description=path)
    assert labelled.label_space is CITYSCAPES_19
    np.testing.assert_array_equal(labelled.pair(0)[1], train_ids)


def test_folder_names_get_their_folder_only_where_stems_collide(tmp_path, description_file):
    for name in ("a/b/x.png", "c/x.jpg", "c/y.png"):
        write_image(tmp_path / "data" / name)
    description_file.write_text(DESCRIPTION + '  all: {images: ["**/*.png", "c/x.jpg", "c/*"]}\n')
    description = folder.read_description(description_file)
    images = folder.open_images(description, tmp_path / "data", "all")
    assert images.names == ("a__b__x", "c__x", "y")  # a file that two globs find is one image

    write_image(tmp_path / "data" / "c" / "x.png")
    with pytest.raises(DataError, match="image names must be unique, got 'c__x' for .*/c/x.jpg and .*/c/x.png"):
        folder.open_images(description, tmp_path / "data", "all")


def test_folder_refusals(folder_root, description_file, tmp_path):
    description = folder.read_description(description_file)
    with pytest.raises(ConfigError, match=r"split must be one of day, dusk \(those of .*own\.yaml\), got 'dawn'"):
        folder.open_images(description, folder_root, "dawn")
    with pytest.raises(DataError, match=r"data root .*/nowhere does not exist: expected a folder with train/b_\*\.png"):
        folder.open_images(description, tmp_path / "nowhere", "dusk")
    (folder_root / "train" / "b_1.png").unlink()
    with pytest.raises(DataError, match=r"data root .*/own has no image train/b_\*\.png \(split 'dusk'"):
        folder.open_images(description, folder_root, "dusk")
    (folder_root / "trainannot" / "a_2.png").unlink()
    with pytest.raises(DataError, match="1 of 3 images has no label, the first is .*/train/a_2.png"):
        folder.open_labelled(description, folder_root, "day")


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            "  dusk: {images",
            "  dusk: {image",
            "unknown key 'splits.dusk.image' (allowed: images, labels, unlabelled, list)",
        ),
        ("splits:", "extra: 1\nsplits:", "unknown key 'extra' (allowed: splits, ignore_colours, label_space, ids)"),
        ("name: three", "name: 3", "key 'label_space.name' must be a text, got 3"),
        ("  name: three\n", "", "key 'label_space.name' is missing (it must be a text)"),
        (
            "11: ignore",
            "11: void",
            "key 'label_space.ids[11]' must be a trainId, the name of a class or 'ignore', got 'void'",
        ),
        ("11: ignore", "11: 3", "label space three must map raw ids to 0-2 or 255 (ignore), got 11 -> 3"),
        (", [0, 0, 142]]", "]", "key 'label_space.palette': must have one colour per class, got 2 for 3 classes"),
        ("name: three", "name: nthu-13", "must not be that of a known one, got 'nthu-13'"),
        ('["train/b_*.png"]', "[]", "key 'splits.dusk.images' must have at least 1 item, got []"),
        ('["train/b_*.png"]', "b", "key 'splits.dusk.images' must be a list, got 'b'"),
        ("train/b_", "../b_", "key 'splits.dusk.images': must be below the data root, got '../b_*.png'"),
        ("train/b_", "/b_", "key 'splits.dusk.images': must be below the data root, got '/b_*.png'"),
        ("{stem}.png", "x.png", "must contain {stem}, or all images would share one label"),
        ("{folder}annot", "{split}", "must have no placeholders but {folder} and {stem}"),
        ("{folder}annot", "{folder", "must be a pattern with {folder} and {stem}"),
        (DESCRIPTION, "label_space: voc\nids: trainId\nsplits: {a: {images: [x]}}", "label space must be one of"),
        (DESCRIPTION, "label_space: nthu-13\nids: own\nsplits: {a: {images: [x]}}", "must be one of 'cityscapes', 't"),
        (DESCRIPTION, "label_space: nthu-13\nsplits: {a: {images: [x]}}", "key 'ids' is missing (it must be a text or"),
    ],
)
def test_wrong_descriptions_are_refused_by_key(description_file, old, new, sentence):
    assert old in DESCRIPTION
    description_file.write_text(DESCRIPTION.replace(old, new, 1))
    with pytest.raises(ConfigError) as error:
        folder.read_description(description_file)
    assert str(error.value).startswith(f"{description_file}")
    assert sentence in str(error.value)


def test_wrong_globs_are_refused(description_file, folder_root):
    description_file.write_text(DESCRIPTION.replace("train/b_*.png", "[.png"))
    with pytest.raises(DataError, match=r"has no image \[\.png"):
        folder.open_images(folder.read_description(description_file), folder_root, "dusk")


def test_files_that_are_there_are_found(tmp_path, description_file):
    root = tmp_path / "root"
    for name in ("img/x/a.png", "img/B.PNG", "../elsewhere/c.png"):
        write_image(root / name)
    for name in ("a.png", "B.PNG", "c.png"):
        write_ids(root / "lab" / name, [0, 1])
    (root / "img" / "y").symlink_to(tmp_path / "elsewhere")
    (root / "img" / "._B.PNG").write_bytes(b"a Mac's")
    description_file.write_text(DESCRIPTION + '  all: {images: ["img/**/*.png"], labels: "lab/{stem}.png"}\n')
    description = folder.read_description(description_file)
    labelled = folder.open_labelled(description, root, "all")
    assert labelled.names == ("B", "a", "c")
    assert [path.name for path in labelled.label_paths] == ["B.PNG", "a.png", "c.png"]
    assert folder.find_images(description, root, "all").remark() == "1 left out: 1 hidden (._B.PNG)"

    (root / "img" / "d.png").symlink_to("gone.png")
    with pytest.raises(DataError, match=r"image .*d.png is a link to nothing \(gone.png\)"):
        folder.open_images(description, root, "all")


def test_a_split_without_images_says_what_was_left_out(tmp_path, description_file):
    write_image(tmp_path / "root" / "val" / ".hidden.png")
    description_file.write_text(DESCRIPTION.replace('"train/a_*.png", ', ""))
    description = folder.read_description(description_file)
    with pytest.raises(DataError, match=r"has no image val/\*.png \(.*\); 1 left out: 1 hidden \(.hidden.png\)$"):
        folder.open_images(description, tmp_path / "root", "day")


def test_published_data_are_found_behind_links_and_in_upper_case(gta5_root, cityscapes_root, tmp_path):
    (gta5_root / "images" / "00001.png").rename(gta5_root / "images" / "00001.PNG")
    (gta5_root / "images" / "._00002.png").write_bytes(b"a Mac's")
    assert open_images("gta5", gta5_root).names == ("00001", "00002", "00010")
    train = cityscapes_root / "leftImg8bit" / "train"
    (train / "aachen").rename(tmp_path / "moved")
    (train / "aachen").symlink_to(tmp_path / "moved")
    assert len(open_images("cityscapes", cityscapes_root, split="train")) == 3


# --- choice of the reader -----------------------------------------------------------------------------------------


def test_formats():
    assert tuple(FORMATS) == ("gta5", "synthia", "cityscapes", "nthu", "folder")


def test_a_sixth_format_is_a_module_and_a_line(tmp_path, monkeypatch):
    write_image(tmp_path / "a.png")
    Image.fromarray(np.full(SIZE, 7, np.uint8)).save(tmp_path / "a_ids.png")

    def toy_images(root, *, stem):
        return ImageSet([stem], [root / f"{stem}.png"])

    def toy_labelled(root, *, label_space, stem):
        return LabelledImageSet([stem], [root / f"{stem}.png"], [root / f"{stem}_ids.png"], label_space, "cityscapes")

    monkeypatch.setitem(FORMATS, "toy", Format(toy_images, toy_labelled, needed=("stem",)))
    assert len(open_images("toy", tmp_path, stem="a")) == 1
    assert open_labelled("toy", tmp_path, label_space=CITYSCAPES_19, stem="a").label(0).dtype == np.uint8
    with pytest.raises(ConfigError, match="^stem must be given for data of format toy$"):
        open_images("toy", tmp_path)
    with pytest.raises(ConfigError, match="format must be one of gta5, synthia, cityscapes, nthu, folder, toy, got"):
        open_images("tory", tmp_path)


@pytest.mark.parametrize("labels", ["raw", "labelIds"])
def test_images_alone_have_no_label_files_to_choose(tmp_path, labels):
    for format in ("synthia", "cityscapes"):
        options = {"split": "train"} if format == "cityscapes" else {}
        with pytest.raises(ConfigError, match=f"labels must not be given for data of format {format}, got '{labels}'"):
            open_images(format, tmp_path, labels=labels, **options)


@pytest.mark.parametrize(
    ("format", "options", "sentence"),
    [
        ("voc", {}, "format must be one of gta5, synthia, cityscapes, nthu, folder, got 'voc'"),
        ("gta5", {"split": "train"}, "split must not be given for data of format gta5, got 'train'"),
        ("cityscapes", {}, "split must be given for data of format cityscapes"),
        ("folder", {"split": "day"}, "description must be given for data of format folder"),
        ("cityscapes", {"split": "val", "description": "x"}, "description must not be given for data of format city"),
    ],
)
def test_options_that_do_not_fit_the_format_are_refused(tmp_path, format, options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        open_images(format, tmp_path, **options)
    with pytest.raises(ConfigError, match=sentence):
        open_labelled(format, tmp_path, label_space=CITYSCAPES_19, **options)


def test_label_files_are_chosen_for_cityscapes_alone(cityscapes_root, gta5_root):
    options = {"label_space": CITYSCAPES_19, "labels": "labelTrainIds"}
    labelled = open_labelled("cityscapes", cityscapes_root, split="val", **options)
    assert labelled.label_paths[0].name.endswith("_gtFine_labelTrainIds.png")
    assert labelled.convention == "trainId"
    with pytest.raises(ConfigError, match="labels must not be given for data of format gta5, got 'labelTrainIds'"):
        open_labelled("gta5", gta5_root, **options)


def test_label_space_must_fit_the_data(gta5_root, folder_root, description_file):
    own = folder.label_space(folder.read_description(description_file))
    with pytest.raises(ConfigError, match="label convention of three must be one of 'folder', 'trainId', got 'citysc"):
        open_labelled("gta5", gta5_root, label_space=own)
    with pytest.raises(ConfigError, match="label_space must be three, as described for the data in .*, got nthu-13"):
        open_labelled("folder", folder_root, label_space=NTHU_13, split="day", description=description_file)
    labelled = open_labelled("folder", folder_root, label_space=own, split="day", description=description_file)
    assert len(labelled) == 3


@pytest.mark.parametrize("dataset", ["gta5", "synthia", "cityscapes", "nthu"])
def test_labels_of_published_sets_with_endings_in_upper_case(tmp_path, dataset):
    # as after unpacking on systems that do not tell upper from lower case
    root = WRITERS[dataset](tmp_path / dataset)
    options = {"cityscapes": {"split": "train"}, "nthu": {"city": "Rome", "split": "test"}}.get(dataset, {})
    space = SYNTHIA_16 if dataset == "synthia" else NTHU_13 if dataset == "nthu" else CITYSCAPES_19
    before = open_labelled(dataset, root, label_space=space, **options)
    path = before.label_paths[1]
    findings = examine(dataset, root).findings
    path.rename(path.with_suffix(".PNG"))
    images = open_labelled(dataset, root, label_space=space, **options)
    assert images.label_paths[1] == path.with_suffix(".PNG")
    assert [p for p in images.label_paths if p.suffix == ".png"] == [p for p in before.label_paths if p != path]
    images.label(1)
    assert examine(dataset, root).findings == findings


def test_labels_of_published_sets_in_another_unicode_form(tmp_path):
    root = WRITERS["gta5"](tmp_path / "g")
    (root / "images" / "00002.png").rename(root / "images" / unicodedata.normalize("NFD", "Köln.png"))
    (root / "labels" / "00002.png").rename(root / "labels" / unicodedata.normalize("NFC", "Köln.png"))
    images = gta5.open_labelled(root, CITYSCAPES_19)
    assert unicodedata.normalize("NFC", "Köln.png") in [path.name for path in images.label_paths]
    # two files of which either could be it
    (root / "labels" / "00003.png").rename(root / "labels" / "00003.Png")
    (root / "labels" / "00003.PNG").write_bytes(b"")
    with pytest.raises(DataError, match="could be '00003.P.*keep one of the two"):
        gta5.open_labelled(root, CITYSCAPES_19)
    whats = [finding.what for finding in examine("gta5", root).findings if finding.severity == "error"]
    assert any("keep one of the two" in what for what in whats)
