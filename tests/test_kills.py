"""kill -9 of real processes at random moments, again and again in one folder, until the command ends by itself."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from tests import small_runs
from tests.faults import contents, is_temporary

# One process that has imported everything and is copied for each command: a fork, killed as any other process.
SERVER = """
import json, os, sys
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
        command = [sys.executable, "-c", SERVER]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen(command, env={**small_runs.environment(data), "OMP_NUM_THREADS": "1"}, **pipes)

    def run(self, arguments, log, *, kill_after=None, root="", exit_at=0):
        """Run a command; return its exit code, of a killed one minus the number of the signal."""
        given = {"arguments": arguments, "log": str(log), "root": str(root), "exit_at": exit_at}
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


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_runs.write_data(tmp_path_factory.mktemp("kills") / "data")


@pytest.fixture(scope="module")
def server(data):
    opened = Server(data)
    yield opened
    opened.close()


def stage_of(out):
    """Return in what a killed process was, as far as the folder says."""
    if not out.is_dir():
        return "before the folder"
    if (out / "job.json").is_file():
        made = len(list(out.glob("pseudo_labels/*.png")))
        return "label: " + ("selection" if made else "count")
    ledger = out / "ledger.jsonl"
    lines = ledger.read_text().splitlines() if ledger.is_file() else []
    if not lines:
        return "at the start"
    last = json.loads(lines[-1])
    name = "warm_up" if any(out.glob("source/warm_up*.params")) else last["step"]
    return name if not last["end"] else f"behind {name}"


def survive(kind, kills, rng, server, data, root, stages):
    """Kill the command of a kind so many times, each folder as often as it takes; all end as one that was not."""
    expected, log = None, root / "log"
    number = 0
    while kills > 0:
        number += 1
        out = root / f"{kind}-{number}"
        command = small_runs.command(kind, out, data)
        if expected is None:
            begun = time.monotonic()
            assert server.run(command, log) == 0, log.read_text()
            whole, expected = time.monotonic() - begun, contents(out)
            continue
        while kills > 0:
            code = server.run(command, log, kill_after=rng.uniform(0, 1.1 * whole))
            if code != -signal.SIGKILL:
                assert code == 0, log.read_text()
                break
            kills -= 1
            stages[stage_of(out)] += 1
        assert server.run(command, log) == 0, log.read_text()
        found = contents(out)
        assert [name for name in found if is_temporary(name)] == []
        assert sorted(found) == sorted(expected)
        assert [name for name in expected if found[name] != expected[name]] == []
        shutil.rmtree(out)
    assert "Traceback" not in log.read_text()


def test_killed_runs_end_as_one_that_was_not(server, data, tmp_path):
    rng, stages = random.Random(0), Counter()
    survive("cbst-sp", 3, rng, server, data, tmp_path, stages)
    survive("label", 1, rng, server, data, tmp_path, stages)
    assert sum(stages.values()) == 4


def test_processes_that_end_within_a_call_go_on(server, data, tmp_path):
    out, log = tmp_path / "run", tmp_path / "log"
    command = small_runs.command("st", out, data)
    codes = [server.run(command, log, root=out, exit_at=at) for at in (3, 25, 40, 90, 60)]
    assert codes == [137] * 5, log.read_text()
    assert server.run(command, log) == 0, log.read_text()
    assert server.run(small_runs.command("st", tmp_path / "whole", data), log) == 0
    assert contents(out) == contents(tmp_path / "whole")
    assert "Traceback" not in log.read_text()


@pytest.mark.slow
def test_sixty_kills_over_all_kinds(server, data, tmp_path):
    rng, stages = random.Random(13), Counter()
    for kind in small_runs.ALL:
        survive(kind, 10, rng, server, data, tmp_path, stages)
    assert sum(stages.values()) == 60
    print(json.dumps(stages, indent=2, sort_keys=True))
    assert len(stages) >= 10
