"""Work on a cluster of Dask: the same bytes as in one process, whoever is killed; strangers are refused."""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import functools
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

dask = pytest.importorskip("dask")
pytest.importorskip("distributed")
psutil = pytest.importorskip("psutil")

from dask.utils import parse_timedelta  # noqa: E402

from cbst_mx.cluster import KVStore, Where, kvstore, nodes, open_cluster  # noqa: E402
from cbst_mx.data.label_counts import count_labels  # noqa: E402
from cbst_mx.errors import ConfigError, DataError, RunError, StoppedError  # noqa: E402
from cbst_mx.labelling import MapFolder, State, job, run  # noqa: E402
from cbst_mx.labelling import workers as labelling_workers  # noqa: E402
from cbst_mx.messages import Share, shares_of  # noqa: E402
from tests.clusters import (  # noqa: E402
    MARKS,
    ROOT,
    Apart,
    die_at_a_label,
    end_all,
    explained,
    free_port,
    start,
    wait_for,
)  # fmt: skip
from tests.maps import random_maps, write_maps  # noqa: E402

pytestmark = MARKS


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    return write_maps(tmp_path_factory.mktemp("maps"), random_maps(0, (12, 19, 8, 16)))


@pytest.fixture(scope="module")
def alone(maps, tmp_path_factory):
    """The files that one process makes."""
    out = tmp_path_factory.mktemp("alone") / "out"
    label(maps, out)
    return contents(out)


def label(maps, out, **options):
    """Label with portion 0.2, maps at stride 8."""
    return run(MapFolder.open(maps, stride=8), out, policy="class-balanced", portion=0.2, **options)


