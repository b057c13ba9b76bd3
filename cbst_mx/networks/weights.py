"""Weights from the formats people have, turned into parameter files of our networks.

What is read, told apart by content and not by the file's ending:

* MXNet ``.params``: the released ResNet-38 files (``arg:bn2a_branch2a_gamma``, ``aux:..._moving_mean``), VGG-16 of
  Gluon's model zoo (``features.0.weight`` or ``vgg0_conv0_weight``), and what this program or Gluon wrote;
* PyTorch ``.pth`` of torchvision's VGG-16 (:mod:`.torch_files`), without PyTorch.

Reading gives names and arrays; comparing gives a row per tensor and changes nothing; only then is a network filled.
All of these were trained on RGB images in [0, 1] normalised by the ImageNet mean and std.

A tensor of ours that the file does not fill keeps the network's own initialisation, from seed `SEED`. That is refused
unless the user allows it by name, or the file cannot have the tensor: a classifier of whole images has no classifier
of pixels. Tensors of the file that we have no place for are reported and left out; a file none of whose tensors fits
is refused.
"""

from __future__ import annotations

import fnmatch
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

import numpy as np

from cbst_mx.errors import CheckpointError, ConfigError
from cbst_mx.files import file_digest
from cbst_mx.label_space import LabelSpace, find
from cbst_mx.messages import listed
from cbst_mx.networks.build import build_network
from cbst_mx.networks.parameters import check_unaltered, load_arrays, read_sidecar, save_parameters, sidecar_path
from cbst_mx.networks.spec import NetworkSpec
from cbst_mx.networks.torch_files import LONGEST_NAME, looks_like_torch, read_torch
from symbols.backend import gluon, mx
from symbols.vgg16 import STAGES

__all__ = [
    "SEED",
    "Comparison",
    "Row",
    "Source",
    "compare",
    "fill",
    "import_weights",
    "match",
    "read_weights",
    "shown",
    "tensor_names",
]

SEED = 0
ZOO_FILE = "vgg16-e660d456.params"
ZOO_SHA1 = "e660d4569ccb679ec68f1fd3cce07a387252a90a"

_PARAMS_MAGIC = 0x112  # the first eight bytes of MXNet's .params, little-endian
_SHOWN = 3


# ------------------------------------------------------------------------------------------------------------ reading


@dataclass(frozen=True)
class Source:
    """A file of weights.

    Attributes
    ----------
    path : Path
    format : str
        What it turned out to be.
    sha256 : str
        Of the file.
    tensors : dict of str to ndarray, float32
        By the file's own names.
    spec, label_space
        From its sidecar, for files of this program; else None.
    """

    path: Path
    format: str
    sha256: str
    tensors: dict[str, np.ndarray]
    spec: NetworkSpec | None = None
    label_space: LabelSpace | None = None


def read_weights(file: str | Path) -> Source:
    """Read a file of weights in any of the known formats; no code in it is run.

    Parameters
    ----------
    file : str or Path
        The file, or ``"zoo:vgg16"`` for VGG-16 in the folder where Gluon's model zoo keeps its downloads. Nothing is
        downloaded.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, altered since this program wrote it, or of another format.
    ConfigError
        If a name after ``zoo:`` is unknown.
    """
    path = _zoo_file(file[len("zoo:") :]) if isinstance(file, str) and file.startswith("zoo:") else Path(file)
    try:
        with open(path, "rb") as stream:
            head = stream.read(8)
        digest = file_digest(path)
    except OSError as error:
        raise CheckpointError(f"weights {path} cannot be read: {error.strerror or error}") from error
    if looks_like_torch(head):
        return Source(path, "PyTorch .pth", digest, read_torch(path))
    if int.from_bytes(head, "little") != _PARAMS_MAGIC:
        raise CheckpointError(
            f"weights {path} must be MXNet .params or PyTorch .pth by content, got "
            + (f"a file that begins with {head!r}" if head else "an empty file")
        )
    spec = space = None
    if sidecar_path(path).is_file():
        spec, space, stated = read_sidecar(path)
        check_unaltered(path, stated)
    tensors = {name: array.asnumpy().astype(np.float32, copy=False) for name, array in load_arrays(path).items()}
    return Source(path, "cbst-mx parameters" if spec else "MXNet .params", digest, tensors, spec, space)


