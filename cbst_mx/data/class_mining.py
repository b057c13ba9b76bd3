"""Hard-sample mining: training crops centred on rare classes.

Which classes are rare follows from what the network predicts on the target images (:mod:`cbst_mx.selftrain` counts
them); where to find them, from the labels or pseudo-labels of the image itself, source and target alike.
"""

from __future__ import annotations

from typing import Iterable

import numpy as np

from cbst_mx.errors import ConfigError
from cbst_mx.label_space import IGNORE

__all__ = ["ClassMining"]


class ClassMining:
    """Choose the pixel on which a training crop is centred.

    With probability `probability` a crop is mined: if the labels hold any of the priority classes, one of those that
    are there is chosen, else one of the worst classes that are there, each with equal chance; then one of its pixels,
    each with equal chance. Else, and where none of these classes is there, the crop stays where chance has put it.

    Parameters
    ----------
    worst : iterable of int
        TrainIds of the least predicted classes: 5 in the paper, 3 in the released program.
    priority : iterable of int
        TrainIds of the classes whose predicted portion is below 0.1 %; there may be none, or more than worst ones.
    probability : float
        In [0, 1]; 0.8 in the released program.

    Raises
    ------
    ConfigError
        If an argument is outside its range, or there is no class at all.
    """

    def __init__(self, worst: Iterable[int], priority: Iterable[int] = (), *, probability: float = 0.8) -> None:
        self.worst = _classes("worst", worst)
        self.priority = _classes("priority", priority)
        if not self.worst + self.priority:
            raise ConfigError("worst and priority must name at least one class to mine, got none")
        if not isinstance(probability, (int, float)) or isinstance(probability, bool) or not 0 <= probability <= 1:
            raise ConfigError(f"probability must be a number in [0, 1], got {probability!r}")
        self.probability = float(probability)

    def pixel(self, label: np.ndarray, rng: np.random.Generator) -> tuple[int, int] | None:
        """Return row and column of the pixel to centre a crop on, or None where the crop is not mined.

        Parameters
        ----------
        label : ndarray of shape (H, W), uint8
            TrainIds, 255 = ignore: the part of an image on whose pixels a crop can be centred.
        rng : numpy.random.Generator
            The only source of chance.
        """
        if rng.random() >= self.probability:
            return None
        for classes in (self.priority, self.worst):
            present = [index for index in classes if (label == index).any()]
            if present:
                places = np.flatnonzero(label == present[rng.integers(len(present))])
                row, column = divmod(int(places[rng.integers(len(places))]), label.shape[1])
                return row, column
        return None


def _classes(name: str, values: Iterable[int]) -> tuple[int, ...]:
    classes = tuple(values)
    for value in classes:
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or not 0 <= value < IGNORE:
            raise ConfigError(f"{name} must hold trainIds from 0 to {IGNORE - 1}, got {value!r}")
    if len(set(classes)) < len(classes):
        raise ConfigError(f"{name} must name every class once, got {classes}")
    return tuple(int(value) for value in classes)
