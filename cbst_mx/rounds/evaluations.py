"""Networks of a run on its validation sets and on the target's images, and the source network at several epochs.

What is written into a stage's folder is the same for the network of a stage and for a snapshot of the source training.
"""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np

from cbst_mx.config import Experiment
from cbst_mx.data import ImageSet, LabelledImageSet
from cbst_mx.errors import DataError
from cbst_mx.evaluation import confusion, protocols
from cbst_mx.evaluation.evaluate import evaluate_network
from cbst_mx.evaluation.label_free import predict_set
from cbst_mx.evaluation.run_experiment import find_runs
from cbst_mx.evaluation.run_results import RunResults
from cbst_mx.evaluation.shown import TARGET, Shown, Shows, chosen_images, save_shown
from cbst_mx.files import write_json
from cbst_mx.messages import Progress, silent, stage_title
from cbst_mx.networks.devices import parse_context
from cbst_mx.networks.parameters import load_network, save_parameters
from cbst_mx.rounds.record import Record
from cbst_mx.rounds.workload import prediction_options
from cbst_mx.run_dir import RunDir, StageDir
from cbst_mx.run_dir.steps import EVALUATION
from cbst_mx.selftrain.portion import iterations_of_epochs
from symbols.backend import gluon, mx

__all__ = ["evaluate", "evaluate_snapshots", "observe", "predict_shown", "snapshot_options"]

logger = logging.getLogger(__name__)


