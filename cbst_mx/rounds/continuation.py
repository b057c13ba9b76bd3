"""What a run that goes on has to know: whose a checkpoint is, with how many threads it began, where it can go from."""

from __future__ import annotations

import json
import logging
import shlex
from pathlib import Path
from typing import Any

from cbst_mx.config import Experiment, Optimiser
from cbst_mx.errors import RunError
from cbst_mx.files import digest_of, read_json
from cbst_mx.rounds.dependencies import is_below, step_keys
from cbst_mx.run_dir import RunDir
from cbst_mx.run_dir.steps import LABELS, PRIOR, RETRAINING, SOURCE
from cbst_mx.training.checkpoints import count_threads

__all__ = ["lower_rate", "phase_identity", "warn_of_threads"]

logger = logging.getLogger(__name__)


def phase_identity(experiment: Experiment, index: int, phase: str) -> dict[str, Any]:
    """Return what tells a training phase from others: the identity of its checkpoints.

    Parameters
    ----------
    experiment : Experiment
        The experiment that is run.
    index : int
        Stage: 0 for the source training, else the round.
    phase : {"training", "warm-up"}
        Part of the stage.

    Returns
    -------
    dict
        Stage, phase, network, and the SHA-256 of the settings that can change the phase or a step before it.
    """
    steps = [(SOURCE, 0)]
    if index and experiment.self_training.uses_prior:
        steps.append((PRIOR, 0))
    steps += [(kind, stage) for stage in range(1, index + 1) for kind in (LABELS, RETRAINING)]
    settings = [step_keys(experiment, kind, stage) for kind, stage in steps]
    if (index, phase) == (0, "training"):
        settings = [{key: value for key, value in settings[0].items() if not is_below(key, ["warm_up"])}]
    spec = experiment.network_spec()
    return {
        "settings": digest_of(settings),
        "stage": index,
        "phase": phase,
        "network of": [spec.name, spec.num_classes, json.loads(json.dumps(spec.options))],
    }


def lower_rate(experiment: Experiment, index: int, checkpoint: Path, *, warm_up: bool = False) -> str:
    """Return how the learning rate of a phase that diverged is lowered, as the end of a sentence.

    A folder keeps to its settings, so it is a new one: of a round, a branch, which has all that was done before.

    Parameters
    ----------
    experiment : Experiment
        The experiment that is run.
    index : int
        Stage: 0 for the source training, else the round.
    checkpoint : Path
        File in the stage's folder.
    warm_up : bool
        Whether the phase is the warm-up.
    """
    optimiser: Optimiser | None
    if index:
        key, optimiser = "self_training.retraining", experiment.self_training.retraining
    elif warm_up:
        key, optimiser = "warm_up.optimiser", None if experiment.warm_up is None else experiment.warm_up.optimiser
    else:
        key, optimiser = "source_training", experiment.source_training
    assert optimiser is not None  # the phase is one of the experiment's
    change = f"--set {key}.learning_rate={optimiser.learning_rate / 2:g}"
    if not index:
        return f"{change} and a new folder for --out"
    run, begin = shlex.quote(str(checkpoint.parent.parent)), f"{checkpoint.parent.name}/retraining"
    return f"cbst-mx branch {run} --from {begin} {change} --out NEW makes a folder that goes on from here"


def warn_of_threads(folder: RunDir) -> None:
    """Log that stages of a run were computed with another number of threads, where they were."""
    before = None
    for path in folder.path.glob("*/training.json"):
        try:
            found = read_json(path).get("threads")
        except (RunError, AttributeError):  # whoever needs the record says what is wrong with it
            continue
        last = found[-1] if isinstance(found, list) and found else found
        if last != count_threads() and isinstance(last, int):
            before = last
    if before is not None:
        logger.warning(
            "this run began with %d threads (OMP_NUM_THREADS) and goes on with %d: sums are rounded otherwise, so the "
            "numbers are not those of a run with either throughout",
            before,
            count_threads(),
        )
