"""Colour profiles (ICC) and colour spaces (EXIF) that image files state: named, not applied.

Images are read as they are stored. Values of a profile with more colours than sRGB (Adobe RGB, Display P3, ProPhoto)
look paler than they are when taken for sRGB, which all data sets of the field are in.
"""

from __future__ import annotations

import struct

from PIL import Image

from cbst_mx.data.image_files import PathLike, read_header
from cbst_mx.errors import DataError

__all__ = ["foreign_profile", "profile_name"]

_FORMATS = ("PNG", "JPEG", "TIFF", "WEBP")  # those that can carry a profile
_SMALL_SRGB = ("c2", "urgb")  # names of widespread short sRGB profiles
_LONGEST = 60  # characters of a name
_MOST_TAGS = 100
# What Pillow raises for damaged files and blocks.
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    KeyError,
    TypeError,
    MemoryError,
    struct.error,
    Image.DecompressionBombError,
)
# EXIF 2.32: tag ColorSpace in the block that another tag leads to. 2 is what cameras write for Adobe RGB.
_EXIF_BLOCK, _COLOUR_SPACE = 0x8769, 0xA001
_EXIF_SPACES = {2: "Adobe RGB (EXIF)", 0xFFFF: "uncalibrated (EXIF)"}


def foreign_profile(path: PathLike) -> str:
    """Return the name of an image's colour profile; empty where there is none or it is sRGB.

    Without a profile, the colour space of EXIF (tag 40961) is looked at.

    Files that cannot be read have none: what is wrong with them is told by those who read pixels.
    """
    try:
        header = read_header(path)
        if header.format not in _FORMATS:
            return ""
        with Image.open(path, formats=[header.format]) as image:  # reads no pixels
            profile = image.info.get("icc_profile")
            space = 1 if profile else image.getexif().get_ifd(_EXIF_BLOCK).get(_COLOUR_SPACE, 1)
    except (DataError, *_UNREADABLE):
        return ""
    if not isinstance(profile, bytes) or not profile:
        return _EXIF_SPACES.get(space, "") if isinstance(space, int) else ""
    name = profile_name(profile)
    plain = name.lower().replace(" ", "")
    return "" if "srgb" in plain or plain in _SMALL_SRGB else name


def profile_name(profile: bytes) -> str:
    """Return the description in a colour profile (ICC.1:2022, tag "desc"), "without a name" where it has none.

    Parameters
    ----------
    profile : bytes
        Header of 128 bytes, table of tags, tags.
    """
    try:
        (count,) = struct.unpack_from(">I", profile, 128)
        for index in range(min(count, _MOST_TAGS)):
            name, place, length = struct.unpack_from(">4sII", profile, 132 + 12 * index)
            if name == b"desc":
                text = _text(profile[place : place + length])
                return " ".join(text.replace("\0", "").split())[:_LONGEST] or "without a name"
    except struct.error:
        pass
    return "without a name"


def _text(tag: bytes) -> str:
    """Return the text of a tag: of version 2 in ASCII, of version 4 the first of its languages in UTF-16."""
    if tag[:4] == b"desc":
        (length,) = struct.unpack_from(">I", tag, 8)
        return tag[12 : 12 + length].decode("ascii", "replace")
    if tag[:4] == b"mluc":
        length, place = struct.unpack_from(">II", tag, 20)
        return tag[place : place + length].decode("utf-16-be", "replace")
    return ""
