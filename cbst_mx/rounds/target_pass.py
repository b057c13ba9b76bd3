"""A network over the target's images: the pass that makes a round's pseudo-labels, and one that only looks.

Both leave what the network predicts (statistics per image, a grid of predicted classes), from which the guard judges
it. The second is for the network of the last round, after which there is no other pass; with the spatial prior, where
the rounds have one, so that its numbers are theirs.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from pathlib import Path
from typing import Any, Callable, Mapping

import numpy as np

from cbst_mx.config import Experiment
from cbst_mx.data import ImageSet
from cbst_mx.data.image_files import write_label_png
from cbst_mx.evaluation.label_free import GridStatistics
from cbst_mx.evaluation.shared import SharedNetwork
from cbst_mx.files import atomic_folder, write_json
from cbst_mx.messages import DETAIL, Progress, silent
from cbst_mx.rounds.shared_maps import SharedMaps
from cbst_mx.rounds.workload import target_maps
from cbst_mx.run_dir import StageDir
from cbst_mx.selftrain.portion import portion
from cbst_mx.selftrain.selection import label_set, parts_of, remarks
from symbols.backend import gluon, mx

__all__ = ["label_target", "look_at_target"]

logger = logging.getLogger(__name__)


def label_target(
    experiment: Experiment,
    network: gluon.HybridBlock | SharedNetwork,
    target: ImageSet,
    stage: StageDir,
    index: int,
    *,
    ctx: mx.Context,
    title: str,
    prior: np.ndarray | Path | None = None,
    limit: Callable[[np.ndarray], Mapping[int, float]] | None = None,
    progress: Progress = silent,
) -> None:
    """Make the pseudo-labels of round `index`, and write them, the statistics and, last, the record.

    Parameters
    ----------
    experiment : Experiment
        The experiment that is run.
    network : HybridBlock or SharedNetwork
        The network of the round before.
    target : ImageSet
        The target's images.
    stage : StageDir
        The round's folder.
    index : int
        Round, 1 is the first.
    ctx : mx.Context
        Device.
    title : str
        Name of the round, for log and progress.
    prior : ndarray of shape (C, h, w), float32, or Path, optional
        Spatial prior q_n(c); its file for a SharedNetwork.
    limit : callable, optional
        As for :func:`.label_set`.
    progress : callable
        Called with (what, done, in all).

    Raises
    ------
    NotFiniteError
        If the network gives NaN or infinity.
    DataError
        If an image cannot be used.
    """
    training, space = experiment.self_training, experiment.classes()
    p = portion(index, **training.portion.model_dump(), fidelity=training.fidelity)
    what = f"{title}: pseudo-labels"
    opened = _open(experiment, network, target, stage, ctx, prior)
    statistics = GridStatistics(space.num_classes, space.names)
    with contextlib.closing(opened) as maps, atomic_folder(stage.pseudo_labels, durable=True) as folder:
        size = maps.bytes / 1e6
        logger.info("%s: %.0f MB of network output, kept by: %s", what, size, maps.keep, extra=DETAIL)
        labelling = label_set(
            maps,
            maps.collector(training.fidelity),
            policy=training.policy,
            portion=p,
            write=functools.partial(_write, folder.absolute(), space),
            what=what,
            statistics=statistics,
            progress=progress,
            limit=limit,
        )
        saturated = maps.saturated
    statistics.save_grid(stage.target_predictions, saturated=saturated)
    statistics.save(stage.image_statistics)
    record = labelling.to_json(space.names, method=training.method, predicted=statistics.total())
    write_json(stage.thresholds, record)
    told = {"result": {"kind": "pseudo-labels", "portion": p, "kept_portion": labelling.kept_portion}}
    logger.info("%s: p = %.2f, %.1f %% of the pixels kept", title, p, 100 * labelling.kept_portion, extra=told)
    for sentence in () if experiment.smoke else remarks(labelling, statistics.total()):
        logger.warning("%s: %s", title, sentence)


def _open(
    experiment: Experiment,
    network: gluon.HybridBlock | SharedNetwork,
    target: ImageSet,
    stage: StageDir,
    ctx: mx.Context,
    prior: np.ndarray | Path | None,
) -> Any:
    """Open the target's maps, in this process or on a cluster."""
    if isinstance(network, SharedNetwork):
        assert not isinstance(prior, np.ndarray), "files travel as paths"
        return SharedMaps(experiment, network, target, folder=stage.maps, prior=prior)
    assert not isinstance(prior, Path)
    return target_maps(experiment, network, target, folder=stage.maps, ctx=ctx, prior=prior)


def _write(folder: Path, space: Any, name: str, label: np.ndarray) -> None:
    """Write a pseudo-label; on a worker too."""
    write_label_png(folder / f"{name}.png", label, space)


def look_at_target(
    experiment: Experiment,
    network: gluon.HybridBlock | SharedNetwork,
    target: ImageSet,
    stage: StageDir,
    *,
    ctx: mx.Context,
    title: str,
    prior: np.ndarray | Path | None = None,
    progress: Progress = silent,
) -> None:
    """Predict the target's images as :func:`label_target` does, and write the statistics, but no pseudo-labels.

    Parameters
    ----------
    experiment, network, target, stage, ctx, title, prior, progress
        As for :func:`label_target`.
    """
    space = experiment.classes()
    statistics = GridStatistics(space.num_classes, space.names)
    once = experiment.model_copy(
        update={"self_training": experiment.self_training.model_copy(update={"keep_maps": "recompute"})}
    )
    done = 0

    def tell(more: int = 0) -> None:
        nonlocal done
        done += more
        progress(f"{title}: last look at target", done, len(target))

    with contextlib.closing(_open(once, network, target, stage, ctx, prior)) as maps:
        for more in parts_of(maps).collected(None, statistics, tell):
            tell(more)
        saturated = maps.saturated
    statistics.save_grid(stage.target_predictions, saturated=saturated)
    statistics.save(stage.image_statistics)
