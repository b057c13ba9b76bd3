"""The only place that imports mxnet; everything else says ``from symbols.backend import mx, gluon, nd, autograd``.

What mxnet needs before and during its import is done here: all usable cores, the CUDA libraries of the pip wheels, a
name that newer NumPy lacks. Where the import cannot work, the error is one sentence that says why and what to do.
Mixed precision is switched on here too, because it changes mxnet as a whole (:func:`enable_amp`).
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import logging
import os
import re
import sys
import types
import warnings
from importlib import metadata
from pathlib import Path
from typing import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping

__all__ = [
    "MXNetUnavailableError",
    "autograd",
    "enable_amp",
    "gluon",
    "has_bfloat16",
    "installed_builds",
    "load_amp",
    "mx",
    "nd",
]

# In the order in which they need each other. They are below the folder nvidia/ of site-packages, which is not on the
# loader's path, so mxnet finds them only when they are loaded already.
_CUDA_LIBRARIES = (
    "cuda_runtime/lib/libcudart.so.11.0",
    "cublas/lib/libcublasLt.so.11",
    "cublas/lib/libcublas.so.11",
    "cufft/lib/libcufft.so.10",
    "curand/lib/libcurand.so.10",
    "cusolver/lib/libcusolver.so.11",
    "cuda_nvrtc/lib/libnvrtc.so.11.2",
    "nccl/lib/libnccl.so.2",
    "nvtx/lib/libnvToolsExt.so.1",
    # libcudnn.so.8 opens these by name, and would find those of another cuDNN in LD_LIBRARY_PATH before its own
    "cudnn/lib/libcudnn_ops_infer.so.8",
    "cudnn/lib/libcudnn_cnn_infer.so.8",
    "cudnn/lib/libcudnn_ops_train.so.8",
    "cudnn/lib/libcudnn_cnn_train.so.8",
    "cudnn/lib/libcudnn.so.8",
)
# What mxnet-cu112 and the CUDA libraries read once, where the user has not said otherwise.
GPU_DEFAULTS = {
    # 0: the workspace of a convolution is at most 1 GiB, and no time is spent on a search for every size of image. 1,
    # MXNet's own default, does not look at the limit (1.9.1 has the condition reversed); 2 searches within it.
    "MXNET_CUDNN_AUTOTUNE_DEFAULT": "0",
    "MXNET_ENFORCE_DETERMINISM": "1",  # convolution and pooling by algorithms that give the same sums every time
    "MXNET_USE_FUSION": "0",  # its kernels need a driver of 520 or newer, and gain nothing in float32
    "MXNET_CUDNN_LIB_CHECKING": "0",  # a warning that 8.9 is newer than 8.1, which is meant
    "CUDA_MODULE_LOADING": "LAZY",  # kernels are loaded when they are first used
}
_BUILDS = ("mxnet", "mxnet-mkl", "mxnet-native", *(f"mxnet-cu{cuda}" for cuda in (101, 102, 110, 112, 117)))
_INSTALL = "pip install 'cbst_mx[cpu]' (or 'cbst_mx[cu112]' for NVIDIA GPUs; in a checkout '.[cpu]', '.[cu112]')"


class MXNetUnavailableError(ImportError):
    """mxnet cannot be imported here; the message is one sentence with the way out."""


def set_threads(environment: MutableMapping[str, str]) -> None:
    """Let mxnet use every core this process may run on, unless the user set OMP_NUM_THREADS.

    Left alone it uses half of the logical cores. It reads the variable once, when it is imported.
    """
    if not environment.get("OMP_NUM_THREADS"):
        # as cbst_mx.messages.cores, which this package must do without; affinities are of Linux only
        affinity = getattr(os, "sched_getaffinity", None)
        environment["OMP_NUM_THREADS"] = str(len(affinity(0)) if affinity else os.cpu_count() or 1)


def keep_freed_memory(environment: Mapping[str, str]) -> None:
    """Let this process keep what it frees, of its heap up to 256 MB, unless the user set one of glibc's own variables.

    Threads have heaps of their own, of up to 64 MB, which keep what they have. A training step frees and asks for the
    same maps again. glibc gives the last of its memory back and gets it anew page by page: up to 12,000 page faults in
    a step of the demo's network. It maps blocks of more than 32 MB by themselves all the same. Other C libraries are
    left alone.
    """
    said = any(name.startswith("MALLOC_") for name in environment)
    if said or "glibc.malloc." in environment.get("GLIBC_TUNABLES", "") or not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD
        mallopt(-1, 256 << 20)  # M_TRIM_THRESHOLD


def set_gpu_defaults(environment: MutableMapping[str, str]) -> None:
    """Set `GPU_DEFAULTS`, but for what the user has set."""
    for name, value in GPU_DEFAULTS.items():
        environment.setdefault(name, value)


def installed_builds(find: Callable[[str], object] = metadata.distribution) -> list[str]:
    """Return the names of the installed builds of mxnet.

    Parameters
    ----------
    find : callable
        Raises ``importlib.metadata.PackageNotFoundError`` for a distribution that is not installed.
    """
    builds = []
    for name in _BUILDS:
        try:
            find(name)
        except metadata.PackageNotFoundError:
            continue
        builds.append(name)
    return builds


def check_distributions(builds: Collection[str]) -> None:
    """Refuse two builds of mxnet side by side: they own the same files, and which one is there is chance.

    Raises
    ------
    MXNetUnavailableError
        If there is more than one.
    """
    if len(builds) > 1:
        keep = "mxnet-cu112" if "mxnet-cu112" in builds else "mxnet"
        raise MXNetUnavailableError(
            f"{' and '.join(builds)} are both installed and overwrite each other's files: "
            f"pip uninstall -y {' '.join(builds)} && pip install --no-deps --force-reinstall {keep}==1.9.1"
        )


def check_numpy(version: str) -> None:
    """Refuse NumPy 2, from which mxnet 1.9.1 uses names that are gone.

    Raises
    ------
    MXNetUnavailableError
        If the major version is 2 or higher.
    """
    if int(version.split(".")[0]) >= 2:
        raise MXNetUnavailableError(f"mxnet 1.9.1 does not work with numpy {version}: pip install 'numpy==1.23.5'")


def restore_numpy_bool(numpy_module: object, version: str) -> None:
    """Restore the alias ``numpy.bool`` of NumPy 1.24 to 1.26: the one name mxnet 1.9.1 misses there."""
    if tuple(int(part) for part in version.split(".")[:2]) >= (1, 24) and "bool" not in vars(numpy_module):
        numpy_module.bool = bool  # type: ignore[attr-defined]


def preload_cuda(folders: Iterable[str], load: Callable[[str], object] = ctypes.CDLL) -> list[str]:
    """Load the CUDA libraries of NVIDIA's pip wheels by full path, so that mxnet-cu112 finds them.

    Parameters
    ----------
    folders : iterable of str
        The folders called ``nvidia`` in site-packages.
    load : callable
        Loads one library, given its full path.

    Returns
    -------
    list of str
        The paths that were loaded. A library that no wheel brings is left to the system's loader.
    """
    candidates = [Path(folder, library) for library in _CUDA_LIBRARIES for folder in folders]
    present = [str(path) for path in candidates if path.is_file()]
    for path in present:
        load(path)
    return present


def explain(error: BaseException, builds: Collection[str]) -> MXNetUnavailableError:
    """Turn a failed ``import mxnet`` into one sentence with the fix.

    Parameters
    ----------
    error : BaseException
        What the import raised.
    builds : collection of str
        The result of `installed_builds`.
    """
    build = next(iter(builds), "mxnet")
    reinstall = f"pip install --no-deps --force-reinstall {build}==1.9.1"
    if isinstance(error, ModuleNotFoundError):
        if error.name != "mxnet":
            return MXNetUnavailableError(f"mxnet needs the module {error.name}, which is missing: {_INSTALL}")
        if builds:
            return MXNetUnavailableError(f"{build} is listed as installed but its files are missing: {reinstall}")
        return MXNetUnavailableError(f"mxnet is not installed: {_INSTALL}")
    found = re.search(r"lib[\w+-]+\.so[.\d]*", str(error)) if isinstance(error, OSError) else None
    if found is None:
        reason = " ".join(str(error).split()).rstrip(".")
        return MXNetUnavailableError(f"{build} cannot be loaded ({reason}): {reinstall}")
    library = found.group()
    if library.startswith("libcuda."):
        fix = "install it, or use the CPU build: pip uninstall -y mxnet-cu112 && pip install mxnet==1.9.1"
        return MXNetUnavailableError(
            f"{build} needs {library} of the NVIDIA driver, which is not on this machine: {fix}"
        )
    if library.startswith(("libgomp.", "libquadmath.")):
        fix = "install the system's packages, on Debian and Ubuntu: apt-get install libgomp1 libquadmath0"
    elif library.startswith(("libcu", "libnv", "libnccl")):
        fix = "pip install 'cbst_mx[cu112]' (in a checkout '.[cu112]')"
    else:
        fix = f"install the system's package that has it or, if mxnet should have brought it, {reinstall}"
    return MXNetUnavailableError(f"{build} cannot load the library {library}: {fix}")


def _prepare(builds: Collection[str]) -> None:
    check_distributions(builds)
    set_threads(os.environ)
    keep_freed_memory(os.environ)
    import numpy

    check_numpy(numpy.__version__)
    restore_numpy_bool(numpy, numpy.__version__)
    nvidia = importlib.util.find_spec("nvidia")
    if "mxnet-cu112" in builds:
        set_gpu_defaults(os.environ)
    if "mxnet-cu112" in builds and nvidia is not None:
        preload_cuda(nvidia.submodule_search_locations or ())


_builds = installed_builds()
try:
    _prepare(_builds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # mxnet is no longer maintained and uses old names
        import mxnet as mx
        from mxnet import autograd, gluon, nd
except MXNetUnavailableError:
    raise
except (ImportError, OSError, RuntimeError, AttributeError) as _error:
    raise explain(_error, _builds) from _error

_precision = "none"  # what enable_amp was last given


def has_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Tell whether this CPU computes in bfloat16 itself.

    With AVX-512 alone oneDNN 2.4 emulates it: a training step of four 3 x 3 convolutions with batch norm then took 2.5
    times as long as in float32 (with the instructions 0.54 times); without AVX-512 it refuses bfloat16 altogether.

    Parameters
    ----------
    cpuinfo : Path
        Where Linux lists the CPU's instructions; another system counts as not having them.
    """
    try:
        return "avx512_bf16" in cpuinfo.read_text(encoding="utf-8").split()
    except OSError:
        return False


