"""SGD over a batch loader: what source training and retraining share."""

from __future__ import annotations

import contextlib
import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import numpy as np

from cbst_mx import seeding
from cbst_mx.checkpoints import load_arrays, save_arrays
from cbst_mx.data.loader import BatchLoader
from cbst_mx.errors import CheckpointError, TrainingError
from cbst_mx.training.losses import SegmentationLoss
from symbols.backend import autograd, gluon, mx

__all__ = ["Schedule", "TrainingRecord", "train"]

logger = logging.getLogger(__name__)

_CHECK_EVERY = 20  # iterations between looks at the loss: a look waits for the device


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
        return self.learning_rate * ramp * (1 - iteration / self.iterations) ** self.power


@dataclass
class TrainingRecord:
    """What happened in a training phase: iterations done and the loss at every 20th of them."""

    iterations: int = 0
    losses: List[float] = field(default_factory=list)

    def to_json(self) -> Dict[str, Any]:
        """Return plain JSON values."""
        return {"iterations": self.iterations, "loss_every": _CHECK_EVERY, "loss": self.losses}


def train(
    network: gluon.HybridBlock,
    make_loader: Callable[[int], BatchLoader],
    schedule: Schedule,
    *,
    ctx: mx.Context,
    seed: int,
    round: int = 0,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    checkpoint: Optional[Path] = None,
    checkpoint_every: int = 0,
    progress: Optional[Callable[[int, int], None]] = None,
) -> TrainingRecord:
    """Train `network` by SGD with momentum on the batches of a loader.

    Parameters
    ----------
    network : HybridBlock
        Its parameters are changed in place.
    make_loader : callable
        Given the first iteration to run, returns a loader of the remaining batches.
    schedule : Schedule
        Learning rate and number of iterations.
    ctx : mx.Context
        The network's context.
    seed, round : int
        Fix the random state of dropout.
    momentum, weight_decay : float
        Of SGD; the paper's program uses 0.9 and 5e-4.
    checkpoint : Path, optional
        Parameters, momentum and iteration are written here every `checkpoint_every` iterations and read from here at
        the start when the file exists: the phase then continues exactly where it was.
    checkpoint_every : int
        0 writes none.
    progress : callable, optional
        Called with (iterations done, iterations in all).

    Returns
    -------
    TrainingRecord

    Raises
    ------
    TrainingError
        If the loss is not finite.
    """
    loss_of = SegmentationLoss()
    loss_of.hybridize(static_alloc=True, static_shape=True)
    trainer = gluon.Trainer(
        network.collect_params(),
        "sgd",
        {"learning_rate": schedule(0), "momentum": momentum, "wd": weight_decay},
        kvstore=None,
    )
    record = TrainingRecord()
    if checkpoint is not None and checkpoint.is_file():
        _restore(checkpoint, network, trainer, record, ctx)
        logger.info("continuing at iteration %d of %d", record.iterations, schedule.iterations)
    with contextlib.closing(iter(make_loader(record.iterations))) as batches:
        for images, labels in batches:
            iteration = record.iterations
            # dropout draws from the device's state: seeding each iteration makes a continued phase equal to a whole one
            state = seeding.generator(seed, round=round, index=iteration, purpose="dropout").integers(2**31)
            mx.random.seed(int(state))
            with autograd.record():
                loss = loss_of(network(mx.nd.array(images, ctx=ctx)), mx.nd.array(labels, ctx=ctx))
            loss.backward()
            trainer.set_learning_rate(schedule(iteration))
            trainer.step(1)
            record.iterations = iteration + 1
            if record.iterations % _CHECK_EVERY == 0 or record.iterations == schedule.iterations:
                _note_loss(record, float(loss.asscalar()), schedule)
            if checkpoint is not None and checkpoint_every and record.iterations % checkpoint_every == 0:
                _save(checkpoint, network, trainer, record)
            if progress:
                progress(record.iterations, schedule.iterations)
    return record


def _note_loss(record: TrainingRecord, loss: float, schedule: Schedule) -> None:
    """Add the loss to the record and refuse to go on when it is not finite."""
    if not math.isfinite(loss):
        raise TrainingError(
            f"training diverged: the loss is {loss} at iteration {record.iterations}; "
            f"lower the learning rate ({schedule.learning_rate:g})"
        )
    record.losses.append(loss)


def _save(path: Path, network: gluon.HybridBlock, trainer: gluon.Trainer, record: TrainingRecord) -> None:
    """Write parameters, momentum and the record as one file of NDArrays (the trainer's own format is a pickle)."""
    arrays = {f"parameter:{name}": p.data() for name, p in network._collect_params_with_prefix().items()}
    for index, state in trainer._updaters[0].states.items():
        if state is not None:
            arrays[f"momentum:{index}"] = state
    arrays["iterations"] = mx.nd.array([record.iterations], dtype=np.int64)
    arrays["losses"] = mx.nd.array(np.array(record.losses or [0.0]), dtype=np.float64)
    save_arrays(path, arrays)


def _restore(
    path: Path, network: gluon.HybridBlock, trainer: gluon.Trainer, record: TrainingRecord, ctx: mx.Context
) -> None:
    arrays = load_arrays(path)
    try:
        for name, parameter in network._collect_params_with_prefix().items():
            parameter.set_data(arrays[f"parameter:{name}"])
        updater = trainer._updaters[0]
        for key, array in arrays.items():
            kind, _, index = key.partition(":")
            if kind == "momentum":
                updater.states[int(index)] = array.as_in_context(ctx)
                updater.states_synced[int(index)] = True
        record.iterations = int(arrays["iterations"].asscalar())
        record.losses = arrays["losses"].asnumpy().tolist()[: record.iterations // _CHECK_EVERY]
    except (KeyError, AssertionError) as error:
        raise CheckpointError(f"checkpoint {path} is not this network's: delete it to start the phase again") from error
