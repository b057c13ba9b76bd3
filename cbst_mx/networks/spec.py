"""Description from which a network is rebuilt; needs no MXNet."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from cbst_mx.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from cbst_mx.errors import check_choice

__all__ = ["NETWORK_NAMES", "NetworkSpec", "check_network"]

#: Networks that the program brings; ``symbols.NETWORKS`` has them all, but importing it imports mxnet.
NETWORK_NAMES = ("fcn8s", "resnet38")


def check_network(name: str) -> None:
    """Refuse a network that there is not.

    mxnet is imported only for a name that is not among those the program brings. Where it is missing, nothing is known
    of such a name, and it passes.

    Raises
    ------
    ConfigError
        If `name` is not in ``symbols.NETWORKS``.
    """
    if name in NETWORK_NAMES:
        return
    try:
        from symbols import NETWORKS
    except ImportError:
        return
    check_choice("network", name, sorted(NETWORKS))


@dataclass(frozen=True)
class NetworkSpec:
    """A network, by name and options: stored beside its parameters.

    Attributes
    ----------
    name : str
        Key of ``symbols.NETWORKS``.
    num_classes : int
        Number of classes C.
    options : dict
        Keyword arguments of the network's constructor.
    mean, std : tuple of 3 float
        Normalisation of the input, RGB in [0, 1]; 1 / 255 as std is the range of 0 to 255 minus a mean.
    """

    name: str
    num_classes: int
    options: dict[str, Any] = field(default_factory=dict)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def to_json(self) -> dict[str, Any]:
        """Return the specification as plain JSON values."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    def input_text(self) -> str:
        """Return the images that the network takes, in words: order of the channels and range of the values."""
        if all(value == 1 / 255 for value in self.std):
            return f"RGB images of 0 to 255 minus mean {[round(255 * value, 6) for value in self.mean]}"
        return f"RGB images in [0, 1] normalised by mean {list(self.mean)} and std {list(self.std)}"

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> NetworkSpec:
        """Return the specification that :meth:`to_json` described.

        Raises
        ------
        ValueError, KeyError, TypeError
            If `values` describe no network.
        """
        spec = cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})
        if type(spec.name) is not str or type(spec.num_classes) is not int or spec.num_classes < 2:
            raise ValueError("network must have a name and at least 2 classes")
        if not isinstance(spec.options, dict):
            raise ValueError("network must have options by name")
        for numbers in (spec.mean, spec.std):
            if len(numbers) != 3 or not all(type(v) in (int, float) and math.isfinite(v) for v in numbers):
                raise ValueError("network must have three finite numbers each as mean and std")
        if min(spec.std) <= 0:
            raise ValueError("network must have a std above 0")
        return spec
