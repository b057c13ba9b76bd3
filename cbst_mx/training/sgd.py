"""SGD over a batch loader: what source training and retraining share.

With several contexts every batch is spread over them, the gradients are added up and each context makes the same update
(data-parallel training), so the parameters stay equal everywhere.
"""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, Sequence

import numpy as np

from cbst_mx import seeding
from cbst_mx.data.loader import BatchLoader
from cbst_mx.errors import ConfigError
from cbst_mx.messages import Counter, silent
from cbst_mx.training.checkpoints import (
    Checkpoints,
    State,
    moving_statistics,
    network_arrays,
    optimiser_arrays,
    restore_network,
    restore_optimiser,
    shapes_digest,
)
from cbst_mx.training.losses import BatchLoss
from cbst_mx.training.phase import Phase, Schedule
from cbst_mx.training.ranks import ALONE, Team
from cbst_mx.training.record import TrainingRecord
from cbst_mx.training.steps import (
    Backward,
    checkpointed_step,
    has_batch_statistics,
    plain_step,
    prepare_segments,
)
from symbols.backend import autograd, gluon, load_amp, mx

__all__ = [
    "Schedule",
    "adding_gradients",
    "dropout_generator",
    "place",
    "set_multipliers",
    "spread",
    "train",
]


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
    per_pass: int = 0,
    gradient_checkpointing: bool = False,
    loss_scaling: bool = False,
    checkpoint: Path | None = None,
    checkpoint_every: int = 0,
    checkpoint_minutes: float = 0.0,
    checkpoint_end: bool = False,
    identity: Mapping[str, Any] | None = None,
    advice: str = "",
    snapshot: Callable[[int], None] | None = None,
    snapshot_every: int = 0,
    team: Team = ALONE,
    elsewhere: Callable[[int], None] | None = None,
    progress: Counter = silent,
) -> TrainingRecord:
    """Train `network` by SGD with momentum on the batches of a loader.

    Longer than other functions: half of it are its arguments.

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
    per_pass : int
        Images that pass through the network at once at most, on all contexts together; 0: all of a part. The gradients
        of the passes add up to that of the batch, in less memory; dropout draws other masks than for a whole batch.
    gradient_checkpointing : bool
        Recompute activations in the backward pass instead of keeping them (:func:`~.steps.checkpointed_step`).
    loss_scaling : bool
        Scale the loss so that float16 gradients do not vanish, and leave out steps whose gradient overflows; needs
        :func:`symbols.backend.enable_amp`.
    checkpoint : Path, optional
        Parameters, momentum and iteration are written here and read from here at the start: the phase then continues
        exactly where it was. The file before is kept beside it, see :class:`.Checkpoints`.
    checkpoint_every : int
        Iterations from one to the next; 0: not by iterations.
    checkpoint_minutes : float
        Minutes from one to the next; 0: not by time. When they are written changes no number.
    checkpoint_end : bool
        Write one behind the last iteration as well, for what follows the phase.
    identity : mapping, optional
        What the phase is beside network, seed and settings of SGD, as JSON values: a checkpoint of another is not used.
    advice : str
        What a reader can do about a learning rate that is too high, for the sentence of the error.
    snapshot : callable, optional
        Called with the iterations done every `snapshot_every` iterations and at the end, before a checkpoint of the
        same iteration.
    snapshot_every : int
        0 calls it never.
    team : Team
        The processes that train the network together, of which this is one: :class:`.ranks.Ranks`. Each gets the
        batches of the same loader and reads its own rows only, as one of so many contexts of a single process would;
        the first one alone writes checkpoints.
    elsewhere : callable, optional
        Does the training instead, in other processes: from `checkpoint`, which is written before, to the end of the
        phase, which it leaves there. Called with the iterations that are done.
    progress : callable, optional
        Called with (iterations done, iterations in all). It may raise StoppedError: the state is then saved first.

    Returns
    -------
    TrainingRecord

    Raises
    ------
    TrainingError
        If a loss or a parameter is not finite.
    StoppedError
        If `progress` asks for a stop.
    ConfigError
        If a batch has fewer images than there are contexts, or the network cannot be trained as asked.
    """
    contexts = [ctx] if isinstance(ctx, mx.Context) else list(ctx)
    place(network, contexts)
    set_multipliers(network, bias_lr_mult, bias_wd_mult)
    devices = team.size * len(contexts)
    if per_pass:
        check_per_pass(network, per_pass, devices)
    options = {"learning_rate": schedule(0), "momentum": momentum, "wd": weight_decay}
    trainer = team.trainer(network.collect_params(), options)
    backward = _scaled_backward(trainer) if loss_scaling else autograd.backward
    own = {"momentum": momentum, "weight_decay": weight_decay, "seed": seed, "round": round, **(identity or {})}
    due = {"every": checkpoint_every, "minutes": checkpoint_minutes}
    phase = _phase(network, trainer, schedule, checkpoint, own, due, advice, team, elsewhere is not None)
    if elsewhere is not None:
        phase.finish(elsewhere)
    with contextlib.ExitStack() as stack:
        adding = per_pass > 0 or len(parts) > 1
        if adding:
            stack.enter_context(adding_gradients(network))
        loader = make_loader(phase.record.iterations)
        passes: Callable[[int], list[slice]] = functools.partial(_rows, parts, per_pass, devices)
        if team.size > 1:
            loader, passes = _of_this_process(loader, passes, team, len(contexts))
        loss_of = stack.enter_context(BatchLoss.of(network, team.total))
        gradient = _gradient_of(network, contexts, passes, adding, loss_of, backward, gradient_checkpointing)
        batches = stack.enter_context(contextlib.closing(iter(loader)))
        for images, labels in batches:
            iteration = phase.record.iterations
            rng = dropout_generator(seed, round, iteration, team.rank)
            losses = team.losses(gradient(images, labels, rng))
            scale = _loss_scale(trainer)
            trainer.set_learning_rate(schedule(iteration))
            trainer.step(1)
            phase.note([losses], scale)
            if snapshot is not None and _is_due(iteration + 1, snapshot_every, schedule.iterations):
                _unify_statistics(network, team)
                snapshot(iteration + 1)
            phase.keep(progress)
    phase.check()
    if checkpoint_end:
        phase.save()
    _unify_statistics(network, team)
    return phase.record


