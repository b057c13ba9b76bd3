from __future__ import annotations

import time
from typing import get_args, get_type_hints

import cv2
import numpy as np
import pytest
from PIL import Image

from cbst_mx.cli.networks import evaluate
from cbst_mx.config.experiment import Experiment
from cbst_mx.data.image_files import read_draft
from cbst_mx.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    RESAMPLINGS,
    TrainTransform,
    label_at_stride,
    normalise,
    resize_image,
    resize_label,
    scale_for_long_side,
)
from cbst_mx.errors import ConfigError, DataError
from cbst_mx.seeding import generator

FILL = (124, 116, 104)


def draw(index=0):
    return generator(0, index=index, purpose="transform")


def sample(height=64, width=160, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 19, (height, width), dtype=np.uint8)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8), label


def coded(height, width):
    """Return a sample whose image tells the class of each pixel exactly, whatever crop and flip do to it."""
    rng = np.random.default_rng(1)
    label = rng.integers(0, 19, (height, width), dtype=np.uint8)
    return np.repeat(label[..., None] * 10 + 5, 3, axis=2).astype(np.uint8), label


# --- normalise


def test_normalise_by_hand():
    image = np.array([[[0, 255, 51]]], np.uint8)
    out = normalise(image, mean=(0.5, 0.5, 0.1), std=(0.5, 0.25, 0.1))
    assert out.shape == (3, 1, 1)
    assert out.dtype == np.float32
    assert out.flags.c_contiguous
    # (0 - 0.5) / 0.5, (1 - 0.5) / 0.25, (0.2 - 0.1) / 0.1; float32 rounding
    np.testing.assert_allclose(out.ravel(), [-1, 2, 1], rtol=1e-6)


def test_normalise_matches_the_formula_in_float64():
    image, _ = sample()
    expected = ((image / 255.0 - IMAGENET_MEAN) / IMAGENET_STD).transpose(2, 0, 1)
    # A few float32 roundings of numbers up to 2.7.
    np.testing.assert_allclose(normalise(image), expected, atol=2e-6)


def test_normalise_refuses():
    image, label = sample(4, 4)
    with pytest.raises(ConfigError, match=r"^mean must hold three finite numbers \(R, G, B\), got \(0.5, 0.5\)$"):
        normalise(image, mean=(0.5, 0.5))
    with pytest.raises(ConfigError, match=r"^std must hold numbers above 0, got \(1, 0, 1\)$"):
        normalise(image, std=(1, 0, 1))
    with pytest.raises(DataError, match=r"^image must be a uint8 array of shape \(H, W, 3\), got uint8 \(4, 4\)$"):
        normalise(label)
    with pytest.raises(DataError, match=r"got float32 \(4, 4, 3\)$"):
        normalise(image.astype(np.float32))


# --- resizing


@pytest.mark.parametrize("size", [(64, 160), (45, 113), (83, 208), (32, 80), (1, 1)])
def test_resized_shapes_and_values(size):
    image, label = sample()
    assert resize_image(image, size).shape == (*size, 3)
    resized = resize_label(label, size)
    assert resized.shape == size
    assert resized.dtype == np.uint8
    assert set(np.unique(resized)) <= set(np.unique(label))


def test_label_takes_the_pixel_at_the_centre_of_each_area():
    label = np.arange(9, dtype=np.uint8)[None]
    np.testing.assert_array_equal(resize_label(label, (1, 3)), [[1, 4, 7]])
    np.testing.assert_array_equal(resize_label(label[:, :3], (1, 6)), [[0, 0, 1, 1, 2, 2]])


