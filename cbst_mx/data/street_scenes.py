"""Generated street scenes in two domains, written in the GTA5 and Cityscapes on-disk formats.

Shorthand: H x W image size in pixels, trainId = class code of Cityscapes-19, X = metres to the right of the camera,
Y = metres above the ground, Z = metres ahead of the camera.

A scene is made in two independent steps.

1. *Layout*: a small 3-D street is drawn back to front through a pinhole camera onto one canvas of part numbers (at
   `SUPERSAMPLING` times the size). A part is a piece of an object (a facade, its windows, a tyre) that knows its class,
   instance, tone and depth. The label map is a table look-up of that canvas. Layout depends on the seed, the index and
   the domain only.
2. *Appearance*: each part gets a colour and a texture from its class's `ClassLook`; the canvas becomes an image by
   table look-ups. In the target domain the looks are moved by the `Shift`, and haze, blur, noise, a colour cast and
   gamma are laid over the image.

Everything that decides how hard the domain gap is stands in the tables below: `LOOKS` (colour, texture and difficulty
per class), the `SHIFT_*` and `TARGET_*` constants, and `CONTENT` (what is in a street, per domain).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Callable, Sequence, Tuple

import cv2
import numpy as np
from PIL import Image

from cbst_mx.errors import ConfigError, RunError
from cbst_mx.files import atomic_folder
from cbst_mx.label_space import CITYSCAPES_19

__all__ = ["ClassLook", "Content", "Shift", "render_scene", "write_demo_data"]

RGB = Tuple[float, float, float]
Range = Tuple[float, float]

MIN_SIZE = (32, 64)
DOMAIN_CODES = {"source": 0, "target": 1}
# The canvas is drawn larger and averaged down, so that edges in the image are as soft as a camera's.
SUPERSAMPLING = 2

(
    ROAD,
    SIDEWALK,
    BUILDING,
    WALL,
    FENCE,
    POLE,
    LIGHT,
    SIGN,
    VEGETATION,
    TERRAIN,
    SKY,
    PERSON,
    RIDER,
    CAR,
    TRUCK,
    BUS,
    TRAIN,
    MOTORCYCLE,
    BICYCLE,
) = range(19)


# --------------------------------------------------------------------------------------------------
# Appearance tables
# --------------------------------------------------------------------------------------------------


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
        Name of a tile of `_texture_atlas`.
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


# --------------------------------------------------------------------------------------------------
# Content tables
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Content:
    """What a domain's streets hold: ranges in metres, probabilities per scene or per street side, and mean counts."""

    building_height: Range
    park: float  # probability that a plot holds trees in place of a building
    verge: float  # probability per side of a grass strip between kerb and pavement
    lawn: float  # probability per side of grass behind the pavement
    wall: float  # probability per side
    fence: float  # probability per side
    trees: float  # mean number per side
    bushes: float  # mean number per side
    poles: float  # mean number per side of lamp posts
    lights: float  # mean number per scene of poles with traffic lights
    signs: float  # mean number per scene of poles with signs
    parked: float  # probability that a parking place is taken
    traffic: float  # probability that a place in a lane is taken
    truck: float  # probability per scene
    bus: float  # probability per scene
    train: float  # probability per scene
    persons: float  # mean number per scene
    cyclists: float  # mean number per scene
    motorcyclists: float  # mean number per scene
    bicycles: float  # mean number per scene of bicycles without rider
    motorcycles: float  # mean number per scene of motorcycles without rider


CONTENT: dict[str, Content] = {
    "source": Content(
        building_height=(6, 17),
        park=0.20,
        verge=0.25,
        lawn=0.40,
        wall=0.22,
        fence=0.26,
        trees=1.5,
        bushes=0.5,
        poles=1.0,
        lights=0.65,
        signs=0.65,
        parked=0.30,
        traffic=0.22,
        truck=0.26,
        bus=0.20,
        train=0.13,
        persons=1.8,
        cyclists=0.20,
        motorcyclists=0.16,
        bicycles=0.20,
        motorcycles=0.18,
    ),
    "target": Content(
        building_height=(8, 20),
        park=0.26,
        verge=0.25,
        lawn=0.40,
        wall=0.18,
        fence=0.22,
        trees=2.1,
        bushes=0.6,
        poles=1.2,
        lights=0.75,
        signs=0.85,
        parked=0.38,
        traffic=0.20,
        truck=0.22,
        bus=0.16,
        train=0.14,
        persons=2.8,
        cyclists=0.32,
        motorcyclists=0.14,
        bicycles=0.26,
        motorcycles=0.14,
    ),
}

# Camera and street, the same in both domains so that spatial priors carry over. Lengths in metres unless marked as
# shares of the image.
FOCAL = 1.05  # focal length / image height
CAMERA_HEIGHT: Range = (1.7, 2.2)
HORIZON: Range = (0.38, 0.47)  # share of the image height
VANISHING_POINT: Range = (0.40, 0.60)  # share of the image width
ROAD_LEFT: Range = (5.0, 7.5)
ROAD_RIGHT: Range = (3.2, 5.0)
PAVEMENT: Range = (2.2, 4.0)
VERGE: Range = (1.0, 2.0)
LAWN: Range = (1.5, 4.0)
PLOT_LENGTH: Range = (7.0, 17.0)
FAR = 90.0
# Where the first car of a row or lane stands, and how far they reach. Cars stand beside the camera as well as far
# off, so that their spatial prior is broad.
ROW_START: Range = (2.5, 6.0)
AHEAD_START: Range = (5.0, 10.0)
ROW_END = 30.0
# No bar (pole, limb, frame) is thinner than this share of the image height: 2.6 pixels of 64.
THINNEST = 2.6 / 64
# How far ahead small things stand, in metres: near enough to be several pixels wide at 64 x 160.
SIGN_DISTANCE: Range = (5.5, 11.0)
LAMP_DISTANCE: Range = (5.5, 22.0)
PERSON_DISTANCE: Range = (4.5, 13.0)
CYCLE_DISTANCE: Range = (4.5, 9.0)

# The tracks of large vehicles: buses stop on the right, lorries come along the left.
VEHICLE_TRACKS = {BUS: ("ahead", "parked right"), TRUCK: ("oncoming", "parked left")}

# Layout of the written folders.
TRAIN_CITIES = ("varnholt", "grelau", "ostermark")
VAL_CITIES = ("kesselin", "tiefenroda")
# Held-out scenes start at this index, so that their content does not depend on the number of training scenes.
HELD_OUT_INDEX = 1_000_000
PNG_COMPRESSION = 1


@dataclass(frozen=True)
class Shift:
    """The target's appearance shift.

    Parameters
    ----------
    strength
        0 gives the source's appearance, 1 the tables' full shift; the demo uses the default.
    seed
        Chooses the random direction in which each class's look moves.

    Raises
    ------
    ConfigError
        When the strength is negative or not finite, or the seed is negative.
    """

    strength: float = 0.7
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.strength) and self.strength >= 0):
            raise ConfigError(f"shift strength must be a finite number of at least 0, got {self.strength}")
        if self.seed < 0:
            raise ConfigError(f"shift seed must be at least 0, got {self.seed}")


# --------------------------------------------------------------------------------------------------
# Step 1: layout
# --------------------------------------------------------------------------------------------------


