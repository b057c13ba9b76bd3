"""Folders that nobody described: which files are masks, whose they are, and rules that lead to exactly these files."""

from __future__ import annotations

import pytest

from cbst_mx.data.label_files import LabelPaths
from cbst_mx.data.listing import matching_images
from cbst_mx.data.survey import survey
from cbst_mx.errors import DataError
from tests.own_photos import mask, pairs, photograph


def found_labels(root, group, survey_):
    """Return image to label by the rules that a description would have."""
    images, rule = survey_.images_of([group]), survey_.labels_of([group])
    files = {path for glob in images.globs for path in matching_images(root, glob).files}
    assert images.listed or sorted(files) == sorted(group.images)
    paths = LabelPaths(rule.pattern, rule.replace)
    return {
        image.relative_to(root).as_posix(): paths.of(image.relative_to(root).as_posix())
        for image, label in zip(group.images, group.labels)
        if label
    }


LAYOUTS = [
    ("day/{}.jpg", "day-masks/{}.png"),
    ("day/{}.jpg", "day/{}_mask.png"),
    ("day/{}.png", "day/{}_mask.png"),
    ("day/{}.jpg", "masks/day/{}_mask.png"),
    ("images/day/{}.jpg", "labels/day/{}.png"),
    ("day/images/{}.jpg", "day/labels/{}.png"),
    ("day/images/IMG_{}.JPG", "day/masks/IMG_{}_L.PNG"),
    ("day/rgb_{}.png", "day/mask_{}.png"),
    ("day/seq 1/Größe {}.jpg", "day gt/seq 1/Größe {}_labelIds.png"),
    ("day/{}_rgb_anon.png", "truth/day/{}_gt_labelTrainIds.png"),
    ("day/a.b.{}.jpg", "day/labels/a.b.{}.png"),
    ("day/[x]{{1}}/{}.jpg", "day/[x]{{1}}/gt/{}.png"),
    ("{}.jpg", "labels/{}.png"),
    ("{}.jpg", "{}_mask.png"),
    ("day/{}.jpg", "day/{}L.png"),
]


@pytest.mark.parametrize("kind", ["ids", "colours", "palette"])
@pytest.mark.parametrize(("images", "labels"), LAYOUTS)
def test_masks_are_found_and_rules_lead_to_them(tmp_path, images, labels, kind):
    pairs(tmp_path, images, labels, kind=kind)
    pairs(tmp_path, "dusk/D{}.jpg", "", count=3)
    found = survey(tmp_path)
    assert found.remarks == ()
    labelled = [group for group in found.groups if group.labelled]
    assert len(labelled) == 1
    assert len(labelled[0].images) == labelled[0].labelled == 6
    expected = {images.format(f"{i:04}"): labels.format(f"{i:04}") for i in range(6)}
    assert {a: b.lower() for a, b in found_labels(tmp_path, labelled[0], found).items()} == {
        a: b.lower() for a, b in expected.items()
    }
    assert [len(group.images) for group in found.groups if not group.labelled] == [3]


def test_nested_folders_are_one_set_and_one_without_labels_another(tmp_path):
    pairs(tmp_path, "photos/day/a/{}.jpg", "masks/day/a/{}_mask.png")
    pairs(tmp_path, "photos/day/b/x/{}.jpg", "masks/day/b/x/{}_mask.png", size=(40, 30))
    pairs(tmp_path, "photos/dusk/{}.jpg", "")
    found = survey(tmp_path)
    assert [(group.name, len(group.images), group.labelled) for group in found.groups] == [
        ("day", 12, 12),
        ("dusk", 6, 0),
    ]
    assert found.groups[0].sizes == {(60, 80): 6, (40, 30): 6}
    assert len(found_labels(tmp_path, found.groups[0], found)) == 12


def test_sets_are_told_apart_within_a_folder_where_only_some_have_labels(tmp_path):
    pairs(tmp_path, "all/source/{}.jpg", "all/source-gt/{}.png")
    pairs(tmp_path, "all/target/{}.jpg", "")
    pairs(tmp_path, "other/{}.jpg", "")
    names = [(group.name, group.labelled) for group in survey(tmp_path).groups]
    assert names == [("source", 6), ("target", 0), ("other", 0)]


def test_images_without_a_mask_stay_and_wrong_sizes_do_not(tmp_path):
    pairs(tmp_path, "day/{}.jpg", "gt/{}.png")
    photograph(tmp_path / "day" / "lonely.jpg")
    photograph(tmp_path / "day" / "wrong.jpg")
    mask(tmp_path / "gt" / "wrong.png", size=(30, 40))
    photograph(tmp_path / "day" / "lying.jpg", turn=6)
    mask(tmp_path / "gt" / "lying.png", size=(80, 60))
    found = survey(tmp_path)
    (group,) = found.groups
    assert (len(group.images), group.labelled, group.turned) == (7, 6, 0)
    assert (
        "2 of the images of day left out: their labels have another size, 1 of them as if the picture were turned"
        in (found.remarks[0])
    )
    rule = found.images_of([group])
    assert len(rule.listed) == 7
    assert len(rule.among) == 9


