"""Colour masks: exact colours or none, in every lossless form."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from PIL import Image

from cbst_mx.data.colour_masks import ColourMasks, UnknownColourError
from cbst_mx.errors import ConfigError, DataError
from cbst_mx.label_space import CITYSCAPES_19, IGNORE, LabelSpace

TRAIN_IDS = np.random.default_rng(0).choice(np.array([*range(19), IGNORE], dtype=np.uint8), size=(12, 20))


def space(*palette):
    return LabelSpace("own", tuple("abcdefgh"[: len(palette)]), palette, {})


@pytest.mark.parametrize("ending", ["png", "bmp", "tif", "ppm", "gif"])
def test_what_was_painted_is_read(tmp_path, ending):
    Image.fromarray(CITYSCAPES_19.colorize(TRAIN_IDS)).save(tmp_path / f"x.{ending}")
    np.testing.assert_array_equal(ColourMasks(CITYSCAPES_19)(tmp_path / f"x.{ending}"), TRAIN_IDS)


def test_palette_and_transparent_images(tmp_path):
    image = Image.fromarray(CITYSCAPES_19.colorize(TRAIN_IDS))
    image.quantize(32).save(tmp_path / "p.png")
    image.convert("RGBA").save(tmp_path / "a.png")
    read = pickle.loads(pickle.dumps(ColourMasks(CITYSCAPES_19)))  # as it travels to workers
    for name in ("p.png", "a.png"):
        np.testing.assert_array_equal(read(tmp_path / name), TRAIN_IDS)


def test_unknown_colours_are_counted_and_named(tmp_path):
    rgb = CITYSCAPES_19.colorize(TRAIN_IDS)
    rgb[0, :7], rgb[1, :2] = (1, 2, 3), (128, 64, 129)
    Image.fromarray(rgb).save(tmp_path / "x.png")
    with pytest.raises(UnknownColourError) as error:
        ColourMasks(CITYSCAPES_19)(tmp_path / "x.png")
    assert str(error.value) == (
        f"label {tmp_path}/x.png has 2 colours of no class of cityscapes-19, at 9 of 240 pixels: [1, 2, 3] at 7 "
        "pixels, [128, 64, 129] at 2 pixels (colours that count nowhere stand under ignore_colours)"
    )
    read = ColourMasks(CITYSCAPES_19, [(1, 2, 3), (128, 64, 129)])(tmp_path / "x.png")
    assert (read[0, :7] == IGNORE).all()
    np.testing.assert_array_equal(read[2:], TRAIN_IDS[2:])


def test_black_is_a_class_where_it_is_one(tmp_path):
    Image.fromarray(np.array([[[0, 0, 0], [255, 255, 255]]], dtype=np.uint8)).save(tmp_path / "x.png")
    assert ColourMasks(space((0, 0, 0), (255, 255, 255)))(tmp_path / "x.png").tolist() == [[0, 1]]
    assert ColourMasks(space((9, 9, 9), (255, 255, 255)))(tmp_path / "x.png").tolist() == [[IGNORE, 1]]


def test_palettes_that_cannot_be_read_back_are_refused():
    with pytest.raises(ConfigError, match=r"a colour of its own for each class, got \[1, 1, 1\] for 'a' and 'c'"):
        ColourMasks(space((1, 1, 1), (2, 2, 2), (1, 1, 1)))
    with pytest.raises(ConfigError, match=r"ignore_colours must name no class's colour, got \[2, 2, 2\] of 'b'"):
        ColourMasks(space((1, 1, 1), (2, 2, 2)), [(2, 2, 2)])


def test_transparent_pixels_have_no_colour(tmp_path):
    image = Image.fromarray(CITYSCAPES_19.colorize(TRAIN_IDS)).convert("RGBA")
    image.putpixel((3, 2), (128, 64, 128, 254))
    image.save(tmp_path / "x.png")
    with pytest.raises(DataError, match="must not be transparent, got 1 transparent pixel,"):
        ColourMasks(CITYSCAPES_19)(tmp_path / "x.png")


@pytest.mark.parametrize(("ending", "options"), [("jpg", {}), ("tif", {"compression": "jpeg"}), ("webp", {})])
def test_what_is_stored_with_loss_is_refused(tmp_path, ending, options):
    Image.fromarray(CITYSCAPES_19.colorize(TRAIN_IDS)).save(tmp_path / f"x.{ending}", **options)
    with pytest.raises(DataError, match="must be stored without loss"):
        ColourMasks(CITYSCAPES_19)(tmp_path / f"x.{ending}")


def test_a_transparent_colour_and_an_animation_are_refused(tmp_path):
    colours = np.array(CITYSCAPES_19.palette, dtype=np.uint8)[np.arange(8) % 3].reshape(2, 4, 3)
    image = Image.fromarray(colours)
    image.save(tmp_path / "a.png", transparency=tuple(int(v) for v in colours[0, 0]))
    with pytest.raises(DataError, match="must not be transparent, got 3 transparent pixels"):
        ColourMasks(CITYSCAPES_19)(tmp_path / "a.png")
    image.save(tmp_path / "b.png", save_all=True, append_images=[Image.fromarray(colours[::-1].copy())])
    with pytest.raises(DataError, match="must hold one image"):
        ColourMasks(CITYSCAPES_19)(tmp_path / "b.png")
