"""What has to be known of a network to build it again; known without MXNet."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Dict, Tuple

from cbst_mx.data.transforms import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["NetworkSpec"]


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
        Normalisation of the input, RGB in [0, 1].
    """

    name: str
    num_classes: int
    options: Dict[str, Any] = field(default_factory=dict)
    mean: Tuple[float, float, float] = IMAGENET_MEAN
    std: Tuple[float, float, float] = IMAGENET_STD

    def to_json(self) -> Dict[str, Any]:
        """Return the specification as plain JSON values."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, values: Dict[str, Any]) -> NetworkSpec:
        """Return the specification that :meth:`to_json` described."""
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})