def test_images_are_resized_by_pillow_as_in_the_program():
    image, _ = sample()
    for size, kernel in (((32, 80), Image.LANCZOS), ((63, 159), Image.LANCZOS), ((90, 208), Image.BICUBIC)):
        expected = np.asarray(Image.fromarray(image).resize(size[::-1], kernel))
        np.testing.assert_array_equal(resize_image(image, size, "program"), expected)
        assert (resize_image(image, size) != expected).any()
    same = resize_image(image, image.shape[:2], "program")
    np.testing.assert_array_equal(same, image)
    assert not np.shares_memory(same, image)
    with pytest.raises(ConfigError, match="resampling must be one of linear, program, draft, got 'area'"):
        resize_image(image, (5, 5), "area")
    with pytest.raises(ConfigError, match="resampling must be one of linear, program, draft, got 'area'"):
        TrainTransform(crop=(8, 8), resampling="area")


@pytest.mark.parametrize("scale", [(0.7, 0.95), (1.05, 1.3)])
def test_resampling_changes_the_grey_values_of_a_training_image_only(scale):
    image, label = sample()
    one, other = (
        TrainTransform(crop=(24, 40), scale=scale, resampling=kind)(image, label, np.random.default_rng(5))
        for kind in ("linear", "program")
    )
    np.testing.assert_array_equal(one[1], other[1])
    assert (one[0] != other[0]).any()


@pytest.mark.parametrize("resampling", RESAMPLINGS)
@pytest.mark.parametrize("factor", [0.7, 0.83, 0.999, 1.07, 1.3, 2.0])
def test_image_and_label_stay_aligned_to_half_a_pixel(factor, resampling):
    # One vertical edge: in the image the place where the brightness crosses one half, in the label where the class
    # changes. Both mark the same line after scaling, for edges all over the width.
    width = 200
    for edge in range(20, 180, 7):
        label = np.zeros((8, width), np.uint8)
        label[:, edge:] = 1
        image = np.repeat(label[..., None] * 200, 3, axis=2)
        size = (8, round(width * factor))
        row = resize_image(image, size, resampling)[4, :, 0].astype(float)
        first = int(np.argmax(row >= 100))
        crossing = first if row[first] == 100 else first - (row[first] - 100) / (row[first] - row[first - 1])
        change = int(np.argmax(resize_label(label, size)[4])) - 0.5
        # 0.01: the image's grey values are rounded.
        assert abs(crossing - change) <= 0.5 + 0.01, edge
        # and both lie where the edge should be
        assert abs(change - (edge * size[1] / width - 0.5)) <= 0.5 + 1e-9, edge


def test_alignment_has_no_bias():
    # Averaged over many edges the label's edge is where it should be; taking the upper left pixel of each area, as
    # OpenCV's plain nearest mode does, is off by a quarter pixel or more here.
    def bias(resize):
        errors = []
        for edge in range(20, 180):
            label = np.zeros((1, 200), np.uint8)
            label[:, edge:] = 1
            errors.append(int(np.argmax(resize(label)[0])) - edge * 140 / 200)
        return abs(np.mean(errors))

    # 0.05 comes from the edges that fall on the middle of a pixel, all rounded to one side.
    assert bias(lambda label: resize_label(label, (1, 140))) < 0.06
    assert bias(lambda label: cv2.resize(label, (140, 1), interpolation=cv2.INTER_NEAREST)) > 0.25


def test_resize_refuses():
    image, label = sample(4, 4)
    with pytest.raises(ConfigError, match=r"^size must be two integers \(height, width\), got 8$"):
        resize_image(image, 8)
    with pytest.raises(ConfigError, match=r"^size must be at least 1 x 1 pixel, got 0 x 4$"):
        resize_label(label, (0, 4))
    with pytest.raises(DataError, match=r"^label must be a uint8 array of shape \(H, W\), got int64 \(4, 4\)$"):
        resize_label(label.astype(np.int64), (2, 2))


# --- TrainTransform


def test_off_means_unchanged_and_a_copy():
    image, label = sample()
    new_image, new_label = TrainTransform(crop=(64, 160), scale=(1, 1), flip=False)(image, label, draw())
    np.testing.assert_array_equal(new_image, image)
    np.testing.assert_array_equal(new_label, label)
    assert not np.shares_memory(new_image, image)
    assert not np.shares_memory(new_label, label)


