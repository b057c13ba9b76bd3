"""Class-balanced self-training (CBST) for unsupervised domain adaptation of semantic segmentation, on MXNet and Gluon.

Importing this package does not import mxnet: data, configuration and evaluation serve users of any framework. The
public names below are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import Any

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


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(_PUBLIC[name])
    return module if module.__name__ == f"{__name__}.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
