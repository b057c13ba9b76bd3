"""What masks hold: ids or colours, how many pixels and masks have each, and what it may be called."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Mapping, Sequence, Union

import numpy as np
from PIL import Image

from cbst_mx.data.image_files import Header, read_header, read_label, read_rgb
from cbst_mx.errors import DataError
from cbst_mx.label_space import CITYSCAPES_19, IGNORE, LABEL_SPACES, numbered
from cbst_mx.messages import Progress, silent

__all__ = ["Contents", "Found", "NO_CLASS", "contents", "named"]

#: Names that mean that a pixel counts nowhere.
NO_CLASS = ("ignore", "ignored", "void", "unlabelled", "unlabeled", "unlabel", "dontcare", "dont care", "unknown")

_MOST_CLASSES = 253
_MOST_COLOURS = 1000
_BLACK = (0, 0, 0)

Value = Union[int, "tuple[int, int, int]"]  # an id, or a colour


@dataclass(frozen=True)
class Found:
    """One id or colour of masks: how often it is there, and what it is called so far.

    ``name`` is None where nothing says it, and "ignore" where it counts nowhere; ``origin`` says where a name is from.
    """

    value: Value
    share: float  # of all pixels
    masks: int
    colour: tuple[int, int, int]
    name: str | None = None
    origin: str = ""

    @property
    def shown(self) -> str:
        """The value as text: 7, or #804080."""
        return str(self.value) if isinstance(self.value, int) else "#{:02x}{:02x}{:02x}".format(*self.value)

    @property
    def ignored(self) -> bool:
        """Whether its pixels count nowhere."""
        return self.name == "ignore"


@dataclass(frozen=True)
class Contents:
    """All values of some masks. ``known`` is the convention of Cityscapes' ids that the names of the files state."""

    in_colours: bool
    values: tuple[Found, ...]
    read: int
    of: int
    known: str = ""


def contents(masks: Sequence[Path], sample: int | None = None, progress: Progress = silent) -> Contents:
    """Read masks and count their values.

    Parameters
    ----------
    masks : sequence of Path
        Files of one kind.
    sample : int, optional
        Read this many, spread evenly; all if not given.
    progress : callable, optional
        Called with (what, done, in all).

    Raises
    ------
    DataError
        If they hold ids and colours, a file cannot be read, or there are more values than classes can be.
    """
    chosen = [*masks] if sample is None or sample >= len(masks) else [
        masks[round(place * (len(masks) - 1) / max(1, sample - 1))] for place in range(sample)
    ]  # fmt: skip
    headers = {path: read_header(path, "label") for path in masks}
    coloured = [path for path in masks if _is_coloured(headers[path])]
    if coloured and len(coloured) < len(masks):
        other = next(path for path in masks if not _is_coloured(headers[path]))
        raise DataError(f"masks must all hold ids or all hold colours, got ids in {other} and colours in {coloured[0]}")
    pixels: Counter[Value] = Counter()
    presence: Counter[Value] = Counter()
    palette: dict[int, tuple[int, int, int]] = {}
    for done, path in enumerate(chosen, 1):
        found = _colours(path) if coloured else _ids(path)
        pixels.update(found)
        presence.update(found.keys())
        if not coloured and not palette and headers[path].colour == "palette":
            palette = _palette(path)
        if len(pixels) > _MOST_COLOURS:
            break
        progress("reading masks", done, len(chosen))
    if len(pixels) > _MOST_CLASSES:
        what = "colours, as smoothed borders or JPEG make them" if coloured else "ids, as instances have them"
        raise DataError(
            f"masks such as {chosen[0]} must have at most {_MOST_CLASSES} values, got {len(pixels):,} or more: "
            f"{what}; export one plain {'colour' if coloured else 'id'} for each class"
        )
    total = sum(pixels.values())
    colours = _distinct(sorted(value for value in pixels if isinstance(value, int)), palette)
    values = tuple(
        Found(value, pixels[value] / total, presence[value], colours[value] if isinstance(value, int) else value)
        for value in sorted(pixels, key=lambda one: (one,) if isinstance(one, int) else one)
    )
    known = {word: convention for word, convention in (("labeltrainids", "trainId"), ("labelids", "cityscapes"))}
    stated = {next((known[word] for word in known if path.stem.lower().endswith(word)), "") for path in masks}
    return Contents(bool(coloured), values, len(chosen), len(masks), stated.pop() if len(stated) == 1 else "")


