"""Images and label maps as files.

Images are uint8 RGB of shape (H, W, 3), label maps are integers of shape (H, W). Pillow reads them: it notices
truncated files, which OpenCV fills with grey without a word. PNGs of 16 bits per channel are the exception: Pillow
keeps the upper 8 bits of each value without a word, so OpenCV reads those, after their checksums have been checked
here. Writing is atomic: a file is either whole or not there.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import NamedTuple, Union

import cv2
import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from cbst_mx.errors import DataError
from cbst_mx.files import atomic_path
from cbst_mx.label_space import LabelSpace

__all__ = [
    "Header",
    "read_header",
    "read_label",
    "read_rgb",
    "read_rgb16",
    "write_label_png",
    "write_palette_png",
    "write_rgb_png",
]

PathLike = Union[str, "os.PathLike[str]"]

# What Pillow raises for damaged files, depending on where the damage is.
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
# Pillow stretches grey values of fewer than 8 bits to 0-255; ids have to be shrunk back.
_GREY_STRETCH = {2: 85, 4: 17}
# Photographs are a tenth smaller at zlib level 6, and take four times as long.
_RGB_COMPRESSION = 1

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_COLOURS = {0: "grey", 2: "rgb", 3: "palette", 4: "grey+alpha", 6: "rgba"}
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
# Pillow's modes of other formats, in the same words.
_MODE_COLOURS = {"L": "grey", "RGB": "rgb", "P": "palette", "LA": "grey+alpha", "RGBA": "rgba"}


class Header(NamedTuple):
    """Form of an image file, as its first and last bytes state it.

    ``format`` is Pillow's name ("PNG", "JPEG"), ``bits`` counts those of one channel, ``colour`` is "grey", "rgb",
    "palette", "grey+alpha", "rgba" or, in formats other than PNG, Pillow's mode; ``whole`` is False for a PNG that
    lacks its end.
    """

    format: str
    height: int
    width: int
    bits: int
    colour: str
    whole: bool


def read_header(path: PathLike) -> Header:
    """Read size and colour type of an image without its pixels.

    Raises
    ------
    DataError
        If the file is missing, empty or no image.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(26)
            if not start:
                raise DataError(f"{path} is empty (0 bytes)")
            if start.startswith(_PNG_SIGNATURE) and len(start) == 26:
                # Signature (8 bytes), length and "IHDR" (8), width and height (8), bits, colour type.
                width, height, bits, colour = struct.unpack(">IIBB", start[16:])
                file.seek(-len(_PNG_END), os.SEEK_END)
                whole = file.read() == _PNG_END
                return Header("PNG", height, width, bits, _PNG_COLOURS.get(colour, "unknown"), whole)
        with Image.open(path) as image:
            bits = 16 if image.mode.startswith("I;16") else 32 if image.mode in ("I", "F") else 8
            colour = _MODE_COLOURS.get(image.mode, image.mode)
            return Header(str(image.format), image.height, image.width, bits, colour, True)
    except _UNREADABLE as error:
        raise _unreadable("image", path, error) from error


def read_rgb(path: PathLike) -> np.ndarray:
    """Read an image of 8 bits per channel; grey, palette and transparent images become RGB.

    Rotation marks of cameras (EXIF) are not applied, so that pixels stay in step with their labels.

    Returns
    -------
    ndarray of shape (H, W, 3), uint8
        RGB.

    Raises
    ------
    DataError
        If the file is missing, truncated, no image, or has more than 8 bits per channel.
    """
    try:
        with Image.open(path) as image:
            _load_whole(image)
            if image.mode in _DEEP_MODES:
                raise DataError(f"image {path} must have 8 bits per channel, got mode {image.mode}")
            return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except _UNREADABLE as error:
        raise _unreadable("image", path, error) from error


def read_label(path: PathLike) -> np.ndarray:
    """Read a label map: the index of a palette image, the value of a grey one.

    Returns
    -------
    ndarray of shape (H, W), uint8, uint16 or int32
        Raw ids as stored.

    Raises
    ------
    DataError
        If the file is missing, truncated, no image, stored with loss (JPEG), or holds colours instead of ids.
    """
    try:
        with Image.open(path) as image:
            _load_whole(image)
            if image.format == "JPEG":
                raise DataError(f"label {path} must be stored without loss (PNG), got JPEG, whose ids are not reliable")
            if image.mode in ("P", "L"):
                label = np.array(image)
                return label // _GREY_STRETCH.get(_png_grey_bits(path), 1) if image.mode == "L" else label
            if image.mode == "1":
                return np.array(image).astype(np.uint8)
            if image.mode.startswith("I"):
                label = np.array(image)
                return label.astype(label.dtype.newbyteorder("="))
            if image.mode in ("RGB", "RGBA"):
                raise DataError(
                    f"label {path} must hold one class id per pixel (palette or grey PNG), got {image.mode} colours: "
                    "convert colour labels to ids first"
                )
            raise DataError(f"label {path} must be a palette or grey PNG, got mode {image.mode}")
    except _UNREADABLE as error:
        raise _unreadable("label", path, error) from error


