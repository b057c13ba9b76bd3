from __future__ import annotations

import json

import numpy as np
import pytest

from cbst_mx.errors import CBSTError, DataError
from cbst_mx.evaluation import confusion as confusion_module
from cbst_mx.evaluation.confusion import (
    class_accuracy,
    confusion_matrix,
    iou_per_class,
    mean_iou,
    pixel_accuracy,
    summary,
)
from cbst_mx.label_space import CITYSCAPES_19

# Worked by hand: 3 classes, 10 labelled pixels of 12.
TRUTH = np.array([[0, 0, 0, 0], [1, 1, 1, 255], [2, 2, 255, 2]], np.uint8)
PREDICTION = np.array([[0, 0, 1, 2], [1, 1, 0, 0], [2, 1, 255, 2]], np.uint8)
MATRIX = [[2, 1, 1], [1, 2, 0], [0, 1, 2]]


def pictures(count=5, num_classes=19, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        truth = rng.integers(0, num_classes, (24, 36), dtype=np.uint8)
        guess = rng.integers(0, num_classes, (24, 36), dtype=np.uint8)
        prediction = np.where(rng.random(truth.shape) < 0.5, truth, guess)
        truth[rng.random(truth.shape) < 0.2] = 255
        yield truth, prediction


def test_worked_by_hand():
    confusion = confusion_matrix(TRUTH, PREDICTION, 3)
    assert confusion.dtype == np.int64
    np.testing.assert_array_equal(confusion, MATRIX)
    # class 0: 2 hits, truth 4, predicted 3; class 1: 2, 3, 4; class 2: 2, 3, 3
    np.testing.assert_allclose(iou_per_class(confusion), [2 / 5, 2 / 5, 2 / 4], rtol=1e-15)
    assert mean_iou(confusion) == pytest.approx(1.3 / 3, rel=1e-15)
    np.testing.assert_allclose(class_accuracy(confusion), [2 / 4, 2 / 3, 2 / 3], rtol=1e-15)
    assert pixel_accuracy(confusion) == 0.6


def test_against_sets_of_pixels():
    truth, prediction = next(pictures())
    iou = iou_per_class(confusion_matrix(truth, prediction, 19))
    valid = truth != 255
    for c in range(19):
        true, predicted = (truth == c) & valid, (prediction == c) & valid
        assert iou[c] == np.sum(true & predicted) / np.sum(true | predicted)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # mxnet's own, on the newer scipy versions
def test_against_gluoncv():
    pytest.importorskip("mxnet")
    metrics = pytest.importorskip("gluoncv.utils.metrics.segmentation")
    import mxnet as mx

    metric = metrics.SegmentationMetric(19)
    total = np.zeros((19, 19), np.int64)
    for truth, prediction in pictures():
        total += confusion_matrix(truth, prediction, 19)
        # That metric ignores -1, not 255, and takes scores per class instead of classes.
        scores = np.eye(19, dtype=np.float32)[prediction].transpose(2, 0, 1)[None]
        label = np.where(truth == 255, -1, truth.astype(np.int32))[None]
        metric.update([mx.nd.array(label, dtype="int32")], [mx.nd.array(scores)])
    accuracy, miou = metric.get()
    # It adds 2.2e-16 to every denominator: no more than float64 rounding.
    assert pixel_accuracy(total) == pytest.approx(accuracy, abs=1e-12)
    assert mean_iou(total) == pytest.approx(miou, abs=1e-12)
    np.testing.assert_array_equal(metric.total_inter, np.diag(total))
    np.testing.assert_array_equal(metric.total_union, total.sum(0) + total.sum(1) - np.diag(total))


def test_matrices_of_images_add_up():
    parts = [confusion_matrix(truth, prediction, 19) for truth, prediction in pictures()]
    truths, predictions = zip(*pictures())
    np.testing.assert_array_equal(sum(parts), confusion_matrix(np.stack(truths), np.stack(predictions), 19))


def test_order_of_pixels_and_names_of_classes_do_not_matter():
    truth, prediction = next(pictures())
    confusion = confusion_matrix(truth, prediction, 19)
    rng = np.random.default_rng(3)
    order = rng.permutation(truth.size)
    shuffled = confusion_matrix(truth.ravel()[order], prediction.ravel()[order], 19)
    np.testing.assert_array_equal(shuffled, confusion)
    renamed = np.append(rng.permutation(19), np.full(237, 255)).astype(np.uint8)
    other = confusion_matrix(renamed[truth], renamed[prediction], 19)
    np.testing.assert_array_equal(other[np.ix_(renamed[:19], renamed[:19])], confusion)


def test_perfect_and_all_wrong():
    truth = np.arange(6, dtype=np.uint8) % 3
    perfect = confusion_matrix(truth, truth, 3)
    assert mean_iou(perfect) == 1
    assert pixel_accuracy(perfect) == 1
    wrong = confusion_matrix(truth, (truth + 1) % 3, 3)
    assert mean_iou(wrong) == 0
    assert pixel_accuracy(wrong) == 0


def test_prediction_on_pixels_without_truth_is_not_looked_at():
    truth = np.array([0, 255, 255], np.uint8)
    for anything in (0, 1, 77, 255):
        prediction = np.array([0, anything, 1], np.uint8)
        np.testing.assert_array_equal(confusion_matrix(truth, prediction, 2), [[1, 0], [0, 0]])


def test_all_ignored_gives_zeros():
    ignored = np.full((3, 3), 255, np.uint8)
    confusion = confusion_matrix(ignored, np.zeros((3, 3), np.uint8), 4)
    np.testing.assert_array_equal(confusion, np.zeros((4, 4)))
    assert np.isnan(iou_per_class(confusion)).all()
    with pytest.raises(
        DataError, match=r"^mean IoU needs at least one class in the truth or the prediction, got none$"
    ):
        mean_iou(confusion)
    with pytest.raises(DataError, match=r"^pixel accuracy needs at least one labelled pixel, got none$"):
        pixel_accuracy(confusion)


def test_absent_classes():
    # Class 1 is predicted but never true, class 2 is true but never predicted, class 3 is neither.
    confusion = confusion_matrix(np.array([0, 0, 0, 2]), np.array([0, 0, 1, 0]), 4)
    np.testing.assert_array_equal(iou_per_class(confusion), [0.5, 0, 0, np.nan])
    np.testing.assert_array_equal(class_accuracy(confusion), [2 / 3, np.nan, 0, np.nan])
    # 0.5, 0 and 0 count, class 3 does not
    assert mean_iou(confusion) == pytest.approx(0.5 / 3, rel=1e-15)


def test_counts_beyond_32_bits():
    confusion = np.array([[3 * 2**40, 2**40], [0, 2**40]])
    np.testing.assert_array_equal(iou_per_class(confusion), [0.75, 0.5])


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64, np.uint16])
def test_integer_types(dtype):
    np.testing.assert_array_equal(confusion_matrix(TRUTH.astype(dtype), PREDICTION.astype(dtype), 3), MATRIX)


