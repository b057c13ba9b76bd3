"""Label spaces: class order, raw ids, colours, and what is refused."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from cbst_mx.errors import ConfigError, DataError
from cbst_mx.label_space import (
    CITYSCAPES_19,
    IGNORE,
    LABEL_SPACES,
    NTHU_13,
    SYNTHIA_13,
    SYNTHIA_16,
    LabelSpace,
    find,
    get_label_space,
    numbered,
)

CASES = [(space, convention) for space in LABEL_SPACES.values() for convention in space.raw_ids]
IDS = [f"{space.name}-{convention}" for space, convention in CASES]


def encode_one(space: LabelSpace, convention: str, raw: int) -> int:
    return int(space.encode(np.array([[raw]], dtype=np.int32), convention, "x.png")[0, 0])


def test_cityscapes_ids_are_the_published_ones():
    valid = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    for raw in [*range(-1, 35), 255]:
        expected = valid.index(raw) if raw in valid else IGNORE
        assert encode_one(CITYSCAPES_19, "cityscapes", raw) == expected, raw


def test_class_orders_are_those_of_the_paper():
    assert CITYSCAPES_19.names[0::6] == ("road", "traffic light", "rider", "bicycle")
    assert " ".join(SYNTHIA_16.names) == (
        "road sidewalk building wall fence pole traffic light traffic sign vegetation sky person rider car bus "
        "motorcycle bicycle"
    )
    # The 13 classes of mIoU* and of the cross-city setting are the same ones in the same order.
    assert tuple(SYNTHIA_16.names[i] for i in SYNTHIA_13) == NTHU_13.names
    assert len(NTHU_13.names) == 13
    assert not {"wall", "fence", "pole"} & set(NTHU_13.names)


@pytest.mark.parametrize(
    ("raw", "name"),
    [(1, "sky"), (3, "road"), (4, "sidewalk"), (8, "car"), (10, "person"), (11, "bicycle"), (15, "traffic light")]
    + [(17, "rider"), (19, "bus"), (21, "wall")],
)
def test_synthia_ids(raw, name):
    assert encode_one(SYNTHIA_16, "synthia", raw) == SYNTHIA_16.names.index(name)


@pytest.mark.parametrize("raw", [0, 13, 14, 16, 18, 20, 22])
def test_synthia_ids_outside_the_16_classes_are_ignored(raw):
    assert encode_one(SYNTHIA_16, "synthia", raw) == IGNORE


@pytest.mark.parametrize("raw", [22, 27, 31])  # terrain, truck, train
def test_cityscapes_ids_outside_the_16_classes_are_ignored(raw):
    assert encode_one(SYNTHIA_16, "cityscapes", raw) == IGNORE


@pytest.mark.parametrize(("space", "convention"), CASES, ids=IDS)
def test_every_class_can_be_stored_and_read_back(space, convention):
    train_ids = np.array([[*range(space.num_classes), IGNORE]], dtype=np.uint8)
    raw = space.decode(train_ids, convention)
    assert raw.dtype == np.uint8
    np.testing.assert_array_equal(space.encode(raw, convention, "x.png"), train_ids)


def test_ignored_pixels_are_stored_as_the_first_ignored_id():
    ignored = np.full((2, 3), IGNORE, dtype=np.uint8)
    assert (CITYSCAPES_19.decode(ignored, "cityscapes") == 0).all()
    assert (CITYSCAPES_19.decode(ignored, "trainId") == IGNORE).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.int64, np.uint64])
def test_encode_gives_the_same_for_every_integer_dtype(dtype):
    raw = np.random.default_rng(0).integers(0, 35, size=(17, 23))
    table = CITYSCAPES_19.raw_ids["cityscapes"]
    expected = np.array([[table[int(value)] for value in row] for row in raw])
    encoded = CITYSCAPES_19.encode(raw.astype(dtype), "cityscapes", "x.png")
    assert encoded.dtype == np.uint8
    np.testing.assert_array_equal(encoded, expected)


def test_encode_keeps_its_input():
    raw = np.array([[7, 8]], dtype=np.uint8)
    CITYSCAPES_19.encode(raw, "cityscapes", "x.png")
    assert raw.tolist() == [[7, 8]]


def test_unknown_ids_are_named_with_the_known_ones():
    raw = np.array([[7, 40], [41, 40]], dtype=np.uint8)
    with pytest.raises(DataError) as error:
        CITYSCAPES_19.encode(raw, "cityscapes", "labels/x.png")
    assert str(error.value) == (
        "labels/x.png has label ids 40, 41, unknown in the 'cityscapes' convention of cityscapes-19 (known: 0-34, 255)"
    )


@pytest.mark.parametrize("value", [-2, -40000, 35, 254, 256, 257, 258, 259, 70000, 2**40])
def test_any_id_outside_the_list_is_unknown(value):
    with pytest.raises(DataError, match=f"has label id {value}, unknown .*known: -1, 0-34, 255"):
        CITYSCAPES_19.encode(np.array([[7, value]]), "cityscapes", "x.png")


def test_many_unknown_ids_are_counted():
    raw = np.arange(40, 60, dtype=np.uint8)[None]
    with pytest.raises(DataError, match="ids 40, 41, 42, 43, 44, 45, 46, 47 and 12 more, unknown"):
        CITYSCAPES_19.encode(raw, "cityscapes", "x.png")


def test_ids_of_16_bits_are_possible():
    space = LabelSpace("two", ("a", "b"), ((0, 0, 0), (1, 1, 1)), {"far": {0: 0, 65535: 1, 300: IGNORE}})
    raw = np.array([[0, 65535, 300]], dtype=np.uint16)
    assert space.encode(raw, "far", "x.png").tolist() == [[0, 1, IGNORE]]
    with pytest.raises(DataError, match="label ids 1, 301, unknown .*known: 0, 300, 65535"):
        space.encode(raw + np.uint16(1), "far", "x.png")
    with pytest.raises(DataError, match="has no raw id from 0 to 255 for trainId 1, 255"):
        space.decode(np.array([[0, 1, IGNORE]], dtype=np.uint8), "far")


@pytest.mark.parametrize("raw", [np.zeros((2, 2)), np.zeros((2, 2, 3), dtype=np.uint8), np.zeros(4, dtype=np.uint8)])
def test_encode_refuses_other_arrays(raw):
    with pytest.raises(DataError, match=r"x\.png must hold integer label ids of shape \(H, W\), got"):
        CITYSCAPES_19.encode(raw, "cityscapes", "x.png")


def test_unknown_convention_lists_the_known():
    with pytest.raises(ConfigError, match="of nthu-13 must be one of 'cityscapes', 'trainId', got 'synthia'"):
        NTHU_13.encode(np.zeros((1, 1), dtype=np.uint8), "synthia", "x.png")


def test_unknown_label_space_lists_the_known():
    assert get_label_space("synthia-16") is SYNTHIA_16
    with pytest.raises(ConfigError, match="must be one of cityscapes-19, nthu-13, synthia-16, got 'cityscapes'"):
        get_label_space("cityscapes")


def test_colorize_paints_classes_and_leaves_ignored_pixels_black():
    train_ids = np.array([[0, 13], [18, IGNORE]], dtype=np.uint8)
    expected = [[[128, 64, 128], [0, 0, 142]], [[119, 11, 32], [0, 0, 0]]]
    assert CITYSCAPES_19.colorize(train_ids).tolist() == expected


def test_palette_agrees_with_colorize():
    palette = np.frombuffer(SYNTHIA_16.png_palette(), dtype=np.uint8).reshape(256, 3)
    train_ids = np.array([[*range(16), IGNORE]], dtype=np.uint8)
    np.testing.assert_array_equal(palette[train_ids], SYNTHIA_16.colorize(train_ids))
    assert not palette[16:].any()


@pytest.mark.parametrize(
    ("train_ids", "sentence"),
    [
        (np.array([[19]], dtype=np.uint8), "train_ids of cityscapes-19 must be 0-18 or 255 (ignore), got 19"),
        (np.array([[1]]), "train_ids must be uint8 of shape (H, W), got int64 of shape (1, 1)"),
    ],
)
def test_values_that_are_no_train_ids_are_refused(train_ids, sentence):
    for function in (CITYSCAPES_19.colorize, lambda x: CITYSCAPES_19.decode(x, "cityscapes")):
        with pytest.raises(DataError) as error:
            function(train_ids)
        assert str(error.value) == sentence


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"names": ("a", "a")}, "must name each class once, got 'a' more than once"),
        ({"names": (), "palette": ()}, "must have 1 to 253 classes, got 0"),
        ({"palette": ((0, 0, 0),)}, "must have one colour per class, got 1 for 2 classes"),
        ({"palette": ((0, 0, 0), (0, 0, 256))}, "colours of three values from 0 to 255, got .0, 0, 256."),
        ({"raw_ids": {"own": {0: 2}}}, r"must map raw ids to 0-1 or 255 \(ignore\), got 0 -> 2"),
        ({"raw_ids": {"own": {-2: 0}}}, "must have raw ids from -1 to 65535, got -2"),
        ({"raw_ids": {"own": {}}}, "lists no raw id"),
        ({"raw_ids": {"trainId": {0: 1}}}, "must leave the convention 'trainId' as 0-1, 255"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes, sentence):
    parts = {"name": "two", "names": ("a", "b"), "palette": ((0, 0, 0), (1, 1, 1)), "raw_ids": {"own": {0: 0, 1: 1}}}
    LabelSpace(**parts)
    with pytest.raises(ConfigError, match=sentence):
        LabelSpace(**{**parts, **changes})


def test_label_spaces_travel_to_worker_processes():
    copy = pickle.loads(pickle.dumps(SYNTHIA_16))
    assert copy == SYNTHIA_16
    assert hash(copy) == hash(SYNTHIA_16)
    assert encode_one(copy, "synthia", 3) == 0


# --- which classes ------------------------------------------------------------------------------------------------


def test_numbered_classes():
    seven = numbered(7)
    assert seven.name == "numbered-7"
    assert seven.names == tuple(f"class {i}" for i in range(7))
    assert seven.palette == numbered(253).palette[:7]  # a class keeps its colour
    assert len(set(numbered(32).palette)) == 32
    for count in (0, 254):
        with pytest.raises(ConfigError, match=f"label space numbered-{count} must have 1 to 253 classes, got {count}"):
            numbered(count)


def test_find_by_name_number_or_what_was_found():
    assert find("synthia-16") is find("16") is find(None, 16) is SYNTHIA_16
    assert find("19", 19) is CITYSCAPES_19
    assert find(None, 13) is NTHU_13
    assert find("7") == find(None, 7) == numbered(7)


def test_find_in_a_file():
    read = {"own.yaml": numbered(3)}.__getitem__
    assert find("own.yaml", 3, read=read) == numbered(3)
    with pytest.raises(ConfigError, match=r"^label space numbered-3 has 3 classes, but x\.npy has 4$"):
        find("own.yaml", 4, origin="x.npy", read=read)


@pytest.mark.parametrize("which", ["kitti", "0", "254", "\u00b2", "", "own.yaml"])
def test_find_refuses_what_is_no_label_space(which):
    known = "cityscapes-19, nthu-13, synthia-16, or a number of classes from 1 to 253"
    with pytest.raises(ConfigError) as error:
        find(which)
    assert str(error.value) == f"label space must be one of {known}, got {which!r}"


def test_another_number_of_classes_is_one_sentence():
    with pytest.raises(ConfigError, match=r"^label space nthu-13 has 13 classes, but a\.json has 2$"):
        find("nthu-13", 2, origin="a.json")
    with pytest.raises(ConfigError, match=r"^label space nthu-13 has 13 classes, but the network has 19$"):
        NTHU_13.check_classes(19, "the network")


@pytest.mark.parametrize("which", ["9" * 5000, "0", "254", "²", "", "x" * 5000])
def test_what_is_no_label_space_is_one_short_sentence(which):
    with pytest.raises(ConfigError, match="label space must be one of cityscapes-19") as error:
        find(which)
    assert len(str(error.value)) < 300
