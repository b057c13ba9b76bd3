"""Processes that share the images of a labelling job."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver, get_all_start_methods, get_context, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

import cv2

from cbst_mx.errors import ConfigError, RunError
from cbst_mx.labelling.map_folder import MapFolder
from cbst_mx.messages import Share, Shares, shares_of, silent

__all__ = ["Workers", "check_workers"]

_MOST = 1000  # processes
_BLOCK = 16  # images a process is given at a time, at most
_BLOCK_SECONDS = 1.0  # about as long as a block may take in this process, which looks for a stop behind each
_LOOK = 0.5  # seconds between looks for a stop while processes are at work
_STOPPED = "a worker process was stopped from outside, perhaps for lack of memory"
_PR_SET_PDEATHSIG = 1  # of Linux's <sys/prctl.h>


def _start(alive: Connection) -> None:
    for number in _requests():  # the process that started the job says when to end
        signal.signal(number, signal.SIG_IGN)
    _die_with_parent()
    cv2.setNumThreads(1)  # the processes share the processor already
    threading.Thread(target=_end_with_parent, args=(alive,), daemon=True).start()


def _end_with_parent(alive: Connection) -> None:
    """End this process when the one that started the job is gone, however that ended: its end of the pipe closes."""
    with contextlib.suppress(EOFError, OSError):
        alive.recv_bytes()
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


def _die_with_parent() -> None:
    """Ask Linux to end this process with the fork server, should the thread of :func:`_end_with_parent` be held up."""
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _context() -> BaseContext:
    """Return how processes start: never as copies of this one, which may hold threads of other libraries."""
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])  # imported once for all of them
    for process in (resource_tracker, forkserver):  # in this order: starting the first unmasks signals
        with _signals_held():
            process.ensure_running()
    return context


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Let processes that are started in the block be deaf to the signals that ask for a stop, as :func:`_start` has it.

    They come to this process when the block ends.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _requests())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _requests() -> list[int]:
    """Return the signals that a terminal and a batch system send to all processes of a job."""
    return [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]


class Workers:
    """The processes of a job, started when they are first needed; with one worker this process does all.

    Parameters
    ----------
    number : int
        Processes of this machine.
    cluster : Shares, optional
        Processes elsewhere, in their place.
    """

    def __init__(self, number: int, cluster: Shares | None = None):
        check_workers(number)
        self._number = number if cluster is None else cluster.size
        self._cluster = cluster
        self._pool: ProcessPoolExecutor | None = None
        self._alive: Connection | None = None  # never written to; open as long as this process lives

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._alive is not None and exception[0] is not None:
            self._alive.close()  # nobody waits for what they are at: they end at once
        if self._pool is not None:
            if exception[0] is not None:
                # one that ends within a result leaves half of it, for whose rest the pool would wait for ever, were
                # this process's own end of the pipe, which it does not use, still open
                self._pool._result_queue._writer.close()  # type: ignore[attr-defined]
            self._pool.shutdown()
        if self._alive is not None:
            self._alive.close()

    def blocks(
        self,
        function: Callable[..., Any],
        folder: MapFolder,
        names: Sequence[str],
        *arguments: Any,
        waiting_for: Callable[[], None] = silent,
    ) -> Iterator[tuple[int, Any]]:
        """Call ``function(part of folder, *arguments)`` for all of `names`, block by block.

        Yields the length of a block and the result, in any order. `waiting_for` is called twice a second while
        processes are waited for; it may raise to end the work.
        """
        length = max(1, min(_BLOCK, -(-len(names) // (2 * self._number))))
        places = {name: index for index, name in enumerate(folder.names)}
        indices = [places[name] for name in names]
        if self._cluster is None and (self._number == 1 or len(indices) <= length):
            yield from _one_by_one(function, folder, indices, *arguments)
            return
        parts = [indices[start : start + length] for start in range(0, len(indices), length)]
        if self._cluster is not None:
            given = [one.absolute() if isinstance(one, Path) else one for one in arguments]

            def share(part: Sequence[int]) -> Share:
                block = folder.subset(part).absolute()
                return Share((block, *given), block.names, block.paths[0], stays=True)

            shares = shares_of(share, parts)
            for index, result in self._cluster.each(function, shares, waiting_for=waiting_for):
                yield len(shares[index].names), result
            return
        blocks = [folder.subset(part) for part in parts]
        if self._pool is None:
            context = _context()
            watched, self._alive = context.Pipe(duplex=False)
            self._pool = ProcessPoolExecutor(self._number, context, initializer=_start, initargs=(watched,))
        waiting: dict[Future, int] = {}
        try:
            while blocks or waiting:
                while blocks and len(waiting) < 2 * self._number:  # results wait in memory
                    block = blocks.pop(0)
                    waiting[self._pool.submit(function, block, *arguments)] = len(block.names)
                done, _ = wait(waiting, timeout=_LOOK, return_when=FIRST_COMPLETED)
                if not done:
                    waiting_for()
                    self._check_processes()
                for future in done:
                    yield waiting.pop(future), future.result()
        except BrokenProcessPool as error:
            raise RunError(_STOPPED) from error
        finally:
            for future in waiting:
                future.cancel()

    def _check_processes(self) -> None:
        """Refuse to wait where a process is gone: the pool does not see it if it ended within a result."""
        processes = list((self._pool._processes or {}).values()) if self._pool is not None else []
        if any(process.exitcode for process in processes):
            time.sleep(_LOOK)  # the pool may see it now
            if self._pool is not None and not self._pool._broken:
                raise RunError(_STOPPED)


def _one_by_one(
    function: Callable[..., Any], folder: MapFolder, indices: Sequence[int], *arguments: Any
) -> Iterator[tuple[int, Any]]:
    """Call `function` in this process, with as many images at a time as take about a second."""
    done, length = 0, 1
    while done < len(indices):
        begun = time.monotonic()
        block = indices[done : done + length]
        yield len(block), function(folder.subset(block), *arguments)
        done += length
        each = max(1e-9, time.monotonic() - begun) / len(block)
        length = max(1, min(_BLOCK, int(_BLOCK_SECONDS / each)))


def check_workers(workers: int) -> None:
    """Refuse a number of processes that no job can have.

    Raises
    ------
    ConfigError
        If it is below 1 or above 1,000.
    """
    if workers < 1:
        raise ConfigError(f"workers must be at least 1, got {workers}")
    if workers > _MOST:
        raise ConfigError(f"workers must be at most {_MOST:,}, got {workers}")
