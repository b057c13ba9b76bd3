"""Rare-class mining: which class, which pixel, and where the crop goes."""

from __future__ import annotations

import numpy as np
import pytest

from cbst_mx.data.class_mining import ClassMining
from cbst_mx.data.loader import BatchLoader
from cbst_mx.data.transforms import TrainTransform
from cbst_mx.errors import ConfigError
from cbst_mx.seeding import generator
from cbst_mx.selftrain.class_statistics import priority_classes, worst_classes


def draw(index=0):
    return generator(0, index=index, purpose="transform")


def classes_drawn(mining, label, draws=300):
    """Count the classes of the pixels drawn; None where nothing was mined."""
    counts = {}
    for index in range(draws):
        pixel = mining.pixel(label, draw(index))
        found = None if pixel is None else int(label[pixel])
        counts[found] = counts.get(found, 0) + 1
    return counts


def test_priority_classes_come_first_and_each_class_present_has_an_equal_chance():
    label = np.zeros((20, 30), np.uint8)
    label[0, :20], label[1, 0], label[2, :5] = 3, 4, 7  # class 4 has one pixel only
    # Binomial: 150 of 300 has a standard deviation of 9, so 120 to 180 is more than 3 of them.
    both = classes_drawn(ClassMining([3, 0], priority=[4, 7, 9], probability=1), label)
    assert set(both) == {4, 7}
    assert 120 < both[4] < 180
    worst = classes_drawn(ClassMining([3, 0, 11], priority=[9, 10], probability=1), label)
    assert set(worst) == {3, 0}
    assert 120 < worst[3] < 180
    assert classes_drawn(ClassMining([11], priority=[9], probability=1), label, 20) == {None: 20}


def test_each_pixel_of_the_class_has_an_equal_chance():
    label = np.full((6, 7), 255, np.uint8)
    places = {(0, 0), (2, 6), (5, 3), (5, 6)}
    for place in places:
        label[place] = 5
    mining = ClassMining([5], probability=1)
    drawn = [mining.pixel(label, draw(index)) for index in range(400)]
    assert set(drawn) == places
    # 100 +- 8.7 each
    assert all(65 < drawn.count(place) < 135 for place in places)


def test_the_given_part_of_crops_is_mined():
    label = np.zeros((4, 4), np.uint8)
    for probability, low, high in ((0.8, 210, 270), (0.0, 0, 0), (1.0, 300, 300)):
        mined = classes_drawn(ClassMining([0], probability=probability), label).get(0, 0)
        assert low <= mined <= high  # 240 +- 7 for 0.8


def test_rare_classes_of_a_target_set():
    counts = np.array([90_000, 50, 0, 5_000, 3_000, 99, 1_851])
    mining = ClassMining(worst_classes(counts, 5), priority_classes(counts, 0.001))
    assert mining.worst == (2, 1, 5, 6, 4)
    assert mining.priority == (1, 2, 5)
    assert mining.probability == 0.8


# --- in the transform


