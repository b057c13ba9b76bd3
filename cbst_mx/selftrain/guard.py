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

`judge` puts all signs together before a round trains. Those of `FAULTS` are about the whole network, which is then
of no use; the others name classes, whose pseudo-labels a round may hold back or cap (`factors`). A class that was not
there before round 1 and appears, with a confidence that does not fall, is news (`NEWS`) and no alarm; classes that the
network never predicts before round 1 are named then, for no round can bring them. Every kind has its `ADVICE`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Mapping, Sequence

import numpy as np

from cbst_mx.errors import DataError
from cbst_mx.messages import counted, listed
from cbst_mx.selftrain.signs import ADVICE, FAULTS, NEWS, OF_GUARD_ONLY, Confidence, Sign

__all__ = [
    "ADVICE",
    "AGREED",
    "FAR_MORE",
    "FAULTS",
    "GONE",
    "GROWTH",
    "LARGE",
    "LOST",
    "MOVED",
    "NARROWED",
    "NEWS",
    "OF_GUARD_ONLY",
    "RARE",
    "RENAMED",
    "SATURATED",
    "SMALL",
    "Confidence",
    "Judgement",
    "Sign",
    "agreement",
    "effective_classes",
    "extremes",
    "factors",
    "find_signs",
    "judge",
    "renamed",
    "score",
    "signs",
]

GROWTH = 3.0  # times its first share, ...
LARGE = 0.02  # ... for a class of at least this share of the pixels
LOST = 0.25  # of its first share, ...
SMALL = 0.001  # ... for a class that had at least this share
RARE = 0.0001  # for a class that had at least this share, ...
GONE = 0.01  # ... of its first share
MOVED = 0.25  # of all pixels in other classes than at first: half of the sum of all changes
SATURATED = 0.5  # of the network's cells have a probability of exactly 1
AGREED = 0.5  # of the pixels are predicted as by the network before, at least
NARROWED = 0.5  # of the effective number of classes that there were at first, at least
RENAMED = 0.1  # of the pixels in classes that took the name of another
FAR_MORE = 1.5  # times the portion asked for
_ENOUGH = 1000  # pixels: of fewer nothing is said
_ENOUGH_POINTS = 100  # of the grids of two networks: of fewer nothing is said
# Shares that no class has, by the number of classes: one of two may be a background.
_LARGEST_OF_TWO, _LARGEST_OF_FEW, _FEW, _LARGEST = 0.98, 0.9, 4, 0.8


def signs(
    predicted: Sequence[int], first: Sequence[int], names: Sequence[str], confidence: Confidence | None = None
) -> list[str]:
    """Return what speaks for a collapse, a sentence each with what can be done; nothing for a healthy network.

    Parameters
    ----------
    predicted, first, names, confidence
        As for :func:`find_signs`.
    """
    return [sign.text for sign in find_signs(predicted, first, names, confidence) if sign.kind not in NEWS]


def find_signs(
    predicted: Sequence[int], first: Sequence[int], names: Sequence[str], confidence: Confidence | None = None
) -> list[Sign]:
    """Return what speaks for a collapse since before round 1, and the news; nothing for a healthy network.

    Parameters
    ----------
    predicted, first : sequence of C int
        Pixels predicted as each class, now and before the first round, on the same images.
    names : sequence of C str
        The classes.
    confidence : tuple of two sequences of C float, optional
        Mean confidence of the pixels predicted as each class, by the network before and by the one now; NaN or None
        where there is none.

    Returns
    -------
    list of Sign
        Classes that have grown, appeared or vanished, then a change of the whole distribution. Empty where one of the
        counts is.
    """
    now, then = np.asarray(predicted, np.float64), np.asarray(first, np.float64)
    if not now.sum() or not then.sum():
        return []
    now, then = now / now.sum(), then / then.sum()
    found = []
    for index, (name, share, before) in enumerate(zip(names, now, then)):
        change = f"{name} is predicted at {_percent(share)} of the pixels, at first {_percent(before)}"
        if share >= LARGE and share >= GROWTH * before:
            found.append(_risen(change, index, before, None if confidence is None else [c[index] for c in confidence]))
        elif (before >= SMALL and share <= LOST * before) or (before >= RARE and share <= GONE * before):
            found.append(Sign("lost", f"{change}: the class is being lost", index))
    moved = _drift(now, then)
    if moved >= MOVED:
        sentence = f"{_percent(moved)} of the pixels have moved to other classes since before round 1"
        found.append(Sign("moved", sentence))
    return found


