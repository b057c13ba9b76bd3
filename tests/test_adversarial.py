"""Adversarial warm-up: who gets which gradient, the discriminator, determinism, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cbst_mx.data.loader import BatchLoader
from cbst_mx.data.transforms import TrainTransform
from cbst_mx.errors import ConfigError, TrainingError
from cbst_mx.training.adversarial import (
    OutputDiscriminator,
    _maps,
    adapt_output_space,
    discriminator_step,
    network_step,
)
from cbst_mx.training.losses import BatchLoss
from cbst_mx.training.samples import unlabelled_samples
from cbst_mx.training.sgd import Schedule, train
from symbols.backend import autograd, gluon, mx

CLASSES = 3
nn = gluon.nn


def tiny_network(stride=8, dropout=0.0, batch_norm=False):
    """Return a network from images to logits at `stride`."""
    mx.random.seed(0)
    network = nn.HybridSequential(prefix="")
    network.add(nn.Conv2D(8, stride, strides=stride, in_channels=3, activation="relu", prefix="first_"))
    if batch_norm:
        network.add(nn.BatchNorm(in_channels=8, prefix="norm_"))
    network.add(nn.Dropout(dropout))
    network.add(nn.Conv2D(CLASSES, 1, in_channels=8, prefix="second_"))
    network.initialize(mx.init.Xavier())
    network.hybridize(static_alloc=True, static_shape=True)
    return network


def tiny_discriminator(width=4):
    mx.random.seed(1)
    discriminator = OutputDiscriminator(CLASSES, width=width)
    discriminator.initialize(mx.init.Xavier(rnd_type="gaussian", factor_type="in", magnitude=2))
    discriminator.hybridize(static_alloc=True, static_shape=True)
    return discriminator


def values(block):
    return {name: p.data().asnumpy() for name, p in block._collect_params_with_prefix().items()}


def images(seed, shape=(2, 3, 32, 64)):
    return mx.nd.array(np.random.default_rng(seed).normal(size=shape))


def labels(seed=5):
    return np.random.default_rng(seed).integers(0, CLASSES, (2, 32, 64)).astype(np.float32)


NO_LABELS = np.full((2, 32, 64), 255, np.float32)


def gradients(source, label, target, weight, network=None, discriminator=None):
    """Return the network's gradients of one network step, and the step."""
    network = network or tiny_network()
    for parameter in network.collect_params().values():
        parameter.grad_req = "add"
    network.collect_params().zero_grad()
    step = network_step(
        network, discriminator or tiny_discriminator(), source, label, target, loss_of=BatchLoss(), weight=weight
    )
    return {name: p.grad().asnumpy() for name, p in network._collect_params_with_prefix().items()}, step


def test_maps_are_probabilities_at_the_size_of_the_images():
    logits = mx.nd.array(np.random.default_rng(3).normal(size=(2, 3, 5, 9)))
    probabilities = mx.nd.softmax(logits, axis=1)
    expected = mx.nd.contrib.BilinearResize2D(probabilities, height=37, width=70, align_corners=False)
    # float32 sums in another order: a few units in the last digit
    np.testing.assert_allclose(_maps(logits, mx.nd.zeros((2, 3, 37, 70))).asnumpy(), expected.asnumpy(), atol=1e-6)


# --- the discriminator


def test_discriminator_judges_patches_of_32_pixels():
    discriminator = OutputDiscriminator(19, width=64)
    discriminator.initialize()
    assert discriminator(mx.nd.zeros((2, 19, 64, 160))).shape == (2, 1, 2, 5)
    assert discriminator(mx.nd.zeros((1, 19, 32, 63))).shape == (1, 1, 1, 1)
    channels = [p.shape[:2] for name, p in discriminator.collect_params().items() if name.endswith("weight")]
    assert channels == [(64, 19), (128, 64), (256, 128), (512, 256), (1, 512)]


def test_discriminator_learns_to_tell_two_constant_maps_apart():
    discriminator = tiny_discriminator()
    one, other = (
        mx.nd.broadcast_to(mx.nd.array(p).reshape((1, 3, 1, 1)), (2, 3, 32, 64))
        for p in ([0.5, 0.3, 0.2], [0.4, 0.3, 0.3])
    )
    trainer = gluon.Trainer(discriminator.collect_params(), "adam", {"learning_rate": 0.01}, kvstore=None)
    losses = []
    for _ in range(100):
        losses.append(discriminator_step(discriminator, one, other).asscalar())
        trainer.step(1)
    # Near chance (log 2) at first, for the maps differ little; 100 steps are far more than it takes.
    assert losses[0] == pytest.approx(math.log(2), abs=0.1)
    assert losses[-1] < 0.05
    assert (discriminator(one).asnumpy() > 0).all()
    assert (discriminator(other).asnumpy() < 0).all()