def test_many_images_without_a_label_are_a_set_of_their_own(tmp_path):
    pairs(tmp_path, "all/{}.jpg", "masks/{}.png", count=12)
    pairs(tmp_path, "all/x{}.jpg", "", count=11)
    found = survey(tmp_path)
    assert [(group.name, len(group.images), group.labelled) for group in found.groups] == [
        ("all", 12, 12),
        ("all-unlabelled", 11, 0),
    ]
    assert "11 of 23 images of all have no label" in found.remarks[0]
    assert len(found.images_of(found.groups[1:]).listed) == 11


def test_grey_photographs_and_turned_ones_are_photographs(tmp_path):
    pairs(tmp_path, "day/{}.jpg", "gt/{}.png")
    photograph(tmp_path / "day" / "0100.jpg", grey=True, turn=8)
    photograph(tmp_path / "day" / "0101.png", grey=True)
    (group,) = survey(tmp_path).groups
    assert (len(group.images), group.grey, group.turned) == (8, 2, 1)


def test_damaged_files_lossy_masks_and_instances_are_said(tmp_path):
    pairs(tmp_path, "day/{}.jpg", "day-gt/{}.png")
    pairs(tmp_path, "night/{}.jpg", "night_masks/{}.jpg")
    pairs(tmp_path, "day/{}.jpg", "day-gt/{}_instanceIds.png")
    (tmp_path / "day" / "0000.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "day" / "._0001.jpg").write_bytes(b"x")
    found = survey(tmp_path)
    text = " | ".join(found.remarks)
    assert "1 left out: 1 hidden (._0001.jpg)" in text
    assert "1 files left out, which cannot be read: image" in text
    assert "6 masks in night_masks left out: they are stored with loss (JPEG)" in text
    assert "6 masks in day-gt left out: they seem to hold instances or depth" in text
    assert {group.name: group.labelled for group in found.groups} == {"day": 5, "night": 0}


def test_of_several_masks_those_of_class_ids_are_taken(tmp_path):
    for word in ("color", "labelTrainIds", "labelIds"):
        pairs(tmp_path, "day/{}.jpg", f"gt/{{}}_{word}.png", kind="colours" if word == "color" else "ids")
    found = survey(tmp_path)
    assert all(label.name.endswith("_labelIds.png") for label in found.groups[0].labels)
    assert "those named _labelIds are taken" in found.remarks[0]


def test_a_mask_of_two_photographs_is_refused_and_exclude_is_the_way_out(tmp_path):
    pairs(tmp_path, "one/{}.jpg", "masks/{}.png")
    pairs(tmp_path, "two/{}.jpg", "")
    with pytest.raises(DataError, match=r"mask masks/0000.png could be that of one/0000.jpg and of two/0000.jpg"):
        survey(tmp_path)
    found = survey(tmp_path, exclude=["two"])
    assert [(group.name, group.labelled) for group in found.groups] == [("one", 6)]
    assert found.remarks == ("6 files left out as --exclude says",)


def test_runs_and_predictions_are_no_data(tmp_path):
    pairs(tmp_path, "day/{}.jpg", "day-gt/{}.png")
    pairs(tmp_path, "dusk/{}.jpg", "runs/a/round-1/pseudo_labels/{}.png", count=7)
    for name in ("manifest.json", "experiment.yaml"):
        (tmp_path / "runs" / "a" / name).write_text("{}")
    mask(tmp_path / "out" / "0000_label.png")
    photograph(tmp_path / "out" / "0000_overlay.png")
    found = survey(tmp_path)
    assert {group.name: group.labelled for group in found.groups} == {"day": 6, "dusk": 0}
    assert "9 files of runs and predictions left out" in found.remarks


def test_nothing_to_see_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match="has no photographs: they must end in .png, .jpg"):
        survey(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        survey(tmp_path / "no")


def test_published_layouts_are_recognised(tmp_path):
    pairs(tmp_path, "gta5/images/0{}.png", "gta5/labels/0{}.png", kind="palette")
    pairs(
        tmp_path, "cs/leftImg8bit/train/aachen/aachen_00_{}_leftImg8bit.png",
        "cs/gtFine/train/aachen/aachen_00_{}_gtFine_labelIds.png",
    )  # fmt: skip
    pairs(tmp_path, "dusk/{}.jpg", "")
    found = survey(tmp_path)
    assert [(one.format, one.root.name) for one in found.published] == [("cityscapes", "cs"), ("gta5", "gta5")]
    assert [group.name for group in found.groups] == ["dusk"]
    own = survey(tmp_path, recognise=False)
    assert (own.published, len(own.groups)) == ((), 3)
