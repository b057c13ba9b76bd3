"""The doctor on rotation marks, sizes of labels, colour profiles and files that no split takes."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from cbst_mx.data import open_labelled
from cbst_mx.data.doctor import examine
from cbst_mx.errors import DataError
from cbst_mx.label_space import CITYSCAPES_19
from tests.doctor_fixtures import the_error
from tests.test_colour_profiles import profile


def write(path, size, turn=1, ids=False, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    if turn != 1:
        exif = Image.Exif()
        exif[0x0112] = turn
        options["exif"] = exif
    shape = size if ids else (*size, 3)
    Image.fromarray(np.random.default_rng(0).integers(0, 3 if ids else 256, shape, dtype=np.uint8)).save(
        path, **options
    )


@pytest.fixture
def described(tmp_path):
    path = tmp_path / "d.yaml"

    def describe(images="img/*", labels="lab/{stem}.png"):
        given = f", labels: '{labels}'" if labels else ""
        path.write_text(f"label_space: cityscapes-19\nids: trainId\nsplits:\n  all: {{images: ['{images}']{given}}}\n")
        return path

    return describe


def findings(tmp_path, description):
    report = examine("folder", tmp_path, description=description, sample=None)
    return [(finding.severity, finding.what) for finding in report.findings]


@pytest.mark.parametrize(
    ("image_turn", "label_turn", "image_size", "label_size", "severity", "words"),
    [
        (1, 1, (8, 12), (8, 12), None, ""),
        (6, 1, (8, 12), (12, 8), "error", "1 image is marked as turned by 90 degrees (EXIF), which is not applied"),
        (5, 1, (8, 12), (12, 8), "error", "the label has the turned size"),
        (6, 1, (8, 12), (8, 12), "note", "1 image is marked as turned (EXIF) and read as stored"),
        (8, 8, (8, 12), (8, 12), "note", "as the label of the same size is"),
        (3, 1, (8, 12), (8, 12), "warning", "in a way that sizes do not show"),
        (2, 1, (8, 12), (8, 12), "warning", "marked as turned or mirrored"),
        (3, 3, (8, 12), (8, 12), "note", "marked as turned (EXIF)"),
        (6, 1, (8, 8), (8, 8), "warning", "in a way that sizes do not show"),
        (1, 3, (8, 12), (8, 12), "warning", "in a way that sizes do not show"),
        (1, 1, (8, 12), (12, 8), "error", "1 label has height and width of the image exchanged"),
        (6, 8, (8, 12), (12, 8), "error", "1 label has height and width of the image exchanged"),
        (1, 1, (8, 12), (4, 6), "error", "1 label has another resolution than the image: 4 x 6 for 8 x 12"),
        (1, 1, (8, 12), (4, 12), "error", "1 label does not have the size of the image"),
        (6, 1, (8, 12), (4, 12), "error", "1 label does not have the size of the image"),
    ],
)
def test_images_and_labels(tmp_path, described, image_turn, label_turn, image_size, label_size, severity, words):
    write(tmp_path / "img" / "a.jpg", image_size, image_turn)
    write(tmp_path / "lab" / "a.png", label_size, label_turn, ids=True)
    found = findings(tmp_path, described())
    assert [kind for kind, _ in found] == ([severity] if severity else [])
    assert words in "".join(what for _, what in found)


def test_the_fix_of_a_turned_image_does_not_stretch_labels(tmp_path, described):
    write(tmp_path / "img" / "a.jpg", (8, 12), 6)
    write(tmp_path / "lab" / "a.png", (12, 8), ids=True)
    finding = the_error(examine("folder", tmp_path, description=described()))
    assert finding.where == str(tmp_path / "img" / "a.jpg")
    assert finding.fix.startswith("turn the pixels themselves and drop the mark")
    assert finding.fix.endswith("do not resize the labels")
    labelled = open_labelled("folder", tmp_path, label_space=CITYSCAPES_19, split="all", description=described())
    with pytest.raises(DataError, match=r"8 x 12, got 12 x 8: the image is marked as turned by 90 degrees \(EXIF\)"):
        labelled.pair(0)


def test_marked_images_without_labels_are_counted(tmp_path, described):
    for turn in range(1, 9):
        write(tmp_path / "img" / f"{turn}.jpg", (8, 12), turn)
    ((severity, what),) = findings(tmp_path, described(labels=None))
    assert (severity, what[:42]) == ("warning", "7 images are marked as turned (EXIF) and r")


def test_colour_profiles_are_noted(tmp_path, described):
    for name, title in (("a", "Display P3"), ("b", "sRGB"), ("c", "Display P3")):
        write(tmp_path / "img" / f"{name}.jpg", (8, 12), icc_profile=profile(title, 4))
    ((severity, what),) = findings(tmp_path, described(labels=None))
    assert severity == "note"
    assert what.startswith("2 images have a colour profile other than sRGB (Display P3)")


@pytest.mark.parametrize(
    ("ending", "space", "words"),
    [("jpg", 2, "Adobe RGB (EXIF)"), ("png", 65535, "uncalibrated (EXIF)"), ("tif", 1, "")],
)
def test_colour_spaces_of_exif_are_noted(tmp_path, described, ending, space, words):
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    if ending == "tif":
        exif.get_ifd(0x8769)[0xA001] = space
    else:  # Pillow 10, the last one for Python 3.8, drops what is put into get_ifd
        exif[0x8769] = {0xA001: space}
    (tmp_path / "img").mkdir()
    Image.new("RGB", (12, 8)).save(tmp_path / "img" / f"a.{ending}", exif=exif)
    whats = findings(tmp_path, described(labels=None))
    assert [f" sRGB ({words})" in what for _, what in whats] == [True] * bool(words)


def test_palettes_of_own_images_are_a_warning(tmp_path, described):
    (tmp_path / "img").mkdir()
    Image.new("P", (12, 8)).save(tmp_path / "img" / "a.png")
    ((severity, what),) = findings(tmp_path, described(labels=None))
    assert (severity, what) == ("warning", "1 image has a palette: labels in the images' place?")


def test_files_that_are_left_out_are_noted(tmp_path, described):
    for name in ("a.png", "b.tif", "c.PNG"):
        write(tmp_path / "img" / name, (8, 12))
    for name in ("a", "c"):
        write(tmp_path / "img" / f"{name}_ids.png", (8, 12), ids=True)
    (tmp_path / "img" / "._a.png").write_bytes(b"a Mac's")
    (tmp_path / "img" / "notes.txt").touch()
    assert findings(tmp_path, described("img/?.png", "img/{stem}_ids.png")) == [
        ("note", "1 image is beside those of the splits, and in none of them"),
    ]
    (tmp_path / "img" / "a_ids.png").unlink()
    (tmp_path / "img" / "c_ids.png").unlink()
    assert findings(tmp_path, described("img/*.png", None)) == [
        ("note", "files of all: 1 left out: 1 hidden (._a.png)"),
        ("note", "1 image is beside those of the splits, and in none of them"),
    ]


def test_every_reason_has_its_own_words(tmp_path, described):
    write(tmp_path / "img" / "a.png", (8, 12))
    content = (tmp_path / "img" / "a.png").read_bytes()
    path = tmp_path / "img" / "b.png"
    huge = content[:16] + (20000).to_bytes(4, "big") + (9500).to_bytes(4, "big") + content[24:]
    for changed, what in (
        (b"", "1 image is empty (0 bytes)"),
        (b"text", "1 image is no image that can be read"),
        (content[:20], "1 image is damaged"),
        (content[:-9], "1 image is truncated"),
        (huge, "1 image is too large: more than 178,956,970 pixels"),
    ):
        path.write_bytes(changed)
        assert findings(tmp_path, described(labels=None)) == [("error", what)]
    path.write_bytes(content + bytes(16))  # restored from a disk: no harm
    assert findings(tmp_path, described(labels=None)) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_permission_is_no_damage(tmp_path, described):
    write(tmp_path / "img" / "a.png", (8, 12))
    (tmp_path / "img" / "a.png").chmod(0)
    assert findings(tmp_path, described(labels=None)) == [
        ("error", "1 image is not open to this user (permission denied)")
    ]


@pytest.mark.parametrize(
    ("ending", "options", "codec"),
    [
        ("tif", {"compression": "jpeg"}, "JPEG"),
        ("jp2", {"irreversible": True}, "JPEG 2000"),
        ("jpg", {}, "JPEG"),
    ],
)
def test_lossy_labels_are_found_whatever_their_ending(tmp_path, described, ending, options, codec):
    write(tmp_path / "img" / "a.png", (32, 48))
    write(tmp_path / "lab" / f"a.{ending}", (32, 48), ids=True, **options)
    assert findings(tmp_path, described(labels="lab/{stem}." + ending)) == [
        ("error", f"1 label is {codec}, whose ids are not reliable")
    ]
