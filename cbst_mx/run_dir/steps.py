"""The steps of a run: their names, their files, and the command that makes each again.

A step is finished when the file that it writes last is there and all its files are what the ledger says.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from cbst_mx.run_dir.folder import RunDir
from cbst_mx.run_dir.stage import StageDir

__all__ = ["EVALUATION", "KINDS", "LABELS", "PRIOR", "RETRAINING", "SOURCE", "Step", "all_steps", "find_step"]

SOURCE, PRIOR, LABELS, RETRAINING, EVALUATION = "source", "prior", "labels", "retraining", "evaluation"
#: What the steps do; the settings on which each depends are in `cbst_mx.rounds.dependencies`.
KINDS = (SOURCE, PRIOR, LABELS, RETRAINING, EVALUATION)


class Step(NamedTuple):
    """One step of a run in its folder."""

    kind: str  # one of KINDS
    stage: int  # 0 for the source network, else the round
    name: str  # in the ledger, such as "round-1/pseudo-labels"
    title: str  # in sentences
    files: tuple[Path, ...]  # files and folders it may write; the first is written last
    again: str  # command that makes it again, without experiment and folder
    epoch: int | None = None  # of an evaluated snapshot of the source training

    @property
    def last(self) -> Path:
        """File whose presence says that the step was finished."""
        return self.files[0]


def find_step(folder: RunDir, kind: str, stage: int = 0, *, epoch: int | None = None) -> Step:
    """Return one step.

    Parameters
    ----------
    folder : RunDir
        The run folder.
    kind : str
        One of `KINDS`.
    stage : int
        0 for the source network, else the round.
    epoch : int, optional
        Of the evaluation of a snapshot of the source training.
    """
    where = folder.stage(stage)
    name = where.path.name
    files: tuple[Path, ...]
    if kind == SOURCE:
        files = (where.training, *_network_files(where))
        files += tuple(file for number in folder.snapshots() for file in _network_files(folder.snapshot(number)))
        return Step(kind, 0, "source/training", "training of the source network", files, "source")
    if kind == PRIOR:
        return Step(kind, 0, "spatial-prior", "spatial prior", (folder.spatial_prior,), "run")
    if kind == LABELS:
        files = (where.thresholds, where.image_statistics, where.target_predictions, where.pseudo_labels)
        return Step(
            kind, stage, f"{name}/pseudo-labels", f"pseudo-labels of round {stage}", files,
            f"pseudo-label --round {stage}",
        )  # fmt: skip
    if kind == RETRAINING:
        files = (where.training, *_network_files(where), where.rollback, where.guard)
        title = f"retraining of round {stage}"
        return Step(kind, stage, f"{name}/retraining", title, files, f"retrain --round {stage}")
    title = f"evaluation of round {stage}" if stage else "evaluation of the source network"
    again = f"round --round {stage}" if stage else "source"
    if epoch is not None:
        where, name = folder.snapshot(epoch), f"source/snapshots/epoch-{epoch}"
        title = f"evaluation of the source network after {epoch} epochs"
    files = (where.evaluation, where.confusion, where.predictions, where.label_free, where.shown)
    return Step(EVALUATION, stage, f"{name}/evaluation", title, files, again, epoch)


def _network_files(where: StageDir) -> tuple[Path, Path]:
    return where.parameters, Path(f"{where.parameters}.json")


def all_steps(folder: RunDir, rounds: int, *, prior: bool) -> list[Step]:
    """Return the steps of a run in the order in which it does them.

    Parameters
    ----------
    folder : RunDir
        The run folder.
    rounds : int
        Number of rounds.
    prior : bool
        Whether they multiply by a spatial prior.
    """
    steps = [find_step(folder, SOURCE), find_step(folder, EVALUATION)]
    steps += [find_step(folder, EVALUATION, epoch=epoch) for epoch in folder.snapshots()]
    if prior:
        steps.append(find_step(folder, PRIOR))
    for index in range(1, rounds + 1):
        steps += [find_step(folder, kind, index) for kind in (LABELS, RETRAINING, EVALUATION)]
    return steps
