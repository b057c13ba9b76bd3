"""The spatial prior of a run: estimated from the source labels, or the file that the experiment names.

C classes, h x w cells. The run folder holds the prior either way, so that a run goes on when the file is gone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping, NamedTuple

import numpy as np

from cbst_mx.config import Experiment
from cbst_mx.data import LabelledImageSet
from cbst_mx.errors import RunError
from cbst_mx.files import read_json, remove_file
from cbst_mx.messages import Counter, silent
from cbst_mx.run_dir import RunDir
from cbst_mx.selftrain import prior_files, spatial_prior

__all__ = ["GivenPrior", "describe_prior", "given_prior", "keep_given", "load_prior", "renew_prior"]


class GivenPrior(NamedTuple):
    """A prior read from the file that an experiment names."""

    values: np.ndarray  # q_n(c), float32 (C, h, w), as in the file
    metadata: Mapping[str, Any]  # what is known of it, see `prior_files.read_given`

    def record(self, named: str | None) -> dict[str, Any]:
        """Return what the run's manifest says of it; `named` is the path in the experiment."""
        return {"file": named, "sha256": self.metadata["sha256"]}


def given_prior(experiment: Experiment, folder: RunDir, *, data_root: Path | None = None) -> GivenPrior | None:
    """Read the file of the spatial prior that an experiment names, unless the run folder has the prior already.

    Parameters
    ----------
    experiment : Experiment
        The experiment to run.
    folder : RunDir
        Its run folder, which need not exist.
    data_root : Path, optional
        Folder that a relative path is in, instead of the one in ``CBST_DATA``.

    Returns
    -------
    GivenPrior, optional
        None where nothing is to be read.

    Raises
    ------
    DataError
        If the file does not exist or cannot be the prior of the experiment's classes.
    """
    path = experiment.prior_path(data_root)
    if path is None or folder.spatial_prior.is_file():
        return None
    names = experiment.classes().names
    return GivenPrior(*prior_files.read_given(path, len(names), names))


def keep_given(given: GivenPrior, folder: RunDir) -> None:
    """Write a given prior into the run folder.

    Raises
    ------
    RunError
        If the run began with another file, or it cannot be written.
    """
    began = _recorded(folder)
    if began != given.metadata["sha256"]:
        raise RunError(
            f"spatial prior {given.metadata['file']} must be the file that {folder.path} began with (SHA-256 {began}), "
            f"got one of SHA-256 {given.metadata['sha256']}"
        )
    prior_files.save(folder.spatial_prior, given.values, given.metadata)


def describe_prior(experiment: Experiment, folder: RunDir) -> str:
    """Return one line on where the spatial prior of a run comes from.

    With the rules of the released program it says as well that the program reads its authors' file, where the
    experiment does not name one.
    """
    training = experiment.self_training
    settings = training.spatial_prior
    if settings.file is not None:
        return f"spatial prior: file {settings.file}, used as it is (SHA-256 {_recorded(folder)})"
    deviation = spatial_prior.standard_deviation(settings.kernel, settings.sigma)
    line = (
        f"spatial prior: estimated from the source labels, normalisation {settings.normalisation}, kernel "
        f"{settings.kernel:g} and sigma {deviation:.4g} pixels at 1024 x 2048, grid {settings.grid[0]} x "
        f"{settings.grid[1]}"
    )
    if training.fidelity == "released":
        line += (
            "; not the authors' prior_array.mat, which the released program reads: "
            "name it with self_training.spatial_prior.file"
        )
    return line


def _recorded(folder: RunDir) -> str | None:
    """Return the digest of the given prior that the run's manifest has."""
    record: Any = read_json(folder.manifest)
    for key in ("inputs", "spatial_prior", "sha256"):
        record = record.get(key) if isinstance(record, dict) else None
    return record


def load_prior(
    experiment: Experiment, source: LabelledImageSet, path: Path, *, progress: Counter = silent
) -> np.ndarray:
    """Return the spatial prior q_n(c) of CBST-SP; it is estimated and written where `path` does not exist.

    Parameters
    ----------
    experiment : Experiment
        The experiment that is run.
    source : LabelledImageSet
        The images from whose labels it is estimated.
    path : Path
        The run's own file of the prior.
    progress : callable
        Called with (done, in all) as labels are read.

    Returns
    -------
    ndarray of shape (C, h, w), float32
        At the experiment's grid of h x w cells, or the given file's; times a power of two where a value would be above
        1, see :func:`.spatial_prior.within_one`.

    Raises
    ------
    CBSTError
        If a label or the file cannot be used.
    """
    names = experiment.classes().names
    if not path.is_file():
        settings = experiment.self_training.spatial_prior
        prior = spatial_prior.estimate(
            source,
            (settings.grid[0], settings.grid[1]),
            kernel=settings.kernel,
            sigma=settings.sigma,
            normalisation=settings.normalisation,
            progress=progress,
        )
        metadata = {
            "names": list(names),
            "kernel": settings.kernel,
            "sigma": spatial_prior.standard_deviation(settings.kernel, settings.sigma),
            "normalisation": settings.normalisation,
            "images": len(source),
        }
        prior_files.save(path, prior, metadata)
    return prior_files.load(path, len(names), names)


def renew_prior(
    experiment: Experiment,
    source: LabelledImageSet,
    folder: RunDir,
    *,
    data_root: Path | None = None,
    progress: Counter = silent,
) -> None:
    """Make the prior of a run anew, whatever is in its folder.

    Parameters
    ----------
    experiment, source, progress
        As for :func:`load_prior`.
    folder : RunDir
        The run folder.
    data_root : Path, optional
        As for :func:`given_prior`.

    Raises
    ------
    CBSTError
        If a label or the file cannot be used.
    """
    remove_file(folder.spatial_prior)
    given = given_prior(experiment, folder, data_root=data_root)
    if given is not None:
        keep_given(given, folder)
    else:
        load_prior(experiment, source, folder.spatial_prior, progress=progress)
