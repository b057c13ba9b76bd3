"""Label files that hold colours instead of ids: exports of annotation tools, renderings.

A colour stands for a class only where it is that class's colour exactly. Black is ignored where it is no class's
colour, as the label images of this program have it. Shorthand: C classes, H x W pixels.
"""

from __future__ import annotations

from typing import Iterable

import numpy as np
from PIL import Image

from cbst_mx.data.image_files import PathLike, read_header, read_rgb
from cbst_mx.errors import ConfigError, DataError
from cbst_mx.files import reading
from cbst_mx.label_space import IGNORE, LabelSpace
from cbst_mx.messages import counted, listed

__all__ = ["ColourMasks", "UnknownColourError"]

_BLACK = (0, 0, 0)
_SHOWN = 5


class UnknownColourError(DataError):
    """A label file has colours that are no class's."""


class ColourMasks:
    """Reader of colour masks; an object of it can travel to worker processes.

    Parameters
    ----------
    label_space : LabelSpace
        Gives the colours of the classes.
    ignored : iterable of (int, int, int)
        Further colours, RGB from 0 to 255, whose pixels count nowhere.

    Raises
    ------
    ConfigError
        If two classes have one colour, or a colour is both a class's and ignored.
    """

    def __init__(self, label_space: LabelSpace, ignored: Iterable[tuple[int, ...]] = ()) -> None:
        owners: dict[tuple[int, ...], int] = {}
        for train_id, colour in enumerate(label_space.palette):
            if colour in owners:
                first, second = label_space.names[owners[colour]], label_space.names[train_id]
                raise ConfigError(
                    f"with ids: colours, label space {label_space.name} must have a colour of its own for each class, "
                    f"got {list(colour)} for {first!r} and {second!r}"
                )
            owners[colour] = train_id
        for ignored_colour in map(tuple, ignored):
            if ignored_colour in owners:
                name = label_space.names[owners[ignored_colour]]
                raise ConfigError(f"ignore_colours must name no class's colour, got {list(ignored_colour)} of {name!r}")
            owners.setdefault(ignored_colour, IGNORE)
        owners.setdefault(_BLACK, IGNORE)
        self._name = label_space.name
        order = sorted(owners)
        self._codes = np.array([_code(colour) for colour in order], dtype=np.int64)  # ascending
        self._train_ids = np.array([owners[colour] for colour in order], dtype=np.uint8)

    def table(self) -> dict[str, int]:
        """Return the trainId, or 255, of every colour, by its text such as "[128, 64, 128]"."""
        return {str(_triple(int(code))): int(value) for code, value in zip(self._codes, self._train_ids)}

    def __call__(self, path: PathLike) -> np.ndarray:
        """Read a colour mask.

        Returns
        -------
        ndarray of shape (H, W), uint8
            TrainIds, 255 = ignore.

        Raises
        ------
        UnknownColourError
            If a pixel has a colour of no class; the message counts them and names the most frequent.
        DataError
            If the file cannot be read, holds no 8-bit colours, is stored with loss or is transparent.
        """
        _check_exact(path)
        rgb = read_rgb(path).astype(np.int64)
        codes = (rgb[..., 0] << 16) | (rgb[..., 1] << 8) | rgb[..., 2]  # (H, W)
        places = np.minimum(np.searchsorted(self._codes, codes), len(self._codes) - 1)
        wrong = self._codes[places] != codes
        if wrong.any():
            unknown, counts = np.unique(codes[wrong], return_counts=True)
            order = np.argsort(-counts, kind="stable")
            shown = [f"{_triple(int(unknown[i]))} at {counted(int(counts[i]), 'pixel')}" for i in order]
            colours = f"{len(unknown):,} colour{'s' if len(unknown) > 1 else ''}"
            raise UnknownColourError(
                f"label {path} has {colours} of no class of {self._name}, at {int(wrong.sum()):,} of {codes.size:,} "
                f"pixels: {listed(shown, _SHOWN)} (colours that count nowhere stand under ignore_colours)"
            )
        return self._train_ids[places]


def _code(colour: tuple[int, ...]) -> int:
    red, green, blue = colour
    return (red << 16) | (green << 8) | blue


def _triple(code: int) -> list[int]:
    return [code >> 16, (code >> 8) & 255, code & 255]


def _check_exact(path: PathLike) -> None:
    """Refuse files whose colours are not those that were painted: lossy, deep or transparent ones."""
    header = read_header(path)
    if header.lossy:
        kind = header.format if header.format == header.lossy else f"{header.format} ({header.lossy})"
        raise DataError(f"label {path} must be stored without loss (PNG), got {kind}, whose colours are not reliable")
    if header.bits > 8:
        raise DataError(f"label {path} must have colours of 8 bits per channel, got {header.bits} bits")
    if header.pages > 1:
        raise DataError(f"label {path} must hold one image, got {header.pages} pages or an animation")
    with reading(f"label {path}"), Image.open(path, formats=[header.format]) as image:
        transparent = header.colour not in ("rgb", "grey") or "transparency" in image.info
        alpha = np.array(image.convert("RGBA"))[..., 3] if transparent else np.empty(0, dtype=np.uint8)
    if (alpha < 255).any():
        count = int((alpha < 255).sum())
        raise DataError(
            f"label {path} must not be transparent, got {counted(count, 'transparent pixel')}, whose colours say "
            "nothing: export it without transparency"
        )
