"""Thresholds exp(-k) and exp(-k_c): what they are and the rules of their ranks, without any array library but numpy.

C classes, n pixels, p the portion in (0, 1], k and k_c in nats. A pixel of confidence max_c p_n(c) belongs to its
predicted class argmax_c p_n(c); N_c pixels belong to class c. With the confidences of a pool in descending order,
exp(-k) is the value ranked round(p * n) over all pixels (Algorithm 1) and exp(-k_c) the one ranked round(p * N_c) over
the pixels of c (Algorithm 2); ``round`` is Python's: halves to even. Pixels at the threshold are kept, so ties may keep
more than that portion.

The rules of the authors' released program, ``fidelity="released"``, differ: every 4th pixel of an image and predicted
class enters the pool, the pool of a class starts with one extra 0.0, the pool of all pixels with one more besides those
of all C classes, and the rank is floor(p * length). A class whose rank is 0 gets the threshold 1; so does one whose
threshold would be 0 or less, because the rank falls on an extra zero or the confidences are 0 (where a prior is). The
program is known to do so per class; the one threshold for all classes follows the same rule here, since 0 would keep
every pixel.

A policy says which rank of which pool is the threshold of each class, or gives the threshold itself. One more policy is
one function in ``POLICIES``: sorting (``kc``) and counting (``counting``) both find the values for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Callable, List, NamedTuple, Union

import numpy as np

from cbst_mx import METHODS
from cbst_mx.errors import ConfigError, check_choice

__all__ = [
    "FIDELITIES",
    "POLICIES",
    "RELEASED_STEP",
    "Rank",
    "Thresholds",
    "as_thresholds",
    "check_fidelity",
    "check_policy",
    "check_portion",
    "find_values",
    "keep_none",
    "rank",
    "threshold_rule",
]

FIDELITIES = ("paper", "released")
RELEASED_STEP = 4  # pixels of an image and predicted class of which one enters the pool


def check_portion(portion: float) -> None:
    """Refuse a portion p outside (0, 1].

    Raises
    ------
    ConfigError
        If it is outside or NaN.
    """
    if not 0 < portion <= 1:  # also refuses NaN
        raise ConfigError(f"portion must be in (0, 1], got {portion}")


def check_fidelity(fidelity: str) -> None:
    """Refuse an unknown set of rules.

    Raises
    ------
    ConfigError
        If `fidelity` is not one of ``FIDELITIES``.
    """
    check_choice("fidelity", fidelity, FIDELITIES)


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


def keep_none(fidelity: str) -> float:
    """Return the threshold of a class of which nothing may be kept."""
    return math.inf if fidelity == "paper" else 1.0


def as_thresholds(values: np.ndarray, fidelity: str) -> np.ndarray:
    """Return the confidences at the ranks, float32 (C,), as thresholds: by the released rules 1 instead of 0 or less.

    By the paper's rules a confidence of 0 is a threshold like any other and keeps every pixel.
    """
    if fidelity == "paper":
        return values
    return np.where(values > 0, values, np.float32(keep_none(fidelity)))


# -------------------------------------------------------------------------------------------------------- policies


class Rank(NamedTuple):
    """A threshold that is the confidence at a rank of a pool."""

    pool: int  # class whose confidences are ranked; C for those of all classes together
    position: int  # 1 for the largest


#: One entry per class: the rank whose confidence is its threshold, or the threshold itself.
Ranks = List[Union[Rank, float]]


def _ranked(pool: int, count: int, zeros: int, portion: float, fidelity: str) -> Rank | float:
    """Return the rank that is a portion of a pool of `count` confidences and, by the released rules, extra zeros."""
    position = rank(portion, count + zeros, fidelity) if count else 0
    if position == 0:
        return keep_none(fidelity)
    return Rank(pool, position) if position <= count else 0.0  # one of the zeros, which sort last


def _one_for_all(portion: float, counts: np.ndarray, fidelity: str) -> Ranks:
    """Algorithm 1 (ST): the same rank over all pixels for every class."""
    classes = len(counts)
    zeros = 0 if fidelity == "paper" else 1 + classes
    return [_ranked(classes, int(counts.sum()), zeros, portion, fidelity)] * classes


def _one_per_class(portion: float, counts: np.ndarray, fidelity: str) -> Ranks:
    """Algorithm 2 (CBST): each class's rank over the pixels predicted as it."""
    zeros = 0 if fidelity == "paper" else 1
    return [_ranked(index, int(count), zeros, portion, fidelity) for index, count in enumerate(counts)]


#: Rule name -> (p, N_c int64 (C,), fidelity) -> ranks.
POLICIES: dict[str, Callable[[float, np.ndarray, str], Ranks]] = {
    "global": _one_for_all,
    "class-balanced": _one_per_class,
}


def threshold_rule(policy: str) -> str:
    """Return the threshold rule of a method of the paper; a rule's own name is returned as it is.

    Parameters
    ----------
    policy : {"st", "cbst", "cbst-sp"} or rule
        ST has one threshold for all classes (Algorithm 1, "global"), CBST one per class (Algorithm 2,
        "class-balanced"); CBST-SP is CBST on probabilities that are multiplied by a spatial prior.

    Raises
    ------
    ConfigError
        If `policy` is neither a method nor one of ``POLICIES``.

    Examples
    --------
    >>> threshold_rule("st"), threshold_rule("cbst-sp"), threshold_rule("global")
    ('global', 'class-balanced', 'global')
    """
    rule = METHODS.get(policy, policy)
    if rule not in POLICIES:
        raise ConfigError(f"policy must be one of {', '.join([*METHODS, *POLICIES])}, got {policy!r}")
    return rule


def check_policy(policy: str, portion: float) -> None:
    """Refuse an unknown threshold rule and a portion outside (0, 1].

    Raises
    ------
    ConfigError
        If either is not allowed.
    """
    check_portion(portion)
    check_choice("policy", policy, POLICIES)


# ------------------------------------------------------------------------------------------------------ thresholds


@dataclass(frozen=True, eq=False)
class Thresholds:
    """Thresholds of one pseudo-labelling pass.

    Attributes
    ----------
    policy : str
        Rule of the thresholds, of ``POLICIES``: "global" is one for all classes (ST), "class-balanced" one per class
        (CBST).
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
        """What probabilities are divided by, float32 (C,), above 0: the smallest float in place of a threshold of 0.

        No pool holds a confidence of 0, so only thresholds that were set by hand are 0.
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


def find_values(
    policy: str, portion: float, counts: np.ndarray, fidelity: str, value: Callable[[Rank], float]
) -> Thresholds:
    """Determine the thresholds of a policy from the confidences at its ranks.

    Parameters
    ----------
    policy : str
        Threshold rule, of ``POLICIES``.
    portion : float
        p in (0, 1].
    counts : ndarray of shape (C,), int64
        N_c of the pools.
    fidelity : {"paper", "released"}
        Whose rules they follow.
    value : callable
        Gives the confidence at a :class:`Rank`; called once for each that differs.

    Raises
    ------
    ConfigError
        If the policy or the portion is not allowed.
    """
    check_policy(policy, portion)
    ranks = POLICIES[policy](portion, counts, fidelity)
    found = {wanted: value(wanted) for wanted in dict.fromkeys(ranks) if isinstance(wanted, Rank)}
    values = np.array([found[wanted] if isinstance(wanted, Rank) else wanted for wanted in ranks], dtype=np.float32)
    return Thresholds(policy, fidelity, float(portion), as_thresholds(values, fidelity), counts)
