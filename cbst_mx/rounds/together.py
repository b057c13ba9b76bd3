"""Training of a stage by several processes: what each of them is told, and what it does."""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Mapping, Protocol

from cbst_mx.config import Experiment, Optimiser
from cbst_mx.errors import StoppedError
from cbst_mx.files import remove_leftovers
from cbst_mx.messages import Counter, Iteration, Together, silent
from cbst_mx.networks.devices import parse_contexts, set_precision
from cbst_mx.rounds.evaluations import snapshot_options
from cbst_mx.rounds.phases import start_network, train_phase, without_start
from cbst_mx.rounds.workload import count_iterations
from cbst_mx.run_dir import RunDir
from cbst_mx.training.ranks import Ranks
from cbst_mx.training.samples import Samples

__all__ = ["Order", "elsewhere"]


class Seat(Protocol):
    """The way to the command: a :class:`cbst_mx.cluster.kvstore.Seat`."""

    asked_to_stop: bool

    def tell(self, event: Any) -> None:
        """Send something to it."""


@dataclass(frozen=True)
class Order:
    """A training phase that others do.

    Attributes
    ----------
    experiment, optimiser, samples, index, checkpoint, options
        As for :func:`.train_phase`. The phase begins from the checkpoint.
    folder : Path
        The run folder, for snapshots of the source training.
    here : Path
        The folder that relative paths are in.
    """

    experiment: Experiment
    optimiser: Optimiser
    samples: Samples
    index: int
    checkpoint: Path
    options: Mapping[str, Any]
    folder: Path
    here: Path = field(default_factory=Path.cwd)


def elsewhere(together: Together, order: Order, progress: Counter, begun: int) -> None:
    """Let other processes do a training phase; they leave a checkpoint behind its end.

    Parameters
    ----------
    together : Together
        Starts them.
    order : Order
        The phase.
    progress : callable
        Called with (done, in all), which may raise StoppedError.
    begun : int
        Iterations that are done.
    """
    latest = [(Iteration(begun), count_iterations(order.optimiser, len(order.samples)))]

    def hear(event: Any) -> None:
        if isinstance(event, logging.LogRecord):
            logging.getLogger(event.name).handle(event)
            return
        if event is not None:
            done, loss, rate, total = event
            latest[0] = Iteration(done, loss=loss, rate=rate), total
        elif latest[0][0] == latest[0][1]:  # the end was told, and is being saved
            return
        progress(*latest[0])

    try:
        together(_train, (order,), hear, name=str(order.here / order.checkpoint))
    finally:
        remove_leftovers(order.checkpoint.parent)  # of who was killed while it saved


class _Told(logging.Handler):
    """Sends warnings to the command."""

    def __init__(self, seat: Seat):
        super().__init__(logging.WARNING)
        self._seat = seat

    def emit(self, record: logging.LogRecord) -> None:
        record.msg, record.args, record.exc_info = record.getMessage(), None, None
        self._seat.tell(record)


def _train(order: Order, seat: Seat) -> None:
    """Do one process's part of a phase; in a process that was started for it."""
    experiment = order.experiment
    with contextlib.suppress(OSError):  # whoever needs it names the file
        os.chdir(order.here)
    contexts = parse_contexts(experiment.ctx)
    set_precision(experiment.amp, contexts)
    network = start_network(without_start(experiment), contexts)
    ranks = Ranks(contexts, lambda: seat.asked_to_stop)
    first = ranks.rank == 0
    logging.getLogger("cbst_mx").addHandler(_Told(seat))
    if not first:  # all read the same checkpoints, and would say the same of them
        logging.getLogger("cbst_mx.training.checkpoints").disabled = True
    snapshots = {}
    if order.index == 0:
        snapshots = snapshot_options(experiment, network, RunDir(order.folder), images=len(order.samples))
        if snapshots and not first:
            snapshots["snapshot"] = silent

    def progress(done: int, total: int) -> None:
        if first and isinstance(done, Iteration):
            seat.tell((int(done), done.loss, done.rate, total))
        if ranks.stopping and done < total:
            raise StoppedError("training", done, total)

    train_phase(
        experiment,
        network,
        order.optimiser,
        order.samples,
        index=order.index,
        contexts=contexts,
        checkpoint=order.checkpoint,
        progress=progress,
        team=ranks,
        **order.options,
        **snapshots,
    )
