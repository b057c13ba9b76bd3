"""The canvas of part numbers that a scene is drawn on, seen through a pinhole camera."""

from __future__ import annotations

import cv2
import numpy as np

from cbst_mx.data.street_scenes.content import FOCAL, THINNEST

__all__ = ["SUPERSAMPLING", "Canvas"]

# The canvas is drawn larger and averaged down, so that edges in the image are as soft as a camera's.
SUPERSAMPLING = 2


class Canvas:
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
        """Register an object of a class and return its number."""
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
        """Return column and row of the canvas at which a point is seen."""
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
        """Draw a disc that faces the camera, `squeeze` times as wide as high."""
        scale = self.focal / z * radius
        axes = (max(1, round(scale * squeeze)), max(1, round(scale)))
        cv2.ellipse(self.parts, self.point(x, y, z), axes, 0, 0, 360, (part,), -1)

    def side_disc(self, part: int, x: float, y: float, z: float, radius: float) -> None:
        """Fill a wheel in a plane along the street, as the ellipse it is seen as."""
        x0, x1 = self.point(x, y, z - radius)[0], self.point(x, y, z + radius)[0]
        axes = (max(1, abs(x1 - x0) // 2), max(1, round(self.focal / z * radius)))
        cv2.ellipse(self.parts, ((x0 + x1) // 2, self.point(x, y, z)[1]), axes, 0, 0, 360, (part,), -1)

    def blob(self, part: int, x: float, y: float, z: float, radius: float, outline: np.ndarray) -> None:
        """Draw an outline, float64 of shape (N, 2) around (0, 0), `radius` times its size."""
        scale = self.focal / z
        centre = (self.vanishing + scale * x, self.horizon + scale * (self.camera_height - y))
        cv2.fillPoly(self.parts, [np.rint(centre + scale * radius * outline).astype(np.int32)], (part,))
