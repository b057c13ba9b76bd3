"""From an image's path to that of its label: patterns, replacements, and what lies on the disk.

All paths are relative to the data root, with slashes. A pattern fills ``{folder}`` and ``{stem}`` in; replacements are
regular expressions that turn the image's path into the label's, one after the other::

    labels: {replace: [["^rgb_anon/", "gt/"], ["_rgb_anon[.]png$", "_gt_labelTrainIds.png"]]}

Expressions whose time could grow without bound are refused: no repetition within a repetition, at most `MOST_OPEN`
without an upper limit and `MOST_CHOICES` in all, no references within the expression.
"""

from __future__ import annotations

import os
import re
import string
import unicodedata
from pathlib import Path, PurePosixPath
from typing import Any, Iterator, Sequence

from cbst_mx.data.image_files import PathLike
from cbst_mx.data.listing import ENDINGS
from cbst_mx.errors import DataError

try:  # Python 3.11 moved it
    from re import _constants as sre  # type: ignore[attr-defined]
    from re import _parser as sre_parser  # type: ignore[attr-defined]
except ImportError:
    import sre_constants as sre  # type: ignore[no-redef]
    import sre_parse as sre_parser  # type: ignore[no-redef]

__all__ = ["LabelPaths", "LONGEST_PATH", "check_below_root", "check_expression", "check_pattern", "files_below"]

MOST_OPEN = 3  # repetitions without an upper limit
MOST_CHOICES = 8  # repetitions of any kind, and alternatives
LONGEST_EXPRESSION = 200  # characters
LONGEST_PATH = 1000  # characters of a path that expressions are tried on
_PLACEHOLDERS = ("folder", "stem")


def check_below_root(pattern: str) -> None:
    """Refuse a path or pattern that leads out of the data root (ValueError, for the schema)."""
    parts = PurePosixPath(pattern)
    if not pattern or parts.is_absolute() or ".." in parts.parts or "\0" in pattern:
        raise ValueError(f"must be below the data root, got {pattern!r}")


def check_pattern(pattern: str) -> None:
    """Refuse a pattern that is none, or that all images would share (ValueError, for the schema)."""
    check_below_root(pattern)
    try:
        used = [
            (name, spec, conversion)
            for _, name, spec, conversion in string.Formatter().parse(pattern)
            if name is not None
        ]
    except ValueError as error:
        raise ValueError(f"must be a pattern with {{folder}} and {{stem}}, got {pattern!r} ({error})") from error
    if any(name not in _PLACEHOLDERS or spec or conversion for name, spec, conversion in used):
        raise ValueError(f"must have no placeholders but {{folder}} and {{stem}}, got {pattern!r}")
    if "stem" not in [name for name, _, _ in used]:
        raise ValueError(f"must contain {{stem}}, or all images would share one label, got {pattern!r}")


def check_expression(expression: str, replacement: str) -> None:
    """Refuse a regular expression that is none or whose time is not bounded (ValueError, for the schema)."""
    if not expression or len(expression) > LONGEST_EXPRESSION:
        raise ValueError(
            f"must be a regular expression of 1 to {LONGEST_EXPRESSION} characters, got {expression[:60]!r}"
        )
    try:
        parsed = sre_parser.parse(expression)
        re.compile(expression).sub(replacement, "")  # reads the replacement, whether the expression fits or not
    except (re.error, IndexError, OverflowError, RecursionError) as error:
        raise ValueError(
            f"must be a regular expression and its replacement, got {expression!r} and {replacement[:60]!r} ({error})"
        ) from error
    choices = [*_choices(parsed, inside=False)]
    if len(choices) > MOST_CHOICES or sum(open_ for open_ in choices) > MOST_OPEN:
        raise ValueError(
            f"must have at most {MOST_OPEN} repetitions without an upper limit and {MOST_CHOICES} repetitions and "
            f"alternatives in all, got {expression!r}"
        )


