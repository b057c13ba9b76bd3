"""Which tensor of a file of weights belongs to which of a network, by names and shapes alone.

Both networks have the names that were published with them. A file of another program calls the same tensors
otherwise; one function per network knows how (:func:`_find_resnet38`, :func:`_find_fcn8s`), and what such a file cannot
have because it is a classifier of whole images.
"""

from __future__ import annotations

import fnmatch
import math
import re
from dataclasses import dataclass
from typing import Callable, Mapping, NamedTuple, Sequence, Tuple

from cbst_mx.errors import CheckpointError, ConfigError
from cbst_mx.messages import listed
from cbst_mx.networks.torch_files import LONGEST_NAME
from symbols.vgg16 import STAGES

__all__ = ["Comparison", "Row", "match", "shown"]

Shapes = Mapping[str, Tuple[int, ...]]
_SHOWN = 3
_MATCHED, _MISSING, _MISMATCH, _UNEXPECTED = "matched", "missing", "shape mismatch", "unexpected"


@dataclass(frozen=True)
class Row:
    """One tensor of the network, of the file, or of both.

    Attributes
    ----------
    status : {"matched", "missing", "shape mismatch", "unexpected"}
    name, shape
        Name and shape in the network; empty and None where it has no place for the tensor.
    source, source_shape
        Name and shape in the file; empty and None where it has none.
    """

    status: str
    name: str
    shape: tuple[int, ...] | None
    source: str
    source_shape: tuple[int, ...] | None


@dataclass(frozen=True)
class Comparison:
    """Tensors of a file beside those of a network.

    Attributes
    ----------
    rows : tuple of Row
        The network's tensors in its order, then the unexpected ones in the file's order.
    initialised : tuple of str
        The network's tensors that stay as initialised and may.
    refused : tuple of str
        The network's tensors that would stay as initialised but may not.
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
    find = _find_resnet38 if "conv1a_weight" in ours else _find_fcn8s
    found = find(theirs, ours, structural or {}, origin)
    rows = []
    for own, shape in ours.items():
        source = found.sources.get(own, "")
        source_shape = theirs[source] if source else None
        fits = source_shape is not None and _fits(source_shape, shape)
        status = _MATCHED if fits else _MISMATCH if source else _MISSING
        rows.append(Row(status, own, shape, source, source_shape))
    rows += [Row(_UNEXPECTED, "", None, name, theirs[name]) for name in found.unexpected]
    classifier = ""
    if found.impossible:
        classifier = (
            f"{origin} is a classifier of whole images: {', '.join(found.impossible)} cannot be in it and stay as "
            "initialised"
        )
    left = [row.name for row in rows if row.status in (_MISSING, _MISMATCH)]
    allowed = {own for pattern in allow_missing for own in fnmatch.filter(ours, pattern)} | set(found.impossible)
    return Comparison(
        tuple(rows),
        tuple(name for name in left if name in allowed),
        tuple(name for name in left if name not in allowed),
        classifier,
    )


class _Found(NamedTuple):
    """Places of a file's tensors.

    Attributes
    ----------
    sources : dict of str to str
        The file's name by the network's.
    unexpected : list of str
        Names of the file that the network has no place for.
    impossible : tuple of str
        Names of the network that a file of this kind cannot have.
    """

    sources: dict[str, str]
    unexpected: list[str]
    impossible: tuple[str, ...] = ()


def _find_resnet38(theirs: Shapes, ours: Shapes, structural: Mapping[str, str], origin: str) -> _Found:
    """Place the tensors of a released ResNet-38: our names, but for ``moving`` in place of Gluon's ``running``.

    A file without conv6a but with a weight from pooled features to class scores was trained on whole images.
    """
    found = _find(theirs, ours, structural, origin, lambda name: re.sub(r"_moving_(mean|var)$", r"_running_\1", name))
    if "conv6a_weight" not in ours or "conv6a_weight" in found.sources:
        return found
    channels = ours["conv6a_weight"][1]
    if not any(_is_classifier(theirs[name], channels) for name in found.unexpected):
        return found
    head = (own for own in ours if re.match(r"(conv6a|linear\d+)_", own))
    return found._replace(impossible=tuple(own for own in head if own not in found.sources))


def _find_fcn8s(theirs: Shapes, ours: Shapes, structural: Mapping[str, str], origin: str) -> _Found:
    """Place the tensors of a VGG-16, whose stages and first two dense layers are those of FCN8s.

    Where one of them came by its name in VGG-16, the file is a classifier of whole images: it has no scores per pixel
    and no upsampling.
    """
    found = _find(theirs, ours, structural, origin, _vgg16_place)
    if not any(_vgg16_place(_plain(source)) == own for own, source in found.sources.items()):
        return found
    normalised = [name for name in found.unexpected if name.endswith(("gamma", "running_mean"))]
    if normalised:
        raise CheckpointError(
            f"{origin} is a VGG-16 with batch norm ({shown(normalised[0])}), and only the plain one is read"
        )
    head = (own for own in ours if own.startswith(("score_", "upscore")))
    return found._replace(impossible=tuple(own for own in head if own not in found.sources))


def _find(
    theirs: Shapes, ours: Shapes, structural: Mapping[str, str], origin: str, place: Callable[[str], str]
) -> _Found:
    """Place every tensor of a file: by Gluon's structural name, by our name, or where `place` says."""
    found = _Found({}, [])
    for name in theirs:
        plain = _plain(name)
        own = next((n for n in (structural.get(plain, ""), plain, place(plain)) if n in ours), "")
        if own in found.sources:
            raise CheckpointError(f"{origin} has two tensors for {own}: {shown(found.sources[own])} and {shown(name)}")
        if own:
            found.sources[own] = name
        else:
            found.unexpected.append(name)
    return found


def _plain(name: str) -> str:
    """Return a tensor's name without what containers put before it; PyTorch's DataParallel puts ``module.``."""
    return re.sub(r"^(arg:|aux:|module\.)", "", name)


def _vgg16_place(name: str) -> str:
    """Return what a tensor of VGG-16 is called in FCN8s, or an empty string."""
    return _VGG16.get(re.sub(r"^vgg\d+_", "", name), "")


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


_VGG16 = _vgg16_names()


def _fits(source: tuple[int, ...], target: tuple[int, ...]) -> bool:
    """Tell whether shapes are equal, or are a dense layer and the convolution over its whole input, channels first."""
    dense = {len(source), len(target)} == {2, 4} and source[0] == target[0] and math.prod(source) == math.prod(target)
    return source == target or dense


def _is_classifier(shape: tuple[int, ...], channels: int) -> bool:
    """Tell whether a weight maps pooled features to class scores: dense, or a 1 x 1 convolution."""
    return len(shape) in (2, 4) and shape[1] == channels and math.prod(shape[2:]) == 1


def shown(name: str) -> str:
    """Return the name of a tensor as a terminal may get it: one that a file made up may hold anything."""
    return name if name.isprintable() and len(name) <= LONGEST_NAME else repr(name[:LONGEST_NAME])
