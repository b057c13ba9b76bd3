"""Loss and SGD: numeric gradient, ignore, schedule, exact continuation."""

from __future__ import annotations

import os
import re

import numpy as np
import pytest

from cbst_mx.data.loader import BatchLoader
from cbst_mx.data.transforms import TrainTransform
from cbst_mx.errors import TrainingError
from cbst_mx.networks.build import build_network
from cbst_mx.networks.parameters import load_arrays
from cbst_mx.networks.spec import NetworkSpec
from cbst_mx.training.losses import SegmentationLoss
from cbst_mx.training.sgd import Schedule, train
from cbst_mx.training.watch import all_finite, gradient_norm
from symbols.backend import autograd, mx

SPEC = NetworkSpec("fcn8s", 3, {"width": 0.03125, "batch_norm": "batch", "dropout": 0.5})


def loss_and_gradient(logits, label, hybrid):
    loss_of = SegmentationLoss()
    if hybrid:
        loss_of.hybridize(static_alloc=True, static_shape=True)
    x = mx.nd.array(logits)
    x.attach_grad()
    with autograd.record():
        loss = loss_of(x, mx.nd.array(label))
    loss.backward()
    return loss.asscalar(), x.grad.asnumpy()


@pytest.mark.parametrize("hybrid", [False, True])
def test_loss_and_gradient_equal_float64_arithmetic(hybrid):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 4, 3, 5)).astype(np.float32)
    label = rng.integers(0, 4, (2, 3, 5)).astype(np.float32)
    label[rng.random(label.shape) < 0.3] = 255
    z = logits.astype(np.float64)
    probability = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    valid = label != 255
    one_hot = (np.arange(4)[None, :, None, None] == label[:, None]).astype(float)
    loss, gradient = loss_and_gradient(logits, label, hybrid)
    expected = -(np.log(probability) * one_hot).sum() / valid.sum()
    assert loss == pytest.approx(expected, rel=1e-6)
    # the gradient of softmax cross-entropy over the number of valid pixels; float32 rounding
    np.testing.assert_allclose(gradient, (probability - one_hot) * valid[:, None] / valid.sum(), atol=1e-7)


def test_numeric_gradient():
    rng = np.random.default_rng(1)
    label = rng.integers(0, 3, (1, 2, 3)).astype(np.float32)
    label[0, 0, 0] = 255
    x, y = mx.sym.Variable("x"), mx.sym.Variable("y")
    symbol = SegmentationLoss()(x, y)
    # central differences in float32: two digits
    mx.test_utils.check_numeric_gradient(
        symbol, [rng.normal(size=(1, 3, 2, 3)), label], grad_nodes=["x"], numeric_eps=1e-2, rtol=2e-2, atol=1e-3
    )


def test_without_valid_pixels_loss_and_gradient_are_zero():
    loss, gradient = loss_and_gradient(np.ones((1, 3, 2, 2), np.float32), np.full((1, 2, 2), 255.0), True)
    assert loss == 0
    assert not gradient.any()


def test_schedule():
    schedule = Schedule(0.1, 10, warmup=2, power=1.0)
    np.testing.assert_allclose([schedule(i) for i in (0, 1, 5, 9)], [0.05, 0.09, 0.05, 0.01])
    assert Schedule(0.1, 10)(9) == 0.1


def samples(count=6):
    rng = np.random.default_rng(2)
    made = []
    for _ in range(count):
        label = np.repeat(np.repeat(rng.integers(0, 3, (2, 4)), 16, axis=0), 16, axis=1).astype(np.uint8)
        image = (label[..., None] * 80 + rng.integers(0, 30, (32, 64, 3))).astype(np.uint8)
        made.append((image, label))
    return [lambda pair=pair: pair for pair in made]


def run_training(iterations, checkpoint=None, every=0, stop=None, learning_rate=0.05, told=None, seed=3, **options):
    network = build_network(SPEC, mx.cpu(), seed=3)

    def loader(start):
        return BatchLoader(
            samples(),
            TrainTransform(crop=(32, 64), scale=(0.8, 1.2)),
            batch_size=2,
            seed=3,
            iterations=iterations,
            start=start,
        )

    class StopError(Exception):
        pass

    def progress(done, total):
        if told is not None:
            told(done)
        if done == stop:
            raise StopError

    try:
        record = train(
            network,
            loader,
            Schedule(learning_rate, iterations, power=0.9),
            ctx=mx.cpu(),
            seed=seed,
            checkpoint=checkpoint,
            checkpoint_every=every,
            progress=progress,
            **options,
        )
    except StopError:
        record = None
    return record, {k: p.data().asnumpy() for k, p in network._collect_params_with_prefix().items()}


def test_training_lowers_the_loss():
    record, _ = run_training(80)
    assert record.iterations == 80
    assert len(record.losses) == 4
    assert record.losses[-1] < 0.6 * np.log(3)  # a network that knows nothing has log 3


def test_a_continued_phase_equals_a_whole_one_bit_for_bit(tmp_path):
    whole_record, whole = run_training(30)
    checkpoint = tmp_path / "checkpoint.params"
    record, _ = run_training(30, checkpoint, every=10, stop=25)  # killed at 25: goes on from 20, dropout included
    assert record is None
    assert checkpoint.is_file()
    record, continued = run_training(30, checkpoint, every=10)
    assert record.to_json() == whole_record.to_json()
    assert set(whole) == set(continued)
    for name in whole:
        np.testing.assert_array_equal(continued[name], whole[name], err_msg=name)


