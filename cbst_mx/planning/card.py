"""What there is to compute on: driver, GPUs, build of MXNet, and the CUDA libraries that are really loaded."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import sys
from pathlib import Path
from typing import Iterator, Sequence

import numpy as np

from cbst_mx.networks.devices import (
    CAPABILITIES,
    CUDA,
    compute_capability,
    device_name,
    driver_version,
    free_memory,
)
from cbst_mx.planning.agreement import Finding
from symbols.backend import GPU_DEFAULTS, installed_builds, mx

__all__ = ["describe_devices", "describe_software", "loaded_libraries"]

_MAPS, _DRIVER = Path("/proc/self/maps"), Path("/proc/driver/nvidia/version")
_CUDA_LIBRARY = re.compile(r"lib(?:cuda|cudart|cudnn|cublas|cufft|curand|cusolver|nvrtc|nccl|nvToolsExt)\w*\.so")
_CUDNN = 8  # the version that mxnet-cu112 was built with


def describe_software(processor: str) -> Iterator[Finding]:
    """Yield the versions, the driver and the libraries, and what is wrong with them; `processor` is this one's name."""
    builds = ", ".join(installed_builds()) or "no build of mxnet"
    yield Finding("system", None, f"{platform.platform()}, {processor}, {os.cpu_count()} cores")
    python = ".".join(map(str, sys.version_info[:3]))
    yield Finding("versions", None, f"Python {python}, {builds} {mx.__version__}, NumPy {np.__version__}")
    driver, newest = driver_version(), "{}.{}".format(*CUDA)
    if driver is None:
        yield Finding("driver", False, "there is no NVIDIA driver (libcuda.so.1)")
    else:
        said = "supports CUDA {}.{}".format(*driver)
        good = driver >= CUDA
        needed = "" if good else f", {newest} is needed: install a newer driver"
        yield Finding("driver", good, _driver_release() + said + needed)
    yield from _libraries(loaded_libraries())
    settings = " ".join(f"{name}={os.environ[name]}" for name in GPU_DEFAULTS if name in os.environ)
    yield Finding("environment", None, settings or "nothing set for CUDA")


def describe_devices(contexts: Sequence[mx.Context]) -> Iterator[Finding]:
    """Yield each device with its memory, and whether MXNet has code for it."""
    for ctx in contexts:
        if ctx.device_type != "gpu":
            yield Finding(
                f"{ctx.device_type}:{ctx.device_id}", None, "this processor: it only shows that the check runs"
            )
            continue
        capability = compute_capability(ctx.device_id)
        known = "compute capability " + ("unknown" if capability is None else "{}.{}".format(*capability))
        good = capability is None or CAPABILITIES[0] <= capability <= CAPABILITIES[1]
        name = device_name(ctx.device_id) or "GPU"
        yield Finding(f"gpu:{ctx.device_id}", good, f"{name}, {known}, {free_memory(ctx)}")


def loaded_libraries(maps: Path = _MAPS) -> dict[str, str]:
    """Return the CUDA libraries that this process has loaded, file name to folder.

    Parameters
    ----------
    maps : Path
        Where Linux lists what is mapped into the process; another system tells nothing.
    """
    found: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in maps.read_text(encoding="utf-8", errors="replace").splitlines():
            path = line[line.index("/") :].strip() if "/" in line else ""
            folder, _, name = path.rpartition("/")
            if _CUDA_LIBRARY.match(name):
                found[name] = folder
    return found


def _libraries(found: dict[str, str]) -> Iterator[Finding]:
    """Yield where the libraries of CUDA and cuDNN come from: parts of one cuDNN must not be mixed."""
    if not found:
        yield Finding("libraries", None, "no library of CUDA is loaded")
        return
    folders = sorted({folder for name, folder in found.items() if not name.startswith("libcuda.")})
    yield Finding("libraries", None, f"{len(found)} of CUDA, from {_common(folders)}")
    parts = sorted({folder for name, folder in found.items() if name.startswith("libcudnn")})
    if not parts:
        return
    version = _cudnn_version(found)
    good = len(parts) == 1 and version is not None and version // 1000 == _CUDNN
    said = f"{version}, from {' and '.join(parts)}"
    yield Finding("cuDNN", good, said if good else f"{said}: all parts must be of one cuDNN {_CUDNN}")


def _cudnn_version(found: dict[str, str]) -> int | None:
    """Return the version as cuDNN says it: 8906 is 8.9.6."""
    for name in sorted(found, key=len):
        if name.startswith("libcudnn."):
            with contextlib.suppress(OSError, AttributeError):
                ask = ctypes.CDLL(f"{found[name]}/{name}").cudnnGetVersion
                ask.restype = ctypes.c_size_t
                return int(ask())
    return None


def _common(folders: Sequence[str]) -> str:
    """Return the folder that all are in, or all of them."""
    shared = os.path.commonpath(folders) if folders else ""
    return shared if len(shared) > 1 else ", ".join(folders)


def _driver_release() -> str:
    """Return the release of NVIDIA's driver, which the kernel's module says."""
    with contextlib.suppress(OSError):
        found = re.search(r"\d+\.\d+(?:\.\d+)?", _DRIVER.read_text(encoding="utf-8"))
        if found:
            return f"{found.group()}, "
    return ""
