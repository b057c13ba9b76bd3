from __future__ import annotations

import gc
import os
import signal
import uuid
from pathlib import Path

import pytest

import cbst_mx  # noqa: F401  before NumPy, whose kernels it chooses for all tests and what they start

pytest_plugins = ["tests.clusters", "tests.doctor_fixtures", "tests.processes"]

# before anything imports mxnet: other thread counts change the last bits of sums
os.environ.setdefault("OMP_NUM_THREADS", "2")
# threads that wait for each other leave the cores to the tests beside them; no number depends on it
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# all that these tests start inherits it, also from who has died since; other tests on this machine have others
os.environ["CBST_TESTS"] = uuid.uuid4().hex

# a shell starts what it does not wait for with Ctrl-C ignored, and processes started by tests would be so as well
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Files that take longest: xdist begins with those of many tests, and a long one at the end leaves cores idle.
LONGEST = (
    *("test_experiments", "test_documented_commands", "test_cluster", "test_faults", "test_rounds", "test_kvstore"),
    *("test_health", "test_torn_files", "test_shared", "test_continuation", "test_checkpoints", "test_devices"),
    *("test_demo", "test_gpu_paths", "test_browser"),
)


def put_first(queue, names=LONGEST):
    """Move the test files of these names to the front of a queue of files, in their order."""
    for name in reversed(names):
        if (file := f"tests/{name}.py") in queue:
            queue.move_to_end(file, last=False)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def schedule(self):
            super().schedule()
            put_first(self.workqueue)

    return Scheduling(config, log)


def pytest_collection_finish():
    # thousands of tests stay in memory: every look for garbage at all of them took longer than the tiny runs themselves
    gc.collect()
    gc.freeze()


@pytest.fixture
def waiting(monkeypatch):
    """Return of how many iterations the losses wait to be read, behind each iteration of a training."""
    from cbst_mx.training.watch import LossWatch

    add, counts = LossWatch.add, []

    def counted(watch, *arguments):
        add(watch, *arguments)
        counts.append(len(watch._waiting))

    monkeypatch.setattr(LossWatch, "add", counted)
    return counts


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu"):
        # the driver's device files (WSL 2 has another), so that nothing imports mxnet in vain
        if not [*Path("/dev").glob("nvidia[0-9]*"), *Path("/dev").glob("dxg")]:
            pytest.skip("no NVIDIA GPU")
        from symbols.backend import mx

        if not mx.context.num_gpus():
            pytest.skip("mxnet sees no GPU")
