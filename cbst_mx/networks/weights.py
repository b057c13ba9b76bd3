"""Weights from the formats people have, turned into parameter files of our networks.

What is read, told apart by content and not by the file's ending:

* MXNet ``.params``: the released ResNet-38 files (``arg:bn2a_branch2a_gamma``, ``aux:..._moving_mean``), VGG-16 of
  Gluon's model zoo (``features.0.weight`` or ``vgg0_conv0_weight``), and what this program or Gluon wrote;
* PyTorch ``.pth`` of torchvision's VGG-16 (:mod:`.torch_files`), without PyTorch.

Reading gives names and arrays; comparing (:mod:`.matching`) gives a row per tensor and changes nothing; only then is
a network filled.
A file of another program does not say which images it was trained on: that is stated with it, by default RGB in [0, 1]
normalised by the ImageNet mean and std, and compared with what the weights tell (:mod:`.inputs`).

A tensor of ours that the file does not fill keeps the network's own initialisation, from seed `SEED`. That is refused
unless the user allows it by name, or the file cannot have the tensor: a classifier of whole images has no classifier
of pixels. Tensors of the file that we have no place for are reported and left out; a file none of whose tensors fits
is refused.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

import numpy as np

from cbst_mx.errors import CheckpointError, ConfigError
from cbst_mx.files import file_digest, open_file, reading
from cbst_mx.label_space import LabelSpace, find
from cbst_mx.messages import listed
from cbst_mx.networks.build import build_network
from cbst_mx.networks.inputs import InputForm, Told, first_convolution, slow_branches, tell_input, turn_to_rgb
from cbst_mx.networks.matching import Comparison, match, shown
from cbst_mx.networks.parameters import check_unaltered, load_arrays, save_parameters
from cbst_mx.networks.sidecars import read_sidecar, sidecar_path
from cbst_mx.networks.spec import NetworkSpec
from cbst_mx.networks.torch_files import looks_like_torch, read_torch
from symbols.backend import gluon, mx

__all__ = [
    "SEED",
    "Source",
    "compare",
    "fill",
    "import_weights",
    "keep_classes",
    "read_weights",
    "tensor_names",
]

SEED = 0
ZOO_FILE = "vgg16-e660d456.params"
ZOO_SHA1 = "e660d4569ccb679ec68f1fd3cce07a387252a90a"

# Names of layers with a row per class: ResNet-38's, as released and as Gluon counts blocks, and FCN8s's.
_CLASS_LAYER = re.compile(r"(^|[.:])(linear\d+_|head\.4\.|score_|upscore)")
_PARAMS_MAGIC = 0x112  # the first eight bytes of MXNet's .params, little-endian


# ------------------------------------------------------------------------------------------------------------ reading


@dataclass(frozen=True, eq=False)  # arrays have no truth value
class Source:
    """A file of weights.

    Attributes
    ----------
    path : Path
        The file.
    format : str
        Name of its format, for messages and the sidecar.
    sha256 : str
        SHA-256 of the file.
    tensors : dict of str to ndarray, float32
        Its tensors by the file's own names.
    spec, label_space
        Network and classes from its sidecar, for files of this program; else None.
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
        with open_file(path) as stream:
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
    with reading(f"weights {path}", CheckpointError):
        digest = file_digest(path, "sha1")
    if digest != ZOO_SHA1:
        raise CheckpointError(f"zoo:vgg16 must have SHA-1 {ZOO_SHA1}, but {path} has {digest}: damaged or another file")
    return path


def keep_classes(source: Source, theirs: LabelSpace, ours: LabelSpace) -> Source:
    """Return a file's weights with those of its classes that a network of fewer classes has, in its order.

    The layers of one row per class (``linear19_*`` of ResNet-38, ``score_*`` and ``upscore*`` of FCN8s) are cut to the
    classes of `ours`, by their names; all other tensors stay.

    Parameters
    ----------
    source : Source
        Result of :func:`read_weights`.
    theirs : LabelSpace
        Classes of the file.
    ours : LabelSpace
        Classes of the network, all among those of the file.

    Raises
    ------
    ConfigError
        If a class of the network is none of the file's.
    CheckpointError
        If the file's sidecar names other classes, or it has no layer of as many classes.
    """
    missing = [name for name in ours.names if name not in theirs.names]
    if missing:
        raise ConfigError(
            f"classes of {ours.name} must be among those of the file, {theirs.name}, got {listed(missing)}"
        )
    if source.label_space is not None and source.label_space.names != theirs.names:
        raise CheckpointError(f"{source.path} was trained for label space {source.label_space.name}, not {theirs.name}")
    kept = [theirs.names.index(name) for name in ours.names]
    tensors, cut = {}, 0
    for name, array in source.tensors.items():
        layer = _CLASS_LAYER.search(name)
        if layer is not None and array.shape[:1] == (theirs.num_classes,):
            array = array[kept][:, kept] if layer[2] == "upscore" else array[kept]
            name = name.replace(f"linear{theirs.num_classes}_", f"linear{ours.num_classes}_")
            cut += 1
        tensors[name] = array
    if not cut:
        raise CheckpointError(f"{source.path} has no layer of {theirs.num_classes} classes, those of {theirs.name}")
    return dataclasses.replace(source, tensors=tensors, label_space=None)


