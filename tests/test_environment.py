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
    assert result.stderr == "Error: the command must be refuse, repair or check, got 'mend all'\n"
