"""What GPUs need of the program, seen without one: stand-ins of drivers, errors by their texts, freed memory."""

from __future__ import annotations

import gc
import logging
import os
import re
import subprocess
import sys
import types
import weakref
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from cbst_mx import planning
from cbst_mx.cli.base import OneSentence, leave
from cbst_mx.errors import ConfigError, DataError, explain_device
from cbst_mx.networks import devices
from cbst_mx.networks.build import build_network, parameter_bytes, spec_bytes
from cbst_mx.networks.devices import compute_capability, cudnn_error, driver_version, parse_contexts
from cbst_mx.networks.parameters import save_parameters
from cbst_mx.networks.spec import NetworkSpec
from cbst_mx.planning import measure, work
from cbst_mx.planning.measure import Peak, Series, Timing, sampled
from cbst_mx.rounds import Run, stage_networks
from cbst_mx.rounds.evaluations import evaluate
from cbst_mx.selftrain import kc
from cbst_mx.selftrain.kc import check_size
from cbst_mx.training.checkpoints import Checkpoints
from cbst_mx.training.sgd import Schedule, _rows, train
from cbst_mx.training.watch import gradient_norm
from symbols import backend
from symbols.backend import autograd, mx
from symbols.blocks import Dropout
from tests import small_runs, tiny

# ------------------------------------------------------------------------------------------------------------ drivers


class FakeDriver:
    """A stand-in of libcuda: the CUDA it supports, and the compute capability of its GPUs."""

    def __init__(self, version=11080, capability=(8, 6)):
        self.version, self.capability = version, capability

    def cuInit(self, flags):  # noqa: N802
        return 0

    def cuDeviceGet(self, handle, device):  # noqa: N802
        return 0

    def cuDriverGetVersion(self, value):  # noqa: N802
        value._obj.value = self.version
        return 0

    def cuDeviceGetAttribute(self, value, attribute, handle):  # noqa: N802
        value._obj.value = self.capability[attribute - 75]
        return 0


def test_the_driver_is_asked_what_it_is():
    assert compute_capability(0, lambda name: FakeDriver()) == (8, 6)
    assert driver_version(lambda name: FakeDriver(version=11020)) == (11, 2)

    def missing(name):
        raise OSError(name)

    assert compute_capability(0, missing) is None
    assert driver_version(missing) is None


@pytest.mark.parametrize(
    ("builds", "count", "driver", "said"),
    [
        (["mxnet"], 0, None, r"mxnet computes on the CPU only: in a checkout make setup EXTRAS=cu112,dev, or install"),
        (["mxnet-cu112"], 0, None, r"sees 0 GPUs: there is no NVIDIA driver \(libcuda.so.1\); or use cpu$"),
        (["mxnet-cu112"], 0, (11, 0), r"the driver supports CUDA 11.0, 11.2 is needed: install a newer driver"),
        (["mxnet-cu112"], 0, (12, 2), r"none is visible \(nvidia-smi lists them; CUDA_VISIBLE_DEVICES hides some\)"),
        (["mxnet-cu112"], 1, (12, 2), r"ctx gpu:1 is not available: this MXNet sees 1 GPU; or use cpu$"),
    ],
)
def test_a_gpu_that_is_not_there_is_one_sentence_with_the_way_out(monkeypatch, builds, count, driver, said):
    monkeypatch.setattr(devices, "installed_builds", lambda: builds)
    monkeypatch.setattr(devices, "driver_version", lambda: driver)
    monkeypatch.setattr(mx.context, "num_gpus", lambda: count)
    with pytest.raises(ConfigError, match=said):
        parse_contexts("gpu:1")


@pytest.mark.parametrize("capability", [(3, 7), (9, 0), (10, 0), (12, 0)])
def test_a_gpu_without_code_is_refused_before_anything_is_written(monkeypatch, tmp_path, capability):
    monkeypatch.setattr(mx.context, "num_gpus", lambda: 1)
    monkeypatch.setattr(devices, "compute_capability", lambda device: capability)
    with pytest.raises(
        ConfigError, match=r"GPU 0 has compute capability \d+\.\d, and mxnet-cu112 1.9.1 has code for 5.0"
    ):
        Run(small_runs.experiment("st").model_copy(update={"ctx": "gpu:0"}), tmp_path / "run", data_root=tmp_path)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("capability", [(5, 0), (7, 5), (8, 6), (8, 9), None])
