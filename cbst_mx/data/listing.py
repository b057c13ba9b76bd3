"""Finding image files: what every command that is given a folder takes from it, what it leaves out, and why.

Links to files and to folders are followed; a folder that ``**`` reaches in several ways is listed once, so links in a
circle come to an end. Endings of images (``.png``, ``.jpg``, ...) match in upper and lower case, names with accents in
both Unicode forms. Left out is what systems put beside images: names that begin with a dot (a Mac's ``._a.jpg``),
thumbnails, recycling bins. What was asked for but cannot be read (links to nothing, pipes, folders without permission)
is refused, never dropped.
"""

from __future__ import annotations

import fnmatch
import os
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Callable, Iterable, Iterator, Mapping, NamedTuple, Sequence

from cbst_mx.data.image_headers import PathLike
from cbst_mx.errors import DataError
from cbst_mx.messages import listed

__all__ = [
    "ENDINGS",
    "Listing",
    "all_images",
    "files_below",
    "images_beside",
    "matching_images",
    "merged",
    "names_below",
]

#: Endings of the formats that are read as images.
ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".ppm", ".pgm", ".jp2")

#: Names that are looked through, in all folders: what someone else's pattern may lead to has an end.
MOST_NAMES = 5_000_000

HIDDEN = "hidden"
OTHER = "of another kind"
FOLDER = "named like an image, but a folder"
TWICE = "linked a second time"
BROKEN = "linking to nothing"

_SYSTEM = ("Thumbs.db", "desktop.ini", "@eaDir", "__MACOSX", "lost+found", "$RECYCLE.BIN", "System Volume Information")
_SHOWN = 3  # names of one reason


@dataclass(frozen=True)
class Listing:
    """Image files in the order of their paths, and what was left out.

    ``left_out`` has paths by reason, a phrase such as "hidden" that goes behind a number.
    """

    files: tuple[Path, ...]
    left_out: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)

    def remark(self) -> str:
        """Return what was left out and why, such as "2 left out: 1 hidden (._a.jpg), ..."; empty if nothing was."""
        groups = [
            f"{len(paths):,} {reason} ({listed([path.name for path in paths], _SHOWN)})"
            for reason, paths in self.left_out.items()
            if paths
        ]
        total = sum(map(len, self.left_out.values()))
        return f"{total:,} left out: {', '.join(groups)}" if groups else ""

    def without(self, reason: str, paths: Iterable[Path]) -> Listing:
        """Return the listing with some of its files left out for a reason."""
        gone = set(paths).intersection(self.files)
        if not gone:
            return self
        kept = tuple(path for path in self.files if path not in gone)
        return merged([Listing(kept, self.left_out), Listing((), {reason: tuple(sorted(gone))})])


def matching_images(root: PathLike, pattern: str) -> Listing:
    """Find the files below a folder whose path fits a glob.

    Parameters
    ----------
    root : path
        Folder where the pattern starts.
    pattern : str
        ``*``, ``?`` and ``[...]`` within a name; ``**`` for any number of folders.

    Raises
    ------
    ValueError
        If the pattern is no glob.
    DataError
        If a fitting file is a link to nothing, a pipe or a device, or a folder cannot be read.
    """
    parts = PurePosixPath(pattern).parts
    if not parts or PurePosixPath(pattern).is_absolute() or "\0" in pattern:
        raise ValueError(f"must be a pattern below the folder, got {pattern[:60]!r}")
    if any("**" in part and part != "**" for part in parts):
        raise ValueError("'**' can only be an entire part of a path")
    walk = _Walk()
    folders = [Path(root)]
    for part in parts[:-1]:
        folders = walk.folders(folders, part)
    if parts[-1] == "**":  # folders alone
        return Listing(())
    fits = _fitting(parts[-1])
    return walk.listing(path for folder in folders for path in walk.files(folder, fits, tell=False))


def all_images(folder: PathLike) -> Listing:
    """Find the files with an image's ending in a folder and all folders below it.

    Raises
    ------
    DataError
        As `matching_images`.
    """
    walk = _Walk()
    inside = walk.folders([Path(folder)], "**")
    return walk.listing(path for below in inside for path in walk.files(below, _is_image, tell=True))


