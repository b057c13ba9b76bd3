"""The log of a run folder: lines that a terminal can show, and the reason of every end."""

from __future__ import annotations

import logging
from pathlib import Path

from cbst_mx.errors import CBSTError, StoppedError
from cbst_mx.messages import printable

__all__ = ["log_end", "open_log"]


class _Lines(logging.Formatter):
    """Lines that may be shown in a terminal, whatever names are in them."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        return printable(super().format(record))


class _LogFile(logging.FileHandler):
    """The log file; a line that a full disk does not take is left out."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Go on: the next file of the run says what is wrong with the disk, and logging knows a traceback only."""


def open_log(path: Path) -> logging.Handler:
    """Return the handler that adds lines to a log file.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(_Lines("%(asctime)s %(levelname)s %(message)s"))
    return handler


def log_end(handler: logging.Handler, error: BaseException) -> None:
    """Write into the log file alone why the work ended: whoever called says it to the user.

    Parameters
    ----------
    handler : Handler
        The log file, as :func:`open_log` returns it.
    error : BaseException
        What ended the work.
    """
    level, text = logging.ERROR, " ".join(str(error).split())
    if isinstance(error, StoppedError):
        level = logging.INFO
    elif not isinstance(error, CBSTError):
        text = f"ended by {type(error).__name__}" + (f": {text}" if str(error) else "")
    handler.handle(logging.LogRecord(__name__, level, __file__, 0, "%s", (text,), None))
