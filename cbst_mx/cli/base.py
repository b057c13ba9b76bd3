"""What the commands share: progress bars that end where a stop is asked for, path types, errors as one sentence."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import textwrap
from pathlib import Path
from typing import Any, Callable, Iterable, NoReturn

import click
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table

from cbst_mx.cli import display
from cbst_mx.cli.stopping import StopRequest
from cbst_mx.cli.tracking import Tracker
from cbst_mx.errors import LESS_ON_GPU, CBSTError, StoppedError, explain_device, lacks_memory
from cbst_mx.messages import Part, clock, printable

__all__ = [
    "Bars",
    "FILE",
    "FOLDER",
    "FORMAT",
    "OneSentence",
    "Terminal",
    "ask",
    "choice",
    "echo",
    "leave",
    "print_table",
    "seconds_option",
]

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
    """Print text, with characters that a terminal obeys written out; a terminal breaks its lines between words."""
    text, console = printable(text), Terminal(stderr=err)
    if console.is_terminal:
        text = "\n".join(_between_words(line, console.width) for line in text.split("\n"))
    click.echo(text, err=err)


def _between_words(line: str, width: int) -> str:
    """Return a line broken where the terminal ends; what has no blank, as a path may, stays whole."""
    if len(line) <= width:
        return line
    return textwrap.fill(line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def choice(names: Iterable[str]) -> click.Choice:
    """Return the type of an option that is one of some names, in upper or lower case."""
    return click.Choice(list(names), case_sensitive=False)


def seconds_option(help_text: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return the option of commands that measure for about as long as they are told."""
    above_0 = click.FloatRange(0, min_open=True)
    return click.option("--seconds", default=60.0, show_default=True, type=above_0, help=help_text)


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