def files_below(folder: PathLike, skip: Callable[[Path], bool]) -> tuple[list[Path], list[Path]]:
    """Find the files of any kind in a folder and all folders below it, by the rules of images.

    Parameters
    ----------
    folder : path
        Where the search begins.
    skip : callable
        Says of a folder below it whether it is left out.

    Returns
    -------
    files : list of Path
        All that are not hidden, whether they can be read or not: their readers say what is wrong with a broken link.
    skipped : list of Path
        The folders left out.

    Raises
    ------
    DataError
        If a folder cannot be read.
    """
    walk = _Walk(skip)
    inside = walk.folders([Path(folder)], "**")
    files = [path for below in inside for path in walk.named(below, lambda name: not _is_hidden(name))]
    return files, sorted(walk.skipped)


def merged(listings: Sequence[Listing]) -> Listing:
    """Return one listing of several; a file that is in two is there once, and none is left out that another takes."""
    files = {path for listing in listings for path in listing.files}
    left_out: dict[str, set[Path]] = {}
    for listing in listings:
        for reason, paths in listing.left_out.items():
            left_out.setdefault(reason, set()).update(path for path in paths if path not in files)
    return Listing(
        tuple(sorted(files)),
        {reason: tuple(sorted(left_out[reason])) for reason in sorted(left_out) if left_out[reason]},
    )


def images_beside(files: Sequence[Path], known: Iterable[Path]) -> list[Path]:
    """Return the files with an image's ending that lie in the folders of some files and are none of those known.

    Raises
    ------
    DataError
        If a folder cannot be read.
    """
    walk, taken = _Walk(), set(known)
    return [
        path
        for folder in sorted({path.parent for path in files})
        for path in walk.named(folder, lambda name: _is_image(name) and not _is_hidden(name))
        if path not in taken
    ]


def names_below(files: Sequence[Path], folders: Sequence[str]) -> list[str]:
    """Return a name for each file: its stem, with the folder in front where two files have one stem.

    Parameters
    ----------
    files : sequence of Path
        The files.
    folders : sequence of str
        Folder of each below the place where the search began, with ``/`` between parts, empty for that place.
    """
    stems = Counter(path.stem for path in files)
    return [
        (folder.replace("/", "__") + "__" if folder and stems[path.stem] > 1 else "") + path.stem
        for path, folder in zip(files, folders)
    ]


class _Entry(NamedTuple):
    """Name in a folder, and what is there: "file", "folder", "broken" or "special"."""

    name: str
    kind: str
    is_link: bool


