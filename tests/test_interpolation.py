"""Cells and weights along one axis: Pillow's own resize, one step and two, against the combined weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cbst_mx import selftrain
from cbst_mx.errors import ConfigError
from cbst_mx.selftrain.class_maps import ClassMaps
from cbst_mx.selftrain.interpolation import INTERPOLATIONS, plan_axis
from cbst_mx.selftrain.on_device import full_size
from symbols.backend import mx
from tests.maps import random_maps

GOLDEN = Path(__file__).parent / "golden" / "upsampled_maps.npz"

# Pillow rounds to float32 after each of its four passes, here two do; each result is below 2, so a rounding is at most
# 2^-24, and the kernels' weights enlarge those of earlier passes 1.25^2-fold at most in each step.
ROUNDINGS = 1e-6


def resized(plane, size):
    """Return a plane as Pillow resizes it in mode "F"."""
    return np.asarray(Image.fromarray(plane).resize(size[::-1], Image.BICUBIC))


def twice(plane, stride, part, size):
    """Return a plane at the stride as the program enlarges it: to the padded input, of which `part` is the image's."""
    padded = resized(plane, (plane.shape[0] * stride, plane.shape[1] * stride))
    return resized(np.ascontiguousarray(padded[: part[0], : part[1]]), size)


def pillow_maps(maps, stride, part, size):
    extent = (part[0] / stride, part[1] / stride)
    view = ClassMaps(maps, size, interpolation="pillow", extent=extent, stride=stride)
    return view.rows(0, size[0])


@pytest.mark.parametrize(
    ("small", "stride", "part", "size"),
    [
        ((116, 232), 8, (925, 1850), (1024, 2048)),  # pseudo-labels of Cityscapes
        ((128, 256), 8, (1024, 2048), (1024, 2048)),  # its evaluation: the second step changes nothing
        ((141, 256), 8, (1126, 2048), (1052, 1914)),  # GTA5 at a long side of 2048: the second step shrinks
        ((5, 7), 8, (37, 55), (30, 40)),
        ((5, 7), 8, (33, 49), (300, 301)),
        ((3, 4), 5, (11, 18), (12, 17)),
        ((3, 4), 2, (6, 7), (9, 5)),
        ((9, 8), 1, (9, 8), (27, 3)),  # a network at stride 1: one step
        ((9, 8), 1, (7, 8), (7, 8)),  # a crop
        ((1, 1), 8, (3, 8), (4, 6)),
    ],
)
def test_pillow_is_pillow_twice(small, stride, part, size):
    maps = random_maps(1, (2, *small))
    found = pillow_maps(maps, stride, part, size)
    assert found.dtype == np.float32
    expected = np.stack([twice(plane, stride, part, size) for plane in maps])
    np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDINGS)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_pillow_is_pillow_twice_at_any_size(data):
    small = data.draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    stride = data.draw(st.integers(1, 9))
    part = tuple(data.draw(st.integers(stride * (cells - 1) + 1, stride * cells)) for cells in small)
    size = data.draw(st.tuples(st.integers(1, 90), st.integers(1, 90)))
    maps = random_maps(data.draw(st.integers(0, 9)), (2, *small))
    expected = np.stack([twice(plane, stride, part, size) for plane in maps])
    np.testing.assert_allclose(pillow_maps(maps, stride, part, size), expected, rtol=0, atol=ROUNDINGS)


@pytest.mark.parametrize("name", ["enlarged", "cropped", "shrunk"])
def test_golden_maps_of_the_programs_two_steps(name):
    golden = np.load(GOLDEN)
    cells, part, maps = (golden[f"{name}_{what}"] for what in ("cells", "part", "maps"))
    size = maps.shape[1:]
    found = pillow_maps(cells, 8, part, size)
    np.testing.assert_allclose(found, maps, rtol=0, atol=ROUNDINGS)
    on_ctx = full_size(mx.nd.array(cells[None]), size, extent=tuple(part / 8), interpolation="pillow", stride=8)
    np.testing.assert_allclose(on_ctx[0].asnumpy(), maps, rtol=0, atol=ROUNDINGS)
    thresholds = selftrain.thresholds([found], fidelity="released", origin="bicubic")
    # a threshold is a pixel's confidence, so it moves by roundings at most
    np.testing.assert_allclose(
        thresholds.values, selftrain.thresholds([maps], fidelity="released", origin="bicubic").values, atol=ROUNDINGS
    )
    # and the golden values see the difference that another kernel makes
    for kind in ("bilinear", "bicubic"):
        other = ClassMaps(cells, size, interpolation=kind, extent=tuple(part / 8), stride=8).rows(0, size[0])
        assert np.abs(other - maps).max() > 0.02


def test_pillow_is_no_other_interpolation():
    maps = random_maps(2, (3, 6, 8))
    found = {kind: ClassMaps(maps, (48, 64), interpolation=kind, stride=8).rows(0, 48) for kind in INTERPOLATIONS}
    for kind in ("bilinear", "bicubic"):
        assert np.abs(found["pillow"] - found[kind]).max() > 0.02


def test_one_step_in_place_of_two_would_be_seen():
    maps = random_maps(3, (3, 6, 8))
    one = ClassMaps(maps, (60, 81), interpolation="pillow").rows(0, 60)
    assert np.abs(one - pillow_maps(maps, 8, (48, 64), (60, 81))).max() > 1e-3


def test_maps_of_an_image_of_no_whole_cells_are_cropped():
    maps = random_maps(4, (3, 6, 8))
    (plane, *_), expected = maps, twice(maps[0], 8, (43, 60), (43, 60))
    found = ClassMaps.at_stride(maps, (43, 60), 8, interpolation="pillow").rows(0, 43)
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=ROUNDINGS)
    np.testing.assert_allclose(found[0], resized(plane, (48, 64))[:43, :60], rtol=0, atol=ROUNDINGS)
    # the other interpolations lay all cells over the image, as they always did
    for kind in ("bilinear", "bicubic"):
        ours = ClassMaps.at_stride(maps, (43, 60), 8, interpolation=kind).rows(0, 43)
        np.testing.assert_array_equal(ours, ClassMaps(maps, (43, 60), interpolation=kind).rows(0, 43))


@pytest.mark.parametrize("kind", INTERPOLATIONS)
@pytest.mark.parametrize(("cells", "pixels", "part", "stride"), [(116, 1024, 925, 8), (13, 40, 97, 8), (20, 7, 20, 1)])
def test_cells_never_go_back_and_are_all_there(kind, cells, pixels, part, stride):
    axis = plan_axis(cells, pixels, kind, part / stride, stride)
    for part_cells in (axis.base, *(others for others, _ in axis.others)):
        assert part_cells.min() >= 0
        assert part_cells.max() < cells
        assert (np.diff(part_cells) >= 0).all()
    assert axis.cells(slice(0, pixels)) == (0, cells)


def test_pillow_crops_whole_pixels_only():
    with pytest.raises(ConfigError, match="extent must be whole pixels at stride 8 for pillow, got 3.3 cells"):
        plan_axis(4, 26, "pillow", 3.3, 8)