def scene(height, width, rare):
    """Return a sample whose image tells the place of each pixel, with class 5 at the places `rare`."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    label = np.zeros((height, width), np.uint8)
    for place in rare:
        label[place] = 5
    return np.stack([rows, columns, np.zeros_like(rows)], axis=2), label


@pytest.mark.parametrize("crop", [(20, 30), (21, 31), (1, 1)])
def test_a_mined_crop_is_centred_on_the_pixel(crop):
    image, label = scene(60, 90, [(25, 40), (31, 52)])
    transform = TrainTransform(crop=crop, scale=(1, 1), flip=False, mining=ClassMining([5], probability=1))
    centres = set()
    for index in range(30):
        new_image, new_label = transform(image, label, draw(index))
        assert new_label[crop[0] // 2, crop[1] // 2] == 5
        centres.add(tuple(new_image[crop[0] // 2, crop[1] // 2, :2].tolist()))
    assert centres == {(25, 40), (31, 52)}


def test_crops_stay_inside_the_image():
    # Windows of 20 x 30 fit around rows 10 to 50 and columns 15 to 75, both ends included.
    usable = [(10, 15), (50, 75), (10, 75), (50, 15)]
    useless = [(9, 40), (51, 40), (30, 14), (30, 76)]
    image, label = scene(60, 90, usable + useless)
    transform = TrainTransform(crop=(20, 30), scale=(1, 1), flip=False, mining=ClassMining([5], probability=1))
    centres = set()
    for index in range(100):
        new_image, new_label = transform(image, label, draw(index))
        assert (new_label != 255).all()
        centres.add(tuple(new_image[10, 15, :2].tolist()))
    assert centres == set(usable)


def test_without_a_usable_pixel_the_crop_is_the_one_drawn_without_mining():
    image, label = scene(60, 90, [(9, 40), (30, 76)])
    settings = {"crop": (20, 30), "scale": (1, 1), "flip": False}
    mining = TrainTransform(**settings, mining=ClassMining([5], probability=1))
    for index in range(20):
        plain_image, _ = TrainTransform(**settings)(image, label, draw(index))
        mined_image, _ = mining(image, label, draw(index))
        np.testing.assert_array_equal(mined_image, plain_image)


@pytest.mark.parametrize("height", [20, 12])
def test_an_axis_that_fits_into_the_window_is_not_mined_along(height):
    # The pixel lies at the upper edge, where no window of 20 rows could be centred on it.
    image, label = scene(height, 90, [(0, 40)])
    transform = TrainTransform(crop=(20, 30), scale=(1, 1), flip=False, mining=ClassMining([5], probability=1))
    tops = set()
    for index in range(60):
        _, new_label = transform(image, label, draw(index))
        rows, columns = np.nonzero(new_label == 5)
        assert columns.tolist() == [15]
        tops.add(int(rows[0]))
    assert tops == set(range(20 - height + 1))  # the window itself is placed at random


def test_scale_is_the_same_with_and_without_mining():
    image, label = scene(60, 90, [(30, 45)])
    label[20:40, 30:60] = 5
    for index in range(10):
        sizes = set()
        for mining in (None, ClassMining([5], probability=1)):
            # A crop larger than any scaled image holds all of it.
            _, new_label = TrainTransform(crop=(100, 140), mining=mining)(image, label, draw(index))
            sizes.add(int((new_label != 255).sum()))
        assert len(sizes) == 1


def test_mined_batches_do_not_depend_on_the_number_of_workers():
    samples = [lambda index=index: scene(40, 60, [(20, 10 + 5 * index)]) for index in range(5)]

    def batches(workers):
        transform = TrainTransform(crop=(16, 24), mining=ClassMining([5], priority=[9]))
        return list(BatchLoader(samples, transform, batch_size=2, seed=1, iterations=4, workers=workers))

    for (images, labels), (other_images, other_labels) in zip(batches(0), batches(2)):
        np.testing.assert_array_equal(images, other_images)
        np.testing.assert_array_equal(labels, other_labels)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (([],), r"^worst and priority must name at least one class to mine, got none$"),
        (([255],), r"^worst must hold trainIds from 0 to 254, got 255$"),
        (([1], [-1]), r"^priority must hold trainIds from 0 to 254, got -1$"),
        (([1.0],), r"^worst must hold trainIds from 0 to 254, got 1\.0$"),
        (([1, 2, 1],), r"^worst must name every class once, got \(1, 2, 1\)$"),
    ],
)
def test_refused_classes(arguments, sentence):
    with pytest.raises(ConfigError, match=sentence):
        ClassMining(*arguments)


@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan"), "1", True])
def test_refused_probability(probability):
    with pytest.raises(ConfigError, match=r"^probability must be a number in \[0, 1\], got "):
        ClassMining([1], probability=probability)
