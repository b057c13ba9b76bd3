"""tools/environment.py on machines without the libraries of a desktop, of a compiler, and of mxnet."""

from __future__ import annotations

import ast
import ctypes
import importlib.metadata
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tools import environment

SCRIPT = Path(environment.__file__)


@pytest.fixture
def asked(monkeypatch):
    """What pip was asked for; where a download should go, it leaves a wheel."""
    calls = []

    def pip(command):
        assert command[:3] == [sys.executable, "-m", "pip"]
        calls.append(" ".join(command[3:]))
        if "download" in command:
            wheel = os.path.join(command[command.index("-d") + 1], "x.whl")
            with zipfile.ZipFile(wheel, "w") as archive:
                archive.writestr("scikit_learn.libs/libgomp-1.so", "gomp")

    monkeypatch.setattr(subprocess, "check_call", pip)
    return calls


@pytest.fixture
def site(tmp_path):
    """A folder of installed packages."""
    for folder in ("mxnet", "numpy.libs"):
        (tmp_path / folder).mkdir()
    (tmp_path / "numpy.libs" / "libquadmath-1.so.0").write_text("quadmath")
    return tmp_path


def lacking(monkeypatch, *libraries):
    """Let only these libraries be missing."""

    def load(name):
        if name in libraries:
            raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", load)


def test_every_python_3_can_read_the_script():
    # the oldest grammar that ast offers; 3.4 stands for it: no annotations of variables, no f-strings
    tree = ast.parse(SCRIPT.read_text("utf-8"), feature_version=(3, 4))
    kinds = {type(node) for node in ast.walk(tree)}
    assert not kinds & {ast.JoinedStr, ast.AnnAssign, ast.NamedExpr}
    at_import = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    assert at_import == {"ast", "os", "re", "sys"}
    assert not any(isinstance(node, ast.ImportFrom) for node in ast.walk(tree))  # of __future__ least of all


def test_this_python_is_not_refused():
    assert environment.refuse() is None


@pytest.mark.parametrize("version", [(2, 7, 18), (3, 7, 16), (3, 12, 1), (4, 0, 0)])
def test_other_pythons_are_refused_with_the_way_out(monkeypatch, version):
    monkeypatch.setattr(sys, "version_info", version)
    assert environment.refuse() == (
        f"cbst_mx needs Python 3.8 to 3.11, this is {version[0]}.{version[1]}: make PYTHON=python3.11"
    )


@pytest.mark.parametrize("module", ["venv", "ensurepip"])
def test_a_python_without_virtual_environments_is_refused(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)  # makes the import fail
    assert environment.refuse() == (
        "this Python cannot make virtual environments: apt-get install python3-venv, or make PYTHON=python3.11"
    )


PIP = """Collecting mxnet
  Downloading mxnet-1.9.1-py3-none-manylinux2014_x86_64.whl (49.1 MB)
Collecting rich
  Downloading rich-15.0.0-py3-none-any.whl.metadata (18 kB)
  Using cached rich-15.0.0-py3-none-any.whl (310 kB)
Collecting onnx
  Downloading http://index/onnx-1.17.0-cp311-cp311-manylinux.whl (1.5 GB)
Installing collected packages: mxnet, rich, onnx
ERROR: no space
"""


@pytest.fixture
def pip(monkeypatch):
    """What pip was asked for; it prints PIP and returns 3."""
    calls = []

    class Process:
        def __init__(self, command, **options):
            calls.append(command)
            self.stdout = iter(PIP.splitlines(keepends=True))

        def wait(self):
            return 3

    monkeypatch.setattr(subprocess, "Popen", Process)
    return calls


def test_setup_says_what_it_downloads_and_how_far_it_is(pip, capsys):
    assert environment.main(["install", "cpu"]) == "Error: pip could not install cbst_mx[cpu], see above"
    assert pip == [[sys.executable, "-m", "pip", "install", "--progress-bar", "off", "-e", ".[cpu]"]]
    download, disk = environment.SIZES["cpu"]
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith(f"installing cbst_mx[cpu]: about {download} MB to download, {disk} MB on the disk; ")
    # a log names large files only
    assert lines == [
        "  1 packages,   49 MB: mxnet", "  3 packages, 1549 MB: onnx", "unpacking 3 packages", "ERROR: no space",
    ]  # fmt: skip


