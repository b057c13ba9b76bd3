"""Training by several processes over MXNet's kvstore: the parameters of one with as many contexts, whatever dies.

What the tests are named after are the traps of the kvstore: an environment variable PORT, keys that are no numbers,
parameters that arrive behind the first gradients, oneDNN's layout, updates on the server, deaths that nobody notices.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("distributed")
psutil = pytest.importorskip("psutil")

from cbst_mx.cli import main  # noqa: E402
from cbst_mx.cluster import KVStore, Where, kvstore, open_cluster  # noqa: E402
from cbst_mx.errors import ConfigError, DataError, RunError, StoppedError  # noqa: E402
from cbst_mx.rounds import Run, stage_networks, together  # noqa: E402
from cbst_mx.training.checkpoints import count_threads  # noqa: E402
from cbst_mx.training.ranks import Alone, Ranks  # noqa: E402
from cbst_mx.training.sgd import dropout_generator  # noqa: E402
from symbols.backend import mx  # noqa: E402
from tests import tiny  # noqa: E402
from tests.clusters import MARKS  # noqa: E402
from tests.faults import contents  # noqa: E402
from tests.test_architecture import ROOT  # noqa: E402
from tests.test_training import run_training  # noqa: E402

pytestmark = MARKS

_ITERATIONS = 16
_SMALL = (
    "network.options={width: 0.015625, batch_norm: batch, dropout: 0.0}",
    "augmentation.crop=[32, 32]",
    f"source_training={{iterations: {_ITERATIONS}, batch_size: 5, learning_rate: 0.05, warmup: 5, "
    "checkpoint_every: 4, checkpoint_minutes: 0, bias_lr_mult: 2.0, bias_wd_mult: 0.0}",
    "self_training.retraining={iterations: 3, batch_size: 4, learning_rate: 0.01}",
    "self_training.target_per_batch=2",
    "self_training.rounds=1",
    "validation={}",
)


def experiment(*changes):
    return tiny.experiment(*_SMALL, *changes)


@pytest.fixture(scope="module")
def data(small_data):
    return small_data


@pytest.fixture(scope="module")
def local():
    with open_cluster(Where.parse("local:3"), threads=count_threads() or 1) as cluster:
        yield cluster


@pytest.fixture
def two(local, monkeypatch):
    """The cluster, two of whose workers train."""
    monkeypatch.setattr(local, "together", KVStore(local, 2))
    return local


def trained(experiment, out, data, **options):
    """Train the source network of an experiment, and return its parameters."""
    run = Run(experiment, out, data_root=data, **options)
    run.train_source()
    return parameters(run.dir.stage(0).parameters)


def parameters(path):
    return {name: array.asnumpy() for name, array in mx.nd.load(str(path)).items()}


def equal(one, other):
    return set(one) == set(other) and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    """The parameters of one process that trains on two contexts."""
    return trained(experiment("ctx=cpu:0,1"), tmp_path_factory.mktemp("contexts") / "run", data)


def children():
    """Return the processes that are at work for a kvstore of these tests, and their roles; whoever started them."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            variables = process.environ()  # of one that has ended, but was not waited for: none
            if variables.get("CBST_TESTS") == os.environ["CBST_TESTS"] and "DMLC_ROLE" in variables:
                found.append((process, variables["DMLC_ROLE"]))
    return found


def gone(within=20.0):
    end = time.monotonic() + within
    while children() and time.monotonic() < end:
        time.sleep(0.2)
    return not children()


# ------------------------------------------------------------------------------------------------------ the same result


def test_two_processes_train_what_two_contexts_train(two, data, tmp_path, undisturbed, caplog):
    # batch norm with batch statistics, momentum, a rate that changes, biases with a rate of their own; 5 images for two
    assert equal(trained(experiment(), tmp_path / "run", data, cluster=two), undisturbed)
    assert gone()
    assert "continuing with" not in caplog.text  # the threads of this process train nothing


