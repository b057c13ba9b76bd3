from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest_plugins = ["tests.doctor_fixtures", "tests.processes"]

# before anything imports mxnet: other thread counts change the last bits of sums
os.environ.setdefault("OMP_NUM_THREADS", "2")


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu"):
        # the driver's device file, so that nothing imports mxnet in vain
        if not Path("/dev/nvidia0").exists():
            pytest.skip("no NVIDIA GPU")
        from symbols.backend import mx

        if not mx.context.num_gpus():
            pytest.skip("mxnet sees no GPU")
