"""What stands in the streets of each domain, and where: tables of probabilities, counts and lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Tuple

Range = Tuple[float, float]

DOMAIN_CODES = {"source": 0, "target": 1}

# The trainIds of Cityscapes-19.
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


@dataclass(frozen=True)
class Content:
    """Content of a domain's streets: ranges in metres, probabilities per scene or per street side, and mean counts."""

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


@dataclass(frozen=True)
class Side:
    """One side of the street, from the kerb outwards; sign is -1 left and +1 right, distances are positive."""

    sign: int
    kerb: float
    pavement: float  # inner edge of the pavement
    pavement_end: float
    front: float  # building line


@dataclass(frozen=True)
class Thing:
    """Something that stands on the street, drawn in the order of its depth."""

    z: float
    draw: Callable[[], None]


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