@pytest.mark.parametrize("crop", [(64, 160), (32, 40), (100, 200), (32, 200), (100, 40), (1, 1)])
def test_shapes_types_and_inputs_untouched(crop):
    image, label = sample()
    before = image.copy(), label.copy()
    transform = TrainTransform(crop=crop, brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1, blur=0.5)
    for index in range(20):
        new_image, new_label = transform(image, label, draw(index))
        assert new_image.shape == (*crop, 3)
        assert new_image.dtype == np.uint8
        assert new_image.flags.c_contiguous
        assert new_label.shape == crop
        assert new_label.dtype == np.uint8
        assert new_label.flags.c_contiguous
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(label, before[1])


@pytest.mark.parametrize("crop", [(32, 40), (100, 200), (32, 200)])
def test_crop_pad_and_flip_move_image_and_label_together(crop):
    image, label = coded(64, 160)
    transform = TrainTransform(crop=crop, scale=(1, 1))
    for index in range(20):
        new_image, new_label = transform(image, label, draw(index))
        inside = new_label != 255
        np.testing.assert_array_equal(new_image[inside][:, 0], new_label[inside] * 10 + 5)
        assert (new_image[~inside] == FILL).all()
        assert np.count_nonzero(inside) == min(crop[0], 64) * min(crop[1], 160)


def test_scaled_image_and_label_show_the_same_scene():
    # Blocks of 16 pixels, so that most pixels are far from an edge and keep their colour through interpolation.
    blocks = np.random.default_rng(2).integers(0, 19, (6, 12), dtype=np.uint8)
    label = np.kron(blocks, np.ones((16, 16), np.uint8))
    image = np.repeat(label[..., None] * 10 + 5, 3, axis=2).astype(np.uint8)
    transform = TrainTransform(crop=(90, 180))
    shapes = set()
    for index in range(30):
        new_image, new_label = transform(image, label, draw(index))
        inside = new_label != 255
        agree = np.abs(new_image[..., 0].astype(int) - (new_label.astype(int) * 10 + 5)) <= 5
        # Away from the edges between blocks (at most 4 of 11 pixels at the smallest scale) everything agrees.
        assert agree[inside].mean() > 0.6
        core = cv2.erode((inside & agree).astype(np.uint8), np.ones((3, 3)))
        assert core.any()
        shapes.add(int(inside.sum()))
    assert len(shapes) > 5


def test_scale_is_uniform_over_its_range():
    label = np.zeros((100, 100), np.uint8)
    image = np.zeros((100, 100, 3), np.uint8)
    transform = TrainTransform(crop=(140, 140), scale=(0.7, 1.3), flip=False)
    # The scaled image fits into the crop, so the number of labelled rows tells the factor.
    rows = [(transform(image, label, draw(i))[1] == 0).any(axis=1).sum() for i in range(400)]
    assert min(rows) >= 70
    assert max(rows) <= 130
    # 400 draws of a uniform law over 60 rows: standard error of the mean 0.87; quarters hold 100 +- 8.7 each.
    assert abs(np.mean(rows) - 100) < 4
    assert all(60 < n < 140 for n in np.histogram(rows, bins=4, range=(70, 130))[0])


def test_crop_reaches_every_place():
    image, label = sample(6, 7)
    label[:] = np.arange(42).reshape(6, 7)
    transform = TrainTransform(crop=(4, 5), scale=(1, 1), flip=False)
    corners = {int(transform(image, label, draw(i))[1][0, 0]) for i in range(200)}
    assert corners == {y * 7 + x for y in range(3) for x in range(3)}