def test_other_gpus_are_taken(monkeypatch, capability):
    monkeypatch.setattr(mx.context, "num_gpus", lambda: 2)
    monkeypatch.setattr(devices, "compute_capability", lambda device: capability)
    assert parse_contexts("gpu:0,1") == [mx.gpu(0), mx.gpu(1)]


class FakeCudnn:
    """A stand-in of libcudart and libcudnn: the status of a new handle, and what was done."""

    def __init__(self, status):
        self.status, self.done = status, []
        self.cudnnGetErrorString = lambda status: b"CUDNN_STATUS_VERSION_MISMATCH"

    def cudaGetDevice(self, device):  # noqa: N802
        device._obj.value = 3
        return 0

    def cudaSetDevice(self, device):  # noqa: N802
        self.done.append(getattr(device, "value", device))
        return 0

    def cudnnCreate(self, handle):  # noqa: N802
        return self.status

    def cudnnDestroy(self, handle):  # noqa: N802
        self.done.append("destroyed")
        return 0


def test_cudnn_is_asked_before_mxnet_ends_the_process(monkeypatch):
    good, bad = FakeCudnn(0), FakeCudnn(14)
    assert cudnn_error(1, lambda name: good) is None
    assert good.done == [1, 3, "destroyed"]
    assert cudnn_error(1, lambda name: bad) == "CUDNN_STATUS_VERSION_MISMATCH"
    assert bad.done == [1, 3]

    def missing(name):
        raise OSError(name)

    assert cudnn_error(1, missing) is None
    monkeypatch.setattr(mx.context, "num_gpus", lambda: 1)
    monkeypatch.setattr(devices, "cudnn_error", lambda device: "CUDNN_STATUS_VERSION_MISMATCH")
    with pytest.raises(
        ConfigError, match=r"^ctx gpu:0 cannot be used: the parts of cuDNN that were loaded are of diff"
    ):
        parse_contexts("gpu:0")
    monkeypatch.setattr(devices, "cudnn_error", lambda device: "CUDNN_STATUS_INTERNAL_ERROR")
    with pytest.raises(ConfigError, match=r"cuDNN cannot start on GPU 0 \(CUDNN_STATUS_INTERNAL_ERROR\)$"):
        parse_contexts("gpu:0")


def test_an_error_of_a_gpu_ends_the_process_at_once(monkeypatch):
    def end(code):
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", end)
    with pytest.raises(click.exceptions.Exit):  # no GPU: MXNet's own end has nothing to say
        leave(3)
    monkeypatch.setattr(mx.context, "num_gpus", lambda: 1)
    with pytest.raises(SystemExit, match="3"):
        leave(3)


def test_the_cpu_build_is_left_alone():
    code = "import os, symbols.backend as b; assert not set(b.GPU_DEFAULTS) & set(os.environ)"
    clean = {"PATH": "/usr/bin:/bin"}
    if "mxnet-cu112" not in backend.installed_builds():
        subprocess.run([sys.executable, "-c", code], check=True, env=clean, cwd=str(Path(__file__).parents[1]))


def test_cudnns_parts_are_loaded_by_path_before_their_shim():
    names = [library.rpartition("/")[2] for library in backend._CUDA_LIBRARIES]
    parts = [f"libcudnn_{part}.so.8" for part in ("ops_infer", "cnn_infer", "ops_train", "cnn_train")]
    assert names[-5:] == [*parts, "libcudnn.so.8"]


# ------------------------------------------------------------------------------------------------------------- errors