def _risen(change: str, index: int, before: float, confidence: Sequence[float | None] | None) -> Sign:
    """Return the sign of a class that is predicted much more often than at first: growth, or that it has appeared."""
    trend, falls = "", False
    if confidence is not None and all(one is not None and one == one for one in confidence):
        then, now = map(float, confidence)  # type: ignore[arg-type]
        falls = now < then
        trend = f", and its mean confidence {'falls' if falls else 'grows'} ({then:.2f} to {now:.2f})"
    if before < RARE and not falls:
        return Sign("appeared", f"{change}: the class has appeared{trend}", index)
    return Sign("grown", f"{change}{trend if falls else ''}: its pseudo-labels may be wrong", index)


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
        A class that takes nearly all pixels, with what can be done. Empty for fewer than 1,000 pixels, or one class.
    """
    return [sign.text for sign in _find_extremes(predicted, names)]


def _find_extremes(predicted: Sequence[int], names: Sequence[str]) -> list[Sign]:
    counts = np.asarray(predicted, np.float64)
    number, total = len(counts), counts.sum()
    if number < 2 or total < _ENOUGH:
        return []
    limit = _LARGEST if number > _FEW else _LARGEST_OF_FEW if number > 2 else _LARGEST_OF_TWO
    top = int(counts.argmax())
    if counts[top] < limit * total:
        return []
    sentence = (
        f"{_percent(counts[top] / total)} of the pixels are predicted as {names[top]}, one class of {number}: the "
        "network predicts nearly the same everywhere, and its pseudo-labels will say so"
    )
    return [Sign("constant", sentence)]


def _drift(now: np.ndarray, then: np.ndarray) -> float:
    """Return the share of the pixels that changed class between two distributions, at least."""
    return float(np.abs(now - then).sum() / 2)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


# --------------------------------------------------------------------------------- one network against the one before


def agreement(before: Mapping[str, np.ndarray], now: Mapping[str, np.ndarray], num_classes: int) -> np.ndarray:
    """Count how the pixels of one network's classes are predicted by another one.

    Parameters
    ----------
    before, now : mapping of str to ndarray of shape (h, w), uint8
        Predicted classes of the same images on a grid; 255 where there is none.
    num_classes : int
        Number of classes C.

    Returns
    -------
    ndarray of shape (C, C), int64
        Rows: classes by the network before; columns: by the one now. Points that either has no class for are left out.

    Raises
    ------
    DataError
        If the images or their sizes differ, or a class is none of the C.
    """
    if {name: grid.shape for name, grid in now.items()} != {name: grid.shape for name, grid in before.items()}:
        raise DataError("predictions to compare must be of the same images in the same sizes, got others")
    pairs = np.zeros((256, 256), np.int64)
    for name, grid in now.items():
        both = before[name].astype(np.intp).reshape(-1) * 256 + grid.reshape(-1)
        pairs += np.bincount(both, minlength=256 * 256).reshape(256, 256)
    if pairs[num_classes:255].any() or pairs[:, num_classes:255].any():
        raise DataError(f"predictions to compare must be of classes 0 to {num_classes - 1} or 255, got others")
    return pairs[:num_classes, :num_classes]


def renamed(pairs: np.ndarray) -> dict[int, int]:
    """Return the classes that took the name of another one, trainId to trainId, where that speaks for a permutation.

    A class did where most of its pixels are predicted as the other one now, and most of that one's pixels come from it;
    no two take one name, so this is the part of the best matching that is not the identity. It speaks for a permutation
    if such classes have `RENAMED` of all pixels, or if some of them (each of at least `SMALL`) form a cycle: training
    moves no two classes into one another's places.

    Parameters
    ----------
    pairs : ndarray of shape (C, C), int64
        As from :func:`agreement`.
    """
    total, rows, columns = pairs.sum(), pairs.sum(axis=1), pairs.sum(axis=0)
    found = {}
    for index in np.flatnonzero(rows):
        other = int(pairs[index].argmax())
        count = pairs[index, other]
        if other != index and 2 * count > rows[index] and 2 * count > columns[other]:
            found[int(index)] = other
    large = {index: other for index, other in found.items() if pairs[index, other] >= SMALL * total}
    if sum(pairs[index, other] for index, other in large.items()) >= RENAMED * total > 0:
        return large
    return large if any(_returns(large, start) for start in large) else {}


def _returns(names: Mapping[int, int], start: int) -> bool:
    at = start
    for _ in names:
        at = names.get(at, -1)
        if at == start:
            return True
    return False


def effective_classes(predicted: Sequence[int]) -> float:
    """Return exp(H), where H in nats is the entropy of the shares: C for equal ones, 1 where one class has all.

    Parameters
    ----------
    predicted : sequence of C int
        Pixels predicted as each class; 0 where there is none at all.
    """
    counts = np.asarray(predicted, np.float64)
    shares = counts[counts > 0] / max(counts.sum(), 1)
    return float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0


def score(predicted: np.ndarray, confidence_sums: np.ndarray) -> float:
    """Return the label-free score of a network: the mean over all classes of the mean confidence of each.

    A class that is predicted nowhere counts as 0. So does the score what class-balanced self-training does: it gives
    rare classes the weight of large ones, and falls when classes vanish, where the mean over the pixels, which large
    classes rule, rises in every round whatever happens.

    Parameters
    ----------
    predicted : ndarray of shape (C,), integer
        Pixels predicted as each class.
    confidence_sums : ndarray of shape (C,), float64
        Sums of their confidences.
    """
    counts = np.asarray(predicted, np.float64)
    return float((np.asarray(confidence_sums, np.float64) / np.maximum(counts, 1)).mean())


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What is known of a network before the next round trains, without any label.

    Attributes
    ----------
    signs : tuple of Sign
        What speaks against it; none for a healthy one.
    numbers : dict of str to float or None
        ``largest`` (share of the largest class), ``saturated`` (share of the network's cells with a probability of
        exactly 1), ``agreement`` (share of the grid's points that are predicted as by the network before),
        ``effective_classes`` (exp of the entropy of the shares), ``drift`` (share of the pixels that moved to other
        classes since before round 1), ``kept`` and ``portion`` (pseudo-labels, and what was asked for). None where a
        number cannot be known.
    renamed : dict of str to str
        Classes that took the name of another one since the network before.
    """

    signs: tuple[Sign, ...]
    numbers: dict[str, float | None]
    renamed: dict[str, str]

    @property
    def faults(self) -> tuple[str, ...]:
        """Sentences of the signs that are about the whole network, without the advice."""
        return tuple(sign.sentence for sign in self.signs if sign.kind in FAULTS)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        signs = [
            {"kind": sign.kind, "sentence": sign.sentence, "advice": ADVICE[sign.kind], "train_id": sign.train_id}
            for sign in self.signs
        ]
        return {"healthy": not self.faults, **self.numbers, "renamed": self.renamed, "signs": signs}