@pytest.mark.parametrize(
    ("truth", "prediction", "num_classes", "sentence"),
    [
        ([0, 3], [0, 0], 3, r"^truth must be from 0 to 2 or 255, got 3$"),
        ([0, -1], [0, 0], 3, r"^truth must be from 0 to 2 or 255, got -1$"),
        ([0, 1], [0, 255], 3, r"^prediction must be from 0 to 2 where truth is valid, got 255$"),
        ([0, 1], [-1, 0], 3, r"^prediction must be from 0 to 2 where truth is valid, got -1$"),
        ([0, 1], [0], 3, r"^truth and prediction must have one shape, got \(2,\) and \(1,\)$"),
        ([0.0, 1.0], [0, 1], 3, r"^truth must hold integer trainIds, got float64$"),
        ([0, 1], [False, True], 3, r"^prediction must hold integer trainIds, got bool$"),
        ([0], [0], 0, r"^num_classes must be an integer from 1 to 255, got 0$"),
        ([0], [0], 256, r"^num_classes must be an integer from 1 to 255, got 256$"),
        ([0], [0], 2.0, r"^num_classes must be an integer from 1 to 255, got 2\.0$"),
    ],
)
def test_refused_pictures(truth, prediction, num_classes, sentence):
    with pytest.raises(CBSTError, match=sentence):
        confusion_matrix(np.array(truth), np.array(prediction), num_classes)


def test_refused_matrices():
    with pytest.raises(DataError, match=r"^confusion must be a square matrix of counts, got int64 of shape \(2, 3\)$"):
        iou_per_class(np.zeros((2, 3), np.int64))
    with pytest.raises(
        DataError, match=r"^confusion must be a square matrix of counts, got float64 of shape \(2, 2\)$"
    ):
        pixel_accuracy(np.eye(2))
    with pytest.raises(DataError, match=r"of shape \(1, 1\) with negative entries$"):
        class_accuracy(np.array([[-1]]))


