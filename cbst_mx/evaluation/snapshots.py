"""Snapshots of the source training: what each gives, and which one a rule would take.

C classes. The rounds start from the last epoch, and nothing here changes that. The authors' rounds start from a
released file; of its choice is only known that the best network comes within the first 30 epochs, sometimes very early.
This shows how much hangs on it.
"""

from __future__ import annotations

from typing import Any, Mapping, NamedTuple, Sequence

import numpy as np

from cbst_mx.errors import RunError
from cbst_mx.evaluation.run_records import read_evaluation, read_label_free
from cbst_mx.evaluation.run_results import RunResults
from cbst_mx.files import reading
from cbst_mx.selftrain import guard

__all__ = ["RULES", "Snapshot", "as_json", "choose", "read_snapshots"]

#: Rule to what it says, in words.
RULES = {
    "last": "last epoch: where the rounds start",
    "label-free": "label-free: fewest signs of a collapse, then class shares on the target nearest to all epochs' mean",
    "oracle": "oracle: highest mIoU, chosen with target labels",
}


class Snapshot(NamedTuple):
    """The source network after some epochs.

    Attributes
    ----------
    epoch : int
        Epochs of the source training.
    miou : dict of str to float
        mIoU in [0, 1] by validation set, the leading one first; empty without a validation set.
    predicted : list of int
        Pixels of the target images predicted as each class.
    mean_confidence : float
        Over those pixels.
    signs : list of str
        Sentences of :func:`.guard.extremes`.
    """

    epoch: int
    miou: dict[str, float]
    predicted: list[int]
    mean_confidence: float
    signs: list[str]


def read_snapshots(run: RunResults) -> list[Snapshot]:
    """Return the snapshots of a run that have been evaluated, by their epochs.

    Raises
    ------
    RunError
        If there is none, or a file of one is damaged.
    """
    found = []
    for epoch in run.folder.snapshots():
        stage = run.folder.snapshot(epoch)
        if not stage.evaluation.is_file():
            continue
        evaluation, seen = read_evaluation(stage.evaluation, run.read), read_label_free(stage.label_free, run.read)
        with reading(stage.path, RunError):
            means = {name: float(evaluation[name]["miou"]) for name in run.settings.validation}
            signs = guard.extremes(seen["predicted"], seen["names"])
            found.append(Snapshot(epoch, means, list(seen["predicted"]), float(seen["mean_confidence"]), signs))
    if not found:
        raise RunError(
            f"{run.folder.path} has no evaluated snapshot: give source_training.snapshots, the epochs from one to the "
            "next, before the source training"
        )
    return found


def choose(snapshots: Sequence[Snapshot]) -> Mapping[str, int]:
    """Return the epoch that each rule of ``RULES`` takes; no oracle without a validation set.

    The label-free rule looks at the target's predictions only, with the numbers of the guard: snapshots with the fewest
    signs of a collapse, and of these the one whose class shares have moved least from the mean over all snapshots (half
    of the sum of all differences); of equal ones the last.

    Parameters
    ----------
    snapshots : sequence of Snapshot
        At least one, by their epochs.
    """
    shares = np.array([one.predicted for one in snapshots], dtype=np.float64)  # (snapshots, C)
    shares /= np.maximum(shares.sum(axis=1, keepdims=True), 1)
    moved = np.abs(shares - shares.mean(axis=0)).sum(axis=1) / 2
    best = min(range(len(snapshots)), key=lambda index: (len(snapshots[index].signs), moved[index], -index))
    chosen = {"last": snapshots[-1].epoch, "label-free": snapshots[best].epoch}
    if snapshots[0].miou:
        chosen["oracle"] = max(snapshots, key=lambda one: next(iter(one.miou.values()))).epoch
    return chosen


def as_json(snapshots: Sequence[Snapshot]) -> dict[str, Any]:
    """Return the snapshots and the choices as JSON values."""
    return {"snapshots": [one._asdict() for one in snapshots], "chosen": dict(choose(snapshots)), "rules": RULES}
