"""Image lists: the forms of a name, and what is refused."""

from __future__ import annotations

import tempfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cbst_mx.data import ImageSet, LabelledImageSet, open_images, open_labelled
from cbst_mx.data.lists import EXACT, find_listed, read_list, select_listed, write_list
from cbst_mx.errors import DataError
from cbst_mx.label_space import CITYSCAPES_19
from tests.dataset_fixtures import write_cityscapes, write_gta5, write_synthia

NAMES = ["00001", "00002", "00017", "frankfurt_000000_000294"]


@pytest.mark.parametrize(
    ("entry", "index"),
    [
        ("00001.png", 0),
        ("00002", 1),
        ("2", 1),
        ("17", 2),
        ("images/00017.png", 2),
        ("C:\\gta\\images\\00017.PNG", 2),
        ("frankfurt/frankfurt_000000_000294_leftImg8bit.png", 3),
        ("leftImg8bit/val/frankfurt/frankfurt_000000_000294_leftImg8bit.png", 3),
        ("frankfurt_000000_000294", 3),
    ],
)
def test_forms_of_a_name(entry, index):
    assert find_listed(NAMES, [entry], "x.txt") == [index]


def test_comments_blank_lines_and_further_columns(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("# all\n\n  00001.png  # first\nimages/00017.png\tlabels/00017.png\r\n2\n")
    assert find_listed(NAMES, read_list(path), "x.txt") == [0, 1, 2]


def test_the_order_is_the_data_sets(tmp_path):
    assert find_listed(NAMES, ["17", "1"], "x.txt") == [0, 2]


def test_unknown_names_are_counted_and_the_first_shown():
    with pytest.raises(DataError) as error:
        find_listed(NAMES, ["3", "2", "x.png", "4", "5", "6", "7"], "x.txt")
    assert str(error.value) == (
        "image list x.txt names 6 of 7 images not there: 3, x.png, 4, 5, 6 and 1 more "
        "(the data have 4 images, such as 00001)"
    )


@pytest.mark.parametrize("again", ["1", "00001.png", "a/00001.png"])
def test_an_image_named_twice_is_refused(again):
    with pytest.raises(DataError, match=f"x.txt must name an image once, got '00001' and '{again}'"):
        find_listed(NAMES, ["00001", again], "x.txt")


@pytest.mark.parametrize("digits", ["²", "٣"])  # str.isdigit() alone takes both
def test_other_digits_are_no_number(digits):
    with pytest.raises(DataError, match="not there"):
        find_listed(NAMES, [digits], "x.txt")


def test_files_that_are_no_list(tmp_path):
    with pytest.raises(
        DataError, match=r"image list .*/none.txt does not exist \(a relative path starts at the data r"
    ):
        read_list(tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text("# nothing\n\n")
    with pytest.raises(DataError, match="empty.txt names no image"):
        find_listed(NAMES, read_list(tmp_path / "empty.txt"), "empty.txt")
    (tmp_path / "blank.txt").write_text(" \n\r\n")
    with pytest.raises(DataError, match="blank.txt names no image"):
        read_list(tmp_path / "blank.txt")
    (tmp_path / "image.txt").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(DataError, match="image.txt must be text in UTF-8, one image per line"):
        read_list(tmp_path / "image.txt")
    with pytest.raises(DataError, match=f"image list {tmp_path} cannot be read"):
        read_list(tmp_path)


def test_lists_choose_with_and_without_labels(tmp_path):
    gta5 = write_gta5(tmp_path / "gta5")
    (gta5 / "half.txt").write_text("3\n1\n")
    images = open_images("gta5", gta5, list="half.txt")
    assert type(images) is ImageSet
    assert images.names == ("00001", "00003")
    labelled = open_labelled("gta5", gta5, label_space=CITYSCAPES_19, list=gta5 / "half.txt")
    assert type(labelled) is LabelledImageSet
    assert labelled.names == images.names
    np.testing.assert_array_equal(labelled.label(1), open_labelled("gta5", gta5, label_space=CITYSCAPES_19).label(2))


def test_lists_of_other_formats(tmp_path):
    (tmp_path / "x.txt").write_text("2\n")
    synthia = write_synthia(tmp_path / "synthia")
    assert open_images("synthia", synthia, list=tmp_path / "x.txt").names == ("0000002",)
    cityscapes = write_cityscapes(tmp_path / "cityscapes")
    (cityscapes / "x.txt").write_text("lindau/lindau_000001_000019_leftImg8bit.png\n")
    assert open_images("cityscapes", cityscapes, split="val", list="x.txt").names == ("lindau_000001_000019",)
    with pytest.raises(DataError, match="names 1 of 1 image not there: lindau/lindau_000001"):
        open_images("cityscapes", cityscapes, split="train", list="x.txt")


# --- names that look like something else --------------------------------------------------------------------------


def images_of(*files: str) -> ImageSet:
    """Return a set whose files have these paths below /data, named as a described folder names them."""
    paths = [Path("/data") / file for file in files]
    stems = [path.stem for path in paths]
    return ImageSet(
        [path.stem if stems.count(path.stem) == 1 else f"{path.parent.name}__{path.stem}" for path in paths], paths
    )


def chosen(images: ImageSet, line: str) -> tuple[str, ...]:
    numbers = find_listed(images.names, [line], "x.txt", paths=images.image_paths, root="/data")
    return tuple(images.image_paths[number].relative_to("/data").as_posix() for number in numbers)


ODD = ("road.png", "road (2).png", "a #1.png", "a.png", "x.y.z.png", "000001_leftImg8bit.png", "[1].png", "a b.png")


@pytest.mark.parametrize("file", ODD)
def test_a_whole_line_goes_before_its_first_column(file):
    images = images_of(*(f"img/{name}" for name in ODD))
    for line in (
        file,
        f"img/{file}",
        f"/data/img/{file}",
        file[:-4],
        f"{file}  # a comment",
        f" {file} ",
        f"old/{file}",
    ):
        if line == "old/a b.png":
            continue  # may mean a
        assert chosen(images, line) == (f"img/{file}",), line


@pytest.mark.parametrize("line", ["road (2).png", "img/road (2).png", "road (3).jpg", "road (3)", "img/road (12)"])
def test_the_beginning_of_a_name_that_is_not_there_is_no_other_image(line):
    with pytest.raises(DataError, match=r"names 1 of 1 image not there: .*road \("):
        chosen(images_of("img/road.png"), line)


@pytest.mark.parametrize(
    ("files", "line", "first", "second"),
    [
        (("a/x.png", "b/x.png"), "x.png", "a/x.png", "b/x.png"),
        (("a/x.png", "b/x.png"), "x", "a/x.png", "b/x.png"),
        (("a.png", "a.png.png"), "a.png", "a.png.png", "a.png"),
        (("017.png", "00017.png"), "17", "017.png", "00017.png"),
        (("a.png", "a b.png"), "old/a b.png", "a b.png", "a.png"),
        (("a.png", "a b.png"), "a b 0.9", "a b.png", "a.png"),
    ],
)
def test_a_line_that_could_mean_two_images_is_refused_naming_both(files, line, first, second):
    if line == "old/a b.png":  # the first word has no ending while the line has one: no column, and no doubt
        assert chosen(images_of(*files), line) == (first,)
        return
    with pytest.raises(DataError) as error:
        chosen(images_of(*files), line)
    assert str(error.value) == f"image list x.txt has a line that could mean {first!r} or {second!r}: {line!r}"


@pytest.mark.parametrize("line", ["a/x.png", "old/a/x.png", "C:\\old\\a\\x.png", "a__x", "a/x.png labels/b.png"])
def test_folders_tell_images_of_one_file_name_apart(line):
    assert chosen(images_of("a/x.png", "b/x.png", "c/b.png"), line) == ("a/x.png",)


@pytest.mark.parametrize("line", ["a.png\tlabels/b.png", "00018 labels/00018.png", "00018 0.5", "a.png 1 2 3"])
def test_columns(line):
    assert len(chosen(images_of("a.png", "b.png", "00018.png"), line)) == 1
    assert chosen(images_of("a.png", "b.png", "00018.png"), line)[0][:1] == line[:1]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("stored", ["NFC", "NFD"])
def test_both_forms_of_an_accent_are_one(form, stored):
    images = images_of(unicodedata.normalize(stored, "Köln (é)/Zürich 1.png"), "b.png")
    for line in ("Zürich 1.png", "Zürich 1", "Köln (é)/Zürich 1.png", "old/Zürich 1.png"):
        assert len(chosen(images, unicodedata.normalize(form, line))) == 1


def test_where_both_forms_are_there_each_names_its_own():
    images = images_of(*(unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD")))
    for name in images.names:
        assert chosen(images, name) == (f"{name}.png",)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_marks_and_line_ends_of_editors(tmp_path, encoding, end):
    (tmp_path / "x.txt").write_bytes(end.join(["00001.png", "é", ""]).encode(encoding))
    assert read_list(tmp_path / "x.txt") == ("00001.png", "é")


def test_what_is_no_list_is_told_without_its_content(tmp_path):
    (tmp_path / "x").write_bytes(b"a\0b\n" * 99)
    with pytest.raises(DataError, match="must be text, one image per line: it holds control characters") as error:
        read_list(tmp_path / "x")
    assert len(str(error.value)) < 120 + len(str(tmp_path))
    with pytest.raises(DataError, match="image list /dev/zero cannot be read: it is no ordinary file but a device"):
        read_list("/dev/zero")
    (tmp_path / "long").write_text("z" * 1_000_000 + "\n" + "9" * 5000)
    with pytest.raises(DataError, match="names 2 of 2 images not there: line 1, line 2") as error:
        find_listed(NAMES, read_list(tmp_path / "long"), "x.txt")
    assert len(str(error.value)) < 350


PIECES = [
    "a",
    "b",
    "1",
    "0",
    " ",
    "(2)",
    "[",
    "]",
    "#",
    ".",
    ".png",
    ".JPG",
    "_leftImg8bit",
    "é",
    "e\u0301",
    "\ufeff",
    "\u2028",
]
NAME = st.one_of(
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=5).map("".join),
    st.text(min_size=1, max_size=80),
    st.integers(1, 60).map(lambda count: "é" * 2 * count),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(NAME, min_size=1, max_size=8, unique=True), st.data())
def test_every_name_an_image_may_have_survives_writing_and_reading(names, data):
    try:
        images = ImageSet(names, [Path("/data/img") / f"{name}.png" for name in names])
    except DataError:
        assume(False)
    kept = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    with tempfile.TemporaryDirectory() as folder:
        write_list(Path(folder) / "x.txt", kept, among=names)
        assert set(select_listed(images, Path(folder) / "x.txt", "/data").names) == set(kept)


def test_usual_names_are_written_as_they_are(tmp_path):
    write_list(tmp_path / "x.txt", ["b", "a (2)", "frankfurt_000000_000294"])
    assert (tmp_path / "x.txt").read_text() == "b\na (2)\nfrankfurt_000000_000294\n"
    write_list(tmp_path / "x.txt", ["a.png"], among=["a", "a.png"])
    assert (tmp_path / "x.txt").read_text() == f"{EXACT}\na.png\n"


@pytest.mark.parametrize(
    ("name", "reason"),
    [("a\nb", "without control characters"), ("a\udcff", "readable as UTF-8"), ("n" * 241, "at most 240 bytes"),
     ("é" * 121, "at most 240 bytes"), (" ", "usable as a file name"), ("a\x85", "without control characters"),
     ("a\u2028b", "must be one line")],
)  # fmt: skip
def test_names_that_no_file_can_have_after_them_are_refused(name, reason):
    with pytest.raises(DataError, match=reason):
        ImageSet([name], ["/x.png"])
    assert ImageSet(["é" * 120], ["/x.png"]).names == ("é" * 120,)
