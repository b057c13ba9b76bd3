"""setup.py, the Makefile and the tool settings say the same, and the Makefile refuses what it must."""

from __future__ import annotations

import ast
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cbst_mx
from symbols import backend

ROOT = Path(__file__).resolve().parents[1]
MAKE = shutil.which("make")
needs_make = pytest.mark.skipif(MAKE is None, reason="GNU make is not installed")


@pytest.fixture(scope="module")
def packaging():
    """The keyword arguments setup.py gives to setup()."""
    setuptools = pytest.importorskip("setuptools")
    given = {}
    patch = pytest.MonkeyPatch()
    patch.setattr(setuptools, "setup", lambda **keywords: given.update(keywords))
    patch.chdir(ROOT)
    try:
        runpy.run_path(str(ROOT / "setup.py"))
    finally:
        patch.undo()
    return given


@pytest.fixture
def checkout(tmp_path):
    """A folder with the Makefile, setup.py and some experiment files."""
    for name in ("Makefile", "setup.py"):
        shutil.copy(str(ROOT / name), str(tmp_path))
    (tmp_path / "experiments").mkdir()
    for name in ("demo", "one-cbst", "one-data"):
        (tmp_path / "experiments" / f"{name}.yaml").touch()
    return tmp_path


def make(folder, *arguments):
    # a make that runs these tests must not hand its flags and variables on
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MAKE") and k not in ("PYTHON", "EXTRAS", "SEEDS")}
    command = [MAKE, "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=str(folder), env=clean, capture_output=True, text=True, timeout=60)


def fake_python(folder, body):
    file = folder / "fake-python"
    file.write_text(f"#!/bin/sh\n{body}\n")
    file.chmod(0o755)
    return f"PYTHON={file}"


def requirement_name(requirement):
    return re.match(r"[\w.-]+", requirement).group().lower()


# ---------------------------------------------------------------------------------------------------------- setup.py


def test_version_and_packages(packaging):
    assert packaging["version"] == cbst_mx.__version__
    assert {"cbst_mx", "cbst_mx.data", "cbst_mx.selftrain", "symbols"} <= set(packaging["packages"])
    assert all(re.match(r"(cbst_mx|symbols)\b", name) for name in packaging["packages"])


def test_mxnet_comes_by_an_extra_only(packaging):
    assert not [r for r in packaging["install_requires"] if requirement_name(r).startswith("mxnet")]
    extras = packaging["extras_require"]
    assert extras["cpu"] == ["mxnet==1.9.1"]
    assert "mxnet-cu112==1.9.1" in extras["cu112"]
    assert "mxnet==1.9.1" not in extras["cu112"]


def test_every_preloaded_library_has_its_pinned_wheel(packaging):
    pinned = {requirement_name(r) for r in packaging["extras_require"]["cu112"] if "==" in r}
    folders = {library.split("/")[0].replace("_", "-") for library in backend._CUDA_LIBRARIES}
    assert {f"nvidia-{folder}-cu11" for folder in folders} == pinned - {"mxnet-cu112"}
    assert len(folders) == 9


def test_everything_imported_is_required(packaging):
    wheels = {"cv2": "opencv-python", "yaml": "pyyaml", "PIL": "pillow"}
    listed = [*packaging["install_requires"], *packaging["extras_require"]["onnx"]]
    required = {requirement_name(r) for r in listed} | {"mxnet", "cbst_mx", "symbols"}
    found = set()
    for file in [*(ROOT / "cbst_mx").rglob("*.py"), *(ROOT / "symbols").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found.update(alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module.split(".")[0])
    # sys.stdlib_module_names came with Python 3.10: older versions leave this test to the newer ones
    standard = getattr(sys, "stdlib_module_names", found - set(wheels))
    assert {wheels.get(name, name) for name in found - set(standard)} <= required
    assert {"numpy", "cv2", "pydantic"} <= found


def test_makefile_and_setup_name_the_same_pythons(packaging):
    assert packaging["python_requires"] == ">=3.8,<3.12"
    assert "if not (3, 8) <= sys.version_info[:2] <= (3, 11)" in (ROOT / "Makefile").read_text("utf-8")


def test_a_built_package_carries_the_demos_experiment(tmp_path):
    tree, built = tmp_path / "tree", tmp_path / "built"
    for name in ("cbst_mx", "symbols", "experiments"):
        shutil.copytree(str(ROOT / name), str(tree / name), ignore=shutil.ignore_patterns("__pycache__", "*.yaml"))
    shutil.copy(str(ROOT / "experiments" / "demo.yaml"), str(tree / "experiments"))
    shutil.copy(str(ROOT / "setup.py"), str(tree))
    # what a wheel holds, without the network that making one would need
    command = [sys.executable, "setup.py", "-q", "build", "--build-lib", str(built)]
    done = subprocess.run(command, cwd=str(tree), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in built.iterdir()) == ["cbst_mx", "symbols"]
    assert (built / "cbst_mx" / "demo.yaml").read_bytes() == (ROOT / "experiments" / "demo.yaml").read_bytes()
    assert (built / "cbst_mx" / "evaluation" / "paper_tables" / "table1.csv").is_file()
    shutil.rmtree(str(tree))
    code = (
        "from cbst_mx import demo; from cbst_mx.config import load_experiment\n"
        "print(demo.find_experiment()); print(load_experiment(demo.find_experiment()).name)"
    )
    environment = {**os.environ, "PYTHONPATH": str(built)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=str(tmp_path), env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == [str(built / "cbst_mx" / "demo.yaml"), "demo"], done.stderr


@pytest.mark.parametrize("version", [(3, 7, 16), (3, 12, 1)])
def test_setup_refuses_other_pythons(monkeypatch, version):
    pytest.importorskip("setuptools")
    monkeypatch.setattr(sys, "version_info", version)
    with pytest.raises(SystemExit, match=rf"^cbst_mx needs Python 3.8 to 3.11, this is 3.{version[1]}$"):
        runpy.run_path(str(ROOT / "setup.py"))


def test_ci_runs_check_and_test():
    script = ROOT / ".ci" / "run"
    assert os.access(str(script), os.X_OK)
    assert script.read_text("utf-8").endswith("\nmake check test\n")


# ---------------------------------------------------------------------------------------------------------- Makefile


@needs_make
def test_help_lists_every_target(checkout):
    lines = make(checkout, "help").stdout.splitlines()
    names = [line.split(" - ")[0] for line in lines]
    assert names == ["help", "setup", "demo", "test", "check", "bench", "clean", "one-cbst"]
    assert all(len(line) <= 120 for line in lines)


@needs_make
def test_an_experiment_is_a_target_and_a_data_description_is_not(checkout):
    dry = make(checkout, "-n", "one-cbst")
    assert ".venv/bin/cbst-mx run experiments/one-cbst.yaml --out runs/one-cbst" in dry.stdout
    assert make(checkout, "-n", "one-data").returncode != 0
    assert "cbst-mx demo --out runs/demo --seeds 0,1" in make(checkout, "-n", "demo", "SEEDS=0,1").stdout


@needs_make
@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        # stands for another Python: what make lets it run is run with another version
        (
            f"shift; exec {sys.executable} -c 'import sys; sys.version_info = (3, 12, 1); exec(sys.argv[1])' \"$@\"",
            "Error: cbst_mx needs Python 3.8 to 3.11, this is 3.12: make PYTHON=python3.11",
        ),
        # a None in sys.modules makes the import fail
        (
            f'shift; exec {sys.executable} -c \'import sys; sys.modules["venv"] = None; exec(sys.argv[1])\' "$@"',
            "Error: this Python cannot make virtual environments: apt-get install python3-venv",
        ),
    ],
)
def test_an_unusable_python_is_refused_before_anything_is_made(checkout, body, sentence):
    result = make(checkout, "setup", fake_python(checkout, body))
    assert result.returncode != 0
    assert result.stderr.startswith(sentence), result.stderr
    assert result.stderr.count("\n") == 2  # the sentence, and make's own line
    assert not (checkout / ".venv").exists()


@needs_make
def test_a_missing_python_is_refused(checkout):
    result = make(checkout, "setup", "PYTHON=no-such-python")
    assert result.stderr.startswith("Error: there is no no-such-python here")
    assert not (checkout / ".venv").exists()


@needs_make
def test_a_failed_setup_leaves_no_stamp(checkout):
    # accepts the check, makes an environment whose python fails
    body = (
        '[ "$2" = venv ] || exit 0; mkdir -p .venv/bin; '
        'printf "#!/bin/sh\\nexit 7\\n" >.venv/bin/python; chmod +x .venv/bin/python'
    )
    result = make(checkout, "setup", fake_python(checkout, body))
    assert result.returncode != 0
    assert (checkout / ".venv" / "bin" / "python").exists()
    assert not list((checkout / ".venv").glob("installed-*"))


@needs_make
def test_a_finished_setup_is_not_repeated_until_setup_py_changes(checkout):
    log = checkout / "log"
    body = f'[ "$2" = venv ] || exit 0; echo made >>{log}; mkdir -p .venv/bin; ln -sf /bin/true .venv/bin/python'
    python = fake_python(checkout, body)
    for _ in range(2):
        assert make(checkout, "setup", python).returncode == 0
    assert log.read_text().count("made") == 1
    later = (checkout / ".venv" / "installed-cpu,dev").stat().st_mtime + 10
    os.utime(str(checkout / "setup.py"), (later, later))
    assert make(checkout, "setup", python).returncode == 0
    assert log.read_text().count("made") == 2


@needs_make
def test_bench_says_when_there_is_nothing_to_run(checkout):
    (checkout / ".venv").mkdir()
    stamp = checkout / ".venv" / "installed-cpu,dev"
    stamp.touch()
    os.utime(str(checkout / "setup.py"), (0, 0))
    assert make(checkout, "bench").stdout.strip() == "there are no benchmarks in tools/bench yet"


# What the Makefile does on a machine without the libraries of a desktop and of a compiler, with everything faked: pip
# writes down what it was asked for and leaves a wheel where a download should go.
PIP = """
import os, sys, zipfile
print(*sys.argv[1:])
if "download" in sys.argv:
    with zipfile.ZipFile(os.path.join(sys.argv[sys.argv.index("-d") + 1], "x.whl"), "w") as wheel:
        wheel.writestr("scikit_learn.libs/libgomp-1.so", "gomp")
"""


def run_step(name, folder):
    """Run the Python of the Makefile's variable `name` without site-packages, with only what lies in `folder`."""
    (folder / "pip").mkdir()
    (folder / "pip" / "__init__.py").touch()
    (folder / "pip" / "__main__.py").write_text(PIP)
    code = make(ROOT, "-f", "Makefile", f'--eval=show: ; @printf "%s" "$${name}"', "show").stdout
    command = [sys.executable, "-S", "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONUNBUFFERED": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


@needs_make
def test_a_machine_without_libgl_gets_the_same_version_headless(tmp_path):
    (tmp_path / "cv2.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    (tmp_path / "opencv_python-4.11.0.86.dist-info").mkdir()
    (tmp_path / "opencv_python-4.11.0.86.dist-info" / "METADATA").write_text(
        "Name: opencv-python\nVersion: 4.11.0.86\n"
    )
    said, asked = run_step("CHECK_CV2", tmp_path).stdout.splitlines()
    assert said.startswith("libGL.so.1: ")
    assert asked == "install -q --no-deps opencv-python-headless==4.11.0.86"


@needs_make
@pytest.mark.parametrize("there", [False, True])
def test_a_machine_without_libgomp_and_libquadmath_gets_those_of_wheels(tmp_path, there):
    for folder in ("mxnet", "numpy.libs"):
        (tmp_path / folder).mkdir()
    (tmp_path / "numpy.libs" / "libquadmath-1.so.0").write_text("quadmath")
    (tmp_path / "sysconfig.py").write_text(f"def get_paths():\n    return {{'purelib': {str(tmp_path)!r}}}\n")
    (tmp_path / "ctypes.py").write_text("def CDLL(name):\n    " + ("pass" if there else "raise OSError(name)"))
    result = run_step("CHECK_LIBRARIES", tmp_path)
    assert result.returncode == 0, result.stderr
    got = {file.name: file.read_text() for file in (tmp_path / "mxnet").iterdir()}
    assert got == ({} if there else {"libquadmath.so.0": "quadmath", "libgomp.so.1": "gomp"})
    assert len(result.stdout.splitlines()) == (0 if there else 3)  # one line for each library, and what pip was asked