def test_flip_happens_half_of_the_time_and_is_exact():
    image, label = sample(8, 8)
    transform = TrainTransform(crop=(8, 8), scale=(1, 1))
    flipped = 0
    for index in range(400):
        new_image, new_label = transform(image, label, draw(index))
        if not np.array_equal(new_label, label):
            flipped += 1
            np.testing.assert_array_equal(new_label, label[:, ::-1])
            np.testing.assert_array_equal(new_image, image[:, ::-1])
    # binomial, standard deviation 10
    assert 150 < flipped < 250


def test_same_generator_same_result_and_later_steps_do_not_move_earlier_ones():
    image, label = sample()
    plain = TrainTransform(crop=(40, 60))
    strong = TrainTransform(crop=(40, 60), brightness=0.5, contrast=0.5, saturation=0.5, hue=0.2, blur=1.0)
    for index in range(10):
        once, again = plain(image, label, draw(index)), plain(image, label, draw(index))
        np.testing.assert_array_equal(once[0], again[0])
        np.testing.assert_array_equal(once[1], again[1])
        coloured = strong(image, label, draw(index))
        np.testing.assert_array_equal(coloured[1], once[1])
        assert (coloured[0] != once[0]).any()


def recoloured(image, index=0, **strengths):
    transform = TrainTransform(crop=image.shape[:2], scale=(1, 1), flip=False, **strengths)
    return transform(image, np.zeros(image.shape[:2], np.uint8), draw(index))[0]


def luminance(image):
    return image.astype(float) @ (0.299, 0.587, 0.114)


def test_brightness_multiplies():
    image = np.full((4, 4, 3), (40, 80, 120), np.uint8)
    factors = []
    for index in range(50):
        ratio = recoloured(image, index, brightness=0.4)[0, 0] / (40, 80, 120)
        # half a grey level of rounding on 40
        assert np.ptp(ratio) <= 1 / 40
        factors.append(ratio.mean())
    assert 0.58 < min(factors) < 0.75
    assert 1.25 < max(factors) < 1.42


def test_contrast_moves_about_the_mean_luminance():
    image = np.full((4, 4, 3), 100, np.uint8)
    image[:2] = 60
    for index in range(20):
        out = recoloured(image, index, contrast=0.5).astype(float)
        assert abs(out.mean() - 80) <= 0.5
        assert 20 - 1 <= out[3, 0, 0] - out[0, 0, 0] <= 60 + 1


def test_saturation_keeps_luminance_and_hue():
    image = np.full((4, 4, 3), (90, 120, 150), np.uint8)
    spans = []
    for index in range(50):
        out = recoloured(image, index, saturation=1.0)
        # rounding to whole grey levels, and three-digit YIQ coefficients
        assert abs(luminance(out)[0, 0] - luminance(image)[0, 0]) <= 1
        spans.append(int(np.ptp(out[0, 0])))
    assert min(spans) < 15
    assert max(spans) > 100


def test_hue_keeps_luminance_and_leaves_grey_grey():
    grey = np.full((4, 4, 3), 77, np.uint8)
    image = np.full((4, 4, 3), (150, 110, 110), np.uint8)
    leading = set()
    for index in range(50):
        assert np.abs(recoloured(grey, index, hue=0.5).astype(int) - 77).max() <= 1
        out = recoloured(image, index, hue=0.5)
        assert abs(luminance(out)[0, 0] - luminance(image)[0, 0]) <= 1
        leading.add(int(out[0, 0].argmax()))
    assert leading == {0, 1, 2}


def test_blur_has_its_probability_and_keeps_labels():
    image, label = sample(32, 32)
    transform = TrainTransform(crop=(32, 32), scale=(1, 1), flip=False, blur=0.3)
    changed = 0
    for index in range(300):
        new_image, new_label = transform(image, label, draw(index))
        np.testing.assert_array_equal(new_label, label)
        if not np.array_equal(new_image, image):
            changed += 1
            assert new_image.std() < image.std()
    # binomial, mean 90, standard deviation 8
    assert 60 < changed < 120


