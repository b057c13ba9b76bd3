"""Sidecars of parameter files: which network a ``NAME.params`` is of, its classes, and its digest; without mxnet."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from cbst_mx.errors import CheckpointError, ConfigError
from cbst_mx.files import read_bounded
from cbst_mx.label_space import LabelSpace
from cbst_mx.networks.spec import NetworkSpec

__all__ = ["SIDECAR_FORMAT", "read_sidecar", "sidecar_path"]

SIDECAR_FORMAT = 1
_LARGEST_SIDECAR = 16 << 20  # bytes


def sidecar_path(path: Path) -> Path:
    """Return the path of the sidecar of the parameter file `path`."""
    return Path(f"{path}.json")


def read_sidecar(path: Path) -> tuple[NetworkSpec, LabelSpace | None, str]:
    """Read the sidecar of the parameter file `path`.

    Returns
    -------
    spec : NetworkSpec
        Description of the network.
    label_space : LabelSpace or None
        Its classes, with trainIds as the only convention of ids; None for a classifier of whole images.
    sha256 : str
        Expected SHA-256 of the parameter file.

    Raises
    ------
    CheckpointError
        If the parameter file or its sidecar is missing or damaged, or the sidecar is of a later version.
    """
    path = Path(path)
    side = sidecar_path(path)
    if not path.is_file():
        raise CheckpointError(f"parameter file {path} does not exist")
    if not side.is_file():
        raise CheckpointError(
            f"parameter file {path} has no sidecar {side.name}: only files written by cbst-mx are read"
        )
    try:
        values = json.loads(read_bounded(side, _LARGEST_SIDECAR).decode("utf-8"))
        if values["format"] != SIDECAR_FORMAT:
            raise CheckpointError(f"sidecar {side} must have format {SIDECAR_FORMAT}, got {values['format']!r}")
        spec = NetworkSpec.from_json(values["network"])
        if not re.fullmatch("[0-9a-f]{64}", values["sha256"]):
            raise ValueError("sha256 must be 64 hexadecimal digits")
        space = values["label_space"]
        return spec, None if space is None else _parse_label_space(space, spec.num_classes), values["sha256"]
    except OSError as error:
        raise CheckpointError(f"sidecar {side} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, RecursionError, ConfigError) as error:
        raise CheckpointError(f"sidecar {side} is damaged: {type(error).__name__}: {error}") from error


def _parse_label_space(values: dict[str, Any], num_classes: int) -> LabelSpace:
    names, palette = tuple(values["names"]), tuple(tuple(colour) for colour in values["palette"])
    if not all(type(text) is str and text.isprintable() for text in (values["name"], *names)):
        raise ValueError("label_space must have names that can be printed")
    if len(names) != num_classes:
        raise ValueError(f"label_space must name the network's {num_classes} classes, got {len(names)} names")
    if not all(type(value) is int for colour in palette for value in colour):
        raise ValueError("label_space must have a palette of whole numbers")
    identity = {index: index for index in range(len(names))}
    return LabelSpace(values["name"], names, palette, {"trainId": {**identity, 255: 255}})  # type: ignore[arg-type]
