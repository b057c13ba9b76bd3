"""What masks hold: ids, colours and palettes are counted, and named where something says it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from cbst_mx.data.survey.values import contents, named
from cbst_mx.errors import DataError
from cbst_mx.label_space import CITYSCAPES_19
from tests.own_photos import mask


@pytest.fixture
def paths(tmp_path):
    def make(kind, count=4, **options):
        for index in range(count):
            mask(tmp_path / f"{index}.png", kind, **options)
        return [tmp_path / f"{index}.png" for index in range(count)]

    return make


def test_ids_are_counted_exactly(paths):
    found = contents(paths("ids", size=(40, 10), values=(0, 7, 7, 255)))
    assert [(one.value, one.share, one.masks) for one in found.values] == [(0, 0.25, 4), (7, 0.5, 4), (255, 0.25, 4)]
    assert [one.name for one in named(found, {7: "road"}, "x")] == [None, "road", "ignore"]
    assert (found.in_colours, found.read, found.of) == (False, 4, 4)


def test_colours_are_counted_exactly(paths):
    found = contents(paths("colours", size=(40, 10)))
    assert [(one.shown, one.share) for one in found.values] == [
        ("#000000", 0.25), ("#4682b4", 0.25), ("#6b8e23", 0.25), ("#804080", 0.25)
    ]  # fmt: skip
    # all of them are colours of Cityscapes
    assert [one.name for one in named(found, {}, "")] == ["ignore", "sky", "vegetation", "road"]


def test_two_values_are_both_classes_and_grey_colours_are_too(paths, tmp_path):
    assert [one.name for one in named(contents(paths("ids", values=(0, 255))), {}, "")] == [None, None]
    grey = np.zeros((8, 8, 3), np.uint8)
    grey[4:] = 1
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert [one.name for one in named(contents([tmp_path / "grey.png"]), {}, "")] == [None, None]


def test_a_palette_gives_colours_and_grey_ones_are_made_up(paths):
    assert contents(paths("palette")).values[0].colour == (128, 64, 128)
    made = [one.colour for one in contents(paths("ids")).values]
    assert len(set(made)) == 4


def test_names_of_files_state_the_convention(tmp_path):
    mask(tmp_path / "a_gtFine_labelTrainIds.png", values=(0, 2, 255))
    found = contents([tmp_path / "a_gtFine_labelTrainIds.png"])
    assert found.known == "trainId"
    assert [one.name for one in named(found, {}, "")] == ["road", CITYSCAPES_19.names[2], "ignore"]


def test_what_are_no_masks_of_classes_is_refused(paths, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    with pytest.raises(DataError, match="must have at most 253 values, got 4,0.. or more: colours, as smoothed"):
        contents([tmp_path / "noise.png"])
    Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)).save(tmp_path / "ids.png")
    with pytest.raises(DataError, match="ids, as instances have them"):
        contents([tmp_path / "ids.png"])
    with pytest.raises(DataError, match="must all hold ids or all hold colours"):
        contents([*paths("ids"), tmp_path / "noise.png"])


def test_a_sample_is_spread(paths):
    found = contents(paths("ids", 10), sample=3)
    assert (found.read, found.of, found.values[0].masks) == (3, 10, 3)
