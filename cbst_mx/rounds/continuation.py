"""What a run that goes on has to know: whose a checkpoint is, with how many threads it began, where it can go from."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from cbst_mx.config import Experiment, Optimiser
from cbst_mx.errors import RunError
from cbst_mx.files import read_json
from cbst_mx.run_dir import RunDir
from cbst_mx.training.checkpoints import count_threads

__all__ = ["lower_rate", "phase_identity", "warn_of_threads"]

logger = logging.getLogger(__name__)

# Settings that no training phase depends on.
_BESIDE = ("name", "validation", "evaluation", "inference_batch", "smoke")
_BESIDE_ROUNDS = ("rounds", "flip", "scales", "long_side", "upsampling", "keep_maps")
_BESIDE_OPTIMISER = ("checkpoint_every", "checkpoint_minutes", "snapshots")


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
        Stage, phase, network, and the SHA-256 of the settings that can change the phase's numbers.
    """
    values = json.loads(json.dumps(experiment.identity))
    for key in _BESIDE:
        values.pop(key, None)
    if index == 0:
        values.pop("self_training", None)
        if phase == "training":
            values.pop("warm_up", None)
    rounds, warm_up = values.get("self_training") or {}, values.get("warm_up") or {}
    for key in _BESIDE_ROUNDS:
        rounds.pop(key, None)
    for optimiser in (values.get("source_training"), rounds.get("retraining"), warm_up.get("optimiser")):
        for key in _BESIDE_OPTIMISER:
            (optimiser or {}).pop(key, None)
    spec = experiment.network_spec()
    return {
        "settings": hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest(),
        "stage": index,
        "phase": phase,
        "network of": [spec.name, spec.num_classes, json.loads(json.dumps(spec.options))],
    }


def lower_rate(experiment: Experiment, index: int, checkpoint: Path, *, warm_up: bool = False) -> str:
    """Return how the learning rate of a phase that diverged is lowered, as the end of a sentence.

    A folder keeps to its settings, so it is a new one; what is done before the phase is taken over.

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
    advice = f"--set {key}.learning_rate={optimiser.learning_rate / 2:g} and a new folder for --out"
    if index:
        source = checkpoint.parent.parent / "source" / "parameters.params"
        skipped = " --set warm_up=null" if experiment.warm_up is not None else ""
        advice += f", with --init {source}{skipped} the source network is not trained again"
    return advice


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