def judge(
    predicted: Sequence[int],
    names: Sequence[str],
    *,
    first: Sequence[int] | None = None,
    pairs: np.ndarray | None = None,
    saturated: float | None = None,
    kept: float | None = None,
    portion: float | None = None,
    confidence: Confidence | None = None,
) -> Judgement:
    """Judge a network by its predictions on the target and by the pseudo-labels that were made of them.

    Parameters
    ----------
    predicted : sequence of C int
        Pixels predicted as each class.
    names : sequence of C str
        The classes.
    first : sequence of C int, optional
        The same before round 1; left out for the source network.
    pairs : ndarray of shape (C, C), int64, optional
        As from :func:`agreement`, against the network before.
    saturated : float, optional
        Share of the network's cells that have a probability of exactly 1.
    kept, portion : float, optional
        Portion of the pixels that has pseudo-labels, and portion p that was asked for.
    confidence
        As for :func:`find_signs`.
    """
    counts = np.asarray(predicted, np.float64)
    found = _find_extremes(predicted, names)
    constant, total = bool(found), counts.sum()
    numbers: dict[str, float | None] = {
        "largest": float(counts.max() / total) if total else None,
        "effective_classes": effective_classes(predicted),
        "saturated": saturated,
        "kept": kept,
        "portion": portion,
        **dict.fromkeys(("agreement", "drift")),
    }
    if saturated is not None and saturated >= SATURATED:
        sentence = f"{_percent(saturated)} of the network's outputs are a probability of exactly 1"
        found.append(Sign("saturated", f"{sentence}: the most confident pixels cannot be told from others"))
    if kept is not None and portion is not None and kept * total > FAR_MORE * portion * total + len(names):
        found.append(Sign("kept", f"{_percent(kept)} of the pixels are kept where {_percent(portion)} were asked for"))
    taken: dict[str, str] = {}
    if pairs is not None and pairs.sum() >= _ENOUGH_POINTS:
        taken = {} if constant else {names[index]: names[other] for index, other in renamed(pairs).items()}
        same = numbers["agreement"] = float(np.trace(pairs) / pairs.sum())
        if taken:
            listed = ", ".join(f"{one} is {other} now" for one, other in taken.items())
            found.append(Sign("renamed", f"classes took the names of others since the round before ({listed})"))
        elif same < AGREED:
            found.append(Sign("disagrees", f"only {_percent(same)} of the pixels are predicted as in the round before"))
    if first is not None:
        found += _since(predicted, first, names, numbers, confidence)
    elif total >= _ENOUGH and not constant:
        found += _find_missing(predicted, names)
    return Judgement(tuple(found), numbers, taken)


