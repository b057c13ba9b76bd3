"""Pictures that compare methods: class colours over photographs, sheets of images, truths and predictions, heat maps.

Pictures are uint8 (H, W, 3) RGB; sizes are in pixels.
"""

from __future__ import annotations

import math
from typing import Sequence, cast

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cbst_mx.errors import ConfigError, DataError
from cbst_mx.label_space import IGNORE, LabelSpace

__all__ = ["comparison_sheet", "heat_map_sheet", "overlay"]

_ALPHA = 0.5  # weight of the class colours over a photograph
_CELL_WIDTH = 320  # pixels of a column, about
_GAP = 8
_MARGIN = 20
_INK = (32, 33, 36)
_EMPTY = (236, 236, 238)
_FRAME = (150, 150, 154)
_PALE_INK = (95, 99, 104)
_HEAT = cv2.COLORMAP_INFERNO  # grows lighter with the value, so that it reads in grey print as well


def overlay(image: np.ndarray, train_ids: np.ndarray, label_space: LabelSpace, opacity: float = _ALPHA) -> np.ndarray:
    """Lay the class colours over a photograph; pixels labelled 255 keep the photograph.

    Parameters
    ----------
    image : ndarray of shape (H, W, 3), uint8
        The photograph, RGB.
    train_ids : ndarray of shape (H, W), uint8
        Its labels.
    label_space : LabelSpace
        Colours of the classes.
    opacity : float
        Weight of the colours, from 0 (the photograph) to 1.

    Returns
    -------
    ndarray of shape (H, W, 3), uint8

    Raises
    ------
    DataError
        If an argument has another shape or type.
    """
    _check_picture("image", image)
    if train_ids.shape != image.shape[:2]:
        raise DataError(f"train_ids must have the image's size {image.shape[:2]}, got {train_ids.shape}")
    mixed = cv2.addWeighted(image, 1 - opacity, label_space.colorize(train_ids), opacity, 0)
    return np.where((train_ids == IGNORE)[..., None], image, mixed)


