"""What frames a street: houses, trees and bushes, walls and fences, and its far end."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from cbst_mx.data.street_scenes import content as c
from cbst_mx.data.street_scenes.canvas import Canvas

__all__ = ["draw_background", "draw_barrier", "draw_bushes", "draw_plots", "draw_tree"]


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


def _draw_facade(canvas: Canvas, rng: np.random.Generator, side: c.Side, z0: float, z1: float, height: float) -> None:
    x = side.sign * side.front
    building = canvas.instance(c.BUILDING)
    canvas.rect(canvas.part(building, z=z0, tone=0.78), x, x + side.sign * 16, 0, height, z0)
    # The sun stands on the left: facades on the right of the street are the bright ones.
    tone = 1.06 if side.sign > 0 else 0.90
    canvas.side(canvas.part(building, side_x=x, tone=tone), x, 0, height, z0, z1)
    canvas.side(canvas.part(building, side_x=x, accent="roof", tone=tone), x, height - 0.5, height, z0, z1)
    storey = 3.0
    if c.FOCAL * storey / z0 < 0.07:  # windows would be smaller than they can be seen
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


def draw_tree(canvas: Canvas, rng: np.random.Generator, x: float, z: float, height: float) -> None:
    """Draw a trunk and six clumps of leaves."""
    tree = canvas.instance(c.VEGETATION)
    radius = height * rng.uniform(0.26, 0.34)
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


def draw_bushes(canvas: Canvas, rng: np.random.Generator, x: float, z: float, height: float, count: int = 4) -> None:
    """Draw `count` bushes in a row around x."""
    bush = canvas.instance(c.VEGETATION)
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


def draw_background(canvas: Canvas, rng: np.random.Generator) -> None:
    """Draw the end of the street: distant houses and tree tops along the horizon."""
    for x in np.arange(-60, 60, 9.0):
        if rng.random() < 0.6:
            building = canvas.instance(c.BUILDING)
            x0, width, height = x + rng.uniform(-3, 3), rng.uniform(8, 16), rng.uniform(6, 17)
            canvas.rect(canvas.part(building, z=c.FAR, tone=rng.uniform(0.8, 1.0)), x0, x0 + width, -1, height, c.FAR)
        else:
            draw_bushes(canvas, rng, x, c.FAR, rng.uniform(7, 14), count=2)


def draw_plots(canvas: Canvas, rng: np.random.Generator, content: c.Content, side: c.Side) -> None:
    """Draw houses and little parks along the building line, the far ones first."""
    plots = []
    z = rng.uniform(0.7, 1.2)
    while z < c.FAR - 15:
        length = rng.uniform(*c.PLOT_LENGTH)
        plots.append((z, z + length, rng.random() < content.park, rng.uniform(*content.building_height)))
        z += length
    for z0, z1, park, height in reversed(plots):
        if not park:
            _draw_facade(canvas, rng, side, z0, z1, height)
            continue
        for depth in (z1 - 1, (z0 + z1) / 2 + 0.5):
            x = side.sign * (side.front + rng.uniform(1.5, 5))
            if depth > 3:
                draw_tree(canvas, rng, x, depth, rng.uniform(5, 10))
        draw_bushes(
            canvas, rng, side.sign * (side.front + 1.5), max((z0 + z1) / 2, 4.0), rng.uniform(1.2, 2.6), count=6
        )


def draw_barrier(canvas: Canvas, rng: np.random.Generator, content: c.Content, side: c.Side) -> None:
    """Draw a wall, a fence, both in a row, or nothing along the outer edge of the pavement."""
    kinds = [kind for kind, chance in ((c.WALL, content.wall), (c.FENCE, content.fence)) if rng.random() < chance]
    z = rng.uniform(1.0, 6.0)
    stretches = []
    for kind in kinds:
        length = rng.uniform(9, 24)
        stretches.append((kind, z, z + length, rng.uniform(1.5, 2.5) if kind == c.WALL else rng.uniform(1.2, 1.9)))
        z += length + rng.uniform(0, 2)
    x = side.sign * (side.pavement_end + 0.1)
    for kind, z0, z1, height in reversed(stretches):
        barrier = canvas.instance(kind)
        canvas.side(canvas.part(barrier, side_x=x), x, 0, height, z0, z1)
        if kind == c.WALL:
            canvas.side(canvas.part(barrier, side_x=x, tone=1.18), x, height - 0.22, height, z0, z1)
            continue
        rail = canvas.part(barrier, side_x=x, tone=0.62)
        for y in (0.25, height - 0.3):
            canvas.side(rail, x, y, y + 0.16, z0, z1)
        for z in np.arange(z0, z1, 2.4):
            canvas.side(rail, x, 0, height + 0.08, z, z + 0.2)