# ------------------------------------------------------------------------------------------------------------- filling


def tensor_names(network: gluon.HybridBlock) -> dict[str, str]:
    """Return how the tensors of `network` are called, by Gluon's structural name, in the network's order.

    ResNet-38's have the released names (``conv1a_weight``); where Gluon numbers blocks as they are made, the structural
    name (``score_fr.weight``) is the one that means something.
    """
    parameters = network._collect_params_with_prefix()
    return {key: key if network.prefix else parameter.name for key, parameter in parameters.items()}


def compare(source: Source, network: gluon.HybridBlock, *, allow_missing: Sequence[str] = ()) -> Comparison:
    """Compare a file with an initialised network; see :func:`.matching.match`."""
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
        Result of :func:`compare`.

    Raises
    ------
    CheckpointError
        If the match is refused, or a matched tensor has values that are not finite; `network` is then as it was.
    """
    comparison.check(str(source.path))
    matched = [row for row in comparison.rows if row.status == "matched"]
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
    form: InputForm | None = None,
    show: Callable[[Comparison], None] = lambda comparison: None,
    look: Callable[[Told], None] = lambda told: None,
    warn: Callable[[str], None] = lambda sentence: None,
) -> tuple[NetworkSpec, LabelSpace | None]:
    """Write the parameters of a network that starts from a file of weights, with their sidecar.

    Parameters
    ----------
    source : Source
        Result of :func:`read_weights`.
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
        See :func:`.matching.match`.
    form : InputForm, optional
        Images that the file was trained on; by default RGB, normalised. A file of this program says it itself. The
        network written takes RGB: a first layer for BGR is turned.
    show : callable
        Gets the comparison before anything is refused or written.
    look : callable
        Gets what the weights of a file of another program tell of these images (:func:`.inputs.contradictions`).
    warn : callable
        Gets a sentence where a branch of FCN8s cannot learn (:func:`.inputs.slow_branches`).

    Returns
    -------
    spec : NetworkSpec
        Description of the network, as in the sidecar.
    label_space : LabelSpace or None
        Its classes, as in the sidecar.

    Raises
    ------
    CheckpointError
        If the file is of another network or label space, or does not fill the network.
    ConfigError
        If the network cannot be built, the label space has another number of classes, or `form` is given for a file of
        this program.
    RunError
        If `out` cannot be written.
    """
    out = Path(out)
    if out.resolve() == source.path.resolve():
        raise ConfigError(f"out must be another file than the weights, got {out} for both")
    own = source.spec
    stated = form or InputForm()
    spec = NetworkSpec(name, num_classes, dict(options or {}), *stated.normalisation())
    if own is not None:
        if own.name != name:
            raise CheckpointError(f"{source.path} holds parameters of another network: {own.name}, not {name}")
        if form is not None:
            raise ConfigError(
                f"channels, range, mean and std must be left out for {source.path}: its sidecar says {own.input_text()}"
            )
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
    if own is None:
        _take_input(network, comparison, stated, look)
        if name == "fcn8s":
            for sentence in slow_branches(network, spec.std):
                warn(sentence)
    record = {
        "file": source.path.name,
        "sha256": source.sha256,
        "format": source.format,
        "initialised": list(comparison.initialised),
        "seed": SEED,
        **({} if own is not None else {"input": stated.to_json()}),
    }
    save_parameters(out, network, spec, space, imported=record)
    return spec, space


def _take_input(
    network: gluon.HybridBlock, comparison: Comparison, form: InputForm, look: Callable[[Told], None]
) -> None:
    """Turn the first layer to RGB where the file's is for BGR, and pass on what the weights tell."""
    first = tensor_names(network)[first_convolution(network)[0]]
    if not any(row.name == first and row.status == "matched" for row in comparison.rows):
        look(Told(None, None, {}))  # random weights have neither order nor range
        return
    if form.channels == "bgr":
        turn_to_rgb(network)
    look(tell_input(network))
