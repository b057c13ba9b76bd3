"""What tests with a cluster share: the warnings that are expected there, and two workers of this machine."""

from __future__ import annotations

import gc
import os
import signal

import pytest

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
