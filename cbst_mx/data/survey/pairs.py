"""Which mask belongs to which photograph: names that are alike but for a word before or behind, in folders alike.

The name of a mask is that of its photograph, or both are one name with words of their own around it
(``a_leftImg8bit``, ``a_gtFine_labelIds``; ``rgb_1``, ``mask_1``). Of several photographs with such a name the one whose
folder is most like the mask's; where two are equally like it, nothing is chosen.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterator, Sequence

from cbst_mx.data.survey.files import last_word
from cbst_mx.errors import DataError
from cbst_mx.messages import listed

__all__ = ["Pairing", "pair"]

# Of several masks of one photograph the first of these is taken; others follow in the order of their names.
_PREFERRED = ("labelids", "labeltrainids", "trainids", "ids", "id", "mask", "label", "labels", "gt")
_LAST = ("color", "colour", "colors", "rgb", "vis", "overlay", "viz")


@dataclass
class Pairing:
    """The mask of every photograph that has one, and what was left over."""

    label: dict[Path, Path] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def pair(root: Path, photographs: Sequence[Path], masks: Sequence[Path]) -> Pairing:
    """Find the mask of each photograph.

    Parameters
    ----------
    root : Path
        Folder that all are below.
    photographs, masks : sequence of Path
        From :func:`.files.tell_apart`.

    Raises
    ------
    DataError
        If a mask could belong to two photographs.
    """
    index: dict[str, list[Path]] = defaultdict(list)
    for photograph, names in _bare_names(photographs):
        for name in names:
            index[name].append(photograph)
    claims: dict[Path, list[tuple[int, str, Path]]] = defaultdict(list)
    chosen: dict[Path, Path | None] = {}
    stray: list[Path] = []
    for mask in masks:
        owners = _owners(root, mask, index)
        if len(owners) > 1:
            first, second = (owner.relative_to(root) for owner in owners[:2])
            raise DataError(
                f"mask {mask.relative_to(root)} could be that of {first} and of {second}: give the folders of labels "
                "names like those of their images (day, day-masks), or leave one out with --exclude"
            )
        chosen[mask] = owners[0] if owners else None
    # A folder of masks is that of the photographs it is most like: none of it goes to others that share some names.
    best: dict[Path, tuple[float, int]] = {}
    for mask, owner in chosen.items():
        if owner is not None:
            best[mask.parent] = max(_alike(root, owner, mask), best.get(mask.parent, (-1.0, 0)))
    for mask, owner in chosen.items():
        if owner is None or _alike(root, owner, mask)[0] < best[mask.parent][0]:
            stray.append(mask)
        else:
            claims[owner].append((_rank(mask), mask.as_posix(), mask))
    found = Pairing({photograph: min(choices)[2] for photograph, choices in claims.items()})
    used = {last_word(mask.stem) or "without such a word" for mask in found.label.values()}
    second_choice = {last_word(mask.stem) for choices in claims.values() for *_, mask in choices} - used - {""}
    if second_choice:
        found.remarks.append(
            f"some images have several masks: those named {listed(sorted(used))} are taken, those named "
            f"{listed(sorted(second_choice))} not (--exclude '*/...' leaves some out)"
        )
    if stray:
        shown = listed([mask.relative_to(root).as_posix() for mask in stray], 3)
        found.remarks.append(f"{len(stray):,} masks belong to no photograph: {shown}")
    return found


def _bare_names(photographs: Sequence[Path]) -> Iterator[tuple[Path, set[str]]]:
    """Yield each photograph with its name, and its name without the words that all of its folder have around it."""
    folders: dict[Path, list[Path]] = defaultdict(list)
    for path in photographs:
        folders[path.parent].append(path)
    for paths in folders.values():
        stems = [path.stem for path in paths]
        before = re.match(r"(?:[^\W\d_]+[ ._-]+)?", os.path.commonprefix(stems)) if len(stems) > 1 else None
        head = before.group() if before else ""
        backwards = os.path.commonprefix([stem[::-1] for stem in stems]) if len(stems) > 1 else ""
        tail = backwards[::-1]
        endings = [tail[match.start() :] for match in re.finditer(r"[ ._-]+(?=[^\W\d_])", tail)]
        for path in paths:
            stem = path.stem
            bare = {stem, stem[len(head) :], *(stem[: len(stem) - len(ending)] for ending in endings)}
            yield path, {name for name in bare if name}


def _mask_names(stem: str) -> Iterator[str]:
    """Yield the names that the photograph of a mask may have, the most like it first."""
    yield stem
    for match in reversed([*re.finditer(r"[ ._-]+", stem)]):
        if match.start() and not stem[match.end() :].isdigit():
            yield stem[: match.start()]
    before = re.match(r"[^\W\d_]+[ ._-]+", stem)
    if before:
        yield stem[before.end() :]
    glued = re.fullmatch(r"(.*\d)[^\W\d_]+", stem)  # 0001L
    if glued:
        yield glued.group(1)


def _owners(root: Path, mask: Path, index: dict[str, list[Path]]) -> list[Path]:
    """Return the photographs that a mask may belong to, none of which is likelier than another."""
    for name in _mask_names(mask.stem):
        owners = index.get(name)
        if owners:
            likeness = [_alike(root, owner, mask) for owner in owners]
            return [owner for owner, one in zip(owners, likeness) if one == max(likeness)]
    return []


def _alike(root: Path, photograph: Path, mask: Path) -> tuple[float, int]:
    return _likeness(photograph.relative_to(root).parts[:-1], mask.relative_to(root).parts[:-1])


def _likeness(folder: Sequence[str], other: Sequence[str]) -> tuple[float, int]:
    """Return how alike two folders below the root are: parts that are in both, whole or as the beginning."""
    score = 0.0
    rest = [part.lower() for part in other]
    for part in (part.lower() for part in folder):
        if part in rest:
            score += 1
            rest.remove(part)
        else:
            alike = [one for one in rest if one.startswith(part) or part.startswith(one)]
            if alike:
                best = max(alike, key=len)
                score += min(len(best), len(part)) / max(len(best), len(part))
                rest.remove(best)
    return round(score, 6), -abs(len(folder) - len(other))


def _rank(mask: Path) -> int:
    word = last_word(mask.stem).strip(" ._-").lower()
    if word in _LAST:
        return len(_PREFERRED) + 1
    return _PREFERRED.index(word) if word in _PREFERRED else len(_PREFERRED)
