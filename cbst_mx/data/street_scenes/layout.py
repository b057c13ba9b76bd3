"""Step 1 of a scene: the street and all that stands in it, drawn back to front."""

from __future__ import annotations

import math
from functools import partial
from typing import Callable

import numpy as np

from cbst_mx.data.street_scenes import buildings
from cbst_mx.data.street_scenes import content as c
from cbst_mx.data.street_scenes.canvas import Canvas
from cbst_mx.data.street_scenes.looks import TARGET_HAZE_SKY_DISTANCE
from cbst_mx.data.street_scenes.people import people
from cbst_mx.data.street_scenes.vehicles import vehicles

__all__ = ["layout"]


def _draw_ground(canvas: Canvas, rng: np.random.Generator, content: c.Content) -> list[c.Side]:
    sides = []
    for sign, road in ((-1, c.ROAD_LEFT), (1, c.ROAD_RIGHT)):
        kerb = rng.uniform(*road)
        pavement = kerb + (rng.uniform(*c.VERGE) if rng.random() < content.verge else 0.0)
        pavement_end = pavement + rng.uniform(*c.PAVEMENT)
        lawn = rng.random() < content.lawn
        front = pavement_end + (rng.uniform(*c.LAWN) if lawn else 0.3)
        sides.append(c.Side(sign, kerb, pavement, pavement_end, front))

        # Strips from the outside in; each covers the inner part of the one before.
        outside = canvas.part(canvas.instance(c.TERRAIN if lawn else c.SIDEWALK))
        canvas.strip(outside, 0, sign * 80)
        slabs = canvas.instance(c.SIDEWALK)
        canvas.strip(canvas.part(slabs), 0, sign * pavement_end)
        if pavement > kerb:
            canvas.strip(canvas.part(canvas.instance(c.TERRAIN)), 0, sign * pavement)
        canvas.strip(canvas.part(slabs, accent="kerb"), 0, sign * (kerb + 0.22))
    left, right = sides
    asphalt = canvas.instance(c.ROAD)
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


def _draw_lamp_post(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    pole = canvas.part(canvas.instance(c.POLE), z=z)
    height = rng.uniform(5, 8)
    canvas.post(pole, x, z, 0, height, 0.2)
    if rng.random() < 0.6:
        arm = -math.copysign(rng.uniform(0.9, 1.6), x)
        canvas.limb(pole, x, z, (0, height), (arm, height + 0.1), 0.14)


def _draw_traffic_light(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    canvas.post(canvas.part(canvas.instance(c.POLE), z=z), x, z, 0, 3.0, 0.18)
    light = canvas.instance(c.LIGHT)
    y, half = rng.uniform(2.5, 3.0), 0.36
    canvas.rect(canvas.part(light, z=z), x - half, x + half, y, y + 1.5, z)
    burning = int(rng.integers(3))
    for i, accent in enumerate(("green lamp", "amber lamp", "red lamp")):
        part = canvas.part(light, z=z, accent=accent, tone=1.0 if i == burning else 0.3)
        canvas.disc(part, x, y + 0.27 + 0.48 * i, z, 0.2)


def _draw_sign(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    pole = canvas.part(canvas.instance(c.POLE), z=z)
    sign = canvas.instance(c.SIGN)
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


def _street_furniture(
    canvas: Canvas, rng: np.random.Generator, content: c.Content, sides: list[c.Side]
) -> list[c.Thing]:
    things: list[c.Thing] = []

    def add(draw: Callable[..., None], x: float, z: float, *args: float) -> None:
        things.append(c.Thing(z, partial(draw, canvas, rng, x, z, *args)))

    for side in sides:
        for _ in range(rng.poisson(content.trees)):
            inside = rng.random() < 0.6
            x = side.pavement + 0.5 if inside else side.pavement_end + rng.uniform(0.3, 1.2)
            add(buildings.draw_tree, side.sign * x, rng.uniform(6, 45), rng.uniform(4.5, 8.5))
        for _ in range(rng.poisson(content.bushes)):
            add(buildings.draw_bushes, side.sign * (side.pavement_end + 0.3), rng.uniform(6, 25), rng.uniform(0.8, 1.4))
        for _ in range(rng.poisson(content.poles)):
            add(_draw_lamp_post, side.sign * (side.kerb + 0.45), rng.uniform(*c.LAMP_DISTANCE))
    for mean, draw in ((content.lights, _draw_traffic_light), (content.signs, _draw_sign)):
        for _ in range(rng.poisson(mean)):
            side = sides[int(rng.integers(2))]
            add(draw, side.sign * (side.kerb + 0.5), rng.uniform(*c.SIGN_DISTANCE))
    return things


def layout(seed: int, index: int, domain: str, size: tuple[int, int]) -> Canvas:
    """Draw one scene on a canvas.

    Parameters
    ----------
    seed : int
        Seed of all scenes.
    index : int
        Number of the scene.
    domain : {"source", "target"}
        Kind of streets.
    size : (int, int)
        Height and width of the image in pixels.

    Returns
    -------
    Canvas
        With every part of the street; equal arguments give equal canvases.
    """
    rng = np.random.default_rng([seed, index, c.DOMAIN_CODES[domain], 0])
    content = c.CONTENT[domain]
    canvas = Canvas(size, rng.uniform(*c.HORIZON), rng.uniform(*c.VANISHING_POINT), rng.uniform(*c.CAMERA_HEIGHT))
    # Part 0 is the sky: an untouched canvas is all sky.
    canvas.part(canvas.instance(c.SKY), z=TARGET_HAZE_SKY_DISTANCE)
    buildings.draw_background(canvas, rng)
    sides = _draw_ground(canvas, rng, content)
    for side in sides:
        buildings.draw_plots(canvas, rng, content, side)
    for side in sides:
        buildings.draw_barrier(canvas, rng, content, side)
    things = vehicles(canvas, rng, content, *sides)
    things += _street_furniture(canvas, rng, content, sides)
    things += people(canvas, rng, content, sides)
    for thing in sorted(things, key=lambda thing: -thing.z):
        thing.draw()
    return canvas
