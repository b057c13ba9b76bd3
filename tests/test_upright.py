"""Images are turned as their EXIF marks say where they are only looked at, and stay as stored in data sets."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from PIL import Image, ImageOps

from cbst_mx.data.datasets import ImageSet
from cbst_mx.data.upright import UprightImageSet, upright


def marked(path, turn, size=(4, 6), **options):
    """Write an image with a rotation mark and return its pixels as they are stored."""
    exif = Image.Exif()
    exif[0x0112] = turn
    pixels = np.random.default_rng(turn).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, exif=exif, **options)
    return pixels


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "webp"])
def test_pictures_are_turned_as_viewers_turn_them(tmp_path, turn, ending):
    path = tmp_path / f"a.{ending}"
    marked(path, turn, **({"lossless": True} if ending == "webp" else {}))
    images = UprightImageSet(["a"], [path])
    stored = ImageSet(["a"], [path]).image(0)
    assert stored.shape == (4, 6, 3)  # data sets: as stored
    got = images.image(0)
    assert got.flags.c_contiguous
    assert got.shape == ((6, 4, 3) if turn > 4 else (4, 6, 3))
    assert images.turn(0) == turn
    with Image.open(path) as image:
        if ending == "tif":  # Pillow turns the pixels of these as it loads them
            expected = np.asarray(image.convert("RGB"))
        else:
            expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(got, expected)


def test_label_maps_of_two_dimensions_are_turned_too():
    label = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(upright(label, 6), [[3, 0], [4, 1], [5, 2]])
    np.testing.assert_array_equal(upright(label, 8), [[2, 5], [1, 4], [0, 3]])


def test_subsets_and_copies_stay_upright(tmp_path):
    marked(tmp_path / "a.png", 6)
    marked(tmp_path / "b.png", 1)
    images = UprightImageSet(["a", "b"], [tmp_path / "a.png", tmp_path / "b.png"])
    chosen = pickle.loads(pickle.dumps(images.subset([1, 0])))
    assert isinstance(chosen, UprightImageSet)
    assert [chosen.image(index).shape for index in range(2)] == [(4, 6, 3), (6, 4, 3)]
