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
from tests.test_architecture import ON_MXNET
from tools import environment

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
    """A folder with the Makefile, what it calls, and some experiment files."""
    (tmp_path / "tools").mkdir()
    for name in ("Makefile", "setup.py", "tools/environment.py"):
        shutil.copy(str(ROOT / name), str(tmp_path / name))
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


# What the fake Python does with the script that it is given.
RUN = 'import runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name="__main__")'


def toml():
    """The settings of the tools."""
    tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")  # mypy brings tomli
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


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
    wheels = {"cv2": "opencv-python", "yaml": "pyyaml", "PIL": "pillow", "markupsafe": "jinja2", "dask": "distributed"}
    extras = packaging["extras_require"]
    optional = [requirement for name in ("onnx", "report", "speed", "scale") for requirement in extras[name]]
    required = {requirement_name(r).lower() for r in [*packaging["install_requires"], *optional]}
    # dask-jobqueue is for who has a batch system
    required |= {"mxnet", "cbst_mx", "symbols", "dask_jobqueue"}
    found = set()
    for file in [*(ROOT / "cbst_mx").rglob("*.py"), *(ROOT / "symbols").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found.update(alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module.split(".")[0])
    # sys.stdlib_module_names came with Python 3.10: older versions leave this test to the newer ones
    standard = getattr(sys, "stdlib_module_names", found - set(wheels))
    assert {wheels.get(name, name).lower() for name in found - set(standard)} <= required
    assert {"numpy", "cv2", "pydantic"} <= found


def test_the_versions_of_python_have_one_home(packaging):
    (oldest, newest), spec = environment.supported(), packaging["python_requires"]
    assert spec == f">={oldest[0]}.{oldest[1]},<{newest[0]}.{newest[1] + 1}" == ">=3.8,<3.12"
    settings = toml()
    assert settings["tool"]["ruff"]["target-version"] == f"py{oldest[0]}{oldest[1]}"
    said = f"Python {oldest[0]}.{oldest[1]} to {newest[0]}.{newest[1]}"
    for page in ("README.md", "CONTRIBUTING.md"):
        assert set(re.findall(r"Python \d\.\d+ to \d\.\d+", (ROOT / page).read_text("utf-8"))) == {said}


def test_the_remedy_for_missing_onnx_is_what_setup_asks_for(packaging):
    from cbst_mx.networks.export import _INSTALL, ONNX

    assert packaging["extras_require"]["onnx"] == ONNX
    assert all(f"'{requirement}'" in _INSTALL for requirement in ONNX)


def test_modules_without_type_check_are_on_mxnet():
    # mxnet has no types; a module that does not need it has no reason to be left out
    ignored = [o for o in toml()["tool"]["mypy"]["overrides"] if o.get("ignore_errors")]
    for name in [name for override in ignored for name in override["module"]]:
        package = name[:-2] if name.endswith(".*") else name
        assert (ROOT / package.replace(".", "/")).is_dir() or (ROOT / f"{package.replace('.', '/')}.py").is_file()
        assert package == "symbols" or package in ON_MXNET


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
    assert names == [
        "help",
        "setup",
        "demo",
        "camvid-ablation",
        "test",
        "fuzz",
        "check",
        "docs",
        "bench",
        "bench-ci",
        "gpu-check",
        "gpu-rehearsal",
        "clean",
        "one-cbst",
    ]
    assert all(len(line) <= 120 for line in lines)


@needs_make
def test_benchmarks_are_told_what_is_asked_for(checkout):
    (checkout / ".venv" / "bin").mkdir(parents=True)
    for name in ("installed-cpu", "with-dev"):
        (checkout / ".venv" / name).touch()
    python = checkout / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)

    def told(*variables):
        return make(checkout, "bench", "-o", "setup.py", "-o", "tools/environment.py", *variables).stdout

    assert told() == "tools/bench/measuring.py\n"
    asked = ("ONLY=rounds images", "FULL=1", "WRITE=1", "TORCH=/a/python", "BENCH=--repeats 2")
    assert told(*asked) == (
        "tools/bench/measuring.py --only rounds images --full --write --torch-python /a/python --repeats 2\n"
    )


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
            f"exec {sys.executable} -c 'import sys; sys.version_info = (3, 12, 1); {RUN}' \"$@\"",
            "Error: cbst_mx needs Python 3.8 to 3.11, this is 3.12: make PYTHON=python3.11",
        ),
        # a None in sys.modules makes the import fail
        (
            f'exec {sys.executable} -c \'import sys; sys.modules["venv"] = None; {RUN}\' "$@"',
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
def test_tools_of_development_come_with_the_tests_only(checkout):
    log = checkout / "log"
    body = (
        f'[ "$2" = venv ] || exit 0; mkdir -p .venv/bin; rm -f .venv/with-dev .venv/installed-*; '
        f"printf '#!/bin/sh\\necho \"$@\" >>{log}\\n' >.venv/bin/python; chmod +x .venv/bin/python; "
        "ln -sf /bin/true .venv/bin/cbst-mx"
    )
    python = fake_python(checkout, body)

    def asked(*targets):
        log.write_text("")
        result = make(checkout, *targets, python)
        assert result.returncode == 0, result.stderr
        return [line.split()[-1] for line in log.read_text().splitlines() if " install " in line and "pip" not in line]

    assert asked("demo") == ["cpu,report"]
    assert asked("test") == ["dev"]  # into the same environment
    assert asked("demo", "test") == []
    assert asked("test", "EXTRAS=cu112") == ["cu112,report", "dev"]  # another mxnet: all anew
    assert asked("test") == []  # the extras chosen last are kept
    assert asked("test", "EXTRAS=cpu,dev") == ["cpu,dev,report"]


@needs_make
def test_a_finished_setup_is_not_repeated_until_setup_py_changes(checkout):
    log = checkout / "log"
    body = f'[ "$2" = venv ] || exit 0; echo made >>{log}; mkdir -p .venv/bin; ln -sf /bin/true .venv/bin/python'
    python = fake_python(checkout, body)
    for _ in range(2):
        assert make(checkout, "setup", python).returncode == 0
    assert log.read_text().count("made") == 1
    later = (checkout / ".venv" / "installed-cpu").stat().st_mtime + 10
    os.utime(str(checkout / "setup.py"), (later, later))
    assert make(checkout, "setup", python).returncode == 0
    assert log.read_text().count("made") == 2