def _zoo_file(name: str) -> Path:
    if name != "vgg16":
        raise ConfigError(f"weights from the model zoo must be zoo:vgg16, got 'zoo:{name}'")
    path = Path(mx.base.data_dir()).expanduser() / "models" / ZOO_FILE
    if not path.is_file():
        raise CheckpointError(
            f"zoo:vgg16 needs {path}, and nothing is downloaded: put the file of that name there (SHA-1 {ZOO_SHA1})"
        )
    digest = file_digest(path, "sha1")
    if digest != ZOO_SHA1:
        raise CheckpointError(f"zoo:vgg16 must have SHA-1 {ZOO_SHA1}, but {path} has {digest}: damaged or another file")
    return path


# ------------------------------------------------------------------------------------------------------------ matching


def _vgg16_names() -> dict[str, str]:
    """Map the names of VGG-16's tensors, by Gluon (structural, and prefixed without ``vgg0_``) and torchvision."""
    layers = []  # (index among "features", name that Gluon makes up, ours)
    index = count = 0
    for stage, (convolutions, _) in enumerate(STAGES, start=1):
        for number in range(convolutions):
            layers.append((f"features.{index}.", f"conv{count}_", f"trunk.stage{stage}.{number}.0."))
            index, count = index + 2, count + 1  # convolution, ReLU
        index += 1  # pooling
    # The published way to make FCN of VGG: its first two dense layers are convolutions over 7 x 7 and 1 x 1.
    layers += [("features.31.", "dense0_", "fc6.0."), ("features.33.", "dense1_", "fc7.0.")]
    layers += [("classifier.0.", "dense0_", "fc6.0."), ("classifier.3.", "dense1_", "fc7.0.")]
    return {name + part: ours + part for *names, ours in layers for name in names for part in ("weight", "bias")}


def shown(name: str) -> str:
    """Return the name of a tensor as a terminal may get it: one that a file made up may hold anything."""
    return name if name.isprintable() and len(name) <= LONGEST_NAME else repr(name[:LONGEST_NAME])


_VGG16 = _vgg16_names()
_MATCHED, _MISSING, _MISMATCH, _UNEXPECTED = "matched", "missing", "shape mismatch", "unexpected"


@dataclass(frozen=True)
class Row:
    """One tensor: ours, the file's, or both.

    Attributes
    ----------
    status : {"matched", "missing", "shape mismatch", "unexpected"}
    name, shape
        Ours; empty and None where we have no place for it.
    source, source_shape
        The file's; empty and None where it has none.
    """

    status: str
    name: str
    shape: tuple[int, ...] | None
    source: str
    source_shape: tuple[int, ...] | None


@dataclass(frozen=True)
class Comparison:
    """What a file has for a network.

    Attributes
    ----------
    rows : tuple of Row
        Ours in the network's order, then what is unexpected in the file's order.
    initialised : tuple of str
        Our tensors that stay as initialised, allowed to.
    refused : tuple of str
        Our tensors that would, but may not.
    classifier : str
        Where the file is a classifier of whole images, a sentence on what it cannot have; else empty.
    """

    rows: tuple[Row, ...]
    initialised: tuple[str, ...]
    refused: tuple[str, ...]
    classifier: str = ""

    def count(self, status: str) -> int:
        """Return the number of rows of a status."""
        return sum(row.status == status for row in self.rows)

    def check(self, origin: str) -> None:
        """Refuse a match that is partial beyond what was allowed.

        Parameters
        ----------
        origin : str
            The file, for the message.

        Raises
        ------
        CheckpointError
            If tensors are refused, or nothing matches.
        """
        total = len(self.rows) - self.count(_UNEXPECTED)
        if not self.count(_MATCHED):
            raise CheckpointError(f"{origin} has no tensor that fits one of the network's {total} by name and shape")
        if self.refused:
            raise CheckpointError(
                f"{origin} fills {self.count(_MATCHED)} of the network's {total} tensors: "
                f"{listed(self.refused, _SHOWN)} would stay as initialised, which has to be allowed with "
                "--allow-missing PATTERN"
            )


