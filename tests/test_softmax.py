"""Softmax and its loss on the processor: the numbers of MXNet's own operators but for rounding."""

from __future__ import annotations

import numpy as np
import pytest

from cbst_mx.training.losses import SegmentationLoss
from symbols import softmax as softmaxes
from symbols.backend import autograd, mx
from symbols.bilinear import bilinear_kernel
from symbols.softmax import CrossEntropy, is_fast, softmax, upsampled_softmax

SHAPE = (3, 5, 12, 20)
NEAR = {"rtol": 3e-6, "atol": 1e-9}  # NumPy's exponentials are right to 3 units in the last place, 3e-7
WRONG = {"finite": None, "nan": np.nan, "infinite": np.inf}


def logits_of(seed, wrong=None):
    values = np.random.default_rng(seed).normal(0, 6, SHAPE).astype(np.float32)
    values[:, 2, 3] = 90  # saturated, and equal ones
    values[0, :, 5, 5] = 1
    if wrong is not None:
        values[1, 3, 7, 11] = wrong
    return values


@pytest.mark.parametrize("wrong", WRONG.values(), ids=list(WRONG))
def test_softmax_is_mxnets(wrong):
    logits = mx.nd.array(logits_of(0, wrong))
    assert is_fast(logits)
    assert not is_fast(logits.astype("float64"))
    np.testing.assert_allclose(softmax(logits), mx.nd.softmax(logits, axis=1).asnumpy(), **NEAR)


