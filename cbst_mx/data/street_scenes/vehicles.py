"""Cars, lorries, buses and trams in parking rows and lanes.

x is the middle of a vehicle, z its near end; vehicles that drive `toward` the camera show their front.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Sequence, Tuple

import numpy as np

from cbst_mx.data.street_scenes import content as c
from cbst_mx.data.street_scenes.canvas import Canvas

__all__ = ["vehicles"]

_Heights = Tuple[float, float, float]  # of sill, belt and roof
_HALF_CAR = 0.92  # metres, half its width


def _shadow(canvas: Canvas, x: float, z: float, half: float, length: float) -> None:
    canvas.strip(
        canvas.part(canvas.instance(c.ROAD), tone=0.5), x - half - 0.12, x + half + 0.12, max(z - 0.35, 0.7), z + length
    )


def _seen_side(x: float, half: float) -> float:
    """Return the X of the long side that the camera sees, or 0 if it sees the near end only."""
    if x - half > 0.05:
        return x - half
    if x + half < -0.05:
        return x + half
    return 0.0


def _draw_car(canvas: Canvas, rng: np.random.Generator, x: float, z: float, length: float, toward: bool) -> None:
    car = canvas.instance(c.CAR)
    half, roof, belt, sill = _HALF_CAR, rng.uniform(1.42, 1.75), rng.uniform(0.85, 0.98), 0.24
    _shadow(canvas, x, z, half, length)
    side_x = _seen_side(x, half)
    # The cabin reaches from `back` to `end`: a short boot behind it, or a bonnet before it.
    tail, nose = (0.22, 0.95) if toward else (0.04, 0.72)
    back = z + tail * length
    if side_x:
        _draw_car_flank(canvas, car, x, side_x, z, length, (sill, belt, roof), (back, z + nose * length))
    _draw_car_end(canvas, car, x, z, toward, (sill, belt, roof), back)


def _draw_car_flank(
    canvas: Canvas, car: int, x: float, side_x: float, z: float, length: float, heights: _Heights, cabin: c.Range
) -> None:
    """Draw the long side at side_x; `heights` are those of sill, belt and roof, `cabin` its near and far z."""
    half, (sill, belt, roof), (back, end) = _HALF_CAR, heights, cabin
    flank = canvas.part(car, side_x=side_x, tone=0.84)
    canvas.side(flank, side_x, sill, belt, z, z + length)
    top_x, slope = side_x + math.copysign(0.22 * half, x), 0.13 * length
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


def _draw_car_end(canvas: Canvas, car: int, x: float, z: float, toward: bool, heights: _Heights, back: float) -> None:
    """Draw the near end: the cabin, whose window is at z = `back`, the body before it, lamps, plate and tyres."""
    half, (sill, belt, roof) = _HALF_CAR, heights
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
            c.TRUCK,
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
        canvas, c.TRUCK, x, z + 2.0, half=1.2, length=length - 2, bottom=0.75, top=height, toward=True, windows=False
    )
    cab = canvas.instance(c.TRUCK)
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


def vehicles(
    canvas: Canvas, rng: np.random.Generator, content: c.Content, left: c.Side, right: c.Side
) -> list[c.Thing]:
    """Return vehicles that fill parking rows and lanes without overlapping."""
    things: list[c.Thing] = []
    oncoming = -(left.kerb - 2.1) + 1.15 if left.kerb > 6 else -left.kerb * 0.55
    tracks = {
        "parked left": (-left.kerb + 1.05, True),
        "oncoming": (oncoming, True),
        "ahead": (min(0.3, right.kerb - 3.2), False),
        "parked right": (right.kerb - 1.05, False),
    }
    taken: dict[str, list[c.Range]] = {name: [] for name in tracks}

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
        rail = canvas.part(canvas.instance(c.ROAD), accent="rail")
        for offset in (-0.75, 0.75):
            canvas.strip(rail, x + offset - 0.08, x + offset + 0.08)
        tram = partial(_draw_box, canvas, c.TRAIN, x, z, half=1.3, length=length, bottom=0.3, top=3.5, toward=True)
        things.append(c.Thing(z, partial(tram, windows=True, stripe="white", wheels=())))
    for train_id, chance in ((c.BUS, content.bus), (c.TRUCK, content.truck)):
        if rng.random() >= chance:
            continue
        track = c.VEHICLE_TRACKS[train_id][int(rng.integers(2))]
        z, length = rng.uniform(8, 18), rng.uniform(9, 12) if train_id == c.BUS else rng.uniform(6, 9)
        x, toward = tracks[track]
        if place(track, z, length):
            if train_id == c.BUS:
                bus = partial(_draw_box, canvas, c.BUS, x, z, half=1.25, length=length, bottom=0.35, top=3.2)
                things.append(c.Thing(z, partial(bus, toward=toward, windows=True)))
            else:
                things.append(c.Thing(z, partial(_draw_truck, canvas, rng, x, z, length, toward)))
    for name, (x, toward) in tracks.items():
        chance = content.parked if name.startswith("parked") else content.traffic
        z = rng.uniform(*(c.AHEAD_START if name == "ahead" else c.ROW_START))
        while z < c.ROW_END:
            length = rng.uniform(3.7, 4.7)
            shift = rng.uniform(-0.12, 0.12)
            if rng.random() < chance and place(name, z, length):
                things.append(c.Thing(z, partial(_draw_car, canvas, rng, x + shift, z, length, toward)))
            z += length + rng.uniform(1.0, 3.0) * (1 if name.startswith("parked") else 2.5)
    return things
