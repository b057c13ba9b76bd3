"""Step 2 of a scene: colours, textures, haze, blur and noise over the drawn parts."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from cbst_mx.data.street_scenes.canvas import SUPERSAMPLING, Canvas
from cbst_mx.data.street_scenes.content import DOMAIN_CODES, FAR
from cbst_mx.data.street_scenes.looks import (
    ACCENT_SHARE,
    ACCENTS,
    CHROMA_JITTER,
    ILLUMINATION_JITTER,
    LOOKS,
    SKY_BRIGHTENING,
    SOURCE_NOISE,
    TARGET_BLUR,
    TARGET_CAST,
    TARGET_GAMMA,
    TARGET_HAZE_COLOUR,
    TARGET_HAZE_DENSITY,
    TARGET_NOISE,
    WARMTH_JITTER,
    Looks,
    Shift,
    shifted_looks,
)
from cbst_mx.label_space import CITYSCAPES_19

__all__ = ["appearance"]

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


def _paint(canvas: Canvas, looks: Looks, rng: np.random.Generator) -> np.ndarray:
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


def _haze_share(canvas: Canvas, density: float) -> np.ndarray:
    """Return the share of haze colour at every pixel, float32 (H, W), from the depth of the parts."""
    parts = canvas.parts[::SUPERSAMPLING, ::SUPERSAMPLING]
    constant, slope_x, slope_y = np.array(canvas.part_depths, np.float32).T
    x = np.abs(np.arange(parts.shape[1], dtype=np.float32) * SUPERSAMPLING - canvas.vanishing)
    y = np.arange(parts.shape[0], dtype=np.float32)[:, None] * SUPERSAMPLING - canvas.horizon
    inverse = constant[parts] + slope_x[parts] * x + slope_y[parts] * y
    return 1 - np.exp(-density / np.maximum(inverse, 1 / FAR))


def appearance(canvas: Canvas, seed: int, index: int, domain: str, shift: Shift) -> np.ndarray:
    """Colour a canvas: return its image, uint8 of shape (H, W, 3), RGB; equal arguments give equal images."""
    rng = np.random.default_rng([seed, index, DOMAIN_CODES[domain], 1])
    strength = shift.strength if domain == "target" else 0.0
    image = _paint(canvas, shifted_looks(Shift(strength, shift.seed)), rng)
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
