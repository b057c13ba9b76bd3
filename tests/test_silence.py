"""Workers whose machines say nothing any more, as one that has hung: given up within about a minute, harmless later.

A machine that hangs is one whose processes are all stopped by SIGSTOP: its connections stay open, nobody answers.
"""

from __future__ import annotations

import contextlib
import time

import pytest

dask = pytest.importorskip("dask")
pytest.importorskip("distributed")
psutil = pytest.importorskip("psutil")

from dask.utils import parse_timedelta  # noqa: E402

from cbst_mx.cluster import KVStore, Where, engine, kvstore, nodes, open_cluster  # noqa: E402
from cbst_mx.errors import RunError, StoppedError  # noqa: E402
from cbst_mx.labelling import MapFolder, run  # noqa: E402
from cbst_mx.labelling import workers as labelling_workers  # noqa: E402
from cbst_mx.messages import Share  # noqa: E402
from tests.clusters import MARKS, end_all, explained, free_port, start, wait_for  # noqa: E402
from tests.faults import contents  # noqa: E402
from tests.maps import random_maps, write_maps  # noqa: E402
from tests.test_kvstore import equal, experiment, gone, trained  # noqa: E402

pytestmark = MARKS

_BOUND = 75.0  # seconds: 35 until a scheduler sees it, 30 for a nanny that does not answer either, and some


def test_a_silent_worker_is_missed_within_half_a_minute(local):
    def settings(dask_scheduler):
        return dask_scheduler.worker_ttl, dask_scheduler.periodic_callbacks["worker-ttl"].callback_time

    assert local.client.run_on_scheduler(settings) == (30.0, 5000.0)
    assert parse_timedelta(dask.config.get("distributed.comm.timeouts.tcp")) == 30
    assert nodes.settings()["distributed.scheduler.preload"] == ["cbst_mx.cluster.nodes"]


@contextlib.contextmanager
def hung(program):
    """Let a program and all that it has started hang in the block."""
    processes = []
    for process in [psutil.Process(program.pid), *psutil.Process(program.pid).children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.suspend()
            processes.append(process)
    try:
        yield
    finally:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


@pytest.fixture
def programs(tmp_path):
    """A cluster of three workers that are programs of their own, and these by address of the worker."""
    from cbst_mx.cluster.certificates import make_certificates

    make_certificates(tmp_path / "certificates", 2)
    address = f"tls://127.0.0.1:{free_port()}"
    given = (address, "--tls", tmp_path / "certificates")
    started = [start("cluster", "scheduler", *given)]
    try:
        wait_for(address, started[0])
        started += [start("cluster", "worker", *given, "--threads", 1) for _ in range(3)]
        where = Where.parse(address, certificates=tmp_path / "certificates")
        with explained(started), open_cluster(where) as cluster:
            cluster.client.wait_for_workers(3, timeout=180)
            parents = cluster.client.run(lambda: __import__("os").getppid())
            by_number = {one.pid: one for one in started}
            yield cluster, {worker: by_number[_program(number, by_number)] for worker, number in parents.items()}
    finally:
        end_all(started)


def _program(number, known):
    """Return the number of the program that a process belongs to."""
    while number not in known:
        number = psutil.Process(number).ppid()
    return number


def back(cluster, program):
    """Wait until a program that hung has started its worker anew, or has ended."""
    end = time.monotonic() + 120
    while program.poll() is None and len(cluster.workers()) < 3:
        assert time.monotonic() < end
        time.sleep(0.5)


def at(kind, number, act):
    """Return a progress that acts once, when so much of a kind of work is done."""
    acted = []

    def progress(what, done, total):
        if what.endswith(kind) and done >= number and not acted:
            acted.append(done)
            act()

    return progress


@pytest.mark.slow
def test_a_share_of_a_machine_that_hangs_is_done_by_another(programs, tmp_path, monkeypatch):
    cluster, by_worker = programs
    monkeypatch.setattr(labelling_workers, "_BLOCK", 1)
    maps = MapFolder.open(write_maps(tmp_path / "maps", random_maps(0, (40, 19, 32, 64))), stride=8)
    given = {"policy": "class-balanced", "portion": 0.2}
    run(maps, tmp_path / "alone", **given)
    program = by_worker[cluster.workers()[0]]
    with contextlib.ExitStack() as hanging:
        begun = time.monotonic()
        freeze = at("selection", 3, lambda: hanging.enter_context(hung(program)))
        run(maps, tmp_path / "out", cluster=cluster, progress=freeze, **given)
        assert time.monotonic() - begun < _BOUND + 40
        assert contents(tmp_path / "out") == contents(tmp_path / "alone")
    back(cluster, program)
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.parametrize("place", [0, 1])
def test_a_stop_does_not_wait_for_a_machine_that_hangs(programs, small_data, tmp_path, monkeypatch, place, caplog):
    cluster, by_worker = programs
    monkeypatch.setattr(cluster, "together", KVStore(cluster, 2))
    long = experiment("source_training.iterations=300")  # so many that the stop comes before their end
    undisturbed = trained(long, tmp_path / "undisturbed", small_data, cluster=cluster)
    program, stopped = by_worker[cluster.workers()[place]], []
    with contextlib.ExitStack() as hanging:

        def freeze_and_stop():
            if not stopped:
                hanging.enter_context(hung(program))
            stopped.append(time.monotonic())

        def progress(what, done, total):
            freeze(what, done, total)
            if stopped and time.monotonic() > stopped[0] + 3:
                raise StoppedError(what, done, total)

        freeze = at("training", 6, freeze_and_stop)
        with pytest.raises(StoppedError):
            trained(long, tmp_path / "run", small_data, cluster=cluster, progress=progress)
        assert time.monotonic() - stopped[0] < 3 + 2 * kvstore._SILENT + 20
        assert "what was done since the last checkpoint is lost" in caplog.text
        begun = time.monotonic()
        # one of the machines that it begins on hangs
        again = trained(long, tmp_path / "run", small_data, cluster=cluster)
        assert time.monotonic() - begun < _BOUND + 120
        assert equal(again, undisturbed)
        before = contents(tmp_path / "run")
    back(cluster, program)
    assert gone()
    assert contents(tmp_path / "run") == before


@pytest.mark.slow
def test_a_scheduler_that_hangs_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "_GONE", 4.0)
    monkeypatch.setattr(engine, "_ANSWER", 1.0)
    address = f"tcp://127.0.0.1:{free_port()}"
    scheduler = start("cluster", "scheduler", address)
    try:
        wait_for(address, scheduler)
        with open_cluster(Where.parse(address)) as cluster, hung(scheduler):
            begun = time.monotonic()
            with pytest.raises(RunError, match="the scheduler of cluster .* does not answer any more; what was saved"):
                list(cluster.each(len, [Share(("a",), ["a"])]))
            assert time.monotonic() - begun < 30
            with pytest.raises(RunError, match="does not answer any more"):
                KVStore(cluster, 1)(len, (), lambda event: None, name="nothing")
    finally:
        end_all([scheduler])
