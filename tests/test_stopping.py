"""Stops from outside, with real processes and signals: what is saved, what is said, and that the result is the same."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests import tiny

ROOT = Path(__file__).resolve().parents[1]

# The command line, whose progress tells a parent process where it is and gives it a moment to send a signal.
CHILD = """
import os, sys, time
from cbst_mx.cli import main
from cbst_mx.cli.base import Bars
shown, where, at = Bars.__call__, sys.argv[1], sys.argv[2]
def told(self, what, done, total):
    if (where in what if len(where) > 12 else where == what) and done < total and at in ("None", str(done)):
        os.write(1, b"at\\n")
        end = time.monotonic() + float(sys.argv[3])
        while time.monotonic() < end and self._stop.signal is None:
            time.sleep(0.01)
    shown(self, what, done, total)
Bars.__call__ = told
main(sys.argv[4:], prog_name="cbst-mx")
"""


def start(where, at, *arguments, pause=30, **options):
    """Start a command; its stdout has a line ``at`` as soon as `where` is at step `at`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHILD, where, str(at), str(pause), *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes, **options)


def wait_for(process, line="at"):
    for got in process.stdout:
        if got.strip() == line:
            return
    raise AssertionError(process.communicate()[1])


def stopped(where, at, number, *arguments):
    """Stop a command at a step by a signal; return exit code, stderr and the seconds until it ended."""
    process = start(where, at, *arguments)
    wait_for(process)
    begun = time.monotonic()
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    return process.returncode, error, time.monotonic() - begun


def contents(folder):
    skipped = ("log.txt", "manifest.json", "ledger.jsonl")
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in skipped
    }


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory):
    root = tiny.write_scenes(tmp_path_factory.mktemp("scenes"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CBST_DATA", str(root))
        yield root


WARM_UP = "warm_up={optimiser: {iterations: 6, batch_size: 4, learning_rate: 0.01}, discriminator_width: 4}"


def run_command(out, *changes):
    return ("run", tiny.DEMO, "--out", out, *tiny.options("self_training.rounds=1", *changes))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    finish(*run_command(out, WARM_UP))
    return contents(out)


def finish(*arguments):
    process = start("nowhere", 0, *arguments)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error


STOPS = [  # where, done, in all, signal, exit code, what is kept
    ("source: training", 7, 12, "SIGINT", 130, "the same command continues"),
    ("demo, warm-up", 3, 6, "SIGTERM", 143, "the same command continues"),
    (
        "demo, source: evaluation on target",
        1,
        3,
        "SIGUSR1",
        138,
        "the same command continues, with this step from its start",
    ),
    ("round 1: pseudo-labels", 3, 10, "SIGINT", 130, "the same command continues, with this step from its start"),
    ("round 1: pseudo-labels", 8, 10, "SIGTERM", 143, "the same command continues, with this step from its start"),
    ("round 1: training", 3, 4, "SIGHUP", 129, "the same command continues"),
    (
        "round 1: evaluation on target",
        2,
        3,
        "SIGTERM",
        143,
        "the same command continues, with this step from its start",
    ),
]


@pytest.mark.slow
def test_a_run_stopped_in_every_phase_ends_as_one_that_was_not(whole, tmp_path):
    out = tmp_path / "run"
    for where, done, total, name, code, kept in STOPS:
        number = getattr(signal, name)
        returned, error, seconds = stopped(where, done, number, *run_command(out, WARM_UP))
        assert returned == code, (where, error)
        sentence = f"{where}: stopped at {done} of {total}; {kept}\n"
        assert sentence in error
        assert sentence in (out / "log.txt").read_text()
        assert "Traceback" not in error
        assert seconds < 5
        assert not [path for path in out.rglob("*.part") if path.name != "maps.part"]
    finish(*run_command(out, WARM_UP))
    log = (out / "log.txt").read_text()
    assert "training: continuing at iteration 7 of 12" in log  # the iteration that was finished is not lost
    assert "training: continuing at iteration 12 of 12" in log  # nor the source training by a stop in the warm-up
    assert "warm-up: continuing at iteration 3 of 6" in log
    found = contents(out)
    assert set(found) == set(whole)
    assert [name for name in whole if found[name] != whole[name]] == []


def test_a_second_signal_ends_at_once(tmp_path):
    # the child sleeps after the first one, as if it were inside MXNet
    child = CHILD.replace("and self._stop.signal is None", "")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", child, "source: training", "2", "60", *map(str, run_command(tmp_path / "run"))]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        wait_for(process)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)  # as timeout(1) does: one request
        time.sleep(1)
        assert process.poll() is None
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
        assert time.monotonic() - begun < 2
    assert process.returncode == 130
    assert "stopping after this step; once more to stop at once\nstopped at once\n" in error


@pytest.mark.slow
def test_signals_that_are_ignored_stay_ignored(tmp_path):
    def ignore():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = start("source: training", 7, *run_command(tmp_path / "run"), pause=0.5, preexec_fn=ignore)
    wait_for(process)
    process.send_signal(signal.SIGHUP)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error


def maps(folder, count=40):
    rng = np.random.default_rng(0)
    folder.mkdir()
    for index in range(count):
        logits = rng.normal(size=(13, 24, 48)) * 3
        values = np.exp(logits) / np.exp(logits).sum(axis=0)
        np.save(folder / f"{index:02d}.npy", values.astype(np.float32))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_labelling_job_stopped_in_every_pass_ends_as_one_that_was_not(tmp_path, workers):
    given = ("label", "--probabilities", maps(tmp_path / "maps"), "--portion", "0.2", "--workers", workers)
    finish(*given, "--out", tmp_path / "whole")
    command = (*given, "--out", tmp_path / "out")
    stops = (("count", "SIGINT", 130), ("second count", "SIGTERM", 143), ("selection", "SIGUSR1", 138))
    for where, name, code in stops:
        # to all processes of the group, as a terminal and a batch system do
        process = start(where, None, *command, start_new_session=True)
        wait_for(process)
        begun = time.monotonic()
        os.killpg(process.pid, getattr(signal, name))
        _, error = process.communicate(timeout=60)
        assert process.returncode == code, (where, error)
        assert time.monotonic() - begun < 5
        assert re.search(rf"^{where}: stopped at \d+ of 40; the same command continues$", error, re.MULTILINE), error
        assert "Traceback" not in error
    finish(*command)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_outlives_a_labelling_job(tmp_path, number):
    # even where the thread that watches for the end of the job is held up: the workers are stopped here
    command = ("label", "--probabilities", maps(tmp_path / "maps"), "--portion", "0.2", "--workers", "2")
    process = start("count", None, *command, "--out", tmp_path / "out", start_new_session=True)
    wait_for(process)
    assert len(session(process.pid)) >= 4  # the job, fork server, workers; the resource tracker
    process.send_signal(number)
    process.communicate(timeout=60)  # ends when the last process that holds its output is gone
    end = time.monotonic() + 10
    while session(process.pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert session(process.pid) == []


def session(leader):
    """Return the processes of a session that run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, number = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(number) == leader and state != "Z":
            found.append(int(path.parent.name))
    return found
