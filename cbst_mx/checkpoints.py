"""Parameter files: ``NAME.params`` (MXNet's own format) and a sidecar ``NAME.params.json`` that says what they are.

MXNet's format has no checksum, is not written atomically and does not know its network, so the sidecar holds the
network's specification, the label space and the SHA-256 of the parameter file; all three are checked when loading.
Options of the network that only change its training (`TRAINING_OPTIONS`) may differ.
"""

from __future__ import annotations

import errno
import hashlib
import inspect
import json
from pathlib import Path
from typing import Any, Dict, Tuple

import numpy as np

from cbst_mx.errors import CheckpointError, ConfigError
from cbst_mx.files import atomic_path, write_json
from cbst_mx.label_space import LabelSpace
from cbst_mx.network_spec import NetworkSpec
from cbst_mx.networks import build_network
from symbols import NETWORKS
from symbols.backend import gluon, mx

__all__ = [
    "check_unaltered",
    "file_digest",
    "load_arrays",
    "load_network",
    "load_parameters",
    "read_sidecar",
    "save_arrays",
    "save_parameters",
    "sidecar_path",
]

SIDECAR_FORMAT = 1
TRAINING_OPTIONS = frozenset({"dropout", "upsampling"})


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Return the digest of a file in hexadecimal."""
    digest = hashlib.new(algorithm)
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def sidecar_path(path: Path) -> Path:
    """Return the path of the sidecar of the parameter file `path`."""
    return Path(f"{path}.json")


def save_arrays(path: Path, arrays: Dict[str, mx.nd.NDArray]) -> str:
    """Write named NDArrays to `path`, atomically and read back, and return the file's SHA-256.

    Raises
    ------
    RunError
        If the file cannot be written completely; what was at `path` before is then still there.
    """
    with atomic_path(Path(path)) as temporary:
        # a small file on a full disk is reported as written by MXNet: only reading it back tells
        try:
            mx.nd.save(str(temporary), arrays)
            complete = set(mx.nd.load(str(temporary))) == set(arrays)
        except mx.MXNetError as error:
            raise OSError(errno.ENOSPC, "MXNet could not write the whole file") from error
        if not complete:
            raise OSError(errno.ENOSPC, "the file read back is incomplete")
        digest = file_digest(temporary)
    return digest


def load_arrays(path: Path) -> Dict[str, mx.nd.NDArray]:
    """Read named NDArrays from `path`.

    Raises
    ------
    CheckpointError
        If the file is missing or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"parameter file {path} does not exist")
    try:
        arrays = mx.nd.load(str(path))
    except (mx.MXNetError, UnicodeDecodeError) as error:
        raise CheckpointError(f"parameter file {path} is not a readable MXNet .params file (truncated?)") from error
    if not isinstance(arrays, dict):
        raise CheckpointError(f"parameter file {path} holds arrays without names; named arrays are needed")
    return arrays


def _label_space_to_json(space: LabelSpace) -> Dict[str, Any]:
    return {"name": space.name, "names": list(space.names), "palette": [list(colour) for colour in space.palette]}


def save_parameters(
    path: Path,
    network: gluon.HybridBlock,
    spec: NetworkSpec,
    label_space: LabelSpace,
    *,
    config_hash: str | None = None,
    imported: Dict[str, Any] | None = None,
) -> None:
    """Write the parameters of `network` and their sidecar, both atomically.

    Parameters
    ----------
    path : Path
        The ``.params`` file to write; the sidecar gets the ending ``.params.json``.
    network : HybridBlock
        An initialised network.
    spec : NetworkSpec
        What `network` was built from.
    label_space : LabelSpace
        The meaning of its classes.
    config_hash : str, optional
        SHA-256 of the experiment that made the parameters.
    imported : dict, optional
        Where they came from when not from a training, as JSON values (see :mod:`cbst_mx.weights`).

    Raises
    ------
    CheckpointError
        If a parameter is not finite.
    RunError
        If the file cannot be written.
    """
    arrays = {
        name: parameter.data(parameter.list_ctx()[0]).as_in_context(mx.cpu())
        for name, parameter in network._collect_params_with_prefix().items()
    }
    for name, array in arrays.items():
        if not np.isfinite(array.asnumpy()).all():
            raise CheckpointError(f"parameters not saved to {path}: {name} has values that are not finite (diverged?)")
    digest = save_arrays(path, arrays)
    sidecar = {
        "format": SIDECAR_FORMAT,
        "network": spec.to_json(),
        "label_space": _label_space_to_json(label_space),
        "config_sha256": config_hash,
        "sha256": digest,
        **({} if imported is None else {"imported": imported}),
    }
    write_json(sidecar_path(Path(path)), sidecar)