@pytest.mark.parametrize("wrong", WRONG.values(), ids=list(WRONG))
@pytest.mark.parametrize("size", [(96, 160), (91, 153), (8, 8), (1, 1)])
def test_softmax_of_upsampled_scores_is_that_of_the_transposed_convolution(size, wrong, monkeypatch):
    monkeypatch.setattr(softmaxes, "_PIXELS", 2000)  # several parts
    shape = (3, 5, *(-(-side // 8) for side in size))
    looks = np.random.default_rng(5).normal(0, 6, (2, *shape)).astype(np.float32)
    if wrong is not None:
        looks[0, 1, 3, -1, -1] = wrong
    kernel = mx.nd.array(bilinear_kernel(5, 8))
    each = []
    for scores in looks:
        large = mx.nd.Deconvolution(
            mx.nd.array(scores), kernel, kernel=(16, 16), stride=(8, 8), pad=(4, 4), num_filter=5, no_bias=True
        )
        each.append(mx.nd.softmax(large[:, :, : size[0], : size[1]], axis=1).asnumpy())
    near = {"rtol": 1e-5, "atol": 1e-8}  # the logits of up to 25 are interpolated in another order
    alone = upsampled_softmax([mx.nd.array(looks[0])], 8, size)
    both = upsampled_softmax([mx.nd.array(scores) for scores in looks], 8, size)
    if wrong is not None:  # it shows, in its own image
        assert [np.isfinite(image).all() for image in alone] == [True, False, True]
        np.testing.assert_allclose(alone[::2], each[0][::2], **near)
        return
    assert alone.flags.c_contiguous
    assert alone.dtype == np.float32
    np.testing.assert_allclose(alone, each[0], **near)
    np.testing.assert_allclose(both, (each[0] + each[1][..., ::-1]) / 2, **near)
    for index in range(3):  # the same bits, whatever passes together
        one = upsampled_softmax([mx.nd.array(scores[index : index + 1]) for scores in looks], 8, size)
        np.testing.assert_array_equal(one[0], both[index])


@pytest.mark.parametrize("wrong", WRONG.values(), ids=list(WRONG))
@pytest.mark.parametrize("ignored", [0.0, 0.1, 0.9, 1.0])
def test_loss_and_gradient_are_mxnets(ignored, wrong):
    rng = np.random.default_rng(1)
    labels = rng.integers(0, SHAPE[1], (SHAPE[0], *SHAPE[2:])).astype(np.float32)
    labels[rng.random(labels.shape) < ignored] = 255
    valid, count = labels != 255, 700
    plain = SegmentationLoss()

    def mine(logits):
        return CrossEntropy((labels * valid).astype(np.intp), valid, count)(logits)

    def theirs(logits):
        return plain(logits, mx.nd.array(labels), mx.nd.array([count]))

    found = []
    for loss_of in (mine, theirs):
        for context in (mx.cpu(0), mx.cpu(1)) if loss_of is mine else (mx.cpu(0),):
            logits = mx.nd.array(logits_of(2, wrong), ctx=context)
            logits.attach_grad()
            with autograd.record():
                loss = loss_of(logits)
            loss.backward()
            assert logits.grad.context == context
            found.append((loss.asnumpy(), logits.grad.asnumpy()))
    for loss, gradient in found[:2]:
        np.testing.assert_allclose(loss, found[2][0], rtol=1e-6)
        np.testing.assert_array_equal(np.isfinite(gradient).all(), np.isfinite(found[2][1]).all())
        if wrong is None:
            np.testing.assert_array_equal(gradient == 0, found[2][1] == 0)
            # 1 - p of a saturated pixel has the digits that p leaves it
            np.testing.assert_allclose(gradient, found[2][1], rtol=3e-6, atol=3e-7 / count)


def test_the_gradient_is_scaled_by_what_follows():
    labels = np.random.default_rng(3).integers(0, SHAPE[1], (SHAPE[0], *SHAPE[2:]))
    gradients = []
    for factor in (1, 4):
        logits = mx.nd.array(logits_of(4))
        logits.attach_grad()
        with autograd.record():
            loss = CrossEntropy(labels, np.ones(labels.shape, bool), 9)(logits) * factor
        loss.backward()
        gradients.append(logits.grad.asnumpy())
    np.testing.assert_allclose(gradients[1], 4 * gradients[0], atol=1e-40)


def gradient_of(values, labels):
    logits = mx.nd.array(values)
    logits.attach_grad()
    with autograd.record():
        loss = CrossEntropy(labels * (labels != 255), labels != 255, 2)(logits)
    loss.backward()
    return loss.asscalar(), logits.grad.asnumpy()


@pytest.mark.parametrize("at_once", [1, 2, 7])
def test_how_many_pixels_are_looked_at_together_changes_no_bit(at_once, monkeypatch):
    # NumPy adds up in pairs along an axis whose numbers lie side by side
    rng = np.random.default_rng(5)
    values = rng.normal(0, 4, (2, 19, 3, 4)).astype(np.float32)
    labels = rng.integers(0, 19, (2, 3, 4))
    labels[0] = 255
    labels[0, 1] = 7
    expected = softmax(mx.nd.array(values)), *gradient_of(values, labels)
    monkeypatch.setattr("symbols.softmax._PIXELS", at_once)
    for one, other in zip((softmax(mx.nd.array(values)), *gradient_of(values, labels)), expected):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("at_once", [1, 150, 1 << 14])  # pixels: a row, three, all
@pytest.mark.parametrize(("factor", "size"), [(8, (40, 56)), (8, (37, 45)), (8, (3, 9)), (2, (12, 20)), (4, (13, 6))])
def test_a_loss_does_the_upsampling_that_a_network_left_to_it(factor, size, at_once, monkeypatch):
    monkeypatch.setattr("symbols.softmax._PIXELS", at_once)
    rng = np.random.default_rng(6)
    classes, small = 5, tuple(-(-side // factor) for side in size)
    values = rng.normal(0, 6, (2, classes, *small)).astype(np.float32)
    labels = rng.integers(0, classes, (2, *size))
    labels[0, : size[0] // 2] = 255
    valid, count = labels != 255, 123
    weight = mx.nd.array(bilinear_kernel(classes, factor))
    layer = {"kernel": (2 * factor,) * 2, "stride": (factor,) * 2, "pad": (factor // 2,) * 2, "no_bias": True}

    def network(scores):
        logits = mx.nd.Deconvolution(scores, weight, num_filter=classes, **layer)
        return mx.nd.slice(logits, begin=(0, 0, 0, 0), end=(2, classes, *size))

    found = []
    for context, left in ((mx.cpu(0), factor), (mx.cpu(1), factor), (mx.cpu(0), 1)):
        scores = mx.nd.array(values, ctx=context)
        scores.attach_grad()
        with autograd.record():
            logits = scores if left > 1 else network(scores)
            loss = CrossEntropy(labels * valid, valid, count, left)(logits)
        loss.backward()
        found.append((loss.asscalar(), scores.grad.asnumpy()))
    for loss, gradient in found[:2]:
        np.testing.assert_allclose(loss, found[2][0], rtol=1e-6)
        # sums of up to (2 * factor) ** 2 numbers, each at most 1 / count, in another order
        np.testing.assert_allclose(gradient, found[2][1], rtol=1e-5, atol=(2 * factor) ** 2 * 6e-8 / count)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_wrong_number_before_the_upsampling_shows(wrong):
    values = np.zeros((1, 3, 2, 2), np.float32)
    values[0, 1, 1, 1] = wrong
    scores = mx.nd.array(values)
    scores.attach_grad()
    labels = np.zeros((1, 16, 16), np.intp)
    with autograd.record():
        loss = CrossEntropy(labels, labels == 0, 256, 8)(scores)
    loss.backward()
    assert not np.isfinite(loss.asscalar())
    assert not np.isfinite(scores.grad.asnumpy()).all()


def test_what_a_loss_holds_goes_with_its_backward_pass():
    # MXNet leaves a function to Python's search for circles: a training would hold hundreds of gradients until then
    function = CrossEntropy(np.zeros((1, 4, 4), np.intp), np.ones((1, 4, 4), bool), 16)
    logits = mx.nd.array(np.zeros((1, 5, 4, 4), np.float32))
    logits.attach_grad()
    with autograd.record():
        loss = function(logits)
    loss.backward()
    assert logits.grad.asnumpy().any()
    assert not [value for value in vars(function).values() if isinstance(value, (np.ndarray, mx.nd.NDArray))]
