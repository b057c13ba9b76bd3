"""What training phases share around their steps: rates, where they go on, a look at losses, checkpoints, stops."""

from __future__ import annotations

import logging
import socket
import time
from dataclasses import dataclass
from typing import Any, Callable, Generic, Protocol, Sequence, TypeVar

from cbst_mx.errors import CheckpointError, RunError
from cbst_mx.messages import Counter, Iteration
from cbst_mx.training.checkpoints import Checkpoints, State, count_threads, saving_at_a_stop
from cbst_mx.training.ranks import ALONE, Team
from cbst_mx.training.record import CHECK_EVERY, note_threads
from cbst_mx.training.watch import LossWatch, finite_or_none, gradient_norm
from symbols.backend import gluon, mx

__all__ = ["Phase", "Schedule"]

logger = logging.getLogger(__name__)

_LOOKS, _LOOK = 20, 0.5  # times to look for a file that another process has written, and seconds between them


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


class Record(Protocol):
    """Record of a phase."""

    iterations: int
    threads: list[int]

    def note(self, losses: Sequence[float], norm: float | None, rate: float) -> None:
        """Add the losses of an iteration, the norm of its gradient and its learning rate."""

    def to_state(self) -> dict[str, Any]:
        """Return what a checkpoint holds of it besides the iterations: its other fields, as JSON values."""


R = TypeVar("R", bound=Record)


class Phase(Generic[R]):
    """A training phase between its steps; it goes on from its checkpoint where there is one.

    Parameters
    ----------
    what : str
        Name of the phase, for sentences.
    names : sequence of str
        Names of the losses of an iteration.
    network : HybridBlock
        The network that is trained.
    schedule : Schedule
        Learning rate and number of iterations.
    record : Record
        Empty.
    arrays, restore : callable
        Return all that changes in the phase as the arrays of a checkpoint, and take it over from one.
    checkpoints : Checkpoints
        Those of the phase.
    advice : str
        What a reader can do about a learning rate that is too high.
    team : Team
        The processes that do the phase together.
    computes : bool
        Whether iterations are done in this process, so that its threads are part of the record.

    Attributes
    ----------
    record : Record
        What has been done so far.
    """

    def __init__(
        self,
        what: str,
        names: Sequence[str],
        network: gluon.HybridBlock,
        schedule: Schedule,
        record: R,
        *,
        arrays: Callable[[], dict[str, mx.nd.NDArray]],
        restore: Callable[[State], None],
        checkpoints: Checkpoints,
        advice: str,
        team: Team = ALONE,
        computes: bool = True,
    ):
        lower = f"lower the learning rate ({schedule.learning_rate:g}){advice and ': '}{advice}"
        self.record = record
        self._network, self._schedule, self._arrays, self._checkpoints = network, schedule, arrays, checkpoints
        self._what, self._restore, self._team, self._computes = what, restore, team, computes
        self._watch = LossWatch(what, names, schedule.iterations, advice=lower)
        self._go_on()

    def _load(self) -> State | None:
        """Return the last checkpoint; one of several processes looks again until all have read the same.

        Raises
        ------
        RunError
            If there is none for one of several, or others read another one.
        """
        for _ in range(_LOOKS):
            state = self._checkpoints.load()
            if self._team is ALONE:
                return state
            mark = 0 if state is None else int(state.sha256[:8], 16)
            other = self._team.total(mark) != mark * self._team.size
            if not self._team.any(state is None or other):
                return state
            time.sleep(_LOOK)
        raise RunError(
            f"{self._what}: the checkpoint that all begin from is not there, or another one, for a process on "
            f"{socket.gethostname()} or another machine: every worker must see the run folder under the same path"
        )

    def _go_on(self) -> None:
        """Take over the last checkpoint, where there is one."""
        state = self._load()
        if state is None:
            return
        begun = state.iterations
        try:
            self._restore(state)
            self.record = type(self.record)(begun, **state.record)  # type: ignore[call-arg]
            if self._computes:
                self.record.threads = note_threads(self.record.threads) if begun else [count_threads()]
            self._watch.checkpoint = begun
        except Exception as error:  # whatever arrays of other names and shapes lead to
            raise CheckpointError(
                f"{self._what}: its checkpoint holds other arrays than this phase has, remove it to begin the phase "
                "anew"
            ) from error
        if begun:
            logger.info("%s: continuing at iteration %d of %d", self._what, begun, self._schedule.iterations)

    def finish(self, work: Callable[[int], None]) -> None:
        """Let others do what is left of the phase, from a checkpoint that is written first to one behind the end.

        Parameters
        ----------
        work : callable
            Does it, given the iterations that are done.

        Raises
        ------
        RunError
            If there is no checkpoint, or none behind the end comes.
        """
        total = self._schedule.iterations
        if self.record.iterations == total:
            return
        if not self.save():
            raise RunError(f"{self._what}: others go on from a checkpoint, and none is written")
        with saving_at_a_stop(self.save):  # it is there already
            work(self.record.iterations)
        for _ in range(_LOOKS):  # a file may reach this machine later than it was written
            self._go_on()
            if self.record.iterations == total:
                return
            time.sleep(_LOOK)
        raise RunError(f"{self._what}: iteration {total} was to be reached, got {self.record.iterations}")

    def note(self, losses: list[list[mx.nd.NDArray]], scale: float = 1.0) -> None:
        """Count an iteration behind its step, and look at losses and, every 20th time, at the gradient.

        Parameters
        ----------
        losses : list of list of NDArray of shape (1,)
            For every name the summands of the loss.
        scale : float
            Factor by which the loss was scaled.

        Raises
        ------
        TrainingError
            If a loss is not finite: of this iteration or of one shortly before.
        """
        record, schedule = self.record, self._schedule
        self._watch.add(record.iterations + 1, schedule(record.iterations), losses)
        record.iterations += 1
        if record.iterations % CHECK_EVERY == 0 or record.iterations == schedule.iterations:
            norm = gradient_norm(self._network, scale)
            record.note(self._watch.look(), finite_or_none(norm), schedule(record.iterations - 1))

    def keep(self, progress: Counter) -> None:
        """End an iteration: write a checkpoint where one is due, and tell `progress`, which may ask for a stop.

        Raises
        ------
        StoppedError
            If it does; the state is saved then.
        """
        if self._team.any(self._checkpoints.due(self.record.iterations)):
            self.save()
        done = self.record.iterations
        loss = self._watch.latest[0] if self._watch.latest else None
        with saving_at_a_stop(self.save):
            progress(Iteration(done, loss=loss, rate=self._schedule(done - 1)), self._schedule.iterations)

    def save(self) -> bool:
        """Write a checkpoint of what is finite, and return whether there is one.

        Raises
        ------
        TrainingError
            If a loss or a parameter is not finite.
        """
        self.check()
        saved = self._checkpoints.save(self._arrays(), self.record.iterations, self.record.to_state())
        self._watch.checkpoint = self._checkpoints.last
        return saved

    def check(self) -> None:
        """Wait for all losses, and refuse losses and parameters that are not finite.

        Raises
        ------
        TrainingError
            If one is not.
        """
        self._watch.look()
        self._watch.check_parameters(
            self._network, self.record.iterations, self._schedule(max(0, self.record.iterations - 1))
        )
