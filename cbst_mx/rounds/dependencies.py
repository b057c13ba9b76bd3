"""Which settings of an experiment can change which step of its run.

A finished step stays what it is for as long as the settings named here for its kind do: rounds can be added, results
evaluated otherwise, files moved. Images, labels, descriptions and parameters at the start stand for what they are, not
for their paths, so their keys are none of these; see `cbst_mx.rounds.inputs`.
"""

from __future__ import annotations

from typing import Any, Iterable, Mapping

from pydantic import BaseModel

from cbst_mx.config import Experiment
from cbst_mx.config.experiment import NAMED_BATCH
from cbst_mx.selftrain.portion import learning_rate, portion

__all__ = ["DEPENDENCIES", "FREE", "changed_keys", "is_below", "step_keys"]

_TRAININGS = ("source", "retraining")
_NETWORKS = (*_TRAININGS, "labels", "evaluation")

#: Key, or the beginning of keys, to the kinds of steps that it can change.
DEPENDENCIES: dict[str, tuple[str, ...]] = {
    "seed": _TRAININGS,
    "network": _NETWORKS,
    "augmentation": _TRAININGS,
    "resampling": _NETWORKS,
    "source_training": ("source",),
    "warm_up": ("source",),
    "amp": _NETWORKS,
    "gradient_checkpointing": _TRAININGS,
    "smoke": ("source",),
    "self_training.method": ("labels", "retraining"),
    "self_training.portion": ("labels",),  # the round's own portion alone
    "self_training.fidelity": ("labels", "retraining"),
    "self_training.flip": ("labels",),
    "self_training.scales": ("labels",),
    "self_training.long_side": ("labels",),
    "self_training.upsampling": ("labels",),
    "self_training.source_portion": ("retraining",),
    "self_training.mining": ("retraining",),
    "self_training.retraining": ("retraining",),
    "self_training.learning_rate_factor": ("retraining",),  # the round's own factor alone
    "self_training.target_per_batch": ("retraining",),
    "self_training.separate_domains": ("retraining",),
    "self_training.guard": ("labels",),  # what limits the pseudo-labels of a class
    "self_training.spatial_prior": ("prior",),
    "evaluation": ("evaluation",),
    "inference_batch": ("evaluation",),
}

#: Keys that change no finished step: where work is done, how it is kept, and what is compared by content.
FREE = (
    *("name", "workers", "cache_mb", "ctx", "images_per_pass", "starts_from", "released_start", "paper", "origin"),
    *("label_space", "source", "target", "validation", "initial_parameters", "pretrained"),
    *("self_training.rounds", "self_training.keep_maps", "self_training.spatial_prior.file"),
    *("source_training.snapshots", "source_training.checkpoint_every", "self_training.retraining.checkpoint_every"),
    *("warm_up.optimiser.checkpoint_every", "source_training.checkpoint_minutes"),
    *("self_training.retraining.checkpoint_minutes", "warm_up.optimiser.checkpoint_minutes"),
    *("self_training.guard.policy", "self_training.guard.rollbacks"),
)


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        inside = _flat(value, f"{before}{key}.") if isinstance(value, dict) and value else {f"{before}{key}": value}
        found.update(inside)
    return found


def is_below(key: str, parents: Iterable[str]) -> bool:
    """Return whether a key is one of `parents` or inside one."""
    return any(key == parent or key.startswith(f"{parent}.") for parent in parents)


def step_keys(experiment: Experiment, kind: str, stage: int) -> dict[str, Any]:
    """Return the settings that can change a step, as JSON values by key with dots between levels.

    Of what follows a schedule (the portion, the learning rate's factor) it is the value of the round, so that a
    schedule may change for the rounds to come.

    Parameters
    ----------
    experiment : Experiment
        The experiment that is run.
    kind : str
        "source", "prior", "labels", "retraining" or "evaluation".
    stage : int
        0 for the source network, else the round.
    """
    training = experiment.self_training
    found = {}
    values = {**experiment.model_dump(mode="json"), "inference_batch": experiment.inference_batch or NAMED_BATCH}
    for key, value in _flat(values).items():
        # what nobody has assigned may change everything
        kinds = next((kinds for parent, kinds in DEPENDENCIES.items() if is_below(key, [parent])), (kind,))
        if kind in kinds and not is_below(key, FREE):
            found[key] = value
    if kind == "labels":
        found = {key: value for key, value in found.items() if not is_below(key, ["self_training.portion"])}
        found["self_training.portion"] = portion(stage, **training.portion.model_dump(), fidelity=training.fidelity)
    if kind == "retraining":
        factor = learning_rate(stage, initial=1.0, factor=training.learning_rate_factor)
        found["self_training.learning_rate_factor"] = factor
    return found


def changed_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the keys whose values differ, with both values.

    A key that the older record does not have came later: it counts as having had its default.

    Parameters
    ----------
    before, now : mapping
        Of :func:`step_keys`.
    """
    changed = {}
    for key in [*now, *(key for key in before if key not in now)]:
        old, new = (values[key] if key in values else _default(key) for values in (before, now))
        if old != new:
            changed[key] = (old, new)
    for one, other in ((before, now), (now, before)):  # a part that there is not, or was not, is told once
        for key in [key for key, value in one.items() if value is None]:
            if inside := {name: value for name, value in other.items() if name.startswith(f"{key}.")}:
                changed = {name: pair for name, pair in changed.items() if name not in inside}
                changed[key] = (None, inside) if one is before else (inside, None)
    return changed


def _default(key: str) -> Any:
    """Return the default of a key; None for one without."""
    model: Any = Experiment
    default: Any = None
    for part in key.split("."):
        fields = getattr(model, "model_fields", {})
        if part not in fields:
            return None
        field = fields[part]
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        model = field.annotation if field.is_required() else type(default)
    return None if isinstance(default, BaseModel) else default
