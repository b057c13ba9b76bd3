"""An open cluster: it is given work, and says in one sentence what went wrong."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import functools
import importlib
import logging
import time
from pathlib import Path
from typing import Any, Callable, Collection, Iterator, Mapping, Sequence

from cbst_mx.cluster import nodes
from cbst_mx.cluster.certificates import security
from cbst_mx.cluster.where import BATCH_SYSTEMS, JobQueue, Where, read_job_queue
from cbst_mx.errors import ConfigError, RunError
from cbst_mx.messages import Share, Together, cores, listed, silent

__all__ = ["Cluster", "open_cluster"]

logger = logging.getLogger(__name__)

_LOOK = 0.5  # seconds between looks for a stop, and at the workers
_AHEAD = 2  # shares that are on their way for each worker: results wait in memory
_ENOUGH = 5  # images that end their workers: the others are not tried any more
_GONE = 30.0  # seconds without a scheduler after which it is taken to be gone
_ANSWER = 5.0  # seconds that it may take to say which workers are there
_CONNECT = 30.0  # seconds to find one
_QUIET = 10.0  # seconds that workers may take to describe themselves, or have said nothing; 1,000 speak every 6 s


class Cluster:
    """Workers that do shares of work; made by :func:`open_cluster`, which closes it.

    Parameters
    ----------
    client : distributed.Client
        Connected.
    name : str
        What sentences call it.
    wanted : int
        Workers that are expected; fewer may have come yet.

    Attributes
    ----------
    wanted : int
        As given; 0: unknown.
    together : KVStore or None
        Starts processes on the workers that train together; None where training stays with the command.
    """

    def __init__(self, client: Any, name: str, wanted: int = 0):
        self.together: Together | None = None
        self._client, self._name, self.wanted = client, name, wanted
        self._workers: set[str] = set()
        self._asked: set[str] = set()  # which versions they have
        self._lost = 0.0  # since when the scheduler does not answer
        self._told = False
        self._look_at_workers()

    @property
    def size(self) -> int:
        """Number of workers, at least 1: those that are there, or those that were asked for."""
        return max(1, self.wanted, len(self._workers))

    @property
    def client(self) -> Any:
        """The connected ``distributed.Client``."""
        return self._client

    def workers(self) -> list[str]:
        """Return the addresses of the workers that are there now.

        Raises
        ------
        RunError
            If the scheduler is gone.
        """
        self._check()
        return sorted(self._workers)

    def each(
        self,
        function: Callable[..., Any],
        shares: list[Share],
        *,
        waiting_for: Callable[[], None] = silent,
        ahead: int = _AHEAD,
    ) -> Iterator[tuple[int, Any]]:
        """Call ``function(*share.arguments)`` for all shares, on the workers.

        A share whose worker is lost is done again by another one. One that was being done while two workers were lost
        is set aside, and tried once more when nothing else is at work; if that ends two workers again, it is taken
        apart, each image is tried in the same way, and those that end workers are to blame. The others are done.

        Parameters
        ----------
        function : callable
            Of a module that the workers have.
        shares : list of Share
            What to call it with; more may be added at its end while results are taken, and are, where one is taken
            apart.
        waiting_for : callable, optional
            Called twice a second while nothing comes; it may raise to end the work.
        ahead : int
            Shares that are on their way for each worker; 1 where a share takes longer than a second or so.

        Yields
        ------
        index : int
            Of the share, in any order.
        result : object

        Raises
        ------
        RunError
            If a share ends the workers that do it, or the scheduler is gone.
        CBSTError
            What the function raised.
        """
        from distributed.comm import CommClosedError
        from distributed.scheduler import KilledWorker

        left: collections.deque[int] = collections.deque()
        suspects: collections.deque[int] = collections.deque()
        waiting: dict[concurrent.futures.Future, int] = {}
        ended: dict[int, range] = {}  # shares that ended the workers that did nothing else, and where their images are
        alone, taken = False, 0
        try:
            while (left or waiting or suspects or taken < len(shares)) and _to_be_named(ended) < _ENOUGH:
                left.extend(range(taken, len(shares)))
                taken = len(shares)
                if not left and not waiting:
                    alone = True
                    left.append(suspects.popleft())
                self._check_open()
                while left and len(waiting) < (1 if alone else ahead * self.size):
                    index = left.popleft()
                    # as one object: a tuple whose first element can be called is a task of its own to Dask of 2023
                    work = functools.partial(function, *shares[index].arguments)
                    waiting[self._submit(work, shares[index].needs)] = index
                done, _ = concurrent.futures.wait(
                    waiting, timeout=_LOOK, return_when=concurrent.futures.FIRST_COMPLETED
                )
                if not done:
                    waiting_for()
                    self._check()
                for future in done:
                    index = waiting.pop(future)
                    try:
                        result = future.result()
                    except (OSError, asyncio.TimeoutError) as error:  # of the connection: work tells its own in words
                        raise RunError(self._scheduler_gone()) from error
                    except KilledWorker:
                        if alone:
                            ended[index] = self._take_apart(shares, index)
                        else:
                            suspects.append(index)
                        continue
                    yield index, result
        except (concurrent.futures.CancelledError, asyncio.CancelledError, CommClosedError) as error:
            raise RunError(self._scheduler_gone()) from error
        finally:
            for future in waiting:
                future.cancel()
        if ended:
            raise RunError(
                f"the workers that were given {listed(_to_blame(shares, ended), what='image')} were stopped from "
                f"outside or ended, again and again, perhaps for lack of memory; "
                f"{_rest(shares, complete=not left and not suspects)}"
            )

    def _submit(self, work: Callable[[], Any], needs: Path | None) -> concurrent.futures.Future:
        """Give work to a worker; return what its result, or error, comes with.

        Dask's own executor asks for the state of the work once more behind its result, and takes that for an error
        where the worker that had it died in between.
        """
        given = self._client.submit(nodes.call, work, needs, pure=False)

        async def result() -> Any:
            try:  # other results share the way of this one, which its cancel must leave open
                return await asyncio.shield(self._client.gather(given, asynchronous=True))
            except asyncio.CancelledError:
                given.release()
                raise

        return asyncio.run_coroutine_threadsafe(result(), self._client.loop.asyncio_loop)

    def _take_apart(self, shares: list[Share], index: int) -> range:
        """Add the images of a share at the end, and return where they are; nowhere, where it has only one."""
        whole, begin = shares[index], len(shares)
        if whole.apart is not None:
            logger.warning("cluster %s: %s ended their workers: one by one", self._name, listed(whole.names))
            shares.extend(whole.apart())
        return range(begin, len(shares))

    def _scheduler_gone(self) -> str:
        return (
            f"the scheduler of cluster {self._name} does not answer any more; what was saved is kept, and the same "
            "command goes on from it"
        )

    def _check(self) -> None:
        """Tell of workers that have gone, look at those that came; refuse to wait for a scheduler that is gone."""
        if self._client.status == "running" and self._look_at_workers():
            self._lost = 0.0
            joined = self._workers - self._asked
            if joined:
                self.check_versions(joined)
            return
        self._lost = self._lost or time.monotonic()
        self._check_open()
        if time.monotonic() - self._lost > _GONE:
            raise RunError(self._scheduler_gone())

    def _check_open(self) -> None:
        if self._client.status in ("closed", "closing"):
            raise RunError(self._scheduler_gone())

    def _look_at_workers(self) -> bool:
        """Tell of workers that have gone; return whether the scheduler answers."""
        client = self._client
        try:  # Client.nthreads, but not without end
            now = set(client.sync(client.scheduler.ncores, workers=None, callback_timeout=_ANSWER))
        except (OSError, asyncio.TimeoutError, TimeoutError):
            return False
        for address in sorted(self._workers - now):
            logger.warning("worker %s is gone: what it was doing is done again by another", address)
        if not now and not self._told:
            logger.warning("cluster %s has no worker yet: waiting for one", self._name)
            self._told = True
        self._workers = now
        return True

    def check_versions(self, workers: Collection[str] | None = None) -> None:
        """Refuse workers of other versions; warn of those whose memory costs processor time.

        Parameters
        ----------
        workers : collection of str, optional
            Addresses; by default all.

        Raises
        ------
        ConfigError
            If a worker has another version of this program, of `distributed` or of Python.
        """
        ours = nodes.describe()
        for address, theirs in self._described(self._workers if workers is None else workers).items():
            for what in ("cbst_mx", "distributed", "Python"):
                if theirs[what] != ours[what]:
                    raise ConfigError(
                        f"worker {address} on {theirs['host']} must have {what} {ours[what]} as this program has, got "
                        f"{theirs[what]}"
                    )
            if theirs["MALLOC_TRIM_THRESHOLD_"] in ("", "65536"):
                exports = " ".join(f"{name}={value}" for name, value in nodes.MALLOC.items())
                logger.warning(
                    "worker %s on %s was started without %s: it may take several times the processor time", address,
                    theirs["host"], exports,
                )  # fmt: skip

    def _described(self, workers: Collection[str]) -> dict[str, dict[str, str]]:
        """Ask workers that live what they are; do not wait for those that say nothing."""
        self._asked.update(workers)
        ask = functools.partial(self._client.run, nodes.describe, on_error="ignore", callback_timeout=_QUIET)
        found: dict[str, dict[str, str]] = {}
        silent_ones = (asyncio.TimeoutError, TimeoutError)
        try:
            found.update(ask(workers=sorted(workers)))
        except silent_ones:
            heard = set(self._client.run_on_scheduler(nodes.heard, within=_QUIET)).intersection(workers)
            for address in sorted(set(workers) - heard):
                logger.warning("worker %s does not answer: its versions are not looked at", address)
            with contextlib.suppress(*silent_ones):
                found.update(ask(workers=sorted(heard)))
        return found


def _to_be_named(ended: Mapping[int, range]) -> int:
    """Return how many shares have ended their workers and could not be taken apart."""
    return sum(not images for images in ended.values())


def _rest(shares: Sequence[Share], *, complete: bool) -> str:
    """Return what has become of the other shares."""
    if not all(share.stays for share in shares):
        return "the same command begins this step anew"
    return "everything else is done and saved" if complete else "what was done is saved"


def _to_blame(shares: Sequence[Share], ended: Mapping[int, range]) -> list[str]:
    """Return the images of shares that ended their workers; of one that was taken apart, those that did so alone.

    Where none did, it is all of them together that do.
    """
    to_blame = [index for index, images in ended.items() if not any(image in ended for image in images)]
    return [name for index in to_blame for name in shares[index].names]


@contextlib.contextmanager
def open_cluster(where: Where, *, threads: int = 1) -> Iterator[Cluster]:
    """Start or find a cluster; within the block it takes work, behind it what was started here is ended.

    Parameters
    ----------
    where : Where
        Which one.
    threads : int
        Of the libraries that compute within a task, for workers that are started here; 0: the cores divided by the
        workers.

    Raises
    ------
    ConfigError
        If `distributed` is not installed, or the workers are of other versions.
    RunError
        If the cluster cannot be started or found.
    """
    nodes.need_distributed()
    import dask
    import distributed

    with contextlib.ExitStack() as stack:
        # what goes wrong is told in one sentence, not in those of the libraries
        for name in ("distributed", "tornado", "tornado.application", "asyncio", "dask_jobqueue"):
            stack.enter_context(_quiet(logging.getLogger(name)))
        known = security(where.certificates)
        if where.address:
            stack.enter_context(dask.config.set(nodes.settings(encrypted=where.address.startswith("tls"))))
            name, wanted, address = where.address, 0, where.address
        else:
            known = known or distributed.Security.temporary()
            name, wanted, made = _start(where, known, threads, stack)
            address = made
        try:
            client = stack.enter_context(
                distributed.Client(address, security=known, timeout=_CONNECT, set_as_default=False)
            )
        except Exception as error:  # of many kinds: no answer, another certificate, no encryption
            raise RunError(f"cluster {name} cannot be reached: {nodes.reason(error)}") from error
        cluster = Cluster(client, name, wanted)
        cluster.check_versions()
        yield cluster


def _start(where: Where, known: Any, threads: int, stack: contextlib.ExitStack) -> tuple[str, int, Any]:
    """Start the workers of this machine, or ask a batch system for them; return name, their number and the cluster."""
    make: Callable[[], Any]
    if where.file is None:
        name, wanted = f"local:{where.workers}", where.workers
        make = _on_this_machine(where.workers, known, threads, stack)
    else:
        queue = read_job_queue(where.file)
        name, wanted = str(where.file), queue.workers
        make = _in_batch_system(where.file, queue, known, stack)
    for again in (where.file is None, False):  # a worker of this machine may have been killed while it started
        try:
            made = stack.enter_context(make())
            if where.file is not None:
                made.sync(_ask_for, made, wanted)
            break
        except Exception as error:  # of many kinds: no such key, no batch system, no port
            if not again:
                raise RunError(f"cluster {name} cannot be started: {nodes.reason(error)}") from error
            logger.warning("cluster %s did not start: once more (%s)", name, nodes.reason(error))
    return name, wanted, made


def _on_this_machine(workers: int, known: Any, threads: int, stack: contextlib.ExitStack) -> Callable[[], Any]:
    """Return what starts workers here; they listen on 127.0.0.1 only."""
    import dask
    import distributed

    threads = threads or max(1, cores() // workers)
    stack.enter_context(dask.config.set(nodes.settings(threads)))
    # what is in the environment already would win over the settings
    stack.enter_context(nodes.environment(nodes.worker_environment(threads)))

    return functools.partial(
        distributed.LocalCluster,
        worker_class=nodes.nanny(),
        n_workers=workers,
        threads_per_worker=1,
        host="127.0.0.1",
        dashboard_address=nodes.HERE,
        worker_dashboard_address=nodes.HERE,
        memory_limit=0,
        security=known,
        silence_logs=logging.CRITICAL,
    )


def _in_batch_system(path: Path, queue: JobQueue, known: Any, stack: contextlib.ExitStack) -> Callable[[], Any]:
    """Return what asks a batch system for workers, which start with the environment that ours have."""
    import dask

    try:
        import dask_jobqueue  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"{path} needs the package dask-jobqueue, which is not installed: pip install dask-jobqueue"
        ) from error
    known_keys = dask.config.get(f"jobqueue.{queue.system}")
    section = {key.replace("_", "-"): value for key, value in queue.section.items()}
    unknown = sorted(set(section) - set(known_keys) - {"scheduler-options"})
    if unknown:
        raise ConfigError(f"{path}: jobqueue.{queue.system} of dask-jobqueue has no key {unknown[0]!r}")
    options = {"dashboard_address": nodes.HERE, **(section.get("scheduler-options") or {})}
    if not section.get("interface") and not options.get("host"):
        raise ConfigError(
            f"{path}: jobqueue.{queue.system} must name the network that scheduler and workers listen on, as in "
            "interface: ib0"
        )
    defaults = {"shared-temp-directory": str(path.absolute().parent), "worker-command": nodes.WORKER_MODULE}
    merged = {**known_keys, **defaults, **section, "scheduler-options": options}
    stack.enter_context(dask.config.set(nodes.settings()))
    stack.enter_context(dask.config.set({f"jobqueue.{queue.system}": merged}))
    module = importlib.import_module(f"dask_jobqueue.{queue.system}")
    kind = getattr(module, BATCH_SYSTEMS[queue.system])
    return functools.partial(kind, security=known)


async def _ask_for(cluster: Any, workers: int) -> None:
    """Ask a batch system for workers, in whole jobs; by itself dask would tell nobody that it refuses them."""
    from distributed.core import Status

    cluster.scale(workers)
    try:
        await cluster._correct_state()
    except Exception:
        for job in cluster._created:  # the dask of Python 3.8 has not put them among its workers by now
            if job.status is Status.created:  # with which the cluster could not be closed
                job.status = Status.failed
        raise


@contextlib.contextmanager
def _quiet(log: logging.Logger) -> Iterator[None]:
    """Let a log, and those below it, tell nobody within the block."""
    before = log.handlers, log.propagate
    log.handlers, log.propagate = [logging.NullHandler()], False
    try:
        yield
    finally:
        log.handlers, log.propagate = before
