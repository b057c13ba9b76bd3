"""A network that other processes load from its file, to run it on a part of the images each.

N images. What comes back of an image is what one process would have computed: batches are cut where that one cuts them,
and results are put together in the order of the images.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, NamedTuple, Sequence, TypeVar

import numpy as np

from cbst_mx.data import ImageSet
from cbst_mx.data.image_files import read_header
from cbst_mx.errors import CheckpointError
from cbst_mx.evaluation.predictor import choose_form
from cbst_mx.evaluation.shown import Shown, Shows
from cbst_mx.files import file_digest
from cbst_mx.messages import Counter, Share, Shares, shares_of, silent
from cbst_mx.networks.devices import parse_context, set_precision
from cbst_mx.networks.parameters import load_network
from cbst_mx.selftrain.network_maps import fitting_batch

__all__ = ["Apart", "NetworkFile", "SharedNetwork", "cut", "in_order", "loaded_once"]

T = TypeVar("T")

_MOST = 16  # images of a share


class NetworkFile(NamedTuple):
    """A network as it travels to another process.

    Attributes
    ----------
    path : Path
        The ``.params`` file.
    sha256 : str
        Of its content.
    ctx : str
        Device of the process that loads it.
    amp : str
        As for :func:`.devices.set_precision`.
    form : dict, optional
        Keyword arguments of :func:`.predictor.choose_form`, where it is run in another form.
    """

    path: Path
    sha256: str
    ctx: str
    amp: str = "none"
    form: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, path: Path, ctx: str, *, amp: str = "none", form: Mapping[str, Any] | None = None) -> NetworkFile:
        """Return the network of a file that is there."""
        given = {key: one.absolute() if isinstance(one, ImageSet) else one for key, one in (form or {}).items()}
        return cls(path.absolute(), file_digest(path), ctx, amp, None if form is None else given)

    def load(self) -> tuple[Any, dict[str, Any]]:
        """Return the network, and its context as an option; the one that was loaded last is kept.

        Raises
        ------
        CheckpointError
            If the file is not the one that was meant.
        """
        return loaded_once(self, self.path, self.sha256, self._load)

    def _load(self) -> tuple[Any, dict[str, Any]]:
        context = parse_context(self.ctx)
        set_precision(self.amp, [context])
        network, spec, _ = load_network(self.path, context)
        if self.form is not None:
            network, _ = choose_form(network, spec, ctx=context, **self.form)
        return network, {"ctx": context}


_loaded: dict[str, Any] = {}


def loaded_once(what: Any, path: Path, sha256: str, load: Callable[[], T]) -> T:
    """Return what `load` makes of a parameter file; what was made last is kept, and given again for the same `what`.

    Raises
    ------
    CheckpointError
        If the file is not the one that was meant.
    """
    key = described(what)
    if key not in _loaded:
        if file_digest(path) != sha256:
            raise CheckpointError(f"{path} is another file than the one of the command that asked for this")
        _loaded.clear()
        _loaded[key] = load()
    found: T = _loaded[key]
    return found


def described(value: Any) -> str:
    """Return what tells apart the arguments with which a worker loads a network; image sets by their files."""
    if isinstance(value, ImageSet):
        return repr(value.image_paths)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {described(one)}" for key, one in sorted(value.items())) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(described, value)) + "]"
    return repr(value)


@dataclass(frozen=True)
class SharedNetwork:
    """A network that the workers of a cluster run; stands where functions take a network.

    Attributes
    ----------
    file : NetworkFile
        The network.
    cluster : Shares
        Who runs it.
    stride : int
        Pixels of an image per logit.
    """

    file: NetworkFile
    cluster: Shares
    stride: int

    def run(
        self,
        function: Callable[..., Any],
        images: ImageSet,
        batch_size: int | None,
        options: Mapping[str, Any],
        progress: Counter = silent,
    ) -> Iterator[tuple[list[int], Any]]:
        """Call ``function(file, part of images, indices, N, batch_size, options)`` for all images.

        Parameters
        ----------
        function : callable
            Of a module.
        images : ImageSet
            The images.
        batch_size : int or None
            Images per forward pass at most; None: as :func:`.network_maps.fitting_batch` says.
        options : mapping
            What else it needs; a device's context among them stays here.
        progress : callable
            Called with (images done, N), and twice a second while nothing comes; it may raise to end the work.

        Yields
        ------
        indices : list of int
            Of the images, in order.
        result : object
        """
        kept = {key: value for key, value in options.items() if key != "ctx"}
        on_cpu = not self.file.ctx.startswith("gpu")
        images, parts = images.absolute(), cut(images, batch_size, self.cluster.size, on_cpu=on_cpu, **kept)

        def share(part: Sequence[int]) -> Share:
            given = (function, self.file, images.subset(part), part, len(images), batch_size, kept)
            return Share(given, [images.names[index] for index in part], images.image_paths[part[0]])

        done = 0
        found = self.cluster.each(_call, shares_of(share, parts), waiting_for=lambda: progress(done, len(images)))
        for index, result in in_order(found):
            yield parts[index], result
            done = parts[index][-1] + 1
            progress(done, len(images))


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


def in_order(results: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    """Yield numbered results in the order of their numbers, each as soon as those before it are there."""
    early: dict[int, Any] = {}
    following = 0
    for index, result in results:
        early[index] = result
        while following in early:
            yield following, early.pop(following)
            following += 1


def cut(
    images: ImageSet,
    batch_size: int | None,
    workers: int,
    *,
    on_cpu: bool = True,
    scales: Sequence[float] = (1.0,),
    long_side: int | None = None,
    **_: Any,
) -> list[list[int]]:
    """Return the images in shares of whole batches: neighbours of equal size, as `network_maps` makes batches.

    Parameters
    ----------
    images : ImageSet
        The images; where they make a difference their headers are read.
    batch_size : int or None
        Images per forward pass at most; None: as :func:`.network_maps.fitting_batch` says.
    workers : int
        Who will share them: each gets several shares, so that all end at about the same time.
    on_cpu, scales, long_side
        As for :func:`.network_maps.fitting_batch`; what else is done with the images may be given, too.

    Returns
    -------
    list of list of int
        Indices, in order.
    """
    length = max(1, min(_MOST, len(images) // (4 * workers)))
    alone = batch_size == 1 or batch_size is None and not on_cpu
    batches: list[list[int]] = []
    before, most = None, batch_size or 1
    for index in range(len(images)):
        size = None if alone else _size(images, index)
        if size is not None and size != before and batch_size is None:
            most = fitting_batch(size, on_cpu=on_cpu, scales=scales, long_side=long_side)
        if not batches or len(batches[-1]) == most or size != before:
            batches.append([])
        batches[-1].append(index)
        before = size
    length = max([length, *map(len, batches)])
    shares: list[list[int]] = []
    for batch in batches:
        if not shares or len(shares[-1]) + len(batch) > length:
            shares.append([])
        shares[-1] += batch
    return shares


def _size(images: ImageSet, index: int) -> tuple[int, int]:
    """Return height and width of an image as the set gives it, by the header of its file."""
    header = read_header(images.image_paths[index])
    turned = getattr(images, "turns", None) is not None and images.turns[index] >= 5  # type: ignore[attr-defined]
    return (header.width, header.height) if turned else (header.height, header.width)


class Apart:
    """Takes the place of `Shows` on a worker: what is shown of each image by itself, to be added up in order.

    Parameters
    ----------
    indices : sequence of int
        Of the images, in the whole set.
    count : int
        N.
    """

    def __init__(self, indices: Sequence[int], count: int) -> None:
        self._indices, self._count = indices, count
        self.found: list[Shown] = []

    def add(
        self, index: int, name: str, confidence: np.ndarray, predicted: np.ndarray, truth: np.ndarray | None = None
    ) -> None:
        """Add an image of the part, as :meth:`.Shows.add` does."""
        shows = Shows(self._count)
        shows.add(self._indices[index], name, confidence, predicted, truth)
        self.found.append(shows.shown)
