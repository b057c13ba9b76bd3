"""Label-free health of a round: what the network predicts on the target, against what it predicted before round 1.

C classes. A class-balanced round keeps the same portion of the predictions of every class, right or wrong: a class
that is predicted too often gets more pseudo-labels, is predicted more often still, and may end by taking the place of
others. No target label is needed to see that.

The limits were judged on 104 runs of seven rounds on generated scenes (many settings of a few source networks):
`GROWTH` and `LARGE` named a class in 18 of them, each time one that had lost 10 to 30 points of IoU; these runs gained
2.1 mIoU on average, the others 4.1. `LOST` fired in one run, `MOVED` in none: they are for worse collapses than those.
A sign asks for a look, no more: on real photographs (CamVid, one run) it named a class that had gained 26 points.
"""

from __future__ import annotations

from typing import Sequence

import numpy as np

__all__ = ["GROWTH", "LARGE", "LOST", "MOVED", "SMALL", "signs"]

GROWTH = 3.0  # times its first share, ...
LARGE = 0.02  # ... for a class of at least this share of the pixels
LOST = 0.25  # of its first share, ...
SMALL = 0.001  # ... for a class that had at least this share
MOVED = 0.25  # of all pixels in other classes than at first: half of the sum of all changes


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
        elif before >= SMALL and share <= LOST * before:
            found.append(f"{change}: the class is being lost")
    moved = float(np.abs(now - then).sum() / 2)
    if moved >= MOVED:
        found.append(f"{_percent(moved)} of the pixels have moved to other classes since before round 1")
    return found


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
