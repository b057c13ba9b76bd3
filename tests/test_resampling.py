"""Windows of resized images are those of Pillow's, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from cbst_mx.data.resampling import _weights, resized_window
from cbst_mx.data.transforms import TrainTransform, resize_image, resize_label


def test_windows_are_those_of_the_whole_image():
    rng = np.random.default_rng(0)
    for number in range(300):
        width = int(rng.integers(1, 150))
        height = int(rng.integers(1, min(100, 2 * width) + 1))  # of higher ones Pillow 13 changes the order
        factor = rng.uniform(0.2, 2.5)
        size = (max(1, round(height * factor)), max(1, round(width * factor)))
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        if number % 2:
            image = np.where(image > 127, 255, 0).astype(np.uint8)  # where kernels overshoot
        top, left = (int(rng.integers(0, side)) for side in size)
        bottom, right = int(rng.integers(top, size[0])) + 1, int(rng.integers(left, size[1])) + 1
        window = resized_window(image, size, slice(top, bottom), slice(left, right))
        whole = resize_image(image, size, "program")
        np.testing.assert_array_equal(window, whole[top:bottom, left:right], f"{image.shape} to {size}")
        assert window.flags.c_contiguous


@pytest.mark.parametrize("shrinks", [False, True])
def test_no_weight_is_of_a_pixel_that_is_not_taken(shrinks):
    rng = np.random.default_rng(4)
    for _ in range(300):
        length, resized = (int(n) for n in rng.integers(1, 200, size=2))
        start = int(rng.integers(0, resized))
        weights, taken = _weights(length, resized, slice(start, int(rng.integers(start, resized)) + 1), shrinks)
        weights.check_format(full_check=True)  # every column inside: SciPy reads beyond its arrays otherwise
        assert 0 <= taken.start < taken.stop <= length
        np.testing.assert_allclose(weights.sum(axis=1) / 2.0**22, 1, atol=2e-5)  # up to 40 weights, rounded each


@pytest.mark.parametrize("factor", [0.7, 0.83, 1.0, 1.19, 1.3])
def test_a_crop_of_a_large_image(factor):
    rng = np.random.default_rng(1)
    image, size = rng.integers(0, 256, (300, 601, 3), dtype=np.uint8), (round(300 * factor), round(601 * factor))
    window = resized_window(image, size, slice(20, 140), slice(200, 320))
    np.testing.assert_array_equal(window, resize_image(image, size, "program")[20:140, 200:320])


@pytest.mark.parametrize("size", [(40, 60), (200, 300)])  # smaller than the crop, and larger
def test_samples_are_those_of_the_whole_image(size):
    rng = np.random.default_rng(2)
    image, label = rng.integers(0, 256, (*size, 3), dtype=np.uint8), rng.integers(0, 19, size, dtype=np.uint8)
    transform = TrainTransform(crop=(64, 64), scale=(0.7, 1.3), resampling="program")
    whole = TrainTransform(crop=(64, 64), scale=(1.0, 1.0), resampling="program")
    for seed in range(10):
        found = transform(image, label, np.random.default_rng(seed))
        factor = np.random.default_rng(seed).uniform(0.7, 1.3)
        scaled = (round(size[0] * factor), round(size[1] * factor))
        resized = resize_image(image, scaled, "program"), resize_label(label, scaled)
        expected = whole(*resized, np.random.default_rng(seed))  # draws the same, and changes no size
        for ours, theirs in zip(found, expected):
            np.testing.assert_array_equal(ours, theirs)


def test_a_window_takes_no_more_memory_than_its_own_pixels_need(monkeypatch):
    # the whole is never made: a resized image of this size would take 12 GB
    image = np.random.default_rng(3).integers(0, 256, (2000, 2000, 3), dtype=np.uint8)
    window = resized_window(image, (64_000, 64_000), slice(500, 520), slice(700, 730))
    assert window.shape == (20, 30, 3)
    part = resized_window(image[:100, :100], (3200, 3200), slice(500, 520), slice(700, 730))
    np.testing.assert_array_equal(window, part)