TEXTS = {
    "cudaMalloc retry failed: out of memory": "the GPU has not enough memory: use another one",
    "Failed to find any forward convolution algorithm.  with workspace size of 1073741824": "memory for a convolution",
    "Failed to get any backprop-data convolution algorithm": "memory for a convolution",
    "Check failed: e == CUDNN_STATUS_SUCCESS : cuDNN: CUDNN_STATUS_ALLOC_FAILED": "the GPU has not enough memory",
    "Name: Check failed: err == cudaSuccess (2 vs. 0) : mxnet_generic_kernel ErrStr:out of memory": "not enough memory",
    "cuBLAS: CUBLAS_STATUS_ALLOC_FAILED": "the GPU has not enough memory",
    "Name: Check failed: err == cudaSuccess (209 vs. 0) : no kernel image is available for execution on the device": (
        "has no code for this GPU, only for compute capabilities 5.0 to 8.9"
    ),
    "cuDNN: Check failed: e == CUDNN_STATUS_SUCCESS (14 vs. 0) : CUDNN_STATUS_VERSION_MISMATCH": "different versions",
    "cuDNN: Check failed: e == CUDNN_STATUS_SUCCESS (1 vs. 0) : CUDNN_STATUS_NOT_INITIALIZED": "cuDNN could not start",
    "cuDNN: Check failed: e == CUDNN_STATUS_SUCCESS (6 vs. 0) : CUDNN_STATUS_ARCH_MISMATCH": "no code for this GPU",
    "the provided PTX was compiled with an unsupported toolchain.": "driver 520 or newer, or set MXNET_USE_FUSION=0",
    "CUDA driver version is insufficient for CUDA runtime version": "the NVIDIA driver is too old for CUDA 11.2",
}


@pytest.mark.parametrize("text", TEXTS)
def test_what_mxnet_says_of_a_gpu_is_one_sentence(text):
    trace = f"Traceback (most recent call last):\n  File 'src/storage/storage.cc', line 119\nMXNetError: {text}\n"
    group = OneSentence("group")

    @group.command()
    def fail():
        raise mx.base.MXNetError(trace)

    result = CliRunner().invoke(group, ["fail"])
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert len(lines) == 1
    assert TEXTS[text] in lines[0]
    assert lines[0].startswith("Error: ")


def test_other_errors_of_mxnet_keep_their_traceback():
    assert explain_device(mx.base.MXNetError("Shape inconsistent")) is None


# ------------------------------------------------------------------------------------------------------------- memory


@pytest.fixture
def saved(monkeypatch):
    """Return the contexts of all arrays given to MXNet to save: what was on `cpu(1)` is read back onto `cpu(0)`."""
    contexts, real = [], mx.nd.save

    def save(path, arrays):
        contexts.extend(array.context for array in arrays.values())
        real(path, arrays)

    monkeypatch.setattr(mx.nd, "save", save)
    return contexts


def test_a_checkpoint_knows_no_device(tmp_path, saved):
    arrays = {"a": mx.nd.arange(5, ctx=mx.cpu(1)), "b": mx.nd.ones((2, 3), ctx=mx.cpu(0))}
    checkpoints = Checkpoints(tmp_path / "c.params", {}, every=1)
    checkpoints.save(arrays, 1, {})
    assert saved == [mx.cpu(0)] * 3  # and what is said of them
    np.testing.assert_array_equal(checkpoints.load().arrays["a"].asnumpy(), np.arange(5))


def test_a_file_of_parameters_knows_no_device(tmp_path, saved):
    spec = NetworkSpec("fcn8s", 3, {"width": 0.03125})
    network = build_network(spec, mx.cpu(1), seed=0)
    save_parameters(tmp_path / "p.params", network, spec, None)
    assert set(saved) == {mx.cpu(0)}


def test_the_norm_of_gradients_in_float16_does_not_overflow():
    network = backend.gluon.nn.Dense(1000, use_bias=False, in_units=1)
    network.initialize()
    network.cast("float16")
    parameter = network.weight
    parameter.list_grad()[0][:] = 300  # its square is above 65504, the largest number of float16
    assert float(gradient_norm(network, scale=10.0).asscalar()) == pytest.approx(30 * 1000**0.5, rel=1e-6)


def test_a_gpu_that_is_full_is_refused_before_anything_is_loaded_there(monkeypatch, tmp_path):
    data = small_runs.write_data(tmp_path / "data")
    monkeypatch.setattr(mx.context, "num_gpus", lambda: 1)
    monkeypatch.setattr(devices, "compute_capability", lambda device: (8, 6))
    monkeypatch.setattr(mx.context, "gpu_memory_info", lambda device: (10_000, 24 * 10**9))
    experiment = small_runs.experiment("st").model_copy(update={"ctx": "gpu:0"})
    sentence = (
        r"ctx gpu:0 has 0\.0 of its 24\.0 GB of memory free, and the parameters of fcn8s, their gradients and momentum "
        r"alone need \d\.\d GB: end what else runs there \(nvidia-smi lists it\), or use another GPU"
    )
    with pytest.raises(ConfigError, match=sentence):
        Run(experiment, tmp_path / "run", data_root=data)
    assert not (tmp_path / "run").exists()


