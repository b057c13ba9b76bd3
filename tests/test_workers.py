"""The processes of a labelling job: what happens when one of them is gone at the worst moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from cbst_mx.labelling.map_folder import MapFolder
from cbst_mx.labelling.workers import Workers

ROOT = Path(__file__).parents[1]


def large(folder, seconds):
    """Return so much that it takes a while to be sent, and die meanwhile; called in a worker."""
    if seconds is not None:
        threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
    return np.zeros(100 << 20, np.uint8)


JOB = """
import sys
from pathlib import Path
from cbst_mx.errors import RunError
from cbst_mx.labelling.map_folder import MapFolder
from cbst_mx.labelling.workers import Workers
from tests.test_workers import large

folder = MapFolder.open(Path(sys.argv[1]))
try:
    with Workers(2) as workers:
        for _ in workers.blocks(large, folder, folder.names, float(sys.argv[2])):
            if len(sys.argv) > 3:
                raise RunError("stopped")
except RunError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workers")
    for index in range(8):
        np.save(folder / f"{index}.npy", np.full((2, 4, 4), 0.5, np.float32))
    return folder


# in a process of its own, which a job that waits for ever cannot hold up
@pytest.mark.parametrize("seconds", [0.02, 0.06, 0.1, 0.2, 0.4])
def test_a_worker_that_is_gone_within_a_result_ends_the_job(maps, seconds):
    command = [sys.executable, "-c", JOB, str(maps), str(seconds)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "a worker process was stopped from outside, perhaps for lack of memory\n", done.stderr


def test_a_job_that_ends_while_results_are_sent_ends_at_once(maps):
    for _ in range(3):
        command = [sys.executable, "-c", JOB, str(maps), "100", "stop"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.stdout == "stopped\n", done.stderr


def test_results_come_whole(maps):
    folder = MapFolder.open(maps)
    with Workers(2) as workers:
        found = list(workers.blocks(large, folder, folder.names, None))
    assert sum(length for length, _ in found) == 8
    assert all(result.nbytes == 100 << 20 for _, result in found)