class Bars:
    """Work in progress as a terminal, a file or a program wants it told; ``bars(what, done, total)``.

    In a terminal bars while it runs and a line for what the library logs; elsewhere plain lines; see
    `cbst_mx.cli.display`. Signals that ask for a stop raise after the step that is being done, see
    :class:`.StopRequest`.

    Parameters
    ----------
    console : Console
        Where it is shown.
    quiet : bool
        Show warnings only.
    as_json : bool
        Write events, one JSON object a line, to standard output.
    """

    def __init__(self, console: Console, *, quiet: bool = False, as_json: bool = False):
        self.quiet, self.as_json = quiet, as_json
        self.tracker = Tracker()
        self._view = self._choose_view(console)
        self._others: list[display.View] = []
        self._stop = StopRequest()
        self._listening = contextlib.ExitStack()
        self._messages = _Messages(self._view)

    def _choose_view(self, console: Console) -> display.View:
        if self.as_json:
            return display.Events(self.tracker, console, click.echo)
        if self.quiet:
            return display.Quiet(self.tracker, console)
        kind = display.Bars if console.is_terminal and not console.is_dumb_terminal else display.Lines
        return kind(self.tracker, console)

    def follow(self, parts: Iterable[Part]) -> None:
        """Take the parts of a run, of which the remaining time is told then."""
        self.tracker.follow(parts)
        self._view.follow()

    def add(self, make: Callable[[Tracker], display.View]) -> None:
        """Let another view follow the work too, until its end."""
        self._others.append(make(self.tracker))

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` steps of `what` are done.

        Raises
        ------
        StoppedError
            If a stop is asked for.
        """
        new = self.tracker.update(what, done, total)
        for view in (self._view, *self._others):
            view.update(new)
        self._stop.check(what, done, total)

    def result(self, name: str, **values: Any) -> None:
        """Tell a result as an event, where events are asked for."""
        self._view.result(name, **values)

    def close(self) -> None:
        """Take away what is shown of the work in progress, before its results are printed."""
        if not self.as_json:
            self._view.stop()

    def taken(self) -> str:
        """Return how long the run has taken, and with earlier calls where its ledger knows of any."""
        here, all_calls = self.tracker.clock() - self.tracker.begun, self.tracker.spent()
        return clock(here) + (f" ({clock(all_calls)} with earlier calls)" if all_calls - here >= 1 else "")

    @property
    def shows_results(self) -> bool:
        """Whether results are shown as tables and sentences."""
        return not self.as_json

    def __enter__(self) -> Bars:
        self._listening.enter_context(self._stop.listen())
        logging.getLogger("cbst_mx").addHandler(self._messages)
        self._view.start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        logging.getLogger("cbst_mx").removeHandler(self._messages)
        for view in (*self._others, self._view):
            view.stop(error)
        self._listening.close()


class _Messages(logging.Handler):
    """What the library logs, in a view."""

    def __init__(self, view: display.View):
        super().__init__()
        self._view = view

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record."""
        self._view.log(record, record.getMessage())


def print_table(table: Table) -> None:
    """Print a table at its full width: a narrow terminal wraps its lines, but no column is cut off."""
    console = Terminal()
    wanted = console.measure(table, options=console.options.update(max_width=_WIDEST)).maximum
    Terminal(width=max(console.width, wanted)).print(table)


# What takes less memory, of a GPU and of the computer, by an option that tells the kind of command.
_BANDS = "use --tile ROWS or a smaller --long-side"
_RUNS = (
    "lower images_per_pass, inference_batch or workers, with which a run goes on; a smaller batch_size or crop, or "
    "gradient_checkpointing, make another run"
)
_LESS_MEMORY = {
    "--tile": (_BANDS, _BANDS),
    "--set": (LESS_ON_GPU, _RUNS),
    "--workers": ("use another one, or cpu", "lower --workers"),
    "": ("use another one, or cpu", "end what else runs"),
}
_KEPT = "; what was saved is kept, and the same command goes on from it"


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
            (on_gpu, on_cpu), kept = self._ways_out(ctx)
            if (sentence := explain_device(error, on_gpu)) is not None:
                echo(f"Error: {sentence}{kept}", err=True)
                leave(1)
            if not lacks_memory(error):
                raise
            _end_without_memory(error, f"{on_cpu}{kept}")
        except OSError as error:
            # what has no better sentence of its own: a disk full in the log file, a folder without permission
            _fail(f"{error.filename or 'a file'} cannot be used: {error.strerror or error}")

    def _ways_out(self, ctx: click.Context) -> tuple[tuple[str, str], str]:
        """Return what makes the command that failed need less memory, and what else its user is to know."""
        command = self.get_command(ctx, ctx.invoked_subcommand or "")
        names = {name for parameter in (command.params if command else []) for name in parameter.opts}
        ways = next(ways for option, ways in _LESS_MEMORY.items() if option in names or not option)
        return ways, "" if ctx.invoked_subcommand == "evaluate" else _KEPT  # which saves nothing


def _end_without_memory(error: BaseException, less: str) -> None:
    """Say so and end at once: MXNet's own end waits for ever for threads that it could not start."""
    what = (str(error).strip().splitlines() or [type(error).__name__])[-1]  # MXNet puts lines of its source before
    echo(f"Error: not enough memory ({what}): give the process more, or {less}", err=True)
    if "mxnet" in sys.modules:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(1)
    raise click.exceptions.Exit(1)


def leave(code: int) -> NoReturn:
    """End with an exit code behind an error of a GPU: at once where there is one, else MXNet prints the error again."""
    mxnet = sys.modules.get("mxnet")
    if mxnet is not None and mxnet.context.num_gpus():
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
    raise click.exceptions.Exit(code)


def _stopped(sentence: str, number: int | None) -> None:
    """Say where the work stopped, and end as a shell tells of a process that signal `number` ended."""
    echo(sentence, err=True)
    raise click.exceptions.Exit(128 + (signal.SIGINT if number is None else number))


def _fail(sentence: str) -> None:
    echo(f"Error: {sentence}", err=True)
    raise click.exceptions.Exit(1)
