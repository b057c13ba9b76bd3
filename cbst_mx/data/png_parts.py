"""Parts of PNG data: whether all chunks and rows are there, and the file without what its decoder might dislike."""

from __future__ import annotations

import zlib

from cbst_mx.data.image_headers import Header

__all__ = ["check_chunks", "check_rows", "pixels_alone"]

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {"grey": 1, "palette": 1, "grey+alpha": 2, "rgb": 3, "rgba": 4}


def pixels_alone(content: bytes, *, grey: bool = False) -> bytes | None:
    """Return a PNG with its pixels' data alone, for OpenCV, whose libpng writes to the terminal what it dislikes.

    Palettes, transparency, profiles and gamma change no value here. None where a checksum is wrong or the file ends
    early: another decoder says why.

    Parameters
    ----------
    content : bytes
        The file.
    grey : bool
        Call its one channel grey: OpenCV then gives the values as they are stored, twice as fast as Pillow. Damage of a
        chunk that is left out counts as well.
    """
    place, end = len(_PNG_SIGNATURE), len(content)
    parts = [_PNG_SIGNATURE]
    while place + 12 <= end:
        after = place + 12 + int.from_bytes(content[place : place + 4], "big")
        kind = content[place + 4 : place + 8]
        kept = kind in (b"IHDR", b"IDAT", b"IEND")
        if after > end:
            return None
        if (kept or grey) and zlib.crc32(memoryview(content)[place + 4 : after - 4]) != int.from_bytes(
            content[after - 4 : after], "big"
        ):
            return None
        if kind == b"IHDR" and grey:
            header = kind + content[place + 8 : place + 17] + b"\0" + content[place + 18 : after - 4]
            parts.append(content[place : place + 4] + header + zlib.crc32(header).to_bytes(4, "big"))
        elif kept:
            parts.append(content[place:after])
        if kind == b"IEND":
            return b"".join(parts)
        place = after
    return None


def check_rows(content: bytes, header: Header) -> None:
    """Refuse a PNG whose data end before its last row (ValueError): Pillow would read zeros in their place."""
    data = zlib.decompressobj()
    depth = header.bits * _PNG_CHANNELS.get(header.colour, 1)
    if len(content) < 29:
        raise ValueError("it ends in its header")
    if content[28] == 0:
        passes = [(header.height, header.width)]
    else:  # Adam7: seven images of every 8th, 4th, 2nd pixel
        starts = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
        passes = [
            (-(-max(0, header.height - top) // down), -(-max(0, header.width - left) // right))
            for top, left, down, right in starts
        ]
    wanted = sum(rows * (1 + -(-columns * depth // 8)) for rows, columns in passes if rows and columns)
    found, place = 0, len(_PNG_SIGNATURE)
    while place + 12 <= len(content) and not data.eof and found < wanted:
        length = int.from_bytes(content[place : place + 4], "big")
        if content[place + 4 : place + 8] == b"IDAT":
            found += len(data.decompress(content[place + 8 : place + 8 + length], wanted - found))
        place += 12 + length
    if found < wanted:
        raise ValueError(f"its data hold {found} of {wanted} bytes")


def check_chunks(content: bytes) -> None:
    """Refuse a PNG that ends too early or has a chunk that does not fit its checksum (ValueError)."""
    view, start = memoryview(content), len(_PNG_SIGNATURE)
    while start + 12 <= len(view):  # a chunk: length (4 bytes), kind (4), data, checksum of kind and data (4)
        end = start + 12 + int.from_bytes(view[start : start + 4], "big")
        if end > len(view):
            break
        if zlib.crc32(view[start + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            raise ValueError("wrong checksum")
        if view[start + 4 : start + 8] == b"IEND":
            return
        start = end
    raise ValueError("it ends too early")
