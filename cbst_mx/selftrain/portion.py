"""Schedules over the rounds: portions p of target pixels and of source images, the learning rate, iterations.

Rounds are counted from 1; N images, portions in (0, 1].
"""

from __future__ import annotations

import numpy as np

from cbst_mx import seeding
from cbst_mx.errors import ConfigError, check_choice
from cbst_mx.selftrain.thresholds import check_fidelity, check_portion

__all__ = [
    "SOURCE_POLICIES",
    "iterations_of_epochs",
    "learning_rate",
    "portion",
    "select_source",
    "source_count",
]

SOURCE_POLICIES = ("cumulative", "random")


def portion(
    round_index: int,
    *,
    initial: float = 0.20,
    step: float = 0.05,
    maximum: float = 0.50,
    fidelity: str = "paper",
) -> float:
    """Return the portion of a round: `initial`, then `step` more each round, at most `maximum`.

    Both the portion p of target pixels and the portion of source images follow it.

    Parameters
    ----------
    round_index : int
        1 for the first round.
    initial, step, maximum : float
        The paper's schedule of p is 0.20, 0.25, ..., 0.50. The released program starts p at 0.15 (GTA5) or 0.20
        (SYNTHIA), and the portion of source images at 0.03 or 0.02 with a step of 0.0025 and a maximum of 0.06.
    fidelity : {"paper", "released"}
        "released" adds up in floating point as the released program does, with a step while the sum is below
        `maximum`: from 0.15 or 0.20 in steps of 0.05 the sum reaches 0.49999999999999994, not 0.5, so p goes one step
        too far, to 0.55, in round 9 or 8.

    Returns
    -------
    float
        In (0, 1]; "paper" rounds to 10 decimals so that sums such as 0.2 + 3 * 0.05 do not overshoot `maximum`.

    Raises
    ------
    ConfigError
        If `fidelity` is unknown or the result is outside (0, 1].
    """
    check_fidelity(fidelity)
    if fidelity == "released":
        total = initial
        for _ in range(round_index - 1):
            if total < maximum:
                total += step
        # One of its programs hands the value to the next as text, in which Python 2 writes 12 digits.
        value = float(f"{total:.12g}")
    else:
        value = round(min(initial + (round_index - 1) * step, maximum), 10)
    check_portion(value)
    return value


def learning_rate(round_index: int, *, initial: float, factor: float = 1.0) -> float:
    """Return the learning rate of a round: `initial` times `factor` for every round before it (1 is the first).

    The released program divides by the square root of 2, a factor of 0.7071, each round.
    """
    return initial * factor ** (round_index - 1)


def source_count(portion: float, total: int) -> int:
    """Return how many of `total` source images a portion is: the part before the point, but at least 1.

    Raises
    ------
    ConfigError
        If the portion is outside (0, 1] or there is no image.
    """
    check_portion(portion)
    if total < 1:
        raise ConfigError(f"total must be at least 1 source image, got {total}")
    return max(1, int(portion * total))


def select_source(
    total: int,
    portion: float,
    *,
    round_index: int,
    seed: int,
    policy: str = "cumulative",
    fidelity: str = "paper",
) -> list[int]:
    """Return the indices of the source images a round trains on, drawn without replacement.

    Parameters
    ----------
    total : int
        Number of source images, N.
    portion : float
        Portion of them in (0, 1].
    round_index : int
        1 for the first round.
    seed : int
        Seed of the run.
    policy : {"cumulative", "random"}
        "cumulative": the images of a round are the first ones of one permutation of all, so those of a smaller portion
        are among those of a larger one. "random": each round draws anew.
    fidelity : {"paper", "released"}
        "paper", which says nothing of drawing images, uses this package's own generators. "released" draws as the
        released program: ``numpy.random.RandomState(s).choice(total, count, replace=False)`` with s = `seed`, 0 by
        default, for "cumulative" and s = `round_index` - 1, whatever the seed, for "random". That is also the start of
        a permutation of all, so its cumulative sets are nested as long as `total` stays the same.

    Returns
    -------
    list of int
        :func:`source_count` of them, in the order drawn.

    Raises
    ------
    ConfigError
        If an argument is not allowed.
    """
    check_choice("policy", policy, SOURCE_POLICIES)
    check_fidelity(fidelity)
    count = source_count(portion, total)
    if fidelity == "released":
        state = seed if policy == "cumulative" else round_index - 1
        if not 0 <= state < 2**32:
            raise ConfigError(f"seed must be in [0, 2^32) with the released program's generator, got {state}")
        chosen = np.random.RandomState(state).choice(total, count, replace=False)
    else:
        draw = 0 if policy == "cumulative" else round_index
        chosen = seeding.generator(seed, round=draw, purpose="source selection").permutation(total)[:count]
    return [int(index) for index in chosen]


def iterations_of_epochs(epochs: int, *, images: int, batch_size: int) -> int:
    """Return the iterations of a number of epochs, where the images that do not fill a batch are left out.

    The released program trains 2 epochs per round over the selected source images and all target images, in batches
    of 2.

    Parameters
    ----------
    epochs : int
        At least 0.
    images : int
        Source and target images together, at least 1.
    batch_size : int
        At least 1; an epoch of fewer images than that counts as one batch.

    Raises
    ------
    ConfigError
        If an argument is out of its range.
    """
    for name, value, low in (("epochs", epochs, 0), ("images", images, 1), ("batch_size", batch_size, 1)):
        if value < low:
            raise ConfigError(f"{name} must be at least {low}, got {value}")
    return epochs * max(1, images // batch_size)
