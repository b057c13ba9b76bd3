"""A first look at the files of an experiment, before the training of the network that it starts from: weeks, maybe."""

from __future__ import annotations

from pathlib import Path

from cbst_mx.config import Experiment
from cbst_mx.errors import ConfigError
from cbst_mx.rounds.phases import start_path
from cbst_mx.selftrain import prior_files

__all__ = ["look"]


def look(experiment: Experiment, *, data_root: Path | None = None) -> dict[str, int]:
    """Find the images, labels, lists, prior and parameters that an experiment names.

    Parameters
    ----------
    experiment : Experiment
        The experiment to look at. Where it starts from another one (`starts_from`), pretrained parameters are not asked
        for.
    data_root : Path, optional
        Folder that relative paths are in, instead of the one in ``CBST_DATA``.

    Returns
    -------
    dict of str to int
        Number of images by set: "source", "target" and "validation NAME".

    Raises
    ------
    ConfigError
        If parameters do not exist, or a path is relative and there is no data root.
    DataError
        If images, labels, a list or the spatial prior are missing or cannot be used.
    """
    names = experiment.classes().names
    found = {"source": len(experiment.open_source(data_root)), "target": len(experiment.open_target(data_root))}
    found.update({f"validation {name}": len(one) for name, one in experiment.open_validation(data_root).items()})
    prior = experiment.prior_path(data_root)
    if prior is not None:
        prior_files.read_given(prior, len(names), names)
    needed = experiment.starts_from is None or experiment.initial_parameters is not None
    start = start_path(experiment, data_root) if needed else None
    if start is not None and not start.is_file():
        raise ConfigError(f"parameters {start} do not exist")
    return found