def read_sidecar(path: Path) -> Tuple[NetworkSpec, LabelSpace, str]:
    """Read the sidecar of the parameter file `path`.

    Returns
    -------
    spec : NetworkSpec
    label_space : LabelSpace
        Without raw-id conventions other than trainIds when it is not one of the built-in label spaces.
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
        values = json.loads(side.read_text(encoding="utf-8"))
        if values["format"] != SIDECAR_FORMAT:
            raise CheckpointError(f"sidecar {side} must have format {SIDECAR_FORMAT}, got {values['format']!r}")
        spec = NetworkSpec.from_json(values["network"])
        space = values["label_space"]
        identity = {index: index for index in range(len(space["names"]))}
        label_space = LabelSpace(
            name=space["name"],
            names=tuple(space["names"]),
            palette=tuple(tuple(colour) for colour in space["palette"]),
            raw_ids={"trainId": {**identity, 255: 255}},
        )
        return spec, label_space, str(values["sha256"])
    except (ValueError, KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(f"sidecar {side} is damaged: {type(error).__name__}: {error}") from error


def check_unaltered(path: Path, sha256: str) -> None:
    """Refuse a parameter file that is not the one its sidecar was written for.

    Parameters
    ----------
    path : Path
        The parameter file.
    sha256 : str
        What its sidecar states.

    Raises
    ------
    CheckpointError
        If the file's SHA-256 is another one.
    """
    if file_digest(path) != sha256:
        raise CheckpointError(f"parameter file {path} was altered or truncated: its SHA-256 is not its sidecar's")


def load_parameters(network: gluon.HybridBlock, path: Path, spec: NetworkSpec, label_space: LabelSpace) -> None:
    """Fill `network` with the parameters of `path`, after checking that they belong to it.

    Parameters
    ----------
    network : HybridBlock
        Built from `spec`; its parameters are initialised on the current context where they are not yet.
    path : Path
        A file written by :func:`save_parameters`.
    spec : NetworkSpec
        The network expected.
    label_space : LabelSpace
        The classes expected.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, altered, or of another network or label space.
    """
    stored, stored_space, digest = read_sidecar(path)
    if _computation(stored) != _computation(spec):
        raise CheckpointError(f"{path} holds parameters of another network: {_describe(stored)}, not {_describe(spec)}")
    if (stored.mean, stored.std) != (spec.mean, spec.std):
        raise CheckpointError(
            f"{path} was trained on images normalised by mean {list(stored.mean)} and std {list(stored.std)}, "
            f"not mean {list(spec.mean)} and std {list(spec.std)}"
        )
    if stored_space.names != label_space.names:
        raise CheckpointError(
            f"{path} was trained for label space {stored_space.name} ({stored_space.num_classes} classes), "
            f"not {label_space.name} ({label_space.num_classes} classes)"
        )
    check_unaltered(path, digest)
    try:
        # dtype and shape are the file's: the sidecar already vouched for the network
        network.load_parameters(str(path), ctx=mx.current_context())
    except (mx.MXNetError, AssertionError, ValueError, UnicodeDecodeError) as error:
        raise CheckpointError(f"parameter file {path} does not fit the network {_describe(spec)}") from error


def load_network(path: Path, ctx: mx.Context) -> Tuple[gluon.HybridBlock, NetworkSpec, LabelSpace]:
    """Build the network that the sidecar of `path` describes, on `ctx`, with the parameters of `path`.

    Raises
    ------
    CheckpointError
        As :func:`load_parameters`.
    """
    spec, label_space, _ = read_sidecar(path)
    network = build_network(spec, ctx)
    with ctx:
        load_parameters(network, path, spec, label_space)
    return network, spec, label_space


def _computation(spec: NetworkSpec) -> Tuple[str, int, Dict[str, Any]]:
    """Return what decides on the tensors of a network and what it computes from them, defaults written out."""
    constructor = NETWORKS.get(spec.name)
    parameters = inspect.signature(constructor).parameters.values() if constructor else ()
    options = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    options.update(spec.options)
    kept = {key: value for key, value in options.items() if key not in TRAINING_OPTIONS}
    return spec.name, spec.num_classes, json.loads(json.dumps(kept))  # lists and tuples alike


def _describe(spec: NetworkSpec) -> str:
    options = ", ".join(f"{key}={value}" for key, value in sorted(spec.options.items()))
    return f"{spec.name} with {spec.num_classes} classes" + (f" ({options})" if options else "")
