"""Parts of PNG data: whether all chunks and rows are there, and the file without what its decoder might dislike."""

from __future__ import annotations

import contextlib
import zlib
from typing import Any, Callable

import numpy as np

from cbst_mx.data.image_headers import Header

__all__ = ["check_chunks", "check_rows", "filtered_rows", "pixels_alone", "stored"]

_crc32: Callable[[Any], int] = zlib.crc32
_adler32: Callable[[Any], int] = zlib.adler32
with contextlib.suppress(ImportError):  # also of a build of imagecodecs without libdeflate, which says so when called
    from imagecodecs import deflate_adler32, deflate_crc32

    if deflate_crc32(b"a") == _crc32(b"a") and deflate_adler32(b"a") == _adler32(b"a"):
        _crc32, _adler32 = deflate_crc32, deflate_adler32  # a tenth of the time

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = 33  # bytes of the signature and the first chunk
_TRAILER = 20  # behind the rows: two checksums and the last chunk
_STORED = 65535  # bytes of a block of zlib's that is not compressed, at most
_PNG_CHANNELS = {"grey": 1, "palette": 1, "grey+alpha": 2, "rgb": 3, "rgba": 4}
_COLOUR_BYTES = {0: 1, 2: 3, 6: 4}  # of a pixel: grey, RGB, RGBA


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
        if (kept or grey) and _crc32(memoryview(content)[place + 4 : after - 4]) != int.from_bytes(
            content[after - 4 : after], "big"
        ):
            return None
        if kind == b"IHDR" and grey:
            header = kind + content[place + 8 : place + 17] + b"\0" + content[place + 18 : after - 4]
            parts.append(content[place : place + 4] + header + _crc32(header).to_bytes(4, "big"))
        elif kept:
            parts.append(content[place:after])
        if kind == b"IEND":
            if not grey and len(content) == after == sum(map(len, parts)):
                return content  # nothing is left out
            return b"".join(parts)
        place = after
    return None


def filtered_rows(plain: bytes, inflate: Callable[..., Any], most: int) -> np.ndarray:
    """Return the rows of a PNG as they are filtered, each behind the number of its filter.

    Parameters
    ----------
    plain : bytes
        What :func:`pixels_alone` returns: 8 bits per channel, grey, RGB or RGBA.
    inflate : callable
        Unpacks zlib's data into the array `out`, compares their checksum and returns what of the array it filled.
    most : int
        Bytes that may be unpacked.

    Returns
    -------
    ndarray of shape (n,), uint8
        The end of a larger array, which has room for :func:`stored`.

    Raises
    ------
    ValueError
        If the rows are interlaced, more than `most` or fewer than the header says, or the header is odd. `inflate` may
        raise others.
    """
    width, height = int.from_bytes(plain[16:20], "big"), int.from_bytes(plain[20:24], "big")
    depth, colour, *others = plain[24:29] if len(plain) > _HEADER else (0, 0)
    size = height * (1 + width * _COLOUR_BYTES.get(colour, 0))
    # others: ways to compress and to filter that do not exist, and interlacing
    if depth != 8 or colour not in _COLOUR_BYTES or any(others) or not 0 < size <= most:
        raise ValueError("its rows are not unpacked here")
    place, data = _HEADER, []
    while place < len(plain):
        length, kind = int.from_bytes(plain[place : place + 4], "big"), plain[place + 4 : place + 8]
        if kind == b"IHDR":
            raise ValueError("it has two headers")
        if kind == b"IDAT":
            data.append(memoryview(plain)[place + 8 : place + 8 + length])
        place += 12 + length
    rows = np.empty(_stored_size(size), np.uint8)[-_TRAILER - size : -_TRAILER]
    if len(inflate(data[0] if len(data) == 1 else b"".join(data), out=rows)) != size:
        raise ValueError("its data end before the last row")
    return rows


def stored(plain: bytes, rows: np.ndarray, *, height: int, made: np.ndarray | None = None) -> np.ndarray:
    """Return a PNG of rows that are filtered as they were, and not compressed.

    Parameters
    ----------
    plain : bytes
        The PNG they come from.
    rows : ndarray of shape (n,), uint8
        Its first rows, from :func:`filtered_rows`.
    height : int
        How many they are.
    made : ndarray, optional
        The array at the end of which all rows are; they are moved within it then, which saves one as large.

    Returns
    -------
    ndarray of shape (m,), uint8
    """
    size = len(rows)
    if made is None:
        made = np.empty(_stored_size(size), np.uint8)
    begin, end = _HEADER + 10, len(made) - _TRAILER  # behind the headers of the chunk and of zlib's data, and their end
    blocks, last = divmod(size - 1, _STORED)
    check = _adler32(rows)

    def put(start: int, content: bytes) -> None:
        made[start : start + len(content)] = np.frombuffer(content, np.uint8)

    header = plain[12:20] + height.to_bytes(4, "big") + plain[24 : _HEADER - 4]
    header = plain[:12] + header + _crc32(header).to_bytes(4, "big")
    put(0, header + (end - begin + 6).to_bytes(4, "big") + b"IDAT\x78\x01")
    for block in range(blocks):  # within one array rows move forward, and make room for the headers of later blocks
        start = begin + block * (5 + _STORED)
        put(start, b"\0\xff\xff\0\0")
        made[start + 5 : start + 5 + _STORED] = rows[block * _STORED : (block + 1) * _STORED]
    put(end - last - 6, b"\1" + (last + 1).to_bytes(2, "little") + (_STORED - last - 1).to_bytes(2, "little"))
    made[end - last - 1 : end] = rows[blocks * _STORED :]
    put(end, check.to_bytes(4, "big"))
    put(end + 4, _crc32(made[_HEADER + 4 : end + 4]).to_bytes(4, "big") + plain[-12:])
    return made


def _stored_size(size: int) -> int:
    """Return the bytes of a PNG whose rows have so many."""
    return _HEADER + 10 + 5 * (1 + (size - 1) // _STORED) + size + _TRAILER


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
        if _crc32(view[start + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            raise ValueError("wrong checksum")
        if view[start + 4 : start + 8] == b"IEND":
            return
        start = end
    raise ValueError("it ends too early")