def test_default_has_no_photometric_change():
    transform = TrainTransform(crop=(8, 8))
    settings = (transform.brightness, transform.contrast, transform.saturation, transform.hue, transform.blur)
    assert settings == (0, 0, 0, 0, 0)
    assert transform.scale == (0.7, 1.3)
    assert transform.flip
    assert transform.mining is None


def test_result_does_not_depend_on_opencv_threads():
    image, label = sample(300, 400)
    transform = TrainTransform(crop=(256, 256), brightness=0.2, saturation=0.2, hue=0.1, blur=1.0)
    before = cv2.getNumThreads()
    try:
        results = []
        for threads in (1, 4):
            cv2.setNumThreads(threads)
            results.append(transform(image, label, draw()))
    finally:
        cv2.setNumThreads(before)
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])


def test_one_small_sample_takes_less_than_a_millisecond():
    image, label = sample()
    transform, rng = TrainTransform(crop=(64, 160)), draw()
    times = []
    for _ in range(100):
        start = time.perf_counter()
        transform(image, label, rng)
        times.append(time.perf_counter() - start)
    # About 0.1 ms; the fastest tenth is looked at so that a busy machine does not fail the test.
    assert sorted(times)[10] < 1e-3


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"crop": 64}, r"^crop must be two integers \(height, width\), got 64$"),
        ({"crop": (64.0, 160)}, r"^crop must be two integers \(height, width\), got \(64\.0, 160\)$"),
        ({"crop": (0, 160)}, r"^crop must be at least 1 x 1 pixel, got 0 x 160$"),
        ({"scale": (1.3, 0.7)}, r"^scale must be two numbers with 0 < low <= high, got \(1\.3, 0\.7\)$"),
        ({"scale": (0, 1)}, r"^scale must be two numbers with 0 < low <= high, got \(0, 1\)$"),
        ({"scale": (1, float("nan"))}, r"^scale must be two numbers with 0 < low <= high, got \(1, nan\)$"),
        ({"scale": 1.0}, r"^scale must be two numbers with 0 < low <= high, got 1\.0$"),
        ({"flip": "yes"}, r"^flip must be true or false, got 'yes'$"),
        ({"brightness": -0.1}, r"^brightness must be a number in \[0, 1\], got -0\.1$"),
        ({"contrast": 1.5}, r"^contrast must be a number in \[0, 1\], got 1\.5$"),
        ({"saturation": "0.2"}, r"^saturation must be a number in \[0, 1\], got '0\.2'$"),
        ({"hue": 0.6}, r"^hue must be a number in \[0, 0\.5\], got 0\.6$"),
        ({"blur": float("nan")}, r"^blur must be a number in \[0, 1\], got nan$"),
        ({"fill": (0, 0, 256)}, r"^fill must be three integers in \[0, 255\], got \(0, 0, 256\)$"),
    ],
)
def test_refused_arguments(arguments, sentence):
    with pytest.raises(ConfigError, match=sentence):
        TrainTransform(**{"crop": (8, 8), **arguments})


def test_refused_samples():
    transform = TrainTransform(crop=(8, 8))
    image, label = sample(8, 8)
    with pytest.raises(DataError, match=r"^image and label must have the same size, got 8 x 8 and 8 x 6$"):
        transform(image, label[:, :6], draw())
    with pytest.raises(DataError, match=r"^image must be a uint8 array of shape \(H, W, 3\), got uint8 \(8, 8, 4\)$"):
        transform(np.zeros((8, 8, 4), np.uint8), label, draw())
    with pytest.raises(DataError, match=r"^label must be a uint8 array of shape \(H, W\), got int32 \(8, 8\)$"):
        transform(image, label.astype(np.int32), draw())
    with pytest.raises(DataError, match=r"^image must hold at least one pixel, got 0 x 8$"):
        transform(np.zeros((0, 8, 3), np.uint8), np.zeros((0, 8), np.uint8), draw())


# --- labels at the network's stride, sizes


