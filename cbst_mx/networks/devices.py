"""Contexts by name, and the precision in which networks compute on them."""

from __future__ import annotations

import ctypes
import gc
import re
from typing import Any, Callable, NamedTuple, Sequence

from cbst_mx.errors import ConfigError, explain_device
from symbols.backend import enable_amp, has_bfloat16, installed_builds, mx

__all__ = [
    "CAPABILITIES",
    "CUDA",
    "Memory",
    "check_free_memory",
    "compute_capability",
    "cudnn_error",
    "device_name",
    "driver_version",
    "free_memory",
    "parse_context",
    "parse_contexts",
    "release_memory",
    "set_precision",
]

#: The CUDA that mxnet-cu112 was built with: the driver must support it.
CUDA = (11, 2)
#: Oldest and newest compute capability that it has code for: 8.6 and 8.9 run that for 8.0.
CAPABILITIES = (5, 0), (8, 9)


def parse_context(name: str) -> mx.Context:
    """Return the MXNet context called `name`.

    Parameters
    ----------
    name : str
        ``"cpu"``, ``"cpu:1"``, ``"gpu"`` or ``"gpu:0"``.

    Raises
    ------
    ConfigError
        If the name has another form or the GPU is not there.
    """
    contexts = parse_contexts(name)
    if len(contexts) > 1:
        raise ConfigError(f"ctx must be one device here (cpu, cpu:N, gpu or gpu:N), got {name!r}")
    return contexts[0]


def parse_contexts(name: str) -> list[mx.Context]:
    """Return the MXNet contexts called `name`, over which training spreads every batch.

    Parameters
    ----------
    name : str
        ``"cpu"``, ``"cpu:1"``, ``"gpu"``, ``"gpu:0"``, or several of one kind: ``"gpu:0,1"``. CPU contexts are all the
        same processor; several of them serve tests only.

    Raises
    ------
    ConfigError
        If the name has another form, names a device twice, or a GPU is not there.
    """
    kind, colon, numbers = name.partition(":")
    indices = numbers.split(",") if colon else ["0"]
    # four digits are more than any machine has, and less than what overflows in MXNet
    if kind not in ("cpu", "gpu") or not all(re.fullmatch("[0-9]{1,4}", index) for index in indices):
        raise ConfigError(f"ctx must be cpu, cpu:N, gpu, gpu:N or several as in gpu:0,1, got {name!r}")
    devices = [int(index) for index in indices]
    if len(set(devices)) < len(devices):
        raise ConfigError(f"ctx must name every device once, got {name!r}")
    if kind == "gpu":
        _check_gpus(name, devices)
    return [mx.Context(kind, device) for device in devices]


def _check_gpus(name: str, devices: Sequence[int]) -> None:
    """Refuse GPUs that are not there, or for which this MXNet has no code."""
    builds, count = installed_builds(), mx.context.num_gpus()
    if max(devices) >= count:
        why = f"this MXNet sees {count} GPU{'' if count == 1 else 's'}"
        if "mxnet-cu112" not in builds:
            why = (
                f"{' and '.join(builds) or 'this build of mxnet'} computes on the CPU only: in a checkout "
                "make setup EXTRAS=cu112,dev, or install 'cbst_mx[cu112]' in a new environment"
            )
        elif not count:
            driver = driver_version()
            why += ": " + (
                "there is no NVIDIA driver (libcuda.so.1)"
                if driver is None
                else f"the driver supports CUDA {driver[0]}.{driver[1]}, 11.2 is needed: install a newer driver"
                if driver < CUDA
                else "none is visible (nvidia-smi lists them; CUDA_VISIBLE_DEVICES hides some)"
            )
        raise ConfigError(f"ctx {name} is not available: {why}; or use cpu")
    for device in devices:
        capability = compute_capability(device)
        if capability is not None and not CAPABILITIES[0] <= capability <= CAPABILITIES[1]:
            said = ["{}.{}".format(*one) for one in (capability, *CAPABILITIES)]
            raise ConfigError(
                f"ctx {name} cannot be used: GPU {device} has compute capability {said[0]}, and mxnet-cu112 1.9.1 has "
                f"code for {said[1]} to {said[2]}: use another GPU, or cpu"
            )
        if (status := cudnn_error(device)) is not None:
            why = explain_device(RuntimeError(status)) or f"cuDNN cannot start on GPU {device} ({status})"
            raise ConfigError(f"ctx {name} cannot be used: {why}")


def compute_capability(device: int, load: Callable[[str], Any] = ctypes.CDLL) -> tuple[int, int] | None:
    """Return the compute capability of a GPU, as the driver says it; None where it cannot be asked.

    Parameters
    ----------
    device : int
        Number of the GPU, as in ``gpu:0``.
    load : callable
        Opens a library by its name.
    """
    driver = _driver(load)
    handle, value = ctypes.c_int(), ctypes.c_int()
    if driver is None or driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(handle), device):
        return None
    found = []
    for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, handle):
            return None
        found.append(value.value)
    return found[0], found[1]