def _find_missing(predicted: Sequence[int], names: Sequence[str]) -> list[Sign]:
    """Return a sign that names the classes which a network never predicts, where there are some."""
    absent = [name for name, count in zip(names, predicted) if not count]
    if not absent:
        return []
    many = f"{len(absent)} of {counted(len(names), 'class')} {'is' if len(absent) == 1 else 'are'} never predicted"
    them = "it" if len(absent) == 1 else "them"
    return [Sign("missing", f"{many} ({listed(absent)}): self-training cannot bring {them}")]


def _since(
    predicted: Sequence[int],
    first: Sequence[int],
    names: Sequence[str],
    numbers: dict[str, float | None],
    confidence: Confidence | None,
) -> list[Sign]:
    """Return the signs since before round 1, and note the drift in `numbers`."""
    now, then = np.asarray(predicted, np.float64), np.asarray(first, np.float64)
    found = find_signs(predicted, first, names, confidence)
    if now.sum() and then.sum():
        numbers["drift"] = _drift(now / now.sum(), then / then.sum())
        effective, before = effective_classes(predicted), effective_classes(first)
        if now.sum() >= _ENOUGH and effective < NARROWED * before:
            change = f"the pixels are spread over as many as {effective:.2g} equal classes, at first {before:.2g}"
            found.append(Sign("narrowed", f"{change}: classes are vanishing"))
    return found


def factors(
    predicted: Sequence[int], first: Sequence[int], names: Sequence[str], *, hold_back: bool = False
) -> dict[int, float]:
    """Return by how much the portion of the classes that have grown too much is made smaller.

    Parameters
    ----------
    predicted, first, names
        As for :func:`find_signs`.
    hold_back : bool
        Give such a class no pseudo-label at all, in place of as many as if it had its share before round 1.

    Returns
    -------
    dict of int to float
        TrainId to a factor of p in [0, 1), for the classes that :func:`find_signs` calls grown or appeared: 0 to hold
        it back, else the share before round 1 divided by that of now.
    """
    now, then = np.asarray(predicted, np.float64), np.asarray(first, np.float64)
    grown = (sign.train_id for sign in find_signs(predicted, first, names) if sign.kind in ("grown", "appeared"))
    shares = then / max(then.sum(), 1), now / max(now.sum(), 1)
    return {c: 0.0 if hold_back else float(shares[0][c] / shares[1][c]) for c in grown if c is not None}
