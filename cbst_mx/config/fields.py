"""Kinds of values that keys of an experiment take, with their limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import AfterValidator, Field
from typing_extensions import Annotated, Literal

from cbst_mx import METHODS
from cbst_mx.data import FORMATS
from cbst_mx.errors import ConfigError
from cbst_mx.networks.spec import check_network

__all__ = [
    "SCALES",
    "Batch",
    "Count",
    "Factor",
    "FilePath",
    "Fold",
    "FormatName",
    "LongSide",
    "MethodName",
    "Name",
    "NetworkName",
    "Rate",
    "Scale",
    "Seed",
    "SetName",
    "Share",
    "Side",
    "Step",
]

#: Smallest and largest factor of an image's height and width.
SCALES = (0.05, 16.0)


def _printable(name: str) -> str:
    if not name.strip() or len(name) > 100 or not name.isprintable():
        raise ValueError(f"must have 1 to 100 printable characters, got {name[:60]!r}")
    return name


def _key(name: str) -> str:
    # In the files of a stage "NAME", "NAME.classes" and "NAME.images" are arrays, and "NAME.npy" is "NAME".
    if name.endswith((".npy", ".classes", ".images")):
        raise ValueError(f"must not end with .npy, .classes or .images, got {name[:60]!r}")
    return _printable(name)


def _network(name: str) -> str:
    try:
        check_network(name)
    except ConfigError as error:
        raise ValueError(str(error)) from error
    return name


def _path(text: str) -> str:
    if not text or "\0" in text or len(text) > 4096:
        raise ValueError(f"must be a path, got {text[:60]!r}")
    return text


# Every number has two limits: what no run can have is refused here, and not after hours of training.
Scale = Annotated[float, Field(ge=SCALES[0], le=SCALES[1])]
Side = Annotated[int, Field(ge=1, le=8192)]  # pixels
LongSide = Annotated[int, Field(ge=32, le=16384)]  # pixels
Batch = Annotated[int, Field(ge=1, le=4096)]  # images
Count = Annotated[int, Field(ge=0, le=10**9)]
Share = Annotated[float, Field(ge=1e-6, le=1)]  # of pixels or images
Step = Annotated[float, Field(ge=0, le=1)]
Factor = Annotated[float, Field(ge=0, le=1e6)]
Rate = Annotated[float, Field(gt=0, le=1e6)]
Seed = Annotated[int, Field(ge=0, lt=2**64)]
Fold = Annotated[int, Field(ge=0, le=10**6)]
Name = Annotated[str, AfterValidator(_printable)]
SetName = Annotated[str, AfterValidator(_key)]
FilePath = Annotated[str, AfterValidator(_path)]
NetworkName = Annotated[str, AfterValidator(_network)]


# mypy takes no names that are computed; pydantic does.
if TYPE_CHECKING:
    FormatName = str
    MethodName = str
else:
    FormatName = Literal[tuple(FORMATS)]
    MethodName = Literal[tuple(METHODS)]
