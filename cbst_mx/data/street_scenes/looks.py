"""How the classes look in the source, and what the shift makes of them in the target: all that decides the gap."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Tuple

import numpy as np

from cbst_mx.errors import ConfigError
from cbst_mx.label_space import CITYSCAPES_19

RGB = Tuple[float, float, float]


@dataclass(frozen=True)
class ClassLook:
    """How one class looks in the source, and how far the target's look departs from it.

    Attributes
    ----------
    colours
        RGB in 0-255; every instance takes one of them.
    jitter
        Standard deviation of the instance's own brightness offset, in grey levels; the share CHROMA_JITTER of it goes
        to each channel alone.
    texture
        Name of a tile of the texture atlas in `appearance`.
    frequency
        Number of tile widths per image height.
    contrast
        Standard deviation of the texture, in grey levels.
    difficulty
        How much of the shift this class suffers, in [0, 1].
    drifts_to
        Name of the class whose mean source colour this one approaches in the target, or that colour itself.
    """

    colours: tuple[RGB, ...]
    jitter: float
    texture: str
    frequency: float
    contrast: float
    difficulty: float
    drifts_to: str | RGB


LOOKS: dict[str, ClassLook] = {
    "road": ClassLook(((88, 87, 92),), 5, "grain", 2.0, 6, 0.15, "sidewalk"),
    "sidewalk": ClassLook(((172, 152, 134),), 7, "slabs", 1.6, 9, 0.70, "road"),
    "building": ClassLook(
        ((176, 122, 92), (198, 172, 134), (150, 138, 130), (166, 92, 74), (208, 190, 160)),
        11,
        "bricks",
        1.8,
        6,
        0.20,
        "wall",
    ),
    "wall": ClassLook(((134, 130, 142),), 9, "bricks", 2.2, 13, 0.80, "building"),
    "fence": ClassLook(((92, 66, 48),), 8, "pickets", 2.0, 26, 0.70, "wall"),
    "pole": ClassLook(((70, 74, 84),), 7, "flat", 1.0, 0, 0.45, "building"),
    "traffic light": ClassLook(((36, 38, 30),), 5, "flat", 1.0, 0, 0.70, "pole"),
    "traffic sign": ClassLook(((34, 80, 190), (236, 196, 40), (206, 46, 44)), 10, "flat", 1.0, 0, 0.70, "pole"),
    "vegetation": ClassLook(((62, 108, 44), (80, 118, 42), (52, 92, 50)), 8, "leaves", 1.6, 17, 0.20, "terrain"),
    "terrain": ClassLook(((150, 160, 76),), 9, "grass", 2.2, 12, 0.80, "vegetation"),
    "sky": ClassLook(((104, 162, 226),), 8, "clouds", 0.7, 10, 0.60, (206, 200, 190)),
    "person": ClassLook(
        ((196, 64, 60), (66, 76, 150), (212, 196, 170), (180, 116, 170)), 16, "flat", 1.0, 0, 0.30, "rider"
    ),
    "rider": ClassLook(((236, 146, 30), (222, 214, 54)), 12, "flat", 1.0, 0, 0.65, "person"),
    "car": ClassLook(
        ((190, 30, 34), (34, 66, 150), (214, 216, 220), (44, 46, 54), (128, 132, 140)),
        10,
        "flat",
        1.0,
        0,
        0.25,
        "truck",
    ),
    "truck": ClassLook(((226, 120, 36), (124, 62, 160)), 10, "panels", 1.2, 8, 0.80, "car"),
    "bus": ClassLook(((238, 190, 30),), 10, "flat", 1.0, 0, 0.65, "truck"),
    "train": ClassLook(((44, 142, 104),), 10, "panels", 0.8, 5, 0.75, "building"),
    "motorcycle": ClassLook(((120, 22, 58),), 10, "flat", 1.0, 0, 0.80, "car"),
    "bicycle": ClassLook(((22, 112, 122),), 10, "flat", 1.0, 0, 0.60, "motorcycle"),
}

CHROMA_JITTER = 0.35

# Fixed colours of pieces that do not take their class's colour. In the target they follow their class by ACCENT_SHARE
# of its shift.
ACCENTS: dict[str, RGB] = {
    "marking": (222, 220, 212),
    "glass": (52, 62, 78),
    "lit glass": (190, 182, 140),
    "roof": (112, 70, 58),
    "kerb": (198, 190, 180),
    "rail": (58, 54, 58),
    "trunk": (84, 64, 46),
    "skin": (214, 164, 132),
    "hair": (52, 40, 34),
    "trousers": (54, 58, 78),
    "helmet": (240, 236, 226),
    "tyre": (26, 26, 28),
    "rim": (150, 152, 156),
    "rear lamp": (206, 28, 26),
    "front lamp": (248, 244, 220),
    "plate": (236, 232, 214),
    "red lamp": (250, 46, 38),
    "green lamp": (52, 226, 108),
    "amber lamp": (250, 190, 50),
    "white": (240, 240, 238),
}
ACCENT_SHARE = 0.5

# Target look of class c at strength s, with a = s * difficulty_c:
#   colour    += a * (SHIFT_DRIFT * (drift colour - colour) + SHIFT_RANDOM * random direction of length 1)
#   contrast  *= 1 +- a * SHIFT_CONTRAST
#   frequency *= 2 ** (+- a * SHIFT_OCTAVES)
SHIFT_DRIFT = 0.55
SHIFT_RANDOM = 34.0
SHIFT_CONTRAST = 0.6
SHIFT_OCTAVES = 0.8

# What lies over the whole image. Source values hold at strength 0; the target's are reached in proportion to the
# strength.
ILLUMINATION_JITTER = 0.06  # standard deviation of the global gain
WARMTH_JITTER = 0.025  # standard deviation of red gain minus blue gain
SKY_BRIGHTENING = 46.0  # grey levels gained from the top of the image to the horizon
SOURCE_NOISE = 2.0  # grey levels
TARGET_NOISE = 6.0  # grey levels
TARGET_BLUR = 0.0055  # Gaussian sigma as a share of the image height
TARGET_HAZE_COLOUR: RGB = (186, 190, 194)
TARGET_HAZE_DENSITY = 0.016  # per metre
TARGET_HAZE_SKY_DISTANCE = 40.0  # metres: the sky is hazed as if it were this far away
TARGET_CAST: RGB = (0.90, 0.97, 1.03)
TARGET_GAMMA = 1.12


@dataclass(frozen=True)
class Shift:
    """The target's appearance shift.

    Parameters
    ----------
    strength : float
        0 gives the source's appearance, 1 the tables' full shift; the demo uses the default.
    seed : int
        Chooses the random direction in which each class's look moves.

    Raises
    ------
    ConfigError
        If the strength is negative or not finite, or the seed is negative.
    """

    strength: float = 0.7
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.strength) and self.strength >= 0):
            raise ConfigError(f"shift strength must be a finite number of at least 0, got {self.strength}")
        if self.seed < 0:
            raise ConfigError(f"shift seed must be at least 0, got {self.seed}")


@dataclass(frozen=True, eq=False)
class Looks:
    """The looks of all classes after the shift: arrays indexed by trainId."""

    offset: np.ndarray  # float64 (C, 3), added to the source colours
    contrast: np.ndarray  # float64 (C,)
    frequency: np.ndarray  # float64 (C,)


@lru_cache(maxsize=16)
def shifted_looks(shift: Shift) -> Looks:
    """Return the looks of the target domain: those of the source, moved by the shift."""
    names = CITYSCAPES_19.names
    means = {name: np.mean(LOOKS[name].colours, axis=0) for name in names}
    offset, contrast, frequency = np.zeros((len(names), 3)), np.zeros(len(names)), np.zeros(len(names))
    for c, name in enumerate(names):
        look = LOOKS[name]
        rng = np.random.default_rng([shift.seed, c])
        direction = rng.standard_normal(3)
        direction /= np.linalg.norm(direction)
        contrast_sign, octave_sign = rng.choice((-1, 1), 2)
        goal = means[look.drifts_to] if isinstance(look.drifts_to, str) else np.array(look.drifts_to)
        amount = shift.strength * look.difficulty
        drift = min(1.0, amount * SHIFT_DRIFT) * (goal - means[name])
        offset[c] = drift + amount * SHIFT_RANDOM * direction
        contrast[c] = look.contrast * max(0.0, 1 + contrast_sign * amount * SHIFT_CONTRAST)
        frequency[c] = look.frequency * 2.0 ** (octave_sign * amount * SHIFT_OCTAVES)
    return Looks(offset, contrast, frequency)
