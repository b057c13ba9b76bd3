"""Work and training on two hosts: network namespaces with a cable between them, which needs root."""

from __future__ import annotations

import contextlib
import threading
import time

import numpy as np
import pytest

pytest.importorskip("distributed")

from cbst_mx.cluster.certificates import make_certificates  # noqa: E402
from cbst_mx.labelling import MapFolder, run  # noqa: E402
from tests import small_runs, tiny  # noqa: E402
from tests.clusters import MARKS, begin_at, end_all, heard, ip  # noqa: E402
from tests.faults import contents  # noqa: E402
from tests.maps import random_maps, write_maps  # noqa: E402
from tests.test_kvstore import _SMALL, equal, parameters  # noqa: E402

pytestmark = [*MARKS, pytest.mark.slow]

ADDRESSES = ("10.213.77.1", "10.213.77.2")


@pytest.fixture
def cluster(hosts, tmp_path):
    """The options that name a cluster with a worker on each host."""
    make_certificates(tmp_path / "certificates", 2)
    given = (f"tls://{ADDRESSES[0]}:8786", "--tls", tmp_path / "certificates")
    started = [begin_at(hosts[0], "cluster", "scheduler", *given)]
    started += [begin_at(host, "cluster", "worker", *given, "--threads", 1) for host in hosts]
    yield ("--cluster", *given)
    end_all(started)


def test_two_hosts_share_the_work_and_listen_on_their_network_only(hosts, cluster, tmp_path):
    maps = write_maps(tmp_path / "maps", random_maps(0, (12, 19, 8, 16)))
    run(MapFolder.open(maps, stride=8), tmp_path / "alone", policy="class-balanced", portion=0.2)
    given = ["label", "--probabilities", maps, "--upsample", 8, "--portion", 0.2, "--out", tmp_path / "out"]
    client = begin_at(hosts[0], *given, *cluster)
    output = client.communicate(timeout=300)[0]
    assert client.returncode == 0, output
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")
    for host, address in zip(hosts, ADDRESSES):
        assert heard(host) == {address}


def train(host, data, out, *options, changes=()):
    """Start a run of one round in a namespace."""
    given = [part for change in (*_SMALL, *changes) for part in ("--set", change)]
    environment = {**small_runs.environment(data), "OMP_NUM_THREADS": "1"}
    return begin_at(host, "run", tiny.DEMO, "--out", out, *tiny.options(), *given, *options, env=environment)


@pytest.fixture
def listeners(hosts):
    """Sets of addresses, which grow by all that anything on each host listens on meanwhile."""
    found, over = [set(), set()], threading.Event()

    def look():
        while not over.wait(0.5):
            for addresses, host in zip(found, hosts):
                addresses |= heard(host)

    thread = threading.Thread(target=look)
    thread.start()
    yield found
    over.set()
    thread.join()


def test_two_hosts_train_what_two_contexts_train(hosts, cluster, listeners, small_data, tmp_path):
    shared = train(hosts[0], small_data, tmp_path / "shared", *cluster, "--train-workers", 2)
    output = shared.communicate(timeout=300)[0].decode()
    assert shared.returncode == 0, output
    assert output.count("gradients and parameters go over the network by ps-lite") == 1
    assert "begin again" not in output
    for addresses, own in zip(listeners, ADDRESSES):
        assert addresses <= {own, "127.0.0.1"}
    alone = train(hosts[0], small_data, tmp_path / "alone", changes=["ctx=cpu:0,1"])
    assert alone.wait(300) == 0, alone.communicate()[0]
    alone.communicate()
    for stage in ("source", "round-1"):
        name = f"{stage}/parameters.params"
        assert equal(parameters(tmp_path / "shared" / name), parameters(tmp_path / "alone" / name))


def test_a_cable_that_is_cut_costs_a_host_and_not_the_run(hosts, cluster, small_data, tmp_path):
    changes = ["network.options={width: 0.015625, batch_norm: none, dropout: 0.0}"]
    long = tmp_path / "shared"
    shared = train(hosts[0], small_data, long, *cluster, "--train-workers", 2, changes=changes)
    with contextlib.closing(shared.stdout):
        while not (long / "source" / "checkpoint.params").is_file():
            assert shared.poll() is None, shared.communicate()
            time.sleep(0.02)
        cut = time.monotonic()
        links = ip("-n", hosts[1], "-o", "link").stdout
        cable = next(word for word in links.split() if word.startswith("cbst")).partition("@")[0]
        ip("-n", hosts[1], "link", "set", cable, "down")
        output = shared.communicate(timeout=400)[0].decode()
    assert shared.returncode == 0, output
    assert "1 of 2 workers are there: each batch is spread over these" in output
    assert time.monotonic() - cut < 75 + 75 + 60  # to miss it, to wait for it, and the work
    alone = train(hosts[0], small_data, tmp_path / "alone", changes=changes)
    assert alone.wait(300) == 0, alone.communicate()[0]
    for name, array in parameters(tmp_path / "alone" / "source/parameters.params").items():
        shared_array = parameters(long / "source/parameters.params")[name]
        np.testing.assert_allclose(shared_array, array, rtol=1e-4, atol=1e-5)
    alone.communicate()
