"""Training samples: read when asked for, with the name of their image; what is missing or does not fit."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from cbst_mx.data.datasets import ImageSet, LabelledImageSet
from cbst_mx.data.image_files import write_label_png, write_rgb_png
from cbst_mx.data.loader import BatchLoader
from cbst_mx.data.transforms import TrainTransform
from cbst_mx.errors import DataError, RunError
from cbst_mx.label_space import CITYSCAPES_19
from cbst_mx.training.samples import labelled_samples, pseudo_labelled_samples, unlabelled_samples

NAMES = ("a", "b", "c")


@pytest.fixture
def pictures(tmp_path):
    """Return per name an image and a label, also in files."""
    rng = np.random.default_rng(0)
    made = {}
    for name in NAMES:
        image = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        label = rng.choice(np.array([0, 7, 18, 255], np.uint8), (6, 8))
        write_rgb_png(tmp_path / "images" / f"{name}.png", image)
        write_label_png(tmp_path / "labels" / f"{name}.png", label, CITYSCAPES_19)
        made[name] = image, label
    return made


def paths(tmp_path, folder):
    return [tmp_path / folder / f"{name}.png" for name in NAMES]


def assert_reads(samples, pictures):
    assert [sample.name for sample in samples] == list(NAMES)
    for sample in reversed(samples):  # in any order
        image, label = sample.read()
        np.testing.assert_array_equal(image, pictures[sample.name][0])
        np.testing.assert_array_equal(label, pictures[sample.name][1])


def test_labelled_and_pseudo_labelled_samples_read_the_pair_of_their_name(tmp_path, pictures):
    images, labels = paths(tmp_path, "images"), paths(tmp_path, "labels")
    labelled = LabelledImageSet(NAMES, images, labels, CITYSCAPES_19, "trainId")
    assert_reads(labelled_samples(labelled), pictures)
    assert_reads(pseudo_labelled_samples(ImageSet(NAMES, images), tmp_path / "labels", CITYSCAPES_19), pictures)


@pytest.mark.parametrize("resampling", ["linear", "program"])
@pytest.mark.parametrize("options", [{}, {"workers": 2}, {"cache": 10**7}, {"cache": 300}])
def test_batches_of_rows_are_those_of_whole_images(tmp_path, pictures, resampling, options):
    images, labels = paths(tmp_path, "images"), paths(tmp_path, "labels")
    labelled = LabelledImageSet(NAMES, images, labels, CITYSCAPES_19, "trainId")
    whole = [functools.partial(labelled.pair, index) for index in range(len(NAMES))]
    transform = TrainTransform(crop=(4, 7), scale=(0.5, 2.0), resampling=resampling)
    made = [
        list(BatchLoader(samples, transform, batch_size=2, seed=1, iterations=20, **more))
        for samples, more in ((whole, {}), (labelled_samples(labelled), options))
    ]
    for one, other in zip(*made):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


def test_a_set_that_changes_its_images_changes_its_rows(tmp_path, pictures):
    class Dark(ImageSet):
        def image(self, index):
            return super().image(index) // 2

    np.testing.assert_array_equal(Dark(NAMES, paths(tmp_path, "images")).rows(1), pictures["b"][0] // 2)


def test_unlabelled_samples_have_no_labels(tmp_path, pictures):
    samples = unlabelled_samples(ImageSet(NAMES, paths(tmp_path, "images")))
    assert_reads(samples, {name: (image, np.full((6, 8), 255)) for name, (image, _) in pictures.items()})
    assert samples[0].read()[1].dtype == np.uint8


def test_a_missing_pseudo_label_is_refused(tmp_path, pictures):
    images = ImageSet(NAMES, paths(tmp_path, "images"))
    (tmp_path / "labels" / "b.png").unlink()
    with pytest.raises(
        RunError, match=r"^1 of 3 pseudo-labels are missing, the first is .*b\.png: run pseudo-label again$"
    ):
        pseudo_labelled_samples(images, tmp_path / "labels", CITYSCAPES_19)


def test_a_pseudo_label_of_another_size_is_refused_when_read(tmp_path, pictures):
    write_label_png(tmp_path / "labels" / "c.png", np.zeros((3, 4), np.uint8), CITYSCAPES_19)
    samples = pseudo_labelled_samples(ImageSet(NAMES, paths(tmp_path, "images")), tmp_path / "labels", CITYSCAPES_19)
    with pytest.raises(DataError, match=r"pseudo-label .*c\.png has not the size of image .*c\.png$"):
        samples[2].read()
