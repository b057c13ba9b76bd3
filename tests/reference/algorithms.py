"""Algorithms 1 and 2 and the solvers of eq. 5 and eq. 8 of the paper, one pixel at a time in plain Python.

Where the paper leaves room (rank 0-based or 1-based, rounding, equality) the project's stated choices are used: the
value ranked round(p * n) counting from 1, and pixels equal to the threshold are kept.
"""

from __future__ import annotations

import math


def pixels(probability):
    """Yield the class probabilities of every pixel of a (C, H, W) array as Python floats."""
    classes, height, width = probability.shape
    for row in range(height):
        for column in range(width):
            yield [float(probability[c, row, column]) for c in range(classes)]


def argmax(values):
    """Return the first index of the largest value."""
    return values.index(max(values))


def ranked(values, portion):
    """Return the value ranked round(portion * n) in descending order, None when the rank is 0."""
    ordered = sorted(values, reverse=True)
    position = round(portion * len(ordered))
    return ordered[position - 1] if position else None


def algorithm_1(probabilities, portion):
    """Return exp(-k): the pool of max_c p_n(c) over all pixels of all images."""
    return ranked([max(p) for image in probabilities for p in pixels(image)], portion)


def algorithm_2(probabilities, portion):
    """Return exp(-k_c) and N_c per class: the pools of max_c p_n(c) over the pixels predicted as c."""
    classes = probabilities[0].shape[0]
    pools = [[] for _ in range(classes)]
    for image in probabilities:
        for p in pixels(image):
            pools[argmax(p)].append(max(p))
    return [ranked(pool, portion) for pool in pools], [len(pool) for pool in pools]


def solve(probability, thresholds):
    """Return eq. 8 for every pixel of one image, row by row: argmax_c p_c / exp(-k_c), 255 when it is below 1."""
    labels = []
    for p in pixels(probability):
        # in float64 the quotient of two float32 numbers is at least 1 exactly when the first is not smaller
        ratios = [-math.inf if limit is None else p[c] / limit for c, limit in enumerate(thresholds)]
        best = argmax(ratios)
        labels.append(best if ratios[best] >= 1 else 255)
    return labels
