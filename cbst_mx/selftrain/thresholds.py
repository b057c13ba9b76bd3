"""Thresholds exp(-k) and exp(-k_c): what they are and the rules of their ranks, without any array library but numpy.

C classes, n pixels, p the portion in (0, 1], k and k_c in nats. A pixel of confidence max_c p_n(c) belongs to its
predicted class argmax_c p_n(c); N_c pixels belong to class c. With the confidences of a pool in descending order,
exp(-k) is the value ranked round(p * n) over all pixels and exp(-k_c) the one ranked round(p * N_c) over the pixels of
c (``round`` is Python's: halves to even). Pixels at the threshold are kept, so ties may keep more than that portion.

The rules of the authors' released program, ``fidelity="released"``, differ: every 4th pixel of an image and predicted
class enters the pool, the pool of a class starts with one extra 0.0, the pool of all pixels with one more besides those
of all C classes, and the rank is floor(p * length). A class whose rank is 0 gets the threshold 1; so does one whose
threshold would be 0 or less, because the rank falls on an extra zero or the confidences are 0 (where a prior is). The
program is known to do so per class; the one threshold for all classes follows the same rule here, since 0 would keep
every pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from cbst_mx.errors import ConfigError
from cbst_mx.selftrain.portion import check_portion

__all__ = [
    "FIDELITIES",
    "POLICIES",
    "RELEASED_STEP",
    "Thresholds",
    "check_fidelity",
    "check_policy",
    "extra_zeros",
    "nothing",
    "rank",
    "settled",
    "threshold_rule",
]

FIDELITIES = ("paper", "released")
POLICIES = ("global", "class-balanced")
_RULE_OF_METHOD = {"st": "global", "cbst": "class-balanced", "cbst-sp": "class-balanced"}
RELEASED_STEP = 4  # pixels of an image and predicted class of which one enters the pool


def check_fidelity(fidelity: str) -> None:
    """Refuse an unknown set of rules.

    Raises
    ------
    ConfigError
    """
    if fidelity not in FIDELITIES:
        raise ConfigError(f"fidelity must be one of {', '.join(FIDELITIES)}, got {fidelity!r}")


def check_policy(policy: str, portion: float) -> None:
    """Refuse an unknown policy and a portion outside (0, 1].

    Raises
    ------
    ConfigError
    """
    check_portion(portion)
    if policy not in POLICIES:
        raise ConfigError(f"policy must be one of {', '.join(POLICIES)}, got {policy!r}")


def threshold_rule(policy: str) -> str:
    """Return the threshold rule of a method of the paper; a rule's own name is returned as it is.

    Parameters
    ----------
    policy : {"st", "cbst", "cbst-sp", "global", "class-balanced"}
        ST has one threshold for all classes (Algorithm 1, "global"), CBST one per class (Algorithm 2,
        "class-balanced"); CBST-SP is CBST on probabilities that are multiplied by a spatial prior.

    Raises
    ------
    ConfigError
        If it is none of these.

    Examples
    --------
    >>> threshold_rule("st"), threshold_rule("cbst-sp"), threshold_rule("global")
    ('global', 'class-balanced', 'global')
    """
    rules = {**_RULE_OF_METHOD, **{rule: rule for rule in POLICIES}}
    if policy not in rules:
        raise ConfigError(f"policy must be one of {', '.join(rules)}, got {policy!r}")
    return rules[policy]


def rank(portion: float, count: int, fidelity: str = "paper") -> int:
    """Return the 1-based rank, in descending order, of the confidence that is the threshold; 0 keeps nothing.

    Parameters
    ----------
    portion : float
        p in (0, 1].
    count : int
        Length of the pool.
    fidelity : {"paper", "released"}
        ``round(p * count)`` or ``floor(p * count)``.
    """
    return int(round(portion * count)) if fidelity == "paper" else int(math.floor(portion * count))


def extra_zeros(policy: str, num_classes: int, fidelity: str) -> int:
    """Return how many zeros a pool starts with: those the released rules add, none otherwise."""
    if fidelity == "paper":
        return 0
    return 1 + num_classes if policy == "global" else 1


def nothing(fidelity: str) -> float:
    """Return the threshold of a class of which nothing may be kept."""
    return math.inf if fidelity == "paper" else 1.0


def settled(values: np.ndarray, fidelity: str) -> np.ndarray:
    """Return the confidences at the ranks, float32 (C,), as thresholds: by the released rules 1 instead of 0 or less.

    By the paper's rules a confidence of 0 is a threshold like any other and keeps every pixel.
    """
    if fidelity == "paper":
        return values
    return np.where(values > 0, values, np.float32(nothing(fidelity)))


@dataclass(frozen=True)
class Thresholds:
    """Thresholds of one pseudo-labelling pass.

    Attributes
    ----------
    policy : {"global", "class-balanced"}
        One threshold for all classes (ST) or one per class (CBST).
    fidelity : {"paper", "released"}
        Whose rules they follow.
    portion : float
        p.
    values : ndarray of shape (C,), float32
        exp(-k_c); infinity for a class of which nothing may be kept. Released rules: 1 instead of infinity and of 0.
    counts : ndarray of shape (C,), int64
        N_c, the pixels predicted as each class (with the released rules: those that entered the pool).
    """

    policy: str
    fidelity: str
    portion: float
    values: np.ndarray
    counts: np.ndarray

    @property
    def k(self) -> np.ndarray:
        """k_c in nats, float64 (C,); -infinity for a class of which nothing may be kept."""
        with np.errstate(divide="ignore"):  # a threshold of 0 or less keeps everything: k_c is infinite
            return -np.log(np.maximum(self.values.astype(np.float64), 0))

    @property
    def limits(self) -> np.ndarray:
        """What probabilities are compared with and divided by, float32 (C,), above 0.

        A threshold of 0 (the rank fell behind the last pixel) keeps everything: the smallest float stands for it.
        """
        return np.maximum(self.values, np.finfo(np.float32).tiny)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; None stands where nothing may be kept."""
        return {
            "policy": self.policy,
            "fidelity": self.fidelity,
            "portion": self.portion,
            "threshold": [float(value) if np.isfinite(value) else None for value in self.values],
            "kc": [float(value) if np.isfinite(value) else None for value in self.k],
            "count": [int(count) for count in self.counts],
        }
