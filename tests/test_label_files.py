"""From images to labels: replacements whose time is bounded, and files whatever the form of their names."""

from __future__ import annotations

import time
import unicodedata

import pytest

from cbst_mx.data.label_files import LONGEST_PATH, LabelPaths, check_expression, files_below
from cbst_mx.errors import DataError


@pytest.mark.parametrize(
    ("replace", "image", "label"),
    [
        ([["^rgb_anon/", "gt/"], ["_rgb_anon[.]png$", "_gt.png"]], "rgb_anon/val/a_rgb_anon.png", "gt/val/a_gt.png"),
        ([["^img/(.*)/(.*)[.]jpg$", r"lab/\2/\1.png"]], "img/a/b.jpg", "lab/b/a.png"),
        ([["(?P<n>[0-9]+)", r"\g<n>_id"]], "x/17.png", "x/17_id.png"),
        ([["x", "y"], ["y", "z"]], "x.png", "z.png"),
    ],
)
def test_replacements_follow_one_another(replace, image, label):
    for pair in replace:
        check_expression(*pair)
    assert LabelPaths(None, replace).of(image) == label


def test_case():
    replace = [["[.]jpe?g$", ".png"]]
    assert LabelPaths(None, replace, ignore_case=True).of("IMG_1.JPG") == "IMG_1.png"
    with pytest.raises(DataError, match=r"labels.replace \('\[.\]jpe\?g\$'\) must change the path of image IMG_1.JPG"):
        LabelPaths(None, replace).of("IMG_1.JPG")


@pytest.mark.parametrize("to", ["../x", "/x", ""])
def test_labels_stay_below_the_root(to):
    with pytest.raises(DataError, match="turns image a.png into a path that must be below the data root, got"):
        LabelPaths(None, [["^a.png$", to]]).of("a.png")


HOSTILE = [
    "(a+)+$", "(a*)*$", "(.*)*x", "(a|a)*$", "(a|aa)+$", "(?:a{1,50}){1,50}$", ".*.*.*.*x", "a?" * 30 + "a" * 30,
    "(?:a|b|ab)" * 6, r"(a*)\1*\1*$", "((a{0,9}){0,9}){0,9}", "(?=(a+)+b)a", "(?P<x>a)(?P=x)", "(?:(?:x*)y)+z",
]  # fmt: skip


@pytest.mark.parametrize("expression", HOSTILE)
def test_expressions_that_could_take_for_ever_are_refused(expression):
    with pytest.raises(ValueError, match="must have "):
        check_expression(expression, "x")


@pytest.mark.parametrize("expression", [".*.*.*x$", "(?:a|b)?(?:c|d)?.*[^x]+x$", "^(.*)/(.*)_rgb[.](png|jpg)$"])
def test_the_slowest_expressions_that_are_allowed_are_quick(expression):
    check_expression(expression, "y")
    image = "a" * 255
    start = time.perf_counter()
    with pytest.raises(DataError, match="must change"):
        LabelPaths(None, [[expression, "y"]]).of(image)
    assert time.perf_counter() - start < 5  # 0.1 s here; what is refused takes more than 2^30 steps
    with pytest.raises(DataError, match=f"at most {LONGEST_PATH} characters"):
        LabelPaths(None, [[expression, "y"]]).of("a" * (LONGEST_PATH + 1))


@pytest.mark.parametrize(("expression", "replacement"), [("(", "x"), ("a", r"\1"), ("a", r"\g<b>"), ("[z-a]", "x")])
def test_what_is_no_expression_is_refused(expression, replacement):
    with pytest.raises(ValueError, match="must be a regular expression and its replacement"):
        check_expression(expression, replacement)
    with pytest.raises(ValueError, match="of 1 to 200 characters"):
        check_expression("a" * 201, "b")


@pytest.mark.parametrize("asked", ["NFC", "NFD"])
@pytest.mark.parametrize("stored", ["NFC", "NFD"])
def test_names_of_both_unicode_forms_are_found(tmp_path, asked, stored):
    folder, file = (unicodedata.normalize(stored, text) for text in ("Zürich", "Köln.png"))
    (tmp_path / folder).mkdir()
    (tmp_path / folder / file).write_bytes(b"")
    (found,) = files_below(tmp_path, [unicodedata.normalize(asked, "Zürich/Köln.png")])
    assert found is not None
    assert found.read_bytes() == b""
    assert files_below(tmp_path, [f"{folder}/köln.png", "none/x.png"]) == [None, None]
    assert files_below(tmp_path, [f"{folder}/KÖLN.PNG"], ignore_case=True) == [tmp_path / folder / file]


def test_a_label_that_could_be_two_files_is_refused(tmp_path):
    for name in ("a.png", "A.png"):
        (tmp_path / name).write_bytes(b"")
    assert files_below(tmp_path, ["A.png"], ignore_case=True) == [tmp_path / "A.png"]
    with pytest.raises(DataError, match="a.PNG could be .*: keep one of the two"):
        files_below(tmp_path, ["a.PNG"], ignore_case=True)