def named(found: Contents, names: Mapping[Value, str], origin: str, order: Sequence[str] = ()) -> tuple[Found, ...]:
    """Return the values with names from a list of classes, where it has them, and otherwise from what is known.

    Parameters
    ----------
    found : Contents
        From `contents`.
    names : mapping of id or colour to str
        What a list says.
    origin : str
        Where the list is from.
    order : sequence of str
        Names in the order of the ids 0, 1, ..., of a list without ids or colours.
    """
    known = _known(found)
    result = []
    for one in found.values:
        name, source = names.get(one.value), origin
        if name is None and isinstance(one.value, int) and 0 <= one.value < len(order):
            name = order[one.value]
        if name is None:
            name, source = known.get(one.value, (None, ""))
        if name is not None and name.strip().lower() in NO_CLASS:
            name = "ignore"
        result.append(replace(one, name=name, origin=source if name is not None else ""))
    return tuple(result)


def _known(found: Contents) -> dict[Value, tuple[str, str]]:
    """Return names that need no list: of colours that are all one known palette's, and of what counts nowhere."""
    result: dict[Value, tuple[str, str]] = {}
    values = [one.value for one in found.values]
    if found.in_colours:
        for space in LABEL_SPACES.values():
            of = dict(zip(space.palette, space.names))
            if len(values) > 2 and all(value in of or value == _BLACK for value in values):
                result = {value: (of[value], f"colours of {space.name}") for value in values if value in of}  # type: ignore[index]
                break
        all_grey = all(isinstance(value, tuple) and len(set(value)) == 1 for value in values)
        if _BLACK in values and not all_grey and _BLACK not in result:
            result[_BLACK] = ("ignore", "black, as usual")
    elif IGNORE in values and len(values) > 2:
        result[IGNORE] = ("ignore", "255, as usual")
    if found.known and not found.in_colours:
        for value in values:
            train_id = CITYSCAPES_19.raw_ids[found.known].get(value) if isinstance(value, int) else None
            if train_id is not None:
                name = "ignore" if train_id == IGNORE else CITYSCAPES_19.names[train_id]
                result[value] = (name, "names of the files")
    return result


def _is_coloured(header: Header) -> bool:
    return header.colour in ("rgb", "rgba", "grey+alpha", "ycbcr")


def _ids(path: Path) -> Counter[Value]:
    label = read_label(path)
    ids, counts = np.unique(label, return_counts=True)
    return Counter({int(one): int(count) for one, count in zip(ids, counts)})


def _colours(path: Path) -> Counter[Value]:
    rgb = read_rgb(path).astype(np.int32)
    codes = (rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]).ravel()
    # runs of one colour are many times fewer than pixels, and are sorted as many times faster
    starts = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]])
    lengths = np.diff(np.r_[starts, codes.size])
    ids, place = np.unique(codes[starts], return_inverse=True)
    counts = np.bincount(place, weights=lengths)
    return Counter({(int(one) >> 16, int(one) >> 8 & 255, int(one) & 255): int(n) for one, n in zip(ids, counts)})


def _palette(path: Path) -> dict[int, tuple[int, int, int]]:
    """Return the colours of a palette file."""
    with Image.open(path) as image:
        stored = image.getpalette() if image.mode == "P" else None
    values = [*(stored or ())]
    return {place // 3: (values[place], values[place + 1], values[place + 2]) for place in range(0, len(values), 3)}


def _distinct(ids: Sequence[int], palette: Mapping[int, tuple[int, int, int]]) -> dict[int, tuple[int, int, int]]:
    """Return a colour for each id: the file's own where they differ, else made ones."""
    own = [palette.get(one) for one in ids]
    grey = all(colour is None or len(set(colour)) == 1 for colour in own)
    if palette and None not in own and len(set(own)) == len(own) and not grey:
        return {one: colour for one, colour in zip(ids, own) if colour is not None}
    made = numbered(max(1, len(ids))).palette
    return dict(zip(ids, made))