def test_memory_of_other_devices_is_not_asked():
    devices.check_free_memory([mx.cpu()], 10**15, "a network")


@pytest.mark.parametrize("name", ["fcn8s", "resnet38"])
def test_the_bytes_of_a_network_are_known_before_it_is_built(name):
    spec = NetworkSpec(name, 3, {"width": 0.03125})
    assert spec_bytes(spec) == parameter_bytes(build_network(spec, mx.cpu(), seed=0))


def resident():
    """Return the bytes of this process that are in memory."""
    return int(re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text()).group(1)) << 10


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="Linux tells a process its memory")
@pytest.mark.parametrize("released", [True, False], ids=["as it is", "without the release"])
def test_memory_does_not_grow_over_eight_evaluated_stages(tmp_path, monkeypatch, released):
    data = small_runs.write_data(tmp_path / "data")
    changes = ("network.options={width: 0.125, batch_norm: batch, dropout: 0.0}", "self_training.rounds=0")
    run = Run(tiny.experiment(*small_runs._SMALL, *changes), tmp_path / "run", data_root=data)
    run.train_source()
    size = parameter_bytes(run._networks.load(0))
    assert size > 8e6
    if not released:
        monkeypatch.setattr(stage_networks, "release_memory", lambda: None)
    gc.disable()  # Python looks for circles when it pleases
    try:
        taken = []
        for _ in range(8):
            run._networks.forget()
            evaluate(run.experiment, run._networks.load(0), run.validation, run.dir.stage(0), ctx=run.ctx, title="")
            taken.append(resident())
    finally:
        gc.enable()
    # a network that stays adds its parameters and gradients to each stage; the first stages fill buffers
    assert (taken[-1] - taken[2] < size) == released


def test_networks_of_earlier_stages_are_freed(tmp_path):
    data = small_runs.write_data(tmp_path / "data")
    run = Run(small_runs.experiment("cbst"), tmp_path / "run", data_root=data)
    run.run()
    gc.disable()  # Python looks for circles when it pleases
    try:
        alive = []
        for stage in (0, 1, 2, 0):
            alive.append(weakref.ref(run._networks.load(stage)))
        assert [reference() is not None for reference in alive] == [False, False, False, True]
    finally:
        gc.enable()


def test_sizes_are_taken_from_a_network_on_the_processor(tmp_path, monkeypatch):
    data = small_runs.write_data(tmp_path / "data")
    seen = []
    real = backend.mx.cpu

    def start_network(experiment, contexts, **options):
        seen.append(list(contexts))
        return original(experiment, [real(0)], **options)

    from cbst_mx.rounds import opening

    original = opening.start_network
    monkeypatch.setattr(opening, "start_network", start_network)
    experiment = small_runs.experiment("st").model_copy(update={"ctx": "cpu:1"})
    Run(experiment, tmp_path / "run", data_root=data).train_source()
    assert seen == [[mx.cpu(1)]]  # the network that is trained
    Run(experiment, tmp_path / "run", data_root=data)
    assert seen[1:] == [[mx.cpu(0)]]


@pytest.mark.parametrize(
    ("parts", "per_pass", "contexts"), [([16], 2, 1), ([7], 3, 1), ([5, 3], 2, 2), ([4], 9, 1), ([3], 1, 2)]
)
def test_passes_cover_the_batch_once(parts, per_pass, contexts):
    rows = _rows(parts, per_pass, contexts)
    assert [index for one in rows for index in range(one.start, one.stop)] == list(range(sum(parts)))
    sizes = [one.stop - one.start for one in rows]
    assert min(sizes) >= contexts
    assert max(sizes) <= max(per_pass, 2 * contexts - 1)


