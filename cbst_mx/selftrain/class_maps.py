"""Class maps at full size, in tiles: what a network's stride-s output says about every pixel of the image.

C classes, h x w cells of the stored map, H x W pixels of the image. A full-size map of 19 classes and 1024 x 2048
pixels takes 159 MB, the stride-8 map it is made from 2.5 MB. So nothing here makes the whole full-size map: every tile
is upsampled, multiplied by the spatial prior, reduced to what is wanted (confidence and predicted class, or the
pseudo-label) and forgotten.

A pixel's value depends on the stored map alone, not on the tile it is computed in: bit for bit. Along each axis, first
from left to right, then from top to bottom, and always in float32,

    value = a + sum over the other cells of (cell - a) * weight

where a is the cell before the pixel's centre; `interpolation` has the cells and weights. Where all cells are equal the
value is exactly theirs, so that probabilities of 1 stay 1.
"""

from __future__ import annotations

import mmap
from typing import Iterator, Sequence

import cv2
import numpy as np

from cbst_mx.errors import ConfigError, DataError
from cbst_mx.selftrain.interpolation import Axis, check_interpolation, plan_axis

__all__ = ["ClassMaps", "size_at_stride"]

_TILE = (128, 256)  # pixels: its arrays fit the processor's cache, and few classes compete in it
_BAND = 16  # rows of a map that is at full size already: whole rows are read from the disk
_RELEASED = 256  # rows of a mapped file after which the memory of its pages is given back


