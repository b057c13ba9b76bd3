"""What schedulers and workers of a cluster are started with, and what is looked at before a worker's first task.

dask's own defaults let glibc give memory back so often that NumPy's temporaries cost several times the processor time,
and serve web pages on all interfaces of a machine, unencrypted.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import signal
import socket
import threading
import time
import warnings
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, Sequence

import cbst_mx
from cbst_mx.cluster.certificates import AUTHORITY, CERTIFICATE, KEY, check_certificates
from cbst_mx.errors import ConfigError, RunError
from cbst_mx.files import in_one_line
from cbst_mx.messages import cores

__all__ = [
    "HERE",
    "MALLOC",
    "WORKER_MODULE",
    "call",
    "dask_setup",
    "describe",
    "environment",
    "heard",
    "nanny",
    "naming_machine",
    "need_distributed",
    "reason",
    "run_dask_worker",
    "serve_scheduler",
    "serve_worker",
    "settings",
    "worker_environment",
]

#: Of a worker's process, before it starts: keep freed memory, and one arena, of which every thread of a task takes.
#: 33554432 is the largest value that glibc takes; setting one of the first two turns its own tuning off.
MALLOC = {
    "MALLOC_TRIM_THRESHOLD_": "1073741824",
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_ARENA_MAX": "1",
}
WORKER_MODULE = "cbst_mx.cluster.worker"  # what a batch system starts in place of dask's own command
_INSTALL = "pip install 'cbst_mx[scale]'"
HERE = "127.0.0.1:0"  # where the web port of a node is, until `dask_setup`: for this machine, at any free port
_SILENT = 30  # seconds after which a worker that says nothing is given up; see `settings`
_LOOK = 5.0  # seconds between a scheduler's looks for such workers
_BLINK = 0.5  # seconds between a worker's looks at the clock
_ASKED_TO_STOP = ("SIGINT", "SIGHUP", "SIGUSR1")  # a terminal and a batch system send them to whole groups


def need_distributed(what: str = "--cluster") -> None:
    """Refuse to go on without `distributed` and `cryptography`.

    Raises
    ------
    ConfigError
        If one is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python 3.8, which ours says where it matters
            import cryptography  # noqa: F401
        import distributed  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"{what} needs the package {error.name}, which is not installed: {_INSTALL}") from error


def worker_environment(threads: int = 1) -> dict[str, str]:
    """Return the variables of a worker's process.

    Parameters
    ----------
    threads : int
        Of the libraries that compute, within a task.
    """
    threading = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {**MALLOC, **dict.fromkeys(threading, str(threads))}


def settings(threads: int = 1, *, encrypted: bool = True) -> dict[str, Any]:
    """Return the configuration of dask for a scheduler, a worker, or both in one process.

    Parameters
    ----------
    threads : int
        As for :func:`worker_environment`.
    encrypted : bool
        Whether connections that are not are refused.
    """
    return {
        "distributed.nanny.pre-spawn-environ": worker_environment(threads),
        "distributed.comm.require-encryption": encrypted,
        "distributed.worker.preload": [__name__],
        "distributed.scheduler.preload": [__name__],
        # two heartbeats a second (of 1,000 workers one in 6 s) come from a thread that no work of ours holds up for
        # longer than a second; whose machine is gone, and not only silent, is missed after the time of the next line
        "distributed.scheduler.worker-ttl": f"{_SILENT}s",
        "distributed.comm.timeouts.tcp": "30s",
        "distributed.worker.memory.spill": False,  # results are small, and fetched at once
        "distributed.worker.memory.target": False,
        "distributed.worker.memory.pause": False,
        "distributed.worker.memory.terminate": False,
        "distributed.worker.profile.enabled": False,
        "distributed.scheduler.worker-saturation": 1.0,
        # dask's own 15 s give up for ever a worker that a busy machine has not started again by then
        "distributed.deploy.lost-worker-timeout": "1 day",
        "distributed.scheduler.allowed-failures": 1,  # of shares among others; see Cluster.each
        "distributed.admin.event-loop-monitor-interval": "1h",
        "distributed.admin.low-level-log-length": 0,
    }


