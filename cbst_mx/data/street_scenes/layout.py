"""Step 1 of a scene: the street and all that stands in it, drawn back to front."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Callable, Sequence

import numpy as np

from cbst_mx.data.street_scenes.canvas import Canvas
from cbst_mx.data.street_scenes.content import (
    AHEAD_START,
    BICYCLE,
    BUILDING,
    BUS,
    CAMERA_HEIGHT,
    CAR,
    CONTENT,
    CYCLE_DISTANCE,
    DOMAIN_CODES,
    FAR,
    FENCE,
    FOCAL,
    HORIZON,
    LAMP_DISTANCE,
    LAWN,
    LIGHT,
    MOTORCYCLE,
    PAVEMENT,
    PERSON,
    PERSON_DISTANCE,
    PLOT_LENGTH,
    POLE,
    RIDER,
    ROAD,
    ROAD_LEFT,
    ROAD_RIGHT,
    ROW_END,
    ROW_START,
    SIDEWALK,
    SIGN,
    SIGN_DISTANCE,
    SKY,
    TERRAIN,
    TRAIN,
    TRUCK,
    VANISHING_POINT,
    VEGETATION,
    VEHICLE_TRACKS,
    VERGE,
    WALL,
    Content,
    Range,
)
from cbst_mx.data.street_scenes.looks import TARGET_HAZE_SKY_DISTANCE

__all__ = ["layout"]


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


def _draw_ground(canvas: Canvas, rng: np.random.Generator, content: Content) -> list[_Side]:
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


def _draw_facade(canvas: Canvas, rng: np.random.Generator, side: _Side, z0: float, z1: float, height: float) -> None:
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


def _draw_tree(canvas: Canvas, rng: np.random.Generator, x: float, z: float, height: float, trunk: bool = True) -> None:
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


def _draw_bushes(canvas: Canvas, rng: np.random.Generator, x: float, z: float, height: float, count: int = 4) -> None:
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


def _draw_background(canvas: Canvas, rng: np.random.Generator) -> None:
    """Draw the end of the street: distant houses and tree tops along the horizon."""
    for x in np.arange(-60, 60, 9.0):
        if rng.random() < 0.6:
            building = canvas.instance(BUILDING)
            x0, width, height = x + rng.uniform(-3, 3), rng.uniform(8, 16), rng.uniform(6, 17)
            canvas.rect(canvas.part(building, z=FAR, tone=rng.uniform(0.8, 1.0)), x0, x0 + width, -1, height, FAR)
        else:
            _draw_bushes(canvas, rng, x, FAR, rng.uniform(7, 14), count=2)


def _draw_plots(canvas: Canvas, rng: np.random.Generator, content: Content, side: _Side) -> None:
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


def _draw_barrier(canvas: Canvas, rng: np.random.Generator, content: Content, side: _Side) -> None:
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


def _draw_lamp_post(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    pole = canvas.part(canvas.instance(POLE), z=z)
    height = rng.uniform(5, 8)
    canvas.post(pole, x, z, 0, height, 0.2)
    if rng.random() < 0.6:
        arm = -math.copysign(rng.uniform(0.9, 1.6), x)
        canvas.limb(pole, x, z, (0, height), (arm, height + 0.1), 0.14)


def _draw_traffic_light(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    canvas.post(canvas.part(canvas.instance(POLE), z=z), x, z, 0, 3.0, 0.18)
    light = canvas.instance(LIGHT)
    y, half = rng.uniform(2.5, 3.0), 0.36
    canvas.rect(canvas.part(light, z=z), x - half, x + half, y, y + 1.5, z)
    burning = int(rng.integers(3))
    for i, accent in enumerate(("green lamp", "amber lamp", "red lamp")):
        part = canvas.part(light, z=z, accent=accent, tone=1.0 if i == burning else 0.3)
        canvas.disc(part, x, y + 0.27 + 0.48 * i, z, 0.2)


def _draw_sign(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
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


def _draw_person(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
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


def _draw_rider(canvas: Canvas, x: float, z: float, facing: float) -> None:
    """Draw a rider on a saddle; facing in [-1, 1] is the length seen of the vehicle, negative to the left."""
    rider = canvas.instance(RIDER)
    canvas.limb(canvas.part(rider, z=z, accent="trousers"), x, z, (-0.15 * facing, 1.0), (0.12 * facing, 0.45), 0.2)
    body = canvas.part(rider, z=z)
    canvas.limb(body, x, z, (-0.12 * facing, 1.1), (0.14 * facing, 1.5), 0.42)
    canvas.limb(canvas.part(rider, z=z, tone=0.8), x, z, (0.14 * facing, 1.45), (0.5 * facing, 1.08), 0.13)
    canvas.disc(canvas.part(rider, z=z, accent="skin"), x + 0.24 * facing, 1.8, z, 0.16)
    canvas.disc(canvas.part(rider, z=z, accent="helmet"), x + 0.22 * facing, 1.87, z, 0.14)


def _draw_bicycle(canvas: Canvas, x: float, z: float, facing: float) -> None:
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


def _draw_motorcycle(canvas: Canvas, x: float, z: float, facing: float) -> None:
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
    canvas: Canvas,
    draw: Callable[[Canvas, float, float, float], None],
    x: float,
    z: float,
    facing: float,
    ridden: bool,
) -> None:
    draw(canvas, x, z, facing)
    if ridden:
        _draw_rider(canvas, x, z, facing)


# Vehicles. x is the middle, z the near end; `toward` vehicles show their front.


def _shadow(canvas: Canvas, x: float, z: float, half: float, length: float) -> None:
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


def _draw_car(canvas: Canvas, rng: np.random.Generator, x: float, z: float, length: float, toward: bool) -> None:
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
    canvas: Canvas,
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


def _draw_truck(canvas: Canvas, rng: np.random.Generator, x: float, z: float, length: float, toward: bool) -> None:
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


def _vehicles(canvas: Canvas, rng: np.random.Generator, content: Content, left: _Side, right: _Side) -> list[_Thing]:
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


def _street_furniture(canvas: Canvas, rng: np.random.Generator, content: Content, sides: list[_Side]) -> list[_Thing]:
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


def _people(canvas: Canvas, rng: np.random.Generator, content: Content, sides: list[_Side]) -> list[_Thing]:
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


def layout(seed: int, index: int, domain: str, size: tuple[int, int]) -> Canvas:
    rng = np.random.default_rng([seed, index, DOMAIN_CODES[domain], 0])
    content = CONTENT[domain]
    canvas = Canvas(size, rng.uniform(*HORIZON), rng.uniform(*VANISHING_POINT), rng.uniform(*CAMERA_HEIGHT))
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
