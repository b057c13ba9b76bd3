"""Label-free health of a network: what it predicts on the target, by itself and against what it was before round 1.

C classes. A class-balanced round keeps the same portion of the predictions of every class, right or wrong: a class
that is predicted too often gets more pseudo-labels, is predicted more often still, and may end by taking the place of
others. No target label is needed to see that.

The limits were judged on 104 runs of seven rounds on generated scenes (many settings of a few source networks):
`GROWTH` and `LARGE` named a class in 18 of them, each time one that had lost 10 to 30 points of IoU; these runs gained
2.1 mIoU on average, the others 4.1. `LOST` fired in one run, `MOVED` in none: they are for worse collapses than those.
A sign asks for a look, no more: on real photographs (CamVid, one run) it named a class that had gained 26 points.

A network that has collapsed before round 1 does not change, so `extremes` looks at one network alone. On the demo's
scenes the largest of 19 classes had 28 to 29 % of the pixels in 21 healthy rounds; networks that were trained for a few
iterations gave it 35 to 61 %, the worst of them 84 to 99 %. Missing classes are no sign: no image may have them.
"""

from __future__ import annotations

from typing import Sequence

import numpy as np

__all__ = ["GONE", "GROWTH", "LARGE", "LOST", "MOVED", "RARE", "SMALL", "extremes", "signs"]

GROWTH = 3.0  # times its first share, ...
LARGE = 0.02  # ... for a class of at least this share of the pixels
LOST = 0.25  # of its first share, ...
SMALL = 0.001  # ... for a class that had at least this share
RARE = 0.0001  # for a class that had at least this share, ...
GONE = 0.01  # ... of its first share
MOVED = 0.25  # of all pixels in other classes than at first: half of the sum of all changes
_ENOUGH = 1000  # pixels: of fewer nothing is said
# Shares that no class has, by the number of classes: one of two may be a background.
_LARGEST_OF_TWO, _LARGEST_OF_FEW, _FEW, _LARGEST = 0.98, 0.9, 4, 0.8


def signs(predicted: Sequence[int], first: Sequence[int], names: Sequence[str]) -> list[str]:
    """Return what speaks for a collapse, a sentence each; nothing for a healthy network.

    Parameters
    ----------
    predicted, first : sequence of C int
        Pixels predicted as each class, now and before the first round, on the same images.
    names : sequence of C str
        The classes.

    Returns
    -------
    list of str
        Classes that have grown or vanished, then a change of the whole distribution. Empty where one of the counts is.
    """
    now, then = np.asarray(predicted, np.float64), np.asarray(first, np.float64)
    if not now.sum() or not then.sum():
        return []
    now, then = now / now.sum(), then / then.sum()
    found = []
    for name, share, before in zip(names, now, then):
        change = f"{name} is predicted at {_percent(share)} of the pixels, at first {_percent(before)}"
        if share >= LARGE and share >= GROWTH * before:
            found.append(f"{change}: its pseudo-labels may be wrong")
        elif (before >= SMALL and share <= LOST * before) or (before >= RARE and share <= GONE * before):
            found.append(f"{change}: the class is being lost")
    moved = float(np.abs(now - then).sum() / 2)
    if moved >= MOVED:
        found.append(f"{_percent(moved)} of the pixels have moved to other classes since before round 1")
    return found


def extremes(predicted: Sequence[int], names: Sequence[str]) -> list[str]:
    """Return what speaks for a collapse in the predictions of one network, a sentence each; nothing for a healthy one.

    Parameters
    ----------
    predicted : sequence of C int
        Pixels predicted as each class.
    names : sequence of C str
        The classes.

    Returns
    -------
    list of str
        A class that takes nearly all pixels. Empty for fewer than 1,000 pixels, or one class.
    """
    counts = np.asarray(predicted, np.float64)
    number, total = len(counts), counts.sum()
    if number < 2 or total < _ENOUGH:
        return []
    limit = _LARGEST if number > _FEW else _LARGEST_OF_FEW if number > 2 else _LARGEST_OF_TWO
    top = int(counts.argmax())
    if counts[top] < limit * total:
        return []
    return [
        f"{_percent(counts[top] / total)} of the pixels are predicted as {names[top]}, one class of {number}: the "
        "network predicts nearly the same everywhere, and its pseudo-labels will say so"
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