def read_rgb16(path: PathLike) -> np.ndarray:
    """Read a PNG of three or four channels with 16 bits each.

    Returns
    -------
    ndarray of shape (H, W, 3), uint16
        The file's first three channels in its own order: red, green, blue.

    Raises
    ------
    DataError
        If the file is missing, truncated, damaged, or another kind of image.
    """
    header = read_header(path)
    if header.format != "PNG" or header.bits != 16 or header.colour not in ("rgb", "rgba"):
        raise DataError(
            f"{path} must be an RGB PNG of 16 bits per channel, got {header.format} {header.colour} of "
            f"{header.bits} bits"
        )
    try:
        content = Path(path).read_bytes()
        _check_png(content)
        # OpenCV gives blue, green, red, whatever the file.
        decoded = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
        if decoded is None or decoded.dtype != np.uint16:
            raise ValueError("OpenCV cannot decode it")
        return decoded[..., 2::-1]
    except (OSError, ValueError, cv2.error) as error:
        raise _unreadable("image", path, error) from error


def write_label_png(path: PathLike, train_ids: np.ndarray, label_space: LabelSpace) -> None:
    """Write trainIds as an 8-bit palette PNG, whole or not at all.

    Parameters
    ----------
    path : path
        An older file is replaced.
    train_ids : ndarray of shape (H, W), uint8
        TrainIds, 255 = ignore; stored as palette indices.
    label_space : LabelSpace
        Gives the palette.

    Raises
    ------
    DataError
        If a value is no trainId of the label space.
    RunError
        If the file cannot be written, for example because the disk is full.
    """
    label_space.check_train_ids(train_ids)
    write_palette_png(path, train_ids, label_space.png_palette())


def write_palette_png(path: PathLike, indices: np.ndarray, palette: bytes) -> None:
    """Write palette indices as an 8-bit PNG, whole or not at all.

    Parameters
    ----------
    path : path
        An older file is replaced.
    indices : ndarray of shape (H, W), uint8
        Stored as they are.
    palette : bytes
        RGB triples of the indices, 768 bytes at most.

    Raises
    ------
    DataError
        If `indices` has another shape or dtype.
    RunError
        If the file cannot be written, for example because the disk is full.
    """
    if indices.dtype != np.uint8 or indices.ndim != 2:
        raise DataError(f"indices must be uint8 of shape (H, W), got {indices.dtype} of shape {indices.shape}")
    image = Image.fromarray(indices)
    # Turns mode L into P, the values stay. With fewer than 256 colours Pillow would write fewer than 8 bits per pixel
    # and cut off values that have no colour.
    image.putpalette(palette.ljust(768, b"\0"))
    _write_png(path, image, compress_level=6)


def write_rgb_png(path: PathLike, rgb: np.ndarray) -> None:
    """Write an image as PNG, whole or not at all.

    Parameters
    ----------
    path : path
        An older file is replaced.
    rgb : ndarray of shape (H, W, 3), uint8
        RGB.

    Raises
    ------
    DataError
        If `rgb` has another shape or dtype.
    RunError
        If the file cannot be written, for example because the disk is full.
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise DataError(f"rgb must be uint8 of shape (H, W, 3), got {rgb.dtype} of shape {rgb.shape}")
    _write_png(path, Image.fromarray(rgb), compress_level=_RGB_COMPRESSION)


def _load_whole(image: Image.Image) -> None:
    # Other packages (gluoncv) switch Pillow's check for truncated files off for the whole process.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    image.load()


def _unreadable(what: str, path: PathLike, error: BaseException) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{what} {path} does not exist")
    if isinstance(error, UnidentifiedImageError):
        return DataError(f"{what} {path} is no image that can be read")
    if isinstance(error, OSError) and error.strerror:  # the system's refusal, not Pillow's
        return DataError(f"{what} {path} cannot be read: {error.strerror}")
    return DataError(f"{what} {path} cannot be read, the file is damaged or truncated ({error})")


def _png_grey_bits(path: PathLike) -> int:
    """Return the bits per pixel of a grey PNG, 8 for any other file."""
    header = read_header(path)
    return header.bits if header.format == "PNG" and header.colour == "grey" else 8


def _check_png(content: bytes) -> None:
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


def _write_png(path: PathLike, image: Image.Image, compress_level: int) -> None:
    with atomic_path(Path(path), durable=False) as temporary:
        image.save(temporary, format="PNG", compress_level=compress_level)
