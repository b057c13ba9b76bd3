"""Names and colours of the classes, in a strip below a picture. Pictures are uint8 (H, W, 3) RGB."""

from __future__ import annotations

from typing import cast

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cbst_mx.label_space import LabelSpace

__all__ = ["with_legend"]

_GAP = 6  # pixels
_INK = (32, 33, 36)


def with_legend(picture: np.ndarray, label_space: LabelSpace) -> np.ndarray:
    """Return a picture with the colours of all classes below it.

    Parameters
    ----------
    picture : ndarray of shape (H, W, 3), uint8
    label_space : LabelSpace

    Returns
    -------
    ndarray of shape (H + h, W, 3), uint8
        As wide as the picture; h depends on the width and the classes alone, so that frames of a video stay alike.
    """
    width = picture.shape[1]
    size = min(max(width // 60, 11), 24)
    font = cast(ImageFont.FreeTypeFont, ImageFont.load_default(size))
    lines = _lines(label_space, width, size, font)
    pitch = size + _GAP
    strip = Image.new("RGB", (width, len(lines) * pitch + _GAP), "white")
    draw = ImageDraw.Draw(strip)
    for row, line in enumerate(lines):
        for left, name, colour in line:
            top = _GAP + row * pitch
            draw.rectangle((left, top, left + size - 1, top + size - 1), fill=colour, outline=_INK)
            draw.text((left + size + _GAP // 2, top + size // 2), name, _INK, font, anchor="lm")
    return np.concatenate([picture, np.array(strip)])


def _lines(
    label_space: LabelSpace, width: int, size: int, font: ImageFont.FreeTypeFont
) -> list[list[tuple[int, str, tuple[int, int, int]]]]:
    """Return place, name and colour of every class, line by line."""
    lines: list[list[tuple[int, str, tuple[int, int, int]]]] = [[]]
    left = _GAP
    for name, colour in zip(label_space.names, label_space.palette):
        needed = size + _GAP // 2 + int(font.getlength(name)) + 2 * _GAP
        if lines[-1] and left + needed > width:
            lines.append([])
            left = _GAP
        lines[-1].append((left, name, colour))
        left += needed
    return lines
