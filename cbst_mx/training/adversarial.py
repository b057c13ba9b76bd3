"""Warm-up: the source network adapted in output space, before the rounds.

Output-space adversarial adaptation (Tsai et al., "Learning to Adapt Structured Output Space for Semantic Segmentation",
CVPR 2018, single level) makes the softmax maps of target images look like those of source images: a small network, the
discriminator, learns to tell them apart, and the segmentation network learns to be mistaken while it goes on training
on the source labels. The rounds then start from its parameters as from any others.

B images, C classes, h x w pixels. The discriminator's class 1 is "source".
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

import numpy as np

from cbst_mx import seeding
from cbst_mx.data.loader import BatchLoader
from cbst_mx.errors import ConfigError
from cbst_mx.messages import Counter, silent
from cbst_mx.training.checkpoints import (
    Checkpoints,
    State,
    count_threads,
    network_arrays,
    optimiser_arrays,
    restore_network,
    restore_optimiser,
    shapes_digest,
)
from cbst_mx.training.losses import BatchLoss
from cbst_mx.training.optimiser import new_trainer
from cbst_mx.training.phase import Phase, Schedule
from cbst_mx.training.record import CHECK_EVERY
from cbst_mx.training.sgd import adding_gradients, place, set_multipliers
from symbols.backend import autograd, gluon, mx

__all__ = [
    "AdversarialRecord",
    "NetworkStep",
    "OutputDiscriminator",
    "adapt_output_space",
    "discriminator_step",
    "network_step",
]

nn = gluon.nn

_SMALLEST = 32  # pixels: five halvings


class OutputDiscriminator(gluon.HybridBlock):
    """A small fully convolutional network that tells where softmax maps come from, patch by patch.

    Five 4 x 4 convolutions of stride 2, leaky ReLU (slope 0.2) between them, no normalisation.

    Parameters
    ----------
    num_classes : int
        Number of classes C.
    width : int
        Channels behind the first convolution; they double behind each of the next three.

    Inputs:
        - **maps**: class probabilities, float32 (B, C, h, w), h and w at least 32.

    Outputs:
        - **logits**: of being source, float32 (B, 1, h // 32, w // 32).
    """

    def __init__(self, num_classes: int, *, width: int = 64, **kwargs: Any):
        if width < 1:
            raise ConfigError(f"discriminator width must be at least 1 channel, got {width}")
        super().__init__(**kwargs)
        channels = [num_classes, width, 2 * width, 4 * width, 8 * width]
        with self.name_scope():
            self.body = nn.HybridSequential()
            for before, after in zip(channels, channels[1:]):
                self.body.add(nn.Conv2D(after, 4, strides=2, padding=1, in_channels=before), nn.LeakyReLU(0.2))
            self.body.add(nn.Conv2D(1, 4, strides=2, padding=1, in_channels=channels[-1]))

    def hybrid_forward(self, F: Any, maps: Any) -> Any:
        return self.body(maps)


@dataclass(frozen=True, eq=False)  # NDArrays have no truth value
class NetworkStep:
    """Result of :func:`network_step`; the losses are NDArrays of shape (1,), in nats."""

    segmentation: mx.nd.NDArray  # of the source images
    adversarial: mx.nd.NDArray  # of the target images, not weighted
    source_maps: mx.nd.NDArray  # float32 (B, C, h, w), without gradient
    target_maps: mx.nd.NDArray


@dataclass
class AdversarialRecord:
    """Record of the warm-up: iterations done and the losses at every 20th of them and the last.

    A discriminator that guesses has the losses log 2 = 0.69, as has the network that deceives it perfectly.
    """

    iterations: int = 0
    segmentation: list[float] = field(default_factory=list)
    adversarial: list[float] = field(default_factory=list)
    discriminator: list[float] = field(default_factory=list)
    gradient_norms: list[float | None] = field(default_factory=list)  # of the segmentation network
    learning_rates: list[float] = field(default_factory=list)
    threads: list[int] = field(default_factory=lambda: [count_threads()])

    def note(self, losses: Sequence[float], norm: float | None, rate: float) -> None:
        """Add the three losses of an iteration, the norm of its gradient and its learning rate."""
        for noted, loss in zip((self.segmentation, self.adversarial, self.discriminator), losses):
            noted.append(loss)
        self.gradient_norms.append(norm)
        self.learning_rates.append(rate)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "iterations": self.iterations,
            "loss_every": CHECK_EVERY,
            "loss": self.segmentation,
            "adversarial_loss": self.adversarial,
            "discriminator_loss": self.discriminator,
            "gradient_norm": self.gradient_norms,
            "learning_rate": self.learning_rates,
            "threads": self.threads[0] if len(self.threads) == 1 else self.threads,
        }

    def to_state(self) -> dict[str, Any]:
        """Return what a checkpoint holds of it, as JSON values."""
        return {name: value for name, value in vars(self).items() if name != "iterations"}


def network_step(
    network: gluon.HybridBlock,
    discriminator: gluon.HybridBlock,
    source: mx.nd.NDArray,
    labels: np.ndarray,
    target: mx.nd.NDArray,
    *,
    loss_of: BatchLoss,
    weight: float,
) -> NetworkStep:
    """Add the gradient of the network's loss to the gradients of its parameters.

    The loss is the cross-entropy of the source images plus `weight` times the cross-entropy of the discriminator's
    verdict on the target images being "source". The first term never meets the discriminator, the second never meets
    the source images. The two backward passes follow each other, so that activations of one half of the batch exist at
    a time; the parameters of the network must add up gradients (``grad_req`` "add") and start from 0. No parameter
    changes; the gradients that arrive in the discriminator are of no use.

    Parameters
    ----------
    network : HybridBlock
        Maps images to logits (B, C, h / s, w / s).
    discriminator : HybridBlock
        Maps probabilities (B, C, h, w) to logits of being source.
    source, target : NDArray of shape (B, 3, h, w), float32
        Images, on the network's context.
    labels : ndarray of shape (B, h, w), float32
        TrainIds of the source images, 255 = ignore.
    loss_of : BatchLoss
        The loss of the source images.
    weight : float
        Weight of the adversarial term.
    """
    with autograd.record():
        logits = network(source)
        (segmentation,) = loss_of([logits], labels)
    source_maps = _maps(logits.detach(), source)
    segmentation.backward()
    del logits
    with autograd.record():
        target_maps = _maps(network(target), target)
        adversarial = _verdict_loss(discriminator(target_maps), 1)
        weighted = adversarial * weight
    weighted.backward()
    return NetworkStep(segmentation, adversarial.detach(), source_maps, target_maps.detach())


def discriminator_step(
    discriminator: gluon.HybridBlock, source_maps: mx.nd.NDArray, target_maps: mx.nd.NDArray
) -> mx.nd.NDArray:
    """Compute the gradient of the discriminator: cross-entropy of its verdicts, half for each domain.

    Parameters
    ----------
    discriminator : HybridBlock
        Its parameters get their gradients; the network that made the maps gets none.
    source_maps, target_maps : NDArray of shape (B, C, h, w), float32
        Class probabilities, without gradient.

    Returns
    -------
    NDArray of shape (1,), float32
        The loss in nats.
    """
    with autograd.record():
        verdicts = (_verdict_loss(discriminator(maps), truth) for maps, truth in ((source_maps, 1), (target_maps, 0)))
        loss = sum(verdicts) / 2
    loss.backward()
    return loss


def adapt_output_space(
    network: gluon.HybridBlock,
    make_source_loader: Callable[[int], BatchLoader],
    make_target_loader: Callable[[int], BatchLoader],
    schedule: Schedule,
    *,
    num_classes: int,
    ctx: mx.Context,
    seed: int,
    weight: float = 0.001,
    discriminator_learning_rate: float = 1e-4,
    discriminator_width: int = 64,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    bias_lr_mult: float = 2.0,
    bias_wd_mult: float = 0.0,
    checkpoint: Path | None = None,
    checkpoint_every: int = 0,
    checkpoint_minutes: float = 0.0,
    identity: Mapping[str, Any] | None = None,
    advice: str = "",
    progress: Counter = silent,
) -> AdversarialRecord:
    """Adapt a source network to unlabelled target images in output space.

    Each iteration takes one step of the network (SGD with momentum, :func:`network_step`) and then one of a new
    discriminator (Adam, :func:`discriminator_step`), on the maps the network has just given. The discriminator's
    learning rate follows the shape of `schedule`. Batch norm with batch statistics normalises the images of each
    domain by themselves, and its moving statistics then follow both: that alone adapts the network, so what the
    adversarial term does is seen in comparison with `weight` 0.

    Parameters
    ----------
    network : HybridBlock
        Its parameters are changed in place.
    make_source_loader, make_target_loader : callable
        Given the first iteration to run, return a loader of the remaining batches of equal crops, at least 32 x 32.
        The labels of the target batches are not looked at: see :func:`.samples.unlabelled_samples`.
    schedule : Schedule
        Learning rate of the network and number of iterations.
    num_classes : int
        Number of classes C.
    ctx : mx.Context
        Where to compute.
    seed : int
        Fixes the discriminator's initial parameters and dropout.
    weight : float
        Weight of the adversarial term; 0 leaves plain training on the source, but for the moving statistics of batch
        norm.
    discriminator_learning_rate : float
        Learning rate of Adam, which then follows the shape of `schedule`.
    discriminator_width : int
        See :class:`OutputDiscriminator`.
    momentum, weight_decay, bias_lr_mult, bias_wd_mult : float
        As for :func:`~.sgd.train`.
    checkpoint, checkpoint_every, checkpoint_minutes, identity, advice
        As for :func:`~.sgd.train`; a checkpoint holds the discriminator and the state of Adam as well.
    progress : callable, optional
        Called with (iterations done, iterations in all). It may raise StoppedError: the state is then saved first.

    Returns
    -------
    AdversarialRecord

    Raises
    ------
    ConfigError
        If an argument is out of its range or the crops are too small.
    TrainingError
        If a loss or a parameter is not finite.
    StoppedError
        If `progress` asks for a stop.
    """
    _check_arguments(weight, discriminator_learning_rate)
    place(network, [ctx])
    set_multipliers(network, bias_lr_mult, bias_wd_mult)
    discriminator = _initialised_discriminator(num_classes, discriminator_width, seed, ctx)
    sgd = {"learning_rate": schedule(0), "momentum": momentum, "wd": weight_decay}
    adam = {"learning_rate": discriminator_learning_rate, "beta1": 0.9, "beta2": 0.99}
    own = {"schedule": vars(schedule), "sgd": sgd, "adam": adam, "weight": weight, "seed": seed, **(identity or {})}
    trained = _Trained.new(network, discriminator, sgd, adam)
    own.update(trained.shapes())
    phase = Phase(
        "adversarial warm-up",
        ("segmentation", "adversary", "discriminator"),
        network,
        schedule,
        AdversarialRecord(),
        arrays=trained.arrays,
        restore=trained.restore,
        checkpoints=Checkpoints(checkpoint, own, every=checkpoint_every, minutes=checkpoint_minutes),
        advice=advice,
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(adding_gradients(network))
        loaders = [make(phase.record.iterations) for make in (make_source_loader, make_target_loader)]
        batches = [stack.enter_context(contextlib.closing(iter(loader))) for loader in loaders]
        for (source, labels), (target, _) in zip(*batches):
            rate = schedule(phase.record.iterations)
            _check_crops(source, target)
            _seed_dropout(seed, phase.record.iterations)
            images = (mx.nd.array(source, ctx=ctx), labels, mx.nd.array(target, ctx=ctx))
            judge_rate = discriminator_learning_rate * rate / schedule.learning_rate
            losses = trained.step(*images, weight=weight, rate=rate, judge_rate=judge_rate)
            phase.note([[loss] for loss in losses])
            phase.keep(progress)
    phase.check()
    return phase.record


@dataclass(frozen=True)
class _Trained:
    """All that changes in a warm-up: two networks and the states of their optimisers."""

    network: gluon.HybridBlock
    discriminator: gluon.HybridBlock
    trainer: gluon.Trainer
    judge: gluon.Trainer
    loss_of: BatchLoss

    @classmethod
    def new(
        cls, network: gluon.HybridBlock, discriminator: gluon.HybridBlock, sgd: dict[str, float], adam: dict[str, float]
    ) -> _Trained:
        """Return it with new optimisers of these options."""
        trainer = new_trainer(network.collect_params(), sgd)
        judge = gluon.Trainer(discriminator.collect_params(), "adam", adam, kvstore=None)
        return cls(network, discriminator, trainer, judge, BatchLoss())

    def step(
        self, *images: Any, weight: float, rate: float, judge_rate: float
    ) -> tuple[mx.nd.NDArray, mx.nd.NDArray, mx.nd.NDArray]:
        """Take a step of the network and one of the discriminator; return their three losses."""
        self.network.collect_params().zero_grad()
        step = network_step(self.network, self.discriminator, *images, loss_of=self.loss_of, weight=weight)
        loss = discriminator_step(self.discriminator, step.source_maps, step.target_maps)
        self.trainer.set_learning_rate(rate)
        self.judge.set_learning_rate(judge_rate)
        self.trainer.step(1)
        self.judge.step(1)
        return step.segmentation, step.adversarial, loss

    def shapes(self) -> dict[str, str]:
        """Return what tells these networks from others, for the identity of checkpoints."""
        return {"network": shapes_digest(self.network), "discriminator": shapes_digest(self.discriminator)}

    def arrays(self) -> dict[str, mx.nd.NDArray]:
        """Return it as the arrays of a checkpoint."""
        return {
            **network_arrays(self.network),
            **network_arrays(self.discriminator, "discriminator"),
            **optimiser_arrays(self.trainer),
            **optimiser_arrays(self.judge, "adam"),
        }

    def restore(self, state: State) -> None:
        """Take it over from a checkpoint."""
        restore_network(self.network, state.arrays)
        restore_network(self.discriminator, state.arrays, "discriminator")
        restore_optimiser(self.trainer, state.arrays, state.iterations)
        restore_optimiser(self.judge, state.arrays, state.iterations, "adam")


def _seed_dropout(seed: int, iteration: int) -> None:
    mx.random.seed(int(seeding.generator(seed, index=iteration, purpose="adversarial").integers(2**31)))


def _check_arguments(weight: float, discriminator_learning_rate: float) -> None:
    if not 0 <= weight < math.inf:
        raise ConfigError(f"weight of the adversarial loss must be at least 0, got {weight}")
    if not 0 < discriminator_learning_rate < math.inf:
        raise ConfigError(f"discriminator_learning_rate must be above 0, got {discriminator_learning_rate}")


def _initialised_discriminator(num_classes: int, width: int, seed: int, ctx: mx.Context) -> OutputDiscriminator:
    discriminator = OutputDiscriminator(num_classes, width=width)
    mx.random.seed(int(seeding.generator(seed, purpose="discriminator").integers(2**31)))
    discriminator.initialize(mx.init.Xavier(rnd_type="gaussian", factor_type="in", magnitude=2), ctx=ctx)
    discriminator.hybridize(static_alloc=True, static_shape=True)
    return discriminator


def _maps(logits: mx.nd.NDArray, images: mx.nd.NDArray) -> mx.nd.NDArray:
    """Return class probabilities at the images' size, so that the discriminator does not depend on the stride."""
    maps = mx.nd.softmax(logits.astype("float32"), axis=1)  # (B, C, h / s, w / s)
    height, width = images.shape[2:]
    if maps.shape[2:] == (height, width):
        return maps
    wide = mx.nd.dot(maps, _interpolation(maps.shape[3], width, maps.context))  # (B, C, h / s, w)
    high = mx.nd.dot(wide.swapaxes(2, 3), _interpolation(maps.shape[2], height, maps.context))
    return high.swapaxes(2, 3)


def _interpolation(cells: int, pixels: int, ctx: mx.Context) -> mx.nd.NDArray:
    """Return the weights of bilinear interpolation from cells to pixels along one axis, float32 (cells, pixels).

    BilinearResize2D itself would do for the maps, but several threads add up its gradient in any order, so that a
    repetition would differ in the last digits.
    """
    identity = mx.nd.eye(cells, ctx=ctx).reshape((1, 1, cells, cells))
    return mx.nd.contrib.BilinearResize2D(identity, height=cells, width=pixels, align_corners=False)[0, 0]


def _verdict_loss(logits: mx.nd.NDArray, truth: int) -> mx.nd.NDArray:
    """Return the mean over all patches of the cross-entropy of "source" (1) or "target" (0)."""
    # -log sigmoid(z) = log(1 + exp(-z)), and 1 - sigmoid(z) = sigmoid(-z)
    return mx.nd.Activation(-logits if truth else logits, act_type="softrelu").mean().reshape((1,))


def _check_crops(source: np.ndarray, target: np.ndarray) -> None:
    for name, images in (("source", source), ("target", target)):
        if min(images.shape[2:]) < _SMALLEST:
            raise ConfigError(
                f"{name} crops must be at least {_SMALLEST} x {_SMALLEST} pixels for the discriminator, "
                f"got {images.shape[2]} x {images.shape[3]}"
            )
