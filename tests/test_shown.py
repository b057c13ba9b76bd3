"""What is kept of an evaluation for reports: which images, how small, and how often sure pixels are right."""

from __future__ import annotations

import numpy as np
import pytest

from cbst_mx.errors import DataError
from cbst_mx.evaluation.shown import (
    IMAGES,
    LEVELS,
    LONG_SIDE,
    Shows,
    chosen_images,
    load_shown,
    pack,
    save_shown,
    shrink,
    unpack,
)
from cbst_mx.files import save_npz


def test_chosen_images_are_spread_over_the_set():
    assert chosen_images(20) == list(range(20))
    chosen = chosen_images(500)
    assert len(chosen) == IMAGES
    assert set(np.diff(chosen)) == {25}
    assert chosen[0] == 12
    assert all(len(set(chosen_images(count))) == IMAGES for count in range(21, 60))


@pytest.mark.parametrize(
    ("size", "small"),
    [((1024, 2048), (256, 512)), ((1500, 500), (512, 171)), ((90, 120), (90, 120)), ((1, 9000), (1, 512))],
)
def test_shrunk_predictions_hold_no_new_class(size, small):
    classes = np.random.default_rng(0).choice([3, 7, 255], size).astype(np.uint8)
    made = shrink(classes)
    assert made.shape == small
    assert max(made.shape) <= LONG_SIDE
    assert set(np.unique(made)) <= {3, 7, 255}


def test_reliability_is_counted_pixel_by_pixel():
    rng = np.random.default_rng(0)
    shows = Shows(2)
    images = [
        (
            rng.choice(np.array([0.0, 0.05, 0.5, 0.999, 1.0], np.float32), (7, 9)),
            rng.integers(0, 3, (7, 9), dtype=np.uint8),
            rng.choice(np.array([0, 1, 2, 255], np.uint8), (7, 9)),
        )
        for _ in range(2)
    ]
    pixels, right, sums = np.zeros(LEVELS, int), np.zeros(LEVELS, int), np.zeros(LEVELS)
    for index, (confidence, predicted, truth) in enumerate(images):
        shows.add(index, str(index), confidence, predicted, truth)
        for sure, one, true in zip(confidence.flat, predicted.flat, truth.flat):
            if true != 255:
                level = min(int(sure * LEVELS), LEVELS - 1)
                pixels[level] += 1
                right[level] += one == true
                sums[level] += sure
    found = shows.shown
    np.testing.assert_array_equal(found.pixels, pixels)
    np.testing.assert_array_equal(found.right, right)
    np.testing.assert_allclose(found.confidence, sums, rtol=1e-12)  # sums in another order
    expected = sum(abs(one - other) for one, other in zip(sums, right)) / pixels.sum()
    assert found.calibration_error == pytest.approx(expected, rel=1e-12)


def test_what_is_shown_comes_back(tmp_path):
    shows = Shows(3)
    for index, name in enumerate(("a", "b <i>", "ü")):
        shows.add(
            index, name, np.full((4, 6), 0.7, np.float32), np.full((4, 6), index, np.uint8), np.zeros((4, 6), np.uint8)
        )
    save_shown(tmp_path / "shown.npz", {"target": shows.shown, "other": Shows(0).shown})
    found = load_shown(tmp_path / "shown.npz")
    assert list(found) == ["target", "other"]
    assert list(found["target"].predictions) == ["a", "b <i>", "ü"]
    np.testing.assert_array_equal(found["target"].predictions["ü"], 2)
    np.testing.assert_array_equal(found["target"].pixels, shows.shown.pixels)
    assert found["other"].calibration_error is None


def test_without_labels_only_predictions_are_kept():
    shows = Shows(1)
    shows.add(0, "a", np.full((4, 6), 0.7, np.float32), np.ones((4, 6), np.uint8))
    assert shows.shown.pixels.sum() == 0
    assert shows.shown.predictions["a"].shape == (4, 6)


@pytest.mark.parametrize(
    "change",
    [
        {"sets": np.array(["other"])},
        {"target.pixels": np.zeros(3, np.int64)},
        {"target.right": np.array(["x"] * LEVELS)},
        {"target.sizes": np.array([[-1, 2]])},
        {"target.classes": np.zeros(5, np.uint8)},
    ],
)
def test_a_damaged_file_is_one_sentence(tmp_path, change):
    shows = Shows(1)
    shows.add(0, "a", np.full((4, 6), 0.7, np.float32), np.ones((4, 6), np.uint8), np.ones((4, 6), np.uint8))
    path = tmp_path / "shown.npz"
    save_shown(path, {"target": shows.shown})
    with np.load(path) as stored:
        arrays = {**stored, **change}
    save_npz(path, arrays)
    with pytest.raises(DataError, match="shown.npz") as caught:
        load_shown(path)
    assert "\n" not in str(caught.value)


def test_packed_maps_come_back(tmp_path):
    maps = {"a": np.arange(6, dtype=np.uint8).reshape(2, 3), "empty": np.zeros((0, 4), np.uint8)}
    found = unpack(pack(maps, "x."), tmp_path, "x.")
    assert list(found) == list(maps)
    np.testing.assert_array_equal(found["a"], maps["a"])
    assert found["empty"].shape == (0, 4)