def evaluate(
    experiment: Experiment,
    network: gluon.HybridBlock,
    sets: Mapping[str, LabelledImageSet],
    stage: StageDir,
    *,
    ctx: mx.Context,
    title: str,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Evaluate a network on validation sets, and write confusion matrices and results into its folder.

    Parameters
    ----------
    experiment : Experiment
        The experiment that is run.
    network : HybridBlock
        The network of a stage.
    sets : mapping
        Name to images with labels.
    stage : StageDir
        Where to write; nothing but empty results without a set.
    ctx : mx.Context
        Device.
    title : str
        Name of the stage, for log and progress.
    progress : callable
        Called with (what, images done, images in all).

    Returns
    -------
    dict
        By set: IoU per class and mIoU over the network's classes, as ``confusion.summary`` gives them. The matrices
        are over the classes of the labels, which may be more.

    Raises
    ------
    DataError
        If an image cannot be used, or no pixel of a set counts.
    """
    space, options = experiment.classes(), prediction_options(experiment, ctx)
    arrays: dict[str, np.ndarray] = {}
    results: dict[str, Any] = {}
    shown: dict[str, Shown] = {}
    for name, images in sets.items():
        shows = Shows(len(images))
        bar = functools.partial(progress, f"{title}: evaluation on {name}")
        counts = evaluate_network(network, images, classes=space.names, progress=bar, shows=shows, **options)
        matrices = protocols.ImageMatrices(images.label_space.names, images.names, counts)
        arrays.update(matrices.arrays(name))
        shown[name] = shows.shown
        try:
            narrow = protocols.narrow(matrices, space.names).counts
            results[name] = confusion.summary(narrow.sum(axis=0), space)
        except DataError as error:
            raise DataError(f"validation set {name} cannot be evaluated: {error}") from error
        told = {"result": {"kind": "evaluation", "set": name, **results[name]}}
        logger.info("%s: mIoU on %s %.1f %%", title, name, 100 * results[name]["miou"], extra=told)
    if sets:
        stage.save_confusion(arrays)
        save_shown(stage.shown, shown)
    write_json(stage.evaluation, results)
    return results


def observe(
    experiment: Experiment,
    network: gluon.HybridBlock,
    images: ImageSet,
    stage: StageDir,
    *,
    before: StageDir | None = None,
    source: StageDir | None = None,
    show: bool = True,
    ctx: mx.Context,
    title: str,
    progress: Progress = silent,
) -> None:
    """Predict images without labels as :func:`evaluate` does those of a validation set, and write what can be said.

    Parameters
    ----------
    experiment, network, stage, ctx, title, progress
        As for :func:`evaluate`.
    images : ImageSet
        The target's images.
    before, source : StageDir, optional
        Folders of the stage before and of the source network, of which it is told how many pixels have moved.
    show : bool
        Whether to keep what reports show; not where :func:`evaluate` keeps it, of the validation sets.
    """
    bar = functools.partial(progress, f"{title}: predictions of the target")
    shows, names = Shows(len(images)), experiment.classes().names
    options = prediction_options(experiment, ctx)
    seen = predict_set(network, images, classes=names, progress=bar, shows=shows, **options)
    record = seen.summary(*(None if other is None else other.predictions for other in (before, source)))
    seen.save_grid(stage.predictions)
    if show:
        save_shown(stage.shown, {TARGET: shows.shown})
    write_json(stage.label_free, record)
    told = {key: record[key] for key in ("mean_confidence", "moved", "moved_since_source")}
    extra = {"result": {"kind": "predictions of the target", **told}}
    logger.info("%s: mean confidence %.3f", title, record["mean_confidence"], extra=extra)
    if record["moved"] is not None:
        logger.info("%s: %.1f %% of the pixels moved", title, 100 * record["moved"])


def predict_shown(
    folders: Sequence[Path], *, ctx: str = "cpu", data_root: Path | None = None, progress: Progress = silent
) -> dict[Path, dict[int, dict[str, Shown]]]:
    """Predict what reports show, for runs of earlier versions, which have not kept it; nothing is written.

    Parameters
    ----------
    folders : sequence of Path
        Each a run folder, or a folder of runs.
    ctx : str
        Device.
    data_root : Path, optional
        Folder that relative data roots are in, instead of the one in ``CBST_DATA``.
    progress : callable
        Called with (what, images done, images in all).

    Returns
    -------
    dict
        Run folder, stage and validation set to what is shown of its network, counted on the shown images only.

    Raises
    ------
    CBSTError
        If a run, its images or parameters cannot be used.
    """
    device, found = parse_context(ctx), {}
    for path in dict.fromkeys(run.absolute() for folder in folders for run in find_runs(folder)):
        run = RunResults(path)
        experiment, folder = run.settings, run.folder
        missing = [
            stage for stage in run.evaluated if not run.shown(stage) and folder.stage(stage).parameters.is_file()
        ]
        sets = experiment.open_validation(data_root) if missing and run.leading else {}
        found[path] = {stage: _predict_stage(experiment, folder, stage, sets, device, progress) for stage in missing}
    return found


def _predict_stage(
    experiment: Experiment,
    folder: RunDir,
    stage: int,
    sets: Mapping[str, LabelledImageSet],
    device: mx.Context,
    progress: Progress,
) -> dict[str, Shown]:
    network, _, _ = load_network(folder.stage(stage).parameters, device)
    found = {}
    for name, images in sets.items():
        some = images.subset(chosen_images(len(images)))
        shows = Shows(len(some))
        bar = functools.partial(progress, f"{experiment.name}, {stage_title(stage)}: pictures of {name}")
        options = prediction_options(experiment, device)
        evaluate_network(network, some, classes=experiment.classes().names, progress=bar, shows=shows, **options)
        found[name] = shows.shown
    return found


def snapshot_options(
    experiment: Experiment, network: gluon.HybridBlock, folder: RunDir, *, images: int
) -> dict[str, Any]:
    """Return the options of the source training that keep its network every few epochs and at its end.

    None where none are asked for.

    Parameters
    ----------
    experiment : Experiment
        The experiment that is run.
    network : HybridBlock
        The network that is trained.
    folder : RunDir
        The run folder.
    images : int
        Source images, which make an epoch.
    """
    training = experiment.source_training
    if training is None or not training.snapshots:
        return {}
    every = iterations_of_epochs(training.snapshots, images=images, batch_size=training.batch_size)

    def keep(iteration: int) -> None:
        # the last one, which is always kept, may come within an epoch: it is that epoch's
        stage = folder.snapshot(-(-training.snapshots * iteration // every))
        save_parameters(
            stage.parameters, network, experiment.network_spec(), experiment.classes(), config_hash=folder.config_hash
        )

    return {"snapshot": keep, "snapshot_every": every}


def evaluate_snapshots(
    experiment: Experiment,
    folder: RunDir,
    sets: Mapping[str, LabelledImageSet],
    target: ImageSet,
    *,
    record: Record,
    ctx: mx.Context,
    progress: Progress = silent,
) -> None:
    """Evaluate the snapshots of the source training that are not evaluated yet, and predict the target with each.

    Parameters
    ----------
    experiment, sets, ctx, progress
        As for :func:`evaluate`.
    folder : RunDir
        The run folder.
    target : ImageSet
        The target's images.
    record : Record
        Knows which are evaluated.
    """
    for epoch in folder.snapshots():
        stage = folder.snapshot(epoch)
        if record.done(EVALUATION, epoch=epoch):
            continue
        record.begin(EVALUATION, epoch=epoch)
        network, _, _ = load_network(stage.parameters, ctx)
        title = f"{experiment.name}, source after {epoch} epochs"
        observe(experiment, network, target, stage, show=not sets, ctx=ctx, title=title, progress=progress)
        evaluate(experiment, network, sets, stage, ctx=ctx, title=title, progress=progress)
        record.finish(EVALUATION, epoch=epoch)
