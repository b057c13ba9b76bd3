"""Writes a data description and an experiment with comments, whole or not at all, once the strict loader takes them."""

from __future__ import annotations

import contextlib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Mapping, Sequence

import jinja2

from cbst_mx.config.experiment import Experiment, load_experiment
from cbst_mx.data.lists import write_list
from cbst_mx.errors import ConfigError
from cbst_mx.files import atomic_path, write_text

__all__ = ["Draft", "Listed", "write_drafts"]

_NO_TEXT = ("yes", "no", "on", "off", "true", "false", "null", "y", "n")  # what YAML takes for something else


@dataclass(frozen=True)
class Listed:
    """A list of images beside the two files: the names to use, of those in the set."""

    names: Sequence[str]
    among: Sequence[str]


@dataclass
class Draft:
    """What the templates are filled with.

    ``description`` is None where all data have a published layout; paths of lists in it, and the path of the
    description in the experiment's data, are file names in the folder where all are written.
    """

    stem: str
    experiment: Mapping[str, Any]
    description: Mapping[str, Any] | None = None
    lists: Mapping[str, Listed] = field(default_factory=dict)  # by file name

    @property
    def description_file(self) -> str:
        """Name of the description's file."""
        return f"{self.stem}-data.yaml"

    @property
    def experiment_file(self) -> str:
        """Name of the experiment's file."""
        return f"{self.stem}-cbst.yaml"

    def files(self) -> list[str]:
        """Return the names of all files, the experiment last."""
        described = [] if self.description is None else [self.description_file]
        return [*self.lists, *described, self.experiment_file]


def check_new(draft: Draft, folder: Path, *, overwrite: bool) -> None:
    """Refuse to write a draft where a file of one of its names is.

    Raises
    ------
    ConfigError
        If there is one, and it may not be overwritten.
    """
    folder = Path(os.path.abspath(folder))
    there = [name for name in draft.files() if os.path.lexists(folder / name)]
    if there and not overwrite:
        raise ConfigError(f"{folder / there[0]} exists already: give another --name or --out, or --overwrite")


def write_drafts(draft: Draft, folder: Path, *, overwrite: bool = False) -> Experiment:
    """Write the files of a draft into a folder.

    Parameters
    ----------
    draft : Draft
        What they say.
    folder : Path
        Made when it is not there.
    overwrite : bool
        Replace files of these names.

    Returns
    -------
    Experiment
        As the loader reads it, all of whose images could be opened.

    Raises
    ------
    ConfigError
        If a file is there already, or the loader refuses what would be written: then nothing is written.
    DataError
        If the images or labels cannot be opened as described; then nothing is written either.
    RunError
        If a file cannot be written.
    """
    folder = Path(os.path.abspath(folder))
    check_new(draft, folder, overwrite=overwrite)
    with contextlib.ExitStack() as stack:
        places = {name: stack.enter_context(atomic_path(folder / name)) for name in draft.files()}
        for name, one in draft.lists.items():
            write_list(places[name], one.names, one.among)
        _write(draft, places, {name: str(path) for name, path in places.items()})
        experiment = load_experiment(places[draft.experiment_file])
        experiment.open_source()
        experiment.open_target()
        experiment.open_validation()
        final = {name: str(folder / name) for name in draft.lists}
        _write(draft, places, {**final, draft.description_file: draft.description_file})
    return load_experiment(folder / draft.experiment_file)


def _write(draft: Draft, places: Mapping[str, Path], names: Mapping[str, str]) -> None:
    """Write both files, with the names that they have for each other."""
    if draft.description is not None:
        write_text(places[draft.description_file], render("description.yaml.j2", _named(draft.description, names)))
    write_text(places[draft.experiment_file], render("experiment.yaml.j2", _named(draft.experiment, names)))


def _named(value: Any, names: Mapping[str, str]) -> Any:
    """Return values with the files' names put in where a `list` or a `description` is named."""
    if isinstance(value, dict):
        return {
            key: names.get(one, one) if key in ("list", "description") and isinstance(one, str) else _named(one, names)
            for key, one in value.items()
        }
    return [_named(one, names) for one in value] if isinstance(value, list) else value


def render(template: str, values: Mapping[str, Any]) -> str:
    """Fill a template in; a value that it names and that is not there is an error of the program."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cbst_mx.config"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(y=_yaml, flow=_flow, line=_line, note=_note)
    return environment.get_template(template).render(values)


def _yaml(value: Any) -> str:
    """Return a value as YAML in one line; texts that could be taken for something else are quoted."""
    if isinstance(value, str) and re.fullmatch("[A-Za-z][A-Za-z0-9-]*", value) and value.lower() not in _NO_TEXT:
        return value
    text = json.dumps(value, ensure_ascii=False)
    # JSON leaves characters as they are that YAML does not take
    return "".join(one if one.isprintable() else json.dumps(one)[1:-1] for one in text)


def _flow(values: Mapping[str, Any]) -> str:
    """Return a mapping as YAML in one line, without keys that have no value."""
    return "{" + ", ".join(f"{key}: {_yaml(value)}" for key, value in values.items() if value is not None) + "}"


def _line(text: Any) -> str:
    """Return text that stays in its comment."""
    return "".join(one if one.isprintable() else "?" for one in str(text))


def _note(text: Any) -> str:
    """Return a comment behind a value; nothing for no text."""
    return f"  # {_line(text)}" if text else ""
