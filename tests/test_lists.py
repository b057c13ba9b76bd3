"""Image lists: the forms of a name, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from cbst_mx.data import ImageSet, LabelledImageSet, open_images, open_labelled
from cbst_mx.data.lists import find_listed, read_list
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
    assert read_list(path) == ("00001.png", "images/00017.png", "2")


def test_the_order_is_the_data_sets(tmp_path):
    assert find_listed(NAMES, ["17", "1"], "x.txt") == [0, 2]


def test_unknown_names_are_counted_and_the_first_shown():
    with pytest.raises(DataError) as error:
        find_listed(NAMES, ["3", "2", "x.png", "4", "5", "6", "7"], "x.txt")
    assert str(error.value) == (
        "image list x.txt names 6 of 7 images that are not there: 3, x.png, 4, 5, 6 and 1 more "
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
        read_list(tmp_path / "empty.txt")
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
    with pytest.raises(DataError, match="names 1 of 1 images that are not there: lindau/lindau_000001"):
        open_images("cityscapes", cityscapes, split="train", list="x.txt")