def test_the_end_is_told_once(tmp_path):
    def processes(function, arguments, hear, name):
        for event in (None, (1, 0.7, 0.1, 2), None, (2, 0.6, 0.1, 2), None, None):
            hear(event)

    checkpoint = tmp_path / "checkpoint.params"
    order = together.Order(
        *(experiment(), experiment().source_training, [0] * 10, 0, checkpoint, {}), folder=tmp_path, here=tmp_path
    )
    told = []
    together.elsewhere(processes, order, lambda done, total: told.append((int(done), total)), 0)
    assert told[1:] == [(1, 2), (1, 2), (2, 2)]  # whoever shows progress would begin anew


@pytest.mark.slow
def test_a_round_on_a_cluster_is_that_of_two_contexts(two, data, tmp_path):
    for out, ctx, cluster in (("contexts", "cpu:0,1", None), ("shared", "cpu", two)):
        Run(experiment(f"ctx={ctx}"), tmp_path / out, data_root=data, cluster=cluster).run()
    alone, shared = contents(tmp_path / "contexts"), contents(tmp_path / "shared")
    assert sorted(alone) == sorted(shared)
    other = {name for name in alone if alone[name] != shared[name]}
    # who says how many processes there were, and which devices
    assert {name.rpartition("/")[2] for name in other} <= {"training.json", "experiment.yaml", "log.txt"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        ("network.options.batch_norm=none",),
        ("network.options.batch_norm=frozen", "images_per_pass=2", "gradient_checkpointing=true"),
        ("self_training.separate_domains=true",),
        ("source_training.snapshots=4",),
    ],
)
def test_so_they_do_with_other_settings(two, data, tmp_path, changes):
    found = {}
    for out, ctx, cluster in (("contexts", "cpu:0,1", None), ("shared", "cpu", two)):
        Run(experiment(f"ctx={ctx}", *changes), tmp_path / out, data_root=data, cluster=cluster).run()
        files = sorted((tmp_path / out).rglob("*.params"))
        found[out] = {str(file.relative_to(tmp_path / out)): file.read_bytes() for file in files}
    assert len(found["shared"]) > 1
    assert found["contexts"] == found["shared"]


def digest(arrays):
    """Return the SHA-256 of parameters by name."""
    return hashlib.sha256(b"".join(arrays[name].tobytes() for name in sorted(arrays))).hexdigest()


def _train_and_tell(order, seat):
    """Do one process's part of a phase, and send its parameters' digest to the command's log."""
    train_phase = together.train_phase

    def observed(experiment, network, *given, team, **options):
        record = train_phase(experiment, network, *given, team=team, **options)
        arrays = {name: own.data().asnumpy() for name, own in network._collect_params_with_prefix().items()}
        logging.getLogger("cbst_mx.tests").warning("process %d has %s", team.rank, digest(arrays))
        return record

    together.train_phase = observed
    together._train(order, seat)


