"""Experiment files as plain values: what they extend, changes from the command line, and the smoke test.

Of every value it is kept where it came from: a file, a change, or the smoke test.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Mapping, NamedTuple, Sequence

from cbst_mx.errors import ConfigError
from cbst_mx.strict_yaml import parse_value, read_yaml

__all__ = ["SMOKE", "Settings", "read_settings"]

SMOKE = "smoke"  # the origin of what a smoke test changes

_LONGEST_SHOWN = 100  # characters of a change in a message
_MOST_LEVELS = 20  # of keys in a change, and of files that extend one another

# What makes an experiment a smoke test; everything else stays, so that every step of it runs.
_SMOKE = {
    "pretrained": None,
    "network": {"options": {"width": 1 / 32}},
    "augmentation": {"crop": [64, 64]},
    "evaluation": {"long_side": None},
    "self_training": {
        "long_side": None,
        "target_per_batch": None,
    },
    "inference_batch": 1,
    "workers": 0,
}
_SMOKE_PRIOR = {"grid": [32, 64]}
_PRIOR_FILE = "self_training.spatial_prior.file"
_SMOKE_ROUNDS = 2  # at most
_SMOKE_PHASE = {"iterations": 1, "epochs": None, "batch_size": 2}


class Settings(NamedTuple):
    """Settings of an experiment, not checked yet.

    Attributes
    ----------
    values : dict
        Settings by key.
    origins : dict
        Where a value came from, by its key with dots: the path of a file, a change as it was given, or `SMOKE`. What
        is not named has the origin of the mapping that it is in.
    problems : list of str
        A sentence for each change that cannot be made.
    """

    values: dict[str, Any]
    origins: dict[str, str]
    problems: list[str]


def read_settings(path: Path, changes: Sequence[str] = ()) -> Settings:
    """Read the settings of an experiment, not checked yet.

    Parameters
    ----------
    path : Path
        YAML; the key ``extends`` names another experiment file, relative to this one, whose settings it changes.
    changes : sequence of str
        ``key=value`` pairs that override it, with dots between levels; values are YAML. A file of the spatial prior,
        here or in an experiment file, takes the place of all that the file so changed says of the prior, which is how
        to estimate it.

    Returns
    -------
    Settings
        Values, their origins, and problems of the changes.

    Raises
    ------
    ConfigError
        If a file cannot be read.
    """
    origins: dict[str, str] = {}
    values = _read_with_bases(path, origins)
    problems = []
    if any(_gives_prior(change) for change in changes):
        _forget_prior(values)
    for change in changes:
        try:
            _change(values, change)
        except ConfigError as error:
            problems.append(str(error))
        else:
            _note(origins, change.partition("=")[0], change)
    if values.get("smoke") is True:
        _make_smoke(values, origins)
    return Settings(values, origins, problems)


def _note(origins: dict[str, str], key: str, origin: str) -> None:
    """Keep where the value of a key, and all within it, came from."""
    for inside in [name for name in origins if name == key or name.startswith(f"{key}.")]:
        del origins[inside]
    origins[key] = origin


def _change(values: dict[str, Any], change: str) -> None:
    key, sign, text = change.partition("=")
    shown = repr(change if len(change) <= _LONGEST_SHOWN else change[: _LONGEST_SHOWN - 3] + "...")
    parts = key.split(".")
    if not sign or not all(parts) or len(parts) > _MOST_LEVELS:
        raise ConfigError(f"a change must have the form key=value, got {shown}")
    try:
        value = parse_value(text)
    except ConfigError as error:
        raise ConfigError(f"change of {key[:_LONGEST_SHOWN]!r}: {error}") from error
    level = values
    for part in parts[:-1]:
        if level.get(part) is None:
            level[part] = {}
        level = level[part]
        if not isinstance(level, dict):
            raise ConfigError(f"change {shown}: {part} is not a mapping in the experiment")
    level[parts[-1]] = value


def _make_smoke(values: dict[str, Any], origins: dict[str, str]) -> None:
    """Make the experiment a smoke test; what is not of the right kind stays for the schema to refuse."""

    def change(level: dict[str, Any], changes: Mapping[str, Any], *above: str) -> None:
        _merge(level, changes, origins, SMOKE, above)

    change(values, _SMOKE)
    training = values["self_training"]
    if not _names_prior(values):  # a file is used as it is
        change(training, {"spatial_prior": _SMOKE_PRIOR}, "self_training")
    rounds = training.get("rounds", 7)
    if isinstance(rounds, int) and not isinstance(rounds, bool) and rounds > _SMOKE_ROUNDS:
        change(training, {"rounds": _SMOKE_ROUNDS}, "self_training")
    for phase in (("source_training",), ("self_training", "retraining"), ("warm_up", "optimiser")):
        level: Any = values
        for part in phase:
            level = level.get(part) if isinstance(level, dict) else None
        if isinstance(level, dict) and level:
            change(level, _SMOKE_PHASE, *phase)


def _names_prior(values: Mapping[str, Any]) -> bool:
    """Return whether settings name a file of the spatial prior."""
    training = values.get("self_training")
    prior = training.get("spatial_prior") if isinstance(training, dict) else None
    return isinstance(prior, dict) and prior.get("file") is not None


def _gives_prior(change: str) -> bool:
    """Return whether a change names a file of the spatial prior."""
    key, _, text = change.partition("=")
    return key == _PRIOR_FILE and text.strip().lower() not in ("", "~", "null")


def _forget_prior(values: dict[str, Any]) -> None:
    """Remove what settings say of the spatial prior."""
    training = values.get("self_training")
    if isinstance(training, dict):
        training.pop("spatial_prior", None)


def _merge(
    values: dict[str, Any],
    changes: Mapping[str, Any],
    origins: dict[str, str],
    origin: str,
    above: tuple[str, ...] = (),
) -> None:
    """Put `changes` into `values`, mapping by mapping; anything but a mapping replaces what was there.

    What is put, into the mapping that the keys `above` lead to, has its origin noted.
    """
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            _merge(values[key], value, origins, origin, (*above, key))
        else:
            values[key] = copy.deepcopy(value)
            _note(origins, ".".join(map(str, (*above, key))), origin)


def _read_with_bases(path: Path, origins: dict[str, str], below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read an experiment over the one it ``extends``, if any, whose path is relative to its own; note the origins."""
    # A copy without what aliases share, so that a change of one place is none of another.
    values = _located(_unshared(read_yaml(path)), path)
    base = values.pop("extends", None)
    if base is None:
        origins.update(dict.fromkeys(values, str(path)))
        return values
    if not isinstance(base, str):
        raise ConfigError(f"{path}: extends must be the path of an experiment file, got {repr(base)[:_LONGEST_SHOWN]}")
    base_path = _resolved(path, base, "extends")
    if base_path in (_resolved(path, path.name, "extends"), *below) or len(below) > _MOST_LEVELS:
        raise ConfigError(f"{path}: extends {base} leads back to itself")
    merged = _read_with_bases(base_path, origins, (*below, _resolved(path, path.name, "extends")))
    if _names_prior(values):
        _forget_prior(merged)
    _merge(merged, values, origins, str(path))
    return merged


def _unshared(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def _located(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """Turn the descriptions' paths, relative to the experiment file, into absolute ones."""

    def located(data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("description"), str):
            return {**data, "description": str(_resolved(path, data["description"], "description"))}
        return data

    result = {**values}
    for key in ("source", "target"):
        if key in values:
            result[key] = located(values[key])
    if isinstance(values.get("validation"), dict):
        result["validation"] = {name: located(data) for name, data in values["validation"].items()}
    return result


def _resolved(path: Path, other: str, key: str) -> Path:
    """Return the path `other`, relative to the folder of `path`, without links."""
    try:
        return (path.parent / other).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # links in a circle; a NUL
        shown = repr(other if len(other) <= _LONGEST_SHOWN else other[: _LONGEST_SHOWN - 3] + "...")
        raise ConfigError(f"{path}: {key} must be the path of a file, got {shown} ({error})") from error
