"""People, and the two-wheelers they ride or have left. Each is drawn at its ground position (x, z)."""

from __future__ import annotations

from functools import partial
from typing import Callable

import numpy as np

from cbst_mx.data.street_scenes import content as c
from cbst_mx.data.street_scenes.canvas import Canvas

__all__ = ["people"]


def _draw_person(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    person = canvas.instance(c.PERSON)
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
    rider = canvas.instance(c.RIDER)
    canvas.limb(canvas.part(rider, z=z, accent="trousers"), x, z, (-0.15 * facing, 1.0), (0.12 * facing, 0.45), 0.2)
    body = canvas.part(rider, z=z)
    canvas.limb(body, x, z, (-0.12 * facing, 1.1), (0.14 * facing, 1.5), 0.42)
    canvas.limb(canvas.part(rider, z=z, tone=0.8), x, z, (0.14 * facing, 1.45), (0.5 * facing, 1.08), 0.13)
    canvas.disc(canvas.part(rider, z=z, accent="skin"), x + 0.24 * facing, 1.8, z, 0.16)
    canvas.disc(canvas.part(rider, z=z, accent="helmet"), x + 0.22 * facing, 1.87, z, 0.14)


def _draw_bicycle(canvas: Canvas, x: float, z: float, facing: float) -> None:
    bicycle = canvas.instance(c.BICYCLE)
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
    motorcycle = canvas.instance(c.MOTORCYCLE)
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


def people(canvas: Canvas, rng: np.random.Generator, content: c.Content, sides: list[c.Side]) -> list[c.Thing]:
    """Return persons on foot, and bicycles and motorcycles with and without riders."""
    things: list[c.Thing] = []
    for _ in range(rng.poisson(content.persons)):
        side = sides[int(rng.integers(2))]
        crossing = rng.random() < 0.15
        x = rng.uniform(-2.5, 2.5) if crossing else side.sign * rng.uniform(side.kerb + 0.5, side.pavement_end - 0.3)
        z = rng.uniform(*c.PERSON_DISTANCE) + (3.0 if crossing else 0.0)
        things.append(c.Thing(z, partial(_draw_person, canvas, rng, x, z)))

    for mean, draw, ridden in (
        (content.cyclists, _draw_bicycle, True),
        (content.motorcyclists, _draw_motorcycle, True),
        (content.bicycles, _draw_bicycle, False),
        (content.motorcycles, _draw_motorcycle, False),
    ):
        for _ in range(rng.poisson(mean)):
            side = sides[int(rng.integers(2))]
            edge = side.kerb + (0.9 if draw is _draw_bicycle else -1.2)
            x, z = side.sign * (edge + rng.uniform(-0.5, 0.5)), rng.uniform(*c.CYCLE_DISTANCE)
            facing = float(rng.choice((-1, 1)) * rng.uniform(0.35, 1.0))
            things.append(c.Thing(z, partial(_draw_two_wheeler, canvas, draw, x, z, facing, ridden)))
    return things
