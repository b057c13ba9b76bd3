"""SGD over a batch loader: what source training and retraining share.

With several contexts every batch is spread over them, the gradients are added up and each context makes the same update
(data-parallel training), so the parameters stay equal everywhere.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

import numpy as np

from cbst_mx import seeding
from cbst_mx.data.loader import BatchLoader
from cbst_mx.errors import CheckpointError, ConfigError, TrainingError
from cbst_mx.messages import Counter, silent
from cbst_mx.networks.parameters import load_arrays, save_arrays
from cbst_mx.training.losses import BatchLoss
from cbst_mx.training.steps import checkpointed_step, plain_step, prepare_segments
from symbols.backend import autograd, gluon, load_amp, mx

__all__ = [
    "CHECK_EVERY",
    "Schedule",
    "TrainingRecord",
    "adding_gradients",
    "place",
    "set_multipliers",
    "spread",
    "train",
]

logger = logging.getLogger(__name__)

CHECK_EVERY = 20  # iterations between looks at the loss: a look waits for the device


@dataclass(frozen=True)
class Schedule:
    """Learning rate over the iterations of one training phase.

    Attributes
    ----------
    learning_rate : float
        The rate after the warm-up.
    iterations : int
        Length of the phase.
    warmup : int
        Iterations of linear increase from 0.
    power : float
        The rate falls as (1 - i / iterations) ** power; 0 keeps it constant.
    """

    learning_rate: float
    iterations: int
    warmup: int = 0
    power: float = 0.0

    def __call__(self, iteration: int) -> float:
        """Return the learning rate of `iteration` (0, 1, ...)."""
        ramp = min(1.0, (iteration + 1) / self.warmup) if self.warmup else 1.0
        return self.learning_rate * ramp * (1 - iteration / max(1, self.iterations)) ** self.power


@dataclass
class TrainingRecord:
    """Record of a training phase: iterations done and the loss at every 20th of them."""

    iterations: int = 0
    losses: list[float] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"iterations": self.iterations, "loss_every": CHECK_EVERY, "loss": self.losses}


def train(
    network: gluon.HybridBlock,
    make_loader: Callable[[int], BatchLoader],
    schedule: Schedule,
    *,
    ctx: mx.Context | Sequence[mx.Context],
    seed: int,
    round: int = 0,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    bias_lr_mult: float = 2.0,
    bias_wd_mult: float = 0.0,
    parts: Sequence[int] = (),
    gradient_checkpointing: bool = False,
    loss_scaling: bool = False,
    checkpoint: Path | None = None,
    checkpoint_every: int = 0,
    snapshot: Callable[[int], None] | None = None,
    snapshot_every: int = 0,
    progress: Counter = silent,
) -> TrainingRecord:
    """Train `network` by SGD with momentum on the batches of a loader.

    Parameters
    ----------
    network : HybridBlock
        Its parameters are changed in place; they are copied to every context of `ctx` and stay there.
    make_loader : callable
        Given the first iteration to run, returns a loader of the remaining batches.
    schedule : Schedule
        Learning rate and number of iterations.
    ctx : mx.Context or sequence of mx.Context
        Where to compute. The gradient does not depend on how many there are, but dropout and batch statistics do: each
        context draws its own masks and normalises its part of the batch by itself.
    seed, round : int
        Fix the random state of dropout.
    momentum, weight_decay : float
        Momentum and weight decay of SGD; the paper's program uses 0.9 and 5e-4.
    bias_lr_mult, bias_wd_mult : float
        Multiply the learning rate and the weight decay of all biases and batch-norm betas; the paper's program uses 2
        and 0.
    parts : sequence of int
        Sizes of consecutive parts of every batch that pass through the network one after the other, so that batch norm
        with batch statistics normalises each by itself; by default the batch is one part. The gradient is that of the
        whole batch all the same.
    gradient_checkpointing : bool
        Recompute activations in the backward pass instead of keeping them (:func:`~.steps.checkpointed_step`).
    loss_scaling : bool
        Scale the loss so that float16 gradients do not vanish, and leave out steps whose gradient overflows; needs
        :func:`symbols.backend.enable_amp`.
    checkpoint : Path, optional
        Parameters, momentum and iteration are written here every `checkpoint_every` iterations and read from here at
        the start when the file exists: the phase then continues exactly where it was.
    checkpoint_every : int
        0 writes none.
    snapshot : callable, optional
        Called with the iterations done every `snapshot_every` iterations and at the end, before a checkpoint of the
        same iteration.
    snapshot_every : int
        0 calls it never.
    progress : callable, optional
        Called with (iterations done, iterations in all).

    Returns
    -------
    TrainingRecord

    Raises
    ------
    TrainingError
        If the loss is not finite.
    ConfigError
        If a batch has fewer images than there are contexts, or the network cannot be trained as asked.
    """
    contexts = [ctx] if isinstance(ctx, mx.Context) else list(ctx)
    place(network, contexts)
    set_multipliers(network, bias_lr_mult, bias_wd_mult)
    trainer = _trainer(network, {"learning_rate": schedule(0), "momentum": momentum, "wd": weight_decay})
    backward = _scaled_backward(trainer) if loss_scaling else autograd.backward
    step = functools.partial(plain_step, network)
    if gradient_checkpointing:
        step = functools.partial(checkpointed_step, prepare_segments(network, contexts))
    loss_of = BatchLoss()
    record = TrainingRecord()
    if checkpoint is not None and checkpoint.is_file():
        _restore(checkpoint, network, trainer, record)
        logger.info("continuing at iteration %d of %d", record.iterations, schedule.iterations)
    with contextlib.ExitStack() as stack:
        if len(parts) > 1:
            stack.enter_context(adding_gradients(network))
        batches = stack.enter_context(contextlib.closing(iter(make_loader(record.iterations))))
        for images, labels in batches:
            iteration = record.iterations
            # dropout draws from the device's state: seeding each iteration makes a continued phase equal to a whole one
            rng = seeding.generator(seed, round=round, index=iteration, purpose="dropout")
            if len(parts) > 1:
                network.collect_params().zero_grad()
            losses: list[mx.nd.NDArray] = []
            for rows in _rows(parts or [len(images)]):
                loss_of_part = functools.partial(loss_of, batch=labels)
                losses += step(spread(images[rows], contexts), labels[rows], loss_of_part, rng=rng, backward=backward)
            trainer.set_learning_rate(schedule(iteration))
            trainer.step(1)
            record.iterations = iteration + 1
            if record.iterations % CHECK_EVERY == 0 or record.iterations == schedule.iterations:
                _note_loss(record, sum(float(loss.asscalar()) for loss in losses), schedule)
            if snapshot is not None and _is_due(record.iterations, snapshot_every, schedule.iterations):
                _unify_statistics(network)
                snapshot(record.iterations)
            if checkpoint is not None and checkpoint_every and record.iterations % checkpoint_every == 0:
                _save(checkpoint, network, trainer, record)
            progress(record.iterations, schedule.iterations)
    _unify_statistics(network)
    return record


def _is_due(done: int, every: int, total: int) -> bool:
    """Return whether a snapshot is taken after `done` of `total` iterations: every so many, and at the end."""
    return every > 0 and (done % every == 0 or done == total)


def _rows(parts: Sequence[int]) -> list[slice]:
    """Return the rows of consecutive parts of a batch."""
    ends = np.cumsum(parts).tolist()
    return [slice(end - size, end) for end, size in zip(ends, parts)]


@contextlib.contextmanager
def adding_gradients(network: gluon.HybridBlock) -> Iterator[None]:
    """Let backward passes add up their gradients inside the block, in the parameters that are trained.

    One backward pass through two calls of a hybridised network fails in MXNet 1.9.1 ("could not execute a primitive"),
    so parts of a batch need a backward pass each.
    """
    trained = [parameter for parameter in network.collect_params().values() if parameter.grad_req == "write"]
    for parameter in trained:
        parameter.grad_req = "add"
    try:
        yield
    finally:
        for parameter in trained:
            parameter.grad_req = "write"


def spread(images: np.ndarray, contexts: Sequence[mx.Context]) -> list[mx.nd.NDArray]:
    """Return the images in parts, one per context, of sizes that differ by one at most.

    Parameters
    ----------
    images : ndarray of shape (B, ...)
        The batch.
    contexts : sequence of mx.Context
        At most B.

    Raises
    ------
    ConfigError
        If a context would get no image.
    """
    if len(images) < len(contexts):
        raise ConfigError(
            f"batch_size must be at least the number of devices in ctx ({len(contexts)}), got {len(images)}"
        )
    return [mx.nd.array(part, ctx=c) for part, c in zip(np.array_split(images, len(contexts)), contexts)]


def place(network: gluon.HybridBlock, contexts: list[mx.Context]) -> None:
    """Copy the parameters to the contexts, where they are not there yet."""
    parameters = network.collect_params()
    if any(parameter.list_ctx() != contexts for parameter in parameters.values()):
        parameters.reset_ctx(contexts)


def set_multipliers(network: gluon.HybridBlock, learning_rate: float, weight_decay: float) -> None:
    """Set the multipliers of all biases and batch-norm betas."""
    for name, parameter in network.collect_params().items():
        if name.endswith(("bias", "beta")):
            parameter.lr_mult, parameter.wd_mult = learning_rate, weight_decay


def _trainer(network: gluon.HybridBlock, options: dict[str, float]) -> gluon.Trainer:
    """Return a trainer that adds up the gradients of all contexts of the parameters."""
    parameters = network.collect_params()
    if len(parameters.list_ctx()) == 1:
        return gluon.Trainer(parameters, "sgd", options, kvstore=None)
    trainer = gluon.Trainer(parameters, "sgd", options, kvstore="device", update_on_kvstore=False)
    # left to the first step, this would copy the first context's parameters over the others' when they have moving
    # statistics of their own already, while the backward pass may still be writing them
    trainer._init_kvstore()
    trainer._init_params()
    mx.nd.waitall()
    return trainer


def _scaled_backward(trainer: gluon.Trainer) -> Callable[[list[mx.nd.NDArray]], None]:
    """Return a backward pass whose gradients are larger by a factor that the trainer adapts and takes out again."""
    amp = load_amp()
    amp.init_trainer(trainer)

    def backward(losses: list[mx.nd.NDArray]) -> None:
        with amp.scale_loss(losses, trainer) as scaled:
            autograd.backward(scaled)

    return backward


def _unify_statistics(network: gluon.HybridBlock) -> None:
    """Set the moving statistics of all contexts to their mean: each has seen its own part of the batches only.

    Waits for the devices before and after: in hybridised networks with static memory MXNet 1.9.1 neither lets a reader
    wait for the moving statistics that a backward pass is still writing, nor the backward pass for who writes them.
    """
    mx.nd.waitall()
    for parameter in network.collect_params().values():
        copies = parameter.list_data()
        if parameter.grad_req == "null" and len(copies) > 1:
            first, *others = (copy.as_in_context(mx.cpu()) for copy in copies)
            # as a difference, so that what is equal everywhere (frozen statistics) stays as it is to the last bit
            parameter.set_data(first + sum(other - first for other in others) / len(copies))
    mx.nd.waitall()


def _note_loss(record: TrainingRecord, loss: float, schedule: Schedule) -> None:
    """Add the loss to the record and refuse to go on when it is not finite."""
    if not math.isfinite(loss):
        raise TrainingError(
            f"training diverged: the loss is {loss} at iteration {record.iterations}; "
            f"lower the learning rate ({schedule.learning_rate:g})"
        )
    record.losses.append(loss)


_LOSS_SCALE = ("_loss_scale", "_next_loss_scale", "_unskipped")  # the state of MXNet's loss scaler


def _save(path: Path, network: gluon.HybridBlock, trainer: gluon.Trainer, record: TrainingRecord) -> None:
    """Write parameters, momentum and the record as one file of NDArrays (the trainer's own format is a pickle).

    They are equal on all contexts, so the file does not depend on how many there are.
    """
    _unify_statistics(network)
    arrays = {f"parameter:{name}": p.list_data()[0] for name, p in network._collect_params_with_prefix().items()}
    for index, state in trainer._updaters[0].states.items():
        if state is not None:
            arrays[f"momentum:{index}"] = state
    scaler = getattr(trainer, "_amp_loss_scaler", None)
    if scaler is not None:
        arrays["loss_scale"] = mx.nd.array([getattr(scaler, name) for name in _LOSS_SCALE], dtype=np.float64)
    arrays["iterations"] = mx.nd.array([record.iterations], dtype=np.int64)
    arrays["losses"] = mx.nd.array(np.array(record.losses or [0.0]), dtype=np.float64)
    save_arrays(path, arrays)


def _restore(path: Path, network: gluon.HybridBlock, trainer: gluon.Trainer, record: TrainingRecord) -> None:
    """Read what :func:`_save` wrote, onto every context of the trainer."""
    arrays = load_arrays(path)
    try:
        for name, parameter in network._collect_params_with_prefix().items():
            parameter.set_data(arrays[f"parameter:{name}"])
        for key, array in arrays.items():
            kind, _, index = key.partition(":")
            if kind == "momentum":
                for context, updater in zip(trainer._contexts, trainer._updaters):
                    updater.states[int(index)] = array.as_in_context(context)
                    updater.states_synced[int(index)] = True
        scaler = getattr(trainer, "_amp_loss_scaler", None)
        if scaler is not None:
            for name, value in zip(_LOSS_SCALE, arrays["loss_scale"].asnumpy().tolist()):
                setattr(scaler, name, type(getattr(scaler, name))(value))
        record.iterations = int(arrays["iterations"].asscalar())
        record.losses = arrays["losses"].asnumpy().tolist()[: record.iterations // CHECK_EVERY]
        mx.nd.waitall()  # for the moving statistics, see _unify_statistics
    except (KeyError, AssertionError) as error:
        raise CheckpointError(f"checkpoint {path} is not this network's: delete it to start the phase again") from error
