"""What a rollback does to a run folder, and the end of one that was killed; see `rollbacks` for the order."""

from __future__ import annotations

from pathlib import Path

from cbst_mx.files import remove_file, remove_folder
from cbst_mx.run_dir.ledger import Ledger
from cbst_mx.run_dir.rollbacks import find_unfinished, rejected_steps

__all__ = ["reject", "settle"]


def settle(ledger: Ledger) -> None:
    """End the rollbacks that a process which was killed had begun.

    Raises
    ------
    RunError
        If a record is damaged.
    """
    for index in find_unfinished(ledger.folder):
        reject(ledger, index)


def reject(ledger: Ledger, index: int) -> None:
    """Take the training of round `index`, and what was made from it, out of the ledger and the folder."""
    folder = ledger.folder
    steps = rejected_steps(folder, index)
    ledger.void(steps)
    stage, after = folder.stage(index), folder.stage(index + 1)
    labels, evaluation, retraining = (step.files for step in steps)
    checkpoints = stage.path.glob(f"{stage.checkpoint.stem}*{stage.checkpoint.suffix}")
    for path in (*labels, after.guard, folder.last.guard, *evaluation, *checkpoints):
        _remove(path)
    for path in reversed(retraining):  # the file that marks the step as done goes last: until then this is repeated
        if path not in (stage.rollback, stage.guard):  # of the rounds before
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        remove_folder(path)
    else:
        remove_file(path)
