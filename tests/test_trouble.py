"""Trouble around a run: images that vanish, limits of files and memory, folders without permission, a full /tmp.

Each is one sentence, what was saved before is loadable, and the same command ends with the bytes of an untouched run.
"""

from __future__ import annotations

import os
import re
import signal
import stat

import numpy as np
import pytest
from click.testing import CliRunner

from cbst_mx.cli import main
from cbst_mx.data import loader
from cbst_mx.errors import CBSTError, DataError, RunError, lacks_memory
from cbst_mx.networks import parameters
from cbst_mx.rounds import Run
from symbols.backend import mx
from tests import small_runs
from tests.faults import contents

KIND = "recompute"


@pytest.fixture(scope="module")
def data(small_data):
    return small_data


@pytest.fixture(scope="module")
def whole(server, data, tmp_path_factory):
    """Return a function that gives the files of an untouched run or job."""
    root, known = tmp_path_factory.mktemp("whole"), {}

    def of(kind):
        if kind not in known:
            assert server.run(small_runs.command(kind, root / kind, data), root / "log") == 0
            known[kind] = contents(root / kind)
        return known[kind]

    return of


def goes_on(kind, out, server, data, whole, log):
    assert server.run(small_runs.command(kind, out, data), log) == 0, log.read_text()
    assert contents(out) == whole(kind)


@pytest.mark.parametrize(
    ("kind", "size"), [(KIND, 300_000), pytest.param(KIND, 1_500, marks=pytest.mark.slow), ("label", 3_000)]
)
def test_a_limit_of_file_sizes_is_one_sentence(kind, size, server, data, whole, tmp_path):
    out, log = tmp_path / "run", tmp_path / "log"
    code = server.run(small_runs.command(kind, out, data), log, limits={"RLIMIT_FSIZE": size})
    assert code == 1
    said = log.read_text()
    assert "Traceback" not in said
    assert "Error: cannot write " in " ".join(said.split())
    goes_on(kind, out, server, data, whole, log)


@pytest.mark.parametrize(
    "megabytes",
    [12, 60, *(pytest.param(size, marks=pytest.mark.slow) for size in (1, 20, 30, 100, 150, 200, 300, 400))],
)
def test_too_little_memory_is_one_sentence(megabytes, server, data, whole, tmp_path):
    out, log = tmp_path / "run", tmp_path / "log"
    for kind in (KIND, "label"):
        code = server.run(small_runs.command(kind, out / kind, data), log, limits={"RLIMIT_AS": megabytes << 20})
        # MXNet's own threads abort where they cannot start; nobody can say a sentence then
        assert code in (0, 1, -signal.SIGABRT, -signal.SIGSEGV)
        said = " ".join(log.read_text().split())
        assert "Traceback" not in said
        assert code != 1 or "Error: not enough memory (" in said or "allocate" in said
        goes_on(kind, out / kind, server, data, whole, log)
        log.unlink()


@pytest.mark.parametrize(
    ("command", "on_gpu", "on_cpu", "kept"),
    [
        ("run", "lower images_per_pass or inference_batch, or use several GPUs", "lower images_per_pass, ", True),
        ("evaluate", "use --tile ROWS or a smaller --long-side", "use --tile ROWS or a smaller --long-side", False),
        ("predict", "use --tile ROWS or a smaller --long-side", "use --tile ROWS or a smaller --long-side", True),
        ("label", "use another one, or cpu", "lower --workers", True),
        ("demo", "use another one, or cpu", "end what else runs", True),
    ],
)
@pytest.mark.parametrize("text", ["cudaMalloc retry failed: out of memory", "std::bad_alloc"])
def test_what_needs_less_memory_is_what_the_command_has(monkeypatch, text, command, on_gpu, on_cpu, kept):
    def fail(*args, **kwargs):
        raise mx.base.MXNetError(text)

    offered = {name for parameter in main.commands[command].params for name in parameter.opts}
    monkeypatch.setattr(main.commands[command], "invoke", fail)
    monkeypatch.setattr(main.commands[command], "parse_args", lambda ctx, args: args)
    monkeypatch.setattr(os, "_exit", lambda code: None)  # it would end the tests
    result = CliRunner().invoke(main, [command])
    lines = result.output.splitlines()
    assert (result.exit_code, len(lines)) == (1, 1)
    if "cuda" in text:
        assert lines[0].startswith(f"Error: the GPU has not enough memory: {on_gpu}")
    else:
        assert lines[0].startswith(f"Error: not enough memory (std::bad_alloc): give the process more, or {on_cpu}")
    assert lines[0].endswith("; what was saved is kept, and the same command goes on from it") is kept
    for option in re.findall(r"--(?!amp|ctx)[a-z-]+", lines[0]):
        assert option in offered