def contents(folder):
    """Return every file of a labelling job; job.json names digests of the others."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def pids(cluster):
    return list(cluster.client.run(os.getpid).values())


def test_workers_are_started_with_what_keeps_memory(local):
    found = local.client.run(lambda: dict(os.environ))
    assert len(found) == 2
    for variables in found.values():
        assert {name: variables.get(name) for name in nodes.MALLOC} == nodes.MALLOC
        assert variables["OMP_NUM_THREADS"] == "1"


def test_a_worker_that_is_slow_to_start_again_is_not_given_up(local):
    # dask's own 15 seconds are less than a busy machine takes
    assert parse_timedelta(dask.config.get("distributed.deploy.lost-worker-timeout")) >= 3600


# ------------------------------------------------------------------------------------------------------------ labels


@pytest.mark.parametrize("length", [1, 4])
def test_labels_of_a_cluster_are_those_of_one_process(local, maps, alone, tmp_path, monkeypatch, length):
    monkeypatch.setattr(labelling_workers, "_BLOCK", length)
    label(maps, tmp_path / "out", cluster=local)
    assert contents(tmp_path / "out") == alone


def test_relative_paths_are_those_of_the_command(local, maps, alone, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the workers are not
    (tmp_path / "maps").symlink_to(maps)
    label(Path("maps"), Path("out"), cluster=local)
    assert contents(tmp_path / "out") == alone


@pytest.mark.parametrize("when", ["count", "second count", "selection"])
def test_a_worker_that_is_killed_changes_nothing(local, maps, alone, tmp_path, monkeypatch, caplog, when):
    monkeypatch.setattr(labelling_workers, "_BLOCK", 1)
    while len(local.client.nthreads()) < 2:  # one may have been killed a moment ago
        time.sleep(0.1)
    local._check()  # it tells of workers that it has seen
    killed = []

    def kill(what, done, total):
        if what == when and not killed:
            killed.append(pids(local)[0])
            os.kill(killed[0], signal.SIGKILL)

    with caplog.at_level(logging.WARNING, "cbst_mx"):
        label(maps, tmp_path / "out", cluster=local, progress=kill)
        deadline = time.monotonic() + 30
        while "is gone" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.5)
            local._check()
    assert killed
    assert contents(tmp_path / "out") == alone
    assert "is gone: what it was doing is done again by another" in caplog.text


def test_a_worker_that_is_killed_while_it_writes_leaves_nothing_behind(local, maps, alone, tmp_path, monkeypatch):
    monkeypatch.setattr(labelling_workers, "_BLOCK", 1)
    one = local.workers()[0]
    killed = local.client.run(os.getpid, workers=[one])[one]
    local.client.run(die_at_a_label, workers=[one])
    label(maps, tmp_path / "out", cluster=local)
    assert killed not in pids(local)
    assert contents(tmp_path / "out") == alone


def nothing(*_):
    """Do nothing; on a worker."""


@pytest.mark.parametrize("value", ["one", (1, 2, 3)], ids=["one", "three"])
def test_a_result_whose_worker_dies_as_it_arrives_is_a_result(local, monkeypatch, value):
    from distributed.client import Future

    with monkeypatch.context() as patched:
        patched.setattr(Future, "status", property(lambda future: "lost"))
        assert list(local.each(functools.partial(dict, result=value), [Share((), ["a"])])) == [(0, {"result": value})]


def test_work_that_is_cancelled_takes_no_other_along(local):
    """Results come over one gate for all work of a client; here it is shut while work is cancelled that waits at it."""
    client = local.client

    async def shut():
        for _ in range(5):
            await client._gather_semaphore.acquire()

    async def opened():
        for _ in range(5):
            client._gather_semaphore.release()

    client.sync(shut)
    try:
        waiting = local._submit(nothing, None)
        time.sleep(1)
        waiting.cancel()
        time.sleep(0.2)
    finally:
        client.sync(opened)
    assert list(local.each(len, [Share(("abc",), ["a"])])) == [(0, 3)]


@pytest.mark.parametrize("error", [OSError("Timed out trying to connect"), TimeoutError()], ids=["system", "time"])
def test_a_result_that_the_connection_loses_is_one_sentence(local, monkeypatch, error):
    async def gather(*_, **__):
        raise error

    monkeypatch.setattr(local.client.scheduler, "gather", gather, raising=False)
    with pytest.raises(RunError, match="^the scheduler of cluster .* does not answer any more; what was saved is kept"):
        list(local.each(len, [Share(("abc",), ["a"])]))


@pytest.mark.parametrize("failures", [1, 2])
def test_workers_that_end_while_they_start_are_started_once_more(monkeypatch, caplog, failures):
    import distributed

    starts = []

    class Fails(distributed.LocalCluster):
        def __init__(self, **options):
            starts.append(options)
            if len(starts) <= failures:
                options["preload"] = ["import os, signal; os.kill(os.getpid(), signal.SIGKILL)"]
            super().__init__(**options)

    monkeypatch.setattr(distributed, "LocalCluster", Fails)
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with contextlib.ExitStack() as stack:
        if failures == 2:
            why = "(Nanny failed|a worker's process ended)"
            with pytest.raises(RunError, match=f"^cluster local:2 cannot be started: {why}"):
                stack.enter_context(open_cluster(Where.parse("local:2")))
        else:
            cluster = stack.enter_context(open_cluster(Where.parse("local:2")))
            assert len(cluster.workers()) == 2
            children = {child.pid for child in psutil.Process().children(recursive=True)} - before
            assert children.issuperset(pids(cluster))
            assert len(children) <= 3  # two workers, and Python's tracker of resources
    assert len(starts) == 2
    assert "local:2 did not start" in caplog.text


def poisoned(parts, *poisons):
    """Return shares of letters."""
    return shares_of(lambda part: Share((part, *poisons), list(part), stays=True), parts)


@pytest.fixture
def deadly(local, monkeypatch):
    """The cluster, where nobody dies, but Dask says so; with the names that were given, in turn."""
    from distributed.scheduler import KilledWorker

    class Killed(KilledWorker):
        def __init__(self):
            Exception.__init__(self)

    def submit(work, needs):
        names, *poisons = work.args
        given.append(names)
        future = concurrent.futures.Future()
        if any(poison in names for poison in poisons):
            future.set_exception(Killed())
        else:
            future.set_result(names)
        return future

    given = []
    monkeypatch.setattr(local, "_submit", submit)
    return local, given


@pytest.mark.parametrize(
    ("poisons", "blamed", "rest"),  # in any order
    [
        ("bf", "[bf], [bf]", "everything else is done and saved"),
        (["ab"], "a, b, c, d", "everything else is done and saved"),  # each of them passes
        (["ab", "h"], "(h, )?a, b, c, d(, h)?", "everything else is done and saved"),
        ("abcdefgh", "[a-h](, [a-h]){4}", "what was done is saved"),
    ],
)
def test_no_image_is_given_more_often_than_twice_together_and_once_alone(deadly, poisons, blamed, rest):
    cluster, given = deadly
    shares, done = poisoned(["abcd", "e", "fgh"], *poisons), []
    with pytest.raises(RunError, match=f"the workers that were given {blamed} were stopped .*; {rest}$"):
        done.extend(result for _, result in cluster.each(nothing, shares))
    assert all(given.count(names) <= 2 for names in given)
    assert all(sum(letter in names for names in given) <= 3 for letter in "abcdefgh")
    if rest.startswith("everything"):
        assert sorted("".join(done)) == sorted(set("abcdefgh") - {poison for poison in poisons if len(poison) == 1})


def test_what_is_not_kept_of_other_images_is_not_called_saved(deadly):
    shares = [share._replace(stays=False) for share in poisoned(["ab", "c"], "c")]
    with pytest.raises(RunError, match="given c were stopped .*; the same command begins this step anew$"):
        list(deadly[0].each(nothing, shares))


def test_images_whose_shares_are_taken_apart_give_the_same(maps, alone, tmp_path):
    cluster = Apart()
    label(maps, tmp_path / "out", cluster=cluster)
    assert contents(tmp_path / "out") == alone
    assert cluster.singly == 36  # in both counts and the selection
    found = [count_labels(tmp_path / "out", 19, cluster=one).tolist() for one in (None, Apart())]
    assert found[0] == found[1]


def test_a_label_that_ends_its_workers_is_named_and_the_same_command_goes_on(maps, alone, tmp_path):
    program = tmp_path / "poisonous.py"  # workers import it, as what started them
    program.write_text(_POISONOUS)
    given = ["label", "--probabilities", maps, "--upsample", 8, "--portion", 0.2, "--cluster", "local:2"]
    command = [sys.executable, str(program), *map(str, given), "--out", str(tmp_path / "out")]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env={**env, "POISON": "image-5"}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    said = done.stderr.strip().splitlines()[-1]
    assert said == (
        "Error: the workers that were given image-5 were stopped from outside or ended, again and again, perhaps for "
        "lack of memory; everything else is done and saved"
    )
    state = State.load(tmp_path / "out" / "state.npz")
    assert sorted(state.counts.names) == sorted(f"image-{number}" for number in range(12) if number != 5)
    again = subprocess.run(command, env={**env, "POISON": ""}, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert contents(tmp_path / "out") == alone


_POISONOUS = """
import os, signal
from cbst_mx.cli import main
from cbst_mx.labelling import MapFolder

