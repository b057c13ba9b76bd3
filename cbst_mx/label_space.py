"""Names, colours and raw ids of the classes of each setting.

One label code is used inside: the trainId, uint8, 0 to C - 1, and ``IGNORE`` (255) for pixels that count nowhere. Raw
ids, the numbers stored in a data set's label files, become trainIds in the readers of ``cbst_mx.data`` and nowhere
else. Shorthand: C classes, H x W pixels; a convention is a named way to store classes as raw ids ("cityscapes",
"synthia", "trainId").
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, field
from typing import Callable, Iterable, Mapping

import cv2
import numpy as np

from cbst_mx.errors import ConfigError, DataError
from cbst_mx.messages import listed, ranges

__all__ = [
    "CITYSCAPES_19",
    "IGNORE",
    "LABEL_SPACES",
    "NTHU_13",
    "SYNTHIA_13",
    "SYNTHIA_16",
    "LabelSpace",
    "find",
    "get_label_space",
    "numbered",
]

IGNORE = 255
_UNKNOWN = 254  # marks unlisted raw ids in the lookup tables, hence at most 254 classes
_LARGEST_RAW_ID = 65535  # 16-bit label files hold no more
_SHOWN_IDS = 8


@dataclass(frozen=True)
class LabelSpace:
    """Classes of one setting: their order, colours, and the raw ids that stand for them.

    Parameters
    ----------
    name : str
        Name such as "cityscapes-19".
    names : tuple of str
        Class names by trainId.
    palette : tuple of (int, int, int)
        RGB colours by trainId, 0 to 255.
    raw_ids : mapping of str to mapping of int to int
        For each convention, the trainId (or ``IGNORE``) of every raw id that may occur; raw ids are -1 to 65535. Ids
        not listed are unknown and refused by `encode`. The convention "trainId" (0 to C - 1 and 255, each standing
        for itself) is always there.

    Raises
    ------
    ConfigError
        If the parts do not fit together.
    """

    name: str
    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    raw_ids: Mapping[str, Mapping[int, int]] = field(hash=False)
    _tables: dict[str, np.ndarray] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        count = len(self.names)
        if not 1 <= count < _UNKNOWN:
            raise ConfigError(f"label space {self.name} must have 1 to {_UNKNOWN - 1} classes, got {count}")
        if len(set(self.names)) != count:
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise ConfigError(f"label space {self.name} must name each class once, got {twice!r} more than once")
        if len(self.palette) != count:
            raise ConfigError(
                f"label space {self.name} must have one colour per class, got {len(self.palette)} for {count} classes"
            )
        for colour in self.palette:
            if len(colour) != 3 or not all(0 <= value <= 255 for value in colour):
                raise ConfigError(
                    f"label space {self.name} must have colours of three values from 0 to 255, got {list(colour)}"
                )
        own = {train_id: train_id for train_id in [*range(count), IGNORE]}
        if dict(self.raw_ids.get("trainId", own)) != own:
            raise ConfigError(f"label space {self.name} must leave the convention 'trainId' as 0-{count - 1}, 255")
        raw_ids = {convention: dict(ids) for convention, ids in self.raw_ids.items()}
        raw_ids.setdefault("trainId", own)
        for convention, ids in raw_ids.items():
            if not ids:
                raise ConfigError(f"convention {convention!r} of label space {self.name} lists no raw id")
            for raw, train_id in ids.items():
                if not -1 <= raw <= _LARGEST_RAW_ID:
                    raise ConfigError(
                        f"convention {convention!r} of label space {self.name} must have raw ids from -1 to "
                        f"{_LARGEST_RAW_ID}, got {raw}"
                    )
                if not (0 <= train_id < count or train_id == IGNORE):
                    raise ConfigError(
                        f"convention {convention!r} of label space {self.name} must map raw ids to 0-{count - 1} or "
                        f"{IGNORE} (ignore), got {raw} -> {train_id}"
                    )
        object.__setattr__(self, "raw_ids", raw_ids)
        object.__setattr__(self, "_tables", {convention: _lookup_table(ids) for convention, ids in raw_ids.items()})

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self.names)

    def check_classes(self, found: int, origin: str) -> None:
        """Refuse another number of classes than this label space has.

        Parameters
        ----------
        found : int
            Number of classes that were found.
        origin : str
            Where, for the message.

        Raises
        ------
        ConfigError
            If `found` is not C.
        """
        if found != self.num_classes:
            raise ConfigError(f"label space {self.name} has {self.num_classes} classes, but {origin} has {found}")

    def check_convention(self, convention: str) -> None:
        """Refuse a convention that this label space does not have.

        Raises
        ------
        ConfigError
            If there is no such convention; the message names those there are.
        """
        if convention not in self.raw_ids:
            known = ", ".join(repr(name) for name in sorted(self.raw_ids))
            raise ConfigError(f"label convention of {self.name} must be one of {known}, got {convention!r}")

    def encode(self, raw: np.ndarray, convention: str, origin: str) -> np.ndarray:
        """Turn raw ids into trainIds.

        Parameters
        ----------
        raw : ndarray of shape (H, W), any integer dtype
            Raw ids.
        convention : str
            Meaning of the raw ids.
        origin : str
            File or other place they come from, for the message.

        Returns
        -------
        ndarray of shape (H, W), uint8
            TrainIds, 255 = ignore.

        Raises
        ------
        DataError
            If an id is unknown in the convention, or `raw` is not a 2-d integer array.
        ConfigError
            If the label space has no such convention.
        """
        self.check_convention(convention)
        if raw.ndim != 2 or not np.issubdtype(raw.dtype, np.integer):
            raise DataError(
                f"{origin} must hold integer label ids of shape (H, W), got {raw.dtype} of shape {raw.shape}"
            )
        table = self._tables[convention]
        if raw.dtype == np.uint8:
            # a tenth of the time of NumPy's indexing
            train_ids = cv2.LUT(raw, table[1:257]) if raw.size else raw.copy()
        else:
            # Compared as int64, then clipped onto the table's first and last entry: both unknown unless -1 is listed.
            wide = raw.astype(np.int64)
            train_ids = table[np.where(wide < -1, len(table) - 2, np.minimum(wide, len(table) - 2)) + 1]
        if np.any(train_ids == _UNKNOWN):
            unknown = [int(value) for value in np.unique(raw[train_ids == _UNKNOWN])]
            limits = np.iinfo(raw.dtype)
            known = ranges(value for value in self.raw_ids[convention] if limits.min <= value <= limits.max)
            raise DataError(
                f"{origin} has label id{'s' if len(unknown) > 1 else ''} {listed(unknown, _SHOWN_IDS)}, unknown in the "
                f"{convention!r} convention of {self.name} (known: {', '.join(known)})"
            )
        return train_ids

    def decode(self, train_ids: np.ndarray, convention: str) -> np.ndarray:
        """Turn trainIds into raw ids, for files that other programs read.

        Each trainId becomes the first raw id listed for it; ignored pixels become the first ignored raw id (0 in
        "cityscapes").

        Parameters
        ----------
        train_ids : ndarray of shape (H, W), uint8
            TrainIds, 255 = ignore.
        convention : str
            Meaning of the raw ids to be made.

        Returns
        -------
        ndarray of shape (H, W), uint8
            Raw ids.

        Raises
        ------
        DataError
            If a value is no trainId, or the convention has no raw id from 0 to 255 for it.
        ConfigError
            If the label space has no such convention.
        """
        self.check_convention(convention)
        self.check_train_ids(train_ids)
        raw_by_train_id: dict[int, int] = {}
        for raw, train_id in self.raw_ids[convention].items():
            if 0 <= raw <= 255:
                raw_by_train_id.setdefault(train_id, raw)
        missing = [int(value) for value in np.unique(train_ids) if int(value) not in raw_by_train_id]
        if missing:
            raise DataError(
                f"the {convention!r} convention of {self.name} has no raw id from 0 to 255 "
                f"for trainId {', '.join(ranges(missing))}"
            )
        table = np.zeros(256, dtype=np.uint8)
        for train_id, raw in raw_by_train_id.items():
            table[train_id] = raw
        return table[train_ids]

    def colorize(self, train_ids: np.ndarray) -> np.ndarray:
        """Paint trainIds in the classes' colours, ignored pixels black.

        Parameters
        ----------
        train_ids : ndarray of shape (H, W), uint8
            TrainIds, 255 = ignore.

        Returns
        -------
        ndarray of shape (H, W, 3), uint8
            RGB.

        Raises
        ------
        DataError
            If a value is no trainId.
        """
        self.check_train_ids(train_ids)
        return np.frombuffer(self.png_palette(), dtype=np.uint8).reshape(256, 3)[train_ids]  # (H, W) -> (H, W, 3)

    def png_palette(self) -> bytes:
        """Return the palette of a label PNG: 256 RGB triples, black from C on.

        Returns
        -------
        bytes of length 768
        """
        return bytes(value for colour in self.palette for value in colour).ljust(768, b"\0")

    def check_train_ids(self, train_ids: np.ndarray) -> None:
        """Refuse what is not a map of this label space's trainIds.

        Raises
        ------
        DataError
            If `train_ids` is not uint8 of shape (H, W), or a value is neither 0 to C - 1 nor 255.
        """
        if train_ids.dtype != np.uint8 or train_ids.ndim != 2:
            raise DataError(
                f"train_ids must be uint8 of shape (H, W), got {train_ids.dtype} of shape {train_ids.shape}"
            )
        wrong = (train_ids >= self.num_classes) & (train_ids != IGNORE)
        if wrong.any():
            got = ", ".join(ranges(int(value) for value in np.unique(train_ids[wrong])))
            raise DataError(
                f"train_ids of {self.name} must be 0-{self.num_classes - 1} or {IGNORE} (ignore), got {got}"
            )


def _lookup_table(ids: Mapping[int, int]) -> np.ndarray:
    """Return a uint8 table whose entry i is for raw id i - 1; its last entry and raw ids not listed are unknown."""
    table = np.full(max(255, max(ids)) + 3, _UNKNOWN, dtype=np.uint8)
    for raw, train_id in ids.items():
        table[raw + 1] = train_id
    return table


# Class, RGB colour and raw id, by trainId: M. Cordts et al., "The Cityscapes Dataset", CVPR 2016, and its published
# label list.
_CITYSCAPES = (
    ("road", (128, 64, 128), 7),
    ("sidewalk", (244, 35, 232), 8),
    ("building", (70, 70, 70), 11),
    ("wall", (102, 102, 156), 12),
    ("fence", (190, 153, 153), 13),
    ("pole", (153, 153, 153), 17),
    ("traffic light", (250, 170, 30), 19),
    ("traffic sign", (220, 220, 0), 20),
    ("vegetation", (107, 142, 35), 21),
    ("terrain", (152, 251, 152), 22),
    ("sky", (70, 130, 180), 23),
    ("person", (220, 20, 60), 24),
    ("rider", (255, 0, 0), 25),
    ("car", (0, 0, 142), 26),
    ("truck", (0, 0, 70), 27),
    ("bus", (0, 60, 100), 28),
    ("train", (0, 80, 100), 31),
    ("motorcycle", (0, 0, 230), 32),
    ("bicycle", (119, 11, 32), 33),
)
_COLOURS = {name: colour for name, colour, _ in _CITYSCAPES}
# 0-33 are the list's ids, 34 also occurs in GTA5, which otherwise shares it; -1 is the licence plate, which has no id
# of its own.
_CITYSCAPES_IDS = [*range(35), 255, -1]

# Raw ids of SYNTHIA-RAND-CITYSCAPES by our class names. 0 void, 13 parking slot, 14 road work, 16 terrain, 18 truck,
# 20 train and 22 lane marking are ignored, as in the paper's 16-class protocol.
_SYNTHIA_RAW = {
    "sky": 1,
    "building": 2,
    "road": 3,
    "sidewalk": 4,
    "fence": 5,
    "vegetation": 6,
    "pole": 7,
    "car": 8,
    "traffic sign": 9,
    "person": 10,
    "bicycle": 11,
    "motorcycle": 12,
    "traffic light": 15,
    "rider": 17,
    "bus": 19,
    "wall": 21,
}


def _ids(names: tuple[str, ...], raw_by_name: Mapping[str, int], all_ids: Iterable[int]) -> dict[int, int]:
    """Map every id of a convention to the trainId of its class, or to ignore where the setting lacks the class."""
    train_ids = {raw_by_name[name]: train_id for train_id, name in enumerate(names)}
    return {raw: train_ids.get(raw, IGNORE) for raw in all_ids}


def _from_cityscapes(name: str, names: tuple[str, ...], **conventions: Mapping[int, int]) -> LabelSpace:
    """Make a label space of some of the Cityscapes classes, with the Cityscapes colours and raw ids."""
    raw_by_name = {class_name: raw for class_name, _, raw in _CITYSCAPES}
    return LabelSpace(
        name=name,
        names=names,
        palette=tuple(_COLOURS[class_name] for class_name in names),
        raw_ids={"cityscapes": _ids(names, raw_by_name, _CITYSCAPES_IDS), **conventions},
    )


CITYSCAPES_19 = _from_cityscapes("cityscapes-19", tuple(name for name, _, _ in _CITYSCAPES))

_SYNTHIA_NAMES = tuple(name for name in CITYSCAPES_19.names if name not in ("terrain", "truck", "train"))
SYNTHIA_16 = _from_cityscapes("synthia-16", _SYNTHIA_NAMES, synthia=_ids(_SYNTHIA_NAMES, _SYNTHIA_RAW, range(23)))

# TrainIds of SYNTHIA_16 over which mIoU* is taken.
SYNTHIA_13 = tuple(i for i, name in enumerate(SYNTHIA_16.names) if name not in ("wall", "fence", "pole"))

# NTHU label files hold Cityscapes ids.
NTHU_13 = _from_cityscapes("nthu-13", tuple(SYNTHIA_16.names[i] for i in SYNTHIA_13))

LABEL_SPACES: dict[str, LabelSpace] = {space.name: space for space in (CITYSCAPES_19, SYNTHIA_16, NTHU_13)}


def get_label_space(name: str) -> LabelSpace:
    """Return the known label space of a name.

    Raises
    ------
    ConfigError
        If there is none of that name.
    """
    if name not in LABEL_SPACES:
        raise ConfigError(f"label space must be one of {', '.join(sorted(LABEL_SPACES))}, got {name!r}")
    return LABEL_SPACES[name]


def numbered(num_classes: int) -> LabelSpace:
    """Return the label space "numbered-C" of classes without names: "class 0", "class 1", ...

    Parameters
    ----------
    num_classes : int
        Number of classes C, 1 to 253.

    Returns
    -------
    LabelSpace
        Its only convention is "trainId". The colour of a class depends on its number alone.

    Raises
    ------
    ConfigError
        If there can be no label space of that many classes.
    """
    colours = []
    for index in range(num_classes):  # hues a golden section apart differ however many there are
        red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.6, 0.9)
        colours.append((int(255 * red), int(255 * green), int(255 * blue)))
    return LabelSpace(f"numbered-{num_classes}", tuple(f"class {i}" for i in range(num_classes)), tuple(colours), {})


def find(
    which: str | None,
    found: int | None = None,
    *,
    origin: str = "the data",
    read: Callable[[str], LabelSpace] | None = None,
) -> LabelSpace:
    """Find a label space by its name, its number of classes or its YAML file.

    Parameters
    ----------
    which : str, optional
        A known name; a number of classes, where 19, 16 and 13 stand for Cityscapes, SYNTHIA and NTHU and any other
        number for classes without names (see `numbered`); or, with `read`, a path that ends in .yaml or .yml. If it is
        not given, `found` is the number.
    found : int, optional
        Number of classes that were found; the label space must have as many.
    origin : str
        Where they were found, for the message.
    read : callable, optional
        Reads the label space of a YAML file: `cbst_mx.data.folder.read_label_space`.

    Raises
    ------
    ConfigError
        If `which` is none of these, or the label space has another number of classes than `found`.
    """
    text = str(found) if which is None else which
    if text in LABEL_SPACES:
        space = LABEL_SPACES[text]
    elif text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) < _UNKNOWN:
        by_number = {known.num_classes: known for known in LABEL_SPACES.values()}
        space = by_number.get(int(text)) or numbered(int(text))
    elif read is not None and text.endswith((".yaml", ".yml")):
        space = read(text)
    else:
        known_names, number = ", ".join(sorted(LABEL_SPACES)), f"a number of classes from 1 to {_UNKNOWN - 1}"
        others = f", {number}, or a YAML file" if read is not None else f", or {number}"
        raise ConfigError(f"label space must be one of {known_names}{others}, got {text[:100]!r}")
    if found is not None:
        space.check_classes(found, origin)
    return space