def dask_setup(node: Any) -> None:
    """Let a worker be deaf to what asks the command to stop, and a scheduler look for silent workers often enough.

    Called by dask when one starts, as its preload. A scheduler itself would look once in the time that is allowed, and
    give up a worker after up to twice of it. Neither has web pages: those of dask ask for no certificate, and that of
    what is being done is there, without having been asked for, where Bokeh is installed.
    """
    node.http_server.stop()
    if (look := getattr(node, "periodic_callbacks", {}).get("worker-ttl")) is not None:
        look.callback_time = 1000 * _LOOK
        return
    for name in _ASKED_TO_STOP:
        with contextlib.suppress(AttributeError, ValueError):  # not of this system; not in the main thread
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_end_behind_a_pause, daemon=True).start()


def _end_behind_a_pause() -> None:
    """End this process, a worker, once it finds that it has stood still until its work was given to another.

    What it would write now could meet what those write who have the work.
    """
    while True:
        before = time.monotonic()
        time.sleep(_BLINK)
        if time.monotonic() - before > _SILENT:
            os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


def call(work: Callable[[], Any], needs: Path | None) -> Any:
    """Do a share of work; on a worker.

    Raises
    ------
    RunError
        If the file it needs is not there; as :func:`naming_machine`.
    """
    _prepare()
    if needs is not None and not needs.exists():
        raise RunError(
            f"{needs} is not there on {socket.gethostname()}: every worker must see the files of the work under the "
            "same path"
        )
    return naming_machine(work)


