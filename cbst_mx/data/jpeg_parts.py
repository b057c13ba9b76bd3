"""Parts of JPEG data: whether every scan is there, and whether JPEG inside a TIFF is whole.

libjpeg tells of scans that end early, not of scans that were never written: a progressive file cut between two scans is
decoded blurred, without a word. And it is silent inside libtiff.
"""

from __future__ import annotations

import re
import struct
from typing import Any, Iterator, Mapping, Sequence

import simplejpeg

__all__ = ["check_scans", "check_tiff_parts"]

# A marker within coded data: no stuffed zero, no restart, no filling.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_BLOCK = 64  # coefficients of one 8 x 8 block
# Tags of a TIFF: places and lengths of its strips and tiles, and the tables that its JPEG streams share.
_STRIPS, _STRIP_LENGTHS, _TILES, _TILE_LENGTHS, _TABLES = 273, 279, 324, 325, 347


def check_scans(content: bytes) -> None:
    """Refuse a JPEG in which a coefficient of a component has no scan, or none down to its last bit.

    Parameters
    ----------
    content : bytes
        The file. A JPEG that is cut elsewhere passes: its decoder tells.

    Raises
    ------
    ValueError
        If scans are missing (ISO/IEC 10918-1, annex G: successive approximation ends with A_l = 0).
    """
    components: tuple[int, ...] = ()
    missing: dict[int, int] = {}  # component -> bits of the coefficients without their last scan
    for kind, part in _segments(content):
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            if kind in (0xC3, 0xC7, 0xCB, 0xCF):  # of predictions, not of blocks
                return
            components = tuple(part[6::3])
            missing = dict.fromkeys(components, (1 << _BLOCK) - 1)
        elif kind == 0xDA and components and len(part) > 3:
            first, last, bits = part[-3:]
            if bits & 15 or not 0 <= first <= last < _BLOCK:
                continue
            done = (1 << (last + 1)) - (1 << first)
            for component in part[1:-3:2]:
                missing[component] = missing.get(component, 0) & ~done
            if not any(missing.values()):
                return
    if any(missing.values()):
        blurred = sum(map(bool, missing.values()))
        raise ValueError(f"scans are missing, {blurred} of {len(components)} components are not complete")


def _segments(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield kind and contents of the segments of a JPEG, as far as they are there."""
    place = 2
    while True:
        found = _MARKER.search(content, place)
        if found is None:
            return
        kind, place = content[found.start() + 1], found.end()
        if kind in (0x01, 0xD8):
            continue
        if kind == 0xD9 or place + 2 > len(content):
            return
        (length,) = struct.unpack_from(">H", content, place)
        part = content[place + 2 : place + length]
        if length < 2 or len(part) < length - 2:
            return
        yield kind, part
        place += length


def check_tiff_parts(content: bytes, tags: Mapping[int, Any]) -> None:
    """Refuse a TIFF of which a strip or tile is a JPEG stream with missing parts; libtiff would fill them with grey.

    Parameters
    ----------
    content : bytes
        The file.
    tags : mapping of int to values
        Those of its page.

    Raises
    ------
    ValueError
        If libjpeg-turbo warns of a stream.
    """
    places, lengths = (
        (_numbers(tags.get(_STRIPS)), _numbers(tags.get(_STRIP_LENGTHS)))
        if _STRIPS in tags
        else (_numbers(tags.get(_TILES)), _numbers(tags.get(_TILE_LENGTHS)))
    )
    tables = bytes(tags.get(_TABLES, b""))
    shared = tables[:-2] if tables.endswith(b"\xff\xd9") else tables
    for place, length in zip(places, lengths):
        stream = content[place : place + length]
        if len(stream) < length:
            raise ValueError(f"a part of {length} bytes is cut to {len(stream)}")
        if length:  # none is written for empty parts
            simplejpeg.decode_jpeg(shared + stream[2:] if shared else stream, fastdct=True, fastupsample=True)


def _numbers(value: Any) -> Sequence[int]:
    return () if value is None else (value,) if isinstance(value, int) else tuple(value)