def size_at_stride(
    shape: Sequence[int], stride: int, size: tuple[int, int] | None = None, what: str = "maps"
) -> tuple[int, int]:
    """Return the size of an image from the shape of its map.

    Parameters
    ----------
    shape : sequence of int
        C, h and w of the map.
    stride : int
        Pixels per cell along each side.
    size : (int, int), optional
        H and W of the image, where they are not `stride` times h and w.
    what : str
        Name of the map in errors.

    Returns
    -------
    tuple of int
        H and W.

    Raises
    ------
    ConfigError
        If `stride` is below 1 or `size` is no height and width of at least 1 pixel.
    DataError
        If the map has other cells than an image of `size` has at `stride`.
    """
    if stride < 1:
        raise ConfigError(f"stride must be at least 1, got {stride}")
    if size is None:
        return shape[1] * stride, shape[2] * stride
    if len(size) != 2 or min(size) < 1:
        raise ConfigError(f"size must be a height and a width of at least 1 pixel, got {tuple(size)}")
    for cells, pixels in zip(shape[1:], size):
        if cells not in (pixels // stride, -(-pixels // stride)):
            aligned = tuple(shape[1:]) == (size[0] // stride + 1, size[1] // stride + 1)
            advice = ", as a network has that aligns corners: upsample its maps as it does, and give them at full size"
            raise DataError(
                f"{what} must have the cells of {size[0]} x {size[1]} pixels at stride {stride}, "
                f"got {shape[1]} x {shape[2]}{advice if aligned else ''}"
            )
    return size[0], size[1]


class ClassMaps:
    """One image's class maps, seen at full size.

    Parameters
    ----------
    maps : ndarray of shape (C, h, w), float32 or float16
        Probabilities, or a prior; may be an array mapped from a file.
    size : tuple of int, optional
        H and W of the image; by default h and w.
    interpolation : {"bilinear", "bicubic", "pillow"}
        See ``cbst_mx.selftrain.interpolation``.
    extent : tuple of float, optional
        How many cells the image covers along each axis, from the first one; by default all, h and w. A network at
        stride s whose input had 925 rows gives 116 cells, of which the image covers 925 / s.
    stride : int
        Pixels of the network's input per cell, to whose size "pillow" enlarges the maps first; nothing else needs it.

    Raises
    ------
    ConfigError
        If `interpolation` is unknown, a side of `size` is below 1, the image would not lie inside the cells, or
        "pillow" would have to crop within a pixel of the input.
    DataError
        If `maps` has another shape or type.
    """

    def __init__(
        self,
        maps: np.ndarray,
        size: tuple[int, int] | None = None,
        *,
        interpolation: str = "bilinear",
        extent: tuple[float, float] | None = None,
        stride: int = 1,
    ) -> None:
        check_interpolation(interpolation)
        if maps.ndim != 3 or 0 in maps.shape or maps.dtype not in (np.float32, np.float16):
            raise DataError(
                f"class maps must be float32 or float16 of shape (C, H, W), got {maps.dtype} of shape {maps.shape}"
            )
        wanted = tuple(size) if size is not None else maps.shape[1:]
        if len(wanted) != 2 or min(wanted) < 1:
            raise ConfigError(f"size must be a height and a width of at least 1 pixel, got {wanted}")
        self.size = (wanted[0], wanted[1])
        self.num_classes = maps.shape[0]
        #: The maps as they were given.
        self.stored = maps
        covered = extent or maps.shape[1:]
        if not all(0 < part <= cells for part, cells in zip(covered, maps.shape[1:])):
            raise ConfigError(f"extent must be above 0 and at most {maps.shape[1:]} cells, got {extent}")
        self._rows = plan_axis(maps.shape[1], self.size[0], interpolation, covered[0], stride)
        self._columns = plan_axis(maps.shape[2], self.size[1], interpolation, covered[1], stride)
        full = self._rows is None and self._columns is None
        # the maps of one stride are small and used more than once; those at full size are read band by band
        self._maps = maps if full else np.asarray(maps, dtype=np.float32)
        read_only = getattr(self._maps, "mode", None) == "r" and hasattr(mmap, "MADV_DONTNEED")
        self._mapping = getattr(self._maps, "_mmap", None) if read_only else None  # of a file on the disk
        self._bounds: dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]] = {}
        #: The smallest and the largest cell, NaN where any is; None for a map at full size, which is read once only.
        self.range = None if full else (float(self._maps.min()), float(self._maps.max()))
        # interpolated values lie between the cells' only where no weight is negative
        self.between = self.range is not None and self.range[0] >= 0 and interpolation == "bilinear"

    @classmethod
    def at_stride(
        cls, maps: np.ndarray, size: tuple[int, int], stride: int, *, interpolation: str = "bilinear"
    ) -> ClassMaps:
        """Return the maps of a network whose input had the image's own size, for "pillow" padded to whole cells.

        Parameters
        ----------
        maps : ndarray of shape (C, h, w), float32 or float16
        size : tuple of int
            H and W of the image, as :func:`size_at_stride` gives them.
        stride : int
            Pixels per cell along each side.
        interpolation : {"bilinear", "bicubic", "pillow"}
            "pillow" crops what the cells cover beyond the image, as the program does; the others lay all cells over it.

        Raises
        ------
        ConfigError, DataError
            As the constructor.
        """
        extent = None
        if interpolation == "pillow":
            extent = (min(size[0] / stride, maps.shape[1]), min(size[1] / stride, maps.shape[2]))
        return cls(maps, size, interpolation=interpolation, extent=extent, stride=stride)

    def tiles(self) -> Iterator[tuple[slice, slice]]:
        """Yield rows and columns of the tiles of the image, in raster order."""
        height, width = self.size
        full = self._rows is None and self._columns is None
        rows, columns = (_BAND, width) if full else _TILE
        for top in range(0, height, rows):
            for left in range(0, width, columns):
                yield slice(top, min(top + rows, height)), slice(left, min(left + columns, width))

    def cells(self, rows: slice, columns: slice) -> np.ndarray:
        """Return the cells (C, m, n) from which the pixels of a tile are made."""
        top, bottom = self._rows.cells(rows) if self._rows else (rows.start, rows.stop)
        left, right = self._columns.cells(columns) if self._columns else (columns.start, columns.stop)
        return self._maps[:, top:bottom, left:right]

    def bounds(self, rows: slice, columns: slice) -> tuple[np.ndarray, np.ndarray]:
        """Return the smallest and the largest cell of a tile per class, float32 (C,) each; kept for the next image."""
        key = (rows.start, rows.stop, columns.start, columns.stop)
        if key not in self._bounds:
            cells = self.cells(rows, columns)
            self._bounds[key] = cells.min(axis=(1, 2)), cells.max(axis=(1, 2))
        return self._bounds[key]

    def tile(self, rows: slice, columns: slice, classes: np.ndarray | None = None) -> np.ndarray:
        """Return the values of a tile's pixels.

        Parameters
        ----------
        rows, columns : slice
            Pixels, with start and stop inside the image.
        classes : ndarray of shape (K,), integer, optional
            Which classes; all by default.

        Returns
        -------
        ndarray of shape (K, n, m), float32
            An array of its own.
        """
        cells = self.cells(rows, columns)
        if classes is not None and len(classes) < self.num_classes:
            cells = cells[classes]
        values: np.ndarray = cells.astype(np.float32)  # a copy
        if rows.stop % _RELEASED == 0:
            self.release()
        count, height, width = values.shape
        if self._columns is not None:
            left = self._columns.cells(columns)[0]
            # numpy gathers along the first axis ten times as fast as along the last, and OpenCV transposes fast
            first = cv2.transpose(values.reshape(count * height, width)).reshape(width, -1)
            values = _interpolated(first, self._columns, columns, left)
            values = cv2.transpose(values).reshape(count, height, -1)
        if self._rows is not None:
            values = _interpolated(values, self._rows, rows, self._rows.cells(rows)[0])
        return values

    def release(self) -> None:
        """Give back the memory of the pages that were read of a mapped file: all of them can take 159 MB."""
        if self._mapping is not None:
            self._mapping.madvise(mmap.MADV_DONTNEED)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Return rows `start` to `stop` of the image at full width: float32 (C, stop - start, W)."""
        return self.tile(slice(start, stop), slice(0, self.size[1]))


def _interpolated(values: np.ndarray, axis: Axis, pixels: slice, first: int) -> np.ndarray:
    """Interpolate (..., n, m) along its last axis but one; `first` is the cell that comes first in `values`."""
    along = values.ndim - 2
    base = np.take(values, axis.base[pixels] - first, axis=along)
    result = base.copy() if len(axis.others) > 1 else base
    for cells, weights in axis.others:
        other = np.take(values, cells[pixels] - first, axis=along)
        other -= base
        plane = np.empty(other.shape[-2:], dtype=np.float32)  # numpy multiplies planes faster than columns
        plane[:] = weights[pixels, None]
        other *= plane
        result += other
    return result