def naming_machine(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function on a worker, and say on which machine what the system does not let it do.

    The command that gets an OSError could not tell it from one of its connections: they are of one kind, and NFS has
    timeouts, too.

    Raises
    ------
    RunError
        In place of its OSError.
    """
    try:
        return function(*arguments)
    except OSError as error:
        host, what = socket.gethostname(), error.filename or "a file"
        raise RunError(f"{what} cannot be used on {host}: {error.strerror or error}") from error


@functools.lru_cache(maxsize=1)
def _prepare() -> None:
    """Do once in a process what has to be done before its first task."""
    import cv2

    cv2.setNumThreads(1)  # the workers share the processor already


def describe() -> dict[str, str]:
    """Return what must be the same everywhere, and what a worker was started with; on a worker."""
    import distributed

    return {
        "cbst_mx": cbst_mx.__version__,
        "distributed": distributed.__version__,
        "Python": ".".join(platform.python_version_tuple()[:2]),
        "MALLOC_TRIM_THRESHOLD_": os.environ.get("MALLOC_TRIM_THRESHOLD_", ""),
        "host": socket.gethostname(),
    }


def heard(dask_scheduler: Any, within: float) -> list[str]:
    """Return the addresses of the workers that were heard of lately; run on the scheduler.

    Parameters
    ----------
    dask_scheduler : Scheduler
        Given by dask, by this name.
    within : float
        Seconds.
    """
    from distributed.metrics import time as now

    return [address for address, one in dask_scheduler.workers.items() if now() - one.last_seen < within]


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables within the block, for processes that are started in it."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def nanny() -> type:
    """Return dask's class of what starts a worker and starts it again, without the second where one ends as it starts.

    The dask of Python 3.8 and 3.9 would start such a worker again without end, and nobody would hear of it. One that
    is started before its scheduler may be given, by chance, the very port that the scheduler is to have; it would ask
    itself for work without end.
    """
    import distributed
    from distributed.core import Status

    class Nanny(distributed.Nanny):
        async def start_unsafe(self) -> Any:
            made = await super().start_unsafe()
            if self.status is not Status.init:  # closed: the dask of Python 3.8 makes no error of it
                raise RunError("a worker's process ended while it started")
            return made

        async def listen(self, *arguments: Any, **options: Any) -> None:
            await super().listen(*arguments, **options)
            if _port(self.listeners[-1].contact_address) == _port(self.scheduler.addr):
                taken = self.listeners.pop()
                await super().listen(*arguments, **options)  # anywhere else, while this port is taken
                taken.stop()

        async def _on_worker_exit(self, exitcode: int) -> None:
            if self.status is not Status.init:  # then the start fails, with an error
                await super()._on_worker_exit(exitcode)

    return Nanny


def _port(address: str) -> str:
    return address.rpartition(":")[2]


def serve_worker(address: str, certificates: Path | None, *, host: str | None = None, threads: int = 0) -> None:
    """Be a worker of a scheduler, in this process and one that it watches, until a signal or the scheduler ends it.

    Parameters
    ----------
    address : str
        ``tls://HOST:PORT`` of the scheduler.
    certificates : Path, optional
        Folder of the certificates.
    host : str, optional
        Address of this machine to listen on; by default the one from which the scheduler is reached.
    threads : int
        Of the libraries that compute within a task; 0: the cores of this process.

    Raises
    ------
    RunError
        If it cannot start, as without a scheduler.
    """
    need_distributed("a worker of a cluster")
    from distributed.utils import get_ip

    if host is None:
        scheduler, _, port = address.partition("://")[2].rpartition(":")
        host = get_ip(scheduler.strip("[]"), int(port))
    run_dask_worker([address, "--host", host, *_certificate_options(certificates)], threads or cores())


def run_dask_worker(arguments: Sequence[str], threads: int) -> None:
    """Run dask's own command for a worker, with our settings: one task at a time.

    Raises
    ------
    RunError
        If it cannot start.
    """
    from distributed.cli import dask_worker

    _settle(threads, "--tls-cert" in arguments)
    dask_worker.Nanny = nanny()  # what that command takes by this name
    with _one_sentence(f"a worker of {arguments[0]} cannot start"):
        dask_worker.main.main([*arguments, *_WORKER], standalone_mode=False)


_WORKER = ("--dashboard-address", HERE, "--nthreads", "1", "--memory-limit", "0")


def serve_scheduler(host: str, port: int, certificates: Path | None) -> None:
    """Be a scheduler that listens on one address of this machine, until a signal ends it.

    Parameters
    ----------
    host : str
        The address.
    port : int
        8786 is dask's own.
    certificates : Path, optional
        Folder of the certificates.

    Raises
    ------
    RunError
        If it cannot start, as where another program listens there.
    """
    need_distributed("a scheduler of a cluster")
    from distributed.cli import dask_scheduler

    _settle(1, certificates is not None)
    given = ["--host", host, "--port", str(port), "--dashboard-address", HERE, *_certificate_options(certificates)]
    with _one_sentence(f"the scheduler at {host}:{port} cannot start"):
        dask_scheduler.main.main(given, standalone_mode=False)


@contextlib.contextmanager
def _one_sentence(what: str) -> Iterator[None]:
    """Make one sentence of what dask says, whose errors are those of the system in errors of its own."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        raise RunError(f"{what}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """Return what an error of dask says, and what is behind it, in one line.

    Parameters
    ----------
    error : BaseException
        Where it may come of certificates, that is said too.
    """
    if isinstance(error, RuntimeError) and error.__cause__ is not None:  # "Scheduler failed to start."
        error = error.__cause__
    said = [in_one_line(one) for one in (error, error.__cause__) if one is not None]
    text = "; ".join(dict.fromkeys(one for one in said if one)) or type(error).__name__
    if any(sign in text for sign in ("certificate", "CERTIFICATE", "SSL:", "closed")):
        text += " (its certificates may be others than those given, or one of the two uses none)"
    return text


def _settle(threads: int, encrypted: bool) -> None:
    """Take our settings for the rest of this process, and its variables for those that it starts."""
    import dask

    dask.config.set(settings(threads, encrypted=encrypted))
    os.environ.update(worker_environment(threads))


def _certificate_options(folder: Path | None) -> list[str]:
    if folder is None:
        return []
    check_certificates(folder)
    files = (("--tls-ca-file", AUTHORITY), ("--tls-cert", CERTIFICATE), ("--tls-key", KEY))
    return [word for option, name in files for word in (option, str(folder / name))]