def match(
    theirs: Mapping[str, tuple[int, ...]],
    ours: Mapping[str, tuple[int, ...]],
    *,
    structural: Mapping[str, str] | None = None,
    allow_missing: Sequence[str] = (),
    origin: str = "the file",
) -> Comparison:
    """Compare the tensors of a file with those of a network, by name and shape.

    Parameters
    ----------
    theirs, ours : mapping of str to tuple of int
        Names and shapes.
    structural : mapping of str to str, optional
        Other names of ours (Gluon's own, as in the files it writes) to the names in `ours`.
    allow_missing : sequence of str
        Patterns, with ``*`` and ``?``, of our names that may stay as initialised.
    origin : str
        The file, for messages.

    Raises
    ------
    ConfigError
        If a pattern fits none of our names.
    CheckpointError
        If the file has two tensors for one of ours, or is a VGG-16 with batch norm.
    """
    for pattern in allow_missing:
        if not fnmatch.filter(ours, pattern):
            last = ", ".join(list(ours)[-_SHOWN:])
            raise ConfigError(f"--allow-missing must name tensors of the network such as {last}, got {pattern!r}")
    sources: dict[str, str] = {}
    unexpected: list[str] = []
    is_vgg = False
    for name in theirs:
        plain = re.sub(r"^(arg:|aux:|module\.)", "", name)  # PyTorch's DataParallel puts module. before
        released = re.sub(r"_moving_(mean|var)$", r"_running_\1", plain)
        vgg = _VGG16.get(re.sub(r"^vgg\d+_", "", plain), "")
        own = next((n for n in ((structural or {}).get(plain, ""), plain, released, vgg) if n in ours), "")
        is_vgg |= own != "" and own == vgg
        if own in sources:
            raise CheckpointError(f"{origin} has two tensors for {own}: {shown(sources[own])} and {shown(name)}")
        if own:
            sources[own] = name
        else:
            unexpected.append(name)
    normalised = [name for name in unexpected if name.endswith(("gamma", "running_mean"))]
    if is_vgg and normalised:
        raise CheckpointError(
            f"{origin} is a VGG-16 with batch norm ({shown(normalised[0])}), and only the plain one is read"
        )

    rows = []
    for own, shape in ours.items():
        source = sources.get(own, "")
        source_shape = theirs[source] if source else None
        fits = source_shape is not None and _fits(source_shape, shape)
        status = _MATCHED if fits else _MISMATCH if source else _MISSING
        rows.append(Row(status, own, shape, source, source_shape))
    rows += [Row(_UNEXPECTED, "", None, name, theirs[name]) for name in unexpected]

    classifier = ""
    impossible: tuple[str, ...] = ()
    if is_vgg:
        impossible = tuple(own for own in ours if own.startswith(("score_", "upscore")) and own not in sources)
    elif "conv6a_weight" in ours and "conv6a_weight" not in sources:
        channels = ours["conv6a_weight"][1]
        if any(_is_classifier(theirs[name], channels) for name in unexpected):
            impossible = tuple(own for own in ours if re.match(r"(conv6a|linear\d+)_", own) and own not in sources)
    if impossible:
        classifier = (
            f"{origin} is a classifier of whole images: {', '.join(impossible)} cannot be in it and stay as initialised"
        )
    left = [row.name for row in rows if row.status in (_MISSING, _MISMATCH)]
    allowed = {own for pattern in allow_missing for own in fnmatch.filter(ours, pattern)} | set(impossible)
    return Comparison(
        tuple(rows),
        tuple(name for name in left if name in allowed),
        tuple(name for name in left if name not in allowed),
        classifier,
    )


def _fits(source: tuple[int, ...], target: tuple[int, ...]) -> bool:
    """Tell whether shapes are equal, or are a dense layer and the convolution over its whole input, channels first."""
    dense = {len(source), len(target)} == {2, 4} and source[0] == target[0] and math.prod(source) == math.prod(target)
    return source == target or dense


def _is_classifier(shape: tuple[int, ...], channels: int) -> bool:
    """Tell whether a weight maps pooled features to class scores: dense, or a 1 x 1 convolution."""
    return len(shape) in (2, 4) and shape[1] == channels and math.prod(shape[2:]) == 1


# ------------------------------------------------------------------------------------------------------------- filling


def tensor_names(network: gluon.HybridBlock) -> dict[str, str]:
    """Return how the tensors of `network` are called, by Gluon's structural name, in the network's order.

    ResNet-38's have the released names (``conv1a_weight``); where Gluon numbers blocks as they are made, the structural
    name (``score_fr.weight``) is the one that means something.
    """
    parameters = network._collect_params_with_prefix()
    return {key: key if network.prefix else parameter.name for key, parameter in parameters.items()}


