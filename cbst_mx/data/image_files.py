"""Images and label maps as files.

Images are uint8 RGB of shape (H, W, 3), label maps are integers of shape (H, W). What a file is decides its header
(``image_headers``); each format goes to the decoder that says when something is missing: JPEG to libjpeg-turbo, which
tells of parts that are filled up with grey; PNGs of 8 bits per channel to libspng or OpenCV's libpng (``png_pixels``);
those of 16 bits to OpenCV too, as Pillow keeps the upper 8 without a word; all others to Pillow, which may only use the
decoder of the format that was found. Writing is atomic: a file is either whole or not there.

==========  =====================================================  ====================================================
format      as image                                               as label
==========  =====================================================  ====================================================
PNG         grey, palette (1 to 8 bits), RGB, with or without      grey of 1, 2, 4, 8 or 16 bits, palette of 1 to 8 bits
            transparency (dropped), 8 bits
JPEG        grey or colour of 8 bits; not CMYK                     refused: lossy
TIFF        grey, inverted grey, palette, RGB, 8 bits or 1         grey of 1, 8 or 16 bits, palette of 8; lossless, one
                                                                   page; not inverted, not floating point, signed with
                                                                   16 bits only
BMP, GIF    all                                                    palettes, of one picture
WebP        all                                                    refused: colours
PPM         grey and colour up to 255                              grey whose stated maximum is 255 or 65535
JPEG 2000   grey and colour of 8 bits                              refused: whether it is lossless cannot be told
==========  =====================================================  ====================================================

Of several pages or an animation an image is the first; a label has to be the only one.
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any, Callable, NamedTuple

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageFile

from cbst_mx.data.image_headers import (
    Header,
    PathLike,
    open_regular,
    parse_header,
    read_header,
    system_refusal,
    with_coloured_palette,
    without_turn,
)
from cbst_mx.data.jpeg_parts import check_scans, check_tiff_parts
from cbst_mx.data.png_parts import check_chunks, check_rows, pixels_alone
from cbst_mx.data.png_pixels import Rows, by_opencv, decoded, rows_alone
from cbst_mx.errors import DamagedError, DataError
from cbst_mx.files import write_bytes
from cbst_mx.label_space import LabelSpace

__all__ = [
    "MOST_PIXELS",
    "Draft",
    "Header",
    "PathLike",
    "read_draft",
    "read_header",
    "read_label",
    "read_rgb",
    "read_rgb16",
    "read_rows",
    "write_label_png",
    "write_palette_png",
    "write_rgb_png",
]

#: Pixels of the largest image that is read.
MOST_PIXELS = 178_956_970

# What Pillow raises for damaged files, depending on where the damage is.
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    MemoryError,
    Image.DecompressionBombError,
)
_RGB_COLOURS = ("grey", "inverted grey", "grey+alpha", "palette", "rgb", "rgba", "ycbcr")
# Depths whose values Pillow gives as they are stored.
_LABEL_BITS = {
    ("PNG", "grey"): (1, 2, 4, 8, 16),
    ("PNG", "palette"): (1, 2, 4, 8),
    ("TIFF", "grey"): (1, 8, 16),
    ("TIFF", "signed grey"): (16,),
    ("TIFF", "palette"): (8,),
    ("BMP", "palette"): (1, 4, 8),
    ("GIF", "palette"): (8,),
    ("PPM", "grey"): (8, 16),
}
# Pillow stretches grey values of fewer than 8 bits to 0-255; ids have to be shrunk back.
_GREY_STRETCH = {2: 85, 4: 17}


def read_rgb(path: PathLike) -> np.ndarray:
    """Read an image of 8 bits per channel; grey, palette and transparent images become RGB.

    Rotation marks of cameras (EXIF) are not applied, so that pixels stay in step with their labels; ``Header.turn`` has
    them.

    Returns
    -------
    ndarray of shape (H, W, 3), uint8
        RGB.

    Raises
    ------
    DataError
        If the file is missing, no image, damaged, larger than `MOST_PIXELS`, has more than 8 bits per channel, or
        colours that are not RGB, grey or a palette.
    """
    return np.asarray(_read_rgb(path, decoded))


def read_rows(path: PathLike) -> np.ndarray | Rows:
    """Read an image as :func:`read_rgb` does, for a window of it: of PNGs no other rows have to be decoded.

    All of the file is looked at, and the same files are refused.

    Returns
    -------
    ndarray of shape (H, W, 3), uint8, or Rows

    Raises
    ------
    DataError
        As :func:`read_rgb`.
    """
    return _read_rgb(path, rows_alone)


class Draft(NamedTuple):
    """An image that was decoded at a part of its size.

    Attributes
    ----------
    pixels : ndarray of shape (h, w, 3), uint8
        RGB; the last row and column may reach beyond the image.
    shape : tuple of int
        (H, W, 3) of the whole image.
    part : int
        Rows and columns of the whole image in one of `pixels`.
    """

    pixels: np.ndarray
    shape: tuple[int, int, int]
    part: int


def read_draft(path: PathLike, wanted: Callable[[int, int], tuple[int, int]]) -> np.ndarray | Draft:
    """Read an image as :func:`read_rgb` does; a JPEG at a half, a quarter or an eighth where that is large enough.

    All of the file is decoded, and the same files are refused.

    Parameters
    ----------
    path : path
    wanted : callable
        Returns the height and width that the image will be resized to, given its own.

    Returns
    -------
    ndarray of shape (H, W, 3), uint8, or Draft

    Raises
    ------
    DataError
        As :func:`read_rgb`.
    """
    return _read_rgb(path, decoded, wanted)


def _part_of(size: tuple[int, int], wanted: tuple[int, int]) -> int:
    """Return the most pixels of a side that libjpeg's inverse transform can make one of, with as many as are wanted."""
    fits = (part for part in (8, 4, 2) if all(-(-side // part) >= least for side, least in zip(size, wanted)))
    return next(fits, 1)


def _read_rgb(
    path: PathLike,
    of_png: Callable[[bytes, tuple[int, int, int]], np.ndarray | Rows | None],
    wanted: Callable[[int, int], tuple[int, int]] = lambda height, width: (height, width),
) -> Any:
    """Return an image; those PNGs that need no conversion as `of_png` gives them, JPEGs as `read_draft` says."""
    content, header = _read(path, "image")
    if header.bits > 8 or header.colour.startswith("float"):
        raise DataError(
            f"image {path} must have 8 bits per channel, got {header.format} {header.colour} of {header.bits} bits: "
            "convert it"
        )
    if header.colour not in _RGB_COLOURS:
        raise DataError(
            f"image {path} must be RGB, grey or of a palette, got {header.format} {header.colour}: convert it"
        )
    if header.format == "JPEG":
        size = (header.height, header.width)
        part = _part_of(size, wanted(*size))
        least = (-(-size[0] // part), -(-size[1] // part))
        return _jpeg(content, path) if part == 1 else Draft(_jpeg(content, path, least), (*size, 3), part)
    if header.format == "PNG" and header.bits == 8 and header.colour in ("rgb", "rgba"):
        plain = pixels_alone(content)
        shape = (header.height, header.width, 3)
        pixels = None if plain is None else of_png(plain, shape)
        if pixels is not None:
            return pixels

    def colours(image: Image.Image) -> np.ndarray:
        if image.mode != "P":
            return np.array(image.convert("RGB"))
        stored = with_coloured_palette(content)[1] if header.format == "BMP" else bytes(image.getpalette() or ())
        palette = np.frombuffer(stored, dtype=np.uint8).reshape(-1, 3)
        indices = np.array(image)
        if indices.max() >= len(palette):
            raise ValueError(f"its palette has {len(palette)} colours, a pixel is {indices.max()}")
        return palette[indices]

    return _pillow(content, header, path, "image", colours)


def read_label(path: PathLike) -> np.ndarray:
    """Read a label map: the index of a palette image, the value of a grey one.

    Returns
    -------
    ndarray of shape (H, W), uint8, uint16 or int32
        Raw ids as stored.

    Raises
    ------
    DataError
        If the file is missing, no image, damaged, stored with loss, of several pages, holds colours instead of ids, or
        values that a decoder would change.
    """
    content, header = _read(path, "label")
    if header.lossy:
        codec = header.format if header.format == header.lossy else f"{header.format} ({header.lossy})"
        raise DataError(f"label {path} must be stored without loss (PNG), got {codec}, whose ids are not reliable")
    if header.pages > 1:
        raise DataError(f"label {path} must hold one image, got {header.pages} pages or an animation")
    if header.colour in ("rgb", "rgba"):
        raise DataError(
            f"label {path} must hold one class id per pixel (palette or grey PNG), got {header.colour.upper()} "
            "colours: convert colour labels to ids first"
        )
    depths = _LABEL_BITS.get((header.format, header.colour), ())
    if header.bits not in depths:
        raise DataError(
            f"label {path} must be a palette or grey PNG, got {header.format} {header.colour} of {header.bits} bits"
        )
    if header.top not in (0, 255, 65535):  # others are stretched by the decoder
        raise DataError(
            f"label {path} must state 255 or 65535 as its largest value, got {header.top}: save it as grey PNG"
        )
    if header.format == "PNG" and header.bits == 8:
        plain = pixels_alone(content, grey=True)
        ids = None if plain is None else decoded(plain, (header.height, header.width))
        if ids is not None:
            return ids

    def values(image: Image.Image) -> np.ndarray:
        if image.mode == "1":
            return np.array(image).astype(np.uint8)
        label = np.array(image)
        if header.format == "PNG" and header.colour == "grey":
            label = label // _GREY_STRETCH.get(header.bits, 1)
        return label.astype(label.dtype.newbyteorder("="), copy=False)

    return _pillow(content, header, path, "label", values)


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
        with open_regular(path, "image") as stream:
            content = stream.read()
        check_chunks(content)
        # OpenCV gives blue, green, red, whatever the file.
        values = by_opencv(pixels_alone(content) or b"", cv2.IMREAD_UNCHANGED)
        if values is None or values.dtype != np.uint16:
            raise ValueError("OpenCV cannot decode it")
        return values[..., 2::-1]
    except (OSError, ValueError, cv2.error) as error:
        raise _damaged("image", path, error) from error


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
    # run lengths alone: labels are a tenth larger than with zlib's level 6, and written in a third of the time
    _write_png(path, image, compress_type=zlib.Z_RLE)


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
    # photographs are a tenth smaller at zlib level 6, and take four times as long
    _write_png(path, Image.fromarray(rgb), compress_level=1)


def _read(path: PathLike, what: str) -> tuple[bytes, Header]:
    """Return the bytes of an image file and what they say of it."""
    try:
        with open_regular(path, what) as stream:
            content = stream.read()
    except OSError as error:
        raise system_refusal(what, path, error) from error
    header = parse_header(io.BytesIO(content), len(content), path, what)
    if header.height * header.width > MOST_PIXELS:
        raise DataError(
            f"{what} {path} must have at most {MOST_PIXELS:,} pixels, got {header.height} x {header.width}: cut it "
            "into parts, or make it smaller"
        )
    return content, header


def _jpeg(content: bytes, path: PathLike, least: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Return the pixels of a JPEG, uint8 RGB, at the smallest size from `least` on, if libjpeg-turbo likes them all."""
    try:
        check_scans(content)
        # fast variants would give other values than libjpeg's own
        exact = {"fastdct": False, "fastupsample": False}
        return simplejpeg.decode_jpeg(content, colorspace="RGB", min_height=least[0], min_width=least[1], **exact)
    except ValueError as error:
        if "unsupported" in str(error).lower():  # lossless, hierarchical: a kind of JPEG, no damage
            raise DataError(f"image {path} is a JPEG that cannot be decoded ({error}): convert it") from error
        raise _damaged("image", path, error) from error


def _pillow(
    content: bytes, header: Header, path: PathLike, what: str, convert: Callable[[Image.Image], np.ndarray]
) -> np.ndarray:
    """Return what `convert` makes of an image, read by Pillow's decoder of its format and no other."""
    # Other packages (gluoncv) switch Pillow's check for truncated files off for the whole process.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        if header.format == "PNG":
            check_rows(content, header)
        if header.format == "TIFF" and header.turn != 1:
            content = without_turn(content)  # which Pillow would apply
        if header.format == "BMP" and header.colour == "palette":
            content = with_coloured_palette(content)[0]  # grey ones change how Pillow reads the indices
        with Image.open(io.BytesIO(content), formats=[header.format]) as image:
            if header.lossy == "JPEG" and header.format == "TIFF":
                check_tiff_parts(content, image.tag_v2)  # type: ignore[attr-defined]
            image.load()
            if image.size != (header.width, header.height):
                raise ValueError(f"its header says {header.width} x {header.height}, its pixels are {image.size}")
            return convert(image)
    except _UNREADABLE as error:
        raise _damaged(what, path, error) from error


def _damaged(what: str, path: PathLike, error: BaseException) -> DamagedError:
    return DamagedError(f"{what} {path} cannot be read, the file is damaged or truncated ({error})")


def _write_png(path: PathLike, image: Image.Image, **compression: int) -> None:
    content = io.BytesIO()
    image.save(content, format="PNG", **compression)
    write_bytes(Path(path), content.getbuffer(), durable=False)