def load_amp() -> types.ModuleType:
    """Return the module ``mxnet.contrib.amp``, which ``import mxnet`` leaves out."""
    from mxnet.contrib import amp

    return amp


@contextlib.contextmanager
def _quiet_root_logger() -> Iterator[None]:
    """Keep the root logger from getting a handler by a first call of ``logging.info``."""
    root, none = logging.getLogger(), logging.NullHandler()
    root.addHandler(none)
    try:
        yield
    finally:
        root.removeHandler(none)


def enable_amp(precision: str) -> None:
    """Let every network that is built from now on compute its convolutions and matrix products in `precision`.

    MXNet does this by replacing its operators by ones that cast their inputs, for the whole process and for good: call
    it before a network is built, and use another process for another precision. Parameters and their gradients stay
    float32; operators that need the range or the digits (softmax, sums) stay in float32, and so do transposed
    convolutions in bfloat16.

    Parameters
    ----------
    precision : {"none", "bfloat16", "float16"}
        "none" checks that no other was chosen before.

    Raises
    ------
    RuntimeError
        If this process has another precision already.
    """
    global _precision
    if precision == _precision:
        return
    if _precision != "none":
        raise RuntimeError(f"this process computes in {_precision} for good: start another one for {precision}")
    with _quiet_root_logger():  # amp says something by logging.info, which makes the root logger print all there is
        load_amp().init(precision)
    _precision = precision