def dropout_generator(seed: int, round: int, iteration: int, rank: int = 0) -> np.random.Generator:
    """Return what seeds dropout in an iteration; every process that trains draws its own masks.

    Dropout draws from the device's state: to seed each iteration makes a continued phase equal to a whole one.
    """
    purpose = f"dropout of process {rank}" if rank else "dropout"
    return seeding.generator(seed, round=round, index=iteration, purpose=purpose)


def _phase(
    network: gluon.HybridBlock,
    trainer: gluon.Trainer,
    schedule: Schedule,
    checkpoint: Path | None,
    identity: Mapping[str, Any],
    due: Mapping[str, Any],
    advice: str,
    team: Team,
    elsewhere: bool,
) -> Phase[TrainingRecord]:
    """Return the phase around the steps of `trainer`, where it begins or goes on."""
    own = {"schedule": vars(schedule), "network": shapes_digest(network), **identity}
    return Phase(
        "training",
        ["training"],
        network,
        schedule,
        TrainingRecord(),
        arrays=functools.partial(_state_arrays, network, trainer, team),
        restore=functools.partial(_restore, network, trainer, team),
        checkpoints=Checkpoints(checkpoint, own, **due, writes=team.rank == 0),
        advice=advice,
        team=team,
        computes=not elsewhere,
    )


