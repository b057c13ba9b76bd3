"""How a command is stopped from outside: the first signal asks it to, a second one ends it at once.

Ctrl-C (SIGINT), SIGTERM, SIGHUP (the terminal is gone) and SIGUSR1 (what SLURM is told to send before the time is over)
are requests: the step that is being done, an iteration or an image, is finished and what is there is saved. A signal
that is ignored already, as under ``nohup``, stays ignored.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from typing import Any, Iterator

from cbst_mx.errors import StoppedError

__all__ = ["StopRequest"]

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))
# seconds: what comes this soon belongs to the first request. timeout(1) and batch systems send to the process and to
# its group, so one request arrives twice.
_SAME_REQUEST = 0.5


class StopRequest:
    """The signals that ask for a stop, between :meth:`listen` and the end of its block.

    Attributes
    ----------
    signal : int or None
        Number of the first signal that came.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._since = 0.0

    def check(self, what: str, done: int, total: int) -> None:
        """Raise after a step where a stop is asked for; not after the last one, whose result is about to be written.

        Raises
        ------
        StoppedError
            If a signal came.
        """
        if self.signal is not None and done < total:
            raise StoppedError(what, done, total, signal=self.signal)

    @contextlib.contextmanager
    def listen(self) -> Iterator[StopRequest]:
        """Take the signals as requests within the block; outside of the main thread, which alone may, do nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        handled = {number: signal.getsignal(number) for number in _SIGNALS}
        handled = {number: before for number, before in handled.items() if before not in (signal.SIG_IGN, None)}
        # The main thread may be inside MXNet for as long as an iteration takes, and Python's handlers run behind that
        # only. Its C handler writes the number of the signal at once, and a thread of its own reads it.
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        thread = threading.Thread(target=self._watch, args=(reader, frozenset(handled)), daemon=True)
        thread.start()
        wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        for number in handled:
            signal.signal(number, self._note)
        try:
            yield self
        finally:
            for number, before in handled.items():
                signal.signal(number, before)
            signal.set_wakeup_fd(wakeup)
            writer.close()  # ends the thread
            thread.join()
            reader.close()

    def _note(self, number: int, frame: Any) -> None:
        if self.signal is None:
            self.signal = number

    def _watch(self, reader: socket.socket, requests: frozenset[int]) -> None:
        """Read the numbers of signals as they come; end the process at the second request."""
        while numbers := reader.recv(64):
            for number in requests.intersection(numbers):
                now = time.monotonic()
                if not self._since:
                    self._since = now
                    _say("stopping after this step; once more to stop at once\n")
                elif now - self._since > _SAME_REQUEST:
                    if sys.stdout.isatty():
                        _say("\x1b[?25h", sys.stdout.fileno())  # a progress bar has hidden the cursor
                    _say("stopped at once\n")
                    os._exit(128 + number)


def _say(text: str, descriptor: int = 2) -> None:
    with contextlib.suppress(OSError):  # the terminal may be what is gone
        os.write(descriptor, text.encode())
