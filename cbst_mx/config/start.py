"""The start of the program's experiments: the source network that its authors released, where it is there."""

from __future__ import annotations

import contextlib
from pathlib import Path

from cbst_mx.config.experiment import Experiment, below_data_root
from cbst_mx.errors import ConfigError

__all__ = ["describe_released_start", "take_released_start"]

_RELEASED = "the authors' released source network"


def take_released_start(experiment: Experiment) -> Experiment:
    """Return the experiment with the network that the authors released as its start, where that is there.

    A given start stays, and a smoke test, whose network has another size, does not take it.
    """
    if experiment.released_start is None or experiment.initial_parameters is not None or experiment.smoke:
        return experiment
    file = _find(experiment.released_start)
    if not file.is_file():
        return experiment
    start = {"initial_parameters": str(file), "source_training": None, "pretrained": None}
    return experiment.model_copy(update=start)


def describe_released_start(experiment: Experiment, data_root: Path | None = None) -> str | None:
    """Return in words whether an experiment starts from the network that the authors released; None for others.

    Parameters
    ----------
    experiment : Experiment
        As :func:`take_released_start` returns it.
    data_root : Path, optional
        Folder that a relative `released_start` is in, instead of the one in ``CBST_DATA``.
    """
    if experiment.released_start is None:
        return None
    file, start = _find(experiment.released_start, data_root), experiment.initial_parameters
    if start is not None:
        if file.is_file() and Path(start).resolve() == file.resolve():
            return f"starts from {_RELEASED}, {start}"
        return f"starts from {start}, not from {_RELEASED}"
    if experiment.smoke and file.is_file():
        return f"does not start from {_RELEASED}: the network of a smoke test has another size than {file}"
    return f"does not start from {_RELEASED}: {file} is not there"


def _find(path: str, data_root: Path | None = None) -> Path:
    """Return where the file is or would be; a relative path as it is where there is no data root."""
    with contextlib.suppress(ConfigError):
        return below_data_root(path, data_root)
    return Path(path)
