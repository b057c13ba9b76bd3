"""Lines of the ledger for finished steps that have none: folders from before there were ledgers, interrupted ends."""

from __future__ import annotations

import contextlib
import logging
from typing import Any, Callable, Iterator, Sequence

import numpy as np

from cbst_mx.config import Experiment
from cbst_mx.data.image_files import read_label
from cbst_mx.data.label_counts import count_values
from cbst_mx.errors import CBSTError
from cbst_mx.evaluation.run_experiment import load_run_experiment
from cbst_mx.files import file_digest, read_json
from cbst_mx.networks.sidecars import read_sidecar
from cbst_mx.rounds.dependencies import step_keys
from cbst_mx.run_dir import RunDir
from cbst_mx.run_dir.ledger import Entry, Ledger, now
from cbst_mx.run_dir.steps import EVALUATION, LABELS, RETRAINING, SOURCE, Step

__all__ = ["ADOPTED", "experiment_before", "found_entries"]

logger = logging.getLogger(__name__)

ADOPTED = "adopted"  # note of steps of which the ledger says what was found, not what was written


def experiment_before(folder: RunDir) -> Experiment | None:
    """Return the experiment as it was last run in a folder; None where it never was, or its file was altered."""
    try:
        return load_run_experiment(folder) if folder.experiment.is_file() else None
    except CBSTError as error:
        logger.warning("%s", error)
        return None


def found_entries(
    before: Experiment | None,
    folder: RunDir,
    ledger: Ledger,
    steps: Sequence[Step],
    keys_of: Callable[[Step], dict[str, Any]],
) -> Iterator[Entry]:
    """Yield lines for the finished steps that have none; not for those whose files do not fit together.

    Parameters
    ----------
    before : Experiment, optional
        The experiment as it was last run in the folder.
    folder, ledger
        The run folder and its ledger.
    steps : sequence of Step
        The steps to look for.
    keys_of : callable
        Returns the settings and meanings that can change a step, as they are now.
    """
    for step in steps:
        if not step.last.is_file() or ledger.finished(step) is not None or _is_unfit(folder, step):
            continue
        begun, keys = ledger.begun(step), keys_of(step)  # killed before it could write its line, or older than ledgers
        if begun is not None:
            keys = begun.keys
        elif before is not None:  # what labels mean was not recorded
            keys = {key: keys[key] for key in keys if ":" in key or key == "classes"}
            keys.update(step_keys(before, step.kind, step.stage))
        outputs = ledger.outputs(step)
        if step.kind in (SOURCE, RETRAINING):
            _expect_parameters(folder, step, outputs)
        yield Entry(
            step.name,
            now() if begun is None else begun.begun,
            0 if before is None else before.seed,
            keys,
            {} if begun is None else begun.inputs,
            end=now(),
            outputs=outputs,
            versions={} if begun is None else begun.versions,
            note=ADOPTED,
        )


def _expect_parameters(folder: RunDir, step: Step, outputs: dict[str, Any]) -> None:
    """Let the digest in the sidecar of parameters be what is expected of them."""
    parameters = folder.stage(step.stage).parameters
    with contextlib.suppress(CBSTError, OSError):
        name = parameters.relative_to(folder.path).as_posix()
        outputs[name] = {"bytes": 0, "time": "", **outputs.get(name, {}), "sha256": read_sidecar(parameters)[2]}
        if parameters.is_file() and file_digest(parameters) != outputs[name]["sha256"]:
            outputs[name]["time"] = ""  # so that it is read, whatever its size


def _is_unfit(folder: RunDir, step: Step) -> bool:
    """Return whether the files of a finished step contradict one another, as far as they can without a ledger."""
    stage = folder.stage(step.stage)
    try:
        if step.kind == LABELS and not stage.training.is_file():
            kept = np.zeros(256, np.int64)
            for path in stage.pseudo_labels.glob("*.png"):
                kept += count_values(read_label(path))[:256]
            record = read_json(step.last)["kept"]
            return list(kept[: len(record)]) != record
        return not isinstance(read_json(step.last), dict) if step.kind in (LABELS, EVALUATION) else False
    except (CBSTError, KeyError, TypeError, ValueError):
        return True
