"""What the images and labels of a run are: digests of their contents, so that paths and times do not matter.

Every file is read in full once. Its digest stands in ``inputs.json`` of the run folder beside its size and time of
change; as long as these two stay, the file counts as unaltered and is not read again.
"""

from __future__ import annotations

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Sequence

from cbst_mx.data import ImageSet, LabelledImageSet
from cbst_mx.data.colour_masks import ColourMasks
from cbst_mx.errors import DataError
from cbst_mx.files import SEAL, digest_of, file_digest, in_one_line, read_json, write_text
from cbst_mx.messages import Counter, silent

__all__ = ["Changes", "InputFiles", "Listing", "describe_changes", "find_changes", "label_meaning"]

logger = logging.getLogger(__name__)

#: By name of an image, for its file and, where there is one, its label's: [SHA-256, bytes, time of change in ns].
Listing = Dict[str, List[List[Any]]]

_THREADS = 4
_LONGEST_TABLE = 300  # ids of a convention that are written out


class InputFiles:
    """The image sets of a run, by name, with digests of their files.

    Parameters
    ----------
    sets : mapping of str to ImageSet
        Such as "source", "target" and "validation NAME".
    progress : callable, optional
        Called with (what, files read, files in all).
    """

    def __init__(self, sets: Mapping[str, ImageSet], progress: Any = silent):
        self._sets = dict(sets)
        self._progress = progress
        self.known: dict[str, Listing] = {}  # as recorded when the files were last used
        self._current: dict[str, Listing] = {}
        self._damaged = False
        self._fresh: set[str] = set()  # looked at since the last `refresh`

    def load(self, path: Path) -> None:
        """Read what is recorded; what is damaged or missing is found out anew."""
        try:
            values = read_json(path)  # sealed: a flipped digest would make an image another one
            self.known = {
                str(name): {str(key): [[str(d), int(b), int(t)] for d, b, t in files] for key, files in listing.items()}
                for name, listing in values.items()
            }
        except Exception:  # a cache: without it files are read again
            self.known, self._damaged = {}, path.is_file()

    def save(self, path: Path) -> None:
        """Write what is recorded, with what was found since."""
        if any(self.known.get(name) != listing for name, listing in self._current.items()) or not path.is_file():
            self._write(path)

    def mend(self, path: Path) -> None:
        """Write the file anew where :meth:`load` has found it damaged."""
        if self._damaged and self._current:
            logger.warning("%s was damaged; the images are read again", path)
            self._write(path)

    def _write(self, path: Path) -> None:
        self.known.update(self._current)
        text = json.dumps({**self.known, SEAL: digest_of(self.known)}, indent=None, separators=(",", ":"))
        write_text(path, text + "\n")
        self._damaged = False

    def refresh(self) -> None:
        """Let all files be looked at again."""
        self._fresh.clear()

    def digest(self, name: str) -> str:
        """Return the digest of a set as its files are now: of names, contents and order."""
        listing = self.listing(name)
        return digest_of([[image, *(one[0] for one in files)] for image, files in listing.items()])

    def listing(self, name: str) -> Listing:
        """Return the files of a set as they are, or were when they were looked at since the last `refresh`.

        Raises
        ------
        DataError
            If one of them cannot be read.
        """
        if name in self._fresh:
            return self._current[name]
        images = self._sets[name]
        known = self._current.get(name) or self.known.get(name, {})
        paths = [[path] for path in images.image_paths]
        if isinstance(images, LabelledImageSet):
            paths = [[image, label] for (image,), label in zip(paths, images.label_paths)]
        bar = lambda done, total: self._progress(f"digests of {name} images", done, total)  # noqa: E731
        self._current[name] = _listed(images.names, paths, known, bar)
        self._fresh.add(name)
        return self._current[name]

    def changes(self, name: str) -> str | None:
        """Return in words how a set differs from what is recorded; None where it does not, or nothing is recorded."""
        if name not in self.known:
            return None
        return describe_changes(self.known[name], self.listing(name))

    def meaning(self, name: str) -> dict[str, Any]:
        """Return what the labels of a set mean, see :func:`label_meaning`; nothing of a set without labels."""
        images = self._sets[name]
        return label_meaning(images) if isinstance(images, LabelledImageSet) else {}


def _listed(names: Sequence[str], paths: list[list[Path]], known: Listing, progress: Counter) -> Listing:
    """Stat every file, and read those that are not known at their size and time."""
    found: Listing = {}
    unread: list[tuple[list[Any], Path]] = []
    for name, files in zip(names, paths):
        before = known.get(name, [])
        found[name] = []
        for place, path in enumerate(files):
            try:
                status = path.stat()
            except OSError as error:
                raise DataError(f"{path} cannot be read: {in_one_line(error)}") from error
            record = ["", status.st_size, status.st_mtime_ns]
            if place < len(before) and before[place][1:] == record[1:]:
                record[0] = before[place][0]
            else:
                unread.append((record, path))
            found[name].append(record)
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="cbst-digest") as pool:
        for number, ((record, _), digest) in enumerate(zip(unread, pool.map(_digest, (p for _, p in unread))), 1):
            record[0] = digest
            if number % 100 == 0 or (number == len(unread) >= 100):
                progress(number, len(unread))
    return found


def _digest(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {in_one_line(error)}") from error


class Changes(NamedTuple):
    """Names of the images in which a listing differs from an earlier one."""

    added: list[str]
    removed: list[str]
    images: list[str]  # of other contents
    labels: list[str]  # with labels of other contents


def find_changes(before: Listing, now: Listing) -> Changes:
    """Compare two listings of files by their digests."""
    both = [name for name in now if name in before]
    return Changes(
        [name for name in now if name not in before],
        [name for name in before if name not in now],
        [name for name in both if _digests(now[name][:1]) != _digests(before[name][:1])],
        [name for name in both if _digests(now[name][1:]) != _digests(before[name][1:])],
    )


def _digests(files: Sequence[Sequence[Any]]) -> list[Any]:
    return [one[0] for one in files]


def describe_changes(before: Listing, now: Listing) -> str | None:
    """Return in words how a listing of files differs from an earlier one; None where it does not."""
    found = find_changes(before, now)
    words = ("added", "removed", "changed", "with changed labels")
    told = [f"{len(names)} {what} ({_some(names)})" for names, what in zip(found, words) if names]
    if not told and list(before) != list(now):
        told = ["in another order"]
    return ", ".join(told) or None


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def label_meaning(images: LabelledImageSet) -> dict[str, Any]:
    """Return what the values in the label files of a set mean.

    Returns
    -------
    dict
        ``ids``: class name, or "ignored", by raw id or colour, as JSON values; a digest where there are many.
    """
    names = images.label_space.names

    def name_of(train_id: int) -> str:
        return names[train_id] if train_id < len(names) else "ignored"

    if isinstance(images.read, ColourMasks):
        table = {f"colour {key}": name_of(value) for key, value in images.read.table().items()}
    else:
        table = {
            str(raw): name_of(value) for raw, value in sorted(images.label_space.raw_ids[images.convention].items())
        }
    if len(table) > _LONGEST_TABLE:
        return {"ids": digest_of(table)}
    return {f"ids.{key}": value for key, value in table.items()}
