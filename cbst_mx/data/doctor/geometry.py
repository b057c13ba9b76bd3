"""Sizes and rotation marks (EXIF): whether images and labels lie on each other as they are stored.

Data sets are read as they are stored, images and labels alike: rotation marks are not applied. Annotation tools show
marked pictures turned, so a label that was drawn there may not fit. A quarter turn shows in the sizes; half turns,
mirrored images and squares cannot be told by them.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Mapping

from cbst_mx.data.doctor.findings import ARE, DO, HAVE, Examination, Part, counted
from cbst_mx.data.image_files import Header

__all__ = ["check_geometry"]

_SHOWN = 5
_QUARTERS = (5, 6, 7, 8)  # rotation marks that exchange height and width
_TURN = "turn the pixels themselves and drop the mark, for example by mogrify -auto-orient"


def check_geometry(found: Examination, part: Part, headers: Mapping[Path, Header]) -> None:
    """Compare the sizes and rotation marks of images with those of their labels, and with the published size.

    Parameters
    ----------
    found : Examination
        Gets the findings.
    part : Part
        Its images and labels, broken ones too.
    headers : dict of Path to Header
        Those of all files that can be read.
    """
    if part.labels:
        _check_pairs(found, part, headers)
    else:
        marked = [path for path in part.images.image_paths if path in headers and headers[path].turn != 1]
        what = "marked as turned (EXIF) and read as stored, so the network sees them lying or upside down"
        found.add_files("warning", "image", marked, ARE, what, _TURN)
    if part.size is not None:
        _check_published_size(found, part, headers, part.size)


def _check_pairs(found: Examination, part: Part, headers: Mapping[Path, Header]) -> None:
    """Sort every image with its label by how the two lie on each other, and report each kind."""
    kinds: dict[str, list[Path]] = {}
    scaled: list[tuple[Header, Header]] = []
    for image, label in zip(part.images.image_paths, part.labels):
        if image in headers and label in headers:
            kind = _relation(headers[image], headers[label])
            kinds.setdefault(kind, []).append(image if kind in ("marked", "doubtful", "turned") else label)
            if kind == "scaled":
                scaled.append((headers[image], headers[label]))
    found.add_files(
        "error",
        "image",
        kinds.get("turned", []),
        ARE,
        "marked as turned by 90 degrees (EXIF), which is not applied, and the label has the turned size: it was drawn "
        "on the picture as viewers show it",
        f"{_TURN}; do not resize the labels",
    )
    found.add_files(
        "error",
        "label",
        kinds.get("exchanged", []),
        HAVE,
        "height and width of the image exchanged, though no mark says so",
        "turn the labels or the images by 90 degrees; do not resize them",
    )
    if scaled:
        large, small = scaled[0]
        what = f"another resolution than the image: {small.height} x {small.width} for {large.height} x {large.width}"
        mend = f"{part.mend_size} (by nearest neighbour: other ways mix ids)"
        found.add_files("error", "label", kinds["scaled"], HAVE, what, mend)
    found.add_files("error", "label", kinds.get("other", []), DO, "not have the size of the image", part.mend_size)
    found.add_files(
        "warning",
        "image",
        kinds.get("doubtful", []),
        ARE,
        "marked as turned or mirrored (EXIF) in a way that sizes do not show, and read as stored: labels drawn on the "
        "picture as viewers show it do not fit",
        f"look whether image and label fit as stored; if not, {_TURN}",
    )
    what = "marked as turned (EXIF) and read as stored, as the label of the same size is"
    found.add_files("note", "image", kinds.get("marked", []), ARE, what, "")


def _relation(image: Header, label: Header) -> str:
    """Return how an image and its label lie on each other, as far as sizes and marks tell."""
    quarter = (image.turn in _QUARTERS) != (label.turn in _QUARTERS)
    square = image.height == image.width
    if (image.height, image.width) == (label.height, label.width):
        if image.turn == label.turn:
            return "fine" if image.turn == 1 else "marked"
        return "marked" if quarter and not square else "doubtful"
    if (image.height, image.width) == (label.width, label.height):
        return "turned" if quarter else "exchanged"
    return "scaled" if image.height * label.width == image.width * label.height else "other"


def _check_published_size(
    found: Examination, part: Part, headers: Mapping[Path, Header], published: tuple[int, int]
) -> None:
    height, width = published
    sizes = {path: (headers[path].height, headers[path].width) for path in part.images.image_paths if path in headers}
    others = Counter(size for size in sizes.values() if size != published)
    for (other_height, other_width), count in others.most_common(_SHOWN):
        near = other_width == width and other_height in part.near
        first = next(path for path, size in sizes.items() if size == (other_height, other_width))
        text = f"{counted(count, 'image')} {ARE[count > 1]} {other_height} x {other_width}"
        text += f" as published, most are {height} x {width}" if near else f", not {height} x {width}"
        fix = f"{part.mend_size}, where one size is wanted" if near else part.mend_size
        found.add("note" if near else "warning", text, first, fix)
