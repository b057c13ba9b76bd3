"""Schedules over the rounds of self-training: the portion p and the learning rate."""

from __future__ import annotations

from cbst_mx.errors import ConfigError

__all__ = ["check_portion", "learning_rate", "portion"]


def check_portion(portion: float) -> None:
    """Refuse a portion p outside (0, 1].

    Raises
    ------
    ConfigError
    """
    if not 0 < portion <= 1:  # also refuses NaN
        raise ConfigError(f"portion must be in (0, 1], got {portion}")


def portion(round_index: int, *, initial: float = 0.20, step: float = 0.05, maximum: float = 0.50) -> float:
    """Return the portion p of a round: `initial`, then `step` more each round, at most `maximum`.

    Parameters
    ----------
    round_index : int
        1 for the first round.
    initial, step, maximum : float
        The paper's schedule is 0.20, 0.25, ..., 0.50.

    Returns
    -------
    float
        p in (0, 1], rounded to 10 decimals so that sums such as 0.2 + 3 * 0.05 do not overshoot `maximum`.

    Raises
    ------
    ConfigError
        If the result is outside (0, 1].
    """
    value = round(min(initial + (round_index - 1) * step, maximum), 10)
    check_portion(value)
    return value


def learning_rate(round_index: int, *, initial: float, factor: float = 1.0) -> float:
    """Return the learning rate of a round: `initial` times `factor` for every round before it (1 is the first)."""
    return initial * factor ** (round_index - 1)
