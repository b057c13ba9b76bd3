"""The networks of the paper as Gluon HybridBlocks, and nothing else.

This package imports MXNet only (through :mod:`symbols.backend`) and knows nothing of data, rounds or paths.
"""

from __future__ import annotations

from typing import Any, Callable

from symbols.backend import gluon
from symbols.blocks import check_choice
from symbols.fcn8s import FCN8s
from symbols.resnet38 import ResNet38

__all__ = ["NETWORKS", "FCN8s", "ResNet38", "get_network"]

NETWORKS: dict[str, Callable[..., gluon.HybridBlock]] = {"fcn8s": FCN8s, "resnet38": ResNet38}


def get_network(name: str, num_classes: int, **options: Any) -> gluon.HybridBlock:
    """Return the network called `name`, not yet initialised.

    Parameters
    ----------
    name : str
        One of ``NETWORKS``.
    num_classes : int
        Number of classes C, at least 2.
    **options
        Keyword arguments of the network's constructor, for example ``width``.

    Returns
    -------
    HybridBlock
        Maps images (B, 3, h, w) to logits; the constructor's documentation states their shape.

    Raises
    ------
    ValueError
        If `name` is unknown, `num_classes` is no whole number of at least 2, or the constructor refuses an option.
    """
    check_choice("network", name, sorted(NETWORKS))
    if not isinstance(num_classes, int) or num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes!r}")
    return NETWORKS[name](num_classes=num_classes, **options)
