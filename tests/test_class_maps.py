"""Upsampling in tiles against the whole image, other programs' kernels and the plain reductions."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbst_mx.errors import ConfigError, DataError
from cbst_mx.selftrain.class_maps import ClassMaps
from cbst_mx.selftrain.interpolation import INTERPOLATIONS
from tests.maps import random_maps

GOLDEN = Path(__file__).parent / "golden" / "pseudo_labels.npz"


ROOT = Path(__file__).resolve().parents[1]


SIZES = [
    ((5, 7), (40, 56)),
    ((4, 6), (30, 47)),
    ((9, 8), (9, 24)),
    ((20, 30), (7, 11)),
    ((1, 1), (3, 5)),
    ((6, 5), (6, 5)),
]


def interpolated(plane, size):
    """Return a plane bilinearly interpolated, pixel by pixel in float64."""
    height, width = plane.shape
    result = np.empty(size)
    for y in range(size[0]):
        for x in range(size[1]):
            v, u = (y + 0.5) * height / size[0] - 0.5, (x + 0.5) * width / size[1] - 0.5
            i, j = int(np.floor(v)), int(np.floor(u))
            value = 0.0
            for row, a in ((i, 1 - (v - i)), (i + 1, v - i)):
                for column, b in ((j, 1 - (u - j)), (j + 1, u - j)):
                    value += a * b * plane[min(max(row, 0), height - 1), min(max(column, 0), width - 1)]
            result[y, x] = value
    return result


@pytest.mark.parametrize(("small", "size"), SIZES)
def test_bilinear_is_the_plain_formula(small, size):
    maps = np.random.default_rng(0).random((2, *small), dtype=np.float32)
    found = ClassMaps(maps, size).rows(0, size[0])
    assert found.dtype == np.float32
    assert found.shape == (2, *size)
    expected = np.stack([interpolated(plane, size) for plane in maps])
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-7)  # a few roundings of float32 below 1


@pytest.mark.parametrize(("small", "size"), SIZES)
def test_bilinear_is_the_networks_own_upsampling(small, size):
    from symbols.backend import mx

    maps = random_maps(1, (3, *small))
    theirs = mx.nd.contrib.BilinearResize2D(
        mx.nd.array(maps[None]), height=size[0], width=size[1], align_corners=False
    )[0].asnumpy()
    np.testing.assert_allclose(ClassMaps(maps, size).rows(0, size[0]), theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("kind", "theirs"), [("bilinear", cv2.INTER_LINEAR), ("bicubic", cv2.INTER_CUBIC)])
@pytest.mark.parametrize(("small", "size"), SIZES)
def test_bilinear_and_bicubic_are_those_of_opencv(kind, theirs, small, size):
    maps = random_maps(2, (3, *small))
    expected = np.stack([cv2.resize(plane, size[::-1], interpolation=theirs) for plane in maps])
    found = ClassMaps(maps, size, interpolation=kind).rows(0, size[0])
    # OpenCV computes the positions of the pixels in float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6)


@settings(max_examples=80, deadline=None)
@given(st.data(), st.sampled_from(INTERPOLATIONS), st.sampled_from([s for s in SIZES if s[1][0] > 3]))
def test_any_tile_is_bit_by_bit_a_part_of_the_whole(data, kind, sizes):
    small, size = sizes
    maps = ClassMaps(random_maps(3, (4, *small)), size, interpolation=kind)
    whole = maps.rows(0, size[0])
    top, left = data.draw(st.integers(0, size[0] - 1)), data.draw(st.integers(0, size[1] - 1))
    bottom, right = data.draw(st.integers(top + 1, size[0])), data.draw(st.integers(left + 1, size[1]))
    classes = data.draw(st.sampled_from([None, np.array([2]), np.array([0, 3])]))
    tile = maps.tile(slice(top, bottom), slice(left, right), classes)
    part = (whole if classes is None else whole[classes])[:, top:bottom, left:right]
    np.testing.assert_array_equal(tile.view(np.uint32), part.view(np.uint32))


@pytest.mark.parametrize("kind", INTERPOLATIONS)
def test_equal_cells_keep_their_value(kind):
    maps = np.ones((1, 3, 4), dtype=np.float32)
    assert (ClassMaps(maps, (50, 70), interpolation=kind).rows(0, 50) == 1).all()  # saturated stays saturated


def test_refusals():
    maps = random_maps(6, (3, 4, 5))
    with pytest.raises(ConfigError, match="interpolation must be one of bilinear, bicubic, pillow, got 'nearest'"):
        ClassMaps(maps, (8, 10), interpolation="nearest")
    with pytest.raises(ConfigError, match=r"size must be a height and a width of at least 1 pixel, got \(0, 5\)"):
        ClassMaps(maps, (0, 5))
    for wrong in (maps[0], maps.astype(np.float64), np.zeros((3, 4, 5), np.uint8), maps[:, :0]):
        with pytest.raises(DataError, match=r"class maps must be float32 or float16 of shape \(C, H, W\), got"):
            ClassMaps(wrong)