def test_discriminator_loss_by_hand():
    class Constant(gluon.HybridBlock):  # the verdict is the mean of class 0
        def __init__(self):
            super().__init__()
            self.slope = self.params.get("slope", shape=(1,), init=mx.init.One())

        def hybrid_forward(self, F, x, slope):
            return F.broadcast_mul(F.mean(F.slice_axis(x, axis=1, begin=0, end=1), axis=(2, 3), keepdims=True), slope)

    judge = Constant()
    judge.initialize()
    source, target = mx.nd.full((1, 3, 4, 4), 2.0), mx.nd.full((1, 3, 4, 4), -1.0)
    loss = discriminator_step(judge, source, target)
    assert loss.asscalar() == pytest.approx((math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))) / 2, rel=1e-5)
    # d/ds of [log(1 + exp(-2 s)) + log(1 + exp(-s))] / 2 at s = 1
    expected = -(2 / (1 + math.exp(2)) + 1 / (1 + math.exp(1))) / 2
    assert judge.slope.grad().asscalar() == pytest.approx(expected, rel=1e-5)


# --- the network's step


def test_adversarial_gradient_comes_through_the_target_maps_alone():
    gradient, _ = gradients(images(1), NO_LABELS, images(2), 0.5)
    assert all(np.abs(value).max() > 0 for value in gradient.values())
    other_source, _ = gradients(images(3), NO_LABELS, images(2), 0.5)
    other_target, _ = gradients(images(1), NO_LABELS, images(4), 0.5)
    for name, value in gradient.items():
        np.testing.assert_array_equal(value, other_source[name], err_msg=name)
        assert (value != other_target[name]).any(), name


def test_gradients_of_both_terms_add_up():
    source, target, weight = images(1), images(2), 0.3
    both, step = gradients(source, labels(), target, weight)
    plain, _ = gradients(source, labels(), target, 0.0)
    adversarial, _ = gradients(source, NO_LABELS, target, 1.0)
    for name in both:
        # float32 sums of a few thousand terms
        np.testing.assert_allclose(both[name], plain[name] + weight * adversarial[name], rtol=1e-4, atol=1e-6)
    # and the plain term is what training on the source alone computes
    network, loss_of = tiny_network(), BatchLoss()
    with autograd.record():
        (loss,) = loss_of([network(source)], labels())
    loss.backward()
    assert step.segmentation.asscalar() == loss.asscalar()
    for name, parameter in network._collect_params_with_prefix().items():
        np.testing.assert_allclose(plain[name], parameter.grad().asnumpy(), rtol=1e-6, atol=1e-9)


def test_adversarial_gradient_is_that_of_the_loss():
    # A central difference along the gradient itself: 2 % for float32's digits and the kinks of the ReLUs.
    network, discriminator = tiny_network(), tiny_discriminator()
    source, target = images(1), images(2)
    gradient, step = gradients(source, NO_LABELS, target, 1.0, network, discriminator)
    assert step.segmentation.asscalar() == 0
    norm = math.sqrt(sum((value.astype(np.float64) ** 2).sum() for value in gradient.values()))
    start, around = values(network), []
    for sign in (1, -1):
        for name, parameter in network._collect_params_with_prefix().items():
            parameter.set_data(start[name] + sign * 0.002 * gradient[name] / norm)
        around.append(gradients(source, NO_LABELS, target, 1.0, network, discriminator)[1].adversarial.asscalar())
    assert (around[0] - around[1]) / 0.004 == pytest.approx(norm, rel=0.02)


def test_the_network_step_changes_no_parameter():
    network, discriminator = tiny_network(), tiny_discriminator()
    before = {**values(network), **values(discriminator)}
    gradients(images(1), labels(), images(2), 1.0, network, discriminator)
    after = {**values(network), **values(discriminator)}
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)


def test_the_discriminator_step_gives_the_network_no_gradient():
    network, discriminator = tiny_network(), tiny_discriminator()
    gradient, step = gradients(images(1), labels(), images(2), 0.1, network, discriminator)
    discriminator_step(discriminator, step.source_maps, step.target_maps)
    for name, parameter in network._collect_params_with_prefix().items():
        np.testing.assert_array_equal(parameter.grad().asnumpy(), gradient[name])
    # what the network's step left in the discriminator is gone: the gradient is that of a discriminator used once
    fresh = tiny_discriminator()
    discriminator_step(fresh, step.source_maps, step.target_maps)
    for (name, mine), (_, other) in zip(
        discriminator._collect_params_with_prefix().items(), fresh._collect_params_with_prefix().items()
    ):
        np.testing.assert_array_equal(mine.grad().asnumpy(), other.grad().asnumpy(), err_msg=name)


def test_maps_are_probabilities_at_the_images_size():
    _, step = gradients(images(1), labels(), images(2), 0.1)
    for maps in (step.source_maps, step.target_maps):
        assert maps.shape == (2, CLASSES, 32, 64)
        assert maps.dtype == np.float32
        np.testing.assert_allclose(maps.asnumpy().sum(axis=1), 1, rtol=1e-6)


# --- the stage


def pair(index, shift, size=(32, 64)):
    """Return an image whose colours tell the classes, up to `shift`, and its labels."""
    rng = np.random.default_rng(index)
    label = np.kron(rng.integers(0, CLASSES, (2, 4)), np.ones((16, 16))).astype(np.uint8)[: size[0], : size[1]]
    noise = rng.integers(0, 30, (*size, 3))
    return (label[..., None] * 70 + noise + shift).clip(0, 255).astype(np.uint8), label


