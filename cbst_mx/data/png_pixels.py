"""Pixels of PNGs by the fastest decoder that is installed.

libspng (imagecodecs, extra "speed") takes 0.6 of the time of OpenCV's libpng for photographs. It works outside Python's
global lock, as the threads of a loader need it; pyspng, which has libspng as well, holds the lock. Most of its time is
zlib's, so libdeflate, of the same package, unpacks the data first, in half of that time, and libspng gets them as a PNG
that is not compressed; what libdeflate does not unpack, libspng gets as it is. Where libspng is not installed or does
not decode, OpenCV does. What ``png_parts.pixels_alone`` passes on has right checksums; of what is wrong elsewhere,
libspng reads no file that the other decoders refuse.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any, Callable

import cv2
import numpy as np

from cbst_mx.data.png_parts import filtered_rows, stored

__all__ = ["Rows", "by_opencv", "decoded", "rows_alone"]

_LONGEST_SIDE = 1_000_000  # pixels; OpenCV's libpng refuses more, and says so on the terminal

_LAST_FILTER = 4  # of PNG's numbers of filters
_MOST_UNPACKED = 1 << 27  # bytes; of more, libspng unpacks as it goes, so that memory holds them once

_spng: Callable[[Any], Any] | None = None
_inflate: Callable[..., Any] | None = None
with contextlib.suppress(ImportError):
    from imagecodecs import deflate_decode, spng_decode

    _spng, _inflate = spng_decode, deflate_decode
# A file that libspng or libdeflate refuses, no memory, a build of imagecodecs without them.
_REFUSED = (RuntimeError, ValueError, MemoryError, ImportError)


def decoded(plain: bytes, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return the pixels of a PNG of 8 bits per channel, None where no decoder here takes it.

    Parameters
    ----------
    plain : bytes
        What ``png_parts.pixels_alone`` made of the file: grey, RGB or RGBA.
    shape : tuple of int
        What the pixels must be: (H, W) of one channel or (H, W, 3) RGB, which drops transparency.

    Returns
    -------
    ndarray of that shape, uint8, or None
        Contiguous and writable.
    """
    pixels = _by_spng(plain, len(shape) == 3)
    if pixels is None and len(shape) == 3:
        pixels = by_opencv(plain, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        pixels = None if pixels is None else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    elif pixels is None:
        pixels = by_opencv(plain, cv2.IMREAD_UNCHANGED)
    return pixels if pixels is not None and pixels.shape == shape and pixels.dtype == np.uint8 else None


def by_opencv(content: bytes, flags: int) -> np.ndarray | None:
    """Return what OpenCV decodes, None where it refuses: another decoder says why.

    Parameters
    ----------
    content : bytes
        A PNG.
    flags : int
        Of ``cv2.imdecode``.
    """
    if max(int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")) > _LONGEST_SIDE:
        return None
    try:
        return cv2.imdecode(np.frombuffer(content, dtype=np.uint8), flags)
    except cv2.error:  # one side longer than OpenCV's limit
        return None


class Rows:
    """A PNG of 8-bit RGB whose data are there and right, of which pixels are made when they are asked for.

    Rows depend on those above them, so a window costs what the rows down to its last one cost. ``rows[top:bottom,
    left:right]`` is an array, as of an image (H, W, 3), and so is ``numpy.asarray(rows)``. Threads may share it.
    """

    dtype, ndim = np.dtype(np.uint8), 3

    def __init__(self, plain: bytes, shape: tuple[int, ...], filtered: np.ndarray) -> None:
        self.shape = shape
        self.size = self.nbytes = math.prod(shape)
        self._plain = plain
        self._filtered = filtered

    def __getitem__(self, window: tuple[slice, slice]) -> np.ndarray:
        start, stop, step = window[0].indices(self.shape[0])
        return self._down_to(max(start + 1, stop))[start : None if stop < 0 else stop : step, window[1]]

    def __array__(self, dtype: Any = None) -> np.ndarray:
        return self._down_to(self.shape[0]).astype(dtype or np.uint8, copy=False)

    def _down_to(self, height: int) -> np.ndarray:
        """Return the first rows."""
        height = min(max(1, height), self.shape[0])
        first = self._filtered[: height * (len(self._filtered) // self.shape[0])]
        assert _spng is not None
        with contextlib.suppress(*_REFUSED):
            return _without_alpha(_spng(stored(self._plain, first, height=height)))
        pixels = decoded(self._plain, self.shape)  # as where there is no libspng
        if pixels is None:
            raise MemoryError(f"no decoder makes {height} rows of an image of {self.shape[0]} x {self.shape[1]}")
        return pixels[:height]


def rows_alone(plain: bytes, shape: tuple[int, ...]) -> Rows | np.ndarray | None:
    """Return the rows of a PNG for windows of it; what :func:`decoded` gives where they are not to be had one by one.

    Parameters
    ----------
    plain : bytes
        What ``png_parts.pixels_alone`` made of the file: RGB or RGBA.
    shape : tuple of int
        (H, W, 3).
    """
    if _spng is not None and _inflate is not None:
        with contextlib.suppress(*_REFUSED):
            filtered = filtered_rows(plain, _inflate, _MOST_UNPACKED)
            if filtered.reshape(shape[0], -1)[:, 0].max() <= _LAST_FILTER:
                return Rows(plain, shape, filtered)
    return decoded(plain, shape)


def _by_spng(plain: bytes, colours: bool) -> np.ndarray | None:
    if _spng is None:
        return None
    try:
        pixels = _spng(_unpacked(plain))
    except _REFUSED:
        return None
    return _without_alpha(pixels) if colours else pixels


def _without_alpha(pixels: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(pixels, cv2.COLOR_RGBA2RGB) if pixels.shape[2:] == (4,) else pixels


def _unpacked(plain: bytes) -> bytes | np.ndarray:
    """Return a PNG of the same pixels whose data are not compressed, or the same PNG."""
    if _inflate is None:
        return plain
    try:
        rows = filtered_rows(plain, _inflate, _MOST_UNPACKED)
    except _REFUSED:
        return plain
    return stored(plain, rows, height=int.from_bytes(plain[20:24], "big"), made=rows.base)
