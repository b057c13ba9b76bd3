"""`gpu-check`: its stages on a second CPU context, on a device that computes nothing, and on a GPU if there is one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from cbst_mx.cli import main
from cbst_mx.errors import DataError
from cbst_mx.planning import agreement, card, work
from cbst_mx.planning.agreement import STAGES, Finding, compare
from cbst_mx.planning.measure import Peak, Series
from symbols import backend
from symbols.backend import mx
from tests import tiny

TWO = [mx.cpu(0), mx.cpu(1)]


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_on_the_processor_agrees_with_the_processor(name):
    good, text = STAGES[name]([mx.cpu(1)], mx.cpu(0))
    assert good, text


@pytest.mark.parametrize("name", ["training", "the same bits"])
def test_training_on_two_devices_agrees_with_one(name):
    good, text = STAGES[name](TWO, mx.cpu(0))
    assert good, text


@pytest.mark.gpu
@pytest.mark.parametrize("name", STAGES)
def test_a_stage_on_a_gpu_agrees_with_the_processor(name):
    good, text = STAGES[name]([mx.gpu(0)], mx.cpu(0))
    assert good, text


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["training", "the same bits"])
def test_training_on_two_gpus_agrees_with_the_processor(name):
    if mx.context.num_gpus() < 2:
        pytest.skip("one GPU")
    good, text = STAGES[name]([mx.gpu(0), mx.gpu(1)], mx.cpu(0))
    assert good, text


@pytest.fixture
def idle(monkeypatch):
    """Let what is read from the second CPU context be what kernels that do nothing leave: numbers of before."""
    real = mx.nd.NDArray.asnumpy

    def asnumpy(self):
        array = real(self)
        return np.zeros_like(array) if self.context == mx.cpu(1) else array

    monkeypatch.setattr(mx.nd.NDArray, "asnumpy", asnumpy)


@pytest.mark.parametrize(
    "name", ["a kernel", "operators", "networks", "dropout", "upsampling", "selection", "evaluation"]
)
def test_a_device_that_computes_nothing_is_seen(idle, name):
    good, text = STAGES[name]([mx.cpu(1)], mx.cpu(0))
    assert not good, text


def test_a_training_that_differs_is_seen(monkeypatch):
    real = agreement.train

    def train(network, *arguments, **options):
        record = real(network, *arguments, **options)
        if options["ctx"] == [mx.cpu(1)]:
            for parameter in network.collect_params().values():
                parameter.set_data(parameter.data() + 1e-3)
        return record

    monkeypatch.setattr(agreement, "train", train)
    good, text = STAGES["training"]([mx.cpu(1)], mx.cpu(0))
    assert not good
    assert "more than rounding, also in TF32, explains" in text


@pytest.mark.parametrize(
    ("difference", "good", "text"),
    [
        (0.0, True, "relative difference 0.0e+00"),
        (9e-5, True, "relative difference 9.0e-05"),
        (1e-3, True, "relative difference 1.0e-03: TF32, which NVIDIA_TF32_OVERRIDE=0 turns off"),
        (0.5, False, "relative difference 5.0e-01: more than rounding"),
        (float("nan"), False, "relative difference nan"),
    ],
)
def test_differences_are_judged(difference, good, text):
    found = agreement._judged(difference)
    assert found[0] is good
    assert found[1].startswith(text)


def test_an_error_of_cuda_is_one_sentence_and_the_end(monkeypatch):
    def fail(devices, processor):
        raise mx.base.MXNetError("Traceback:\nno kernel image is available for execution on the device\n")

    monkeypatch.setattr(agreement, "STAGES", {"a kernel": STAGES["a kernel"], "operators": fail, "sorting": fail})
    found = list(compare([mx.cpu(1)]))
    assert [finding.name for finding in found] == ["a kernel", "operators"]
    assert found[1].last
    assert found[1].text.startswith("mxnet-cu112 1.9.1 has no code for this GPU")


def test_what_is_impossible_is_bad_and_not_the_end(monkeypatch):
    def fail(devices, processor):
        raise DataError("the second pass must see the values of the first")

    monkeypatch.setattr(agreement, "STAGES", {"counting": fail, "a kernel": STAGES["a kernel"]})
    found = list(compare([mx.cpu(1)]))
    assert found[0] == Finding("counting", False, "the second pass must see the values of the first")
    assert found[1].good


@pytest.mark.parametrize(("loss", "good"), [(2.02, True), (2.5, False), (float("nan"), False)])
def test_a_loss_in_float16_is_judged(monkeypatch, loss, good):
    done = []

    def train(name, contexts, **options):
        done.append((contexts, options))
        return np.zeros(1), [loss if options.get("loss_scaling") else 2.0]

    monkeypatch.setattr(agreement, "_train", train)
    monkeypatch.setattr(agreement, "enable_amp", done.append)
    found = agreement.in_float16([mx.cpu(1)])
    assert found.good is good
    # a processor cannot even build a network in float16
    built = {"built": mx.cpu(1)}
    assert done == [([mx.cpu(1)], built), "float16", ([mx.cpu(1)], {**built, "loss_scaling": True})]


@pytest.mark.gpu
def test_training_in_float16_is_near_float32():
    code = "from cbst_mx.planning.agreement import in_float16, mx; found = in_float16([mx.gpu(0)]); assert found.good"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=str(Path(__file__).parents[1]))


# --------------------------------------------------------------------------------------------------------------- card


def test_libraries_are_told_as_they_are_loaded(tmp_path):
    maps = tmp_path / "maps"
    maps.write_text(
        "7f00-7f01 r-xp 0 08:01 5    /site/nvidia/cudnn/lib/libcudnn.so.8\n"
        "7f01-7f02 r-xp 0 08:01 5    /site/nvidia/cudnn/lib/libcudnn.so.8\n"
        "7f02-7f03 r-xp 0 08:01 6    /usr/lib/libcudnn_ops_infer.so.8\n"
        "7f04-7f05 r-xp 0 08:01 7    /lib/libc.so.6\n"
        "7f06-7f07 rw-p 0 00:00 0\n"
    )
    found = card.loaded_libraries(maps)
    assert found == {"libcudnn.so.8": "/site/nvidia/cudnn/lib", "libcudnn_ops_infer.so.8": "/usr/lib"}
    assert card.loaded_libraries(tmp_path / "missing") == {}


def test_parts_of_two_cudnns_are_bad(monkeypatch):
    monkeypatch.setattr(card, "_cudnn_version", lambda found: 8906)
    one = {"libcudnn.so.8": "/a", "libcudnn_ops_infer.so.8": "/a", "libcudart.so.11.0": "/a"}
    assert [finding.good for finding in card._libraries(one)] == [None, True]
    *_, mixed = card._libraries({**one, "libcudnn_ops_infer.so.8": "/b"})
    assert mixed == Finding("cuDNN", False, "8906, from /a and /b: all parts must be of one cuDNN 8")
    monkeypatch.setattr(card, "_cudnn_version", lambda found: 9100)
    assert list(card._libraries(one))[-1].good is False


def test_driver_and_gpu_are_told(monkeypatch):
    monkeypatch.setattr(card, "driver_version", lambda: (11, 0))
    drivers = [finding for finding in card.describe_software("a processor") if finding.name == "driver"]
    assert drivers == [Finding("driver", False, "supports CUDA 11.0, 11.2 is needed: install a newer driver")]
    monkeypatch.setattr(card, "compute_capability", lambda device: (9, 0))
    monkeypatch.setattr(card, "device_name", lambda device: "H100")
    monkeypatch.setattr(mx.context, "gpu_memory_info", lambda device: (79 * 10**9, 80 * 10**9))
    found = list(card.describe_devices([mx.gpu(0)]))
    assert found == [Finding("gpu:0", False, "H100, compute capability 9.0, 79.0 of its 80.0 GB of memory free")]


# ------------------------------------------------------------------------------------------------------------ command


@pytest.fixture
def few(monkeypatch):
    """Let two stages be all."""
    monkeypatch.setattr(agreement, "STAGES", {name: STAGES[name] for name in ("a kernel", "upsampling")})


def test_the_command_on_a_processor_says_so(few, tmp_path):
    experiment, out = tmp_path / "tiny.yaml", tmp_path / "check.txt"
    tiny.write_scenes(tmp_path / "data")
    experiment.write_text(tiny.experiment("name=tiny").to_yaml())
    arguments = ["gpu-check", str(experiment), "--ctx", "cpu", "--seconds", "0.5", "--out", str(out)]
    result = CliRunner().invoke(main, arguments, env={"CBST_DATA": str(tmp_path / "data")}, catch_exceptions=False)
    # without a driver that much is not as it should be
    code = 0 if card.driver_version() else 3
    assert result.exit_code == code, result.output
    assert out.read_text() == result.output
    for pattern in (
        r"^cbst-mx \S+ gpu-check --ctx cpu$",
        r"^versions +Python 3\.\d+\.\d+, mxnet\S* 1\.9\.1, NumPy 1\.",
        r"^cpu:0 +this processor: it only shows that the check runs$",
        r"^a kernel +ok +2 \* \(0, 1, 2, 3, 4\) = 0, 2, 4, 6, 8$",
        r"^upsampling +ok +the same bits$",
        r"^tiny +about .*, likely .* to .*; memory about \d+\.\d GB$",
        r"^ +measured: training step of 4 crops of 32 x 64, .* s",
    ):
        assert re.search(pattern, result.output, re.MULTILINE), (pattern, result.output)


@pytest.mark.parametrize(("gigabytes", "crops"), [(8, "4"), (24, "16"), (48, "32"), (141, "at least 64")])
def test_the_command_tells_what_fits_of_each_kind_of_work(monkeypatch, tmp_path, gigabytes, crops):
    monkeypatch.setattr(agreement, "STAGES", {})
    monkeypatch.setattr(Peak, "limit", lambda peak: int(gigabytes * 10**9))

    def measured(per_amount):
        """Return measurements of a card of which 2 GB and so much for each amount are taken."""
        amounts = [0.25, 1.0]
        return Series(amounts, [0.1, 0.4], [int((2 + per_amount * amount) * 1e9) for amount in amounts])

    monkeypatch.setattr(work, "evaluation", lambda *given: measured(0.05))
    monkeypatch.setattr(work, "labelling", lambda *given: measured(1.0))
    monkeypatch.setattr(work, "training", lambda *given: measured(1.2))
    experiment = tmp_path / "tiny.yaml"
    tiny.write_scenes(tmp_path / "data")
    experiment.write_text(tiny.experiment("name=tiny", "inference_batch=2").to_yaml())
    environment = {"CBST_DATA": str(tmp_path / "data")}
    result = CliRunner().invoke(main, ["gpu-check", str(experiment), "--ctx", "cpu"], env=environment)
    told = [line.strip() for line in result.output.splitlines() if "has memory for" in line]
    line = "" if crops.startswith("at") else f", not for {2 * int(crops)}, by the line through what was measured"
    # 48 GB hold 38 crops; numbers are doubled
    assert told == [
        "the GPU has memory for at least 64 images at once",
        f"the GPU has memory for {crops} crops at once{line}",
    ]


@pytest.mark.skipif("mxnet-cu112" in backend.installed_builds(), reason="another sentence")
def test_the_command_without_a_gpu_says_what_to_do():
    result = CliRunner().invoke(main, ["gpu-check"], catch_exceptions=False)
    assert result.exit_code == 3
    assert "ctx gpu:0 is not available: mxnet computes on the CPU only: in a checkout make setup EXTRAS=cu112,dev" in (
        result.output
    )
    assert result.output.endswith("of these are not as they should be\n")


def test_a_stage_that_fails_ends_the_command_with_its_sentence(monkeypatch):
    def wrong(devices, processor):
        return False, "relative difference 5.0e-01"

    monkeypatch.setattr(agreement, "STAGES", {"networks": wrong})
    result = CliRunner().invoke(main, ["gpu-check", "--ctx", "cpu"], catch_exceptions=False)
    assert result.exit_code == 3
    assert re.search(r"^networks +BAD relative difference 5.0e-01$", result.output, re.MULTILINE)