def comparison_sheet(
    rows: Sequence[Sequence[np.ndarray | None]],
    titles: Sequence[str],
    legend: LabelSpace | None = None,
) -> np.ndarray:
    """Draw a grid of pictures with column titles and, below it, the colours of the classes.

    Photographs are resized smoothly, label pictures (those with no colours but the legend's and black; without a
    legend, those with few colours) by the nearest pixel, so that no colours appear that stand for nothing.

    Parameters
    ----------
    rows : sequence of sequences of (ndarray of shape (H, W, 3), uint8) or None
        Pictures, row by row; None leaves a cell empty. Pictures may differ in size: all get the width of a column and
        keep their proportions.
    titles : sequence of str
        One per column.
    legend : LabelSpace, optional
        Names and colours to explain.

    Returns
    -------
    ndarray of shape (H, W, 3), uint8
        On white. The widest picture is enlarged by the whole number, or shrunk by the fraction, that makes it about 320
        pixels wide, and sets the width of a column.

    Raises
    ------
    DataError
        If there is no picture, or a cell is no picture.
    ConfigError
        If titles and cells do not fit together.
    """
    pictures = _check_grid(rows, titles)
    widest = max(picture.shape[1] for picture in pictures)
    scale = max(1, round(_CELL_WIDTH / widest)) if widest <= _CELL_WIDTH else _CELL_WIDTH / widest
    column = max(1, round(widest * scale))

    heights = []
    for row in rows:
        row_heights = [round(column * cell.shape[0] / cell.shape[1]) for cell in row if cell is not None]
        heights.append(max(row_heights + [1]) if row_heights else column // 2)

    # Larger sheets get larger letters: they are looked at from further away, or shrunk to fit a screen.
    size = min(max(round(column * len(titles) / 100), 14), 26)
    text_font, title_font = _font(size), _fitting_font(titles, column, size + 4)
    left = _MARGIN
    top = _MARGIN + size + 2 * _GAP
    width = left + len(titles) * (column + _GAP) - _GAP + _MARGIN
    bottom = top + sum(heights) + _GAP * (len(heights) - 1)
    entries = _legend_entries(legend, rows) if legend else []
    places, legend_height = _legend_layout(entries, width - left - _MARGIN, text_font)
    height = bottom + (_GAP * 2 + legend_height if entries else 0) + _MARGIN

    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, title in enumerate(titles):
        place = (left + number * (column + _GAP) + column / 2, top - _GAP - 1)
        draw.text(place, _shortened(title, column, title_font), _INK, title_font, anchor="ms")
    y = top
    for row, row_height in zip(rows, heights):
        for slot, cell in enumerate(row):
            x = left + slot * (column + _GAP)
            if cell is None:
                draw.rectangle((x, y, x + column - 1, y + row_height - 1), _EMPTY)
            else:
                shown = _resized(cell, column, legend)
                sheet.paste(Image.fromarray(shown), (x, y + (row_height - shown.shape[0]) // 2))
        y += row_height + _GAP
    for (x, line), (name, colour) in zip(places, entries):
        corner = (left + x, bottom + 2 * _GAP + line)
        draw.rectangle((*corner, corner[0] + size, corner[1] + size), colour, _FRAME)
        draw.text((corner[0] + size + _GAP, corner[1] + size / 2), name, _INK, text_font, anchor="lm")
    return np.asarray(sheet).copy()


def heat_map_sheet(maps: np.ndarray, titles: Sequence[str], caption: str = "") -> np.ndarray:
    """Draw one heat map per class, each from 0 to its own largest value, with the colour scale below.

    Parameters
    ----------
    maps : ndarray of shape (C, H, W), float
        Finite values of at least 0.
    titles : sequence of str
        One per map. The map's largest value is written beside it; a map of zeros stays an empty cell.
    caption : str
        A line of text below the maps.

    Returns
    -------
    ndarray of shape (h, w, 3), uint8
        On white; about sqrt(C) maps side by side, each 320 pixels wide.

    Raises
    ------
    DataError
        If the maps have another shape or values.
    ConfigError
        If there is not one title for each map.
    """
    if maps.ndim != 3 or 0 in maps.shape or not np.isfinite(maps).all() or (maps < 0).any():
        raise DataError(f"maps must be finite values of at least 0 of shape (C, H, W), got shape {maps.shape}")
    if len(titles) != len(maps):
        raise ConfigError(f"titles must have one entry for each of the {len(maps)} maps, got {len(titles)}")
    columns = math.ceil(math.sqrt(len(maps)))
    rows = -(-len(maps) // columns)
    cell = (_CELL_WIDTH, max(1, round(_CELL_WIDTH * maps.shape[1] / maps.shape[2])))
    font, small = _font(18), _font(14)
    title_height, bar_height = 18 + _GAP, 16  # letters reach 5 pixels below their line
    step = (cell[0] + 2 * _GAP, cell[1] + title_height + 2 * _GAP)
    bottom = _MARGIN + rows * step[1]
    width = 2 * _MARGIN + columns * step[0] - 2 * _GAP
    sheet = Image.new("RGB", (width, bottom + bar_height + (_GAP + 14 if caption else 0) + _MARGIN), "white")
    draw = ImageDraw.Draw(sheet)

    shrinks = maps.shape[2] > cell[0]
    for index, (plane, title) in enumerate(zip(maps, titles)):
        x, y = _MARGIN + index % columns * step[0], _MARGIN + index // columns * step[1]
        largest = float(plane.max())
        note = f"max {largest:.3g}" if largest else "never occurs"
        room = cell[0] - small.getlength(note) - _GAP
        draw.text((x, y + title_height - 6), _shortened(title, int(room), font), _INK, font, anchor="ls")
        draw.text((x + cell[0], y + title_height - 6), note, _PALE_INK, small, anchor="rs")
        box = (x, y + title_height, x + cell[0] - 1, y + title_height + cell[1] - 1)
        if not largest:
            draw.rectangle(box, _EMPTY)
            continue
        # Values are resized and not colours, so that no colours appear that stand for no value.
        share = (plane / largest).astype(np.float32)
        share = cv2.resize(share, cell, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        sheet.paste(Image.fromarray(_heat(share)), box[:2])

    y, largest_text = bottom, "the largest value of the class"
    left = _MARGIN + round(small.getlength("0")) + _GAP
    length = min(_CELL_WIDTH, round(width - left - _GAP - small.getlength(largest_text) - _MARGIN))
    bar = _heat(np.tile(np.linspace(0, 1, length, dtype=np.float32), (bar_height, 1)))
    sheet.paste(Image.fromarray(bar), (left, y))
    draw.text((_MARGIN, y + bar_height / 2), "0", _INK, small, anchor="lm")
    draw.text((left + length + _GAP, y + bar_height / 2), largest_text, _INK, small, anchor="lm")
    if caption:
        text = _shortened(caption, width - 2 * _MARGIN, small)
        draw.text((_MARGIN, y + bar_height + _GAP), text, _PALE_INK, small, anchor="la")
    return np.asarray(sheet).copy()


def _heat(share: np.ndarray) -> np.ndarray:
    """Return the colours, uint8 (H, W, 3) RGB, of values (H, W) in [0, 1]."""
    levels = np.clip(np.rint(share * 255), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(cv2.applyColorMap(levels, _HEAT)[..., ::-1])


def _check_picture(name: str, picture: np.ndarray) -> None:
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or picture.size == 0:
        raise DataError(f"{name} must be uint8 of shape (H, W, 3), got {picture.dtype} of shape {picture.shape}")


def _check_grid(rows: Sequence[Sequence[np.ndarray | None]], titles: Sequence[str]) -> list[np.ndarray]:
    for number, row in enumerate(rows):
        if len(row) != len(titles):
            raise ConfigError(f"row {number} must have {len(titles)} cells, one per title, got {len(row)}")
        for cell in row:
            if cell is not None:
                _check_picture(f"every cell of row {number}", cell)
    pictures = [cell for row in rows for cell in row if cell is not None]
    if not pictures:
        raise DataError("rows must hold at least one picture, got none")
    return pictures


def _codes(picture: np.ndarray) -> np.ndarray:
    """Return the different colours of a picture, each as one number."""
    return np.unique(picture.reshape(-1, 3).astype(np.int64) @ (1 << 16, 1 << 8, 1))


def _is_labels(picture: np.ndarray, legend: LabelSpace | None) -> bool:
    codes = _codes(picture)
    if legend is None:
        return len(codes) <= 64
    known = _codes(np.array([*legend.palette, (0, 0, 0)]))
    return bool(np.isin(codes, known).all())


def _resized(picture: np.ndarray, width: int, legend: LabelSpace | None) -> np.ndarray:
    size = (width, max(1, round(width * picture.shape[0] / picture.shape[1])))
    if _is_labels(picture, legend):
        return cv2.resize(picture, size, interpolation=cv2.INTER_NEAREST_EXACT)
    return cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC if width > picture.shape[1] else cv2.INTER_AREA)


def _font(size: int) -> ImageFont.FreeTypeFont:
    # Pillow's own scalable font: nothing depends on the fonts of the machine.
    return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size))


def _fitting_font(texts: Sequence[str], width: int, size: int) -> ImageFont.FreeTypeFont:
    """Return the largest font up to `size` in which every text is at most `width` wide, but none below 11."""
    font = _font(size)
    while size > 11 and max(font.getlength(text) for text in texts) > width:
        size -= 1
        font = _font(size)
    return font


def _shortened(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    """Return the text, without its middle where it is too wide: file names differ at their ends."""
    keep, short = len(text), text
    while keep > 2 and font.getlength(short) > width:
        keep -= 1
        short = text[: (keep + 1) // 2] + "..." + text[len(text) - keep // 2 :]
    return short


def _legend_entries(
    legend: LabelSpace, rows: Sequence[Sequence[np.ndarray | None]]
) -> list[tuple[str, tuple[int, int, int]]]:
    entries = list(zip(legend.names, legend.palette))
    labels = [cell for row in rows for cell in row if cell is not None and _is_labels(cell, legend)]
    # Some class may be black itself; otherwise black stands for 255 and needs a name once it is seen.
    if (0, 0, 0) not in legend.palette and any((cell == 0).all(axis=2).any() for cell in labels):
        entries.append(("not labelled", (0, 0, 0)))
    return entries


def _legend_layout(
    entries: Sequence[tuple[str, tuple[int, int, int]]], width: int, font: ImageFont.FreeTypeFont
) -> tuple[list[tuple[int, int]], int]:
    """Return the place of each entry inside the legend and the legend's height: even columns, filled line by line."""
    if not entries:
        return [], 0
    step = int(font.size + 3 * _GAP + max(font.getlength(name) for name, _ in entries))
    per_line = max(1, min(len(entries), width // step))
    lines = -(-len(entries) // per_line)
    # As many entries on the last line as on the others, as far as that goes.
    per_line = -(-len(entries) // lines)
    step = max(step, width // per_line)
    pitch = round(font.size) + _GAP
    return [(i % per_line * step, i // per_line * pitch) for i in range(len(entries))], lines * pitch - _GAP + 1
