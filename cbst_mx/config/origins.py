"""An experiment as it will be run, with where every value came from."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence

import yaml

from cbst_mx.config.experiment import Experiment, load_experiment
from cbst_mx.config.settings import read_settings

__all__ = ["DEFAULT", "explained"]

DEFAULT = "default"
_WIDTH = 44  # characters of key and value, behind which the origins stand one below the other
_ABSENT = object()


def explained(
    path: Path,
    changes: Sequence[str] = (),
    *,
    names: Mapping[str, str] | None = None,
    later: Sequence[tuple[str, Experiment]] = (),
) -> str:
    """Return an experiment as YAML, all defaults written out, and behind each value its origin as a comment.

    Parameters
    ----------
    path : Path
        The experiment file.
    changes : sequence of str
        As for :func:`.load_experiment`.
    names : mapping, optional
        Change to the words for its origin, where that is not ``--set``.
    later : sequence of (str, Experiment)
        What became of the experiment afterwards, in order: the origin of the values that differ, and all of it.

    Returns
    -------
    str
        An experiment file that is run like this one.

    Raises
    ------
    ConfigError
        If a file cannot be read or keys are wrong.
    """
    path = Path(path)
    experiment = load_experiment(path, tuple(changes))
    settings = read_settings(path, changes)
    words = {change: f"--set {change}" for change in changes}
    words.update(names or {})
    origins = {key: words.get(settings.origins[key], _shown(settings.origins[key])) for key in settings.origins}
    found = {keys: _origin(keys, settings.values, origins) for keys, _ in _leaves(experiment.model_dump())}
    for origin, changed in later:
        before = dict(_leaves(experiment.model_dump()))
        for keys, value in _leaves(changed.model_dump()):
            if before.get(keys, _ABSENT) != value:
                found[keys] = origin
        experiment = changed
    lines = [f"# {_shown(str(path))} as it will be run; behind each value stands where it came from"]
    lines += _lines(experiment.model_dump(), found)
    return "\n".join(lines)


def _leaves(values: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*above, key))
        else:
            yield (*above, key), value


def _origin(keys: tuple[str, ...], values: Any, origins: Mapping[str, str]) -> str:
    """Return the origin of what `keys` lead to in the settings `values`, or that it is a default."""
    for key in keys:
        if not isinstance(values, dict) or key not in values:
            return DEFAULT
        values = values[key]
    for end in range(len(keys), 0, -1):
        if (name := ".".join(keys[:end])) in origins:
            return origins[name]
    return DEFAULT


def _shown(origin: str) -> str:
    """Return a file's path as one would type it here; other origins as they are."""
    here = os.getcwd()
    return os.path.relpath(origin, here) if origin.startswith(here + os.sep) else origin


def _lines(values: Mapping[str, Any], found: Mapping[tuple[str, ...], str], above: tuple[str, ...] = ()) -> list[str]:
    lines = []
    for key, value in values.items():
        begin = f"{'  ' * len(above)}{_text(key)}:"
        if isinstance(value, dict) and value:
            lines += [begin, *_lines(value, found, (*above, key))]
        else:
            origin = " ".join(found[(*above, key)].split())
            lines.append(f"{f'{begin} {_text(value)}':{_WIDTH}}  # {origin}")
    return lines


def _text(value: Any) -> str:
    """Return a value as YAML in one line."""
    if isinstance(value, str) and not value.isprintable():
        return json.dumps(value)
    text = yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True)
    return text.partition("\n...")[0].strip()
