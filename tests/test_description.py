"""Descriptions of one's own data: colours, replaced paths, images without labels, lists, ids of one's own."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from cbst_mx.cli import main
from cbst_mx.data import open_images, open_labelled
from cbst_mx.data.description import read_description, read_label_space
from cbst_mx.data.doctor import examine
from cbst_mx.errors import CBSTError, ConfigError, DataError
from cbst_mx.label_space import CITYSCAPES_19, IGNORE

OWN = {"name": "three", "names": ["sky", "road", "car"], "palette": [[70, 130, 180], [128, 64, 128], [0, 0, 142]]}
IDS = np.array([[0, 1, 2, 255]], dtype=np.uint8)


def write(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def image(path):
    write(path, np.full((*IDS.shape, 3), 77, dtype=np.uint8))


def described(tmp_path, **content):
    path = tmp_path / "d.yaml"
    path.write_text(yaml.safe_dump({"splits": {"all": {"images": ["img/*"], "labels": "lab/{stem}.png"}}, **content}))
    return path


def opened(tmp_path, path, **options):
    space = read_label_space(path)
    return open_labelled("folder", tmp_path, label_space=space, split="all", description=path, **options)


@pytest.mark.parametrize("place", ["top", "inside"])
def test_own_classes_by_colour(tmp_path, place):
    content = {"label_space": OWN, "ids": "colours"} if place == "top" else {"label_space": {**OWN, "ids": "colours"}}
    path = described(tmp_path, **content)
    image(tmp_path / "img" / "a.png")
    write(tmp_path / "lab" / "a.png", read_label_space(path).colorize(IDS))
    np.testing.assert_array_equal(opened(tmp_path, path).pair(0)[1], IDS)
    report = examine("folder", tmp_path, sample=None, description=path)
    assert report.ok, report.findings
    assert report.presence == {"sky": 1, "road": 1, "car": 1}


def test_the_doctor_tells_colours_of_no_class(tmp_path):
    path = described(tmp_path, label_space="cityscapes-19", ids="colours")
    for name in ("a", "b"):
        image(tmp_path / "img" / f"{name}.png")
        rgb = CITYSCAPES_19.colorize(IDS)
        rgb[0, 0] = (1, 1, 1)
        write(tmp_path / "lab" / f"{name}.png", rgb)
    (finding,) = examine("folder", tmp_path, sample=None, description=path).findings
    assert finding.what.startswith(f"2 labels have colours of no class: label {tmp_path}/lab/a.png has 1 colour of no ")
    assert "[1, 1, 1] at 1 pixel" in finding.what
    assert "ignore_colours" in finding.fix
    path = described(tmp_path, label_space="cityscapes-19", ids="colours", ignore_colours=[[1, 1, 1]])
    assert opened(tmp_path, path).label(0).tolist() == [[IGNORE, 1, 2, IGNORE]]


def test_ids_of_ones_own_for_known_classes(tmp_path):
    path = described(tmp_path, label_space="cityscapes-19", ids={0: "sky", 1: 13, 2: "ignore", 255: "traffic light"})
    image(tmp_path / "img" / "a.png")
    write(tmp_path / "lab" / "a.png", IDS)
    images = open_labelled("folder", tmp_path, label_space=CITYSCAPES_19, split="all", description=path)
    assert images.label(0).tolist() == [[10, 13, IGNORE, 6]]
    write(tmp_path / "lab" / "a.png", IDS + 7)
    with pytest.raises(DataError, match="unknown in the 'folder' convention of cityscapes-19"):
        images.label(0)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"label_space": OWN}, "exactly one of label_space.ids (a mapping, or colours) and ids: colours must be given"),
        ({"label_space": {**OWN, "ids": {0: 0}}, "ids": "colours"}, "exactly one of label_space.ids"),
        ({"label_space": {**OWN, "ids": {0: 0}}, "ignore_colours": [[0, 0, 0]]}, "must not be given without ids: co"),
        ({"label_space": {**OWN, "palette": [[1, 1, 1]] * 3}, "ids": "colours"}, "a colour of its own for each class"),
        ({"label_space": OWN, "ids": "colours", "ignore_colours": [[0, 0]]}, "must be colours of three values from 0"),
        ({"label_space": OWN, "ids": "colours", "ignore_colours": [[0, 0, 256]]}, "colours of three values from 0"),
        ({"label_space": {**OWN, "names": ["a", "b\n", "c"], "ids": "colours"}}, "1 to 100 printable characters"),
        ({"label_space": "cityscapes-19", "ids": {0: "street"}}, "key 'ids[0]' must be a trainId, the name of a class"),
        ({"label_space": "cityscapes-19", "ids": {0: 19}}, "must map raw ids to 0-18 or 255 (ignore), got 0 -> 19"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path, content, sentence):
    with pytest.raises(ConfigError) as error:
        read_description(described(tmp_path, **content))
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ({}, "exactly one of pattern and replace must be given"),
        ({"pattern": "{stem}.png", "replace": [["a", "b"]]}, "exactly one of pattern and replace must be given"),
        ({"replace": [["a"]]}, "must be pairs of an expression and its replacement, got 1 texts"),
        ({"replace": []}, "must have at least 1 item"),
        ({"replace": [["(a+)+", "b"]]}, "must have no repetition within a repetition"),
        ({"replace": [["(", "b"]]}, "must be a regular expression and its replacement"),
        ({"replace": "a"}, "key 'splits.all.labels.replace' must be a list, got 'a'"),
        ({"pattern": "x.png"}, "must contain {stem}"),
        (3, "key 'splits.all.labels' must be a mapping, got 3"),
    ],
)
def test_rules_that_are_none_are_refused(tmp_path, labels, sentence):
    splits = {"all": {"images": ["img/*"], "labels": labels}}
    with pytest.raises(ConfigError) as error:
        read_description(described(tmp_path, label_space="cityscapes-19", ids="trainId", splits=splits))
    assert sentence in str(error.value)


@pytest.mark.parametrize("glob", ["x" * 300 + "/*", "img/" * 2000 + "*", "**x/*", "[", "img/***/*"])
def test_globs_that_are_none_are_one_sentence(tmp_path, glob):
    image(tmp_path / "img" / "a.png")
    path = described(tmp_path, label_space="cityscapes-19", ids="trainId", splits={"all": {"images": [glob]}})
    with pytest.raises(CBSTError) as error:
        open_images("folder", tmp_path, split="all", description=path)
    assert "\n" not in str(error.value)


def test_globs_go_through_all_folders_twice_at_most(tmp_path):
    splits = {"all": {"images": ["**/**/**/*.png"]}}
    with pytest.raises(ConfigError, match=r"must have \*\* at most 2 times"):
        read_description(described(tmp_path, label_space="cityscapes-19", ids="trainId", splits=splits))


def test_all_problems_are_in_one_answer(tmp_path):
    splits = {"a": {"image": [], "labels": {"replace": [["(", ""]]}}, "b": {"images": ["/x"], "unlabelled": "drop"}}
    with pytest.raises(ConfigError) as error:
        read_description(described(tmp_path, label_space=OWN, ids="color", ignore_colours=3, splits=splits))
    lines = str(error.value).splitlines()
    assert lines[0].endswith("d.yaml has 7 problems:")
    assert len(lines) == 8
    for key in ("a.image", "a.images", "a.labels.replace", "b.images", "b.unlabelled", "ignore_colours", "ids"):
        assert any(f"{key}'" in line for line in lines), key


def test_images_without_labels(tmp_path):
    for name in ("a", "b", "c"):
        image(tmp_path / "img" / f"{name}.png")
        if name != "b":
            write(tmp_path / "lab" / f"{name}.png", IDS)
    split = {"images": ["img/*"], "labels": "lab/{stem}.png"}
    rest = {"label_space": "cityscapes-19", "ids": "trainId"}
    path = described(tmp_path, **rest, splits={"all": split})
    with pytest.raises(
        DataError, match=r"1 of 3 images has no label, the first is .*b.png: expected .*lab/b.png \(unl"
    ):
        opened(tmp_path, path)
    (tmp_path / "two.txt").write_text("a.png\nc.png\n")
    assert opened(tmp_path, path, list="two.txt").names == ("a", "c")  # only what the list names needs a label
    report = examine("folder", tmp_path, sample=None, description=path, list="two.txt")
    assert report.ok, report.findings
    assert report.examined == 2

    path = described(tmp_path, **rest, splits={"all": {**split, "list": "two.txt"}})
    assert opened(tmp_path, path).names == ("a", "c")
    assert open_images("folder", tmp_path, split="all", description=path).names == ("a", "c")

    path = described(tmp_path, **rest, splits={"all": {**split, "unlabelled": "skip"}})
    images = opened(tmp_path, path)
    assert (images.names, images.left_out) == (("a", "c"), 1)
    assert len(open_images("folder", tmp_path, split="all", description=path)) == 3
    (finding,) = examine("folder", tmp_path, sample=None, description=path).findings
    assert (finding.severity, finding.what) == (
        "note", "1 image of all without a label: left out (unlabelled: skip)",
    )  # fmt: skip
    for name in ("a", "c"):
        (tmp_path / "lab" / f"{name}.png").unlink()
    with pytest.raises(DataError, match="3 of 3 images have no label"):
        opened(tmp_path, path)


def test_labels_whose_names_have_another_unicode_form_are_found(tmp_path):
    path = described(tmp_path, label_space="cityscapes-19", ids="trainId")
    image(tmp_path / "img" / f"{unicodedata.normalize('NFD', 'Köln')}.png")
    write(tmp_path / "lab" / f"{unicodedata.normalize('NFC', 'Köln')}.png", IDS)
    assert opened(tmp_path, path).pair(0)[1].tolist() == IDS.tolist()


def test_the_command_reads_back_the_list_it_would_write(tmp_path):
    path = described(tmp_path, label_space="cityscapes-19", ids="trainId")
    for name in ("road", "road (2)", "a #1", "000001_leftImg8bit"):
        image(tmp_path / "img" / f"{name}.png")
        write(tmp_path / "lab" / f"{name}.png", IDS)
    (tmp_path / "one.txt").write_bytes("\ufeffroad (2).png\r\n".encode())
    done = CliRunner().invoke(
        main, ["doctor", "folder", str(tmp_path), "--description", str(path), "--list", str(tmp_path / "one.txt")]
    )
    assert done.exit_code == 0, done.output
    assert opened(tmp_path, path, list=tmp_path / "one.txt").names == ("road (2)",)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            "label_space: cityscapes-20\nids: traId\nsplitz: {}\nsplits:\n"
            "  a: {images: 'img/*.png', labels: 'lab/{stm}.png', unlabelled: maybe}\n"
            "  b: {images: ['../x'], labels: {replace: [['(a*)*', 'x']]}}\n",
            ["'splitz'", "'splits.a.images' must be a list", "{stem}, got 'lab/{stm}.png'", "'splits.a.unlabelled'",
             "below the data root, got '../x'", "no repetition within", "got 'cityscapes-20'", "got 'traId'"],
        ),
        (
            "label_space: {name: x, names: [a, a], palette: [[0, 0, 0], [1, 2, 300]], ids: {0: a, x: b}}\n"
            "ignore_colours: [[1, 2]]\nsplits: {}\n",
            ["'splits' must have at least 1", "three values from 0 to 255, got [1, 2]\n", "got 'a' more than once",
             "got [1, 2, 300]", "'label_space.ids.x' must be an integer"],
        ),
    ],
)  # fmt: skip
def test_all_mistakes_are_told_in_one_answer(tmp_path, text, parts):
    path = tmp_path / "d.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        read_description(path)
    told = str(error.value)
    assert told.startswith(f"{path} has {len(parts)} problems:\n")
    assert [part for part in parts if part not in told] == []
