"""How work in progress is shown: bars in a terminal, plain lines elsewhere, JSON, or nothing but warnings.

Every view gets the same calls: a part begins, goes on and ends, and a line of the log comes. Plain lines begin with the
time in ISO 8601 and are never wrapped; within a part one comes every 30 seconds, behind the step that is done then. The
events of ``--json`` are described in docs/commands.md.
"""

from __future__ import annotations

import json
import logging
from datetime import datetime, timezone
from typing import Any, Callable

import rich.console
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cbst_mx.cli.tracking import Tracker
from cbst_mx.messages import clock, counted, stage_title

__all__ = ["Bars", "Events", "Lines", "Quiet", "View"]

_PACE = 30.0  # seconds between the lines of a part
_EVENT_PACE = 5.0  # seconds between the events of a part
_LABEL, _BAR, _COUNT, _LEFT = 20, 16, 20, 19  # characters of the columns: 78 with a blank between two


class View:
    """What is shown of the work that a tracker follows; this one shows nothing.

    Parameters
    ----------
    tracker : Tracker
        Where the work is.
    console : Console
        Where it is shown.
    """

    def __init__(self, tracker: Tracker, console: rich.console.Console):
        self.tracker, self.console = tracker, console

    def start(self) -> None:
        """Begin to show."""

    def stop(self, error: BaseException | None = None) -> None:
        """End, after `error` where one came."""

    def follow(self) -> None:
        """Take note of the parts of a run, which the tracker has now."""

    def update(self, new: bool) -> None:
        """Show a step of the current part, which is `new` or has been shown before."""

    def log(self, record: logging.LogRecord, text: str) -> None:
        """Show a line of the log."""

    def result(self, name: str, **values: Any) -> None:
        """Tell a result that is otherwise shown as a table or a sentence."""


def _speed(tracker: Tracker) -> str:
    """Return steps per second, or seconds per step of slow ones."""
    current = tracker.current
    speed = None if current is None else current.speed(tracker.clock())
    if not speed:
        return ""
    return f"{speed:,.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each"


def _left(tracker: Tracker) -> str:
    left = tracker.left()
    return f"{'' if left.known else '> '}{clock(left.seconds)}"


def _numbers(tracker: Tracker) -> list[str]:
    """Return loss and learning rate of the current part, in words."""
    current = tracker.current
    found = []
    if current is not None and current.loss is not None:
        found.append(f"loss {current.loss:.4f}")
    if current is not None and current.rate is not None:
        found.append(f"rate {current.rate:.3g}")
    return found


def _short(text: str, tracker: Tracker) -> str:
    """Return a text without the name of the run, where there is only one."""
    names = {part.run for part in tracker.parts}
    return text[len(name) + 2 :] if len(names) == 1 and text.startswith(f"{(name := names.pop())}, ") else text


class Bars(View):
    """Bars in a terminal, at least 80 columns wide: of the run, of the stage, and of the part that is being done."""

    def __init__(self, tracker: Tracker, console: rich.console.Console):
        super().__init__(tracker, console)
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=4, transient=True)
        self._started = False
        self._mious: dict[str, list[tuple[int, float]]] = {}  # by run: stage and mIoU on its first validation set

    def stop(self, error: BaseException | None = None) -> None:
        """Take the bars away."""
        if self._started:
            self._live.stop()
            self._started = False

    def update(self, new: bool) -> None:
        """Show the bars from the first step on: errors before it come without a blank line."""
        if not self._started:
            self._started = True
            self._live.start()

    def log(self, record: logging.LogRecord, text: str) -> None:
        """Show a line above the bars, its time in front and wrapped behind it."""
        self._note(getattr(record, "result", None))
        if getattr(record, "detail", False) and record.levelno < logging.WARNING:
            return
        line = Table.grid(padding=(0, 2))
        line.add_column(no_wrap=True)
        line.add_column(overflow="fold")
        style = "yellow" if record.levelno >= logging.WARNING else ""
        when = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        line.add_row(Text(when, style="dim"), Text(_short(text, self.tracker), style=style))
        self.console.print(line)

    def _note(self, result: dict[str, Any] | None) -> None:
        current = self.tracker.current
        if result is None or "miou" not in result or current is None:
            return
        known = self._mious.setdefault(current.part.run, [])
        if not known or known[-1][0] != current.part.stage:  # else the set that leads has come before
            known.append((current.part.stage, result["miou"]))

    def _render(self) -> RenderableType:
        current = self.tracker.current
        if current is None:
            return Text("")
        grid = Table.grid(padding=(0, 1))
        grid.add_column(width=_LABEL, no_wrap=True, overflow="ellipsis")
        grid.add_column(width=_BAR)
        grid.add_column(width=_COUNT, no_wrap=True)
        grid.add_column(width=_LEFT, no_wrap=True, justify="right")
        part, stage = current.part, self.tracker.stage()
        if stage is not None:
            last = max(one.stage for one in self.tracker.parts if one.run == part.run)
            where = f"{stage_title(part.stage)} of {last}" if part.stage else f"{counted(last, 'round')} to come"
            name = part.run if len({one.run for one in self.tracker.parts}) > 1 else "run"
            grid.add_row(name, _bar(self.tracker.share(), 1), where, f"{_left(self.tracker)} left")
            grid.add_row(
                stage_title(part.stage),
                _bar(stage[0] + self.tracker.share_here(), stage[1]),
                f"{stage[0]} of {counted(stage[1], 'part')}",
                "",
            )
        left = self.tracker.left_here()
        count = f"{current.done:,}/{part.total:,}"
        here = "" if left is None else f"{clock(left)} left"
        label = part.step if stage is not None else _short(part.step, self.tracker)
        grid.add_row(label, _bar(current.done, part.total), f"{count:<11} {_speed(self.tracker)}", here)
        numbers = [*_numbers(self.tracker), *self._last_miou(part.run)]
        rows: list[RenderableType] = [grid]
        if numbers:
            rows.append(Text(" " * (_LABEL + 1) + "   ".join(numbers), no_wrap=True, overflow="ellipsis"))
        return Group(*rows)

    def _last_miou(self, run: str) -> list[str]:
        known = self._mious.get(run)
        if not known:
            return []
        stage, value = known[-1]
        return [f"mIoU {100 * value:.1f} % ({stage_title(stage)})"]


