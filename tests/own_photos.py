"""Folders of photographs and masks as people have them, for the tests of the survey and of `init`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = np.array([(128, 64, 128), (107, 142, 35), (70, 130, 180), (0, 0, 0)], np.uint8)


def photograph(path: Path, size=(60, 80), grey=False, turn=1, seed=0):
    """Write a picture whose neighbouring pixels differ."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    image = Image.fromarray(values).convert("L" if grey else "RGB")
    exif = Image.Exif()
    exif[0x0112] = turn
    image.save(path, **({"exif": exif} if turn != 1 else {}))


def mask(path: Path, kind="ids", size=(60, 80), values=(0, 1, 2, 3), seed=0):
    """Write a mask of stripes: "ids" (grey), "palette" or "colours"; the last value is black as a colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stripes = np.arange(size[0]) * len(values) // size[0]
    if kind == "colours":
        rows = COLOURS[stripes]
        Image.fromarray(np.repeat(rows[:, None], size[1], axis=1)).save(path)
        return
    ids = np.repeat(np.array(values, np.uint8)[stripes][:, None], size[1], axis=1)
    image = Image.fromarray(ids)
    if kind == "palette":
        image.putpalette(COLOURS.tobytes().ljust(768, b"\0"))
    image.save(path)


def pairs(root: Path, images: str, labels: str, count=6, kind="ids", **options):
    """Write numbered photographs and masks; `images` and `labels` are patterns with {}."""
    for index in range(count):
        photograph(root / images.format(f"{index:04}"), seed=index, **options)
        if labels:
            size = options.get("size", (60, 80))
            mask(root / labels.format(f"{index:04}"), kind, size)
