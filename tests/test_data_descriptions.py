"""The description files in experiments/data, on fixtures in the layouts of their data sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cbst_mx.data import open_images, open_labelled
from cbst_mx.data.description import read_description
from cbst_mx.data.doctor import examine
from cbst_mx.label_space import CITYSCAPES_19, IGNORE

FOLDER = Path(__file__).parent.parent / "experiments" / "data"
SIZE = (6, 10)

# Data set, split, image, its label, an id in the label file and its class.
LABELLED = [
    ("dark-zurich", "val", "rgb_anon/val/night/GOPR0356/GOPR0356_frame_000321_rgb_anon.png",
     "gt/val/night/GOPR0356/GOPR0356_frame_000321_gt_labelTrainIds.png", 10, "sky"),
    ("acdc", "val", "rgb_anon/fog/val/GOPR0476/GOPR0476_frame_000854_rgb_anon.png",
     "gt/fog/val/GOPR0476/GOPR0476_frame_000854_gt_labelTrainIds.png", 13, "car"),
    ("acdc", "night-train", "rgb_anon/night/train/GOPR0351/GOPR0351_frame_000159_rgb_anon.png",
     "gt/night/train/GOPR0351/GOPR0351_frame_000159_gt_labelTrainIds.png", 0, "road"),
    ("idd", "train", "leftImg8bit/train/0/005506_leftImg8bit.png",
     "gtFine/train/0/005506_gtFine_labelcsTrainIds.png", 17, "motorcycle"),
    ("bdd100k", "val", "images/10k/val/7d06fefd-f7be05a6.jpg",
     "labels/sem_seg/masks/val/7d06fefd-f7be05a6.png", 2, "building"),
    ("bdd100k", "old-train", "seg/images/train/0004a4c0-d4dff0ad.jpg",
     "seg/labels/train/0004a4c0-d4dff0ad_train_id.png", 8, "vegetation"),
    ("mapillary", "train", "training/images/__0B2Yt7nGbvoWRNf8aVUA.jpg",
     "training/v1.2/labels/__0B2Yt7nGbvoWRNf8aVUA.png", 55, "car"),
    ("mapillary", "val", "validation/images/00B2.jpg", "validation/v1.2/labels/00B2.png", 24, "road"),
    ("kitti", "train", "training/image_2/000000_10.png", "training/semantic/000000_10.png", 26, "car"),
]  # fmt: skip
UNLABELLED = [
    ("dark-zurich", "night", "rgb_anon/train/night/GOPR0345/GOPR0345_frame_000100_rgb_anon.png"),
    ("acdc", "test", "rgb_anon/snow/test/GP010121/GP010121_frame_000123_rgb_anon.png"),
    ("idd", "test", "leftImg8bit/test/3/000012_leftImg8bit.png"),
    ("bdd100k", "test", "images/10k/test/ac6d4f42-00000000.jpg"),
    ("mapillary", "test", "testing/images/abc.jpg"),
    ("kitti", "test", "testing/image_2/000003_10.png"),
]


def write(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def test_every_file_has_a_fixture():
    names = {path.stem for path in FOLDER.glob("*.yaml")}
    assert names == {case[0] for case in LABELLED} == {case[0] for case in UNLABELLED}
    for name in names:
        splits = read_description(FOLDER / f"{name}.yaml").splits
        assert {case[1] for case in LABELLED if case[0] == name} <= set(splits)


@pytest.mark.parametrize(("name", "split", "image", "label", "raw", "class_name"), LABELLED)
def test_labels_are_found_and_read(tmp_path, name, split, image, label, raw, class_name):
    description = FOLDER / f"{name}.yaml"
    ignored = {"kitti": 0, "mapillary": 65}.get(name, 255)
    ids = np.full(SIZE, raw, dtype=np.uint8)
    ids[0] = ignored
    write(tmp_path / image, np.full((*SIZE, 3), 90, dtype=np.uint8))
    write(tmp_path / label, ids)
    images = open_labelled("folder", tmp_path, label_space=CITYSCAPES_19, split=split, description=description)
    assert [str(path.relative_to(tmp_path)) for path in images.label_paths] == [label]
    read = images.pair(0)[1]
    assert (read[0] == IGNORE).all()
    assert (read[1:] == CITYSCAPES_19.names.index(class_name)).all()
    report = examine("folder", tmp_path, sample=None, split=split, description=description)
    assert report.ok, report.findings
    assert report.frequencies[class_name] == 1


@pytest.mark.parametrize(("name", "split", "image"), UNLABELLED)
def test_images_without_labels_are_found(tmp_path, name, split, image):
    write(tmp_path / image, np.zeros((*SIZE, 3), dtype=np.uint8))
    assert len(open_images("folder", tmp_path, split=split, description=FOLDER / f"{name}.yaml")) == 1


def test_the_ids_of_mapillary_are_all_there():
    coding = read_description(FOLDER / "mapillary.yaml")._coding
    assert sorted(coding.raw_ids["folder"]) == list(range(66))
    assert set(coding.raw_ids["folder"].values()) == {*range(19), IGNORE}
