"""One tiny experiment on a few generated scenes: the demo's, with a network and phases that take a second."""

from __future__ import annotations

from pathlib import Path

from cbst_mx.config import Experiment, load_experiment
from cbst_mx.data.street_scenes import Shift, write_demo_data

DEMO = Path(__file__).resolve().parents[1] / "experiments" / "demo.yaml"
# What makes the demo tiny, as --set takes it.
CHANGES = (
    "network.options={width: 0.03125, batch_norm: batch, dropout: 0.1}",
    "augmentation.crop=[32, 64]",
    "source_training={iterations: 12, batch_size: 4, learning_rate: 0.05, checkpoint_every: 5}",
    "self_training.retraining={iterations: 4, batch_size: 4, learning_rate: 0.01}",
    "self_training.target_per_batch=2",
    "self_training.rounds=2",
    "self_training.spatial_prior={grid: [16, 32]}",
)


def experiment(*changes: str) -> Experiment:
    """Return the tiny experiment with further `changes`, each ``key=value``."""
    return load_experiment(DEMO, (*CHANGES, *changes))


def options(*changes: str) -> list[str]:
    """Return the arguments of a command that make ``demo.yaml`` the tiny experiment with further `changes`."""
    return [part for change in (*CHANGES, *changes) for part in ("--set", change)]


def write_scenes(
    root: Path,
    *,
    source: int = 8,
    source_val: int = 2,
    target: int = 5,
    target_val: int = 3,
    size: tuple[int, int] = (32, 64),
) -> Path:
    """Write so many scenes of each set, of `size` (rows, columns), into `root`, which then serves as CBST_DATA."""
    counts = {"source_count": source, "source_val_count": source_val}
    counts.update(target_count=target, target_val_count=target_val)
    write_demo_data(root, **counts, size=size, seed=0, shift=Shift())
    return root
