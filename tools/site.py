"""Hooks of the documentation site (mkdocs.yml): the reference of keys, links that lead out of the site, docstrings.

``<!-- keys: experiment -->`` in a page becomes all keys, written from the models while the page is read, so that they
cannot be out of date. A link to a file of the source tree that is no page becomes the file's name.
"""

from __future__ import annotations

import re
from html import escape
from pathlib import Path
from typing import Any

import click
import griffe

from cbst_mx.cli import main
from cbst_mx.config.schema import KINDS, NO_DEFAULT, Key, keys

_MARK = re.compile(r"^<!-- keys: (\w+) -->$", re.MULTILINE)
_OUTSIDE = re.compile(r"\[([^\]]+)\]\((\.\./[^)#]+)(?:#[^)]*)?\)")
_TITLES = {"OwnClasses": "With classes of your own", "KnownClasses": "With the classes of a known label space"}


def on_startup(**_: Any) -> None:
    """Let options without a default have None, as mkdocs-click expects: click 8.3 has a mark of its own."""
    commands: list[click.Command] = [main]
    while commands:
        command = commands.pop()
        commands += command.commands.values() if isinstance(command, click.Group) else []
        for parameter in command.params:
            if "UNSET" in str(parameter.default):
                parameter.default = None


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page with its reference filled in, and without links that lead out of the site."""
    filled = _MARK.sub(lambda mark: reference(mark.group(1)), markdown)
    return _OUTSIDE.sub(lambda link: f"{link.group(1)} (`{Path(link.group(2)).as_posix().lstrip('./')}`)", filled)


def on_page_content(html: str, **_: Any) -> str:
    """Return a page whose tables of options have nothing where there is no default, and names in one line."""
    page = re.sub(r"<td>(None|<code>[^<]*UNSET</code>)</td>\n</tr>", "<td></td>\n</tr>", html)
    page = page.replace("<td>_required</td>", "<td>required</td>")
    return re.sub(r"<td>(<code>-[^<]*</code>)(?=[,/ <])", r"<td class='option'>\1", page)


def on_post_page(output: str, **_: Any) -> str:
    """Return a page that loads, before the theme's script, what lets it search where it is opened as a file."""
    return output.replace("</head>", '<script src="assets/offline.js"></script></head>', 1)


def on_post_build(config: Any, **_: Any) -> None:
    """Write the index of the search as a script, which pages that are opened as files can read."""
    index = Path(config.site_dir) / "search" / "search_index.json"
    index.with_suffix(".js").write_text(f"var __index = {index.read_text('utf-8')}", "utf-8")


def reference(kind: str) -> str:
    """Return the keys of a kind of YAML file as Markdown: a section for each mapping, a list entry for each key."""
    parts = []
    models = KINDS[kind]
    for model in models:
        depth = 2
        if len(models) > 1:
            parts.append(f"## {_TITLES[model.__name__]}\n")
            depth = 3
        sections: dict[str, list[Key]] = {}
        for row in keys(model):
            above, _, name = row.name.rpartition(".")
            sections.setdefault(above, []).append(row._replace(name=name))
        alike: dict[tuple[Key, ...], list[str]] = {}
        for above, rows in sections.items():
            alike.setdefault(tuple(rows), []).append(above)
        for section, places in alike.items():
            title = ", ".join(f"`{place}`" for place in places if place) or "Top level"
            parts.append(f"{'#' * depth} {title}\n\n" + "\n\n".join(map(_entry, section)) + "\n")
    return "\n".join(parts)


def _entry(row: Key) -> str:
    """Return one key: name, what it takes, default and origin in one line, the meaning below."""
    unit = f", {row.unit}" if row.unit else ""
    facts = [f"{row.type}{unit}"]
    if row.default == NO_DEFAULT:
        facts.append("**required**")
    elif row.default:
        facts.append(f"default `{row.default}`")
    facts.append(f"<span class='origin'>{row.origin}</span>")
    shown = " · ".join(fact if fact.startswith(("<", "*", "default")) else escape(fact) for fact in facts)
    head = f'**`{row.name}`** <span class="facts" markdown>{shown}</span>'
    return f'<div class="key" markdown>\n{head}\n\n{row.meaning}\n</div>'


class Docstrings(griffe.Extension):
    """What mkdocstrings does not know of this package's docstrings."""

    def on_module_members(self, *, mod: griffe.Module, **_: Any) -> None:
        """Keep functions that a module of the same name hides, as ``selftrain.thresholds()``."""
        for name, member in list(mod.members.items()):
            own = isinstance(member, griffe.Function) and mod.is_init_module  # and no name that is imported
            if own and (mod.filepath.parent / f"{name}.py").is_file():
                mod.set_member(f"{name}()", member)

    def on_class_instance(self, *, cls: griffe.Class, **_: Any) -> None:
        """Let Gluon's inputs and outputs of a network begin a section: the parser takes them for parameters."""
        if cls.docstring is not None:
            cls.docstring.value = cls.docstring.value.replace("\nInputs:\n", "\nNotes\n-----\n**Inputs**\n\n").replace(
                "\nOutputs:\n", "\n**Outputs**\n\n"
            )