class _Walk:
    """Folders as they are listed, each read once, and what is left out on the way."""

    def __init__(self, skip: Callable[[Path], bool] = lambda folder: False) -> None:
        self._skip = skip
        self.skipped: set[Path] = set()
        self._count = 0  # of names in all folders
        self._entries: dict[Path, list[_Entry]] = {}
        self._left_out: dict[str, set[Path]] = {}

    def listing(self, files: Iterable[Path]) -> Listing:
        """Return files and everything left out so far."""
        found = Listing(tuple(files))  # before what is left out is looked at: that fills it
        return merged([found, Listing((), {reason: tuple(paths) for reason, paths in self._left_out.items()})])

    def files(self, folder: Path, fits: Callable[[str], bool], *, tell: bool) -> Iterator[Path]:
        """Yield the files of a folder with a fitting name; `tell` counts the others among those left out."""
        for name, kind, _ in self._read(folder):
            path = folder / name
            if kind == "folder":
                if fits(name) and _is_image(name):
                    self._leave_out(FOLDER, path)
            elif not fits(name):
                if tell:
                    self._leave_out(HIDDEN if _is_hidden(name) else OTHER, path)
            elif _is_hidden(name):
                self._leave_out(HIDDEN, path)
            elif kind == "broken":
                raise DataError(f"image {path} is a link to nothing ({_target(path)}): mend or delete the link")
            elif kind == "special":
                raise DataError(f"image {path} must be a file, got a pipe or device")
            else:
                yield path

    def named(self, folder: Path, fits: Callable[[str], bool]) -> list[Path]:
        """Return what has a fitting name in a folder and is no folder, whether it can be read or not."""
        return [folder / name for name, kind, _ in self._read(folder) if kind != "folder" and fits(name)]

    def folders(self, starts: Sequence[Path], part: str) -> list[Path]:
        """Return the folders that one part of a pattern leads to, each once."""
        found: dict[Path, None] = {}
        for start in starts:
            found.update(dict.fromkeys(self._below(start) if part == "**" else self._children(start, part)))
        return list(found)

    def _children(self, folder: Path, part: str) -> Iterator[Path]:
        if not _is_pattern(part) and (folder / part).is_dir():
            yield folder / part
            return
        fits = _fitting(part)
        for name, kind, _ in self._read(folder):
            if kind == "folder" and fits(name):
                if _is_hidden(name) and not part.startswith(name[0]):
                    self._leave_out(HIDDEN, folder / name)
                else:
                    yield folder / name

    def _below(self, start: Path) -> Iterator[Path]:
        """Yield a folder and all below it, those that are reached without a link first."""
        seen: set[tuple[int, int]] = set()
        links = [start]
        while links:
            waiting = [links.pop(0)]
            while waiting:
                folder = waiting.pop()
                identity = _identity(folder)
                if identity in seen:
                    self._leave_out(TWICE, folder)
                    continue
                seen.add(identity)
                yield folder
                for name, kind, is_link in self._read(folder):
                    path = folder / name
                    if kind == "broken" and not _is_image(name) and not _is_hidden(name):
                        self._leave_out(BROKEN, path)
                    if kind == "folder" and _is_hidden(name):
                        self._leave_out(HIDDEN, path)
                    elif kind == "folder" and self._skip(path):
                        self.skipped.add(path)
                    elif kind == "folder":
                        (links if is_link else waiting).append(path)

    def _read(self, folder: Path) -> list[_Entry]:
        if folder not in self._entries:
            try:
                with os.scandir(folder) as entries:
                    self._entries[folder] = sorted(map(_entry, entries))
            except OSError as error:
                raise DataError(f"folder {folder} cannot be read: {error.strerror or error}") from error
            self._count += len(self._entries[folder])
            if self._count > MOST_NAMES:
                raise DataError(f"folder {folder} and those before it hold more than {MOST_NAMES:,} names")
        return self._entries[folder]

    def _leave_out(self, reason: str, path: Path) -> None:
        self._left_out.setdefault(reason, set()).add(path)


def _entry(entry: os.DirEntry[str]) -> _Entry:
    is_link = entry.is_symlink()
    try:
        if entry.is_dir():
            kind = "folder"
        elif entry.is_file():
            kind = "file"
        else:
            entry.stat()
            kind = "special"
    except OSError:  # a link to nothing or in a circle
        kind = "broken"
    return _Entry(entry.name, kind, is_link)


def _identity(folder: Path) -> tuple[int, int]:
    try:
        found = folder.stat()
    except OSError as error:
        raise DataError(f"folder {folder} cannot be read: {error.strerror or error}") from error
    return found.st_dev, found.st_ino


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return "unknown"


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _SYSTEM


def _is_image(name: str) -> bool:
    return name.lower().endswith(ENDINGS)


def _is_pattern(part: str) -> bool:
    return any(sign in part for sign in "*?[")


def _composed(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _fitting(part: str) -> Callable[[str], bool]:
    """Return whether a name fits one part of a pattern; endings of images do in upper and lower case."""
    ending = next((end for end in ENDINGS if part.lower().endswith(end)), "")
    rest = _composed(part[: len(part) - len(ending)])
    # a bracket that is closed behind the ending's beginning is none of the rest
    if rest.count("[") > rest.count("]"):
        ending, rest = "", _composed(part)
    expression = re.compile(fnmatch.translate(rest))

    def fits(name: str) -> bool:
        if not name.lower().endswith(ending):
            return False
        return expression.match(_composed(name[: len(name) - len(ending)])) is not None

    return fits
