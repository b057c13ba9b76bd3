"""What the commands share: progress bars that end where a stop is asked for, path types, errors as one sentence."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any, Iterable

import click
from rich.console import Console, ConsoleOptions, RenderableType
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from cbst_mx.cli.stopping import StopRequest
from cbst_mx.errors import CBSTError, StoppedError, lacks_memory
from cbst_mx.messages import printable

__all__ = ["Bars", "FILE", "FOLDER", "FORMAT", "OneSentence", "Terminal", "ask", "choice", "echo", "print_table"]

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
_WIDEST = 1000  # characters of a table


class Terminal(Console):
    """A console that takes no text for instructions: neither its own markup nor what a terminal obeys."""

    def __init__(self, **options: Any):
        super().__init__(markup=False, emoji=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the pieces of what is shown, with characters that a terminal obeys written out."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)


def echo(text: str, *, err: bool = False) -> None:
    """Print text, with characters that a terminal obeys written out."""
    click.echo(printable(text), err=err)


def choice(names: Iterable[str]) -> click.Choice:
    """Return the type of an option that is one of some names, in upper or lower case."""
    return click.Choice(list(names), case_sensitive=False)


def ask(question: str, default: str, among: Iterable[str] = ()) -> str:
    """Ask for a text, or for one of some names, and return the answer; without one, the default."""
    names = list(among)
    kind = click.Choice(names) if names else click.STRING
    return str(click.prompt(printable(question), default=printable(default), type=kind)).strip()


class FormatName(click.ParamType):
    """Name of a data format; the formats are not imported before one is asked for."""

    name = "format"

    @property
    def _choice(self) -> click.Choice:
        from cbst_mx.data import FORMATS

        return choice(FORMATS)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the name, or refuse what is none."""
        return self._choice.convert(value, param, ctx)

    def get_metavar(self, param: click.Parameter, *args: Any, **context: Any) -> str | None:
        """Return the names as help shows them; click 8.2 gives a context, 8.1 does not."""
        return self._choice.get_metavar(param, *args, **context)

    def get_missing_message(self, param: click.Parameter, *args: Any, **context: Any) -> str | None:
        """Return what to choose from."""
        return self._choice.get_missing_message(param, *args, **context)


FORMAT = FormatName()


class _Rate(TextColumn):
    """Steps per second."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Task) -> Text:
        """Return the speed, as soon as there is one."""
        return Text(f"{task.speed:.1f}/s" if task.speed else "", style="progress.data.speed")


class Bars:
    """One progress bar per stage while it runs, and a line for what the library logs; ``bars(what, done, total)``.

    Signals that ask for a stop raise after the step that is being done, see :class:`.StopRequest`.
    """

    def __init__(self, console: Console):
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=console, transient=not console.is_terminal)
        self._tasks: dict[str, TaskID] = {}
        self._stop = StopRequest()
        self._listening = contextlib.ExitStack()
        self._messages = RichHandler(console=console, show_level=False, show_path=False, highlighter=NullHighlighter())

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` steps of `what` are done.

        Raises
        ------
        StoppedError
            If a stop is asked for.
        """
        if what not in self._tasks:
            self._progress.start()  # not before there is something to show: errors come without a blank line
            self._tasks[what] = self._progress.add_task(what, total=total)
        self._progress.update(self._tasks[what], completed=done, total=total)
        if done == total:
            self._progress.remove_task(self._tasks.pop(what))
        self._stop.check(what, done, total)

    def __enter__(self) -> Bars:
        self._listening.enter_context(self._stop.listen())
        logging.getLogger("cbst_mx").addHandler(self._messages)
        return self

    def __exit__(self, *exception: object) -> None:
        logging.getLogger("cbst_mx").removeHandler(self._messages)
        if self._progress.live.is_started:
            self._progress.stop()
        self._listening.close()


def print_table(table: Table) -> None:
    """Print a table at its full width: a narrow terminal wraps its lines, but no column is cut off."""
    console = Terminal()
    wanted = console.measure(table, options=console.options.update(max_width=_WIDEST)).maximum
    Terminal(width=max(console.width, wanted)).print(table)


class OneSentence(click.Group):
    """A group that turns errors a user can mend into one sentence and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; end with a sentence where its user can mend what is wrong."""
        try:
            return super().invoke(ctx)
        except StoppedError as error:
            _stopped(str(error), error.signal)
        except KeyboardInterrupt:
            _stopped("stopped", None)
        except click.ClickException as error:  # names of files that a pattern of the shell found
            error.message = printable(error.message)  # type: ignore[misc]
            raise
        except CBSTError as error:
            _fail(str(error))
        except ImportError as error:
            if type(error).__name__ != "MXNetUnavailableError":
                raise
            _fail(str(error))
        except (MemoryError, RuntimeError) as error:  # MXNet's errors are RuntimeErrors
            if not lacks_memory(error):
                raise
            _end_without_memory(error)
        except OSError as error:
            # what has no better sentence of its own: a disk full in the log file, a folder without permission
            _fail(f"{error.filename or 'a file'} cannot be used: {error.strerror or error}")


def _end_without_memory(error: BaseException) -> None:
    """Say so and end at once: MXNet's own end waits for ever for threads that it could not start."""
    what = (str(error).strip().splitlines() or [type(error).__name__])[-1]  # MXNet puts lines of its source before
    echo(
        f"Error: not enough memory ({what}): give the process more, or lower batch_size, inference_batch, crop or the "
        "number of workers; what was saved is kept, and the same command goes on from it",
        err=True,
    )
    if "mxnet" in sys.modules:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(1)
    raise click.exceptions.Exit(1)


def _stopped(sentence: str, number: int | None) -> None:
    """Say where the work stopped, and end as a shell tells of a process that signal `number` ended."""
    echo(sentence, err=True)
    raise click.exceptions.Exit(128 + (signal.SIGINT if number is None else number))


def _fail(sentence: str) -> None:
    echo(f"Error: {sentence}", err=True)
    raise click.exceptions.Exit(1)
