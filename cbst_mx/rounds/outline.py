"""The parts of a run in the order in which it does them, with the steps that each counts: what remains can be told.

A part is what `Progress` gets one title for. Those that the run folder has are marked as done, with the time that the
ledger says they took.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Iterator, Mapping

from cbst_mx.config import Experiment
from cbst_mx.messages import Part, stage_title
from cbst_mx.rounds.workload import count_iterations, source_indices
from cbst_mx.run_dir import RunDir
from cbst_mx.run_dir.ledger import Ledger
from cbst_mx.run_dir.steps import EVALUATION, LABELS, PRIOR, RETRAINING, SOURCE, Step, find_step
from cbst_mx.selftrain.portion import iterations_of_epochs

__all__ = ["LAST_LOOK", "outline"]

LAST_LOOK = "last look at target"  # by the network of the last round


def outline(
    experiment: Experiment, out: Path, *, source: int, target: int, validation: Mapping[str, int]
) -> list[Part]:
    """Return the parts of a run.

    Parameters
    ----------
    experiment : Experiment
        The experiment that is run.
    out : Path
        Its run folder, which need not exist.
    source, target : int
        Number of images.
    validation : mapping of str to int
        Validation set to its number of images.

    Raises
    ------
    RunError
        If the folder's ledger is damaged.
    """
    return list(_Parts(experiment, Ledger(RunDir(out)), source, target, validation).all())


class _Parts:
    """Makes the parts of one run."""

    def __init__(self, experiment: Experiment, ledger: Ledger, source: int, target: int, validation: Mapping[str, int]):
        self._experiment, self._ledger = experiment, ledger
        self._source, self._target, self._validation = source, target, validation

    def all(self) -> Iterator[Part]:
        """Yield them in their order."""
        settings, folder = self._experiment.self_training, self._ledger.folder
        yield from self._source_training()
        yield from self._evaluated(0)
        for epoch in self._snapshot_epochs():
            yield from self._evaluated(0, epoch)
        if settings.rounds and settings.uses_prior and settings.spatial_prior.file is None:
            yield from self._group(find_step(folder, PRIOR), 0, {"spatial prior": self._source}, staged=False)
        for index in range(1, settings.rounds + 1):
            # every image is looked at once for its confidences, and once for its labels
            yield from self._group(find_step(folder, LABELS, index), index, {"pseudo-labels": 2 * self._target})
            images = len(source_indices(self._experiment, index, self._source)) + self._target
            total = count_iterations(settings.retraining, images)
            size = settings.retraining.batch_size
            yield from self._group(find_step(folder, RETRAINING, index), index, {"training": total}, size=size)
            yield from self._evaluated(index)
        if settings.rounds:
            done = folder.last.guard.is_file()
            yield self._part(settings.rounds, LAST_LOOK, self._target, done=done)

    def _source_training(self) -> Iterator[Part]:
        step, training = find_step(self._ledger.folder, SOURCE), self._experiment.source_training
        warm_up = self._experiment.warm_up
        if training is not None:
            total = count_iterations(training, self._source)
            # the time of both is one line of the ledger: of none of them where there are two
            timed = warm_up is None
            yield from self._group(step, 0, {"training": total}, size=training.batch_size, timed=timed)
        if warm_up is not None:
            total = count_iterations(warm_up.optimiser, self._source + self._target)
            size = 2 * warm_up.optimiser.batch_size  # of the source and of the target
            timed = training is None
            yield from self._group(step, 0, {"warm-up": total}, size=size, staged=False, timed=timed)

    def _snapshot_epochs(self) -> list[int]:
        """Return the epochs at which the source training keeps its network, or has kept it."""
        training = self._experiment.source_training
        if training is None or not training.snapshots:
            return self._ledger.folder.snapshots()
        every = iterations_of_epochs(training.snapshots, images=self._source, batch_size=training.batch_size)
        total = count_iterations(training, self._source)
        kept = sorted({*range(every, total + 1, every), total})
        return [-(-training.snapshots * iteration // every) for iteration in kept]

    def _evaluated(self, index: int, epoch: int | None = None) -> Iterator[Part]:
        """Yield the looks of a network at the validation sets, or at the target where there is none."""
        steps = {f"evaluation on {name}": number for name, number in self._validation.items()}
        if not steps or epoch is not None:
            steps = {"predictions of the target": self._target, **steps}
        step = find_step(self._ledger.folder, EVALUATION, index, epoch=epoch)
        title = None if epoch is None else f"source after {epoch} epochs"
        yield from self._group(step, index, steps, title=title)

    def _group(
        self,
        step: Step,
        stage: int,
        totals: Mapping[str, int],
        *,
        size: int = 1,
        title: str | None = None,
        staged: bool = True,
        timed: bool = True,
    ) -> Iterator[Part]:
        """Yield the parts of one step of the run; its time in the ledger is spread over them by their numbers."""
        done = step.last.is_file() and step.name not in self._ledger.rejected
        seconds = self._seconds(step) if done and timed else None
        for name, total in totals.items():
            own = None if seconds is None else seconds * total / max(1, sum(totals.values()))
            yield self._part(stage, name, total, size=size, title=title, staged=staged, done=done, seconds=own)

    def _part(
        self,
        stage: int,
        name: str,
        total: int,
        *,
        size: int = 1,
        title: str | None = None,
        staged: bool = True,
        done: bool = False,
        seconds: float | None = None,
    ) -> Part:
        run = self._experiment.name
        what = f"{run}, {title or stage_title(stage)}: {name}" if staged else f"{run}, {name}"
        return Part(run, stage, name, what, total, size, done, seconds)

    def _seconds(self, step: Step) -> float | None:
        """Return how long a step took; None where the ledger does not know, as for what it took over from elsewhere."""
        entry = self._ledger.finished(step)
        if entry is None or not entry.end or entry.note:
            return None
        return (datetime.fromisoformat(entry.end) - datetime.fromisoformat(entry.begun)).total_seconds()
