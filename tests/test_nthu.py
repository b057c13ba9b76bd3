"""NTHU Cross-City: layout, ids, splits and folds; nothing tested on is ever a target."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from cbst_mx.config import Data
from cbst_mx.data import ImageSet, nthu, open_images, open_labelled
from cbst_mx.errors import ConfigError, DataError
from cbst_mx.label_space import CITYSCAPES_19, IGNORE, NTHU_13, SYNTHIA_16
from tests.dataset_fixtures import write_cityscapes, write_ids, write_nthu, write_rgb


@pytest.fixture
def root(tmp_path):
    return write_nthu(tmp_path / "nthu", cities=("Rome", "Rio"), train=4, test=20)


def test_pairs(root):
    labelled = open_labelled("nthu", root, city="Rome", split="test", label_space=NTHU_13)
    assert len(labelled) == 20
    assert labelled.names[0] == "pano_00000_2_0"
    image, label = labelled.pair(3)
    with Image.open(root / "Rome/Labels/Test/pano_00003_2_0_eval.png") as file:
        raw = np.array(file)
    table = NTHU_13.raw_ids["cityscapes"]
    np.testing.assert_array_equal(label, np.vectorize(table.get)(raw))
    assert image.shape[:2] == label.shape


def test_the_13_classes_have_cityscapes_ids(tmp_path):
    ids = [7, 8, 11, 19, 20, 21, 23, 24, 25, 26, 28, 32, 33]
    assert [NTHU_13.raw_ids["cityscapes"][raw] for raw in ids] == list(range(13))
    assert all(NTHU_13.raw_ids["cityscapes"][raw] == IGNORE for raw in range(34) if raw not in ids)


def test_cityscapes_is_a_source_of_the_13_classes(tmp_path):
    data = write_cityscapes(tmp_path / "c")
    write_ids(data / "gtFine/train/ulm/ulm_000000_000019_gtFine_labelIds.png", [7, 12, 22, 26, 33])
    label = open_labelled("cityscapes", data, split="train", label_space=NTHU_13).label(0)
    assert sorted(np.unique(label).tolist()) == [0, 9, 12, IGNORE]


@pytest.mark.parametrize("space", [NTHU_13, SYNTHIA_16])
def test_train_ids_of_19_classes_are_refused_for_fewer(tmp_path, space):
    data = write_cityscapes(tmp_path / "c")
    with pytest.raises(ConfigError) as error:
        open_labelled("cityscapes", data, split="train", label_space=space, labels="labelTrainIds")
    assert str(error.value) == (
        f"labels must be 'labelIds' for the classes of {space.name}, got 'labelTrainIds', which hold the trainIds of "
        "cityscapes-19"
    )


def test_unlabelled_images_of_either_ending(root):
    write_rgb(root / "Rome/Images/Train/pano_00009_1_0.png")
    (root / "Rome/Images/Train/notes.txt").write_text("")
    images = open_images("nthu", root, city="Rome", split="train")
    assert type(images) is ImageSet
    assert len(images) == 5
    assert {path.suffix for path in images.image_paths} == {".jpg", ".png"}
    assert [name for name in dir(images) if "label" in name.lower()] == []


def test_the_citys_own_folder_may_be_the_root(root):
    assert open_images("nthu", root / "Rio", city="Rio", split="train").names == (
        open_images("nthu", root, city="Rio", split="train").names
    )
    with pytest.raises(DataError, match="NTHU city folder .*/Rio/Rome does not exist: expected <city>/Images/Train"):
        open_images("nthu", root / "Rio", city="Rome", split="train")


@pytest.mark.parametrize("seed", [None, 5])
def test_a_folds_target_and_test_images_are_apart(root, seed):
    whole = open_labelled("nthu", root, city="Rio", split="test", label_space=NTHU_13)
    tested = []
    for fold in range(10):
        options = {"city": "Rio", "fold": fold, "fold_seed": seed}
        held_out = open_labelled("nthu", root, split="test", label_space=NTHU_13, **options)
        rest = open_images("nthu", root, split="rest", **options)
        labelled_rest = open_labelled("nthu", root, split="rest", label_space=NTHU_13, **options)
        assert type(rest) is ImageSet
        assert rest.names == labelled_rest.names
        assert not set(rest.names) & set(held_out.names)
        assert set(rest.names) | set(held_out.names) == set(whole.names)
        np.testing.assert_array_equal(held_out.label(0), whole.label(whole.names.index(held_out.names[0])))
        tested += held_out.names
    assert sorted(tested) == sorted(whole.names)


def test_unlabelled_images_with_a_labelled_ones_name_are_left_out(root):
    write_rgb(root / "Rome/Images/Train/pano_00005_2_0.jpg", 3)
    images = open_images("nthu", root, city="Rome", split="train")
    assert len(images) == 4
    assert "pano_00005_2_0" not in images.names


def test_tested_images_cannot_be_opened_without_labels(root):
    for fold in (None, 0):
        with pytest.raises(
            ConfigError, match="'train' or 'rest' where NTHU is used without labels: pseudo-labels neve"
        ):
            open_images("nthu", root, city="Rome", split="test", fold=fold)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"split": "test"}, "city must be given for data of format nthu"),
        ({"city": "Rome"}, "split must be given for data of format nthu"),
        ({"city": "rome", "split": "test"}, "city must be one of Rome, Rio, Tokyo, Taipei, got 'rome'"),
        ({"city": "Rome", "split": "val"}, "split must be one of train, test, rest for NTHU, got 'val'"),
        ({"city": "Rome", "split": "train"}, "split must be 'test' or 'rest' where labels are needed"),
        ({"city": "Rome", "split": "rest"}, "fold must be given for split 'rest' of NTHU"),
        ({"city": "Rome", "split": "test", "folds": 5}, "folds must not be given without fold, got 5"),
        ({"city": "Rome", "split": "test", "fold_seed": 0}, "fold_seed must not be given without fold, got 0"),
        ({"city": "Rome", "split": "test", "fold": 10}, "fold must be from 0 to 9, got 10"),
        ({"city": "Rome", "split": "test", "labels": "raw"}, "labels must not be given for data of format nthu"),
    ],
)
def test_refusals(root, options, sentence):
    with pytest.raises(ConfigError) as error:
        open_labelled("nthu", root, label_space=NTHU_13, **options)
    assert sentence in str(error.value)


def test_folds_are_for_nthu_alone(tmp_path):
    with pytest.raises(ConfigError, match="fold must not be given for data of format gta5, got 0"):
        open_images("gta5", tmp_path, fold=0)
    with pytest.raises(ConfigError, match="city must not be given for data of format cityscapes"):
        open_labelled("cityscapes", tmp_path, split="val", city="Rome", label_space=CITYSCAPES_19)


def test_the_unlabelled_split_takes_no_fold(root):
    with pytest.raises(
        ConfigError, match="fold must not be given for split 'train' of NTHU, which is in no fold, got 1"
    ):
        open_images("nthu", root, city="Rome", split="train", fold=1)


def test_experiments_say_city_and_fold(root):
    data = Data.model_validate(
        {"format": "nthu", "root": str(root), "city": "Rome", "split": "rest", "fold": 3, "folds": 4, "fold_seed": 1}
    )
    expected = nthu.open_images(root, "Rome", "rest", fold=3, folds=4, fold_seed=1)
    assert open_images(data.format, data.root, **data.selection()).names == expected.names
    plain = Data(format="nthu", root=str(root), city="Rome", split="train")
    assert len(open_images(plain.format, plain.root, **plain.selection())) == 4


def test_missing_files(root):
    (root / "Rome/Labels/Test/pano_00000_2_0_eval.png").unlink()
    with pytest.raises(DataError, match="1 of 20 images has no label, .*: expected .*/pano_00000_2_0_eval.png"):
        open_labelled("nthu", root, city="Rome", split="test", label_space=NTHU_13)
    with pytest.raises(DataError, match="NTHU city folder .*/Tokyo does not exist"):
        nthu.open_images(root, "Tokyo", "train")
    for path in (root / "Rio/Images/Train").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="NTHU image folder .*/Rio/Images/Train has no image"):
        nthu.open_images(root, "Rio", "train")
