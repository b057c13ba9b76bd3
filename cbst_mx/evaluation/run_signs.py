"""Signs of a collapse that the files of a run tell, as sentences; what counts as one is in `selftrain.guard`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from cbst_mx.errors import RunError
from cbst_mx.evaluation.protocols import ImageMatrices
from cbst_mx.evaluation.run_records import told_signs
from cbst_mx.run_dir import RunDir
from cbst_mx.selftrain import guard

__all__ = ["guard_signs", "news", "target_signs", "validation_signs", "warnings_of"]


class Readable(Protocol):
    """What is read of a run here: a part of :class:`.RunResults`, which reads these signs in its turn."""

    folder: RunDir

    @property
    def rounds(self) -> int:
        """Number of rounds."""

    @property
    def leading(self) -> str | None:
        """Name of the first validation set."""

    def thresholds(self, stage: int) -> dict[str, Any]:
        """Return the thresholds of a round."""

    def label_free(self, stage: int) -> dict[str, Any]:
        """Return what a stage predicts, without labels."""

    def matrices(self, stage: int) -> dict[str, ImageMatrices]:
        """Return the confusion matrices."""

    def judgement(self, stage: int) -> dict[str, Any]:
        """Return what the guard said of a stage."""

    def mean_confidence(self, path: Path) -> list[float | None]:
        """Return the mean confidence of every class."""


def warnings_of(run: Readable, stage: int) -> list[str]:
    """Return what speaks for a collapse of a stage, as far as its files tell."""
    return [*target_signs(run, stage), *guard_signs(run, stage), *validation_signs(run, stage)]


def guard_signs(run: Readable, stage: int) -> list[str]:
    """Return the faults that the guard has seen, by the next round or at the end, besides those of target_signs."""
    judged = run.judgement(stage)
    return [f"on the target's images, {text}" for kind, text in told_signs(judged) if kind in guard.OF_GUARD_ONLY]


def news(run: Readable, stage: int) -> list[str]:
    """Return what the guard has seen that is no alarm: classes that have appeared on the target since round 1."""
    judged = run.judgement(stage)
    return [f"on the target's images, {text}" for kind, text in told_signs(judged) if kind in guard.NEWS]


def target_signs(run: Readable, stage: int) -> list[str]:
    """Return the signs on the target's training images.

    Their predictions are counted by the next round, or by every stage in a run without a validation set.
    """
    if run.leading is None:
        if not all(run.folder.stage(index).label_free.is_file() for index in (stage, 0)):
            return []
        latest, start = run.label_free(stage), run.label_free(0)
        found = []
        if stage:
            both = (run.label_free(stage - 1)["confidence"], latest["confidence"])
            found = guard.signs(latest["predicted"], start["predicted"], latest["names"], both)
        found += guard.extremes(latest["predicted"], latest["names"])
        return [f"on the target's images, {sentence}" for sentence in found]
    if not 0 <= stage < run.rounds:
        return []
    if not all(run.folder.stage(index).thresholds.is_file() for index in (stage + 1, 1)):
        return []
    now, first = (run.thresholds(index) for index in (stage + 1, 1))
    found = []
    if stage:
        found = guard.signs(now["predicted"], first["predicted"], now["names"], _confidences(run, stage))
    found += guard.extremes(now["predicted"], now["names"])
    return [f"on the target's images, {sentence}" for sentence in found]


def _confidences(run: Readable, stage: int) -> guard.Confidence | None:
    """Return the mean confidence of every class on the target, of the stage before and of `stage`."""
    files = [run.folder.stage(index).image_statistics for index in (stage, stage + 1)]  # of the next round
    if not all(path.is_file() for path in files):
        return None
    then, now = (run.mean_confidence(path) for path in files)
    return then, now


def validation_signs(run: Readable, stage: int) -> list[str]:
    """Return the signs on the validation sets; labels play no part but that unlabelled pixels are left out."""
    if not all(run.folder.stage(index).evaluation.is_file() for index in (stage, 0)):
        return []
    now, first = (run.matrices(index) for index in (stage, 0))
    found = []
    for name, matrices in now.items():
        if name not in first or first[name].classes != matrices.classes:
            raise RunError(
                f"{run.folder.stage(0).evaluation} and {run.folder.stage(stage).evaluation} must be of the same "
                f"sets and classes, validation set {name!r} is not in both"
            )
        predicted, before = (sets[name].counts.sum(axis=(0, 1)) for sets in (now, first))
        signs = guard.signs(predicted, before, matrices.classes) if stage else []
        signs += guard.extremes(predicted, matrices.classes)
        found += [f"on validation set {name}, {sentence}" for sentence in signs]
    return found
