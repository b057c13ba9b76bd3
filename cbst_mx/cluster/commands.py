"""A command of this program in a process of its own, which ends with the process that started it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import Callable, Sequence

from cbst_mx.messages import silent

__all__ = ["end_with_parent", "run_command"]

_CHILD = (
    "from cbst_mx.cluster.commands import end_with_parent; end_with_parent()\n"
    "from cbst_mx.cli import main; main(prog_name='cbst-mx')"
)
_LOOK = 0.5  # seconds between looks at a command that is running
_PATIENCE = 60.0  # seconds that a command has to save what it has; and that a folder may be in use by one before
_IN_USE = " is in use by "  # what a command says whose folder another process works in


def run_command(
    arguments: Sequence[str], waiting_for: Callable[[], None] = silent, patience: float = _PATIENCE
) -> tuple[int, str]:
    """Run a command and wait for its end.

    A folder that another process works in is waited for: the command that a lost worker had started may still be
    saving what it has.

    Parameters
    ----------
    arguments : sequence of str
        Of ``cbst-mx``.
    waiting_for : callable, optional
        Called twice a second; it may raise to end the command, which then saves what it has.
    patience : float
        Seconds that a folder may be in use.

    Returns
    -------
    code : int
        What the process returned; negative where a signal ended it.
    last : str
        The last line of what it said.
    """
    begun = time.monotonic()
    while True:
        code, said = _once(arguments, waiting_for)
        if code != 1 or _IN_USE not in said or time.monotonic() - begun > patience:
            return code, said.strip().rpartition("\n")[2]
        time.sleep(_LOOK)


def _once(arguments: Sequence[str], waiting_for: Callable[[], None]) -> tuple[int, str]:
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [sys.executable, "-c", _CHILD, *arguments], stdin=subprocess.PIPE, stdout=said, stderr=subprocess.STDOUT
        )
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_LOOK)
                    break
                waiting_for()
        except BaseException:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_PATIENCE)
            raise
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            if process.stdin is not None:
                process.stdin.close()
        said.seek(0)
        return process.returncode, said.read().decode("utf-8", "replace").replace("\r", "\n")


def end_with_parent() -> None:
    """Let this process stop as by SIGTERM when the one that started it is gone, however that ended.

    That one holds the other end of this process's standard input, which closes then.
    """
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 1):
            pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_PATIENCE)
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