@pytest.mark.parametrize("contexts", [[mx.cpu(0)], [mx.cpu(0), mx.cpu(1)]], ids=["one", "two"])
def test_passes_add_up_to_the_batch(contexts):
    rng = np.random.default_rng(0)
    data = [
        (rng.normal(size=(4, 3, 32, 48)).astype(np.float32), rng.integers(0, 3, (4, 32, 48)).astype(np.float32))
    ] * 3
    found = []
    for per_pass in (0, 2):
        spec = NetworkSpec("fcn8s", 3, {"width": 0.03125, "batch_norm": "frozen", "dropout": 0.0})
        network = build_network(spec, mx.cpu(), seed=3)
        train(network, lambda start: iter_of(data), Schedule(0.05, 3), ctx=contexts, seed=3, per_pass=per_pass)
        found.append({key: p.list_data()[0].asnumpy() for key, p in network._collect_params_with_prefix().items()})
    for name, value in found[0].items():
        # sums over a batch that is divided are rounded in another order
        np.testing.assert_allclose(found[1][name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def iter_of(data):
    yield from data


def test_batch_statistics_and_many_devices_refuse_passes():
    spec = NetworkSpec("fcn8s", 3, {"width": 0.03125, "batch_norm": "batch", "dropout": 0.0})
    network = build_network(spec, mx.cpu(), seed=3)
    options = {"seed": 3, "per_pass": 1}
    with pytest.raises(ConfigError, match="images_per_pass needs frozen batch norm"):
        train(network, lambda start: iter_of([]), Schedule(0.05, 3), ctx=mx.cpu(), **options)
    spec = NetworkSpec("fcn8s", 3, {"width": 0.03125})
    network = build_network(spec, mx.cpu(), seed=3)
    with pytest.raises(ConfigError, match="images_per_pass must be at least 2, one for each device of ctx, got 1"):
        train(network, lambda start: iter_of([]), Schedule(0.05, 3), ctx=[mx.cpu(0), mx.cpu(1)], **options)


def test_sorting_on_a_gpu_ends_where_its_workspace_wraps_around():
    check_size(2**31 - 1, "cpu")
    check_size((2**31 - 1) // 28, "gpu")
    with pytest.raises(
        DataError, match="more than 76,695,844 pixels, which MXNet 1.9.1 cannot sort on a GPU: count instead"
    ):
        check_size((2**31 - 1) // 28 + 1, "gpu")
    with pytest.raises(DataError, match="more than one MXNet array can hold"):
        check_size(2**31, "cpu")


@pytest.mark.parametrize(
    ("device", "sentence"),
    [
        ("none", "more than 50 pixels: more than one MXNet array can hold"),
        ("cpu", "more than 50 pixels: more than one MXNet array can hold"),
        ("gpu", "more than 25 pixels, which MXNet 1.9.1 cannot sort on a GPU"),
    ],
)
def test_a_pool_ends_where_what_can_be_sorted_does(monkeypatch, device, sentence):
    monkeypatch.setattr(kc, "_LARGEST", 50)
    monkeypatch.setattr(kc, "_LARGEST_ON_GPU", 25)
    host, classes = np.full((3, 4), 0.5, np.float32), np.zeros((3, 4))
    values = host if device == "none" else mx.nd.array(host)
    context, array = types.SimpleNamespace(device_type=device), mx.nd.array
    monkeypatch.setattr(mx.nd.NDArray, "context", property(lambda array: context))  # there is no GPU
    monkeypatch.setattr(mx.nd, "array", lambda *given, ctx, **options: array(*given, **options))
    pool = kc.ConfidencePool(2)
    for _ in range(2 if device == "gpu" else 4):
        pool.add_pixels(values, classes)
    with pytest.raises(DataError, match=sentence):
        pool.add_pixels(values, classes)


# ------------------------------------------------------------------------------------------------------------ dropout


def test_dropout_does_not_leave_its_masks_to_cudnn():
    block = Dropout(0.5)
    graph = block(mx.sym.var("data")).tojson()
    assert '"cudnn_off": "True"' in graph
    for name in ("fcn8s", "resnet38"):
        options = {"width": 0.03125, "dropout": [0.3, 0.5] if name == "resnet38" else 0.5}
        graph = build_network(NetworkSpec(name, 3, options), mx.cpu(), seed=0)(mx.sym.var("data")).tojson()
        assert graph.count('"op": "Dropout"') == graph.count('"cudnn_off": "True"') > 0


def test_dropout_is_the_one_of_gluon_on_a_cpu():
    drawn = []
    for kind in (Dropout, backend.gluon.nn.Dropout):
        mx.random.seed(3)
        with autograd.train_mode():
            drawn.append(kind(0.4)(mx.nd.ones((50, 20))).asnumpy())
    np.testing.assert_array_equal(*drawn)


def test_amp_does_not_make_the_root_logger_print():
    code = (
        "import logging; from symbols.backend import enable_amp, has_bfloat16\n"
        "enable_amp('bfloat16' if has_bfloat16() else 'float16')\n"
        "assert logging.getLogger().handlers == []"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "INFO" not in done.stderr
    assert logging.getLogger().name == "root"


def test_a_plan_takes_what_fits_into_the_gpu(monkeypatch):
    def fits(left):
        return Timing([0.1], [0.1])

    def does_not(left):
        raise mx.base.MXNetError("cudaMalloc retry failed: out of memory")

    waited = []

    def wait():  # MXNet says again what went wrong in a thread of its own
        waited.append(True)
        if len(waited) == 4:
            raise mx.base.MXNetError("cudaMalloc retry failed: out of memory")

    monkeypatch.setattr(mx.nd, "waitall", wait)
    peak = Peak(mx.cpu())
    series = sampled([(0.25, fits), (1.0, fits), (2.0, fits), (16.0, does_not)], 1e6, peak)
    assert series.amounts == [0.25, 2.0]
    assert series.too_large == 16.0
    with pytest.raises(mx.base.MXNetError):  # nothing fits
        sampled([(0.25, does_not), (1.0, fits)], 1e6, peak)


def test_a_plan_goes_down_to_the_largest_amount_that_fits():
    tried = []

    def measure(amount):
        def one(left):
            tried.append(amount)
            if amount > 4:
                raise mx.base.MXNetError("cudaMalloc retry failed: out of memory")
            return Timing([0.1], [0.1])

        return amount, one

    series = sampled([measure(amount) for amount in (0.25, 1.0, 2.0, 4.0, 8.0, 16.0)], 1e6, Peak(mx.cpu()))
    assert tried == [0.25, 16.0, 8.0, 4.0]
    assert (series.amounts, series.too_large) == ([0.25, 4.0], 8.0)


FEWER = "crops at once do not fit into the GPU's memory, "
LINE = "by the line through what was measured"
SMALLER = "crops do not fit into the GPU's memory even one at a time, "


@pytest.mark.parametrize(
    ("amounts", "key", "least", "said"),
    [
        ([0.25, 4.0], "images_per_pass", 1, f"8 {FEWER}4 do: --set images_per_pass=4"),
        ([0.25, 4.0], "batch_size", 1, f"8 {FEWER}4 do: lower batch_size"),
        ([0.25], "images_per_pass", 1, f"{SMALLER}crops of 0.25 of their area do: lower augmentation.crop"),
        ([0.5], "images_per_pass", 2, f"{SMALLER}crops of 0.25 of their area do: lower augmentation.crop"),
    ],
)
def test_a_plan_says_what_fits(amounts, key, least, said):
    plan = planning.Plan("gpu:0")
    series = Series(amounts, [0.1] * len(amounts), [10**9] * len(amounts), too_large=8.0)
    found = planning._Findings(plan)
    found.tell_fitting(series, 16, "crops", key, "augmentation.crop", least=least)
    assert len(plan.warnings) == 1
    assert plan.warnings[0] == said
    found.add(series, "a step", 16)
    assert plan.memory == 10**9  # of what fits, not of what does not


@pytest.mark.parametrize(
    ("amount", "amounts", "gigabytes", "limit", "said"),
    [
        (4, [1.0, 4.0], [3, 9], 12, f"4 crops at once, not for 8, {LINE}"),
        (4, [1.0, 4.0], [3, 9], 48, f"16 crops at once, not for 32, {LINE}"),
        (4, [0.25, 1.0], [2, 3], 22, f"8 crops at once, not for 16, {LINE}"),  # 4 by the line
        (1, [0.25, 1.0], [2, 2.6], 80, "at least 64 crops at once"),
        (3, [1.0, 3.0], [2, 2.6], 80, "at least 48 crops at once"),
        (96, [1.0, 96.0], [2, 40], 80, "at least 96 crops at once"),
        (4, [1.0, 4.0], [3, 3], 12, "at least 4 crops at once"),  # no line
        (1, [1.0], [3], 12, "at least 1 crop at once"),
        (0, [0.25, 1.0], [2, 3], 23, None),
        (4, [1.0, 4.0], [3, 9], None, None),  # of a processor
    ],
)
def test_a_plan_says_what_fits_where_everything_does(amount, amounts, gigabytes, limit, said):
    plan = planning.Plan("gpu:0")
    series = Series(amounts, [0.1] * len(amounts), [int(10**9 * one) for one in gigabytes])
    found = planning._Findings(plan, limit and limit * 10**9)
    found.tell_fitting(series, amount, "crops", "batch_size", "augmentation.crop")
    assert (plan.notes, plan.warnings) == ([f"the GPU has memory for {said}"] if said else [], [])


def test_a_plan_does_not_try_what_cannot_fit(monkeypatch):
    taken, tried = [0], []  # a GPU of 12 GB, of which 2 and 1.6 GB for each crop are taken

    def measure(amount):
        def one(left):
            tried.append(amount)
            taken[0] = int((2 + 1.6 * amount) * 1e9)
            return Timing([0.1], [0.1])

        return amount, one

    peak = Peak(mx.cpu())
    monkeypatch.setattr(peak, "limit", lambda: 12 * 10**9)
    monkeypatch.setattr(peak, "read", lambda: taken[0])
    series = sampled([measure(amount) for amount in (0.25, 1.0, 2.0, 4.0, 8.0, 16.0)], 1e6, peak)
    assert tried == [0.25, 1.0, 4.0]
    assert (series.amounts, series.too_large) == ([0.25, 1.0, 4.0], 8.0)
    assert Peak(mx.cpu()).limit() is None


@pytest.mark.parametrize(
    ("pixels", "stride", "half"), [(504, 8, 256), (512, 8, 256), (504, 1, 252), (40, 8, 32), (32, 8, 32), (33, 1, 32)]
)
def test_half_a_crop_is_one_that_can_be_trained_on(pixels, stride, half):
    assert work._half(pixels, stride) == half


def test_a_plan_measures_crops_whose_half_the_stride_does_not_divide():
    experiment = tiny.experiment(
        "network.name=resnet38", "network.options={width: 0.015625}", "augmentation.crop=[72, 72]"
    )
    network = build_network(experiment.network_spec(), mx.cpu(), seed=0)
    series = work.training(experiment, network, [mx.cpu()], [1], 0.1, Peak(mx.cpu()))
    assert series.amounts == [(32 / 72) ** 2, 1.0]


def test_the_pool_of_a_gpu_is_used_before_it_is_emptied(monkeypatch):
    done = []

    class Card:
        """A stand-in of a context: MXNet raises where the pool of a device that was never used is emptied."""

        device_type, device_id = "gpu", 0

        def empty_cache(self):
            assert done
            done.append("emptied")

    def zeros(shape, ctx):
        done.append("used")
        return mx.nd.array([0])

    monkeypatch.setattr(measure, "mx", types.SimpleNamespace(nd=types.SimpleNamespace(waitall=int, zeros=zeros)))
    network = types.SimpleNamespace(hybridize=lambda **options: done.append("buffers given back"))
    Peak(Card(), network)
    assert done == ["buffers given back", "used", "emptied"]


def test_a_plan_says_that_other_programs_hold_the_gpu():
    assert list(planning._find_others(mx.cpu(), None)) == []
    assert list(planning._find_others(mx.gpu(0), devices.Memory(23 * 10**9, 24 * 10**9))) == []
    sentence = "gpu:0 has only 9.0 of its 24.0 GB of memory free: other programs hold the rest"
    (found,) = planning._find_others(mx.gpu(0), devices.Memory(9 * 10**9, 24 * 10**9))
    assert found.startswith(sentence)


def test_passes_are_no_part_of_what_a_run_is(tmp_path):
    experiment = small_runs.experiment("st")
    other = experiment.model_copy(update={"images_per_pass": 2})
    assert other.identity == experiment.identity
    assert "images_per_pass" not in experiment.to_yaml()
    assert "images_per_pass: 2" in other.to_yaml()
