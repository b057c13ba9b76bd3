"""Source training, then rounds of pseudo-labelling (step a) and retraining (step b): :class:`Run` in a run folder."""

from __future__ import annotations

from cbst_mx.rounds.run import Run

__all__ = ["Run"]