class _Canvas:
    """The part canvas of one scene and the pinhole camera that draws on it."""

    def __init__(self, size: tuple[int, int], horizon: float, vanishing: float, camera_height: float) -> None:
        height, width = size
        self.unit = float(SUPERSAMPLING * height)  # canvas pixels per image height
        self.parts = np.zeros((SUPERSAMPLING * height, SUPERSAMPLING * width), np.uint16)
        self.horizon = horizon * self.unit
        self.vanishing = vanishing * SUPERSAMPLING * width
        self.camera_height = camera_height
        self.focal = FOCAL * self.unit
        self.instance_classes: list[int] = []
        self.part_instances: list[int] = []
        self.part_tones: list[float] = []
        self.part_accents: list[str | None] = []
        # Inverse depth (1/metre) of every part as a + b |x - vanishing| + c (y - horizon): affine in the image for
        # any plane.
        self.part_depths: list[tuple[float, float, float]] = []

    def instance(self, train_id: int) -> int:
        self.instance_classes.append(train_id)
        return len(self.instance_classes) - 1

    def part(
        self,
        instance: int,
        *,
        z: float | None = None,
        side_x: float | None = None,
        tone: float = 1.0,
        accent: str | None = None,
    ) -> int:
        """Register a part that faces the camera at depth z, along the street at side_x, or on the ground."""
        if z is not None:
            depth = (1.0 / z, 0.0, 0.0)
        elif side_x is not None:
            depth = (0.0, 1.0 / (self.focal * abs(side_x)), 0.0)
        else:
            depth = (0.0, 0.0, 1.0 / (self.focal * self.camera_height))
        self.part_instances.append(instance)
        self.part_tones.append(tone)
        self.part_accents.append(accent)
        self.part_depths.append(depth)
        return len(self.part_instances) - 1

    def point(self, x: float, y: float, z: float) -> tuple[int, int]:
        scale = self.focal / z
        return round(self.vanishing + scale * x), round(self.horizon + scale * (self.camera_height - y))

    def fill(self, part: int, *points: tuple[float, float, float]) -> None:
        """Fill a convex polygon given by its corners (X, Y, Z)."""
        cv2.fillConvexPoly(self.parts, np.array([self.point(*p) for p in points], np.int32), (part,))

    def fill_many(self, part: int, corners: np.ndarray) -> None:
        """Fill n quadrilaterals that do not overlap; corners has shape (n, 4, 3) and holds X, Y, Z."""
        scale = self.focal / corners[..., 2]
        x = self.vanishing + scale * corners[..., 0]
        y = self.horizon + scale * (self.camera_height - corners[..., 1])
        cv2.fillPoly(self.parts, list(np.rint(np.stack([x, y], -1)).astype(np.int32)), (part,))

    def rect(self, part: int, x0: float, x1: float, y0: float, y1: float, z: float) -> None:
        """Fill a rectangle that faces the camera."""
        cv2.rectangle(self.parts, self.point(x0, y0, z), self.point(x1, y1, z), (part,), -1)

    def side(self, part: int, x: float, y0: float, y1: float, z0: float, z1: float) -> None:
        """Fill an upright rectangle that runs along the street."""
        self.fill(part, (x, y0, z0), (x, y1, z0), (x, y1, z1), (x, y0, z1))

    def strip(self, part: int, x0: float, x1: float, z0: float = 0.6, z1: float = 4000.0) -> None:
        """Fill a ground strip between two lines along the street."""
        self.fill(part, (x0, 0, z0), (x1, 0, z0), (x1, 0, z1), (x0, 0, z1))

    def limb(
        self, part: int, x: float, z: float, start: tuple[float, float], end: tuple[float, float], width: float
    ) -> None:
        """Draw a bar with round ends at depth z; start and end are (X offset, Y)."""
        pixels = max(self.focal / z * width, THINNEST * self.unit)
        p, q = self.point(x + start[0], start[1], z), self.point(x + end[0], end[1], z)
        cv2.line(self.parts, p, q, (part,), max(1, round(pixels)))

    def post(self, part: int, x: float, z: float, y0: float, y1: float, width: float) -> None:
        """Fill an upright bar with flat ends at depth z."""
        half = max(width, THINNEST * FOCAL**-1 * z) / 2
        self.rect(part, x - half, x + half, y0, y1, z)

    def disc(self, part: int, x: float, y: float, z: float, radius: float, squeeze: float = 1.0) -> None:
        scale = self.focal / z * radius
        axes = (max(1, round(scale * squeeze)), max(1, round(scale)))
        cv2.ellipse(self.parts, self.point(x, y, z), axes, 0, 0, 360, (part,), -1)

    def side_disc(self, part: int, x: float, y: float, z: float, radius: float) -> None:
        """Fill a wheel in a plane along the street, as the ellipse it is seen as."""
        x0, x1 = self.point(x, y, z - radius)[0], self.point(x, y, z + radius)[0]
        axes = (max(1, abs(x1 - x0) // 2), max(1, round(self.focal / z * radius)))
        cv2.ellipse(self.parts, ((x0 + x1) // 2, self.point(x, y, z)[1]), axes, 0, 0, 360, (part,), -1)

    def blob(self, part: int, x: float, y: float, z: float, radius: float, outline: np.ndarray) -> None:
        scale = self.focal / z
        centre = (self.vanishing + scale * x, self.horizon + scale * (self.camera_height - y))
        cv2.fillPoly(self.parts, [np.rint(centre + scale * radius * outline).astype(np.int32)], (part,))


@lru_cache(maxsize=1)
def _blob_outlines() -> np.ndarray:
    """Return 48 leafy outlines of about unit radius, float64 of shape (48, 40, 2)."""
    rng = np.random.default_rng(5)
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    radius = np.ones((48, 40))
    for wave in (2, 3, 5, 8, 11):
        amplitude = rng.uniform(0.02, 0.22, (48, 1)) / math.sqrt(wave)
        radius += amplitude * np.sin(wave * angle + rng.uniform(0, 2 * np.pi, (48, 1)))
    return np.stack([radius * np.cos(angle), 0.92 * radius * np.sin(angle)], -1)


@dataclass(frozen=True)
class _Side:
    """One side of the street, from the kerb outwards; sign is -1 left and +1 right, distances are positive."""

    sign: int
    kerb: float
    pavement: float  # inner edge of the pavement
    pavement_end: float
    front: float  # building line


def _draw_ground(canvas: _Canvas, rng: np.random.Generator, content: Content) -> list[_Side]:
    sides = []
    for sign, road in ((-1, ROAD_LEFT), (1, ROAD_RIGHT)):
        kerb = rng.uniform(*road)
        pavement = kerb + (rng.uniform(*VERGE) if rng.random() < content.verge else 0.0)
        pavement_end = pavement + rng.uniform(*PAVEMENT)
        lawn = rng.random() < content.lawn
        front = pavement_end + (rng.uniform(*LAWN) if lawn else 0.3)
        sides.append(_Side(sign, kerb, pavement, pavement_end, front))

        # Strips from the outside in; each covers the inner part of the one before.
        outside = canvas.part(canvas.instance(TERRAIN if lawn else SIDEWALK))
        canvas.strip(outside, 0, sign * 80)
        slabs = canvas.instance(SIDEWALK)
        canvas.strip(canvas.part(slabs), 0, sign * pavement_end)
        if pavement > kerb:
            canvas.strip(canvas.part(canvas.instance(TERRAIN)), 0, sign * pavement)
        canvas.strip(canvas.part(slabs, accent="kerb"), 0, sign * (kerb + 0.22))
    left, right = sides
    asphalt = canvas.instance(ROAD)
    canvas.strip(canvas.part(asphalt), -left.kerb, right.kerb)
    gutter = canvas.part(asphalt, tone=0.82)
    canvas.strip(gutter, right.kerb - 0.3, right.kerb)
    canvas.strip(gutter, -left.kerb, -left.kerb + 0.3)

    marking = canvas.part(asphalt, accent="marking")
    centre = -(left.kerb - right.kerb) / 2
    if rng.random() < 0.8:
        start, dash = rng.uniform(1, 5), rng.uniform(2, 4)
        for z in np.arange(start, 60, 2.2 * dash):
            canvas.strip(marking, centre - 0.09, centre + 0.09, z, z + dash)
    if rng.random() < 0.4:
        canvas.strip(marking, right.kerb - 2.2, right.kerb - 2.06)
    if rng.random() < 0.22:
        z = rng.uniform(6, 16)
        for x in np.arange(-left.kerb + 0.5, right.kerb - 0.6, 1.1):
            canvas.strip(marking, x, x + 0.55, z, z + 2.6)
    return sides


def _draw_facade(canvas: _Canvas, rng: np.random.Generator, side: _Side, z0: float, z1: float, height: float) -> None:
    x = side.sign * side.front
    building = canvas.instance(BUILDING)
    canvas.rect(canvas.part(building, z=z0, tone=0.78), x, x + side.sign * 16, 0, height, z0)
    # The sun stands on the left: facades on the right of the street are the bright ones.
    tone = 1.06 if side.sign > 0 else 0.90
    canvas.side(canvas.part(building, side_x=x, tone=tone), x, 0, height, z0, z1)
    canvas.side(canvas.part(building, side_x=x, accent="roof", tone=tone), x, height - 0.5, height, z0, z1)
    storey = 3.0
    if FOCAL * storey / z0 < 0.07:  # windows would be smaller than they can be seen
        return
    columns = max(1, int((z1 - z0) / rng.uniform(2.2, 3.4)))
    floors = max(1, int((height - 0.8) / storey))
    share = rng.uniform(0.42, 0.62)
    pitch = (z1 - z0) / columns
    za = z0 + pitch * (np.arange(columns) + 0.5 - share / 2)
    ya = storey * np.arange(floors) + rng.uniform(0.8, 1.0)
    z_grid, y_grid = (a.ravel() for a in np.meshgrid(za, ya))
    z_end, y_end = z_grid + pitch * share, y_grid + rng.uniform(1.4, 1.75)
    corners = np.empty((z_grid.size, 4, 3))
    corners[..., 0] = x
    corners[..., 1] = np.stack([y_grid, y_end, y_end, y_grid], 1)
    corners[..., 2] = np.stack([z_grid, z_grid, z_end, z_end], 1)
    lit = rng.random(z_grid.size) < 0.15
    for chosen, accent in ((~lit, "glass"), (lit, "lit glass")):
        if chosen.any():
            canvas.fill_many(canvas.part(building, side_x=x, accent=accent), corners[chosen])
    # A plinth or shop band hides the lowest part of the ground-floor windows.
    canvas.side(canvas.part(building, side_x=x, tone=tone * 0.72), x, 0, 0.7, z0, z1)


def _draw_tree(
    canvas: _Canvas, rng: np.random.Generator, x: float, z: float, height: float, trunk: bool = True
) -> None:
    tree = canvas.instance(VEGETATION)
    radius = height * rng.uniform(0.26, 0.34)
    if trunk:
        canvas.post(canvas.part(tree, z=z, accent="trunk"), x, z, 0, height * 0.6, 0.05 * height)
    outlines = _blob_outlines()
    count = 6
    # Lower and darker clumps first, the sunlit ones on top of them.
    offsets = rng.normal(0, 0.45, (count, 2)) * radius
    offsets = offsets[np.argsort(offsets[:, 1])]
    sizes = rng.uniform(0.55, 0.95, count) * radius
    for i in range(count):
        tone = 0.74 + 0.42 * i / (count - 1)
        y = height - radius * 1.15 + offsets[i, 1]
        canvas.blob(
            canvas.part(tree, z=z, tone=tone), x + offsets[i, 0], y, z, sizes[i], outlines[rng.integers(len(outlines))]
        )


def _draw_bushes(canvas: _Canvas, rng: np.random.Generator, x: float, z: float, height: float, count: int = 4) -> None:
    bush = canvas.instance(VEGETATION)
    outlines = _blob_outlines()
    for i in range(count):
        radius = height * rng.uniform(0.45, 0.6)
        part = canvas.part(bush, z=z, tone=rng.uniform(0.72, 1.05))
        canvas.blob(
            part,
            x + (i - count / 2 + 0.5) * height * 0.7,
            radius * 0.8,
            z,
            radius,
            outlines[rng.integers(len(outlines))],
        )


def _draw_background(canvas: _Canvas, rng: np.random.Generator) -> None:
    """Draw the end of the street: distant houses and tree tops along the horizon."""
    for x in np.arange(-60, 60, 9.0):
        if rng.random() < 0.6:
            building = canvas.instance(BUILDING)
            x0, width, height = x + rng.uniform(-3, 3), rng.uniform(8, 16), rng.uniform(6, 17)
            canvas.rect(canvas.part(building, z=FAR, tone=rng.uniform(0.8, 1.0)), x0, x0 + width, -1, height, FAR)
        else:
            _draw_bushes(canvas, rng, x, FAR, rng.uniform(7, 14), count=2)


def _draw_plots(canvas: _Canvas, rng: np.random.Generator, content: Content, side: _Side) -> None:
    plots = []
    z = rng.uniform(0.7, 1.2)
    while z < FAR - 15:
        length = rng.uniform(*PLOT_LENGTH)
        plots.append((z, z + length, rng.random() < content.park, rng.uniform(*content.building_height)))
        z += length
    for z0, z1, park, height in reversed(plots):
        if not park:
            _draw_facade(canvas, rng, side, z0, z1, height)
            continue
        for depth in (z1 - 1, (z0 + z1) / 2 + 0.5):
            x = side.sign * (side.front + rng.uniform(1.5, 5))
            if depth > 3:
                _draw_tree(canvas, rng, x, depth, rng.uniform(5, 10))
        _draw_bushes(
            canvas, rng, side.sign * (side.front + 1.5), max((z0 + z1) / 2, 4.0), rng.uniform(1.2, 2.6), count=6
        )


def _draw_barrier(canvas: _Canvas, rng: np.random.Generator, content: Content, side: _Side) -> None:
    """Draw a wall, a fence, both in a row, or nothing along the outer edge of the pavement."""
    kinds = [kind for kind, chance in ((WALL, content.wall), (FENCE, content.fence)) if rng.random() < chance]
    z = rng.uniform(1.0, 6.0)
    stretches = []
    for kind in kinds:
        length = rng.uniform(9, 24)
        stretches.append((kind, z, z + length, rng.uniform(1.5, 2.5) if kind == WALL else rng.uniform(1.2, 1.9)))
        z += length + rng.uniform(0, 2)
    x = side.sign * (side.pavement_end + 0.1)
    for kind, z0, z1, height in reversed(stretches):
        barrier = canvas.instance(kind)
        canvas.side(canvas.part(barrier, side_x=x), x, 0, height, z0, z1)
        if kind == WALL:
            canvas.side(canvas.part(barrier, side_x=x, tone=1.18), x, height - 0.22, height, z0, z1)
            continue
        rail = canvas.part(barrier, side_x=x, tone=0.62)
        for y in (0.25, height - 0.3):
            canvas.side(rail, x, y, y + 0.16, z0, z1)
        for z in np.arange(z0, z1, 2.4):
            canvas.side(rail, x, 0, height + 0.08, z, z + 0.2)


# Street furniture and people. Each takes its ground position (x, z) and draws at that depth.


def _draw_lamp_post(canvas: _Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    pole = canvas.part(canvas.instance(POLE), z=z)
    height = rng.uniform(5, 8)
    canvas.post(pole, x, z, 0, height, 0.2)
    if rng.random() < 0.6:
        arm = -math.copysign(rng.uniform(0.9, 1.6), x)
        canvas.limb(pole, x, z, (0, height), (arm, height + 0.1), 0.14)


def _draw_traffic_light(canvas: _Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    canvas.post(canvas.part(canvas.instance(POLE), z=z), x, z, 0, 3.0, 0.18)
    light = canvas.instance(LIGHT)
    y, half = rng.uniform(2.5, 3.0), 0.36
    canvas.rect(canvas.part(light, z=z), x - half, x + half, y, y + 1.5, z)
    burning = int(rng.integers(3))
    for i, accent in enumerate(("green lamp", "amber lamp", "red lamp")):
        part = canvas.part(light, z=z, accent=accent, tone=1.0 if i == burning else 0.3)
        canvas.disc(part, x, y + 0.27 + 0.48 * i, z, 0.2)


def _draw_sign(canvas: _Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    pole = canvas.part(canvas.instance(POLE), z=z)
    sign = canvas.instance(SIGN)
    board, inner = canvas.part(sign, z=z), canvas.part(sign, z=z, accent="white")
    y, half = rng.uniform(2.3, 3.0), rng.uniform(0.42, 0.58)
    canvas.post(pole, x, z, 0, y, 0.14)
    shape = int(rng.integers(3))
    if shape == 0:
        canvas.disc(board, x, y + half, z, half)
        canvas.rect(inner, x - 0.6 * half, x + 0.6 * half, y + 0.8 * half, y + 1.2 * half, z)
    elif shape == 1:
        canvas.rect(board, x - half, x + half, y, y + 2 * half, z)
        canvas.rect(inner, x - 0.2 * half, x + 0.2 * half, y + 0.4 * half, y + 1.6 * half, z)
    else:
        for part, size in ((board, 1.25 * half), (inner, 0.55 * half)):
            low = y + 0.8 * half - 0.65 * size
            canvas.fill(part, (x - size, low, z), (x + size, low, z), (x, low + 1.7 * size, z))


def _draw_person(canvas: _Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    person = canvas.instance(PERSON)
    size, step = rng.uniform(0.92, 1.1), rng.uniform(0.04, 0.28)
    legs = canvas.part(person, z=z, accent="trousers")
    for foot in (-step, step):
        canvas.limb(legs, x, z, (0.25 * foot, 0.9 * size), (foot, 0.1), 0.2 * size)
    torso = canvas.part(person, z=z)
    canvas.limb(torso, x, z, (0, 0.98 * size), (0, 1.3 * size), 0.42 * size)
    canvas.limb(
        canvas.part(person, z=z, tone=0.8),
        x,
        z,
        (0.24 * size, 1.35 * size),
        (0.3 * size + step * 0.4, 0.9 * size),
        0.12 * size,
    )
    canvas.disc(canvas.part(person, z=z, accent="hair"), x, 1.68 * size, z, 0.16 * size)
    canvas.disc(canvas.part(person, z=z, accent="skin"), x, 1.63 * size, z, 0.13 * size)


def _draw_rider(canvas: _Canvas, x: float, z: float, facing: float) -> None:
    """Draw a rider on a saddle; facing in [-1, 1] is the length seen of the vehicle, negative to the left."""
    rider = canvas.instance(RIDER)
    canvas.limb(canvas.part(rider, z=z, accent="trousers"), x, z, (-0.15 * facing, 1.0), (0.12 * facing, 0.45), 0.2)
    body = canvas.part(rider, z=z)
    canvas.limb(body, x, z, (-0.12 * facing, 1.1), (0.14 * facing, 1.5), 0.42)
    canvas.limb(canvas.part(rider, z=z, tone=0.8), x, z, (0.14 * facing, 1.45), (0.5 * facing, 1.08), 0.13)
    canvas.disc(canvas.part(rider, z=z, accent="skin"), x + 0.24 * facing, 1.8, z, 0.16)
    canvas.disc(canvas.part(rider, z=z, accent="helmet"), x + 0.22 * facing, 1.87, z, 0.14)


def _draw_bicycle(canvas: _Canvas, x: float, z: float, facing: float) -> None:
    bicycle = canvas.instance(BICYCLE)
    tyre, spokes, frame = (
        canvas.part(bicycle, z=z, tone=0.45),
        canvas.part(bicycle, z=z, tone=1.5),
        canvas.part(bicycle, z=z),
    )
    squeeze = max(abs(facing), 0.25)
    for axle in (-0.56, 0.56):
        canvas.disc(tyre, x + axle * facing, 0.4, z, 0.42, squeeze)
        canvas.disc(spokes, x + axle * facing, 0.4, z, 0.24, squeeze)
    for start, end in (
        ((-0.56, 0.42), (-0.15, 0.88)),
        ((-0.15, 0.8), (0.42, 0.9)),
        ((0.0, 0.4), (0.42, 0.9)),
        ((0.56, 0.42), (0.4, 1.08)),
    ):
        canvas.limb(frame, x, z, (start[0] * facing, start[1]), (end[0] * facing, end[1]), 0.1)


def _draw_motorcycle(canvas: _Canvas, x: float, z: float, facing: float) -> None:
    motorcycle = canvas.instance(MOTORCYCLE)
    tyre = canvas.part(motorcycle, z=z, accent="tyre")
    squeeze = max(abs(facing), 0.3)
    for end in (-0.66, 0.66):
        canvas.disc(tyre, x + end * facing, 0.36, z, 0.38, squeeze)
        canvas.disc(canvas.part(motorcycle, z=z, accent="rim", tone=0.7), x + end * facing, 0.36, z, 0.16, squeeze)
    canvas.limb(canvas.part(motorcycle, z=z, tone=0.5), x, z, (-0.3 * facing, 0.5), (0.3 * facing, 0.5), 0.4)
    canvas.limb(canvas.part(motorcycle, z=z), x, z, (-0.62 * facing, 0.86), (0.42 * facing, 0.84), 0.34)
    canvas.limb(tyre, x, z, (0.6 * facing, 0.45), (0.46 * facing, 1.12), 0.12)
    canvas.disc(canvas.part(motorcycle, z=z, accent="front lamp"), x + 0.6 * facing, 0.95, z, 0.11)


def _draw_two_wheeler(
    canvas: _Canvas,
    draw: Callable[[_Canvas, float, float, float], None],
    x: float,
    z: float,
    facing: float,
    ridden: bool,
) -> None:
    draw(canvas, x, z, facing)
    if ridden:
        _draw_rider(canvas, x, z, facing)


# Vehicles. x is the middle, z the near end; `toward` vehicles show their front.


def _shadow(canvas: _Canvas, x: float, z: float, half: float, length: float) -> None:
    canvas.strip(
        canvas.part(canvas.instance(ROAD), tone=0.5), x - half - 0.12, x + half + 0.12, max(z - 0.35, 0.7), z + length
    )


def _seen_side(x: float, half: float) -> float:
    """Return the X of the long side that the camera sees, or 0 when it sees the near end only."""
    if x - half > 0.05:
        return x - half
    if x + half < -0.05:
        return x + half
    return 0.0


def _draw_car(canvas: _Canvas, rng: np.random.Generator, x: float, z: float, length: float, toward: bool) -> None:
    car = canvas.instance(CAR)
    half, roof, belt, sill = 0.92, rng.uniform(1.42, 1.75), rng.uniform(0.85, 0.98), 0.24
    _shadow(canvas, x, z, half, length)
    side_x = _seen_side(x, half)
    # The cabin reaches from `back` to `end`: a short boot behind it, or a bonnet before it.
    tail, nose = (0.22, 0.95) if toward else (0.04, 0.72)
    back = z + tail * length
    if side_x:
        flank = canvas.part(car, side_x=side_x, tone=0.84)
        canvas.side(flank, side_x, sill, belt, z, z + length)
        top_x, slope, end = side_x + math.copysign(0.22 * half, x), 0.13 * length, z + nose * length
        canvas.fill(flank, (side_x, belt, back), (top_x, roof, back), (top_x, roof, end - slope), (side_x, belt, end))
        glass = canvas.part(car, side_x=side_x, accent="glass")
        low, high = belt + 0.04, roof - 0.12
        canvas.fill(
            glass,
            (side_x, low, back + 0.15),
            (top_x, high, back + 0.2),
            (top_x, high, end - slope),
            (side_x, low, end - 0.2),
        )
        wheels = canvas.part(car, side_x=side_x, accent="tyre"), canvas.part(car, side_x=side_x, accent="rim")
        for wheel_z in (z + 0.18 * length, z + 0.8 * length):
            canvas.side_disc(wheels[0], side_x, 0.34, wheel_z, 0.34)
            canvas.side_disc(wheels[1], side_x, 0.34, wheel_z, 0.17)
    # Near end: cabin behind, body in front, then window, lamps, plate and tyres.
    body, top = canvas.part(car, z=z), canvas.part(car, z=z, tone=1.12)
    canvas.fill(
        top,
        (x - 0.78 * half, roof, back),
        (x + 0.78 * half, roof, back),
        (x + 0.72 * half, roof, back + 2),
        (x - 0.72 * half, roof, back + 2),
    )
    canvas.fill(top, (x - half, belt, z), (x + half, belt, z), (x + half, belt, back), (x - half, belt, back))
    canvas.fill(
        body,
        (x - half, belt, back),
        (x + half, belt, back),
        (x + 0.78 * half, roof, back),
        (x - 0.78 * half, roof, back),
    )
    glass = canvas.part(car, z=z, accent="glass")
    low, high = belt + 0.02, roof - 0.1
    canvas.fill(
        glass,
        (x - 0.86 * half, low, back),
        (x + 0.86 * half, low, back),
        (x + 0.7 * half, high, back),
        (x - 0.7 * half, high, back),
    )
    tyre = canvas.part(car, z=z, accent="tyre")
    for sign in (-1, 1):
        canvas.rect(tyre, x + sign * half, x + sign * (half - 0.26), 0, 0.4, z)
    canvas.rect(body, x - half, x + half, sill, belt, z)
    canvas.rect(canvas.part(car, z=z, tone=0.6), x - half, x + half, sill, sill + 0.2, z)
    lamp = canvas.part(car, z=z, accent="front lamp" if toward else "rear lamp")
    for sign in (-1, 1):
        canvas.rect(lamp, x + sign * (half - 0.04), x + sign * (half - 0.34), belt - 0.32, belt - 0.12, z)
    canvas.rect(canvas.part(car, z=z, accent="plate"), x - 0.24, x + 0.24, sill + 0.22, sill + 0.36, z)


def _draw_box(
    canvas: _Canvas,
    train_id: int,
    x: float,
    z: float,
    *,
    half: float,
    length: float,
    bottom: float,
    top: float,
    toward: bool,
    windows: bool,
    stripe: str | None = None,
    wheels: Sequence[float] = (0.14, 0.82),
) -> None:
    """Draw a bus, tram or cargo body as a box with a near end and the side that is seen."""
    vehicle = canvas.instance(train_id)
    _shadow(canvas, x, z, half, length)
    side_x = _seen_side(x, half)
    if side_x:
        flank = canvas.part(vehicle, side_x=side_x, tone=0.84)
        canvas.side(flank, side_x, bottom, top, z, z + length)
        if stripe:
            band = canvas.part(vehicle, side_x=side_x, accent=stripe, tone=0.9)
            canvas.side(band, side_x, bottom + 0.55, bottom + 0.85, z, z + length)
        if windows:
            glass = canvas.part(vehicle, side_x=side_x, accent="glass")
            for z0 in np.arange(z + 0.4, z + length - 1.0, 1.7):
                canvas.side(glass, side_x, bottom + 1.1, top - 0.55, z0, z0 + 1.4)
        if wheels:
            tyre = canvas.part(vehicle, side_x=side_x, accent="tyre")
            for share in wheels:
                canvas.side_disc(tyre, side_x, 0.48, z + share * length, 0.48)
    tyre = canvas.part(vehicle, z=z, accent="tyre")
    for sign in (-1, 1):
        canvas.rect(tyre, x + sign * (half - 0.05), x + sign * (half - 0.4), 0, bottom + 0.1, z)
    canvas.rect(canvas.part(vehicle, z=z), x - half, x + half, bottom, top, z)
    if windows:
        glass = canvas.part(vehicle, z=z, accent="glass")
        canvas.rect(glass, x - half + 0.18, x + half - 0.18, bottom + 1.0, top - 0.6, z)
        canvas.rect(
            canvas.part(vehicle, z=z, accent="lit glass"), x - 0.6 * half, x + 0.6 * half, top - 0.42, top - 0.14, z
        )
    else:
        seam = canvas.part(vehicle, z=z, tone=0.7)
        canvas.rect(seam, x - 0.05, x + 0.05, bottom + 0.1, top - 0.15, z)
        canvas.rect(seam, x - half, x + half, top - 0.14, top, z)
    if stripe:
        canvas.rect(canvas.part(vehicle, z=z, accent=stripe), x - half, x + half, bottom + 0.55, bottom + 0.85, z)
    lamp = canvas.part(vehicle, z=z, accent="front lamp" if toward else "rear lamp")
    for sign in (-1, 1):
        canvas.rect(lamp, x + sign * (half - 0.12), x + sign * (half - 0.45), bottom + 0.2, bottom + 0.45, z)


def _draw_truck(canvas: _Canvas, rng: np.random.Generator, x: float, z: float, length: float, toward: bool) -> None:
    height = rng.uniform(2.9, 3.6)
    if not toward:
        _draw_box(
            canvas,
            TRUCK,
            x,
            z,
            half=1.2,
            length=length,
            bottom=0.75,
            top=height,
            toward=False,
            windows=False,
            wheels=(0.15, 0.75),
        )
        return
    _draw_box(
        canvas, TRUCK, x, z + 2.0, half=1.2, length=length - 2, bottom=0.75, top=height, toward=True, windows=False
    )
    cab = canvas.instance(TRUCK)
    side_x = _seen_side(x, 1.1)
    if side_x:
        canvas.side(canvas.part(cab, side_x=side_x, tone=0.84), side_x, 0.5, 2.5, z, z + 2)
        canvas.side(canvas.part(cab, side_x=side_x, accent="glass"), side_x, 1.5, 2.25, z + 0.3, z + 1.4)
        canvas.side_disc(canvas.part(cab, side_x=side_x, accent="tyre"), side_x, 0.48, z + 0.9, 0.48)
    canvas.rect(canvas.part(cab, z=z), x - 1.1, x + 1.1, 0.4, 2.5, z)
    canvas.rect(canvas.part(cab, z=z, accent="glass"), x - 0.95, x + 0.95, 1.45, 2.3, z)
    canvas.rect(canvas.part(cab, z=z, tone=0.55), x - 0.7, x + 0.7, 0.7, 1.2, z)
    for sign in (-1, 1):
        canvas.rect(canvas.part(cab, z=z, accent="front lamp"), x + sign * 0.98, x + sign * 0.72, 0.75, 1.0, z)


@dataclass(frozen=True)
class _Thing:
    """Something that stands on the street, drawn in the order of its depth."""

    z: float
    draw: Callable[[], None]


def _vehicles(canvas: _Canvas, rng: np.random.Generator, content: Content, left: _Side, right: _Side) -> list[_Thing]:
    """Fill parking rows and lanes with vehicles that do not overlap."""
    things: list[_Thing] = []
    oncoming = -(left.kerb - 2.1) + 1.15 if left.kerb > 6 else -left.kerb * 0.55
    tracks = {
        "parked left": (-left.kerb + 1.05, True),
        "oncoming": (oncoming, True),
        "ahead": (min(0.3, right.kerb - 3.2), False),
        "parked right": (right.kerb - 1.05, False),
    }
    taken: dict[str, list[Range]] = {name: [] for name in tracks}

    def place(track: str, z: float, length: float) -> bool:
        # The left parking row and the oncoming lane share the road's left half: one may only be used where the other
        # is free.
        groups = ("parked left", "oncoming") if track in ("parked left", "oncoming") else (track,)
        if any(z < end + 0.8 and z + length + 0.8 > start for name in groups for start, end in taken[name]):
            return False
        taken[track].append((z, z + length))
        return True

    if rng.random() < content.train:
        z, length, x = rng.uniform(7, 16), rng.uniform(14, 30), tracks["oncoming"][0]
        place("oncoming", z, length)
        rail = canvas.part(canvas.instance(ROAD), accent="rail")
        for offset in (-0.75, 0.75):
            canvas.strip(rail, x + offset - 0.08, x + offset + 0.08)
        tram = partial(_draw_box, canvas, TRAIN, x, z, half=1.3, length=length, bottom=0.3, top=3.5, toward=True)
        things.append(_Thing(z, partial(tram, windows=True, stripe="white", wheels=())))
    for train_id, chance in ((BUS, content.bus), (TRUCK, content.truck)):
        if rng.random() >= chance:
            continue
        track = VEHICLE_TRACKS[train_id][int(rng.integers(2))]
        z, length = rng.uniform(8, 18), rng.uniform(9, 12) if train_id == BUS else rng.uniform(6, 9)
        x, toward = tracks[track]
        if place(track, z, length):
            if train_id == BUS:
                bus = partial(_draw_box, canvas, BUS, x, z, half=1.25, length=length, bottom=0.35, top=3.2)
                things.append(_Thing(z, partial(bus, toward=toward, windows=True)))
            else:
                things.append(_Thing(z, partial(_draw_truck, canvas, rng, x, z, length, toward)))
    for name, (x, toward) in tracks.items():
        chance = content.parked if name.startswith("parked") else content.traffic
        z = rng.uniform(*(AHEAD_START if name == "ahead" else ROW_START))
        while z < ROW_END:
            length = rng.uniform(3.7, 4.7)
            shift = rng.uniform(-0.12, 0.12)
            if rng.random() < chance and place(name, z, length):
                things.append(_Thing(z, partial(_draw_car, canvas, rng, x + shift, z, length, toward)))
            z += length + rng.uniform(1.0, 3.0) * (1 if name.startswith("parked") else 2.5)
    return things


def _street_furniture(canvas: _Canvas, rng: np.random.Generator, content: Content, sides: list[_Side]) -> list[_Thing]:
    things: list[_Thing] = []

    def add(draw: Callable[..., None], x: float, z: float, *args: float) -> None:
        things.append(_Thing(z, partial(draw, canvas, rng, x, z, *args)))

    for side in sides:
        for _ in range(rng.poisson(content.trees)):
            inside = rng.random() < 0.6
            x = side.pavement + 0.5 if inside else side.pavement_end + rng.uniform(0.3, 1.2)
            add(_draw_tree, side.sign * x, rng.uniform(6, 45), rng.uniform(4.5, 8.5))
        for _ in range(rng.poisson(content.bushes)):
            add(_draw_bushes, side.sign * (side.pavement_end + 0.3), rng.uniform(6, 25), rng.uniform(0.8, 1.4))
        for _ in range(rng.poisson(content.poles)):
            add(_draw_lamp_post, side.sign * (side.kerb + 0.45), rng.uniform(*LAMP_DISTANCE))
    for mean, draw in ((content.lights, _draw_traffic_light), (content.signs, _draw_sign)):
        for _ in range(rng.poisson(mean)):
            side = sides[int(rng.integers(2))]
            add(draw, side.sign * (side.kerb + 0.5), rng.uniform(*SIGN_DISTANCE))
    return things


def _people(canvas: _Canvas, rng: np.random.Generator, content: Content, sides: list[_Side]) -> list[_Thing]:
    things: list[_Thing] = []
    for _ in range(rng.poisson(content.persons)):
        side = sides[int(rng.integers(2))]
        crossing = rng.random() < 0.15
        x = rng.uniform(-2.5, 2.5) if crossing else side.sign * rng.uniform(side.kerb + 0.5, side.pavement_end - 0.3)
        z = rng.uniform(*PERSON_DISTANCE) + (3.0 if crossing else 0.0)
        things.append(_Thing(z, partial(_draw_person, canvas, rng, x, z)))

    for mean, draw, ridden in (
        (content.cyclists, _draw_bicycle, True),
        (content.motorcyclists, _draw_motorcycle, True),
        (content.bicycles, _draw_bicycle, False),
        (content.motorcycles, _draw_motorcycle, False),
    ):
        for _ in range(rng.poisson(mean)):
            side = sides[int(rng.integers(2))]
            edge = side.kerb + (0.9 if draw is _draw_bicycle else -1.2)
            x, z = side.sign * (edge + rng.uniform(-0.5, 0.5)), rng.uniform(*CYCLE_DISTANCE)
            facing = float(rng.choice((-1, 1)) * rng.uniform(0.35, 1.0))
            things.append(_Thing(z, partial(_draw_two_wheeler, canvas, draw, x, z, facing, ridden)))
    return things


def _layout(seed: int, index: int, domain: str, size: tuple[int, int]) -> _Canvas:
    rng = np.random.default_rng([seed, index, DOMAIN_CODES[domain], 0])
    content = CONTENT[domain]
    canvas = _Canvas(size, rng.uniform(*HORIZON), rng.uniform(*VANISHING_POINT), rng.uniform(*CAMERA_HEIGHT))
    # Part 0 is the sky: an untouched canvas is all sky.
    canvas.part(canvas.instance(SKY), z=TARGET_HAZE_SKY_DISTANCE)
    _draw_background(canvas, rng)
    sides = _draw_ground(canvas, rng, content)
    for side in sides:
        _draw_plots(canvas, rng, content, side)
    for side in sides:
        _draw_barrier(canvas, rng, content, side)
    things = _vehicles(canvas, rng, content, *sides)
    things += _street_furniture(canvas, rng, content, sides)
    things += _people(canvas, rng, content, sides)
    for thing in sorted(things, key=lambda thing: -thing.z):
        thing.draw()
    return canvas


# --------------------------------------------------------------------------------------------------
# Step 2: appearance
# --------------------------------------------------------------------------------------------------

TILE = 128  # texels per side of a texture tile
_TILE_BORDER = 1  # repeated texels around a tile, so that interpolation at its edge sees its other end


def _smooth_noise(rng: np.random.Generator, sigma_x: float, sigma_y: float) -> np.ndarray:
    """Return noise of shape (TILE, TILE), smoothed with wrap-around by a Gaussian of the given sigmas in texels."""
    frequency = np.fft.fftfreq(TILE, 1.0)
    window = np.exp(-2 * (np.pi * sigma_x * frequency[None]) ** 2 - 2 * (np.pi * sigma_y * frequency[:, None]) ** 2)
    return np.fft.ifft2(np.fft.fft2(rng.standard_normal((TILE, TILE))) * window).real


@lru_cache(maxsize=1)
def _texture_atlas() -> tuple[np.ndarray, dict[str, int]]:
    """Return all tiles side by side, float32 with mean 0 and deviation 1 each, and the left edge of each in texels."""
    rng = np.random.default_rng(11)
    y, x = np.mgrid[0:TILE, 0:TILE]

    def masonry(width: int, height: int, joint: int, bond: int) -> np.ndarray:
        """Return stones of random brightness with dark joints; every second course is moved by `bond` texels."""
        course = y // height
        column = ((x + bond * (course % 2)) % TILE) // width
        stones = rng.normal(0, 0.6, (TILE // height + 1, TILE // width + 1))[course, column]
        joints = ((x + bond * (course % 2)) % width < joint) | (y % height < joint)
        return stones - 2.2 * joints

    tiles = {
        "flat": np.zeros((TILE, TILE)),
        "grain": _smooth_noise(rng, 0.8, 0.8),
        "leaves": _smooth_noise(rng, 2.0, 2.0) - 0.6 * _smooth_noise(rng, 5.0, 5.0),
        "grass": _smooth_noise(rng, 0.8, 3.0),
        "clouds": _smooth_noise(rng, 14.0, 6.0),
        "slabs": masonry(16, 16, 2, 0),
        "bricks": masonry(16, 8, 2, 8),
        "pickets": np.where(x % 8 < 3, -1.0, 1.0) + 0.2 * _smooth_noise(rng, 1.0, 6.0),
        "panels": masonry(32, TILE, 3, 0),
    }
    left: dict[str, int] = {}
    columns: list[np.ndarray] = []
    for name, tile in tiles.items():
        left[name] = _TILE_BORDER + len(columns) * (TILE + 2 * _TILE_BORDER)
        centred = tile - tile.mean()
        columns.append(np.pad(centred / max(float(centred.std()), 1e-9), _TILE_BORDER, mode="wrap"))
    return np.ascontiguousarray(np.hstack(columns), np.float32), left


@dataclass(frozen=True)
class _Looks:
    """The looks of all classes after the shift: arrays indexed by trainId."""

    offset: np.ndarray  # float64 (C, 3), added to the source colours
    contrast: np.ndarray  # float64 (C,)
    frequency: np.ndarray  # float64 (C,)


@lru_cache(maxsize=16)
def _shifted_looks(shift: Shift) -> _Looks:
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
    return _Looks(offset, contrast, frequency)


def _paint(canvas: _Canvas, looks: _Looks, rng: np.random.Generator) -> np.ndarray:
    """Return the canvas in colour, float32 (H, W, 3) in grey levels."""
    classes = np.array(canvas.instance_classes)
    count = len(classes)
    names = CITYSCAPES_19.names
    draws, normals, origins = rng.random(count), rng.standard_normal((count, 4)), rng.uniform(0, TILE, (count, 2))

    palette = np.empty((count, 3))
    for i, c in enumerate(classes):
        colours = LOOKS[names[c]].colours
        palette[i] = colours[int(draws[i] * len(colours))]
    palette += (normals[:, :1] + CHROMA_JITTER * normals[:, 1:]) * np.array([LOOKS[name].jitter for name in names])[
        classes, None
    ]

    part_instances = np.array(canvas.part_instances)
    part_classes = classes[part_instances]
    part_colours = palette[part_instances] + looks.offset[part_classes]
    texture = looks.contrast[part_classes]
    for i, accent in enumerate(canvas.part_accents):
        if accent is not None:
            part_colours[i] = np.asarray(ACCENTS[accent]) + ACCENT_SHARE * looks.offset[part_classes[i]]
            texture[i] *= 0.3
    part_colours *= np.array(canvas.part_tones)[:, None]

    atlas, left = _texture_atlas()
    parts = canvas.parts
    step = (looks.frequency[part_classes] * TILE / canvas.unit).astype(np.float32)[parts]
    height, width = parts.shape
    origin = origins[part_instances].astype(np.float32)
    map_x = (np.arange(width, dtype=np.float32) * step + origin[:, 0][parts]) % TILE
    map_x += np.array([left[LOOKS[name].texture] for name in names], np.float32)[part_classes][parts]
    map_y = (np.arange(height, dtype=np.float32)[:, None] * step + origin[:, 1][parts]) % TILE + _TILE_BORDER
    grain = cv2.remap(atlas, map_x, map_y, cv2.INTER_LINEAR) * texture.astype(np.float32)[parts]
    # The sky grows brighter down to the horizon.
    rows = np.clip(np.arange(height) / canvas.horizon, 0, 1).astype(np.float32)[:, None]
    grain += (parts == 0) * (SKY_BRIGHTENING * (rows - 0.5))

    image = part_colours.astype(np.float32)[parts]
    image += grain[..., None]
    size = (width // SUPERSAMPLING, height // SUPERSAMPLING)
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _haze_share(canvas: _Canvas, density: float) -> np.ndarray:
    """Return the share of haze colour at every pixel, float32 (H, W), from the depth of the parts."""
    parts = canvas.parts[::SUPERSAMPLING, ::SUPERSAMPLING]
    constant, slope_x, slope_y = np.array(canvas.part_depths, np.float32).T
    x = np.abs(np.arange(parts.shape[1], dtype=np.float32) * SUPERSAMPLING - canvas.vanishing)
    y = np.arange(parts.shape[0], dtype=np.float32)[:, None] * SUPERSAMPLING - canvas.horizon
    inverse = constant[parts] + slope_x[parts] * x + slope_y[parts] * y
    return 1 - np.exp(-density / np.maximum(inverse, 1 / FAR))


def _appearance(canvas: _Canvas, seed: int, index: int, domain: str, shift: Shift) -> np.ndarray:
    rng = np.random.default_rng([seed, index, DOMAIN_CODES[domain], 1])
    strength = shift.strength if domain == "target" else 0.0
    image = _paint(canvas, _shifted_looks(Shift(strength, shift.seed)), rng)
    gain = 1 + ILLUMINATION_JITTER * rng.standard_normal()
    warmth = WARMTH_JITTER * rng.standard_normal()
    gains = gain * np.array([1 + warmth, 1, 1 - warmth])
    gains *= 1 + strength * (np.array(TARGET_CAST) - 1)
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    height = image.shape[0]
    if strength > 0:
        share = _haze_share(canvas, strength * TARGET_HAZE_DENSITY)[..., None]
        image += share * (np.array(TARGET_HAZE_COLOUR, np.float32) - image)
        image = cv2.GaussianBlur(image, (0, 0), strength * TARGET_BLUR * height)
    image *= gains.astype(np.float32)
    if strength > 0:
        np.clip(image, 0, 255, out=image)
        image = 255 * np.power(image / 255, np.float32(TARGET_GAMMA**strength))
    image += noise * np.float32(SOURCE_NOISE + strength * (TARGET_NOISE - SOURCE_NOISE))
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


# --------------------------------------------------------------------------------------------------
# Public functions
# --------------------------------------------------------------------------------------------------


def _check_size(size: tuple[int, int]) -> None:
    if len(size) != 2 or size[0] < MIN_SIZE[0] or size[1] < MIN_SIZE[1]:
        got = " x ".join(str(length) for length in size)
        raise ConfigError(f"size must be (height, width) of at least {MIN_SIZE[0]} x {MIN_SIZE[1]} pixels, got {got}")


def render_scene(
    seed: int, index: int, *, domain: str, size: tuple[int, int], shift: Shift = Shift()
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one street scene and its label map.

    Parameters
    ----------
    seed, index
        The data set and the scene in it, both at least 0.
    domain
        "source" or "target".
    size
        (H, W) in pixels, at least 32 x 64.
    shift
        The target's appearance shift; the source and all label maps are independent of it.

    Returns
    -------
    image : ndarray of shape (H, W, 3), uint8, RGB
    label : ndarray of shape (H, W), uint8, trainId of Cityscapes-19; every pixel has a class

    Raises
    ------
    ConfigError
        When the domain is unknown, the size too small, or the seed or index negative.
    """
    if domain not in DOMAIN_CODES:
        raise ConfigError(f"domain must be one of {', '.join(DOMAIN_CODES)}, got {domain!r}")
    _check_size(size)
    for name, value in (("seed", seed), ("index", index)):
        if value < 0:
            raise ConfigError(f"{name} must be at least 0, got {value}")
    canvas = _layout(seed, index, domain, size)
    part_labels = np.array(canvas.instance_classes, np.uint8)[np.array(canvas.part_instances)]
    label = part_labels[canvas.parts[::SUPERSAMPLING, ::SUPERSAMPLING]]
    return _appearance(canvas, seed, index, domain, shift), label


def _id_palette() -> bytes:
    """Return a PNG palette with the class colours at the Cityscapes label ids, 768 bytes."""
    train_ids = np.arange(CITYSCAPES_19.num_classes, dtype=np.uint8)[None]
    table = np.zeros((256, 3), np.uint8)
    table[CITYSCAPES_19.decode(train_ids, "cityscapes")[0]] = CITYSCAPES_19.palette
    return table.tobytes()


def _write_rgb(path: Path, image: np.ndarray) -> None:
    if not cv2.imwrite(str(path), image[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, PNG_COMPRESSION]):
        raise OSError(f"{path.name} could not be written")


def _write_indices(path: Path, values: np.ndarray, palette: bytes | None = None) -> None:
    picture = Image.fromarray(values)
    if palette is not None:
        picture.putpalette(palette)  # turns mode L into mode P with the same values
    picture.save(path, format="PNG", compress_level=PNG_COMPRESSION)


def _write_gta5(
    folder: Path,
    count: int,
    first: int,
    scene: Callable[[int], tuple[np.ndarray, np.ndarray]],
    tick: Callable[[], None],
) -> None:
    palette = _id_palette()
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    for i in range(count):
        image, label = scene(first + i)
        name = f"{i + 1:05d}.png"
        _write_rgb(folder / "images" / name, image)
        _write_indices(folder / "labels" / name, CITYSCAPES_19.decode(label, "cityscapes"), palette)
        tick()


def _write_cityscapes(
    root: Path,
    split: str,
    cities: Sequence[str],
    count: int,
    first: int,
    scene: Callable[[int], tuple[np.ndarray, np.ndarray]],
    tick: Callable[[], None],
) -> None:
    for city in cities:
        (root / "leftImg8bit" / split / city).mkdir(parents=True)
        (root / "gtFine" / split / city).mkdir(parents=True)
    for i in range(count):
        image, label = scene(first + i)
        city = cities[i % len(cities)]
        stem = f"{city}_{i // len(cities):06d}_000019"
        truth = root / "gtFine" / split / city
        _write_rgb(root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png", image)
        _write_indices(truth / f"{stem}_gtFine_labelIds.png", CITYSCAPES_19.decode(label, "cityscapes"))
        _write_indices(truth / f"{stem}_gtFine_labelTrainIds.png", label)
        tick()


def write_demo_data(
    out: Path,
    *,
    source_count: int,
    source_val_count: int,
    target_count: int,
    target_val_count: int,
    size: tuple[int, int],
    seed: int,
    shift: Shift,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write both domains to a new folder, all of it or nothing.

    The folder holds `gta5` and `gta5_val` (images/00001.png, labels/00001.png: palette PNG of Cityscapes label ids) for
    the source, and `cityscapes` (leftImg8bit and gtFine with splits train and val) for the target.

    Parameters
    ----------
    out
        Folder to make; it must not exist or be empty.
    source_count, source_val_count, target_count, target_val_count
        Number of scenes in gta5, gta5_val, cityscapes train and cityscapes val, each at least 0.
    size
        (H, W) in pixels, at least 32 x 64.
    seed
        Seed of the scenes, at least 0.
    shift
        The target's appearance shift.
    progress
        Called as progress(written scenes, all scenes) after every scene.

    Raises
    ------
    ConfigError
        When a size, count or seed is not allowed.
    RunError
        When `out` is not empty or cannot be written.
    """
    out = Path(out)
    counts = {
        "source_count": source_count,
        "source_val_count": source_val_count,
        "target_count": target_count,
        "target_val_count": target_val_count,
    }
    for name, value in {**counts, "seed": seed}.items():
        if value < 0:
            raise ConfigError(f"{name} must be at least 0, got {value}")
    _check_size(size)
    total, done = sum(counts.values()), 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    def source(index: int) -> tuple[np.ndarray, np.ndarray]:
        return render_scene(seed, index, domain="source", size=size, shift=shift)

    def target(index: int) -> tuple[np.ndarray, np.ndarray]:
        return render_scene(seed, index, domain="target", size=size, shift=shift)

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(
            f"{out} must be a new or empty folder, but it already holds something; choose another or remove it"
        )
    with atomic_folder(out) as partial:
        _write_gta5(partial / "gta5", source_count, 0, source, tick)
        _write_gta5(partial / "gta5_val", source_val_count, HELD_OUT_INDEX, source, tick)
        _write_cityscapes(partial / "cityscapes", "train", TRAIN_CITIES, target_count, 0, target, tick)
        _write_cityscapes(partial / "cityscapes", "val", VAL_CITIES, target_val_count, HELD_OUT_INDEX, target, tick)