def test_summary_survives_json():
    truth = np.array([0, 0, 10, 10, 255])
    confusion = confusion_matrix(truth, np.array([0, 10, 10, 10, 3]), 19)
    result = summary(confusion, CITYSCAPES_19)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert list(result["iou"]) == list(CITYSCAPES_19.names)
    assert result["iou"]["road"] == 0.5
    assert result["iou"]["sky"] == pytest.approx(2 / 3)
    assert result["iou"]["train"] is None
    assert result["miou"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert (result["pixel_accuracy"], result["classes_counted"], result["pixels"]) == (0.75, 2, 4)


def test_summary_refuses():
    with pytest.raises(DataError, match=r"^confusion must have the 19 classes of cityscapes-19, got 3$"):
        summary(np.array(MATRIX), CITYSCAPES_19)
    with pytest.raises(DataError, match=r"^mean IoU needs at least one class"):
        summary(np.zeros((19, 19), np.int64), CITYSCAPES_19)


@pytest.mark.parametrize("classes", [1, 2, 19, 254, 255])
@pytest.mark.parametrize("shape", [(0,), (5, 7), (1, 2100, 2000)])  # the last one in two parts
def test_bytes_are_counted_as_wider_integers_are(classes, shape):
    rng = np.random.default_rng(classes)
    truth, prediction = rng.integers(0, classes, (2, *shape), dtype=np.uint8)
    truth[rng.random(shape) < 0.2] = 255
    prediction[(truth == 255) & (rng.random(shape) < 0.5)] = 255
    confusion = confusion_matrix(truth[..., ::-1], prediction[..., ::-1], classes)
    np.testing.assert_array_equal(confusion, confusion_matrix(truth.astype(np.int32), prediction, classes))
    assert confusion.dtype == np.int64
    assert confusion.flags.c_contiguous
    assert confusion.sum() == np.count_nonzero(truth != 255)


def runs(rng, pixels, length, classes):
    """Return classes in runs of about a length, some of them without truth."""
    values = rng.integers(0, classes, pixels // length + 1, dtype=np.uint8)
    values[rng.random(values.size) < 0.1] = 255
    return np.repeat(values, rng.integers(1, 2 * length, values.size))[:pixels]


@pytest.mark.parametrize("length", [1, 2, 7, 40, 1000])
@pytest.mark.parametrize("pixels", [1, 7, 8, 9, 63, 4099, 70001, (1 << 22) + 21])
def test_runs_are_counted_as_pixels_are(length, pixels):
    rng = np.random.default_rng([length, pixels])
    truth = np.resize(runs(rng, pixels, length, 19), pixels)
    prediction = np.where(truth == 255, 3, truth)
    moved = np.where(rng.random(pixels) < 0.3 / length, rng.integers(0, 19, pixels, dtype=np.uint8), prediction)
    for guess in (prediction, moved, np.roll(prediction, 3), np.resize(runs(rng, pixels, 50, 19), pixels) % 19):
        expected = np.bincount(truth.astype(np.int64) * 19 + guess, minlength=256 * 19).reshape(256, 19)[:19]
        np.testing.assert_array_equal(confusion_matrix(truth, guess.astype(np.uint8), 19), expected)


def test_arrays_are_counted_wherever_they_lie_in_memory():
    rng = np.random.default_rng(5)
    truth = np.resize(runs(rng, 240 * 320, 30, 19), (240, 320))
    prediction = np.roll(np.where(truth == 255, 0, truth), 5, axis=1)
    for view in (np.transpose, lambda x: x[::-1, ::-1], lambda x: x[3:, 1::2], lambda x: x.reshape(-1)[5:]):
        one, other = view(truth), view(prediction)
        expected = confusion_matrix(one.astype(np.int32), other.astype(np.int32), 19)
        np.testing.assert_array_equal(confusion_matrix(one, other, 19), expected)
    truth.flags.writeable = prediction.flags.writeable = False
    assert confusion_matrix(truth, prediction, 19).sum() == np.count_nonzero(truth != 255)


@pytest.mark.parametrize(("mixed", "pixels"), [(0.0, 8), (1.0, 1 << 20)])
def test_pixels_are_counted_one_by_one_where_words_are_mixed_alone(monkeypatch, mixed, pixels):
    counted = []
    by_pixel = confusion_module._by_pixel
    monkeypatch.setattr(confusion_module, "_by_pixel", lambda a, b, n: counted.append(a.size) or by_pixel(a, b, n))
    rng = np.random.default_rng(0)
    truth = np.zeros(1 << 20, np.uint8)
    if mixed:
        truth = rng.integers(0, 19, truth.size, dtype=np.uint8)
    assert confusion_matrix(truth, truth, 19).sum() == truth.size
    assert sum(counted) == pixels


@pytest.mark.parametrize(
    ("place", "value", "name"),
    [((0, 0), 3, "truth"), ((1, 2), 254, "truth"), ((2, 0), 7, "prediction"), ((0, 1), 255, "prediction")],
)
def test_bytes_that_are_no_class_are_named_as_others_are(place, value, name):
    truth, prediction = TRUTH.copy(), PREDICTION.copy()
    (truth if name == "truth" else prediction)[place] = value
    messages = []
    for dtype in (np.uint8, np.int64):
        with pytest.raises(DataError, match=f"{name} must be from 0 to 2.*got {value}") as error:
            confusion_matrix(truth.astype(dtype), prediction.astype(dtype), 3)
        messages.append(str(error.value))
    assert messages[0] == messages[1]