def _bar(done: float, total: float) -> ProgressBar:
    return ProgressBar(total=max(total, 1e-9), completed=done, width=_BAR)


class Lines(View):
    """Plain lines, for a file or a pipe: start and end of every part of a run, and where the work is in between."""

    def __init__(self, tracker: Tracker, console: rich.console.Console):
        super().__init__(tracker, console)
        self._told = tracker.clock()

    def update(self, new: bool) -> None:
        """Tell the end of a part and, of one that goes on, a step where it is time."""
        tracker, current = self.tracker, self.tracker.current
        assert current is not None
        followed = tracker.stage() is not None
        if new and followed:
            self._print(current.part.title, f"begins, {counted(current.part.total, 'step')}")
        now = tracker.clock()
        if tracker.finished:
            if followed:
                took = f"done in {clock(now - current.begun)}"
                self._print(current.part.title, counted(current.part.total, "step"), *_numbers(tracker), took)
        elif now - self._told >= _PACE:
            here = tracker.left_here()
            left = [] if here is None else [f"{clock(here)} left"]
            left += [f"run {_left(tracker)} left"] if followed else []
            count = f"{current.done:,}/{current.part.total:,}"
            self._print(current.part.title, count, *filter(None, [_speed(tracker)]), *_numbers(tracker), *left)

    def log(self, record: logging.LogRecord, text: str) -> None:
        """Print a line as it is, unless it is for the log file alone."""
        if getattr(record, "detail", False) and record.levelno < logging.WARNING:
            return
        self._told = self.tracker.clock()
        when = datetime.fromtimestamp(record.created)
        level = f"{record.levelname} " if record.levelno >= logging.WARNING else ""
        self._line(when, level + _short(text, self.tracker))

    def _print(self, title: str, *told: str) -> None:
        self._told = self.tracker.clock()
        self._line(datetime.now(), f"{_short(title, self.tracker)}: {', '.join(told)}")

    def _line(self, when: datetime, text: str) -> None:
        self.console.print(f"{when.isoformat(timespec='seconds')} {text}", soft_wrap=True, highlight=False)


class Quiet(Lines):
    """Warnings only."""

    def update(self, new: bool) -> None:
        """Say nothing."""

    def log(self, record: logging.LogRecord, text: str) -> None:
        """Print a warning."""
        if record.levelno >= logging.WARNING:
            super().log(record, text)


class Events(View):
    """One JSON object a line: the parts of the work as they begin, go on and end, messages, and results."""

    def __init__(self, tracker: Tracker, console: rich.console.Console, write: Callable[[str], None]):
        super().__init__(tracker, console)
        self._write, self._told = write, tracker.clock()

    def stop(self, error: BaseException | None = None) -> None:
        """Tell the end, and what ended it where it was an error."""
        seconds = round(self.tracker.clock() - self.tracker.begun, 3)
        if error is not None:
            self._event("error", kind=type(error).__name__, text=" ".join(str(error).split()))
        self._event("end", seconds=seconds, complete=error is None)

    def follow(self) -> None:
        """Tell the parts of the run."""
        keys = ("run", "stage", "step", "total", "done")
        self._event("parts", parts=[{key: getattr(part, key) for key in keys} for part in self.tracker.parts])

    def update(self, new: bool) -> None:
        """Tell a step of a part."""
        tracker, current = self.tracker, self.tracker.current
        assert current is not None
        now, part = tracker.clock(), current.part
        where = {"run": part.run, "stage": part.stage, "step": part.step, "total": part.total}
        if new:
            self._event("start", **where)
        numbers = {"loss": current.loss, "rate": current.rate}
        if tracker.finished:
            self._event("done", **where, **numbers, seconds=round(now - current.begun, 3))
        elif new or now - self._told >= _EVENT_PACE:
            here, left = tracker.left_here(), tracker.left()
            self._event(
                "progress",
                **where,
                done=current.done,
                **numbers,
                seconds_left=None if here is None else round(here, 1),
                run_seconds_left=round(left.seconds, 1),
                run_seconds_known=left.known,
            )

    def log(self, record: logging.LogRecord, text: str) -> None:
        """Tell a line of the log, and the result that is in it."""
        self._event("message", level=record.levelname.lower(), text=text)
        values = getattr(record, "result", None)
        current = self.tracker.current
        if values is not None and current is not None:
            self.result("result", run=current.part.run, stage=current.part.stage, **values)

    def result(self, name: str, **values: Any) -> None:
        """Tell a result."""
        self._event(name, **values)

    def _event(self, name: str, **values: Any) -> None:
        self._told = self.tracker.clock()
        when = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        self._write(json.dumps({"event": name, "time": when, **values}, allow_nan=False))