def device_name(device: int, load: Callable[[str], Any] = ctypes.CDLL) -> str | None:
    """Return the name of a GPU, as the driver says it; None where it cannot be asked."""
    driver = _driver(load)
    handle, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    if driver is None or driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(handle), device):
        return None
    return None if driver.cuDeviceGetName(name, len(name), handle) else name.value.decode(errors="replace")


def cudnn_error(device: int, load: Callable[[str], Any] = ctypes.CDLL) -> str | None:
    """Return what cuDNN says where it cannot start on a GPU; None where it can, or is not loaded.

    MXNet starts it in a thread of its own, whose error ends the process without a word that could be caught.

    Parameters
    ----------
    device : int
        Number of the GPU, as in ``gpu:0``.
    load : callable
        Opens a library by its name.
    """
    try:
        runtime, cudnn = load("libcudart.so.11.0"), load("libcudnn.so.8")
    except OSError:
        return None
    before, handle = ctypes.c_int(), ctypes.c_void_p()
    if runtime.cudaGetDevice(ctypes.byref(before)) or runtime.cudaSetDevice(device):
        return None
    status = cudnn.cudnnCreate(ctypes.byref(handle))
    runtime.cudaSetDevice(before)
    if not status:
        cudnn.cudnnDestroy(handle)
        return None
    cudnn.cudnnGetErrorString.restype = ctypes.c_char_p
    return str(cudnn.cudnnGetErrorString(status).decode(errors="replace"))


def driver_version(load: Callable[[str], Any] = ctypes.CDLL) -> tuple[int, int] | None:
    """Return the newest CUDA that the driver supports; None where there is no driver."""
    driver, value = _driver(load), ctypes.c_int()
    if driver is None or driver.cuDriverGetVersion(ctypes.byref(value)):
        return None
    return value.value // 1000, value.value % 1000 // 10


def _driver(load: Callable[[str], Any]) -> Any:
    try:
        return load("libcuda.so.1")
    except OSError:
        return None


class Memory(NamedTuple):
    """Memory of a GPU, in bytes."""

    free: int  # of this moment, and of all programs
    total: int

    def __str__(self) -> str:
        return f"{self.free / 1e9:.1f} of its {self.total / 1e9:.1f} GB of memory free"


def free_memory(ctx: mx.Context) -> Memory | None:
    """Return the memory of a GPU; None for another device."""
    return Memory(*mx.context.gpu_memory_info(ctx.device_id)) if ctx.device_type == "gpu" else None


def check_free_memory(contexts: Sequence[mx.Context], needed: int, what: str) -> None:
    """Refuse GPUs that have not even the memory free that certainly is needed.

    Parameters
    ----------
    contexts : sequence of mx.Context
        Devices; of other kinds nothing is asked.
    needed : int
        Bytes on each.
    what : str
        What takes them.

    Raises
    ------
    ConfigError
        If one has less.
    """
    for ctx in contexts:
        memory = free_memory(ctx)
        if memory is not None and memory.free < needed:
            raise ConfigError(
                f"ctx gpu:{ctx.device_id} has {memory}, and {what} alone need {needed / 1e9:.1f} GB: end what else "
                "runs there (nvidia-smi lists it), or use another GPU"
            )


def release_memory() -> None:
    """Free the networks that nothing refers to any more.

    Gluon's blocks refer to themselves in circles, so that without this they stay, with their parameters and buffers,
    until Python happens to look for circles: every stage of a run would keep its network.
    """
    gc.collect()


def set_precision(amp: str, contexts: Sequence[mx.Context]) -> None:
    """Choose the precision of convolutions and matrix products, for the whole process; call it before building.

    Parameters
    ----------
    amp : {"none", "bfloat16", "float16"}
        "none" is float32 throughout.
    contexts : sequence of mx.Context
        Where the networks will compute: bfloat16 needs CPUs with AVX512_BF16, float16 needs GPUs.

    Raises
    ------
    ConfigError
        If the devices cannot do it or this process has another precision already (see
        :func:`symbols.backend.enable_amp`).
    """
    kind = contexts[0].device_type
    if amp == "float16" and kind != "gpu":
        raise ConfigError(f"amp float16 needs GPUs, got ctx {kind}: use bfloat16 on a CPU that has it, or none")
    if amp == "bfloat16" and kind != "cpu":
        raise ConfigError(f"amp bfloat16 needs a CPU, got ctx {kind}: use float16")
    if amp == "bfloat16" and not has_bfloat16():
        raise ConfigError("amp bfloat16 needs a CPU with AVX512_BF16, which this one lacks: use none")
    try:
        enable_amp(amp)
    except RuntimeError as error:
        raise ConfigError(f"amp: {error}") from error
