"""The record of the rollbacks of rounds, and what each rejects.

A rollback is first written into ``rollback.json``, then the steps that it rejects lose their place in the ledger, then
their files go, ``training.json`` last. So whatever is killed in between is seen: the record counts more rollbacks than
``training.json``. Until the next command ends such a rollback, the ledger is read as if that were done.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from cbst_mx.errors import RunError
from cbst_mx.files import read_json, read_mapping, write_json
from cbst_mx.run_dir.folder import RunDir
from cbst_mx.run_dir.steps import EVALUATION, LABELS, RETRAINING, Step, find_step

__all__ = ["add_rollback", "find_unfinished", "read_rollbacks", "rejected_steps"]


def read_rollbacks(folder: RunDir, index: int) -> list[dict[str, Any]]:
    """Return the record of the rollbacks of round `index`: ``signs`` and ``learning_rate_factor`` of each.

    Raises
    ------
    RunError
        If the file is damaged, or of another run.
    """
    path = folder.stage(index).rollback
    if not path.is_file():
        return []
    way = "put it back from a copy, or remove it to begin the round with its full learning rate"
    try:
        value = read_json(path)
    except RunError as error:
        raise RunError(f"{error}: {way}") from error
    found = value.get("rollbacks") if isinstance(value, dict) else None
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise RunError(f"{path} must hold a list of rollbacks, got {type(found).__name__}: {way}")
    if value.get("of") not in (None, _start(folder, index)):
        raise RunError(f"{path} is of another run, or the round starts from another network since: {way}")
    return found


def _start(folder: RunDir, index: int) -> str | None:
    """Return the digest of the parameters that round `index` starts from, as their sidecar has it."""
    with contextlib.suppress(RunError):
        return read_mapping(Path(f"{folder.stage(index - 1).parameters}.json")).get("sha256")
    return None


def add_rollback(folder: RunDir, index: int, signs: list[str], *, factor: float) -> int:
    """Record one more rollback of round `index`, and return how many there are.

    Parameters
    ----------
    folder : RunDir
        The run folder.
    index : int
        Round, 1 is the first.
    signs : list of str
        Reasons.
    factor : float
        Factor of the learning rate by each rollback.
    """
    record = [*read_rollbacks(folder, index), {"signs": signs}]
    for number, one in enumerate(record, 1):
        one["learning_rate_factor"] = factor**number
    write_json(folder.stage(index).rollback, {"of": _start(folder, index), "rollbacks": record}, sealed=True)
    return len(record)


def rejected_steps(folder: RunDir, index: int) -> list[Step]:
    """Return the steps that a rollback of round `index` rejects, the last first."""
    steps = (LABELS, index + 1), (EVALUATION, index), (RETRAINING, index)
    return [find_step(folder, kind, stage) for kind, stage in steps]


def find_unfinished(folder: RunDir) -> list[int]:
    """Return the rounds of which a rollback is recorded, but not the training that it rejects removed.

    Raises
    ------
    RunError
        If a record is damaged.
    """
    names = [path.parent.name[len("round-") :] for path in folder.path.glob("round-*/rollback.json")]
    rounds = sorted(int(name) for name in names if name.isdecimal())
    return [index for index in rounds if _trained_before(folder, index, len(read_rollbacks(folder, index)))]


def _trained_before(folder: RunDir, index: int, rollbacks: int) -> bool:
    """Return whether the training of a round that is there is from before the last of its rollbacks."""
    path = folder.stage(index).training
    if not path.is_file():
        return False
    with contextlib.suppress(RunError, TypeError):  # damaged: whoever needs it says so
        return len(read_mapping(path).get("rollbacks", ())) < rollbacks
    return False
