"""Images and label maps as files.

Images are uint8 RGB of shape (H, W, 3), label maps are integers of shape (H, W). Pillow reads them: it notices
truncated files, which OpenCV fills with grey without a word. Writing is atomic: a file is either whole or not there.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Union

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from cbst_mx.errors import DataError
from cbst_mx.files import atomic_path
from cbst_mx.label_space import LabelSpace

__all__ = ["read_label", "read_rgb", "write_label_png", "write_rgb_png"]

PathLike = Union[str, "os.PathLike[str]"]

# What Pillow raises for damaged files, depending on where the damage is.
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
# Pillow stretches grey values of fewer than 8 bits to 0-255; ids have to be shrunk back.
_GREY_STRETCH = {2: 85, 4: 17}
# Photographs are a tenth smaller at zlib level 6, and take four times as long.
_RGB_COMPRESSION = 1


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
    image = Image.fromarray(train_ids)
    image.putpalette(label_space.png_palette())  # turns mode L into P, the values stay
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
    """Give the bits per pixel of a grey PNG, 8 for any other file."""
    with open(path, "rb") as file:
        header = file.read(26)
    # Signature (8 bytes), length and "IHDR" (8), width and height (8), bit depth, colour type (0 = grey).
    return header[24] if header[:4] == b"\x89PNG" and header[25] == 0 else 8


def _write_png(path: PathLike, image: Image.Image, compress_level: int) -> None:
    with atomic_path(Path(path), durable=False) as temporary:
        image.save(temporary, format="PNG", compress_level=compress_level)
