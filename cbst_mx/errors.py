"""Errors a user can cause and mend, each with a message of one sentence.

The tree, and the exit code the command line gives::

    CBSTError              1   base; catch this one to catch them all
      ConfigError          1   an experiment file, a data description or an argument is wrong
      DataError            1   a data root, an image or a label cannot be used
        NotFiniteError     1   a network's probabilities are NaN or infinite
      CheckpointError      1   network parameters cannot be used
        DivergedError      1   network parameters are NaN or infinite
      RunError             1   a run folder cannot be used (of another run, not writable, disk full)
      TrainingError        1   a training phase diverged
      StoppedError       128+N the work was asked to stop, by signal N (130 Ctrl-C, 143 SIGTERM)

The command line's other codes: 0 done, 2 wrong usage (raised by click itself), 3 a number check failed. Any other
exception is a defect of this program and keeps its traceback. The library raises and never prints or exits; only
``cbst_mx.cli`` does.
"""

from __future__ import annotations

from typing import Any, Collection

__all__ = [
    "LESS_ON_GPU",
    "CBSTError",
    "CheckpointError",
    "ConfigError",
    "DamagedError",
    "DataError",
    "DivergedError",
    "NotFiniteError",
    "RunError",
    "StoppedError",
    "TrainingError",
    "check_choice",
    "explain_device",
    "lacks_memory",
]

# What Python, the C++ library and MXNet say of too little memory; a thread needs some for its stack.
_NO_MEMORY = (
    *("bad_alloc", "Cannot allocate memory", "AlignedMallocPitch", "Failed to allocate", "out of memory"),
    *("can't start new thread", "Resource temporarily unavailable"),
)
#: How the work of a run fits into a GPU's memory.
LESS_ON_GPU = (
    "lower images_per_pass or inference_batch, or use several GPUs (--ctx gpu:0,1), with which a run goes on; a "
    "smaller crop, gradient_checkpointing or --amp float16 make another run"
)
# What MXNet says of a GPU where it is known what its user can do. Its search for an algorithm takes memory by itself.
_FULL = "the GPU has not enough memory"
_DEVICE = {
    "cudaMalloc": _FULL,
    # a request that failed stays the runtime's last error; a kernel tells it where MXNet found memory after all
    "ErrStr:out of memory": _FULL,
    "CUDNN_STATUS_ALLOC_FAILED": _FULL,
    "CUBLAS_STATUS_ALLOC_FAILED": _FULL,
    "convolution algorithm": f"{_FULL} for a convolution",
    "no kernel image is available": (
        "mxnet-cu112 1.9.1 has no code for this GPU, only for compute capabilities 5.0 to 8.9: use another one, or cpu"
    ),
    "unsupported toolchain": (
        "the NVIDIA driver is older than the CUDA libraries: install driver 520 or newer, or set MXNET_USE_FUSION=0"
    ),
    "driver version is insufficient": "the NVIDIA driver is too old for CUDA 11.2: install version 450.80 or newer",
    "CUDA driver version": "the NVIDIA driver is too old for CUDA 11.2: install version 450.80 or newer",
    "CUDNN_STATUS_VERSION_MISMATCH": (
        "the parts of cuDNN that were loaded are of different versions: take other cuDNNs out of LD_LIBRARY_PATH "
        "(cbst-mx gpu-check says where they come from)"
    ),
    "CUDNN_STATUS_NOT_INITIALIZED": (
        "cuDNN could not start: too little memory of the GPU is free (nvidia-smi), or the driver does not support it "
        "(cbst-mx gpu-check)"
    ),
    "CUDNN_STATUS_ARCH_MISMATCH": (
        "cuDNN has no code for this GPU, only for compute capabilities 5.0 to 8.9: use another one, or cpu"
    ),
    "an illegal memory access": "the GPU reported a wrong access to its memory: start again, and look at its health",
    "uncorrectable ECC": "the GPU's memory is damaged (ECC): use another one",
}


class CBSTError(Exception):
    """Something the user gave cannot be used; the message is one sentence that says what, and what is allowed."""


class ConfigError(CBSTError):
    """An experiment file, a data description or an argument is wrong."""


