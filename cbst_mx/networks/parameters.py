"""Parameter files: ``NAME.params`` (MXNet's own format) and a sidecar ``NAME.params.json`` that says what they are.

MXNet's format has no checksum, is not written atomically and does not know its network, so the sidecar holds the
network's specification, the label space and the SHA-256 of the parameter file; all three are checked when loading.
Options of the network that only change its training (`TRAINING_OPTIONS`) may differ.
"""

from __future__ import annotations

import contextlib
import errno
import json
from pathlib import Path
from typing import Any, Iterator

import numpy as np

from cbst_mx.errors import CBSTError, CheckpointError, ConfigError, DivergedError, lacks_memory
from cbst_mx.files import atomic_path, file_digest, reading, remove_file, replace_file, write_bytes, write_json
from cbst_mx.label_space import LabelSpace
from cbst_mx.messages import counted
from cbst_mx.networks.build import build_network, network_options
from cbst_mx.networks.params_files import check_structure
from cbst_mx.networks.sidecars import SIDECAR_FORMAT, read_sidecar, sidecar_path
from cbst_mx.networks.spec import NetworkSpec
from symbols.backend import gluon, mx

__all__ = [
    "check_unaltered",
    "load_arrays",
    "load_network",
    "load_parameters",
    "remove_arrays",
    "save_arrays",
    "save_parameters",
]

TRAINING_OPTIONS = frozenset({"dropout", "upsampling"})


def save_arrays(path: Path, arrays: dict[str, mx.nd.NDArray], *, previous: Path | None = None) -> None:
    """Write named NDArrays to `path`, atomically and read back.

    Parameters
    ----------
    path : Path
        The ``.params`` file.
    arrays : dict
        What it holds.
    previous : Path, optional
        Takes the file that was at `path` before.

    Raises
    ------
    RunError
        If the file cannot be written completely; what was at `path` before is then still there, or at `previous`.
    """
    with atomic_path(Path(path)) as temporary:
        _write_arrays(temporary, arrays)
        if previous is not None and Path(path).is_file():
            replace_file(path, previous)


def remove_arrays(path: Path) -> None:
    """Remove a file of named NDArrays, if it is there.

    Raises
    ------
    RunError
        If it cannot be removed.
    """
    remove_file(path)


def _write_arrays(path: Path, arrays: dict[str, mx.nd.NDArray]) -> None:
    """Write a file and read it back."""
    # a small file on a full disk is reported as written by MXNet: only reading it back tells
    try:
        mx.nd.save(str(path), arrays)
        complete = set(mx.nd.load(str(path))) == set(arrays)
    except mx.MXNetError as error:
        if lacks_memory(error):
            raise
        raise OSError(errno.ENOSPC, "MXNet could not write the whole file") from error
    if not complete:
        raise OSError(errno.ENOSPC, "the file read back is incomplete")


@contextlib.contextmanager
def _restored(path: Path) -> Iterator[None]:
    """Restore the content of the small file `path`, or remove it, when the block fails."""
    before = None
    if path.is_file():
        with reading(str(path), CheckpointError):
            before = path.read_bytes()
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError, CBSTError):
            if before is None:
                remove_file(path)
            elif path.read_bytes() != before:
                write_bytes(path, before)
        raise


def load_arrays(path: Path) -> dict[str, mx.nd.NDArray]:
    """Read named NDArrays from `path`.

    Raises
    ------
    CheckpointError
        If the file is missing or damaged.
    """
    check_structure(path)
    try:
        arrays: dict[str, mx.nd.NDArray] = mx.nd.load(str(path))
    except (mx.MXNetError, UnicodeDecodeError) as error:
        if lacks_memory(error):  # the file may be good
            raise
        raise CheckpointError(f"parameter file {path} is not a readable MXNet .params file") from error
    return arrays


def _label_space_to_json(space: LabelSpace | None) -> dict[str, Any] | None:
    if space is None:
        return None
    return {"name": space.name, "names": list(space.names), "palette": [list(colour) for colour in space.palette]}


