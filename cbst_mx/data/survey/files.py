"""Photographs and masks apart: by what their headers say, and by the pixels of a few of each kind.

A mask has few values in large areas of one value; a photograph has neighbours that differ. Looked at are a few files of
each kind: one folder, form (codec and colours) and last word of the name (``_mask``, ``_labelIds``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Sequence

import numpy as np

from cbst_mx.data.image_files import Header, read_header, read_label, read_rgb
from cbst_mx.errors import DataError
from cbst_mx.messages import Progress, listed, silent

__all__ = ["FileKinds", "last_word", "tell_apart"]

_LOOKED_AT = 3  # files of a kind
_MOST_VALUES = 300  # of a mask
_FLAT = 0.75  # share of the pixels of a mask that equal their neighbour
_FLAT_LOSSY = 0.5  # of one that was stored with loss, which blurs its borders
_MASK_WORDS = ("mask", "label", "annot", "seg", "truth", "gt")
_NO_CLASSES = ("inst", "panoptic", "depth", "disparity")


@dataclass
class FileKinds:
    """Files by what they are. ``headers`` has those of all that could be read."""

    photographs: list[Path] = field(default_factory=list)
    masks: list[Path] = field(default_factory=list)
    headers: dict[Path, Header] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def size(self, path: Path) -> tuple[int, int]:
        """Return height and width as they are stored."""
        return self.headers[path].height, self.headers[path].width


def tell_apart(root: Path, files: Sequence[Path], progress: Progress = silent) -> FileKinds:
    """Divide image files into photographs and masks.

    Parameters
    ----------
    root : Path
        Folder that all are below.
    files : sequence of Path
        In any order.
    progress : callable, optional
        Called with (what, done, in all).

    Returns
    -------
    FileKinds
        Both in the order of the paths. Files whose headers cannot be read, and masks that were stored with loss or hold
        no classes (instances, depth), are in neither; remarks name them.
    """
    found = FileKinds()
    kinds: dict[tuple[Path, str, str, str], list[Path]] = {}
    damaged = []
    for done, path in enumerate(sorted(files), 1):
        try:
            header = found.headers[path] = read_header(path)
        except DataError as error:
            damaged.append(str(error))
        else:
            form = f"{header.format} {header.colour} {header.bits} {header.lossy}"
            kinds.setdefault((path.parent, form, _first_word(path.stem), last_word(path.stem)), []).append(path)
        progress("looking at files", done, len(files))
    if damaged:
        found.remarks.append(f"{len(damaged):,} files left out, which cannot be read: {listed(damaged, 3)}")
    lossy: list[Path] = []
    others: list[Path] = []
    for (folder, _, first, last), paths in kinds.items():
        step = max(1, len(paths) // _LOOKED_AT)
        looks = [_flatness(path, found.headers[path]) for path in paths[::step][:_LOOKED_AT]]
        flat = sorted(looks)[len(looks) // 2]
        text = f"{folder.relative_to(root).as_posix()} {first} {last}"
        if found.headers[paths[0]].lossy:
            (lossy if flat >= _FLAT_LOSSY and _says(text, _MASK_WORDS) else found.photographs).extend(paths)
        elif flat >= _FLAT:
            (others if _says(text, _NO_CLASSES) else found.masks).extend(paths)
        else:
            found.photographs.extend(paths)
    for paths, why in ((lossy, "are stored with loss (JPEG), so their values are not reliable: export PNG"),
                       (others, "seem to hold instances or depth instead of classes")):  # fmt: skip
        if paths:
            shown = listed(sorted({path.parent.name for path in paths}), 3)
            found.remarks.append(f"{len(paths):,} masks in {shown} left out: they {why}")
    found.photographs.sort()
    found.masks.sort()
    return found


def last_word(stem: str) -> str:
    """Return the letters behind the last separator of a name, with the separator, such as "_mask"; else nothing."""
    match = re.search(r"[ ._-]+[^\W\d_]+$", stem)
    return match.group() if match else ""


def _first_word(stem: str) -> str:
    match = re.match(r"[^\W\d_]+[ ._-]+", stem)
    return match.group() if match else ""


def _says(text: str, beginnings: tuple[str, ...]) -> bool:
    """Return whether a word of the text begins so: "labelIds" with "label", but "unlabelled" does not."""
    return any(word.lower().startswith(beginnings) for word in re.findall(r"[^\W\d_]+", text))


def _flatness(path: Path, header: Header) -> float:
    """Return the share of the pixels that equal their neighbour; 0 where there are more values than masks have."""
    try:
        if header.colour in ("rgb", "rgba", "grey+alpha", "ycbcr") or header.lossy:
            rgb = read_rgb(path).astype(np.int32)
            values = rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]
        else:
            values = read_label(path).astype(np.int32)
    except DataError:
        return 0.0
    if not header.lossy and len(np.unique(values)) > _MOST_VALUES:
        return 0.0
    return float((values[:, 1:] == values[:, :-1]).mean()) if values.shape[1] > 1 else 1.0