class Images:
    """A set without labels."""

    names = tuple(f"t{index}" for index in range(4))

    def __len__(self):
        return len(self.names)

    def image(self, index):
        return pair(10 + index, 60)[0]

    rows = image


def loaders(iterations, crop=(32, 64)):
    transform = TrainTransform(crop=crop, scale=(1, 1))
    source = [lambda index=index: pair(index, 0) for index in range(4)]

    def make(samples):
        return lambda start: BatchLoader(
            samples, transform, batch_size=2, seed=3, iterations=iterations, start=start, workers=0
        )

    return make(source), make(unlabelled_samples(Images()))


def adapt(iterations=25, crop=(32, 64), learning_rate=0.05, network=None, **changes):
    network = network or tiny_network(dropout=0.3)
    arguments = {"num_classes": CLASSES, "ctx": mx.cpu(), "seed": 7, "weight": 0.1, "discriminator_width": 4, **changes}
    schedule = Schedule(learning_rate, iterations, power=0.9)
    return adapt_output_space(network, *loaders(iterations, crop), schedule, **arguments), values(network)


def test_warm_up_is_reproducible_and_follows_the_seed():
    record, parameters = adapt()
    again, same = adapt()
    _, other = adapt(seed=8)
    assert record == again
    for name in parameters:
        np.testing.assert_array_equal(parameters[name], same[name], err_msg=name)
    assert any((parameters[name] != other[name]).any() for name in parameters)


def test_record_and_progress():
    seen = []
    record, _ = adapt(25, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(index, 25) for index in range(1, 26)]
    assert record.iterations == 25
    plain = record.to_json()
    assert plain["loss_every"] == 20
    assert plain["iterations"] == 25
    for key in ("loss", "adversarial_loss", "discriminator_loss"):
        assert len(plain[key]) == 2
        assert all(isinstance(v, float) and v > 0 for v in plain[key])


def test_the_adversarial_term_reaches_the_network_and_gradients_are_as_before():
    network = tiny_network()
    frozen = network[0].bias
    frozen.grad_req = "null"
    kept = frozen.data().asnumpy()
    _, with_term = adapt(3, network=network)
    _, without = adapt(3, network=tiny_network(), weight=0.0)
    assert any((with_term[name] != without[name]).any() for name in with_term)
    np.testing.assert_array_equal(frozen.data().asnumpy(), kept)
    requests = {name: parameter.grad_req for name, parameter in network._collect_params_with_prefix().items()}
    assert requests.pop("0.bias") == "null"
    assert set(requests.values()) == {"write"}


def test_without_the_adversarial_term_it_is_plain_training_on_the_source():
    _, adapted = adapt(5, network=tiny_network(), weight=0.0)
    plain = tiny_network()
    train(plain, loaders(5)[0], Schedule(0.05, 5, power=0.9), ctx=mx.cpu(), seed=7)
    for name, value in values(plain).items():
        np.testing.assert_array_equal(adapted[name], value, err_msg=name)


def test_it_works_with_batch_statistics_and_full_resolution():
    record, parameters = adapt(3, network=tiny_network(stride=1, batch_norm=True))
    assert record.iterations == 3
    assert all(np.isfinite(value).all() for value in parameters.values())


def test_the_network_learns_to_deceive_a_fixed_judge():
    # Against a discriminator that stays as it is, the adversarial loss falls: the sign of its gradient is right.
    network, discriminator = tiny_network(), tiny_discriminator()
    trainer = gluon.Trainer(network.collect_params(), "sgd", {"learning_rate": 0.1}, kvstore=None)
    losses = []
    for _ in range(30):
        _, step = gradients(images(1), NO_LABELS, images(2), 1.0, network, discriminator)
        losses.append(step.adversarial.asscalar())
        trainer.step(1)
    assert losses[-1] < losses[0] - 0.02
    assert all(np.diff(losses) < 1e-4)


def test_the_losses_of_two_iterations_wait_at_most(waiting):
    adapt(9)  # full-size maps of each wait with them
    assert len(waiting) == 9
    assert max(waiting) == 2


def test_divergence_is_refused():
    with pytest.raises(
        TrainingError,
        match=r"^adversarial warm-up diverged: the losses of segmentation, .* at iteration [2-4] of 20, .*; lower the",
    ):
        adapt(20, learning_rate=1e30)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"weight": -1}, r"^weight of the adversarial loss must be at least 0, got -1$"),
        ({"weight": float("nan")}, r"^weight of the adversarial loss must be at least 0, got nan$"),
        ({"discriminator_learning_rate": 0}, r"^discriminator_learning_rate must be above 0, got 0$"),
        ({"discriminator_width": 0}, r"^discriminator width must be at least 1 channel, got 0$"),
        ({"crop": (24, 64)}, r"^source crops must be at least 32 x 32 pixels for the discriminator, got 24 x 64$"),
    ],
)
def test_refused_arguments(arguments, sentence):
    with pytest.raises(ConfigError, match=sentence):
        adapt(1, **arguments)
