"""What a run folder says of its experiment: settings, numbers of images, and what the network was adapted on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping, Sequence

from cbst_mx.config import Experiment, describe_target, load_experiment
from cbst_mx.errors import CBSTError, RunError
from cbst_mx.files import read_json
from cbst_mx.run_dir import RunDir

__all__ = ["count_images", "describe_adaptation", "find_runs", "load_run_experiment"]


def load_run_experiment(folder: RunDir, changes: Sequence[str] = ()) -> Experiment:
    """Return the experiment of a run folder, where it is what the manifest says was run.

    Parameters
    ----------
    folder : RunDir
        The run folder.
    changes : sequence of str
        ``key=value`` pairs, as for :func:`.load_experiment`.

    Raises
    ------
    ConfigError
        If the folder has no ``experiment.yaml``, or that is no experiment.
    RunError
        If it was altered, or the manifest is damaged.
    """
    folder.check_experiment()
    return load_experiment(folder.experiment, tuple(changes)).as_begun(folder.experiment)


def find_runs(path: Path) -> list[Path]:
    """Return the folder itself where it is a run, else the runs directly inside it (the folds of a city), by name.

    Raises
    ------
    RunError
        If there is none.
    """
    if RunDir(path).manifest.is_file():
        return [path]
    inside = sorted(child for child in path.iterdir() if RunDir(child).manifest.is_file()) if path.is_dir() else []
    if not inside:
        raise RunError(f"{path} is no run folder and holds none (a run folder has a manifest.json)")
    return inside


def count_images(manifest: Mapping[str, Any], images: str) -> int:
    """Return the number of images of a set that a manifest states, 0 where it states none.

    Parameters
    ----------
    manifest : mapping
        JSON values of ``manifest.json``.
    images : str
        "source", "target" or "validation NAME".
    """
    value: Any = manifest
    for key in ("inputs", "images", images):
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, int) else 0


def describe_adaptation(folder: RunDir, experiment: Experiment, manifest: Mapping[str, Any]) -> str:
    """Return in words what a run, or without rounds its start, was adapted on, and whether that is transductive.

    Parameters
    ----------
    folder : RunDir
        The run folder.
    experiment : Experiment
        Its experiment.
    manifest : mapping
        JSON values of its manifest.
    """
    return describe_target(experiment, count_images(manifest, "target"), _start_adaptation(folder, experiment))


def _start_adaptation(folder: RunDir, experiment: Experiment) -> str | None:
    """Return what the network that a run without rounds starts from was adapted on, as its run folder says."""
    if experiment.self_training.rounds or experiment.initial_parameters is None:
        return None
    stage = Path(experiment.initial_parameters).absolute().parent
    if stage.parent == folder.path.absolute() or not stage.name.startswith(("round-", "source")):
        return None
    start = RunDir(stage.parent)
    try:
        settings, manifest = load_run_experiment(start), read_json(start.manifest)
    except CBSTError:  # no run folder, altered, or not there any more
        return None
    alone = stage.name == "source" and settings.self_training.rounds and settings.warm_up is None
    return None if alone else describe_target(settings, count_images(manifest, "target"))
