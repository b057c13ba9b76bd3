"""What an image file says of itself in its own bytes: codec, bits, channels, size, pages, turns.

Decoders hide much of it: Pillow keeps the upper 8 bits of colour values of 16 and calls the image RGB, shows inverted
greys of TIFF as they are meant to be seen, and reads a lossy TIFF like any other. So what decides whether a file is
read is taken from its bytes here, and never from the decoder's idea.
"""

from __future__ import annotations

import os
import stat
import struct
from typing import IO, NamedTuple, Union

from cbst_mx.errors import DamagedError, DataError
from cbst_mx.files import DEFLATE

__all__ = [
    "Header",
    "PathLike",
    "check_whole",
    "open_regular",
    "parse_header",
    "read_header",
    "system_refusal",
    "with_coloured_palette",
    "without_turn",
]

PathLike = Union[str, "os.PathLike[str]"]

_START = 1 << 16  # bytes read of a file that has no index of its parts
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_COLOURS = {0: "grey", 2: "rgb", 3: "palette", 4: "grey+alpha", 6: "rgba"}
_PNG_CHANNELS = {2: 3, 4: 2, 6: 4}
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_JPEG_COLOURS = {1: "grey", 3: "rgb", 4: "cmyk"}
_TIFF_COLOURS = {0: "inverted grey", 1: "grey", 2: "rgb", 3: "palette", 5: "cmyk", 6: "ycbcr", 8: "lab"}
_TIFF_LOSSY = {6: "JPEG", 7: "JPEG", 34712: "JPEG 2000", 34892: "JPEG", 50001: "WebP", 52546: "JPEG XL"}
# bytes of a number of each kind; tags that hold one number; where private tags begin (TIFF 6.0, and BigTIFF)
_TIFF_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_TIFF_SINGLE = frozenset((256, 257, 259, 262, 266, 274, 277, 278, 284, 317, 322, 323))
_TIFF_PRIVATE = 32768
_TIFF_FORMS = {1: "B", 3: "H", 4: "I", 16: "Q"}
_TIFF_PARTS = frozenset((273, 279, 324, 325))  # places and lengths of strips and tiles
_MOST_PARTS = 100_000
_MOST_PAGES = 1000


class Header(NamedTuple):
    """Form of an image file, as its bytes state it.

    ``format`` is Pillow's name ("PNG", "JPEG"); ``bits`` counts those of one channel; ``colour`` is "grey", "inverted
    grey", "palette", "grey+alpha", "rgb", "rgba", "cmyk" or another word; ``whole`` is False where the end of the file
    is missing, by the mark of its end or the place of its pixels, or it is too short for its pixels; ``lossy`` names a
    codec that changes values, else it is empty; ``turn`` is the EXIF mark of rotation, 1 for none; ``pages`` counts the
    images in the file, 2 for any animation; ``beyond`` the bytes behind its end, which are no harm; ``top`` is the
    largest value that it states (PPM), else 0.
    """

    format: str
    height: int
    width: int
    bits: int
    colour: str
    whole: bool = True
    lossy: str = ""
    turn: int = 1
    pages: int = 1
    beyond: int = 0
    top: int = 0


def read_header(path: PathLike, what: str = "image") -> Header:
    """Read what an image file says of itself, without its pixels.

    Parameters
    ----------
    path : path
        The file.
    what : str
        "image" or "label", for errors.

    Raises
    ------
    DataError
        If the file is missing, no regular file, empty, of an unknown format, or its header is damaged.
    """
    try:
        with open_regular(path, what) as stream:
            return parse_header(stream, os.fstat(stream.fileno()).st_size, path, what)
    except OSError as error:
        raise system_refusal(what, path, error) from error


def check_whole(path: PathLike, what: str = "image") -> Header:
    """Return the header of an image file whose end is there: a look that costs little, before the file is needed.

    Raises
    ------
    DataError
        As :func:`read_header`, and if the end is missing.
    """
    header = read_header(path, what)
    if not header.whole:
        raise DamagedError(f"{what} {path} cannot be read, the file is damaged or truncated (its end is missing)")
    return header