@pytest.mark.slow
def test_three_processes_train_nearly_what_three_contexts_train(local, data, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(local, "together", KVStore(local, 3))
    monkeypatch.setattr(together, "_train", _train_and_tell)
    few = ("network.options.batch_norm=none", "source_training.iterations=6", "source_training.learning_rate=0.001")
    alone = trained(experiment("ctx=cpu:0,1,2", *few), tmp_path / "contexts", data)
    shared = trained(experiment(*few), tmp_path / "shared", data, cluster=local)
    for name, array in alone.items():  # the server adds up in the order of arrival: last digits of float32
        np.testing.assert_allclose(shared[name], array, rtol=1e-5, atol=1e-6)
    told = sorted(record.getMessage() for record in caplog.records if record.name == "cbst_mx.tests")
    assert told == [f"process {rank} has {digest(shared)}" for rank in range(3)]  # each the same, to the last bit


class _Place(Alone):
    """One of several processes, as far as it alone can be it: the others are not there."""

    def __init__(self, rank):
        self.rank = rank


def test_each_process_draws_its_own_masks(tmp_path):
    first, again, second = (dropout_generator(0, 1, 2, rank).integers(1 << 31) for rank in (0, 0, 1))
    assert first == again
    assert first != second
    common = tmp_path / "checkpoint.params"  # that all begin from
    run_training(2, common, every=1, stop=1)
    first, again, second = (run_training(2, common, team=_Place(rank))[1] for rank in (0, 0, 1))  # and trains with them
    assert equal(first, again)
    assert not equal(first, second)


class _Seat:
    """A seat of one who listens to nobody."""

    asked_to_stop = False

    def __init__(self):
        self.told = []

    def tell(self, event):
        self.told.append(event)


def test_the_first_process_alone_writes_and_tells(two, data, tmp_path, monkeypatch):
    # what a process of a training changes in these
    monkeypatch.setattr(logging.getLogger("cbst_mx"), "handlers", [*logging.getLogger("cbst_mx").handlers])
    monkeypatch.setattr(logging.getLogger("cbst_mx.training.checkpoints"), "disabled", False)
    found = {}

    def processes(function, arguments, hear, name):
        for rank in (1, 0):
            monkeypatch.setattr(together, "Ranks", lambda *_, rank=rank: _Place(rank))
            seat, before = _Seat(), contents(tmp_path)
            function(*arguments, seat)
            after = contents(tmp_path)
            found[rank] = {name for name in after if after[name] != before.get(name)}, len(seat.told)

    processes.size = 2
    monkeypatch.setattr(two, "together", processes)
    trained(experiment("source_training.snapshots=2"), tmp_path / "run", data, cluster=two)
    assert found[1] == (set(), 0)
    written, told = found[0]
    assert "run/source/checkpoint.params" in written
    assert any(name.startswith("run/source/snapshots/") for name in written)
    assert told == _ITERATIONS


# ------------------------------------------------------------------------------------------------------ what travels


def _exchange(seat):
    """Tell what each process gets of the others."""
    ranks = Ranks([mx.cpu(0), mx.cpu(1)])
    network = mx.gluon.nn.Dense(2, in_units=3)
    network.initialize(ctx=[mx.cpu(0), mx.cpu(1)])
    trainer = ranks.trainer(network.collect_params(), {"learning_rate": 0.1})
    assert not trainer._update_on_kvstore
    odd = np.array([-0.0, 0.0, np.nan, np.inf, 1e-45, 1 / 3, -1 / 3], np.float32)
    own = {name: [mx.nd.array(odd * (1 + 2 * ranks.rank + place)) for place in range(2)] for name in ("a", "b")}
    copies = ranks.copies(own)
    losses = [mx.nd.array([10.0 * step + 2 * ranks.rank + place]) for step in range(3) for place in range(2)]
    weights = [array.asnumpy().tobytes() for array in network.weight.list_data()]
    seat.tell({
        "rank": ranks.rank,
        "total": ranks.total((1 << 31) + ranks.rank),
        "losses": [loss.asscalar() for loss in ranks.losses(losses)],
        "copies": {name: [copy.asnumpy().tobytes() for copy in found] for name, found in copies.items()},
        "any": [ranks.any(ranks.rank == 1), ranks.any(False)],
        "weights": weights,
        "others": [name for name in _OTHERS if name in os.environ],
    })  # fmt: skip
    while not seat.asked_to_stop:
        time.sleep(0.05)


# What ps-lite would obey in the environment: every process took the port, and the scheduler listened everywhere.
_OTHERS = {"PORT": "1", "DMLC_USE_KUBERNETES": "1"}


def _set(variables):
    for name in _OTHERS:
        os.environ.pop(name, None)
    os.environ.update(variables)


def listening():
    """Return the roles of the processes that are at work, each with the addresses that it listens on."""
    found = set()
    for process, role in children():
        connections = getattr(process, "net_connections", None) or process.connections
        found.update((role, one.laddr.ip) for one in connections("inet") if one.status == psutil.CONN_LISTEN)
    return found


def test_numbers_travel_bit_for_bit_on_this_machine_only(local):
    told, found = [], set()

    def hear(event):
        told.extend([event] if event else [])
        if len(told) == 2:
            found.update(listening())
            raise StoppedError("exchange", 0, 1)

    local.client.run(_set, _OTHERS)
    try:
        with pytest.raises(StoppedError):
            KVStore(local, 2)(_exchange, (), hear, name="exchange")
    finally:
        local.client.run(_set, {})
    assert found == {(role, "127.0.0.1") for role in ("scheduler", "server", "worker")}
    first, second = sorted(told, key=lambda one: one["rank"])
    assert [one["others"] for one in told] == [[], []]
    assert len({*first["weights"], *second["weights"]}) == 1  # those of the first process
    odd = np.array([-0.0, 0.0, np.nan, np.inf, 1e-45, 1 / 3, -1 / 3], np.float32)
    for one in told:
        assert one["total"] == (1 << 32) + 1
        assert one["losses"] == [10 * step + place for step in range(3) for place in range(4)]
        assert one["any"] == [True, False]
        for found in one["copies"].values():
            assert found == [(odd * (1 + place)).tobytes() for place in range(4)]


def test_nothing_uses_what_the_kvstore_does_badly():
    """Asynchronous training, whose server ends without an updater, and the launcher of the wheel, which ends itself."""
    kinds, launchers = set(), []
    for folder in ("cbst_mx", "symbols", "tools", "experiments", "docs"):
        for path in (ROOT / folder).rglob("*.*"):
            if path.suffix in (".py", ".yaml", ".md"):
                text = path.read_text()
                kinds.update(re.findall(r"\bdist_\w*sync\b", text))
                launchers += [path for _ in re.findall(r"dmlc_tracker|mxnet\.tools|tools/launch\.py", text)]
    assert kinds == {"dist_sync", "dist_device_sync"}
    assert launchers == []


def test_it_takes_a_place_among_others():
    with pytest.raises(RunError, match="DMLC_ROLE must be worker in a process that trains with others, got None"):
        Ranks([mx.cpu()])


# ------------------------------------------------------------------------------------------------------ deaths


def _at(iteration, act):
    """Return a progress that acts once, when so many iterations of a training are done."""
    acted = []

    def progress(what, done, total):
        if what.endswith("training") and done >= iteration and not acted:
            acted.append(done)
            act()

    return progress


def kill_one(role):
    next(process for process, its in children() if its == role).kill()


@pytest.mark.parametrize(
    "who",
    [
        pytest.param("scheduler", marks=pytest.mark.slow),
        "server",
        pytest.param("worker", marks=pytest.mark.slow),
        "a worker of the cluster",
    ],
)
def test_who_dies_changes_nothing(two, data, tmp_path, undisturbed, who, caplog):
    def kill():
        if who == "a worker of the cluster":
            os.kill(two.client.run(os.getpid)[two.workers()[1]], signal.SIGKILL)
        else:
            kill_one(who)

    assert equal(trained(experiment(), tmp_path / "run", data, cluster=two, progress=_at(6, kill)), undisturbed)
    lost = r"worker \S+ is gone" if who == "a worker of the cluster" else rf"the {who} at \S+ ended by signal 9"
    assert re.search(f"training in 2 processes: {lost}.*; all begin again where they saved last", caplog.text)
    assert gone()


@pytest.mark.slow
def test_a_death_changes_no_mask(two, data, tmp_path):
    some = experiment("network.options.dropout=0.5")
    quiet = trained(some, tmp_path / "quiet", data, cluster=two)
    assert equal(trained(some, tmp_path / "run", data, cluster=two, progress=_at(6, lambda: kill_one("worker"))), quiet)


@pytest.mark.slow
def test_two_processes_of_two_devices_each(two, data, tmp_path):
    few = ("network.options.batch_norm=none", "source_training.iterations=6", "source_training.learning_rate=0.001")
    alone = trained(experiment("ctx=cpu:0,1,2,3", *few), tmp_path / "contexts", data)
    shared = trained(experiment("ctx=cpu:0,1", *few), tmp_path / "shared", data, cluster=two)
    for name, array in alone.items():  # sums of sums
        np.testing.assert_allclose(shared[name], array, rtol=1e-5, atol=1e-6)


def test_a_training_that_is_stopped_goes_on(two, data, tmp_path, undisturbed):
    def stop():
        raise StoppedError("training", 6, _ITERATIONS)

    with pytest.raises(StoppedError) as stopped:
        trained(experiment(), tmp_path / "run", data, cluster=two, progress=_at(6, stop))
    assert stopped.value.kept == "all"
    assert gone()
    assert (tmp_path / "run" / "source" / "checkpoint.params").is_file()
    # and may do so anywhere: on the contexts of one process
    assert equal(trained(experiment("ctx=cpu:0,1"), tmp_path / "run", data), undisturbed)


def _fail(seat):
    raise DataError("this image cannot be used")


def _break(seat):
    ranks = Ranks([mx.cpu()])
    if ranks.rank == 1:
        raise RuntimeError("a defect")
    ranks.total(1)  # waits for the other


def _die(seat):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_sentence_of_a_process_is_that_of_the_command(local):
    with pytest.raises(DataError, match="this image cannot be used"):
        KVStore(local, 2)(_fail, (), lambda event: None, name="fail")
    assert gone()


@pytest.mark.slow
def test_who_dies_again_and_again_ends_the_command(local, monkeypatch, caplog):
    monkeypatch.setattr(kvstore, "_AGAIN", 1)
    match = (
        r"training in 2 processes: the worker at \S+ ended by signal 9, 2 times; what was saved is kept, and the same "
    )
    with pytest.raises(RunError, match=match):
        KVStore(local, 2)(_die, (), lambda event: None, name="die")
    assert gone()


@pytest.mark.slow
def test_a_defect_in_one_process_does_not_let_the_others_wait(local, monkeypatch):
    monkeypatch.setattr(kvstore, "_AGAIN", 0)
    match = (
        r"training in 2 processes: the worker at \S+ ended by signal 9 \(RuntimeError: a defect\), 1 time; what was "
    )
    with pytest.raises(RunError, match=match):
        KVStore(local, 2)(_break, (), lambda event: None, name="break")
    assert gone()


@pytest.mark.slow
def test_one_process_trains_too(local, data, tmp_path, monkeypatch):
    monkeypatch.setattr(local, "together", KVStore(local, 1))
    alone = trained(experiment(), tmp_path / "alone", data)
    assert equal(trained(experiment(), tmp_path / "shared", data, cluster=local), alone)


@pytest.mark.slow
def test_whoever_sees_another_folder_is_refused(two, data, tmp_path, monkeypatch):
    monkeypatch.setattr(together, "Order", functools.partial(together.Order, here=tmp_path / "nowhere"))
    monkeypatch.setattr(stage_networks, "Order", together.Order)
    monkeypatch.chdir(tmp_path)
    match = "the checkpoint that all begin from is not there, or another one, for a process on "
    with pytest.raises(RunError, match=match):
        trained(experiment(), Path("run"), data, cluster=two)


def _wait(seat):
    while True:
        time.sleep(1)


def test_processes_end_with_the_command(tmp_path):
    """Killed by -9, the command leaves nothing: neither do workers of its own, nor those that are nobody's."""
    code = (
        "import pickle, sys, time\nfrom cbst_mx.cluster import kvstore\nfrom tests.test_kvstore import _wait\n"
        "machine = kvstore._Machine(pickle.dumps((_wait, ())), {'worker': {}})\n"
        "print('started', flush=True)\ntime.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"started\n"
        assert children()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert gone()


def test_processes_are_ended_once():
    """The command may ask for it while a machine ends them by itself: a pipe closed twice may be another's by then."""
    closing, at_once = [], []

    class Ended:
        def kill(self):
            pass

        def wait(self):
            pass

        def poll(self):
            return 0

    class Pipe:
        def close(self):
            closing.append(self)
            at_once.append(len(closing))
            time.sleep(0.1)
            closing.remove(self)

    machine = kvstore._Machine(b"", {})
    machine._processes = {"worker": kvstore._Process(Ended(), Pipe(), io.BytesIO())}
    threads = [threading.Thread(target=machine.end) for _ in range(2)]
    for act in (threading.Thread.start, threading.Thread.join):
        for thread in threads:
            act(thread)
    assert at_once == [1, 1]


def test_processes_end_when_nobody_looks(monkeypatch):
    monkeypatch.setattr(kvstore, "_LEASE", 1.0)
    kvstore.start("a training", kvstore.pickle.dumps((_wait, ())), {"worker": {}})
    try:
        assert children()
        assert gone()
    finally:
        kvstore.end("a training")


# ------------------------------------------------------------------------------------------------------ refusals


def test_processes_that_train_are_those_of_a_cluster(tmp_path):
    arguments = ["run", str(tiny.DEMO), "--out", str(tmp_path / "run"), "--train-workers", "2"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "--train-workers needs --cluster" in result.output


def test_a_batch_has_an_image_for_each(local, data, tmp_path, monkeypatch):
    monkeypatch.setattr(local, "together", KVStore(local, 3))
    for change, name in (
        ("source_training.batch_size=2", "batch_size"),
        ("self_training.separate_domains=true", "each domain's part of a batch"),
        ("images_per_pass=2", "images_per_pass"),
    ):
        match = f"{name} must be at least the number of devices in ctx cpu of 3 processes, got 2"
        with pytest.raises(ConfigError, match=match):
            Run(experiment(change), tmp_path / "run", data_root=data, cluster=local)
    assert not (tmp_path / "run").exists()


def test_there_are_not_more_processes_than_workers(local):
    with pytest.raises(ConfigError, match="processes that train must be at most the 3 workers of the cluster, got 4"):
        KVStore(local, 4)


class _Workers:
    """A cluster of which so many workers are there."""

    wanted = 0

    def __init__(self, *addresses):
        self.addresses = list(addresses)

    def workers(self):
        return self.addresses


def test_a_machine_that_does_not_come_back_is_done_without(monkeypatch, caplog):
    monkeypatch.setattr(kvstore, "_FEWER", 0.0)
    monkeypatch.setattr(kvstore, "_SOON", 0.0)
    workers = _Workers("tls://127.0.0.1:1", "tls://127.0.0.1:2")
    store = KVStore(workers, 2)
    assert len(store._machines(2, lambda event: None)) == 2
    workers.addresses.pop()  # also between two phases, while nobody trains
    assert store._machines(2, lambda event: None) == ["tls://127.0.0.1:1"]
    assert "1 of 2 workers are there: each batch is spread over these, which changes last digits, and" in caplog.text
    assert "ps-lite" not in caplog.text
    asked = []

    def hear(event):
        asked.append(event)
        raise StoppedError("training", 0, 1)

    with pytest.raises(StoppedError):  # at first it is waited for, as long as nobody asks for a stop
        KVStore(workers, 2)._machines(2, hear)
    assert "training waits for 2 workers, 1 are there" in caplog.text


def test_of_a_network_that_is_not_private_is_warned(caplog):
    store = KVStore(_Workers("tls://10.0.0.1:1", "tls://10.0.0.2:1"), 2)
    for _ in range(2):
        store._machines(2, lambda event: None)
    assert caplog.text.count("ps-lite, which neither encrypts nor asks who connects, and whoever does can run pro") == 1
    with pytest.raises(ConfigError, match=r"workers that train must have IPv4 addresses, got tls://\[::1\]:1"):
        KVStore(_Workers("tls://[::1]:1"), 1)._machines(1, lambda event: None)