class DataError(CBSTError):
    """A data root, an image or a label cannot be used."""


class DamagedError(DataError):
    """An image file is damaged or truncated, rather than of another kind."""


class NotFiniteError(DataError):
    """A probability is NaN or infinite: the network that gave it has diverged."""


class CheckpointError(CBSTError):
    """Network parameters cannot be used: damaged, missing, or of another network."""


class DivergedError(CheckpointError):
    """Network parameters are NaN or infinite: the training that made them has diverged."""


class RunError(CBSTError):
    """A run folder cannot be used: it belongs to another run, or cannot be written."""


class TrainingError(CBSTError):
    """A training phase cannot go on: the loss is not finite."""


class StoppedError(CBSTError):
    """The work was asked to stop, and has: raised by a `progress` callable, which is called after every step.

    Whoever is at work saves what it has, says so in `kept`, and lets the error pass; so any caller of the library can
    stop it where the next call goes on.

    Parameters
    ----------
    what : str
        Name of the work.
    done, total : int
        Steps done (iterations or images), and in all.
    signal : int, optional
        Number of the signal that asked for it.

    Attributes
    ----------
    kept : {"nothing", "steps", "all"}
        What the next call finds: nothing; all but the work `what`, which it does from its start; or all that was done.
    """

    def __init__(self, what: str, done: int, total: int, *, signal: int | None = None):
        super().__init__(what, done, total)
        self.what, self.done, self.total, self.signal = what, done, total, signal
        self.kept = "nothing"

    def keep(self, kept: str) -> None:
        """Note that at least so much is kept."""
        order = ("nothing", "steps", "all")
        self.kept = max(self.kept, kept, key=order.index)

    def __str__(self) -> str:
        after = {
            "all": "the same command continues",
            "steps": "the same command continues, with this step from its start",
            "nothing": "nothing of it is kept",
        }
        return f"{self.what}: stopped at {self.done} of {self.total}; {after[self.kept]}"


def explain_device(error: BaseException | None, less: str = LESS_ON_GPU) -> str | None:
    """Return what is wrong with a GPU and what its user can do, in one sentence; None where MXNet says nothing known.

    Parameters
    ----------
    error : BaseException or None
        What was raised; its causes are looked at too.
    less : str
        What to do where the GPU's memory is full.

    Examples
    --------
    >>> explain_device(RuntimeError("cudaErrorNoKernelImageForDevice: no kernel image is available for execution"))[:40]
    'mxnet-cu112 1.9.1 has no code for this G'
    >>> explain_device(KeyError("cudaMalloc"))
    """
    while error is not None:
        if isinstance(error, RuntimeError):
            found = [sentence for text, sentence in _DEVICE.items() if text in str(error)]
            if found:
                return f"{found[0]}: {less}" if found[0].startswith(_FULL) else found[0]
        error = error.__cause__ or error.__context__
    return None


def lacks_memory(error: BaseException | None) -> bool:
    """Return whether an error says that there is too little memory, or was caused by one that does.

    Examples
    --------
    >>> lacks_memory(MemoryError()), lacks_memory(RuntimeError("std::bad_alloc")), lacks_memory(KeyError("bad_alloc"))
    (True, True, False)
    """
    while error is not None:
        says = isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)  # MXNet's is one
        if says or isinstance(error, MemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


def check_choice(option: str, value: Any, allowed: Collection[str], *, of: str = "") -> None:
    """Refuse a value that is not one of those allowed.

    Parameters
    ----------
    option : str
        What the user calls it.
    value : object
        What came.
    allowed : collection of str
        In the order of the message.
    of : str
        What the choice belongs to, where others have another.

    Raises
    ------
    ConfigError
        If it is none of them.

    Examples
    --------
    >>> check_choice("split", "tset", ("train", "val"), of="NTHU")
    Traceback (most recent call last):
    cbst_mx.errors.ConfigError: split must be one of train, val for NTHU, got 'tset'
    """
    if value not in allowed:
        raise ConfigError(f"{option} must be one of {', '.join(allowed)}{of and f' for {of}'}, got {value!r}")
