"""What tests with a cluster share: the warnings that are expected there, and two workers of this machine."""

from __future__ import annotations

import contextlib
import gc
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COMMAND = [sys.executable, "-c", "from cbst_mx.cli import main; main(prog_name='cbst-mx')"]

#: The `pytestmark` of a module whose tests start clusters.
MARKS = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:distributed"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:dask"),
    # sockets of clusters that tests take down by force
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("collected"),
]


@pytest.fixture
def collected():
    """Let what clusters leave open be told of here, where it is expected, and not in another test."""
    yield
    gc.collect()


def die_at_a_label():
    """Let this process, a worker, be killed between the content of the next PNG that it writes and the file's name."""

    def die(source, target, replace=os.replace):
        if str(target).endswith(".png"):
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = die


@pytest.fixture(scope="module")
def local(request):
    """Return a cluster of two workers, with the THREADS that the module names, or one each."""
    from cbst_mx.cluster import Where, open_cluster

    with open_cluster(Where.parse("local:2"), threads=getattr(request.module, "THREADS", 1)) as cluster:
        yield cluster


class Apart:
    """A cluster that is this process, and takes every share apart: what its images give alone comes last.

    Parameters
    ----------
    whole : bool
        Whether it is the share that gives a result, not its images, of which none may then fail.
    """

    size, together = 2, None

    def __init__(self, whole=False):
        self.whole, self.singly = whole, 0

    def each(self, function, shares, *, waiting_for=None, ahead=2):
        for index, share in enumerate(shares):  # which grows
            singly = [] if share.apart is None else share.apart()
            self.singly += len(singly)
            if singly:
                assert [name for one in singly for name in one.names] == list(share.names)
            if self.whole:
                for one in singly:
                    function(*one.arguments)
            elif singly:
                shares.extend(singly)
                continue
            yield index, function(*share.arguments)


def start(*arguments, before="", **options):
    """Start a command of the program, `before` which its process runs other code."""
    *python, code = COMMAND
    return _start([*python, f"{before}\n{code}", *map(str, arguments)], **options)


def begin_at(host, *arguments, **options):
    """Start a command of the program in a network namespace."""
    return _start(["ip", "netns", "exec", host, *COMMAND, *map(str, arguments)], **options)


def _start(command, env=os.environ, **options):
    given = {**env, "PYTHONPATH": str(ROOT), "PYTHONFAULTHANDLER": "1"}
    return subprocess.Popen(command, env=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)


def end_all(started):
    """End the programs of a cluster, a scheduler and its workers."""
    for one in reversed(started):  # each at once: workers that lose their scheduler first look for it for seconds
        one.terminate()
        try:
            one.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            one.kill()
            one.communicate()


def free_port():
    """Return a port of this machine at which nobody listens, and which the system gives to nobody who asks for any.

    The program that is to listen there needs seconds until it does.
    """
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:  # not on Linux
        first = 32768
    while True:
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", 1024 + secrets.randbelow(max(1, first - 1024))))
            return one.getsockname()[1]


def wait_for(address, scheduler):
    """Wait until a scheduler that was started listens, which takes long on a busy machine; fail where it ends."""
    host, _, port = address.partition("://")[2].rpartition(":")
    deadline = time.monotonic() + 180
    while scheduler.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection((host, int(port)), 1).close()
        except OSError:
            time.sleep(0.2)
            continue
        if scheduler.poll() is None:
            return
    explain([scheduler], f"nobody listens at {address}")


@contextlib.contextmanager
def explained(started):
    """Tell what the programs of a cluster said and were doing, where it cannot be reached in the block."""
    try:
        yield
    except Exception as error:
        explain(started, f"{type(error).__name__}: {error}")


def explain(started, what):
    """Fail with what programs said, and where their threads are: `start` lets SIGABRT tell that."""
    told = [what]
    for one in started:
        if one.poll() is None:
            one.send_signal(signal.SIGABRT)
        output = one.communicate(timeout=60)[0].decode("utf-8", "replace")
        told.append(f"program {one.pid}, {one.args[3:]}, ended with {one.returncode}:\n{output}")
    pytest.fail("\n".join(told))


def ip(*arguments, check=True):
    """Run the program ip."""
    return subprocess.run(["ip", *arguments], check=check, capture_output=True, text=True)


@pytest.fixture
def hosts():
    """Names of two network namespaces, joined by a cable, with the addresses 10.213.77.1 and 10.213.77.2."""
    names = [f"cbst-{os.getpid()}-{number}" for number in (1, 2)]
    try:
        made = [ip("netns", "add", name, check=False).returncode for name in names]
    except FileNotFoundError:
        pytest.skip("no network namespaces here: there is no ip")
    try:
        if any(made):
            pytest.skip("no network namespaces here: they need root")
        cables = [f"cbst{os.getpid() % 10**6}{end}" for end in "ab"]
        if ip("link", "add", cables[0], "type", "veth", "peer", "name", cables[1], check=False).returncode:
            pytest.skip("no network namespaces here: the kernel has no veth")
        for number, (name, cable) in enumerate(zip(names, cables), 1):
            ip("link", "set", cable, "netns", name)
            ip("-n", name, "addr", "add", f"10.213.77.{number}/24", "dev", cable)
            ip("-n", name, "link", "set", cable, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            ip("netns", "del", name, check=False)


def heard(host):
    """Return the addresses that anything in a namespace listens on."""
    lines = ip("netns", "exec", host, "ss", "-Hltn").stdout.splitlines()
    return {line.split()[3].rpartition(":")[0] for line in lines}