view = MapFolder.view

def die(folder, index):
    if folder.names[index] == os.environ["POISON"]:
        os.kill(os.getpid(), signal.SIGKILL)
    return view(folder, index)

if __name__ == "__main__":
    main(prog_name="cbst-mx")
else:
    MapFolder.view = die
"""


def test_a_stop_that_is_asked_for_is_kept_to_and_the_same_call_goes_on(local, maps, alone, tmp_path, monkeypatch):
    monkeypatch.setattr(labelling_workers, "_BLOCK", 1)
    counted = []

    def stop(what, done, total):
        if what == "count" and done >= 5:
            raise StoppedError(what, done, total)

    with pytest.raises(StoppedError):
        label(maps, tmp_path / "out", cluster=local, progress=stop)
    state = State.load(tmp_path / "out" / "state.npz")
    assert 5 <= len(state.counts.names) < 12
    original = job._count_block
    label(maps, tmp_path / "out", cluster=local, progress=lambda what, done, total: counted.append((what, done)))
    assert original is job._count_block
    assert min(done for what, done in counted if what == "count") > 5
    assert contents(tmp_path / "out") == alone


def test_what_is_wrong_with_a_map_is_the_sentence_of_one_process(local, maps, tmp_path):
    folder = tmp_path / "maps"
    write_maps(folder, random_maps(0, (4, 19, 8, 16)))
    np.save(folder / "image-2.npy", np.full((19, 8, 16), np.nan, np.float32))
    found = []
    for number, cluster in enumerate((None, local)):
        with pytest.raises(DataError, match=r"image-2\.npy") as error:
            label(folder, tmp_path / str(number), cluster=cluster)
        found.append(str(error.value))
    assert found[0] == found[1]


def test_a_file_that_a_worker_does_not_see_is_named(local, tmp_path):
    with pytest.raises(RunError, match="missing.npy is not there on .*: every worker must see the files"):
        list(local.each(nothing, [Share(("a", "b"), ["a"], tmp_path / "missing.npy")]))


def fail_of(number, *_):
    """Fail as the system does on a worker: of a timeout of NFS Python makes a TimeoutError."""
    raise OSError(number, os.strerror(number), "/there/labels.png")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ETIMEDOUT, errno.ECONNRESET])
def test_what_the_system_says_to_a_worker_is_told_with_its_machine(local, number):
    found = f"/there/labels.png cannot be used on {socket.gethostname()}: {os.strerror(number)}"
    with pytest.raises(RunError, match=f"^{re.escape(found)}$"):
        list(local.each(fail_of, [Share((number,), ["a"])]))


def test_what_the_system_says_to_the_command_is_not_taken_for_a_scheduler_that_is_gone(local):
    with pytest.raises(OSError, match="No space left on device"):
        list(local.each(time.sleep, [Share((1,), ["a"])], waiting_for=lambda: fail_of(errno.ENOSPC)))


def test_processes_that_the_system_of_a_worker_does_not_start_are_told_with_its_machine(local, monkeypatch):
    monkeypatch.setattr(kvstore, "free_port", functools.partial(fail_of, errno.ENOSPC))
    match = rf"^/there/labels\.png cannot be used on {socket.gethostname()}: No space left on device$"
    with pytest.raises(RunError, match=match):
        KVStore(local, 1)(fail_of, [], lambda _: None, name="nothing")


# --------------------------------------------------------------------------------------------------------- processes


def threads_and_memory():
    import cv2

    return cv2.getNumThreads(), *(os.environ.get(name) for name in nodes.MALLOC)


def test_a_restarted_worker_has_one_thread_of_opencv_and_what_keeps_memory(local):
    os.kill(pids(local)[0], signal.SIGKILL)
    shares = [Share((), [str(index)]) for index in range(20)]
    assert {result for _, result in local.each(threads_and_memory, shares)} == {(1, *nodes.MALLOC.values())}


def test_other_versions_are_refused(local, monkeypatch):
    monkeypatch.setattr("cbst_mx.__version__", "0.0.1")
    with pytest.raises(ConfigError, match=r"worker .* must have cbst_mx 0\.0\.1 as this program has, got "):
        local.check_versions()


def test_workers_that_come_later_are_looked_at_once(local, monkeypatch):
    local.client.wait_for_workers(2, timeout=180)
    local._check()
    monkeypatch.setattr("cbst_mx.__version__", "0.0.1")
    share = Share((3,), ["a"])
    list(local.each(time.sleep, [share]))  # those that are there have been asked
    os.kill(pids(local)[0], signal.SIGKILL)
    with pytest.raises(ConfigError, match=r"worker .* must have cbst_mx 0\.0\.1 as this program has, got "):
        list(local.each(time.sleep, [Share((60,), ["a"])]))
    monkeypatch.undo()
    local.client.wait_for_workers(2, timeout=180)
    list(local.each(time.sleep, [share]))


def test_a_worker_that_says_nothing_is_not_waited_for_where_others_answer(local, monkeypatch, caplog):
    from cbst_mx.cluster import engine

    monkeypatch.setattr(engine, "_QUIET", 3.0)
    local.client.wait_for_workers(2, timeout=180)
    address, pid = sorted(local.client.run(os.getpid).items())[0]
    local._check()
    begun = time.monotonic()
    psutil.Process(pid).suspend()  # for less than what gives it up
    try:
        with caplog.at_level(logging.WARNING, "cbst_mx"):
            local.check_versions()
        assert time.monotonic() - begun < 15
    finally:
        psutil.Process(pid).resume()
    assert f"worker {address} does not answer: its versions are not looked at" in caplog.text
    local.check_versions()


def test_a_worker_without_the_variables_is_warned_of(local, monkeypatch, caplog):
    described = {**nodes.describe(), "MALLOC_TRIM_THRESHOLD_": "65536"}
    monkeypatch.setattr(local._client, "run", lambda _, **options: {"tls://there": described})
    with caplog.at_level(logging.WARNING, "cbst_mx"):
        local.check_versions()
    assert "was started without MALLOC_TRIM_THRESHOLD_=1073741824 MALLOC_MMAP_THRESHOLD_=33554432" in caplog.text


def listening(*roots):
    """Return the addresses that processes and their children listen on."""
    found = set()
    for root in roots:
        for process in [root, *root.children(recursive=True)]:
            connections = getattr(process, "net_connections", None) or process.connections
            found |= {one.laddr.ip for one in connections("inet") if one.status == psutil.CONN_LISTEN}
    return found


def test_a_local_cluster_listens_on_this_machine_only(local):
    assert listening(psutil.Process()) == {"127.0.0.1"}
    assert local.client.scheduler.address.startswith("tls://127.0.0.1:")


def check_no_web_port(cluster):
    """Knock at the ports at which dask would serve the pages of a scheduler and of two workers, unencrypted."""
    found = cluster.client.scheduler_info()
    ports = [one["services"]["dashboard"] for one in (found, *found["workers"].values())]
    assert len(set(ports)) == 3
    for port in ports:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), 5)


def test_a_local_cluster_has_no_web_ports(local):
    local.client.wait_for_workers(2, timeout=180)
    check_no_web_port(local)


def test_a_client_that_is_killed_takes_its_workers_along_and_goes_on(tmp_path):
    maps = write_maps(tmp_path / "maps", random_maps(0, (40, 19, 16, 32)))
    given = ["label", "--probabilities", maps, "--upsample", 8, "--portion", 0.2]
    command = start(*given, "--out", tmp_path / "out", "--cluster", "local:2")
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "out" / "state.npz").is_file() and time.monotonic() < deadline:
            assert command.poll() is None, command.communicate()
            time.sleep(0.05)
        children = psutil.Process(command.pid).children(recursive=True)
        assert len(children) >= 2
    finally:
        command.kill()
        command.wait()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []
    again = start(*given, "--out", tmp_path / "out", "--cluster", "local:2")
    output = again.communicate(timeout=300)[0]
    assert again.returncode == 0, output
    label(maps, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


# ------------------------------------------------------------------------------------------------------ certificates


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    from cbst_mx.cluster.certificates import make_certificates

    root = tmp_path_factory.mktemp("certificates")
    for name in ("ours", "others"):
        make_certificates(root / name, 2)
    return root


@pytest.fixture(scope="module")
def programs(certificates):
    """Address of a scheduler with two workers, each a program of its own; and their processes."""
    address = f"tls://127.0.0.1:{free_port()}"
    given = (address, "--tls", certificates / "ours")
    env = {**os.environ, "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "False"}  # the user's own settings of dask
    started = [start("cluster", "scheduler", *given, env=env)]
    try:
        wait_for(address, started[0])
        started += [start("cluster", "worker", *given, "--threads", 1, env=env) for _ in range(2)]
        with explained(started), connected(address, certificates / "ours"):
            pass
        yield address, [psutil.Process(one.pid) for one in started]
    finally:
        end_all(started)


def connected(address, certificates):
    """Open a cluster when both workers are there."""
    return open_cluster(Where.parse(address, certificates=certificates))


def test_programs_that_share_certificates_give_the_same_labels(programs, certificates, maps, alone, tmp_path):
    address, processes = programs
    with connected(address, certificates / "ours") as cluster:
        cluster.client.wait_for_workers(2, timeout=180)
        cluster.check_versions()
        label(maps, tmp_path / "out", cluster=cluster)
        assert contents(tmp_path / "out") == alone
        assert listening(*processes) == {"127.0.0.1"}
        for variables in cluster.client.run(lambda: dict(os.environ)).values():
            assert {name: variables.get(name) for name in nodes.MALLOC} == nodes.MALLOC
        before = pids(cluster)
        os.kill(before[0], signal.SIGKILL)  # its own program starts another
        label(maps, tmp_path / "again", cluster=cluster)
        assert contents(tmp_path / "again") == alone
        cluster.client.wait_for_workers(2, timeout=180)
        assert pids(cluster) != before


def test_programs_have_no_web_ports(programs, certificates):
    with connected(programs[0], certificates / "ours") as cluster:
        cluster.client.wait_for_workers(2, timeout=180)
        check_no_web_port(cluster)


async def speak_plainly(address, role, dask_worker=None):
    """Connect without encryption; called in a scheduler or a worker, by which dask calls it."""
    from distributed.comm import connect

    await connect(address, timeout=2, **dask_worker.security.get_connection_args(role))


def test_programs_refuse_what_is_not_encrypted_whatever_the_settings_of_dask_say(programs, certificates):
    nobody = f"tcp://127.0.0.1:{free_port()}"
    with connected(programs[0], certificates / "ours") as cluster:
        cluster.client.wait_for_workers(2, timeout=180)
        for role, ask in (("worker", cluster.client.run), ("scheduler", cluster.client.run_on_scheduler)):
            with pytest.raises(RuntimeError, match="encryption required by Dask configuration, refusing"):
                ask(speak_plainly, nobody, role)


@pytest.mark.parametrize("how", ["others", "none"])
def test_strangers_are_refused(programs, certificates, monkeypatch, how):
    from cbst_mx.cluster import engine

    monkeypatch.setattr(engine, "_CONNECT", 8.0)
    address, _ = programs
    where = (
        Where.parse(address, certificates=certificates / "others")
        if how == "others"
        else Where.parse(address.replace("tls", "tcp"))
    )
    begun = time.monotonic()
    with pytest.raises(RunError, match="cluster .* cannot be reached: "), open_cluster(where):
        pass
    assert time.monotonic() - begun < 60


def test_a_worker_with_other_certificates_does_not_come_in(programs, certificates):
    address, _ = programs
    stranger = start("cluster", "worker", address, "--tls", certificates / "others", "--threads", 1)
    try:
        with connected(address, certificates / "ours") as cluster:
            cluster.client.wait_for_workers(2, timeout=180)
            time.sleep(5)
            assert len(cluster.client.nthreads()) == 2
    finally:
        stranger.kill()
        stranger.wait()


def test_a_scheduler_that_is_killed_is_one_sentence(certificates, maps, tmp_path, monkeypatch):
    from cbst_mx.cluster import engine

    monkeypatch.setattr(engine, "_GONE", 2.0)
    address = f"tls://127.0.0.1:{free_port()}"
    scheduler = start("cluster", "scheduler", address, "--tls", certificates / "ours")
    try:
        wait_for(address, scheduler)
        with connected(address, certificates / "ours") as cluster:  # without a worker nothing ends

            def kill(*_):
                scheduler.kill()

            with pytest.raises(RunError, match="the scheduler of cluster .* does not answer any more; what was saved"):
                list(cluster.each(nothing, [Share(("a", "b"), ["a"])], waiting_for=kill))
    finally:
        scheduler.kill()
        scheduler.wait()


def test_a_scheduler_that_is_gone_between_two_works_is_one_sentence(programs, certificates):
    address, _ = programs
    with connected(address, certificates / "ours") as cluster:
        cluster.client.close()  # as it does itself when it has looked for the scheduler in vain
        with pytest.raises(RunError, match="the scheduler of cluster .* does not answer any more; what was saved"):
            list(cluster.each(nothing, [Share(("a", "b"), ["a"])]))


@pytest.mark.parametrize("host", ["127.0.0.1", "nobody.invalid"])
def test_a_scheduler_that_cannot_start_is_one_sentence(host):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"tcp://{host}:{other.getsockname()[1]}"
        command = start("cluster", "scheduler", address, "--insecure")
        said = command.communicate(timeout=120)[0].decode()
    assert command.returncode == 1, said
    # without a name server the second is another one
    why = "Address already in use" if host == "127.0.0.1" else "Name or service not known|.* in name resolution"
    assert re.fullmatch(f"Error: the scheduler at {address} cannot start: ({why})", said.splitlines()[-1])
    assert "Traceback" not in said


def test_a_worker_without_a_scheduler_is_one_sentence():
    address = f"tcp://127.0.0.1:{free_port()}"
    command = start("cluster", "worker", address, env={**os.environ, "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "2s"})
    said = command.communicate(timeout=120)[0].decode()
    assert command.returncode == 1, said
    assert said.splitlines()[-1].startswith(
        f"Error: a worker of {address} cannot start: Timed out trying to connect to {address} after 2 s"
    )


_ENDS = """
from cbst_mx.cluster import nodes
settings = nodes.settings
ends = {"distributed.worker.preload": ["import os; os._exit(3)"]}
nodes.settings = lambda *given, **options: {**settings(*given, **options), **ends}
"""


def test_a_worker_that_ends_as_it_starts_is_one_sentence():
    # the dask of Python 3.8 and 3.9 would start it again without end
    address = f"tcp://127.0.0.1:{free_port()}"
    started = [start("cluster", "scheduler", address)]
    try:
        wait_for(address, started[0])
        started.append(start("cluster", "worker", address, before=_ENDS))
        said = started[1].communicate(timeout=120)[0].decode()
        assert started[1].returncode == 1, said
        assert said.splitlines()[-1].startswith(f"Error: a worker of {address} cannot start: ")
    finally:
        end_all(started)


_CHANCE = """
import tornado.netutil
asked, bind = [], tornado.netutil.bind_sockets