def compare(source: Source, network: gluon.HybridBlock, *, allow_missing: Sequence[str] = ()) -> Comparison:
    """Compare a file with an initialised network; see :func:`match`."""
    names = tensor_names(network)
    parameters = network._collect_params_with_prefix()
    return match(
        {name: array.shape for name, array in source.tensors.items()},
        {name: tuple(parameters[key].shape) for key, name in names.items()},
        structural=names,
        allow_missing=allow_missing,
        origin=str(source.path),
    )


def fill(network: gluon.HybridBlock, source: Source, comparison: Comparison) -> None:
    """Set the matched tensors of `network`.

    Parameters
    ----------
    network : HybridBlock
        Initialised; the one that `comparison` was made with.
    source : Source
        The file.
    comparison : Comparison
        From :func:`compare`.

    Raises
    ------
    CheckpointError
        If the match is refused, or a matched tensor has values that are not finite; `network` is then as it was.
    """
    comparison.check(str(source.path))
    matched = [row for row in comparison.rows if row.status == _MATCHED]
    for row in matched:
        if not np.isfinite(source.tensors[row.source]).all():
            raise CheckpointError(f"{source.path} has values in {shown(row.source)} that are not finite")
    keys = {name: key for key, name in tensor_names(network).items()}
    parameters = network._collect_params_with_prefix()
    for row in matched:
        parameter = parameters[keys[row.name]]
        parameter.set_data(mx.nd.array(source.tensors[row.source].reshape(parameter.shape)))


def import_weights(
    source: Source,
    name: str,
    num_classes: int,
    out: Path,
    *,
    label_space: LabelSpace | None = None,
    options: Mapping[str, Any] | None = None,
    allow_missing: Sequence[str] = (),
    show: Callable[[Comparison], None] = lambda comparison: None,
) -> tuple[NetworkSpec, LabelSpace | None]:
    """Write the parameters of a network that starts from a file of weights, with their sidecar.

    Parameters
    ----------
    source : Source
        From :func:`read_weights`.
    name : str
        The network, a key of ``symbols.NETWORKS``.
    num_classes : int
        Number of classes C.
    out : Path
        The ``.params`` file to write.
    label_space : LabelSpace, optional
        Meaning of the classes; by default the file's own if it has one of C classes, else the known label space of C
        classes or one of classes without names. A classifier of whole images has none.
    options : mapping, optional
        Keyword arguments of the network's constructor; a file of this program brings its own, which these override.
    allow_missing : sequence of str
        See :func:`match`.
    show : callable
        Gets the comparison before anything is refused or written.

    Returns
    -------
    spec : NetworkSpec
    label_space : LabelSpace or None
        What the sidecar states.

    Raises
    ------
    CheckpointError
        If the file is of another network or label space, or does not fill the network.
    ConfigError
        If the network cannot be built, or the label space has another number of classes.
    RunError
        If `out` cannot be written.
    """
    out = Path(out)
    if out.resolve() == source.path.resolve():
        raise ConfigError(f"out must be another file than the weights, got {out} for both")
    spec = NetworkSpec(name, num_classes, dict(options or {}))
    own = source.spec
    if own is not None:
        if own.name != name:
            raise CheckpointError(f"{source.path} holds parameters of another network: {own.name}, not {name}")
        spec = NetworkSpec(name, num_classes, {**own.options, **spec.options}, own.mean, own.std)
    network = build_network(spec, mx.cpu(), seed=SEED, classifier=True)
    space = None
    if network.stride is not None:
        theirs = source.label_space if own is not None and own.num_classes == num_classes else None
        space = label_space or theirs or find(None, num_classes)
        space.check_classes(num_classes, "the network")
        if theirs is not None and theirs.names != space.names:
            raise CheckpointError(f"{source.path} was trained for label space {theirs.name}, not {space.name}")
    elif label_space is not None:
        raise ConfigError(f"a classifier of whole images has no label space, got {label_space.name}")
    comparison = compare(source, network, allow_missing=allow_missing)
    show(comparison)
    fill(network, source, comparison)
    record = {
        "file": source.path.name,
        "sha256": source.sha256,
        "format": source.format,
        "initialised": list(comparison.initialised),
        "seed": SEED,
    }
    save_parameters(out, network, spec, space, imported=record)
    return spec, space
