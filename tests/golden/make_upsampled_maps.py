"""Write upsampled_maps.npz: class maps enlarged as the released program does, by Pillow and from the equations.

python tests/golden/make_upsampled_maps.py

Takes nothing from the package. Pillow resizes planes in mode "F" with its bicubic filter, first by the stride to the
padded input, then, after the crop, to the image. The equations are Keys' kernel with a = -0.5, element by element in
float64; the script stops where the two differ by more than a few roundings of float32.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

STRIDE = 8
# name -> cells, rows and columns of the input that are the image, and the image's size
CASES = {
    "enlarged": ((6, 9), (43, 71), (48, 79)),  # as Cityscapes for pseudo-labels: 1850 to 2048
    "cropped": ((5, 8), (37, 60), (37, 60)),  # the input has the image's size: the second step changes nothing
    "shrunk": ((7, 12), (53, 96), (49, 90)),  # as GTA5 at a long side of 2048: to 1914
}
CLASSES = 5


def kernel(x: float) -> float:
    """Return Keys' cubic kernel with a = -0.5."""
    x = abs(x)
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def matrix(old: int, new: int) -> np.ndarray:
    """Return the weights (new, old) of one resize along one axis: no elements beyond the edges, sums of 1."""
    result = np.zeros((new, old))
    if old == new:
        return np.eye(old)
    wide = max(1.0, old / new)
    for pixel in range(new):
        centre = (pixel + 0.5) * old / new
        for element in range(old):
            # an element counts where its middle is less than two (widened) elements from the centre
            if math.floor(centre - 2 * wide + 0.5) <= element < math.floor(centre + 2 * wide + 0.5):
                result[pixel, element] = kernel((element + 0.5 - centre) / wide)
        result[pixel] /= result[pixel].sum()
    return result


def by_equations(maps: np.ndarray, part: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    rows, columns = (
        matrix(wanted, pixels) @ matrix(cells, STRIDE * cells)[:wanted]
        for cells, wanted, pixels in zip(maps.shape[1:], part, size)
    )
    return rows @ maps.astype(np.float64) @ columns.T


def by_pillow(maps: np.ndarray, part: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    planes = []
    for plane in maps:
        padded = Image.fromarray(plane).resize((STRIDE * plane.shape[1], STRIDE * plane.shape[0]), Image.BICUBIC)
        planes.append(np.asarray(padded.crop((0, 0, part[1], part[0])).resize(size[::-1], Image.BICUBIC)))
    return np.stack(planes)


def main() -> None:
    rng = np.random.default_rng(20181008)
    arrays = {"pillow_version": np.array(PIL.__version__)}
    for name, (cells, part, size) in CASES.items():
        logits = 3 * rng.standard_normal((CLASSES, *cells))
        maps = (np.exp(logits) / np.exp(logits).sum(axis=0)).astype(np.float32)
        found, expected = by_pillow(maps, part, size), by_equations(maps, part, size)
        difference = np.abs(found - expected).max()
        assert difference < 5e-7, (name, difference)  # four passes, each rounded to float32
        print(f"{name}: {cells} to {size}, Pillow and the equations differ by {difference:.1e}")
        arrays.update({f"{name}_cells": maps, f"{name}_part": np.array(part), f"{name}_maps": found})
    np.savez_compressed(Path(__file__).with_name("upsampled_maps.npz"), **arrays)


if __name__ == "__main__":
    main()
