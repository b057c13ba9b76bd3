"""Globs and label rules of a description that lead to exactly the files that were found."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Iterator, Sequence

from cbst_mx.data.label_files import LabelPaths, check_expression, check_pattern
from cbst_mx.data.listing import ENDINGS, matching_images, merged, names_below
from cbst_mx.errors import DataError
from cbst_mx.messages import listed

__all__ = ["ImageRule", "LabelPattern", "image_rule", "label_rule"]

_MOST_GLOBS = 40


@dataclass(frozen=True)
class ImageRule:
    """Globs of images; where they also fit others, ``listed`` has the names of the wanted among ``among``."""

    globs: tuple[str, ...]
    listed: tuple[str, ...] = ()
    among: tuple[str, ...] = ()
    names: tuple[str, ...] = ()  # of the wanted images, in their order


@dataclass(frozen=True)
class LabelPattern:
    """A label rule: a pattern, or pairs of an expression and its replacement."""

    pattern: str | None
    replace: tuple[tuple[str, str], ...] = ()


def image_rule(root: Path, images: Sequence[Path]) -> ImageRule:
    """Return the globs that lead to some images.

    Parameters
    ----------
    root : Path
        Folder where globs start.
    images : sequence of Path
        Files below it.

    Raises
    ------
    DataError
        If no globs lead to them.
    """
    wanted = sorted(images)
    first: tuple[tuple[str, ...], tuple[Path, ...]] | None = None
    for globs in _globs(root, wanted):
        try:
            found = merged([matching_images(root, glob) for glob in globs]).files
        except (ValueError, DataError):
            continue
        if [*found] == wanted:
            return ImageRule(globs, names=tuple(_names(root, found)))
        if first is None and set(wanted) <= set(found):
            first = globs, found
    if first is None:
        raise DataError(f"no glob leads to {wanted[0]}: rename the folder or file")
    globs, found = first
    named = dict(zip(found, _names(root, found)))
    names = tuple(named[path] for path in wanted)
    return ImageRule(globs, names, tuple(named.values()), names)


def _names(root: Path, files: Sequence[Path]) -> list[str]:
    folders = [path.parent.relative_to(root).as_posix() for path in files]
    return names_below(files, ["" if folder == "." else folder for folder in folders])


def _globs(root: Path, images: Sequence[Path]) -> Iterator[tuple[str, ...]]:
    """Yield globs, the simplest first."""
    folders: dict[str, set[str]] = {}
    for path in images:
        below = path.relative_to(root)
        folders.setdefault("" if len(below.parts) == 1 else below.parent.as_posix(), set()).add(_ending(path))
    endings = sorted(set().union(*folders.values()))
    inside = _common_folder([*folders])
    several = len(folders) > 1
    if several:
        yield tuple(_glob(inside, f"**/*{ending}") for ending in endings)
    if len(folders) * len(endings) <= _MOST_GLOBS:
        yield tuple(
            _glob(folder, f"*{ending}") for folder, found in sorted(folders.items()) for ending in sorted(found)
        )
    tail = _common_tail([path.stem for path in images])
    if tail:
        yield tuple(_glob(inside, f"{'**/' if several else ''}*{_escaped(tail)}{ending}") for ending in endings)
    yield tuple(_glob(inside, f"**/*{ending}") for ending in endings)


def _ending(path: Path) -> str:
    suffix = path.suffix.lower()
    return suffix if suffix in ENDINGS else path.suffix


def _glob(folder: str, rest: str) -> str:
    return f"{_escaped(folder)}/{rest}" if folder else rest


def _escaped(text: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", text)


def _common_folder(folders: Sequence[str]) -> str:
    parts = [PurePosixPath(folder).parts for folder in folders]
    common = []
    for column in zip(*parts):
        if len(set(column)) > 1:
            break
        common.append(column[0])
    return "/".join(common)


def _common_tail(stems: Sequence[str]) -> str:
    tail = stems[0]
    for stem in stems:
        while not stem.endswith(tail):
            tail = tail[1:]
    match = re.search(r"[ ._-].*$", tail)
    return match.group() if match and len(stems) > 1 else ""


def label_rule(root: Path, pairs: Sequence[tuple[Path, Path]], names: Sequence[str]) -> LabelPattern:
    """Return the rule that leads from every image to its label.

    Parameters
    ----------
    root : Path
        Folder where rules start.
    pairs : sequence of (Path, Path)
        Images and labels below it.
    names : sequence of str
        Of the groups, for the message.

    Raises
    ------
    DataError
        If no one rule does.
    """
    known = [(image.relative_to(root).as_posix(), label.relative_to(root).as_posix()) for image, label in pairs]
    spread = known[:: max(1, len(known) // 50)]
    for pattern in _patterns(spread):
        try:
            if pattern.pattern is not None:
                check_pattern(pattern.pattern)
            for expression, replacement in pattern.replace:
                check_expression(expression, replacement)
            paths = LabelPaths(pattern.pattern, pattern.replace)
            if all(_same(paths.of(image), label) for image, label in known):
                return pattern
        except (ValueError, DataError, KeyError, IndexError):
            continue
    image, label = known[0]
    raise DataError(
        f"no one rule leads from the images of {listed(names)} to their labels (such as {image} to {label}): use one "
        "group only, or give images and labels folders alike"
    )


def _same(one: str, other: str) -> bool:
    """Return whether two paths are the same but for upper case in the ending."""
    (first, _, ending), (second, _, other_ending) = one.rpartition("."), other.rpartition(".")
    return first == second and ending.lower() == other_ending.lower()


def _patterns(pairs: Sequence[tuple[str, str]]) -> Iterator[LabelPattern]:
    """Yield rules that fit the first pair, the simplest first."""
    image, label = (PurePosixPath(path) for path in pairs[0])
    ending = label.suffix.lower()
    folder, target = _folder(image), _folder(label)
    if image.stem in label.stem:
        before, _, behind = label.stem.partition(image.stem)
        file = f"{_braced(before)}{{stem}}{_braced(behind)}{ending}"
        if len({_folder(PurePosixPath(one)) for one, _ in pairs}) == 1:
            yield LabelPattern(f"{_braced(target)}/{file}" if target else file)
        if folder and target.startswith(folder):
            yield LabelPattern(f"{{folder}}{_braced(target[len(folder) :])}/{file}")
        if folder and target.endswith(folder):
            yield LabelPattern(f"{_braced(target[: len(target) - len(folder)])}{{folder}}/{file}")
        yield LabelPattern(f"{_braced(target)}/{file}" if target else file)
    for names in _name_changes(image.stem, label.stem, ending):
        for folders in _folder_changes(folder, target):
            yield LabelPattern(None, (*folders, names))


def _folder(path: PurePosixPath) -> str:
    return "" if path.parent == PurePosixPath(".") else path.parent.as_posix()


def _braced(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _name_changes(image: str, label: str, ending: str) -> Iterator[tuple[str, str]]:
    """Yield replacements that turn the name of an image into that of its label, for the parts that they share."""
    if image in label:
        before, _, behind = label.partition(image)
        if not before:
            yield r"[.][^./]+$", _replacement(behind + ending)
        yield r"([^/]+)[.][^./]+$", f"{_replacement(before)}\\1{_replacement(behind + ending)}"
    for size in range(len(image) - 1, 0, -1):  # what begins both, or ends both, is the name that they share
        if label.startswith(image[:size]):
            yield re.escape(image[size:]) + r"[.][^./]+$", _replacement(label[size:] + ending)
        if label.endswith(image[-size:]):
            old, new = image[: len(image) - size], label[: len(label) - size]
            yield f"{re.escape(old)}([^/]+)[.][^./]+$", f"{_replacement(new)}\\1{ending}"


def _folder_changes(folder: str, target: str) -> Iterator[tuple[tuple[str, str], ...]]:
    """Yield replacements that turn one folder into another."""
    if folder == target:
        yield ()
        return
    one, other = folder.split("/") if folder else [], target.split("/") if target else []
    shared = 0
    while shared < min(len(one), len(other)) and one[-1 - shared] == other[-1 - shared]:
        shared += 1
    for tail in range(shared, -1, -1):
        old, new = "/".join(one[: len(one) - tail]), "/".join(other[: len(other) - tail])
        yield ((f"^{re.escape(old)}/" if old else "^", _replacement(f"{new}/" if new else "")),)
    head = 0
    while head < min(len(one), len(other)) and one[head] == other[head]:
        head += 1
    inner = min(shared, len(one) - head, len(other) - head)
    old, new = "/".join(one[head : len(one) - inner]), "/".join(other[head : len(other) - inner])
    if old and head:
        yield ((f"/{re.escape(old)}/", _replacement(f"/{new}/" if new else "/")),)
    yield ((r"/([^/]+)$", _replacement(f"/{new}/") + "\\1"),)


def _replacement(text: str) -> str:
    return text.replace("\\", "\\\\")
