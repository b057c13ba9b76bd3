"""The target's maps where the workers of a cluster make and look at them: what `target_maps` is in one process.

C classes, N images. The network's output stays on the disk, which the workers share, or is computed again.
"""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple, Sequence

import numpy as np

from cbst_mx.config import Experiment
from cbst_mx.data import ImageSet
from cbst_mx.errors import DataError
from cbst_mx.evaluation.label_free import GridStatistics
from cbst_mx.evaluation.shared import NetworkFile, SharedNetwork, in_order
from cbst_mx.files import file_digest, remove_folder
from cbst_mx.messages import Share, shares_of
from cbst_mx.rounds.workload import kept_maps, target_maps
from cbst_mx.selftrain import prior_files
from cbst_mx.selftrain.class_statistics import ImageStatistics
from cbst_mx.selftrain.counting import StreamingThresholds
from cbst_mx.selftrain.selection import Collector, Kept, collect, label
from cbst_mx.selftrain.target_maps import TargetMaps
from cbst_mx.selftrain.thresholds import Thresholds

__all__ = ["SharedMaps"]

_MOST = 16  # images of a share


class _Part(NamedTuple):
    """Some of the images, and what a worker needs to look at them."""

    experiment: Experiment
    file: NetworkFile
    images: ImageSet
    folder: Path
    prior: tuple[Path, str] | None  # its file and the SHA-256 of that

    @contextlib.contextmanager
    def maps(self, memory: Any) -> Iterator[TargetMaps]:
        """Open the maps on a worker; `memory` is what an earlier look has noted."""
        network, device = self.file.load()
        prior = None if self.prior is None else _prior(*self.prior, tuple(self.experiment.classes().names))
        opened = target_maps(self.experiment, network, self.images, folder=self.folder, ctx=device["ctx"], prior=prior)
        if memory is not None:
            opened.memory = memory
        yield opened


@functools.lru_cache(maxsize=1)
def _prior(path: Path, sha256: str, names: tuple[str, ...]) -> np.ndarray:
    if file_digest(path) != sha256:
        raise DataError(f"{path} is another file than the one of the command that asked for this")
    return prior_files.load(path, len(names), names)


class SharedMaps:
    """The target's images, as the workers of a cluster see them: ``selection.Parts``.

    Parameters
    ----------
    experiment : Experiment
        The experiment that is run.
    network : SharedNetwork
        The network that labels.
    images : ImageSet
        The target's images.
    folder : Path
        Where maps are kept on the disk; removed by :meth:`close`.
    prior : Path, optional
        File of the spatial prior.
    """

    def __init__(
        self, experiment: Experiment, network: SharedNetwork, images: ImageSet, *, folder: Path, prior: Path | None
    ):
        images = images.absolute()
        training, spec = experiment.self_training, experiment.network_spec()
        height, width = images.image(0).shape[:2]
        stride = network.stride
        self.keep, self.bytes = kept_maps(experiment, len(images), (height, width), stride=stride, shared=True)
        self._network, self._images, self._folder = network, images, folder.absolute()
        self._num_classes = spec.num_classes
        kept = training.model_copy(update={"keep_maps": self.keep})
        length = max(1, min(_MOST, len(images) // (4 * network.cluster.size)))
        self._shares = [range(at, min(at + length, len(images))) for at in range(0, len(images), length)]
        given = None if prior is None else (prior.absolute(), file_digest(prior))
        apart = experiment.model_copy(update={"self_training": kept})
        self._whole = _Part(apart, network.file, images, self._folder, given)
        self._memory: dict[Sequence[int], Any] = {}

    def __len__(self) -> int:
        return len(self._images)

    def collector(self, fidelity: str) -> Collector:
        """Return what turns the confidences into thresholds: counts, which are added up."""
        return StreamingThresholds(self._num_classes, fidelity=fidelity)

    @property
    def saturated(self) -> float | None:
        """As :attr:`.TargetMaps.saturated`."""
        counts = [pair for _, sure in self._memory.values() for pair in sure.values()]
        found, cells = (sum(column) for column in zip(*counts)) if counts else (0, 0)
        return found / cells if cells else None

    def close(self) -> None:
        """Forget all maps and remove those on the disk."""
        self._memory.clear()
        remove_folder(self._folder)

    def collected(
        self, collector: Any, statistics: ImageStatistics | None, waiting_for: Callable[[], None]
    ) -> Iterator[int]:
        """Add all images to the confidences and to the statistics, where these are wanted; see ``selection.Parts``."""
        template = None if collector is None else collector.part()
        for index, (part, seen, memory) in self._each(_collect, waiting_for, template, statistics is not None):
            self._memory[self._shares[index]] = memory
            if part is not None:
                collector.merge(part)
            if statistics is not None:
                statistics.merge(seen)
            yield len(self._shares[index])

    def labelled(
        self,
        thresholds: Sequence[Thresholds],
        write: Callable[[str, np.ndarray], None],
        waiting_for: Callable[[], None],
    ) -> Iterator[tuple[int, Kept]]:
        """Label all images; `write`, which the workers call, must be a function that can be pickled."""
        for index, kept in self._each(_select, waiting_for, thresholds, write):
            yield len(self._shares[index]), kept

    def _each(
        self, function: Callable[..., Any], waiting_for: Callable[[], None], *arguments: Any
    ) -> Iterator[tuple[int, Any]]:
        def share(indices: Sequence[int]) -> Share:
            part = self._whole._replace(images=self._images.subset(indices))
            memory = self._memory.get(indices)  # of the whole share: an image by itself is looked at anew
            return Share((part, memory, *arguments), part.images.names, part.images.image_paths[0])

        return in_order(self._network.cluster.each(function, shares_of(share, self._shares), waiting_for=waiting_for))


def _collect(
    part: _Part, memory: Any, template: StreamingThresholds | None, with_statistics: bool
) -> tuple[StreamingThresholds | None, GridStatistics | None, Any]:
    """Return the counts of some images, their statistics, and what is kept of their maps; on a worker."""
    space = part.experiment.classes()
    counts = None if template is None else template.part()
    statistics = GridStatistics(space.num_classes, space.names) if with_statistics else None
    with part.maps(memory) as maps:
        for name, view in maps:
            if counts is not None:
                collect(name, view, counts, statistics)
            elif statistics is not None:
                statistics.add_pixels(name, *view.confidence)
        return counts, statistics, maps.memory


def _select(
    part: _Part, memory: Any, thresholds: Sequence[Thresholds], write: Callable[[str, np.ndarray], None]
) -> Kept:
    """Label some images, and return what is kept; on a worker."""
    with part.maps(memory) as maps:
        return label(maps, thresholds, write)