def test_a_terminal_sees_one_line_that_changes(pip, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    environment.install("cpu,dev")
    shown = capsys.readouterr().out
    assert [part.strip() for part in shown.split("\r\033[K")][1:4] == [
        "1 packages,   49 MB: mxnet", "2 packages,   49 MB: rich", "3 packages, 1549 MB: onnx",
    ]  # fmt: skip


def test_every_extra_has_its_size():
    assert set(environment.SIZES) == {"cpu", "cu112", "onnx", "report", "speed", "scale", "docs", "dev"}
    assert all(disk > download > 0 for download, disk in environment.SIZES.values())
    assert "of unknown size" in environment.announce("other")


def test_a_machine_without_libgl_gets_the_same_version_headless(monkeypatch, asked, capsys):
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.setattr(importlib.metadata, "version", {"opencv-python": "4.11.0.86"}.__getitem__)
    environment.repair_cv2()
    assert asked == ["install -q --no-deps opencv-python-headless==4.11.0.86"]
    said = capsys.readouterr().out
    assert said.endswith(": installing opencv-python-headless==4.11.0.86 over opencv-python\n")
    assert said.count("\n") == 1


def test_opencv_that_loads_stays(asked):
    environment.repair_cv2()
    assert asked == []


def test_a_machine_without_libgomp_and_libquadmath_gets_those_of_wheels(monkeypatch, asked, site, capsys):
    lacking(monkeypatch, "libquadmath.so.0", "libgomp.so.1")
    environment.repair_libraries(str(site))
    got = {file.name: file.read_text() for file in (site / "mxnet").iterdir()}
    assert got == {"libquadmath.so.0": "quadmath", "libgomp.so.1": "gomp"}
    assert len(asked) == 1
    assert asked[0].startswith("download -q --no-deps --only-binary=:all: -d ")
    assert asked[0].endswith(" scikit-learn==1.3.2")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["libquadmath.so.0", "libgomp.so.1"]


def test_libraries_of_the_machine_are_used_where_it_has_them(monkeypatch, asked, site, capsys):
    lacking(monkeypatch)
    environment.repair_libraries(str(site))
    assert list((site / "mxnet").iterdir()) == asked == []
    assert capsys.readouterr().out == ""


def test_without_mxnet_there_is_nothing_to_repair(monkeypatch, asked, tmp_path):
    lacking(monkeypatch, "libquadmath.so.0", "libgomp.so.1")
    environment.repair_libraries(str(tmp_path))
    assert list(tmp_path.iterdir()) == asked == []


def test_what_mxnet_lacks_is_one_sentence(monkeypatch):
    assert environment.check() is None
    monkeypatch.setitem(sys.modules, "symbols.backend", None)
    assert "symbols.backend" in environment.check()
    assert environment.main(["check"]) == f"Error: {environment.check()}"


def test_a_machine_without_a_driver_is_set_up_all_the_same(monkeypatch, capsys):
    class Finder:
        """Fail as symbols.backend does there."""

        def find_spec(self, name, path=None, target=None):
            if name == "symbols.backend":
                raise ImportError("mxnet-cu112 needs libcuda.so.1 of the NVIDIA driver, which is not on this machine")

    monkeypatch.delitem(sys.modules, "symbols.backend", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    assert environment.main(["check"]) == 0
    said = "this machine has no NVIDIA driver: all is installed, but the GPU cannot be tried here\n"
    assert capsys.readouterr().out == said


def test_commands_repair_this_environment_and_refuse_nothing(monkeypatch):
    done = []
    monkeypatch.setattr(environment, "repair_cv2", lambda: done.append("cv2"))
    monkeypatch.setattr(environment, "repair_libraries", done.append)
    assert environment.main(["repair"]) == environment.main(["refuse"]) == environment.main(["check"]) == 0
    assert done == ["cv2", done[1]]
    assert Path(done[1], "numpy").is_dir()


def test_an_unknown_command_is_refused():
    result = subprocess.run([sys.executable, str(SCRIPT), "mend", "all"], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr == "Error: the command must be refuse, install EXTRAS, repair or check, got 'mend all'\n"