def save_parameters(
    path: Path,
    network: gluon.HybridBlock,
    spec: NetworkSpec,
    label_space: LabelSpace | None,
    *,
    config_hash: str | None = None,
    imported: dict[str, Any] | None = None,
) -> None:
    """Write the parameters of `network` and their sidecar, both or neither.

    Parameters
    ----------
    path : Path
        The ``.params`` file to write; the sidecar gets the ending ``.params.json``.
    network : HybridBlock
        An initialised network.
    spec : NetworkSpec
        Description from which `network` was built.
    label_space : LabelSpace or None
        The meaning of its classes; None for a classifier of whole images.
    config_hash : str, optional
        SHA-256 of the experiment that made the parameters.
    imported : dict, optional
        Where they came from when not from a training, as JSON values (see :mod:`.weights`).

    Raises
    ------
    DivergedError
        If a parameter is not finite.
    RunError
        If a file cannot be written; what was there before is then still there.
    """
    path, side = Path(path), sidecar_path(Path(path))
    arrays = {
        name: parameter.data(parameter.list_ctx()[0]).as_in_context(mx.cpu())
        for name, parameter in network._collect_params_with_prefix().items()
    }
    for name, array in arrays.items():
        if not np.isfinite(array.asnumpy()).all():
            raise DivergedError(f"parameters not saved to {path}: {name} has values that are not finite (diverged?)")
    with _restored(side), atomic_path(path) as temporary:
        _write_arrays(temporary, arrays)
        sidecar = {
            "format": SIDECAR_FORMAT,
            "network": spec.to_json(),
            "label_space": _label_space_to_json(label_space),
            "config_sha256": config_hash,
            "sha256": file_digest(temporary),
            **({} if imported is None else {"imported": imported}),
        }
        write_json(side, sidecar)


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
    with reading(f"parameter file {path}", CheckpointError):
        found = file_digest(path)
    if found != sha256:
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
    if stored_space is None:
        raise CheckpointError(f"{path} holds a classifier of whole images: it has no label space")
    if stored_space.names != label_space.names:
        raise CheckpointError(
            f"{path} was trained for label space {stored_space.name} ({counted(stored_space.num_classes, 'class')}), "
            f"not {label_space.name} ({counted(label_space.num_classes, 'class')})"
        )
    check_unaltered(path, digest)
    try:
        # dtype and shape are the file's: the sidecar already vouched for the network
        network.load_parameters(str(path), ctx=mx.current_context())
    except (mx.MXNetError, AssertionError, ValueError, UnicodeDecodeError) as error:
        raise CheckpointError(f"parameter file {path} does not fit the network {_describe(spec)}") from error


def load_network(path: Path, ctx: mx.Context) -> tuple[gluon.HybridBlock, NetworkSpec, LabelSpace]:
    """Build the network that the sidecar of `path` describes, on `ctx`, with the parameters of `path`.

    Raises
    ------
    CheckpointError
        If the file cannot be used, as for :func:`load_parameters`, or the sidecar describes no network that labels
        pixels.
    """
    spec, label_space, _ = read_sidecar(path)
    try:
        network = build_network(spec, ctx)
    except ConfigError as error:
        raise CheckpointError(f"{path} cannot be loaded: {error}") from error
    if label_space is None:
        raise CheckpointError(f"{path} cannot be loaded: its sidecar has no label space")
    with ctx:
        load_parameters(network, path, spec, label_space)
    return network, spec, label_space


def _computation(spec: NetworkSpec) -> tuple[str, int, dict[str, Any]]:
    """Return what decides on the tensors of a network and what it computes from them, defaults written out."""
    options = {**network_options(spec.name), **spec.options}
    kept = {key: value for key, value in options.items() if key not in TRAINING_OPTIONS}
    return spec.name, spec.num_classes, json.loads(json.dumps(kept))  # lists and tuples alike


def _describe(spec: NetworkSpec) -> str:
    options = ", ".join(f"{key}={value}" for key, value in sorted(spec.options.items()))
    return f"{spec.name} with {counted(spec.num_classes, 'class')}" + (f" ({options})" if options else "")
