"""Class-balanced self-training (CBST) for unsupervised domain adaptation of semantic segmentation, on MXNet and Gluon.

The names of ``__all__`` are the public API. Importing this package does not import mxnet: data, configuration and
evaluation serve users of any framework, and what needs mxnet imports it when it is first asked for.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

# The public names and the modules they are taken from; a name that is a module is taken as it is.
_PUBLIC = {
    "load_network": "cbst_mx.predictor",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module = import_module(_PUBLIC[name])
    return module if module.__name__ == f"{__name__}.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return [*__all__, "__doc__", "__file__", "__name__", "__path__", "__version__"]
