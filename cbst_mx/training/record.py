"""Record of a training phase: losses, norms of the gradient, learning rates, and the number of threads."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any, Sequence

from cbst_mx.training.checkpoints import count_threads

__all__ = ["CHECK_EVERY", "TrainingRecord", "note_threads"]

logger = logging.getLogger(__name__)

CHECK_EVERY = 20  # iterations from one loss in the record to the next


@dataclass
class TrainingRecord:
    """Record of a training phase: iterations done; loss, norm of the gradient and learning rate at every 20th of them.

    Attributes
    ----------
    iterations : int
        Iterations done.
    losses : list of float
        At every 20th iteration and at the last.
    gradient_norms : list of float or None
        At the same iterations; None where a gradient overflowed and its step was left out (float16).
    learning_rates : list of float
        Those of the same iterations.
    threads : list of int
        Numbers of threads it was computed with, one after the other; another number gives other last digits.
    """

    iterations: int = 0
    losses: list[float] = field(default_factory=list)
    gradient_norms: list[float | None] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)
    threads: list[int] = field(default_factory=lambda: [count_threads()])

    def note(self, losses: Sequence[float], norm: float | None, rate: float) -> None:
        """Add the loss of an iteration, the norm of its gradient and its learning rate."""
        self.losses.extend(losses)
        self.gradient_norms.append(norm)
        self.learning_rates.append(rate)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "iterations": self.iterations,
            "loss_every": CHECK_EVERY,
            "loss": self.losses,
            "gradient_norm": self.gradient_norms,
            "learning_rate": self.learning_rates,
            "threads": self.threads[0] if len(self.threads) == 1 else self.threads,
        }

    def to_state(self) -> dict[str, Any]:
        """Return what a checkpoint holds of it, as JSON values."""
        return {name: value for name, value in vars(self).items() if name != "iterations"}


def note_threads(before: Sequence[int]) -> list[int]:
    """Return the numbers of threads of a phase that goes on, the present one last; a change is logged."""
    now = count_threads()
    if before and before[-1] == now:
        return list(before)
    logger.warning(
        "continuing with %d threads (OMP_NUM_THREADS), before with %s: sums are rounded otherwise, so the numbers are "
        "not those of a run with either throughout",
        now,
        before[-1] if before else "an unknown number",
    )
    return [*before, now]
