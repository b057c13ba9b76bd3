"""One function finds the images of every command, and says what it leaves out."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from cbst_mx.data.listing import ENDINGS, Listing, all_images, matching_images, merged, names_below
from cbst_mx.errors import DataError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def below(root: Path, listing: Listing) -> list[str]:
    return [path.relative_to(root).as_posix() for path in listing.files]


def left_out(root: Path, listing: Listing) -> dict[str, list[str]]:
    return {reason: [path.relative_to(root).as_posix() for path in paths] for reason, paths in listing.left_out.items()}


# --- globs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.png", ["a.png", "b.PNG"]),
        ("*.PNG", ["a.png", "b.PNG"]),
        ("*.jpg", ["c.jpg"]),  # .jpeg is another ending
        ("*.txt", ["d.txt"]),
        ("*.TXT", []),  # only images' endings are alike in both cases
        ("A.png", []),
        ("a.png", ["a.png"]),
        ("[ab].png", ["a.png", "b.PNG"]),
        ("[!a].png", ["b.PNG"]),
        ("?.*", ["a.png", "b.PNG", "c.jpg", "d.txt", "e.jpeg"]),
        ("x/*.png", ["x/f.png"]),
        ("*/*.png", ["x/f.png"]),
        ("**/*.png", ["a.png", "b.PNG", "x/f.png", "x/y/g.png"]),
        ("**/y/*.png", ["x/y/g.png"]),
        ("**/**/g.png", ["x/y/g.png"]),
        ("x/**/*.png", ["x/f.png", "x/y/g.png"]),
        ("**", []),
        ("no/*.png", []),
        ("[.png", []),
    ],
)
def test_patterns(tmp_path, pattern, found):
    touch(tmp_path, "a.png", "b.PNG", "c.jpg", "d.txt", "e.jpeg", "x/f.png", "x/y/g.png")
    assert below(tmp_path, matching_images(tmp_path, pattern)) == found


def test_every_image_ending_is_found_in_upper_case(tmp_path):
    names = [f"a{index}{ending.upper()}" for index, ending in enumerate(ENDINGS)]
    touch(tmp_path, *names)
    assert {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"} <= set(ENDINGS)
    assert sorted(below(tmp_path, all_images(tmp_path))) == sorted(names)
    for index, ending in enumerate(ENDINGS):
        assert below(tmp_path, matching_images(tmp_path, "*" + ending)) == [f"a{index}{ending.upper()}"]


@pytest.mark.parametrize("pattern", ["", "/a/*.png", "**x/*", "x/***/*.png", "a\0.png"])
def test_what_is_no_glob_is_a_value_error(tmp_path, pattern):
    with pytest.raises(ValueError, match=r"must be a pattern|'\*\*' can only"):
        matching_images(tmp_path, pattern)


@pytest.mark.parametrize(("on_disk", "asked"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_both_unicode_forms_fit(tmp_path, on_disk, asked):
    touch(tmp_path, unicodedata.normalize(on_disk, "Köln/Straße é.png"))
    for pattern in ("Köln/*.png", "K*/Straße é.png", "Köln/Straße ?.png"):
        found = matching_images(tmp_path, unicodedata.normalize(asked, pattern))
        assert below(tmp_path, found) == [unicodedata.normalize(on_disk, "Köln/Straße é.png")]


# --- links --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["img/**/*.png", "img/*/*.png", "img/y/*.png", "**/y/*.png"])
def test_links_to_folders_are_followed(tmp_path, pattern):
    touch(tmp_path, "root/img/y0/a.png", "elsewhere/b.png")
    os.symlink(tmp_path / "elsewhere", tmp_path / "root" / "img" / "y")
    found = below(tmp_path / "root", matching_images(tmp_path / "root", pattern))
    assert "img/y/b.png" in found
    assert len(found) == (1 if "y/" in pattern else 2)


def test_links_in_a_circle_come_to_an_end_and_no_folder_counts_twice(tmp_path):
    touch(tmp_path, "b/x.png", "b/c/y.png")
    os.symlink(tmp_path, tmp_path / "b" / "up")
    os.symlink(tmp_path / "b", tmp_path / "a")  # before the folder itself in the order of names
    found = all_images(tmp_path)
    assert below(tmp_path, found) == ["b/c/y.png", "b/x.png"]
    assert left_out(tmp_path, found) == {"linked a second time": ["a", "b/up"]}
    assert below(tmp_path, matching_images(tmp_path, "**/*.png")) == ["b/c/y.png", "b/x.png"]


def test_links_to_files_are_files(tmp_path):
    touch(tmp_path, "store/1.png")
    (tmp_path / "img").mkdir()
    os.symlink("../store/1.png", tmp_path / "img" / "a.png")
    assert below(tmp_path, matching_images(tmp_path, "img/*.png")) == ["img/a.png"]


@pytest.mark.parametrize("target", ["nowhere.png", "a.png"])
def test_links_to_nothing_are_refused(tmp_path, target):
    os.symlink(target, tmp_path / "a.png")
    for find in (all_images, lambda root: matching_images(root, "*.png")):
        with pytest.raises(DataError, match=r"a.png is a link to nothing \(.*\): mend or delete the link$"):
            find(tmp_path)
    assert matching_images(tmp_path, "*.jpg").files == ()


def test_a_link_to_a_folder_that_is_gone_is_told(tmp_path):
    touch(tmp_path, "a.png")
    os.symlink(tmp_path / "gone", tmp_path / "disk2")
    assert left_out(tmp_path, matching_images(tmp_path, "**/*.png")) == {"linking to nothing": ["disk2"]}


def test_pipes_are_refused(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"image .*a.png must be a file, got a pipe or device$"):
        matching_images(tmp_path, "*.png")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission_is_refused(tmp_path):
    touch(tmp_path, "a.png", "x/b.png")
    (tmp_path / "x").chmod(0)
    try:
        with pytest.raises(DataError, match=r"folder .*x cannot be read: Permission denied$"):
            matching_images(tmp_path, "**/*.png")
    finally:
        (tmp_path / "x").chmod(0o700)


# --- what is left out ---------------------------------------------------------------------------------------------


def test_what_systems_put_beside_images_is_left_out_and_told(tmp_path):
    touch(tmp_path, "a.jpg", "._a.jpg", ".DS_Store", "Thumbs.db", "notes.txt", "b.heic")
    touch(tmp_path, "@eaDir/a.jpg/SYNOPHOTO_THUMB_XL.jpg", "__MACOSX/._a.jpg", ".thumbnails/a.jpg", "c.png/x.bmp")
    found = all_images(tmp_path)
    assert below(tmp_path, found) == ["a.jpg", "c.png/x.bmp"]
    assert left_out(tmp_path, found) == {
        "hidden": [".DS_Store", "._a.jpg", ".thumbnails", "@eaDir", "Thumbs.db", "__MACOSX"],
        "of another kind": ["b.heic", "notes.txt"],
        "named like an image, but a folder": ["c.png"],
    }
    assert found.remark().startswith("9 left out: ")
    assert "2 of another kind (b.heic, notes.txt)" in found.remark()
    assert "6 hidden (.DS_Store, ._a.jpg, .thumbnails and 3 more)" in found.remark()


def test_a_glob_tells_of_hidden_files_that_fit_alone(tmp_path):
    touch(tmp_path, "a.jpg", "._a.jpg", "notes.txt", ".hidden/b.jpg")
    assert left_out(tmp_path, matching_images(tmp_path, "*.jpg")) == {"hidden": ["._a.jpg"]}
    assert below(tmp_path, matching_images(tmp_path, ".hidden/*.jpg")) == [".hidden/b.jpg"]
    assert below(tmp_path, matching_images(tmp_path, ".h*/*.jpg")) == [".hidden/b.jpg"]
    assert below(tmp_path, matching_images(tmp_path, "*/*.jpg")) == []


def test_merged_listings_take_a_file_once(tmp_path):
    a, b, c = (tmp_path / name for name in "abc")
    both = merged([Listing((b, a), {"hidden": (c,)}), Listing((b, c), {"hidden": (a,)})])
    assert both == Listing((a, b, c), {})
    assert both.remark() == ""
    fewer = both.without("a result", [b])
    assert fewer == Listing((a, c), {"a result": (b,)})
    assert fewer.without("a result", []) is fewer


def test_names_have_their_folder_only_where_stems_collide():
    files = [Path("r/a/x.png"), Path("r/b/c/x.png"), Path("r/x.png"), Path("r/b/y.png")]
    assert names_below(files, ["a", "b/c", "", "b"]) == ["a__x", "b__c__x", "x", "y"]


def test_the_search_has_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr("cbst_mx.data.listing.MOST_NAMES", 5)
    touch(tmp_path, *(f"{folder}/{name}.png" for folder in "xy" for name in "ab"))
    with pytest.raises(DataError, match="and those before it hold more than 5 names"):
        all_images(tmp_path)
    assert len(matching_images(tmp_path, "x/*.png").files) == 2