def _choices(parsed: Any, inside: bool) -> Iterator[bool]:
    """Yield True for each repetition without an upper limit and False for each other choice of an expression."""
    for operation, argument in parsed:
        if operation in (sre.GROUPREF, sre.GROUPREF_EXISTS):
            raise ValueError("must have no references within the expression")
        if operation in (sre.MAX_REPEAT, sre.MIN_REPEAT, getattr(sre, "POSSESSIVE_REPEAT", None)):
            low, high, body = argument
            if inside and high > 1:
                raise ValueError("must have no repetition within a repetition")
            if low != high:
                yield high > 100
            yield from _choices(body, inside or high > 1)
        elif operation is sre.BRANCH:
            if inside:
                raise ValueError("must have no alternatives within a repetition")
            for body in argument[1]:
                yield False
                yield from _choices(body, inside)
        elif isinstance(argument, (tuple, list)):  # groups, look-ahead
            for part in argument:
                if isinstance(part, sre_parser.SubPattern):
                    yield from _choices(part, inside)
        elif isinstance(argument, sre_parser.SubPattern):
            yield from _choices(argument, inside)


class LabelPaths:
    """Rule that gives the path of an image's label.

    Parameters
    ----------
    pattern : str, optional
        Path with ``{folder}`` and ``{stem}``, from `check_pattern`.
    replace : sequence of (str, str)
        Expressions and replacements, from `check_expression`, in place of a pattern.
    ignore_case : bool
        Let expressions fit upper and lower case alike.
    """

    def __init__(self, pattern: str | None, replace: Sequence[Sequence[str]] = (), ignore_case: bool = False) -> None:
        self._pattern = pattern
        flags = re.IGNORECASE if ignore_case else 0
        self._replace = [(re.compile(expression, flags), replacement) for expression, replacement in replace]

    def of(self, image: str) -> str:
        """Return the path of a label.

        Parameters
        ----------
        image : str
            The image's path below the root.

        Raises
        ------
        DataError
            If the rule leads to the image itself or out of the root, or the path is too long.
        """
        if self._pattern is not None:
            path = PurePosixPath(image)
            folder = "" if str(path.parent) == "." else path.parent.as_posix()
            # A root-level image has an empty {folder}; the pattern's next slash must not lead to the file system's top.
            return self._pattern.format(folder=folder, stem=path.stem).lstrip("/")
        if len(image) > LONGEST_PATH:
            raise DataError(f"image paths must have at most {LONGEST_PATH} characters for `replace`, got {len(image)}")
        label = image
        for expression, replacement in self._replace:
            label = expression.sub(replacement, label)
        if label == image:
            expressions = ", ".join(repr(expression.pattern) for expression, _ in self._replace)
            raise DataError(
                f"labels.replace ({expressions}) must change the path of image {image}, which it does not fit"
            )
        try:
            check_below_root(label)
        except ValueError as error:
            raise DataError(f"labels.replace turns image {image} into a path that {error}") from error
        return label


def files_below(root: PathLike, wanted: Sequence[str], ignore_case: bool = False) -> list[Path | None]:
    """Find files by their paths below a root, whatever the Unicode form of their names and the case of their endings.

    Parameters
    ----------
    root : path
        The data root.
    wanted : sequence of str
        Paths below it.
    ignore_case : bool
        Let upper and lower case be alike.

    Returns
    -------
    list of Path or None
        Files as they are called on the disk; None for what is not there.

    Raises
    ------
    DataError
        If a path could be two files.
    """
    # One listing per folder: asking for each of 25,000 files takes minutes on a network drive.
    listings: dict[Path, dict[str, list[str]]] = {}
    folders: dict[str, Path | None] = {"": Path(root)}

    def key(name: str) -> str:
        name = name if name.isascii() else unicodedata.normalize("NFC", name)
        if ignore_case:
            return name.casefold()
        stem, _, ending = name.rpartition(".")
        return f"{stem}.{ending.lower()}" if f".{ending.lower()}" in ENDINGS else name

    def listing(folder: Path) -> dict[str, list[str]]:
        if folder not in listings:
            listings[folder] = {}
            for name in os.listdir(folder) if folder.is_dir() else ():
                listings[folder].setdefault(key(name), []).append(name)
        return listings[folder]

    def child(folder: Path | None, name: str) -> Path | None:
        if folder is None:
            return None
        names = listing(folder).get(key(name), [])
        if name in names or len(names) == 1:
            return folder / (name if name in names else names[0])
        if names:
            raise DataError(f"{folder / name} could be {names[0]!r} or {names[1]!r}: keep one of the two")
        return None

    def find(path: str) -> Path | None:
        folder, _, name = path.rpartition("/")
        if folder not in folders:
            folders[folder] = find(folder)
        return child(folders[folder], name)

    return [find(PurePosixPath(path).as_posix()) for path in wanted]
