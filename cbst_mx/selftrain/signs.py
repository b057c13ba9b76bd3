"""Kinds of signs that the guard sees in the predictions of a network, and what can be done about each."""

from __future__ import annotations

from typing import Any, NamedTuple, Sequence, Tuple

__all__ = ["ADVICE", "FAULTS", "NEWS", "OF_GUARD_ONLY", "Confidence", "Sign"]

Confidence = Tuple[Sequence[Any], Sequence[Any]]  # of every class, by the network before and by the one now


class Sign(NamedTuple):
    """One thing that speaks for a collapse.

    Attributes
    ----------
    kind : str
        "grown", "lost" or "appeared", a class; "missing", classes; or one of ``FAULTS``.
    sentence : str
        What was seen, with its numbers.
    train_id : int or None
        Class that is named.
    """

    kind: str
    sentence: str
    train_id: int | None = None

    @property
    def text(self) -> str:
        """The sentence with what can be done."""
        return f"{self.sentence}; {ADVICE[self.kind]}"


#: Kinds of signs that are about the whole network: under ``stop`` and ``rollback`` no round trains on it.
FAULTS = ("constant", "saturated", "renamed", "disagrees", "narrowed", "moved", "kept", "not finite", "diverged")
#: Kinds that :func:`find_signs` and :func:`extremes` do not find.
OF_GUARD_ONLY = ("saturated", "renamed", "disagrees", "narrowed", "kept", "missing")
#: Kinds that are no alarm.
NEWS = ("appeared",)

_GENTLER = "lower self_training.retraining.learning_rate or portion.step, or set self_training.guard.policy=rollback"
_LOOK = "look at its pseudo-labels in round-N/pseudo_labels"
#: Kind of sign to what can be done.
ADVICE = {
    "constant": "train the network longer, or at a lower learning rate, before it labels anything",
    "saturated": "train at a lower learning rate or for fewer iterations",
    "renamed": _GENTLER,
    "disagrees": _GENTLER,
    "narrowed": f"{_GENTLER}, and use cbst rather than st",
    "moved": _GENTLER,
    "kept": "train at a lower learning rate, so that confidences differ",
    "not finite": "train at a lower learning rate",
    "diverged": "train at a lower learning rate",
    "grown": f"{_LOOK}, and if they are wrong set self_training.guard.hold_back=true or cap_share=true",
    "lost": "lower self_training.retraining.learning_rate, or mine the class (self_training.mining.classes)",
    "appeared": f"{_LOOK}, if it is one that matters",
    "missing": "where the target has them, train the source network longer, or on more images that show them",
}
