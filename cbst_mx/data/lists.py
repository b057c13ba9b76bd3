"""Image lists: text files that name the images to use, one per line.

::

    # everything after a number sign is a comment
    00001.png
    17                                                          # 00017 of GTA5, 0000017 of SYNTHIA
    images/00018.png    labels/00018.png                        # only the first column counts
    frankfurt/frankfurt_000000_000294_leftImg8bit.png
    frankfurt_000000_000294
    road (2).png

A line names an image by its path, its file name or its bare name, so the lists that come with released programs can be
used as they are. The whole line is looked up first, as it stands: names may hold blanks, brackets, number signs and
dots. Only what is no image as a whole is taken for columns and a comment. A line that could mean two images is refused.
Lists choose, they do not order: the images keep the data set's order. Both Unicode forms of an accent are one.

Names that could be taken for another image's file stand in lists whose first line is `EXACT`: every further line of
such a list is one name, and nothing else.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import Iterable, Sequence, TypeVar

from cbst_mx.data.datasets import ImageSet
from cbst_mx.data.image_files import PathLike
from cbst_mx.data.listing import ENDINGS as _ENDINGS
from cbst_mx.errors import DataError
from cbst_mx.files import read_bounded, reading, write_text
from cbst_mx.messages import counted, listed

__all__ = ["EXACT", "find_listed", "list_path", "read_list", "select_listed", "write_list"]

_Images = TypeVar("_Images", bound=ImageSet)

#: First line of a list whose other lines are names, character by character.
EXACT = "# names, one per line, exactly as they are"

_CITYSCAPES = "_leftImg8bit"
_LARGEST = 64_000_000  # bytes: a million lines
_MOST_BLANKS = 20  # of a line's beginnings that may be names
_MOST_SIGNS = 20  # places of a line where a comment may begin
_COPY = re.compile(r"\([0-9]+\)(\s|$)")  # how systems name a second file
# an image without an ending, such as 00017, berlin_000000_000019 or road (2)
_NAME = re.compile(r"[0-9]{1,20}|[\w./ -]{1,40} ?\([0-9]+\)|(?=.*[0-9]{2})[\w./ -]{1,50}")
_LONGEST_SHOWN = 80  # characters of a line in a message


def list_path(list: PathLike, root: PathLike) -> Path:
    """Return the path of a list: absolute, or below the data root."""
    return Path(root) / list


def read_list(path: PathLike) -> tuple[str, ...]:
    """Read the lines of a list that are not blank, as they stand there.

    Text is UTF-8 with or without a byte order mark, or UTF-16 with one; lines end as on Linux or Windows.

    Raises
    ------
    DataError
        If the file is missing, no text, too large to be a list, or blank throughout.
    """
    shown = _cut(os.fspath(path), 300)
    try:
        content = read_bounded(path, _LARGEST)
    except FileNotFoundError as error:
        raise DataError(f"image list {shown} does not exist (a relative path starts at the data root)") from error
    except OSError as error:
        raise DataError(f"image list {shown} cannot be read: {error.strerror or error}") from error
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    with reading(f"image list {shown}"):
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError as error:
            raise DataError(f"image list {shown} must be text in UTF-8, one image per line") from error
        # Only the line ends that editors write: a name may hold others, such as U+2028.
        lines = tuple(line for line in text.replace("\r\n", "\n").split("\n") if line.strip())
    if any(unicodedata.category(character) == "Cc" for character in set(text) - set("\t\r\n")):
        raise DataError(f"image list {shown} must be text, one image per line: it holds control characters")
    if not lines:
        raise DataError(f"image list {shown} names no image")
    return lines


def write_list(path: Path, names: Sequence[str], among: Iterable[str] = ()) -> None:
    """Write a list of names that `read_list` and `find_listed` read back.

    Parameters
    ----------
    path : Path
        Replaced when it is there.
    names : sequence of str
        Names to write.
    among : iterable of str
        All names of the set they are chosen from.

    Raises
    ------
    RunError
        If the file cannot be written.
    """
    everything = {*among, *names}
    # "a.png" may be the file of "a", too, and "#1" a comment; a byte order mark that begins a text is no part of it.
    doubtful = any(
        name.lower().endswith(_ENDINGS) or os.path.splitext(name)[0] in everything - {name} or name[0] in "#\ufeff"
        for name in names
    )
    write_text(path, "".join(f"{line}\n" for line in ([EXACT] if doubtful else []) + [*names]))


def find_listed(
    names: Sequence[str],
    entries: Sequence[str],
    origin: str,
    *,
    paths: Sequence[Path] = (),
    root: PathLike | None = None,
) -> list[int]:
    """Find the images of a list.

    Parameters
    ----------
    names : sequence of str
        Names of an `ImageSet`.
    entries : sequence of str
        Lines of the list, from `read_list`.
    origin : str
        The list's name, for the message.
    paths : sequence of Path, optional
        The images' files, for lines that name them.
    root : path, optional
        The data root, from which paths in the list start.

    Returns
    -------
    list of int
        Ascending indices into `names`.

    Raises
    ------
    DataError
        If a line names no image or could mean two, or an image is named twice or none at all.
    """
    exact = bool(entries) and entries[0].strip() == EXACT
    index = _Index(names, paths, root)
    found: dict[int, str] = {}
    unknown = []
    for number, entry in enumerate(entries[1:] if exact else entries, 2 if exact else 1):
        matches = index.exactly(entry) if exact else index.find(entry)
        if matches is None:  # a comment
            continue
        if not matches:
            unknown.append(_shown(entry.strip(), number))
            continue
        if len(matches) > 1:
            first, second = (index.describe(number) for number in matches[:2])
            raise DataError(
                f"image list {origin} has a line that could mean {first} or {second}: {_cut(entry.strip())!r}"
            )
        if matches[0] in found:
            raise DataError(
                f"image list {origin} must name an image once, got {found[matches[0]]!r} and {_cut(entry.strip())!r}"
            )
        found[matches[0]] = _cut(entry.strip())
    if unknown:
        example = _cut(names[0]) if names else "none"
        raise DataError(
            f"image list {origin} names {len(unknown):,} of {counted(len(unknown) + len(found), 'image')} not there: "
            f"{listed(unknown)} (the data have {counted(len(names), 'image')}, such as {example})"
        )
    if not found:
        raise DataError(f"image list {origin} names no image")
    return sorted(found)


def select_listed(images: _Images, list: PathLike | None, root: PathLike) -> _Images:
    """Return the images that a list names, or all of them if there is no list.

    Parameters
    ----------
    images : ImageSet
        Labelled or not.
    list : path or None
        The text file; a relative path starts at `root`.
    root : path
        The data root.

    Raises
    ------
    DataError
        If the list cannot be used or names images that are not there.
    """
    if list is None:
        return images
    path = list_path(list, root)
    chosen = find_listed(images.names, read_list(path), str(path), paths=images.image_paths, root=root)
    return images.subset(chosen)  # type: ignore[return-value]


class _Index:
    """Images by everything that a line may call them."""

    def __init__(self, names: Sequence[str], paths: Sequence[Path], root: PathLike | None) -> None:
        self._names = names
        self._paths = [_below(path, root) for path in paths]
        self._absolute = [path.as_posix() for path in paths]
        self._exact: defaultdict[str, list[int]] = defaultdict(list)  # name, file name or path
        self._composed: defaultdict[str, list[int]] = defaultdict(list)  # the same, in one Unicode form
        self._files: defaultdict[str, list[int]] = defaultdict(list)  # file name, and without its ending
        self._numbers: defaultdict[str, list[int]] = defaultdict(list)
        for number, name in enumerate(names):
            self._add(number, {name})
            self._files[_composed(name)].append(number)
            if _is_number(name):
                self._numbers[_digits(name)].append(number)
        for number, path in enumerate(self._paths):
            file = PurePosixPath(path)
            self._add(number, {file.name, path, self._absolute[number]} - {names[number]})
            for text in {_composed(file.name), _composed(file.stem)} - {_composed(names[number])}:
                self._files[text].append(number)

    def _add(self, number: int, texts: Iterable[str]) -> None:
        for text in texts:
            self._exact[text].append(number)
            self._composed[_composed(text)].append(number)

    def describe(self, number: int) -> str:
        """Return how a message calls an image."""
        return repr(_cut(self._paths[number] if self._paths else self._names[number], 120))

    def exactly(self, line: str) -> list[int]:
        """Return the image whose name is the line, character by character or else in one Unicode form."""
        for table, text in ((self._exact, line), (self._composed, _composed(line))):
            matches = [i for i in table.get(text, ()) if text in (self._names[i], _composed(self._names[i]))]
            if matches:
                return matches
        return []

    def find(self, line: str) -> list[int] | None:
        """Return the images a line could mean, or None if it is a comment.

        The whole line as it stands goes before everything else. Of what remains, the line without its comment and its
        first column must not lead to different images.
        """
        cuts = _without_comment(line)
        for text in (line, *cuts):
            matches = self._as_it_stands(text)
            if matches:
                return matches
        if not cuts[-1]:
            return None
        plain = cuts[-1].split("\t", 1)[0].rstrip()  # no name holds a tab
        column = plain.split(maxsplit=1)[0]
        first = self._as_it_stands(column)
        if first and _ends(column):
            return first
        whole = next(filter(None, map(self._loosely, (*cuts[:-1], plain))), [])
        if not _is_column(column, cuts[0]):
            return whole  # "road (2).png" does not mean "road"
        # "a b 0.9" may begin with the name "a" or "a b"
        ends = [place for place, sign in enumerate(plain) if sign.isspace()][1:_MOST_BLANKS]
        longer = [number for end in ends for number in self._as_it_stands(plain[:end].rstrip())]
        if not _COPY.match(plain[len(column) :].strip()):  # "road (2)" does not mean "road" either
            longer += first or self._loosely(column)
        return [*dict.fromkeys([*whole, *longer])]

    def _as_it_stands(self, text: str) -> list[int]:
        matches = self._exact.get(text) or self._composed.get(_composed(text)) or []
        return [*dict.fromkeys(matches)]

    def _loosely(self, text: str) -> list[int]:
        """Return the images whose file name, bare name or number ends the path `text`."""
        path = _composed(text).replace("\\", "/")
        name = path.rpartition("/")[2]
        bare = next((name[: -len(end)] for end in _ENDINGS if name.lower().endswith(end)), name)
        short = bare[: -len(_CITYSCAPES)] if bare.endswith(_CITYSCAPES) else bare
        for form in dict.fromkeys((name, bare, short)):
            matches = [*dict.fromkeys(self._files.get(form, ()))]
            if matches:
                return self._nearest(path, matches) if len(matches) > 1 and self._paths else matches
        return self._numbers.get(_digits(short), []) if _is_number(short) else []

    def _nearest(self, path: str, matches: list[int]) -> list[int]:
        """Return those of several images whose folders have most in common with the end of the path."""
        folders = path.split("/")[-2::-1]
        common = {}
        for number in matches:
            theirs = _composed(self._paths[number]).split("/")[-2::-1]
            same = [mine == other for mine, other in zip(folders, theirs)]
            common[number] = same.index(False) if False in same else len(same)
        return [number for number in matches if common[number] == max(common.values())]


def _below(path: Path, root: PathLike | None) -> str:
    try:
        return path.relative_to(root).as_posix() if root is not None else path.as_posix()
    except ValueError:
        return path.as_posix()


def _without_comment(line: str) -> list[str]:
    """Return the line and what is before each number sign that begins it or follows a blank, the longest first."""
    ends = [i for i, sign in enumerate(line) if sign == "#" and (i == 0 or line[i - 1].isspace())]
    return [line[:end].strip() for end in (None, *ends[::-1][:_MOST_SIGNS], *ends[:1])]


def _ends(text: str) -> bool:
    return text.lower().endswith(_ENDINGS)


def _is_column(column: str, line: str) -> bool:
    """Return whether the first word of a line stands for itself and is not the beginning of a file's name."""
    rest = line[len(column) :].strip()
    return not rest or _ends(column) or not _ends(rest) or PurePosixPath(column).name in PurePosixPath(rest).name


def _composed(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit()  # ASCII digits only: isdigit alone takes more than that


def _digits(name: str) -> str:
    return name.lstrip("0") or "0"  # "17" may stand for "00017"


def _shown(line: str, number: int) -> str:
    """Return a line that names no image, or its number where it does not look like an image's name.

    A list may be another file by mistake or by somebody's intent, a password or a key, and messages are passed on.
    """
    return _cut(line) if _ends(line) or _NAME.fullmatch(line) else f"line {number}"


def _cut(text: str, longest: int = _LONGEST_SHOWN) -> str:
    return text if len(text) <= longest else text[: longest - 3] + "..."
