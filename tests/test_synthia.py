"""SYNTHIA-RAND-CITYSCAPES: the 16-bit labels, and those that somebody has changed."""

from __future__ import annotations

import pickle

import cv2
import numpy as np
import pytest
from PIL import Image

from cbst_mx.data import open_images, open_labelled, synthia
from cbst_mx.errors import ConfigError, DataError
from cbst_mx.label_space import CITYSCAPES_19, IGNORE, NTHU_13, SYNTHIA_16
from tests.dataset_fixtures import SIZE, damage, png, to_8_bits, truncate, write_synthia, write_synthia_label


@pytest.fixture
def root(tmp_path):
    return write_synthia(tmp_path / "RAND_CITYSCAPES")


def test_pairs(root):
    labelled = open_labelled("synthia", root, label_space=SYNTHIA_16)
    assert labelled.names == ("0000000", "0000001", "0000002")
    for i in range(3):
        image, label = labelled.pair(i)
        classes = write_synthia_label(root / "again.png", seed=i)
        table = SYNTHIA_16.raw_ids["synthia"]
        np.testing.assert_array_equal(label, np.vectorize(table.get)(classes))
        assert label.dtype == np.uint8
        assert image.shape == (*SIZE, 3)
        np.testing.assert_array_equal(open_images("synthia", root).image(i), image)


def test_the_class_is_the_first_channel_of_the_file(tmp_path):
    values = np.stack([np.full(SIZE, value, dtype=np.uint16) for value in (8, 5000, 3)], axis=-1)
    path = tmp_path / "x.png"
    path.write_bytes(png(values))
    # What the two libraries make of it: Pillow halves the bits, OpenCV turns the channels round.
    with Image.open(path) as image:
        assert np.array(image)[0, 0].tolist() == [0, 5000 >> 8, 0]
    assert cv2.imread(str(path), cv2.IMREAD_UNCHANGED)[0, 0].tolist() == [3, 5000, 8]
    assert (synthia.read_class_ids(path) == 8).all()


def test_all_23_ids(tmp_path):
    write_synthia_label(tmp_path / "x.png", range(23))
    label = SYNTHIA_16.encode(synthia.read_class_ids(tmp_path / "x.png"), "synthia", "x")
    assert sorted(np.unique(label).tolist()) == [*range(16), IGNORE]
    # Terrain, truck, train, parking slot, road work, lane marking and void count nowhere.
    assert {raw for raw, to in SYNTHIA_16.raw_ids["synthia"].items() if to == IGNORE} == {0, 13, 14, 16, 18, 20, 22}


def test_subsets_and_copies_read_in_the_same_way(root):
    labelled = open_labelled("synthia", root, label_space=SYNTHIA_16)
    for other in (labelled.subset([1]), pickle.loads(pickle.dumps(labelled.subset([1])))):
        np.testing.assert_array_equal(other.label(0), labelled.label(1))


def test_truncated_bits_are_noticed(root):
    path = root / "GT/LABELS/0000001.png"
    to_8_bits(path)
    with pytest.raises(DataError) as error:
        open_labelled("synthia", root, label_space=SYNTHIA_16).label(1)
    assert str(error.value) == (
        f"label {path} must have 16 bits per channel as published, got 8: another program has truncated it and its "
        "class ids cannot be trusted, unpack it again"
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_converted_labels_are_read_when_the_caller_says_so(root, dtype):
    path = root / "GT/LABELS/0000001.png"
    classes = synthia.read_class_ids(path)
    path.write_bytes(png(classes.astype(dtype)))
    with pytest.raises(
        DataError, match="must be the published RGB PNG of 16 bits per channel, got .*-bit grey: .*'ids'"
    ):
        open_labelled("synthia", root, label_space=SYNTHIA_16).label(1)
    converted = open_labelled("synthia", root, label_space=SYNTHIA_16, labels="ids")
    np.testing.assert_array_equal(converted.label(1), SYNTHIA_16.encode(classes, "synthia", "x"))
    with pytest.raises(DataError, match="must hold one class id per pixel"):
        converted.label(0)  # an original among them


def test_train_ids_have_their_own_folder(root):
    with pytest.raises(DataError, match=r"LABELS_synthia-16 does not exist: .*cbst-mx prepare synthia "):
        open_labelled("synthia", root, label_space=SYNTHIA_16, labels="trainIds")
    folder = root / "GT" / "LABELS_synthia-16"
    folder.mkdir()
    for path in sorted((root / "RGB").iterdir()):
        (folder / path.name).write_bytes(png(np.full(SIZE, 9, dtype=np.uint8)))
    labelled = open_labelled("synthia", root, label_space=SYNTHIA_16, labels="trainIds")
    assert (labelled.label(2) == 9).all()
    assert labelled.convention == "trainId"


@pytest.mark.parametrize("by", [5, 40])
def test_truncated_files_are_named(root, by):
    path = root / "GT/LABELS/0000000.png"
    truncate(path, by)
    with pytest.raises(DataError, match=f"{path} cannot be read, the file is damaged or truncated .it ends too early"):
        open_labelled("synthia", root, label_space=SYNTHIA_16).label(0)


def test_damaged_files_are_named(root):
    path = root / "GT/LABELS/0000000.png"
    damage(path)
    with pytest.raises(DataError, match=f"{path} cannot be read, the file is damaged or truncated .wrong checksum"):
        open_labelled("synthia", root, label_space=SYNTHIA_16).label(0)


def test_unknown_ids_are_named(root):
    write_synthia_label(root / "GT/LABELS/0000000.png", [3, 23, 300])
    with pytest.raises(DataError, match="has label ids 23, 300, unknown in the 'synthia' convention of synthia-16"):
        open_labelled("synthia", root, label_space=SYNTHIA_16).label(0)


def test_refusals(root, tmp_path):
    with pytest.raises(ConfigError, match="label convention of cityscapes-19 must be one of .*, got 'synthia'"):
        open_labelled("synthia", root, label_space=CITYSCAPES_19)
    with pytest.raises(ConfigError, match="label convention of nthu-13"):
        open_labelled("synthia", root, label_space=NTHU_13, labels="trainIds")
    with pytest.raises(ConfigError, match="labels must be one of raw, ids, trainIds for SYNTHIA, got 'labelIds'"):
        open_labelled("synthia", root, label_space=SYNTHIA_16, labels="labelIds")
    with pytest.raises(ConfigError, match="split must not be given for data of format synthia"):
        open_images("synthia", root, split="train")
    with pytest.raises(DataError, match="SYNTHIA data root .*/nowhere does not exist: expected a folder with RGB"):
        open_images("synthia", tmp_path / "nowhere")
    (root / "GT/LABELS/0000002.png").unlink()
    with pytest.raises(DataError, match=r"1 of 3 images has no label, the first is .*/RGB/0000002\.png"):
        open_labelled("synthia", root, label_space=SYNTHIA_16)
    for path in (root / "RGB").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="SYNTHIA image folder .*/RGB has no image"):
        open_images("synthia", root)


def test_images_alone_have_no_way_to_a_label(root):
    images = open_images("synthia", root)
    assert [name for name in dir(images) if "label" in name.lower() or name == "read"] == []