def train_in_parts(parts, batch_norm, iterations=2):
    options = {**SPEC.options, "batch_norm": batch_norm, "dropout": 0.0}
    network = build_network(NetworkSpec("fcn8s", 3, options), mx.cpu(), seed=3)
    rng = np.random.default_rng(4)
    images = rng.normal(size=(iterations, 3, 3, 32, 64)).astype(np.float32)
    images[:, 1:] += 1.0  # another domain
    labels = rng.integers(0, 3, (iterations, 3, 32, 64)).astype(np.float32)
    labels[:, 0, :20] = 255
    train(network, lambda start: iter_of(images, labels), Schedule(0.01, iterations), ctx=mx.cpu(), seed=3, parts=parts)
    requests = {p.grad_req for p in network.collect_params().values()}
    assert "add" not in requests
    return {k: p.data().asnumpy() for k, p in network._collect_params_with_prefix().items()}


def iter_of(images, labels):
    yield from zip(images, labels)


def test_parts_of_a_batch_give_the_gradient_of_the_whole():
    whole, parts = train_in_parts((), "none"), train_in_parts((1, 2), "none")
    for name in whole:
        # sums over other parts round differently
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_parts_of_a_batch_have_batch_statistics_of_their_own():
    name = "trunk.stage1.0.1.running_mean"
    whole, parts = train_in_parts((), "batch", 1)[name], train_in_parts((1, 2), "batch", 1)[name]
    first, second = train_in_parts((1, 2), "batch", 1)[name], parts
    np.testing.assert_array_equal(first, second)  # the order of the parts is fixed
    assert np.abs(whole - parts).max() > 1e-4


def test_the_losses_of_two_iterations_wait_at_most(waiting):
    # MXNet takes memory when work is asked for: of each iteration that runs ahead, its maps
    run_training(9)
    assert len(waiting) == 9
    assert max(waiting) == 2


def test_divergence_is_seen_at_its_iteration(tmp_path):
    sentence = (
        r"training diverged: the loss is (nan|inf) at iteration (\d+) of 20, where the learning rate was [\d.e+]+; "
        r"there is no checkpoint before it; lower the learning rate \(1e\+30\)"
    )
    done = []
    with pytest.raises(TrainingError, match=sentence) as caught:
        run_training(20, learning_rate=1e30, told=done.append)
    found = int(re.search(r"iteration (\d+)", str(caught.value))[1])
    assert done[-1] <= found + 2  # not at the next of the iterations that are recorded


def test_no_checkpoint_is_written_of_what_is_not_finite(tmp_path):
    path = tmp_path / "c.params"
    with pytest.raises(TrainingError) as caught:
        run_training(20, path, every=1, learning_rate=1e4)
    kept = int(re.search(r"the last checkpoint, of iteration (\d+), is from before it", str(caught.value))[1])
    failed = int(re.search(r"iteration (\d+) of 20", str(caught.value))[1])
    assert kept <= failed
    for name, array in load_arrays(path).items():
        assert np.isfinite(array.asnumpy()).all(), name


def test_a_last_step_that_is_not_finite_is_refused():
    # the loss of the last iteration is finite, the step that follows it is not
    with pytest.raises(TrainingError, match="training diverged: parameters are not finite after iteration 1 of 1"):
        run_training(1, learning_rate=1e38, weight_decay=1e9)


@pytest.mark.parametrize(
    ("value", "finite"),  # 1e30 has no square
    [(0.0, True), (1e30, True), (-1e30, True), (np.nan, False), (np.inf, False), (-np.inf, False)],
)
@pytest.mark.parametrize("place", [0, -1])
def test_one_value_of_one_parameter_decides_whether_all_are_finite(value, finite, place):
    network = build_network(SPEC, mx.cpu(), seed=3)
    parameter = list(network.collect_params().values())[place]
    array = parameter.data().asnumpy()
    array.reshape(-1)[place] = value
    parameter.set_data(mx.nd.array(array))
    assert all_finite(network) is finite


def test_losses_and_gradient_norms_of_a_record():
    record, _ = run_training(25)
    assert len(record.losses) == len(record.gradient_norms) == 2
    assert all(0 < norm < 1e3 for norm in record.gradient_norms)
    assert len(record.learning_rates) == 2
    assert record.to_json()["threads"] == int(os.environ["OMP_NUM_THREADS"])


def test_the_norm_of_a_gradient_is_that_of_all_its_numbers():
    network = build_network(SPEC, mx.cpu(), seed=3)
    network.initialize(force_reinit=True)
    rng, squares = np.random.default_rng(0), 0.0
    for parameter in network.collect_params().values():
        if parameter.grad_req != "null":
            values = rng.normal(size=parameter.shape).astype(np.float32)
            parameter.list_grad()[0][:] = values
            squares += float((values.astype(float) ** 2).sum())
    # sums of some thousand float32 numbers
    assert gradient_norm(network, 4.0).asscalar() == pytest.approx(np.sqrt(squares) / 4, rel=1e-5)


def test_a_phase_continues_from_its_end(tmp_path):
    # what follows the phase is stopped: losses of iterations that are no multiple of 20 stay
    path = tmp_path / "c.params"
    record, whole = run_training(25, path, every=25)
    again, values = run_training(25, path, every=25)
    assert again.to_json() == record.to_json()
    for name in whole:
        np.testing.assert_array_equal(values[name], whole[name])
