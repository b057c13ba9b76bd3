"""Commands in processes of their own, which tests kill or starve."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

# One process that has imported everything and is copied for each command: a fork, killed as any other process.
SERVER = """
import json, os, resource, sys
import cbst_mx.labelling, cbst_mx.rounds, cbst_mx.report.tables
from cbst_mx.cli import main
from tests.faults import Disk
for line in sys.stdin:
    given = json.loads(line)
    pid = os.fork()
    if not pid:
        log = os.open(given["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        for name, size in given["limits"].items():
            if name == "RLIMIT_AS":  # above what the process has
                size += int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
            resource.setrlimit(getattr(resource, name), (size, size))
        if given["exit_at"]:
            Disk(given["root"], given["exit_at"], "exit").__enter__()
        main(given["arguments"], prog_name="cbst-mx")
    print(pid, flush=True)
    sys.stdin.readline()  # until then its number is nobody else's
    print(os.waitpid(pid, 0)[1], flush=True)
"""


class Server:
    """Starts commands in processes of their own, without the seconds that imports take."""

    def __init__(self, data):
        from tests import small_runs  # imports mxnet

        command = [sys.executable, "-c", SERVER]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen(command, env={**small_runs.environment(data), "OMP_NUM_THREADS": "1"}, **pipes)

    def run(self, arguments, log, *, kill_after=None, root="", exit_at=0, limits=()):
        """Run a command; return its exit code, of a killed one minus the number of the signal."""
        given = {"arguments": arguments, "log": str(log), "root": str(root), "exit_at": exit_at}
        given["limits"] = dict(limits)
        self._process.stdin.write(json.dumps(given) + "\n")
        self._process.stdin.flush()
        pid = int(self._process.stdout.readline())
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(pid, signal.SIGKILL)
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        status = int(self._process.stdout.readline())
        return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)

    def close(self):
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


@pytest.fixture(scope="session")
def small_data(tmp_path_factory):
    """Return the images, labels and class maps of `small_runs`; whoever changes them puts them back."""
    from tests import small_runs  # imports mxnet

    return small_runs.write_data(tmp_path_factory.mktemp("small") / "data")


@pytest.fixture(scope="session")
def server(small_data):
    """Return the process that starts commands."""
    opened = Server(small_data)
    yield opened
    opened.close()