def test_labels_at_stride_8_are_those_of_the_cells_centres():
    label = np.arange(2 * 504 * 504).reshape(2, 504, 504)
    sampled = label_at_stride(label, 8)
    assert sampled.shape == (2, 63, 63)
    np.testing.assert_array_equal(sampled, label[:, 4::8, 4::8])


@pytest.mark.parametrize(("size", "rows"), [(16, [4, 12]), (17, [4, 12, 16]), (20, [4, 12, 19]), (21, [4, 12, 20])])
def test_a_last_cell_without_its_centre_takes_the_border(size, rows):
    # ResNet-38 gives ceil(size / 8) logits: there must be as many labels.
    label = np.arange(size, dtype=np.uint8)[:, None] * np.ones(9, np.uint8)
    sampled = label_at_stride(label[None], 8)
    assert sampled.dtype == np.uint8
    assert sampled.shape == (1, len(rows), 2)
    np.testing.assert_array_equal(sampled[0, :, 0], rows)


def test_stride_1_changes_nothing_and_a_single_map_needs_no_batch():
    _, label = sample()
    np.testing.assert_array_equal(label_at_stride(label, 1), label)
    np.testing.assert_array_equal(label_at_stride(label, 2), label[1::2, 1::2])


def test_label_at_stride_refuses():
    for stride in (0, 2.0, True):
        with pytest.raises(ConfigError, match=rf"^stride must be an integer of at least 1, got {stride}$"):
            label_at_stride(np.zeros((1, 8, 8)), stride)
    with pytest.raises(DataError, match=r"^label must have the shape \(B, H, W\), got \(8,\)$"):
        label_at_stride(np.zeros(8), 2)


@pytest.mark.parametrize(("size", "long_side", "resized"), [
    ((1024, 2048), 1850, (925, 1850)),
    ((1024, 2048), 2048, (1024, 2048)),
    ((1052, 1914), 1850, (1017, 1850)),
    ((1280, 760), 1850, (1850, 1098)),
])  # fmt: skip
def test_scale_for_long_side(size, long_side, resized):
    scale = scale_for_long_side(*size, long_side)
    assert tuple(round(length * scale) for length in size) == resized


def test_scale_for_long_side_meets_its_length_for_every_image():
    for length in range(1, 3000):
        assert round(length * scale_for_long_side(1, length, 1850)) == 1850


def test_scale_for_long_side_refuses():
    with pytest.raises(ConfigError, match=r"^long_side must be above 0 pixels, got 0$"):
        scale_for_long_side(10, 20, 0)
    with pytest.raises(ConfigError, match=r"^height must be above 0 pixels, got -1$"):
        scale_for_long_side(-1, 20, 10)


@pytest.mark.parametrize(("size", "part"), [((101, 1001), 8), ((526, 957), 4), ((505, 1001), 2), ((64, 128), 8)])
def test_what_a_draft_shows_lies_where_the_image_has_it(tmp_path, size, part):
    height, width = size
    for step in (0.3, 0.95):  # an edge is where half of the grey is reached
        edge = round(step * width)
        image = np.full((height, width, 3), 40, np.uint8)
        image[:, edge:] = 200
        Image.fromarray(image).save(tmp_path / "x.jpg", quality=95, subsampling=0)
        wanted = (height // part, width // part)
        draft = read_draft(tmp_path / "x.jpg", lambda *whole, wanted=wanted: wanted)
        assert draft.part == part
        found = resize_image(draft, wanted, "draft").astype(float)[wanted[0] // 2, :, 0]
        place = np.interp(120, np.maximum.accumulate(found), np.arange(wanted[1])) + 0.5
        assert abs(place - edge * wanted[1] / width) < 0.3  # pixels of the result; the kernels' own error


def test_every_list_of_resamplings_is_the_same():
    (option,) = [one for one in evaluate.params if one.name == "resampling"]
    assert tuple(option.type.choices) == RESAMPLINGS
    assert get_args(get_type_hints(Experiment)["resampling"]) == RESAMPLINGS