def test_images_that_vanish_on_the_way_are_named(data, tmp_path):
    small_runs.go(KIND, tmp_path / "whole", data)
    unhurried = small_runs.experiment(KIND).model_copy(update={"workers": 0})  # reads nothing ahead
    images, hidden = data / "gta5" / "images", data / "gta5" / "hidden"

    def hide(what, done, total):
        if what.endswith("source: training") and done == 1:
            images.rename(hidden)

    with pytest.raises(DataError, match=r"training sample \d \(.*0000\d.*\) cannot be used: .*0000\d.png") as raised:
        Run(unhurried, tmp_path / "run", data_root=data, progress=hide).run()
    assert "\n" not in str(raised.value)
    with pytest.raises(CBSTError, match="gta5"):
        small_runs.go(KIND, tmp_path / "run", data)
    hidden.rename(images)
    small_runs.go(KIND, tmp_path / "run", data)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_without_memory_says_so(workers):
    def read():
        raise MemoryError("Unable to allocate 1 GiB")

    given = {"batch_size": 1, "seed": 0, "iterations": 2, "workers": workers}
    with pytest.raises(RuntimeError, match="failed with MemoryError") as raised:
        list(loader.BatchLoader([read], lambda *sample: sample, **given))
    assert lacks_memory(raised.value)


def test_a_good_checkpoint_is_not_called_damaged_for_lack_of_memory(tmp_path, monkeypatch):
    path = tmp_path / "a.params"
    parameters.save_arrays(path, {"a": mx.nd.zeros(3)})

    def starved(name):
        raise mx.MXNetError("std: :bad_alloc")

    monkeypatch.setattr(mx.nd, "load", starved)
    with pytest.raises(mx.MXNetError):
        parameters.load_arrays(path)
    with pytest.raises(mx.MXNetError):
        parameters.save_arrays(path, {"a": mx.nd.ones(3)})
    monkeypatch.undo()
    np.testing.assert_array_equal(parameters.load_arrays(path)["a"].asnumpy(), np.zeros(3))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_one_sentence(data, tmp_path):
    out = tmp_path / "run"
    Run(small_runs.experiment(KIND), out, data_root=data).train_source()
    for folder in (out, out / "source"):
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(RunError, match="Permission denied"):
        small_runs.go(KIND, out, data)
    for folder in (out, out / "source"):
        folder.chmod(stat.S_IRWXU)
    small_runs.go(KIND, out, data)
    small_runs.go(KIND, tmp_path / "whole", data)
    assert contents(out) == contents(tmp_path / "whole")


def test_no_folder_for_temporary_files_is_one_sentence(data, monkeypatch):
    def full(*arguments, **options):
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr("tempfile.mkdtemp", full)
    monkeypatch.setenv("CBST_DATA", str(data))
    arguments = small_runs.command(KIND, data, data)
    result = CliRunner().invoke(main, ["plan", *(part for part in arguments[1:] if part not in ("--out", str(data)))])
    assert result.exit_code == 1
    assert "No usable temporary directory found" in result.output
    assert isinstance(result.exception, SystemExit)
