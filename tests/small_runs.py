"""The smallest run of each kind, and the smallest labelling job: what the tests of faults break and go on with."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from cbst_mx.config import Experiment
from cbst_mx.labelling import MapFolder
from cbst_mx.labelling import run as run_label
from cbst_mx.rounds import Run
from tests import tiny

_SMALL = (
    "network.options={width: 0.015625, batch_norm: batch, dropout: 0.1}",
    "augmentation.crop=[32, 32]",
    "source_training={iterations: 3, batch_size: 2, learning_rate: 0.05, checkpoint_every: 2}",
    "self_training.retraining={iterations: 3, batch_size: 2, learning_rate: 0.01, checkpoint_every: 1}",
    "self_training.target_per_batch=1",
    "self_training.rounds=1",
)
#: Kind of run to its changes of the small one. Together they reach all that a run writes.
KINDS = {
    "st": ("self_training.method=st", "validation={}"),
    "cbst": ("self_training.keep_maps=disk", "self_training.rounds=2"),
    "cbst-sp": ("self_training.method=cbst-sp", "source_training.snapshots=1"),
    "warm-up": (
        "warm_up={optimiser: {iterations: 2, batch_size: 2, learning_rate: 0.01, checkpoint_every: 1}, "
        "discriminator_width: 4}",
    ),
    "recompute": ("self_training.keep_maps=recompute",),
}
#: And the labelling job beside them.
ALL = (*KINDS, "label")

_RUNS = {kind: tiny.experiment(*_SMALL, *changes) for kind, changes in KINDS.items()}


def experiment(kind: str) -> Experiment:
    """Return the experiment of a kind of run."""
    return _RUNS[kind]


def write_data(root: Path) -> Path:
    """Write the images, labels and class maps of all kinds."""
    tiny.write_scenes(root, source=4, source_val=1, target=3, target_val=2)
    maps = root / "maps"
    maps.mkdir()
    rng = np.random.default_rng(0)
    for index in range(4):
        values = np.exp(3 * rng.normal(size=(5, 6, 8)))
        np.save(maps / f"{index}.npy", (values / values.sum(axis=0)).astype(np.float32))
    return root


def go(kind: str, out: Path, data: Path, *, seed: int = 0) -> None:
    """Do, or go on with, the run or job of a kind in this process."""
    if kind == "label":
        run_label(MapFolder.open(data / "maps"), out, policy="class-balanced", portion=0.3, portions=(0.2, 0.5))
    else:
        Run(_RUNS[kind].model_copy(update={"seed": seed}), out, data_root=data).run()


def command(kind: str, out: Path, data: Path) -> list[str]:
    """Return the same as a command line."""
    if kind == "label":
        given = ["label", "--probabilities", data / "maps", "--portion", 0.3]
        return [str(part) for part in (*given, "--portions", "0.2,0.5", "--out", out)]
    changes = [part for change in (*_SMALL, *KINDS[kind]) for part in ("--set", change)]
    return ["run", str(tiny.DEMO), "--out", str(out), *tiny.options(), *changes]


def environment(data: Path) -> dict[str, str]:
    """Return the environment of such a command."""
    return {**os.environ, "CBST_DATA": str(data), "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
