"""The start of a command: images and devices opened, the run folder locked and compared, its first lines in the log."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Sequence

from cbst_mx.config import Experiment, describe_released_start
from cbst_mx.data import ImageSet, LabelledImageSet
from cbst_mx.files import check_free_space
from cbst_mx.messages import Progress, silent
from cbst_mx.networks.build import spec_bytes
from cbst_mx.networks.devices import check_free_memory, parse_contexts, set_precision
from cbst_mx.rounds.continuation import warn_of_threads
from cbst_mx.rounds.phases import follow_start, start_network, start_path, without_start
from cbst_mx.rounds.prior import describe_prior, given_prior, keep_given
from cbst_mx.rounds.record import Record
from cbst_mx.rounds.workload import estimate_needs, find_left
from cbst_mx.run_dir import RunDir
from cbst_mx.run_dir.steps import PRIOR
from cbst_mx.selftrain.selection import Needs
from symbols.backend import gluon, mx

__all__ = ["Opened", "open_run"]

logger = logging.getLogger(__name__)


@dataclass
class Opened:
    """What a run works with.

    Attributes
    ----------
    experiment : Experiment
        The experiment, with the input of the parameters that it starts from.
    folder : RunDir
        Its run folder, locked for as long as this lives.
    record : Record
        What its ledger says.
    source, target, validation
        The images; of the validation sets by name.
    contexts : list of mx.Context
        Devices of the training; the first does everything else.
    start : HybridBlock, optional
        The network that it starts from; None where the source network is made.
    needs : Needs
        Disk space that is still needed, and memory in addition to the network's own.
    data_root : Path, optional
        Folder that relative data roots are in, instead of the one in ``CBST_DATA``.
    progress : callable
        Called with (what, done, in all).
    """

    experiment: Experiment
    folder: RunDir
    record: Record
    source: LabelledImageSet
    target: ImageSet
    validation: dict[str, LabelledImageSet]
    contexts: list[mx.Context]
    start: gluon.HybridBlock | None
    needs: Needs
    data_root: Path | None
    progress: Progress


def open_run(
    experiment: Experiment, out: Path, *, progress: Progress = silent, data_root: Path | None = None
) -> Opened:
    """Open images and devices of a run, and make its folder, or go on in it.

    Parameters
    ----------
    experiment : Experiment
        The experiment to run.
    out : Path
        The folder.
    progress : callable, optional
        Called with (what, done, in all).
    data_root : Path, optional
        Folder that relative data roots are in, instead of the one in ``CBST_DATA``.

    Raises
    ------
    CBSTError
        If the folder holds something else or another run, another process works in it, or an input cannot be used.
    """
    begun = RunDir(out).stage(0)
    experiment = experiment.as_begun(RunDir(out).experiment)
    experiment, changes = follow_start(experiment, kept=begun.parameters, data_root=data_root)
    if (released := describe_released_start(experiment, data_root)) is not None:
        changes.insert(0, released)
    contexts = parse_contexts(experiment.ctx)
    set_precision(experiment.amp, contexts)
    _check_memory(experiment, contexts)
    source, target = experiment.open_source(data_root), experiment.open_target(data_root)
    validation = experiment.open_validation(data_root)
    sets: dict[str, ImageSet] = {"source": source, "target": target}
    numbers = {name: len(images) for name, images in sets.items()}
    numbers.update(validation=sum(map(len, validation.values())))
    # where the source network is made, what it started from may be gone
    start = None if begun.training.is_file() else start_network(experiment, contexts, data_root=data_root)
    # for its sizes alone: on the processor, where it takes none of the memory of the training's devices
    sized = start_network(without_start(experiment), [mx.cpu()]) if start is None else start
    height, width, _ = target.image(0).shape
    left = find_left(experiment, RunDir(out), source=len(source))
    needs = estimate_needs(experiment, sized, size=(height, width), left=left, **numbers)
    check_free_space(out, needs.disk)
    sets.update({f"validation {name}": images for name, images in validation.items()})
    folder, record = _open_folder(experiment, out, sets, changes, data_root, progress)
    return Opened(experiment, folder, record, source, target, validation, contexts, start, needs, data_root, progress)


def _check_memory(experiment: Experiment, contexts: Sequence[mx.Context]) -> None:
    """Refuse GPUs whose free memory cannot hold even what is trained, before anything is loaded there."""
    if contexts[0].device_type != "gpu":
        return
    spec = experiment.network_spec()
    what = f"the parameters of {spec.name}"
    trains = experiment.source_training is not None or experiment.self_training.rounds > 0
    if trains:
        what += ", their gradients and momentum"
    check_free_memory(contexts, (3 if trains else 1) * spec_bytes(spec), what)


def _open_folder(
    experiment: Experiment,
    out: Path,
    sets: Mapping[str, ImageSet],
    changes: Sequence[str],
    data_root: Path | None,
    progress: Progress,
) -> tuple[RunDir, Record]:
    """Make the folder of a run, or go on in it; `changes` are what the run does otherwise than the experiment says."""
    given = given_prior(experiment, RunDir(out), data_root=data_root)
    inputs: dict[str, Any] = {"images": {name: len(images) for name, images in sets.items()}}
    if given is not None:
        inputs["spatial_prior"] = given.record(experiment.self_training.spatial_prior.file)
    files = {
        "parameters at the start": start_path(experiment, data_root),
        "spatial prior file": experiment.prior_path(data_root),
    }
    record = Record(experiment, RunDir(out), sets, given=files, progress=progress)
    settings = {"identity": experiment.identity, "inputs": inputs}
    folder = RunDir.open(out, experiment.to_yaml(), **settings, compare=record.compare)
    record.folder = folder
    if given is not None:
        keep_given(given, folder)
        record.finish(PRIOR)
    with folder.logging():
        _log_inputs(experiment, folder, changes, sets)
        warn_of_threads(folder)
    return folder, record


def _log_inputs(experiment: Experiment, folder: RunDir, changes: Sequence[str], sets: Mapping[str, ImageSet]) -> None:
    """Log what is odd about the inputs of a run: settings that follow parameters, its prior, images left out."""
    for sentence in changes:
        logger.info("%s: %s", experiment.name, sentence)
    if experiment.self_training.uses_prior:
        logger.info("%s", describe_prior(experiment, folder))
    for name, images in sets.items():
        if isinstance(images, LabelledImageSet) and images.left_out:
            every = len(images) + images.left_out
            logger.info("%s: %d of %d images left out, without a label", name, images.left_out, every)
