"""The spatial prior of CBST-SP from its equations, one pixel at a time in plain Python.

Counts per pixel and class, a Gaussian of 70 x 70 pixels at 1024 x 2048 scaled with the grid (sigma a sixth of it, cut
off at half of it, the border's pixels repeated), and one of three normalisations. Where the paper is silent these are
the project's stated choices.

``python -m tests.reference.prior`` writes ``tests/golden/spatial_prior.npz`` anew.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from tests.reference import algorithms

GOLDEN = Path(__file__).parents[1] / "golden" / "spatial_prior.npz"
CLASSES = 5  # the last is in no label
SIZE = (24, 48)
PORTION = 0.3
# name: kernel and sigma in pixels at 1024 x 2048, and normalisation
CASES = {
    "sum": (420.0, None, "sum"),
    "maximum": (420.0, None, "maximum"),
    "frequency": (420.0, None, "frequency"),
    "sum_wide": (420.0, 140.0, "sum"),
    "sum_plain": (0.0, None, "sum"),
}


def counts(labels, classes):
    """Return how many of the label maps show each class at each pixel: lists [class][row][column]."""
    rows, columns = len(labels[0]), len(labels[0][0])
    return [
        [[sum(int(label[y][x]) == c for label in labels) for x in range(columns)] for y in range(rows)]
        for c in range(classes)
    ]


def weights(kernel, sigma, full, size):
    """Return the weights of a Gaussian along one axis, which sum to 1, from -r to r pixels."""
    if kernel == 0:
        return [1.0]
    deviation = kernel / 6 if sigma is None else sigma
    reach = int(kernel / 2 * size / full + 0.5)
    deviation *= size / full
    values = [math.exp(-(offset**2) / (2 * deviation**2)) for offset in range(-reach, reach + 1)]
    return [value / sum(values) for value in values]


def smooth(plane, down, across):
    """Return the weighted mean around every pixel; pixels outside are those of the border."""
    rows, columns = len(plane), len(plane[0])
    half, side = len(down) // 2, len(across) // 2

    def mean(y, x):
        return math.fsum(
            v * w * plane[min(max(y + i - half, 0), rows - 1)][min(max(x + j - side, 0), columns - 1)]
            for i, v in enumerate(down)
            for j, w in enumerate(across)
        )

    return [[mean(y, x) for x in range(columns)] for y in range(rows)]


def prior(labels, classes, kernel, sigma, normalisation):
    """Return q_n(c), float32 (C, H, W)."""
    rows, columns = len(labels[0]), len(labels[0][0])
    down, across = weights(kernel, sigma, 1024, rows), weights(kernel, sigma, 2048, columns)
    maps = []
    for plane in counts(labels, classes):
        plane = smooth(plane, down, across)
        values = [value for row in plane for value in row]
        divisor = {
            "sum": math.fsum(values) / len(values),
            "maximum": max(values),
            "frequency": len(labels),
        }[normalisation]
        maps.append([[value / divisor if divisor else 0.0 for value in row] for row in plane])
    return np.array(maps, dtype=np.float32)


def scene(generator):
    """Return a label map: bands of classes with a wandering border, a small region, and pixels to ignore."""
    label = np.zeros(SIZE, dtype=np.uint8)
    label[: SIZE[0] // 2 + generator.randint(-3, 4)] = 1
    top, left = generator.randint(8, 14), generator.randint(4, 36)
    label[top : top + 5, left : left + 8] = 2
    label[6:18, generator.randint(0, 6) + 20] = 3
    label[generator.rand(*SIZE) < 0.03] = 255
    return label


def make():
    """Return the arrays of the golden file."""
    generator = np.random.RandomState(12)
    labels = np.stack([scene(generator) for _ in range(6)])
    logits = generator.standard_normal((2, CLASSES, *SIZE))
    for image in logits:
        truth = scene(generator)
        for c in range(CLASSES):
            image[c] += 1.2 * (truth == c)
    exponentials = np.exp(logits)
    probability = (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(np.float32)
    arrays = {"labels": labels, "probability": probability, "portion": np.float64(PORTION)}
    for name, (kernel, sigma, normalisation) in CASES.items():
        q = prior(labels, CLASSES, kernel, sigma, normalisation)
        product = probability * q
        limits, pools = algorithms.algorithm_2(product, PORTION)
        chosen = [np.reshape(algorithms.solve(image, limits), SIZE) for image in product]
        arrays[f"{name}_prior"] = q
        arrays[f"{name}_threshold"] = np.array([np.inf if v is None else v for v in limits], dtype=np.float32)
        arrays[f"{name}_count"] = np.array(pools, dtype=np.int64)
        arrays[f"{name}_label"] = np.array(chosen, dtype=np.uint8)
    return arrays


if __name__ == "__main__":
    np.savez_compressed(GOLDEN, **make())
