"""How far the work is, and how long what is left of it will take: the numbers behind every display of progress.

The remaining time of a run is worked out from what each kind of part (a training, an evaluation on one set, ...) has
taken so far, in this process or, by its ledger, in an earlier one; of a kind that was never done, from the kind that is
the most like it (trainings, or looks at images). Where there is none either, what is told is a lower bound, and marked.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import Callable, Iterable

from cbst_mx.messages import Part

__all__ = ["Current", "Left", "Tracker"]

_PRIOR = "spatial prior"  # looks at labels alone
_LATEST = 3  # parts of a kind that count: the load of a machine changes


@dataclass
class Current:
    """The part that is being done.

    Attributes
    ----------
    part : Part
        Which.
    done : int
        Steps done.
    begun : float
        Time at which it began.
    loss, rate : float, optional
        Of a training: the latest loss, and the learning rate.
    """

    part: Part
    begun: float
    done: int = 0
    loss: float | None = None
    rate: float | None = None
    first: tuple[int, float] | None = None  # steps done, and time, when it was first told of: it may be continued

    def speed(self, now: float) -> float | None:
        """Return steps per second; None where there is none yet."""
        if self.first is None or not self.done:
            return None
        done, since = self.done - self.first[0], now - self.first[1]
        if not done:  # the first step, with all that came before it
            done, since = 1, now - self.begun
        return done / since if since > 0 else None


@dataclass(frozen=True)
class Left:
    """Remaining time in seconds; where not `known`, of what is left that can be told."""

    seconds: float
    known: bool


@dataclass
class Tracker:
    """Follows the parts of a run, or single pieces of work that no run has.

    Attributes
    ----------
    parts : list of Part
        Those of the run, in their order; empty where there is none.
    current : Current or None
        The part that is being done, or was done last.
    finished : bool
        Whether that one is finished.
    """

    clock: Callable[[], float] = time.monotonic
    parts: list[Part] = field(default_factory=list)
    current: Current | None = None
    finished: bool = True

    def __post_init__(self) -> None:
        self.begun = self._last = self.clock()
        self._places: dict[str, int] = {}
        self._paces: dict[str, list[float]] = {}  # kind to seconds per image of its parts, the last of them last
        self._done: set[int] = set()

    def follow(self, parts: Iterable[Part]) -> None:
        """Take the parts of a run that begins, or goes on."""
        self.parts = list(parts)
        self._places = {part.title: place for place, part in enumerate(self.parts)}
        self._done = {place for place, part in enumerate(self.parts) if part.done}
        for part in self.parts:
            if part.done and part.seconds:
                self._note(part, part.seconds, part.total)
        self.begun = self._last = self.clock()

    def update(self, what: str, done: int, total: int) -> bool:
        """Take note that `done` of `total` steps of `what` are done; return whether it had not been told of before."""
        now, place = self.clock(), self._places.get(what)
        new = self.finished or self.current is None or self.current.part.title != what
        if new:
            part = Part("", 0, what, what, total) if place is None else self.parts[place]
            self.current = Current(part._replace(total=total), self._last)
            if place is not None:  # those after it may be done again, after a rollback
                self._done = set(range(place))
        current = self.current
        assert current is not None
        current.done = int(done)
        loss, rate = getattr(done, "loss", None), getattr(done, "rate", None)
        current.loss, current.rate = current.loss if loss is None else loss, rate
        if current.first is None and done:  # none is done where a part only begins
            current.first = (int(done), now)
        self.finished = done >= total
        if self.finished:
            if place is not None:
                self._done.add(place)
            before = current.first[0] - 1 if current.first is not None else 0  # of a part that was continued
            self._note(current.part, now - current.begun, total - before)
            self._last = now
        return new

    def _note(self, part: Part, seconds: float, steps: int) -> None:
        if steps > 0 and seconds > 0:
            self._paces.setdefault(part.step, []).append(seconds / (steps * part.size))

    # -- what is left --------------------------------------------------------------------------------------------

    def left_here(self) -> float | None:
        """Return the seconds that the current part will still take; None where nothing tells it."""
        current = self.current
        if current is None or self.finished:
            return None
        now, steps = self.clock(), current.part.total - current.done
        speed = current.speed(now)
        if speed is None:
            pace = self._pace(current.part)
            return None if pace is None else steps * pace
        return steps / speed

    def left(self) -> Left:
        """Return the remaining time of the run."""
        here = self.left_here()
        seconds, known = here or 0.0, here is not None or self.finished
        for place, part in enumerate(self.parts):
            if place in self._done or self._is_current(part):
                continue
            pace = self._pace(part)
            known = known and pace is not None
            seconds += part.total * (pace or 0.0)
        return Left(seconds, known)

    def _is_current(self, part: Part) -> bool:
        return self.current is not None and not self.finished and self.current.part.title == part.title

    def _pace(self, part: Part) -> float | None:
        """Return the seconds of one step of a part; None where none of its kind has been done."""
        known = self._paces.get(part.step) or self._paces_alike(part)
        if known:
            return statistics.fmean(known[-_LATEST:]) * part.size
        current = self.current
        if current is not None and not self.finished and current.part.step == part.step:
            speed = current.speed(self.clock())
            return part.size / current.part.size / speed if speed else None
        return None

    def _paces_alike(self, part: Part) -> list[float]:
        """Return the paces of the kind that is the most like one that has not been done."""
        trained = ("training", "warm-up")
        alike = [kind for kind in list(self._paces) if (kind in trained) == (part.step in trained) and kind != _PRIOR]
        return self._paces[alike[-1]] if alike and part.step != _PRIOR else []

    # -- where it is ---------------------------------------------------------------------------------------------

    def share(self) -> float:
        """Return how much of the run is done, in [0, 1]: of its time where that is known, else of its parts."""
        left = self.left()
        if left.known:
            spent = self.spent()
            return spent / (spent + left.seconds) if spent + left.seconds else 1.0
        return (len(self._done) + self.share_here()) / max(1, len(self.parts))

    def share_here(self) -> float:
        """Return how much of the current part is done, in [0, 1); 0 where it is finished."""
        return 0.0 if self.current is None or self.finished else self.current.done / max(1, self.current.part.total)

    def spent(self) -> float:
        """Return the seconds that the run has taken, with what the ledger knows of earlier calls."""
        return self.clock() - self.begun + sum(part.seconds or 0.0 for part in self.parts if part.done)

    def stage(self) -> tuple[int, int] | None:
        """Return how many parts of the current stage are done, and how many it has; None without a run."""
        if self.current is None or self.current.part.title not in self._places:
            return None
        run, stage = self.current.part.run, self.current.part.stage
        own = [place for place, part in enumerate(self.parts) if (part.run, part.stage) == (run, stage)]
        return len(self._done.intersection(own)), len(own)
