"""The settings of a run one by one, with their meaning and where each comes from."""

from __future__ import annotations

from typing import Any, Iterator, Mapping, NamedTuple

from cbst_mx.config.experiment import Experiment
from cbst_mx.config.schema import keys
from cbst_mx.evaluation.run_results import RunResults

__all__ = ["Setting", "read_settings_of"]


class Setting(NamedTuple):
    """One setting of a run: its key, value and unit, what it means, and where it comes from."""

    key: str
    value: str
    unit: str
    meaning: str
    origin: str


def read_settings_of(run: RunResults) -> list[Setting]:
    """Return all settings of a run, in their order; of defaults it is told whose they are."""
    known = {key.name: key for key in keys(Experiment)}
    stated = run.settings.origin or {}
    changed = dict(_flat(run.settings.model_dump(mode="json", exclude_defaults=True)))
    found = []
    for name, value in _flat(run.settings.model_dump(mode="json", exclude={"origin"})):
        parts = name.split(".")
        general = ".".join([parts[0], "NAME", *parts[2:]]) if parts[0] == "validation" and len(parts) > 1 else name
        key = known.get(general)
        whose = next((stated[part] for part in _parents(name) if part in stated), None)
        if name in changed:
            origin = f"this experiment ({whose})" if whose else "this experiment"
        else:
            origin = f"default ({whose or (key.origin if key else '')})"
        found.append(Setting(name, value, key.unit if key else "", key.meaning if key else "", origin))
    return found


def _parents(name: str) -> list[str]:
    """Return a key and the keys it is inside of, the innermost first."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Yield keys with dots between levels, and their values as text."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", str(value)
