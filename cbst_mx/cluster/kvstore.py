"""Processes that work together over MXNet's kvstore: started on the workers of a cluster, watched, and started again.

ps-lite, below the kvstore, has three kinds of processes: a scheduler, servers that add up, and workers that compute. It
notices no death: whoever is left waits for ever. So every machine watches its own processes, the command looks at all
machines twice a second, and when one is lost, all are ended and begin again from what they have saved. A process ends
with whoever started it. ps-lite encrypts nothing and asks nobody who he is.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from multiprocessing.connection import Connection, Pipe
from typing import IO, Any, Callable, Mapping, NamedTuple, Sequence

from cbst_mx.cluster import nodes
from cbst_mx.cluster.engine import Cluster
from cbst_mx.cluster.where import is_loopback
from cbst_mx.errors import CBSTError, ConfigError, RunError, StoppedError, explain_device
from cbst_mx.messages import counted

__all__ = ["KVStore", "Seat"]

logger = logging.getLogger(__name__)

_AGAIN = 3  # times that all is begun again
_LOOK = 0.5  # seconds between looks at the machines
_SOON = 5.0  # seconds after which it is told that workers are waited for
_FEWER = 60.0  # seconds to wait for a machine that was lost, before it is done without
_PATIENCE = 120.0  # seconds for all to save what they have, when they are asked to stop
_SILENT = 10.0  # seconds to wait for a machine's answer where all is to end anyway
_LEASE = 60.0  # seconds without a look after which a machine ends its processes: the command is gone
_SERVE = "from cbst_mx.cluster.kvstore import attend; attend({0}); import symbols.backend"  # whose import serves
_WORK = "from cbst_mx.cluster.kvstore import work; work({0})"


# -- in a process that works ---------------------------------------------------------------------------------------


class Seat:
    """What a function that works with others has: the way to the command.

    Attributes
    ----------
    asked_to_stop : bool
        Whether the command wants all to save what they have, and to end.
    """

    def __init__(self, connection: Connection):
        self.asked_to_stop = False
        self._connection = connection

    def tell(self, event: Any) -> None:
        """Send something to the command."""
        self._connection.send(event)

    def listen(self) -> None:
        """Wait for what the command says; end this process when the one that started it is gone."""
        try:
            while True:
                self.asked_to_stop = bool(self._connection.recv())
        except (EOFError, OSError):
            os.kill(os.getpid(), signal.SIGKILL)  # what it saves now would mix with what those say who go on


def attend(handle: int) -> Seat:
    """Take the seat at the end `handle` of a pipe; called first in a process."""
    seat = Seat(Connection(handle))
    threading.Thread(target=seat.listen, daemon=True).start()
    return seat


def work(handle: int) -> None:
    """Do what standard input says, in a process that computes; a sentence on an error goes to the command."""
    seat = attend(handle)
    try:
        function, arguments = pickle.load(sys.stdin.buffer)
        function(*arguments, seat)
    except BaseException as error:
        known = explain_device(error)
        if isinstance(error, CBSTError) or known:
            seat.tell(error if known is None else RunError(known))
        else:
            traceback.print_exc()
        os.kill(os.getpid(), signal.SIGKILL)  # the end of mxnet waits for the others, who may wait for this one


# -- on a worker of the cluster ------------------------------------------------------------------------------------


class Report(NamedTuple):
    """What has become of the processes of a machine."""

    events: list[Any]  # told by the one that computes, since the last report
    ended: dict[str, int]  # role to exit code, of those that have ended
    said: str  # the last line of what they wrote


class _Process(NamedTuple):
    process: subprocess.Popen[bytes]
    connection: Connection
    said: IO[bytes]


class _Machine:
    """The processes of one machine."""

    def __init__(self, order: bytes, roles: Mapping[str, Mapping[str, str]]):
        self._processes: dict[str, _Process] = {}
        self._looked = time.monotonic()
        self._ending = threading.Lock()
        for role, variables in roles.items():
            self._processes[role] = self._start(order, role, variables)
        threading.Thread(target=self._end_without_looks, daemon=True).start()

    def _start(self, order: bytes, role: str, variables: Mapping[str, str]) -> _Process:
        ours, theirs = Pipe()
        # what ps-lite would obey: PORT is a port for all, and DMLC_USE_KUBERNETES lets the scheduler listen everywhere
        environment = {name: value for name, value in os.environ.items() if name != "PORT" and name[:5] != "DMLC_"}
        code = (_WORK if role == "worker" else _SERVE).format(theirs.fileno())
        said = tempfile.TemporaryFile()  # noqa: SIM115  (until the process has ended)
        with tempfile.TemporaryFile() as given, theirs:
            given.write(order if role == "worker" else b"")
            given.seek(0)
            process = subprocess.Popen(
                [sys.executable, "-c", code],
                env={**environment, **variables, "DMLC_ROLE": role},
                pass_fds=[theirs.fileno()],
                stdin=given,
                stdout=said,
                stderr=subprocess.STDOUT,
            )
        return _Process(process, ours, said)

    def _end_without_looks(self) -> None:
        while any(one.process.poll() is None for one in self._processes.values()):
            if time.monotonic() - self._looked > _LEASE:
                self.end()
            time.sleep(1)

    def report(self) -> Report:
        self._looked = time.monotonic()
        ended = {role: one.process.poll() for role, one in self._processes.items()}  # before what they told is read
        events = []
        for one in self._processes.values():
            try:
                while one.connection.poll():
                    events.append(one.connection.recv())
            except (EOFError, OSError):
                continue
        return Report(events, {role: code for role, code in ended.items() if code is not None}, self._last_line())

    def _last_line(self) -> str:
        for one in self._processes.values():
            if one.process.poll():
                size = one.said.seek(0, os.SEEK_END)
                one.said.seek(max(0, size - 4096))
                lines = one.said.read().decode("utf-8", "replace").strip().splitlines()
                if lines:
                    return lines[-1].strip()
        return ""

    def ask_to_stop(self) -> None:
        if (one := self._processes.get("worker")) is not None and one.process.poll() is None:
            one.connection.send(True)

    def end(self) -> None:
        with self._ending:  # the command may ask for it just when nobody has looked for too long
            for one in self._processes.values():
                one.process.kill()
            for one in self._processes.values():
                one.process.wait()
                one.connection.close()
                one.said.close()


_MACHINES: dict[str, _Machine] = {}  # of this worker, by the name of what they do


def free_port(host: str) -> int:
    """Return a port of this machine at which nobody listens."""
    with socket.socket() as one:
        one.bind((host, 0))
        return int(one.getsockname()[1])


def start(name: str, order: bytes, roles: Mapping[str, Mapping[str, str]]) -> None:
    """Start the processes of this machine: role to its environment; none of that name are there."""
    _MACHINES[name] = _Machine(order, roles)


def report(name: str) -> Report:
    """Return what has become of them."""
    return _MACHINES[name].report()


def ask_to_stop(name: str) -> None:
    """Ask the one that computes to save what it has, and to end."""
    _MACHINES[name].ask_to_stop()


def end(name: str) -> None:
    """End them."""
    if (machine := _MACHINES.pop(name, None)) is not None:
        machine.end()


# -- in the command ------------------------------------------------------------------------------------------------


class KVStore:
    """Starts processes that work together, one on each of several workers of a cluster.

    Parameters
    ----------
    cluster : Cluster
        Open.
    size : int
        Number of processes that compute.

    Raises
    ------
    ConfigError
        If the cluster will not have so many workers.
    """

    def __init__(self, cluster: Cluster, size: int):
        if 0 < cluster.wanted < size:
            workers = counted(cluster.wanted, "worker")
            raise ConfigError(f"processes that train must be at most the {workers} of the cluster, got {size}")
        self.size = size
        self._cluster, self._told, self._met = cluster, False, False

    def __call__(
        self, function: Callable[..., None], arguments: Sequence[Any], hear: Callable[[Any], None], *, name: str
    ) -> None:
        """Call ``function(*arguments, seat)`` in all processes, until it has returned in each.

        If one is lost, all are ended and begin again, at most three times: the function goes on from what it has
        saved. A machine that was lost, now or before, and does not come back within a minute is done without.

        Parameters
        ----------
        function : callable
            Of a module that the workers have; its :class:`Seat` comes last.
        arguments : sequence
            The others.
        hear : callable
            Called with what the processes tell, and with None while nothing comes; it may raise StoppedError, which
            asks all to save what they have, and passes when they have ended.
        name : str
            What the work is: processes of a command before this one, which was killed, may still do it and save what
            they have. They are ended first.

        Raises
        ------
        StoppedError
            If `hear` does.
        RunError
            If processes are lost again and again, or the scheduler of the cluster is gone.
        CBSTError
            What the function raised.
        """
        from distributed.protocol import pickle as of_more  # than the standard library's takes

        order = of_more.dumps((function, tuple(arguments)))
        wanted, what = self.size, counted(self.size, "process", "processes")
        for attempt in range(1 + _AGAIN):
            machines = self._machines(wanted, hear)
            wanted = len(machines)
            trouble = _Attempt(self._cluster, machines, hear, name).run(order)
            if not trouble:
                return
            if attempt < _AGAIN:
                logger.warning("training in %s: %s; all begin again where they saved last", what, trouble)
        times = counted(1 + _AGAIN, "time")
        raise RunError(f"training in {what}: {trouble}, {times}; what was saved is kept, and the same command goes on")

    def _machines(self, wanted: int, hear: Callable[[Any], None]) -> list[str]:
        """Wait for so many workers, and return their addresses; without end only until all have been there once."""
        begun, told = time.monotonic(), False
        while True:
            there = sorted(self._cluster.workers())
            if len(there) >= wanted:
                self._met = True
                break
            if not told and time.monotonic() - begun > _SOON:
                logger.warning("training waits for %s, %d are there", counted(wanted, "worker"), len(there))
                told = True
            if self._met and there and time.monotonic() - begun > _FEWER:
                missing = f"{len(there)} of {wanted} workers are there"
                changes = "last digits, and the masks of dropout and the statistics of batches"
                logger.warning("%s: each batch is spread over these, which changes %s", missing, changes)
                break
            hear(None)
            time.sleep(_LOOK)
        if any(":" in _host(address) for address in there[:wanted]):
            raise ConfigError(f"workers that train must have IPv4 addresses, got {', '.join(there[:wanted])}")
        if not self._told and any(not is_loopback(_host(address)) for address in there):
            logger.warning(
                "gradients and parameters go over the network by ps-lite, which neither encrypts nor asks who "
                "connects, and whoever does can run programs: use a private network"
            )
            self._told = True
        return there[:wanted]


class _LostError(Exception):
    """A worker, or the scheduler of the cluster, does not answer."""


class _Attempt:
    """All processes of a training, from their start to the end of the first or the last of them."""

    def __init__(self, cluster: Cluster, machines: Sequence[str], hear: Callable[[Any], None], name: str):
        self._cluster, self._machines, self._hear, self._name = cluster, list(machines), hear, name
        self._stopped: StoppedError | None = None
        self._deadline = float("inf")
        self._over = False

    def run(self, order: bytes) -> str:
        """Return what went wrong, nothing where all have done their work."""
        try:
            self._ask(end, self._name, on_error="return")  # on all workers: of an earlier command
            self._start(order)
            return self._watch()
        except _LostError as error:
            if self._stopped is not None:
                logger.warning("%s: what was done since the last checkpoint is lost", error)
                raise self._stopped from error
            return str(error)
        finally:
            self._over = True
            with contextlib.suppress(_LostError, RunError):  # whoever cannot be reached ends by itself
                self._on_all(end)

    def _start(self, order: bytes) -> None:
        root = _host(self._machines[0])
        (port,) = self._ask(free_port, root, workers=self._machines[:1]).values()
        shared = {
            "DMLC_PS_ROOT_URI": root,
            "DMLC_PS_ROOT_PORT": str(port),
            "DMLC_NUM_WORKER": str(len(self._machines)),
            "DMLC_NUM_SERVER": str(len(self._machines)),
        }
        for place, address in enumerate(self._machines):
            own = {**shared, "DMLC_NODE_HOST": _host(address)}  # all that each listens on
            roles = dict.fromkeys(["server", "worker"] if place else ["scheduler", "server", "worker"], own)
            self._ask(start, self._name, order, roles, workers=[address])

    def _ask(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> dict[str, Any]:
        """Call a function on workers, by default on all; return its results by address.

        A machine that says nothing is waited for until the scheduler gives it up; only shortly where all is to end.
        """
        client, begun = self._cluster.client, time.monotonic()
        asked = asyncio.run_coroutine_threadsafe(
            client.run(nodes.naming_machine, function, *arguments, asynchronous=True, **options),
            client.loop.asyncio_loop,
        )
        while not concurrent.futures.wait([asked], timeout=_LOOK).done:
            if (self._over or self._stopped is not None) and time.monotonic() - begun > _SILENT:
                asked.cancel()
                raise _LostError("a worker does not answer")
            if not self._over:
                self._cluster.workers()  # an error if the scheduler is gone
                self._take(None)
        try:
            return asked.result()
        except (OSError, asyncio.TimeoutError, TimeoutError, KeyError, ValueError) as error:
            raise _LostError(f"a worker or the scheduler does not answer ({type(error).__name__})") from error

    def _on_all(self, function: Callable[[str], Any]) -> dict[str, Any]:
        """Call a function on all machines that are there; one that cannot answer gives an exception."""
        there = self._cluster.workers()
        present = [address for address in self._machines if address in there]
        return self._ask(function, self._name, workers=present, on_error="return") if present else {}

    def _watch(self) -> str:
        asked = False
        while True:
            if self._stopped is not None and not asked:
                self._on_all(ask_to_stop)
                asked = True
            time.sleep(_LOOK)
            reports = self._on_all(report)
            trouble = self._read(reports)
            if trouble and self._stopped is None:
                return trouble
            there = [one for one in reports.values() if isinstance(one, Report)]
            at_work = [one for one in there if "worker" not in one.ended]
            if self._stopped is not None:  # one of them saves what all have
                if not at_work or time.monotonic() > self._deadline:
                    raise self._stopped
            elif len(there) == len(self._machines) and not at_work:
                return ""

    def _read(self, reports: Mapping[str, Any]) -> str:
        """Hear what was told, and return what went wrong."""
        trouble, heard = "", False
        for address in self._machines:
            found = reports.get(address)
            if not isinstance(found, Report):
                trouble = trouble or f"worker {address} is gone"
                continue
            for event in found.events:
                heard = True
                self._take(event)
            for role, code in found.ended.items():
                if code:
                    by = f"by signal {-code}" if code < 0 else f"with code {code}"
                    trouble = trouble or f"the {role} at {address} ended {by}" + (found.said and f" ({found.said})")
        if not heard:
            self._take(None)
        return trouble

    def _take(self, event: Any) -> None:
        if isinstance(event, StoppedError):  # as it was asked to
            return
        if isinstance(event, BaseException):
            raise event
        if self._stopped is not None:
            return
        try:
            self._hear(event)
        except StoppedError as error:
            self._stopped, self._deadline = error, time.monotonic() + _PATIENCE


def _host(address: str) -> str:
    """Return the host of ``tls://HOST:PORT``."""
    return address.partition("://")[2].rpartition(":")[0].strip("[]")