def _gradient_of(
    network: gluon.HybridBlock,
    contexts: Sequence[mx.Context],
    passes: Callable[[int], list[slice]],
    adding: bool,
    loss_of: BatchLoss,
    backward: Backward,
    gradient_checkpointing: bool,
) -> Callable[[np.ndarray, np.ndarray, np.random.Generator], list[mx.nd.NDArray]]:
    """Return what computes the gradient of a batch, pass after pass, and gives the losses of all passes and contexts.

    `passes` gives the rows of each, given the number of images; `adding`: see :func:`adding_gradients`.
    """
    step = functools.partial(plain_step, network)
    if gradient_checkpointing:
        step = functools.partial(checkpointed_step, prepare_segments(network, contexts))

    def gradient(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> list[mx.nd.NDArray]:
        if adding:
            network.collect_params().zero_grad()
        losses: list[mx.nd.NDArray] = []
        for rows in passes(len(images)):
            loss_of_part = functools.partial(loss_of, batch=labels)
            losses += step(spread(images[rows], contexts), labels[rows], loss_of_part, rng=rng, backward=backward)
        return losses

    return gradient


def _of_this_process(
    loader: BatchLoader, passes: Callable[[int], list[slice]], team: Team, contexts: int
) -> tuple[BatchLoader, Callable[[int], list[slice]]]:
    """Return a loader of the rows alone that are computed here, and what gives the rows of each pass among these.

    They are those of this process's contexts, among the contexts of all processes.

    Raises
    ------
    ConfigError
        If a context would get no image.
    """
    here = []
    for rows in passes(loader.batch_size):
        each = np.array_split(np.arange(rows.start, rows.stop), team.size * contexts)
        if not len(each[-1]):
            raise _too_few(len(each), rows.stop - rows.start)
        here.append(np.concatenate(each[team.rank * contexts :][:contexts]))
    sizes = [len(rows) for rows in here]
    return loader.only(np.concatenate(here).tolist()), functools.partial(_rows, sizes, 0, contexts)


def _too_few(devices: int, images: int) -> ConfigError:
    return ConfigError(f"batch_size must be at least the number of devices in ctx ({devices}), got {images}")


def _loss_scale(trainer: gluon.Trainer) -> float:
    """Return the factor of the loss, and so of the gradient, of the present step."""
    scaler = getattr(trainer, "_amp_loss_scaler", None)
    return 1.0 if scaler is None else float(scaler.loss_scale)


def _is_due(done: int, every: int, total: int) -> bool:
    """Return whether a snapshot is taken after `done` of `total` iterations: every so many, and at the end."""
    return every > 0 and (done % every == 0 or done == total)


def check_per_pass(network: gluon.HybridBlock, per_pass: int, contexts: int) -> None:
    """Refuse to divide batches of a network whose batch norm looks at them, or too finely for the contexts.

    Raises
    ------
    ConfigError
        If the network has batch norm with batch statistics, or `per_pass` is below the number of contexts.
    """
    if has_batch_statistics(network):
        raise ConfigError(
            "images_per_pass needs frozen batch norm (network option batch_norm: frozen) or none: batch statistics of "
            "a part of a batch are others than those of the whole"
        )
    if per_pass < contexts:
        raise ConfigError(f"images_per_pass must be at least {contexts}, one for each device of ctx, got {per_pass}")


def _rows(parts: Sequence[int], per_pass: int, contexts: int, images: int = 0) -> list[slice]:
    """Return the rows of consecutive parts of a batch, each in passes of at most `per_pass` images where that is given.

    Without parts the batch of so many `images` is one.

    Passes of a part differ by one image at most, and none has fewer images than there are contexts.
    """
    sizes: list[int] = []
    for size in parts or [images]:
        passes = min(-(-size // per_pass), max(1, size // contexts)) if per_pass else 1
        sizes += [size // passes + (index < size % passes) for index in range(passes)]
    ends = np.cumsum(sizes).tolist()
    return [slice(end - size, end) for end, size in zip(ends, sizes)]


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
        raise _too_few(len(contexts), len(images))
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


def _scaled_backward(trainer: gluon.Trainer) -> Callable[[list[mx.nd.NDArray]], None]:
    """Return a backward pass whose gradients are larger by a factor that the trainer adapts and takes out again."""
    amp = load_amp()
    amp.init_trainer(trainer)

    def backward(losses: list[mx.nd.NDArray]) -> None:
        with amp.scale_loss(losses, trainer) as scaled:
            autograd.backward(scaled)

    return backward


def _unify_statistics(network: gluon.HybridBlock, team: Team) -> None:
    """Set the moving statistics of all contexts to their mean: each has seen its own part of the batches only.

    Waits for the devices before and after: in hybridised networks with static memory MXNet 1.9.1 neither lets a reader
    wait for the moving statistics that a backward pass is still writing, nor the backward pass for who writes them.
    """
    mx.nd.waitall()
    parameters = network._collect_params_with_prefix()
    for name, copies in moving_statistics(network, team).items():
        if len(copies) > 1:
            first, *others = (copy.as_in_context(mx.cpu()) for copy in copies)
            # as a difference, so that what is equal everywhere (frozen statistics) stays as it is to the last bit
            parameters[name].set_data(first + sum(other - first for other in others) / len(copies))
    mx.nd.waitall()


_LOSS_SCALE = ("_loss_scale", "_next_loss_scale", "_unskipped")  # the state of MXNet's loss scaler


def _state_arrays(network: gluon.HybridBlock, trainer: gluon.Trainer, team: Team) -> dict[str, mx.nd.NDArray]:
    """Return parameters, momentum and the loss scale as NDArrays (the trainer's own format is a pickle)."""
    arrays = {**network_arrays(network, team=team), **optimiser_arrays(trainer)}
    scaler = getattr(trainer, "_amp_loss_scaler", None)
    if scaler is not None:
        arrays["loss_scale"] = mx.nd.array([getattr(scaler, name) for name in _LOSS_SCALE], dtype=np.float64)
    return arrays


def _restore(network: gluon.HybridBlock, trainer: gluon.Trainer, team: Team, state: State) -> None:
    """Take over what :func:`_state_arrays` gave, onto every context of the trainer."""
    restore_network(network, state.arrays, team=team)
    restore_optimiser(trainer, state.arrays, state.iterations)
    scaler = getattr(trainer, "_amp_loss_scaler", None)
    if scaler is not None:
        for name, value in zip(_LOSS_SCALE, state.arrays["loss_scale"].asnumpy().tolist()):
            setattr(scaler, name, type(getattr(scaler, name))(value))