def bind_sockets(port, *given, **options):
    asked.append(port)
    return bind({port} if len(asked) == 1 else port, *given, **options)

tornado.netutil.bind_sockets = bind_sockets
"""


def test_a_worker_that_is_given_the_port_of_its_scheduler_does_not_wait_for_itself():
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    started = [start("cluster", "worker", address, before=_CHANCE.replace("{port}", str(port)))]
    try:
        worker, deadline = psutil.Process(started[0].pid), time.monotonic() + 120
        while not listening(worker) and time.monotonic() < deadline:
            time.sleep(0.1)
        started.append(start("cluster", "scheduler", address))
        wait_for(address, started[1])
        with explained(started), open_cluster(Where.parse(address)) as cluster:
            cluster.client.wait_for_workers(1, timeout=180)
    finally:
        end_all(started)


def test_certificates_are_for_their_owner_and_for_a_time(certificates, tmp_path, monkeypatch):
    from cbst_mx.cluster.certificates import check_certificates, make_certificates

    folder = certificates / "ours"
    assert sorted(path.name for path in folder.iterdir()) == ["ca.pem", "certificate.pem", "key.pem"]
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "key.pem").stat().st_mode & 0o777 == 0o600
    check_certificates(folder)
    with pytest.raises(RunError, match="ours is there already"):
        make_certificates(folder, 2)
    for days in (0, 3651):
        with pytest.raises(ConfigError, match="days must be from 1 to 3,650"):
            make_certificates(tmp_path / "new", days)
    with pytest.raises(DataError, match=r"ca\.pem cannot be read .*: cbst-mx cluster certificates FOLDER makes it"):
        check_certificates(tmp_path / "nowhere")
    import datetime

    from cbst_mx.cluster import certificates as module

    later = datetime.datetime.now() + datetime.timedelta(days=5)
    monkeypatch.setattr(module, "_validity", lambda _: (later, later))
    with pytest.raises(DataError, match=r"certificate\.pem is valid from .* UTC, not now"):
        check_certificates(folder)


# ----------------------------------------------------------------------------------------------------- batch systems


def test_jobs_of_a_batch_system_share_the_work(tmp_path, maps, alone, monkeypatch):
    pytest.importorskip("dask_jobqueue")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "jobs.yaml").write_text(
        "jobqueue: {local: {cores: 1, processes: 1, memory: 1GB, interface: lo}}\nworkers: 2\n"
    )
    with open_cluster(Where.parse(str(tmp_path / "jobs.yaml"))) as cluster:
        assert cluster.size == 2
        label(maps, tmp_path / "out", cluster=cluster)
        assert listening(psutil.Process()) == {"127.0.0.1"}
        for variables in cluster.client.run(lambda: dict(os.environ)).values():
            assert {name: variables.get(name) for name in nodes.MALLOC} == nodes.MALLOC
        assert set(cluster.client.nthreads().values()) == {1}
        for key in tmp_path.glob(".dask-jobqueue*"):
            assert key.stat().st_mode & 0o777 == 0o600
    assert contents(tmp_path / "out") == alone


def test_jobs_that_the_batch_system_refuses_are_one_sentence(tmp_path, monkeypatch):
    pytest.importorskip("dask_jobqueue")
    (tmp_path / "bin").mkdir()
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: nosuch' >&2\nexit 1\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    jobs = tmp_path / "jobs.yaml"
    jobs.write_text("jobqueue: {slurm: {cores: 1, memory: 1GB, queue: nosuch, interface: lo}}\nworkers: 2\n")
    match = r"cluster .*jobs\.yaml cannot be started: .*invalid partition specified: nosuch"
    with pytest.raises(RunError, match=match), open_cluster(Where.parse(str(jobs))):
        pass


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("workers: 2\n", r"jobs\.yaml must hold jobqueue with one section of dask-jobqueue \(slurm, "),
        ("jobqueue: {slurm: {}, pbs: {}}\nworkers: 2\n", "must hold jobqueue with one section"),
        ("jobqueue: {torque: {}}\nworkers: 2\n", "jobqueue must hold one of slurm, .*, got 'torque'"),
        ("jobqueue: {slurm: {}}\nworkers: 0\n", "workers must be a whole number from 1 to 1,000, got 0"),
        ("jobqueue: {slurm: {}}\nworkers: 2\ngpus: 1\n", "must hold jobqueue and workers only, got gpus"),
        ("jobqueue: {slurm: {memroy: 1}}\nworkers: 2\n", "jobqueue.slurm of dask-jobqueue has no key 'memroy'"),
        ("jobqueue: {slurm: {cores: 1}}\nworkers: 2\n", "must name the network that scheduler and workers listen on"),
        ("jobqueue: {slurm: {interface: nosuch0}}\nworkers: 2\n", "cannot be started: "),
    ],
)
def test_a_file_that_asks_for_no_jobs_is_one_sentence(tmp_path, text, sentence):
    pytest.importorskip("dask_jobqueue")
    (tmp_path / "jobs.yaml").write_text(text)
    with pytest.raises((ConfigError, RunError), match=sentence), open_cluster(Where.parse(str(tmp_path / "jobs.yaml"))):
        pass


# ------------------------------------------------------------------------------------------------------- the options


@pytest.mark.parametrize(
    ("text", "options", "sentence"),
    [
        ("local:0", {}, "local:N must have N from 1 to 1,000 workers, got '0'"),
        ("local:x", {}, "local:N must have N"),
        ("local", {}, r"cluster must be local:N, tls://HOST:PORT, or a YAML file of dask-jobqueue, got 'local'"),
        ("tls://head", {"certificates": Path("c")}, "cluster must be local:N"),
        ("tls://head:99999", {"certificates": Path("c")}, "cluster must be local:N"),
        ("tls://head:8786", {}, "needs the folder of its certificates: give --tls FOLDER"),
        ("tcp://head:8786", {}, "is not encrypted, and whoever connects can run programs"),
        ("tcp://10.0.0.1:8786", {}, "is not encrypted"),
        ("tcp://127.0.0.1:8786", {"certificates": Path("c")}, "uses no certificates"),
    ],
)
def test_what_is_no_cluster_or_not_safe_is_one_sentence(text, options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Where.parse(text, **options)


def test_what_is_allowed_without_encryption():
    for host in ("127.0.0.1", "localhost", "[::1]"):
        assert Where.parse(f"tcp://{host}:8786").address
    assert Where.parse("tcp://10.0.0.1:8786", insecure=True).address


def test_options_that_do_not_go_together_are_wrong_usage(maps, tmp_path):
    from click.testing import CliRunner

    from cbst_mx.cli import main

    given = ["label", "--probabilities", str(maps), "--portion", "0.2", "--out", str(tmp_path / "out")]
    for more, sentence in (
        (["--cluster", "local:2", "--workers", "2"], "--workers and --cluster cannot be given together"),
        (["--tls", "certs"], "--tls needs --cluster"),
        (["--insecure"], "--insecure needs --cluster"),
    ):
        done = CliRunner().invoke(main, [*given, *more])
        assert (done.exit_code, sentence in done.output) == (2, True), done.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("missing", ["distributed", "cryptography"])
def test_without_the_extra_one_sentence_says_what_to_install(maps, tmp_path, missing):
    code = f"import sys; sys.modules[{missing!r}] = None\nfrom cbst_mx.cli import main; main(prog_name='cbst-mx')"
    given = ["label", "--probabilities", maps, "--upsample", 8, "--portion", 0.2, "--cluster", "local:2"]
    command = [sys.executable, "-c", code, *map(str, given), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    expected = f"Error: --cluster needs the package {missing}, which is not installed: pip install 'cbst_mx[scale]'"
    assert expected in done.stderr
    assert not (tmp_path / "out" / "job.json").exists()
