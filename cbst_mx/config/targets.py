"""The target images that the paper's settings can be adapted on, and in words which a run was.

Cityscapes: the paper's text and the authors' commands of the time name val, later answers of an author 505 images of
train; all of train was tried too (docs/reproducing.md tells the history). NTHU: nothing is published.
"""

from __future__ import annotations

from typing import Any, Mapping

from cbst_mx.config.experiment import Experiment
from cbst_mx.config.parts import Data
from cbst_mx.errors import ConfigError, check_choice

__all__ = ["TARGETS", "describe_target", "target_changes"]

#: Format of the target to the names of its possible image sets, each with the settings it changes.
TARGETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "cityscapes": {
        "val": {"target.split": "val", "target.list": None},
        "train": {"target.split": "train", "target.list": None},
        "train-505": {"target.split": "train", "target.list": "train-505.txt"},
    },
    "nthu": {
        "folds": {"target.split": "rest"},
        # The 3,200 images of a city are in no fold: one run, tested on all labelled images; all source images are
        # about as many as they are.
        "train": {
            "target.split": "train",
            **dict.fromkeys(("target.fold", "target.folds", "target.fold_seed"), None),
            **{f"validation.target.{key}": None for key in ("fold", "folds", "fold_seed")},
            "self_training.source_portion": None,
        },
    },
}

# Where a choice comes from: the paper's text, or the released program's list and commands; others are ours.
_ORIGINS = {("cityscapes", "val"): "paper", ("cityscapes", "train-505"): "released"}


def target_changes(experiment: Experiment, name: str) -> tuple[str, ...]:
    """Return the changes, each ``key=value``, that make an experiment adapt on other images.

    Parameters
    ----------
    experiment : Experiment
        Its target has the format cityscapes or nthu.
    name : str
        One of the names in ``TARGETS`` for that format.

    Raises
    ------
    ConfigError
        If the format has no such names, or not this one.
    """
    data = experiment.target
    if data.format not in TARGETS:
        known = " or ".join(TARGETS)
        raise ConfigError(f"target must be left out where the target's format is not {known}, got {name!r}")
    check_choice("target", name, TARGETS[data.format], of=f"images of {data.format}")
    changes = dict(TARGETS[data.format][name])
    if "target" in experiment.origin:
        changes["origin.target"] = _ORIGINS.get((data.format, name), "ours")
    return tuple(f"{key}={'null' if value is None else value}" for key, value in changes.items())


def describe_target(experiment: Experiment, images: int = 0, start: str | None = None) -> str:
    """Return the images that an experiment adapts on as words, and whether that is transductive.

    Without rounds of its own an experiment that starts from a network names that.

    Parameters
    ----------
    experiment : Experiment
        The experiment.
    images : int
        Their number, 0 where it is not known.
    start : str, optional
        What the network that it starts from was adapted on, in these words, where that is known.
    """
    target = experiment.target
    if not experiment.self_training.rounds and experiment.warm_up is None:
        given = experiment.initial_parameters
        text = "not adapted: no round" if given is None else f"no round here; starts from {given}"
        return text if start is None else f"{text}, {start}"
    parts = [target.format, target.city, target.split, f"list {target.list}" if target.list else None]
    if target.fold is not None:
        parts.append(f"fold {target.fold} of {target.folds or 10} left out")
    text = "adapted on " + " ".join(part for part in parts if part)
    many = "1 image without its labels" if images == 1 else f"{images:,} images without their labels"
    text += f", {many}" if images else " without labels"
    same = [name for name, data in experiment.validation.items() if _images(data) == _images(target)]
    return text + (f"; transductive: validation set {' and '.join(same)} has the same images" if same else "")


def _images(data: Data) -> dict[str, Any]:
    """Return what chooses images: those of two sets are the same where this is equal."""
    return data.model_dump(exclude={"labels"})
