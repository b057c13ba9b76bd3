"""The run folder at the start of a command: locked, compared with the experiment, and its first lines in the log."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Mapping, Sequence

from cbst_mx.config import Experiment
from cbst_mx.data import ImageSet, LabelledImageSet
from cbst_mx.messages import Progress, silent
from cbst_mx.rounds.phases import start_path
from cbst_mx.rounds.prior import describe_prior, given_prior, keep_given
from cbst_mx.rounds.record import Record
from cbst_mx.run_dir import RunDir
from cbst_mx.run_dir.steps import PRIOR

__all__ = ["open_folder"]

logger = logging.getLogger(__name__)


def open_folder(
    experiment: Experiment,
    out: Path,
    sets: Mapping[str, ImageSet],
    changes: Sequence[str] = (),
    *,
    data_root: Path | None = None,
    progress: Progress = silent,
) -> tuple[RunDir, Record]:
    """Make the folder of a run, or go on in it.

    Parameters
    ----------
    experiment : Experiment
        The experiment to run.
    out : Path
        The folder.
    sets : mapping of str to ImageSet
        The images: "source", "target" and "validation NAME".
    changes : sequence of str
        What the run does otherwise than the experiment says, for the log.
    data_root : Path, optional
        Folder that relative data roots are in, instead of the one in ``CBST_DATA``.
    progress : callable, optional
        Called with (what, done, in all).

    Returns
    -------
    folder : RunDir
        Locked for as long as it lives.
    record : Record
        What its ledger says.

    Raises
    ------
    CBSTError
        If the folder holds something else or another run, another process works in it, or an input cannot be used.
    """
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
