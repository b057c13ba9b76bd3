from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import types
from importlib import metadata
from pathlib import Path

import pytest

from symbols import backend

ROOT = Path(__file__).resolve().parents[1]

# Loads the file by itself: the package symbols defines networks, which a fake mxnet could not build.
IMPORT = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("backend", {str(ROOT / "symbols" / "backend.py")!r})
backend = importlib.util.module_from_spec(spec)
try:
    spec.loader.exec_module(backend)
except ImportError as error:
    sys.exit(f"{{type(error).__name__}}: {{error}}")
"""


def run(code, *folders, **environ):
    """Run `code` without site-packages, so that only what lies in `folders` is installed."""
    clean = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    clean.update(environ, PYTHONPATH=os.pathsep.join(map(str, folders)))
    return subprocess.run([sys.executable, "-S", "-c", code], env=clean, capture_output=True, text=True, timeout=60)


def refusal(*folders):
    """Return the one sentence with which the import of the backend fails."""
    result = run(IMPORT, *folders)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1), result.stderr
    kind, _, sentence = result.stderr.strip().partition(": ")
    assert kind == "MXNetUnavailableError"
    return sentence


@pytest.fixture
def site(tmp_path):
    """A folder of installed packages with nothing but a numpy."""
    (tmp_path / "numpy.py").write_text("__version__ = '1.23.5'\n")
    return tmp_path


def install(folder, wheel=None, package=None):
    """Pretend that `wheel` is installed in `folder` and that its package mxnet has the text `package`."""
    if wheel:
        info = folder / f"{wheel.replace('-', '_')}-1.9.1.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {wheel}\nVersion: 1.9.1\n")
    if package is not None:
        (folder / "mxnet").mkdir(parents=True, exist_ok=True)
        (folder / "mxnet" / "__init__.py").write_text(package)


WORKING = "import os\nprint(os.environ['OMP_NUM_THREADS'])\nautograd = gluon = nd = None\n"


# ------------------------------------------------------------------------------------------------------ whole imports


def test_without_mxnet_the_networks_say_how_to_install_it(site):
    result = run("import symbols", ROOT, site)
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("symbols.backend.MXNetUnavailableError: mxnet is not installed: pip install 'cbst_mx[cpu]'")
    assert "'cbst_mx[cu112]' for NVIDIA GPUs" in last


def test_cbst_mx_itself_imports_without_mxnet(tmp_path):
    assert run("import cbst_mx; print(cbst_mx.__version__)", ROOT, tmp_path).returncode == 0


def test_both_wheels_are_refused_before_the_import(site):
    install(site, "mxnet", "raise SystemExit('imported')")
    install(site, "mxnet-cu112")
    sentence = refusal(site)
    assert sentence.startswith("mxnet and mxnet-cu112 are both installed")
    assert sentence.endswith(
        "pip uninstall -y mxnet mxnet-cu112 && pip install --no-deps --force-reinstall mxnet-cu112==1.9.1"
    )


def test_a_wheel_whose_files_are_gone(site):
    install(site, "mxnet-cu112")
    assert "files are missing: pip install --no-deps --force-reinstall mxnet-cu112==1.9.1" in refusal(site)


@pytest.mark.parametrize(
    ("wheel", "library", "fix"),
    [
        ("mxnet-cu112", "libcuda.so.1", "pip uninstall -y mxnet-cu112 && pip install mxnet==1.9.1"),
        ("mxnet-cu112", "libcudnn.so.8", "pip install 'cbst_mx[cu112]'"),
        ("mxnet-cu112", "libcublas.so.11", "pip install 'cbst_mx[cu112]'"),
        ("mxnet-cu112", "libnccl.so.2", "pip install 'cbst_mx[cu112]'"),
        ("mxnet", "libgomp.so.1", "apt-get install libgomp1"),
        ("mxnet", "libquadmath.so.0", "libquadmath0"),
        ("mxnet", "libother.so.7", "install the system's package that has it"),
    ],
)
def test_a_missing_library_is_named_with_its_fix(site, wheel, library, fix):
    message = f"{library}: cannot open shared object file: No such file or directory"
    install(site, wheel, f"raise OSError({message!r})")
    sentence = refusal(site)
    assert sentence.startswith(wheel)
    assert library in sentence
    assert fix in sentence


@pytest.mark.parametrize(
    ("raised", "part"),
    [
        ("OSError('invalid ELF header')", "mxnet cannot be loaded (invalid ELF header): pip install"),
        ("AttributeError('no PZERO')", "mxnet cannot be loaded (no PZERO): pip install"),
        ("ModuleNotFoundError('no requests', name='requests')", "mxnet needs the module requests, which is missing"),
    ],
)
def test_other_failures_keep_their_own_words(site, raised, part):
    install(site, "mxnet", f"raise {raised}")
    assert part in refusal(site)


def test_numpy_2_is_refused(site):
    install(site, "mxnet", WORKING)
    (site / "numpy.py").write_text("__version__ = '2.0.2'\n")
    assert refusal(site) == "mxnet 1.9.1 does not work with numpy 2.0.2: pip install 'numpy==1.23.5'"


def test_all_cores_are_used_unless_the_user_chose(site):
    install(site, "mxnet", WORKING)
    assert run(IMPORT, site).stdout.strip() == str(len(os.sched_getaffinity(0)))
    assert run(IMPORT, site, OMP_NUM_THREADS="3").stdout.strip() == "3"


def test_an_mxnet_built_from_source_has_no_known_wheel(site):
    install(site, package=WORKING)
    assert run(IMPORT, site).returncode == 0


def test_deprecation_warnings_of_mxnet_are_silent(site):
    install(site, "mxnet", WORKING + "import warnings\nwarnings.warn('old name', DeprecationWarning)\n")
    result = run("import warnings; warnings.simplefilter('error')" + IMPORT, site)
    assert (result.returncode, result.stderr) == (0, "")


def test_the_cuda_wheels_libraries_are_loaded_before_mxnet(site):
    install(site, "mxnet-cu112", "raise SystemExit('imported')")
    broken = site / "nvidia" / "cublas" / "lib" / "libcublas.so.11"
    broken.parent.mkdir(parents=True)
    broken.write_text("not a library")
    # that the damaged file is complained of shows that it was tried, by its full path and before mxnet
    assert "libcublas.so.11" in refusal(site)


GPU_SETTINGS = {
    "MXNET_CUDNN_AUTOTUNE_DEFAULT": "0",
    "MXNET_ENFORCE_DETERMINISM": "1",
    "MXNET_USE_FUSION": "0",
    "MXNET_CUDNN_LIB_CHECKING": "0",
    "CUDA_MODULE_LOADING": "LAZY",
}


@pytest.mark.parametrize("chosen", [{}, *({name: "2"} for name in GPU_SETTINGS)], ids=lambda chosen: ",".join(chosen))
def test_what_cuda_reads_is_set_before_the_import_but_for_what_the_user_set(site, monkeypatch, chosen):
    for name in GPU_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    tell = f"import json, os\nprint(json.dumps({{name: os.environ.get(name) for name in {list(GPU_SETTINGS)}}}))\n"
    install(site, "mxnet-cu112", tell + "autograd = gluon = nd = None\n")  # at its import, as the real one reads them
    assert json.loads(run(IMPORT, site, **chosen).stdout) == {**GPU_SETTINGS, **chosen}


def test_the_cpu_wheel_loads_no_cuda(site):
    install(site, "mxnet", WORKING)
    broken = site / "nvidia" / "cublas" / "lib" / "libcublas.so.11"
    broken.parent.mkdir(parents=True)
    broken.write_text("not a library")
    assert run(IMPORT, site).returncode == 0


# ---------------------------------------------------------------------------------------------------- pure functions


def test_preloading_takes_what_is_there_each_library_after_those_it_needs(tmp_path):
    names = ["cublas/lib/libcublasLt.so.11", "cublas/lib/libcublas.so.11", "cudnn/lib/libcudnn.so.8"]
    for name in reversed(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    loaded = []
    assert backend.preload_cuda([str(tmp_path)], loaded.append) == loaded == [str(tmp_path / name) for name in names]


def test_builds_are_looked_up_by_name():
    def find(name):
        if name != "mxnet-cu112":
            raise metadata.PackageNotFoundError(name)

    assert backend.installed_builds(find) == ["mxnet-cu112"]


@pytest.mark.parametrize(("version", "restored"), [("1.23.5", False), ("1.24.4", True), ("1.26.4", True)])
def test_numpy_bool_is_restored_only_where_it_is_gone(version, restored):
    numpy = types.SimpleNamespace()
    backend.restore_numpy_bool(numpy, version)
    assert getattr(numpy, "bool", None) is (bool if restored else None)


def test_the_error_is_an_import_error():
    assert issubclass(backend.MXNetUnavailableError, ImportError)


def test_importing_twice_gives_the_same_mxnet():
    spec = importlib.util.spec_from_file_location("backend_again", backend.__file__)
    again = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(again)
    assert (again.mx, again.nd, again.gluon, again.autograd) == (
        backend.mx,
        backend.nd,
        backend.gluon,
        backend.autograd,
    )


@pytest.mark.parametrize(
    ("flags", "native"), [("avx512f avx512bw avx512_bf16", True), ("avx2 avx512f avx512bw", False), ("avx2", False)]
)
def test_bfloat16_counts_only_where_the_cpu_has_instructions_for_it(tmp_path, flags, native):
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : fpu {flags}\n")
    assert backend.has_bfloat16(tmp_path / "cpuinfo") is native


def test_without_a_list_of_instructions_there_is_no_bfloat16(tmp_path):
    assert backend.has_bfloat16(tmp_path / "none") is False


def test_mixed_precision_is_for_the_whole_process(monkeypatch):
    chosen = []
    monkeypatch.setattr(backend, "load_amp", lambda: types.SimpleNamespace(init=chosen.append))
    monkeypatch.setattr(backend, "_precision", "none")
    backend.enable_amp("none")
    assert not chosen
    backend.enable_amp("bfloat16")
    backend.enable_amp("bfloat16")
    assert chosen == ["bfloat16"]  # the second time it was there already
    for other in ("none", "float16"):
        with pytest.raises(RuntimeError, match=f"computes in bfloat16 for good: start another one for {other}"):
            backend.enable_amp(other)
    assert chosen == ["bfloat16"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
@pytest.mark.parametrize(
    ("environment", "kept"),
    [
        ({}, True),
        ({"MALLOC_TRIM_THRESHOLD_": "65536"}, False),
        ({"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=65536"}, False),
    ],
)
def test_freed_memory_is_kept_unless_the_user_says_otherwise(monkeypatch, environment, kept):
    calls = {}
    library = types.SimpleNamespace(mallopt=calls.__setitem__)
    monkeypatch.setattr(backend.ctypes, "CDLL", lambda name: library)
    backend.keep_freed_memory(environment)
    assert calls == ({-3: 32 << 20, -1: 256 << 20} if kept else {})
    monkeypatch.setattr(backend.ctypes, "CDLL", lambda name: types.SimpleNamespace())  # another C library
    backend.keep_freed_memory({})