def parse_header(stream: IO[bytes], size: int, path: PathLike, what: str = "image") -> Header:
    """Read what an image in a stream of `size` bytes says of itself; `path` and `what` are for errors.

    Raises
    ------
    DataError
        As :func:`read_header`.
    """
    stream.seek(0)
    start = stream.read(_START)
    if not start:
        raise DataError(f"{what} {path} is empty (0 bytes)")
    try:
        for begins, read in _FORMATS:
            if begins(start):
                header = read(stream, start, size)
                if header.height < 1 or header.width < 1:
                    raise ValueError(f"it states {header.height} x {header.width} pixels")
                return header
    except (struct.error, IndexError, ValueError, OverflowError) as error:
        raise DamagedError(
            f"{what} {path} cannot be read, the file is damaged or truncated (its header: {error})"
        ) from error
    raise DataError(f"{what} {path} is no image that can be read: it must be {READ}, by content and not by its ending")


def open_regular(path: PathLike, what: str) -> IO[bytes]:
    """Open a file; refuse a folder, a pipe or a device, of which reading may have no end.

    Raises
    ------
    DataError
        If it is missing or no regular file.
    OSError
        If the system refuses.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError as error:
        raise DataError(f"{what} {path} does not exist") from error
    if not stat.S_ISREG(mode):
        raise DataError(f"{what} {path} must be a file, got a {'folder' if stat.S_ISDIR(mode) else 'pipe or device'}")
    return open(path, "rb")


def system_refusal(what: str, path: PathLike, error: OSError) -> DataError:
    """Return the sentence for what the system refuses."""
    if isinstance(error, FileNotFoundError):
        return DataError(f"{what} {path} does not exist")
    return DataError(f"{what} {path} cannot be read: {error.strerror or error}")


# --------------------------------------------------------------------------------------------------------- formats


def _png(stream: IO[bytes], start: bytes, size: int) -> Header:
    # signature (8 bytes), length and "IHDR" (8), width and height (8), bits, colour type
    width, height, bits, kind = struct.unpack(">IIBB", start[16:26])
    stream.seek(max(0, size - len(_PNG_END)))
    whole = stream.read() == _PNG_END
    turn, pages, beyond, place = 1, 1, 0, len(_PNG_SIGNATURE)
    while place + 8 <= size:  # chunks: length (4 bytes), kind (4), data, checksum (4)
        stream.seek(place)
        length, name = struct.unpack(">I4s", stream.read(8))
        if name == b"eXIf":
            turn = _exif_turn(stream.read(min(length, _START)))
        elif name == b"acTL" and struct.unpack(">I", stream.read(4))[0] > 1:  # an animation
            pages = 2
        place += 12 + length
        if name == b"IEND":
            whole, beyond = place <= size, max(0, size - place)
            break
    colour = _PNG_COLOURS.get(kind, "unknown")
    whole = whole and height * (width * bits * _PNG_CHANNELS.get(kind, 1) // 8) <= DEFLATE * size
    return Header("PNG", height, width, bits, colour, whole, turn=turn, pages=pages, beyond=beyond)


def _jpeg(stream: IO[bytes], start: bytes, size: int) -> Header:
    turn, place = 1, 2
    found: tuple[int, int, int, str] | None = None
    while place + 4 <= size:
        stream.seek(place)
        part = stream.read(4)
        if part[0] != 0xFF:
            raise ValueError("a marker is missing")
        kind = part[1]
        if kind == 0xFF:  # a byte of filling
            place += 1
            continue
        if kind == 0x01 or 0xD0 <= kind <= 0xD8:  # without contents
            place += 2
            continue
        length = struct.unpack(">H", part[2:])[0]
        if found is None and 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            bits, height, width, channels = struct.unpack(">BHHB", stream.read(6))
            found = height, width, bits, _JPEG_COLOURS.get(channels, f"{channels} channels")
        if kind == 0xE1:
            contents = stream.read(min(length, _START))
            if contents.startswith(b"Exif\0\0"):
                turn = _exif_turn(contents[6:])
        if kind in (0xDA, 0xD9):
            break
        place += 2 + length
    if found is None:
        raise ValueError("it says nothing of its size")
    return Header("JPEG", *found, whole=_has_end(stream, place, size), lossy="JPEG", turn=turn)


def _has_end(stream: IO[bytes], place: int, size: int) -> bool:
    """Return whether the mark of the end is behind the coded data that begin at a place; they cannot contain it.

    It is mostly the last of the file; where something stands behind it, such as a film, all is read.
    """
    for begin in (max(place, size - _START), place):
        stream.seek(begin)
        if b"\xff\xd9" in stream.read():
            return True
    return False


def _exif_turn(contents: bytes) -> int:
    """Return the rotation mark (1 to 8) of an EXIF block, which is a small TIFF; 1 where there is none."""
    try:
        order = "<" if contents[:2] == b"II" else ">"
        place = struct.unpack(order + "I", contents[4:8])[0]
        for index in range(min(struct.unpack(order + "H", contents[place : place + 2])[0], 500)):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", contents, place + 2 + 12 * index)
            if tag == 0x112 and kind == 3 and 1 <= value <= 8:
                return int(value)
    except (struct.error, IndexError):
        pass  # a damaged block of remarks is no reason to refuse the pixels
    return 1


def _tiff(stream: IO[bytes], start: bytes, size: int) -> Header:
    order = "<" if start[:2] == b"II" else ">"
    big = struct.unpack(order + "H", start[2:4])[0] == 43
    place = struct.unpack(order + "Q", start[8:16])[0] if big else struct.unpack(order + "I", start[4:8])[0]
    tags, following = _tiff_tags(stream, order, big, place, size)
    pages = 1
    while following and pages < _MOST_PAGES:
        _, following = _tiff_tags(stream, order, big, following, size)
        pages += 1
    bits = max(tags.get(258, [1]))
    channels = tags.get(277, [1])[0]
    colour = _TIFF_COLOURS.get(tags.get(262, [1])[0], "unknown")
    if channels > {"rgb": 3, "cmyk": 4, "ycbcr": 3, "lab": 3}.get(colour, 1):
        colour = {"rgb": "rgba", "grey": "grey+alpha"}.get(colour, f"{channels} channels of {colour}")
    colour = {2: "signed ", 3: "float "}.get(tags.get(339, [1])[0], "") + colour
    lossy = _TIFF_LOSSY.get(tags.get(259, [1])[0], "")
    height, width = tags[257][0], tags[256][0]
    places, lengths = (tags.get(273, []), tags.get(279, [])) if 273 in tags else (tags.get(324, []), tags.get(325, []))
    whole = all(place + length <= size for place, length in zip(places, lengths))
    turn = tags.get(274, [1])[0]
    return Header("TIFF", height, width, bits, colour, whole, lossy=lossy, turn=turn, pages=pages)


def without_turn(content: bytes) -> bytes:
    """Return a TIFF whose first page has no rotation mark."""
    order = "<" if content[:2] == b"II" else ">"
    big = struct.unpack(order + "H", content[2:4])[0] == 43
    place = struct.unpack_from(order + ("Q" if big else "I"), content, 8 if big else 4)[0]
    number = struct.unpack_from(order + ("Q" if big else "H"), content, place)[0]
    first, each = place + (8 if big else 2), 20 if big else 12
    changed = bytearray(content)
    for entry in range(first, first + number * each, each):
        if struct.unpack_from(order + "H", content, entry)[0] == 274:
            struct.pack_into(order + "H", changed, entry + (12 if big else 8), 1)
    return bytes(changed)


def _tiff_tags(stream: IO[bytes], order: str, big: bool, place: int, size: int) -> tuple[dict[int, list[int]], int]:
    """Return the whole numbers in the tags of a page, and where the next page is.

    Pillow leaves out a tag whose numbers are not in the file, and reads the pixels without it: as not compressed, say.
    """
    stream.seek(place)
    number, each = (
        (struct.unpack(order + "Q", stream.read(8))[0], 20)
        if big
        else (struct.unpack(order + "H", stream.read(2))[0], 12)
    )
    if number > 4096:
        raise ValueError(f"a page has {number} tags")
    entries = stream.read(number * each)
    following = struct.unpack(order + ("Q" if big else "I"), stream.read(8 if big else 4))[0]
    tags: dict[int, list[int]] = {}
    for index in range(number):
        entry = entries[index * each : (index + 1) * each]
        tag, kind, count = struct.unpack(order + ("HHQ" if big else "HHI"), entry[: each - (8 if big else 4)])
        if tag in _TIFF_SINGLE and count != 1:
            raise ValueError(f"tag {tag} must hold one number, holds {count}")
        needed = count * _TIFF_BYTES.get(kind, 0)
        if tag < _TIFF_PRIVATE and needed > (8 if big else 4):
            begin = struct.unpack(order + ("Q" if big else "I"), entry[12:] if big else entry[8:])[0]
            if begin + needed > size:
                raise ValueError(f"the numbers of tag {tag} lie behind its end")
        if kind not in _TIFF_FORMS or not 1 <= count <= (_MOST_PARTS if tag in _TIFF_PARTS else 64):
            continue
        form = order + str(count) + _TIFF_FORMS[kind]
        value = entry[12:] if big else entry[8:]
        if struct.calcsize(form) > len(value):
            stream.seek(struct.unpack(order + ("Q" if big else "I"), value)[0])
            value = stream.read(struct.calcsize(form))
        tags[tag] = list(struct.unpack(form, value[: struct.calcsize(form)]))
    if not {256, 257} <= set(tags):
        raise ValueError("a page says nothing of its size")
    return tags, following


def _bmp(stream: IO[bytes], start: bytes, size: int) -> Header:
    packed = 0
    if struct.unpack("<I", start[14:18])[0] == 12:
        width, height, _, bits = struct.unpack("<HHHH", start[18:26])
    else:
        width, height, _, bits, packed = struct.unpack("<iiHHI", start[18:34])
    colour = "palette" if bits <= 8 else "rgb" if bits <= 24 else "rgba"
    pixels = abs(height) * (width * bits // 8) if packed in (0, 3) else 0
    whole = struct.unpack("<I", start[10:14])[0] + pixels <= size
    return Header("BMP", abs(height), width, bits if bits <= 8 else 8, colour, whole)


def with_coloured_palette(content: bytes) -> tuple[bytes, bytes]:
    """Return a BMP of indices with colours of no grey in its palette, and the colours that it had as RGB triples.

    Pillow takes indices for grey values where the palette is a grey ramp, and for bits where it is black and white.
    """
    pixels, size = struct.unpack_from("<II", content, 10)
    each = 3 if size == 12 else 4
    start = 14 + size
    count = max(0, min(256, (pixels - start) // each, (len(content) - start) // each))
    entries = content[start : start + count * each]
    colours = bytearray(3 * count)
    for channel in range(3):  # stored as blue, green, red
        colours[2 - channel :: 3] = entries[channel::each]
    new = b"".join(bytes((index, 255 - index, 7, 0)[:each]) for index in range(count))
    return content[:start] + new + content[start + len(new) :], bytes(colours)


def _webp(stream: IO[bytes], start: bytes, size: int) -> Header:
    turn, lossy, alpha, pages, found, canvas = 1, "", False, 1, (0, 0), (0, 0)
    place = 12
    while place + 8 <= size:
        stream.seek(place)
        name, length = struct.unpack("<4sI", stream.read(8))
        head = stream.read(min(length, _START if name == b"EXIF" else 10))
        if name == b"VP8 ":
            lossy, found = "WebP", tuple(v & 0x3FFF for v in struct.unpack("<HH", head[6:10]))  # type: ignore[assignment]
        elif name == b"VP8L":
            packed = struct.unpack("<I", head[1:5])[0]
            found, alpha = ((packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1), bool(packed >> 28 & 1)
        elif name == b"VP8X":
            alpha = bool(head[0] & 0x10)
            pages = 2 if head[0] & 0x02 else 1  # an animation
            canvas = 1 + int.from_bytes(head[4:7], "little"), 1 + int.from_bytes(head[7:10], "little")
        elif name == b"ANMF":  # a picture of an animation: place, size, time (16 bytes), then chunks
            found, alpha = canvas, True
        elif name == b"EXIF":
            turn = _exif_turn(head[6:] if head.startswith(b"Exif\0\0") else head)
        place += 8 + length + length % 2
    if not found[0]:
        raise ValueError("it says nothing of its size")
    whole = 8 + struct.unpack("<I", start[4:8])[0] <= size
    colour = "rgba" if alpha else "rgb"
    return Header("WEBP", found[1], found[0], 8, colour, whole, lossy=lossy, turn=turn, pages=pages)


def _gif(stream: IO[bytes], start: bytes, size: int) -> Header:
    width, height, packed = struct.unpack("<HHB", start[6:11])
    place, pages = 13 + (3 << (packed & 7) + 1 if packed & 0x80 else 0), 0
    while pages < 2:  # blocks: pictures (","), remarks ("!"), the end
        stream.seek(place)
        head = stream.read(10)
        if head[:1] == b"," and len(head) == 10:
            pages += 1
            place += 11 + (3 << (head[9] & 7) + 1 if head[9] & 0x80 else 0)
        elif head[:1] == b"!":
            place += 2
        else:
            break
        length = 1
        while length:  # a block's contents: parts of up to 255 bytes, then an empty one
            stream.seek(place)
            length = int.from_bytes(stream.read(1), "little")
            place += 1 + length
    return Header("GIF", height, width, 8, "palette", place <= size, pages=max(pages, 1))


def _pnm(stream: IO[bytes], start: bytes, size: int) -> Header:
    words: list[bytes] = []  # width, height, largest value
    for line in start[2:4096].split(b"\n"):
        words += line.partition(b"#")[0].split()
        if len(words) >= 3:
            break
    kind = start[1:2]
    numbers = [int(word) for word in words[: 2 if kind in b"14" else 3]]
    top = 1 if kind in b"14" else numbers[2]
    colour = "rgb" if kind in b"36" else "inverted grey" if kind in b"14" else "grey"
    values = numbers[0] * numbers[1] * (3 if kind in b"36" else 1)
    whole = (values // 8 if kind == b"4" else values * (2 if top > 255 and kind in b"56" else 1)) <= size
    return Header("PPM", numbers[1], numbers[0], top.bit_length(), colour, whole, top=top)  # 1 is black in a bitmap


def _jpeg2000(stream: IO[bytes], start: bytes, size: int) -> Header:
    place = start.index(b"\xff\x4f\xff\x51")  # start of the code stream and its sizes
    right, bottom, left, top = struct.unpack(">IIII", start[place + 8 : place + 24])
    channels, depth = struct.unpack(">HB", start[place + 40 : place + 43])
    colour = {1: "grey", 3: "rgb", 4: "rgba"}.get(channels, f"{channels} channels")
    # whether its wavelet is the reversible one, and no layer was left out, cannot be told for certain
    whole = _has_end(stream, place, size)
    return Header("JPEG2000", bottom - top, right - left, (depth & 0x7F) + 1, colour, whole, lossy="JPEG 2000")


_FORMATS = (
    (lambda start: start.startswith(_PNG_SIGNATURE), _png),
    (lambda start: start.startswith(b"\xff\xd8\xff"), _jpeg),
    (lambda start: start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), _tiff),
    (lambda start: start.startswith(b"BM"), _bmp),
    (lambda start: start.startswith(b"RIFF") and start[8:12] == b"WEBP", _webp),
    (lambda start: start[:6] in (b"GIF87a", b"GIF89a"), _gif),
    (lambda start: start[:1] == b"P" and start[1:2] in b"123456" and start[2:3].isspace(), _pnm),
    (lambda start: b"\xff\x4f\xff\x51" in start and (start[4:8] == b"jP  " or start[:2] == b"\xff\x4f"), _jpeg2000),
)
READ = "PNG, JPEG, TIFF, BMP, WebP, GIF, PPM or JPEG 2000"
