"""Class-balanced self-training (CBST) for unsupervised domain adaptation of semantic segmentation, on MXNet and Gluon.

Importing this package does not import mxnet: data, configuration and evaluation serve users of any framework. The
public names below are imported when they are first used.
"""

from __future__ import annotations

import importlib
import itertools
import os
import sys
from pathlib import Path
from typing import Any, Mapping, MutableMapping

__version__ = "0.1.0"

#: The paper's methods to the rule of their thresholds: one for all classes (Algorithm 1) or one per class (Algorithm
#: 2). CBST-SP is CBST on probabilities that are multiplied by a spatial prior.
METHODS = {"st": "global", "cbst": "class-balanced", "cbst-sp": "class-balanced"}

#: Public name to the module that has it, or that it is.
_PUBLIC = {
    "load_network": "cbst_mx.evaluation.predictor",
    "open_run": "cbst_mx.evaluation.run_results",
    "selftrain": "cbst_mx.selftrain",
}

__all__ = list(_PUBLIC)


# Models of Intel's family 6 with AVX2 that NumPy's OpenBLAS 0.3.20 knows: Haswell, Broadwell, Skylake to Comet Lake;
# Knights Landing, Cannon Lake, Ice Lake, Tiger Lake, Sapphire Rapids, Alder Lake, Rocket Lake. And families: Zen to
# Zen 4, Hygon; Bulldozer to Excavator.
_INTEL = (
    *(60, 63, 69, 70, 61, 71, 79, 86, 78, 94, 85, 142, 158, 165, 166),
    *(87, 102, 106, 108, 125, 126, 140, 141, 143, 151, 154, 167),
)
_KNOWN: dict[str, set[tuple[int, ...]]] = {
    "GenuineIntel": {(6, model) for model in _INTEL},
    "AuthenticAMD": {(21,), (23,), (25,)},
    "HygonGenuine": {(24,)},
}
_AVX512 = {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}


def choose_blas_kernels(
    environment: MutableMapping[str, str],
    *,
    modules: Mapping[str, Any] = sys.modules,
    cpuinfo: Path = Path("/proc/cpuinfo"),
) -> None:
    """Let NumPy 1.23.5's OpenBLAS 0.3.20 use AVX2 or AVX-512 where it would not know that it may.

    Of a processor that came after it OpenBLAS takes that it has SSE3 alone: on an Emerald Rapids of 2023 a product took
    five times as long. It reads the variable OPENBLAS_CORETYPE when it is loaded, and so does mxnet's own. Where the
    user has set it, or NumPy is there already, nothing is changed; processes that this one starts may then compute in
    another way, so import this package before NumPy.

    Parameters
    ----------
    environment : mutable mapping
        ``os.environ``.
    modules : mapping
        The modules that are imported.
    cpuinfo : Path
        Where Linux describes the processor; of another system nothing is known.
    """
    if environment.get("OPENBLAS_CORETYPE") or "numpy" in modules:
        return
    try:
        with cpuinfo.open(encoding="utf-8", errors="replace") as file:
            first = [*itertools.takewhile(str.strip, file)]  # of many cores alike
    except OSError:
        return
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first)}
    known, flags = _KNOWN.get(found.get("vendor_id", "")), set(found.get("flags", "").split())
    if known is None or not {"avx2", "fma"} <= flags:
        return
    family = (int(found["cpu family"]),)
    if family in known or (*family, int(found["model"])) in known:
        return
    environment["OPENBLAS_CORETYPE"] = "SKYLAKEX" if flags >= _AVX512 else "HASWELL"


choose_blas_kernels(os.environ)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(_PUBLIC[name])
    return module if module.__name__ == f"{__name__}.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
