"""Schedules over the rounds."""

from __future__ import annotations

import pytest

from cbst_mx.errors import ConfigError
from cbst_mx.selftrain.portion import learning_rate, portion


def test_the_papers_schedule_has_no_float_overshoot():
    assert [portion(r) for r in range(1, 10)] == [0.20, 0.25, 0.30, 0.35, 0.40, 0.45, 0.50, 0.50, 0.50]


def test_the_released_schedule_starts_lower():
    assert [portion(r, initial=0.15) for r in (1, 2, 6)] == [0.15, 0.20, 0.40]


def test_a_schedule_that_leaves_its_range_is_refused():
    with pytest.raises(ConfigError, match=r"portion must be in \(0, 1\], got 1.2"):
        portion(2, initial=0.7, step=0.5, maximum=2.0)


def test_learning_rate_per_round():
    assert learning_rate(1, initial=1e-4, factor=0.5) == 1e-4
    assert learning_rate(3, initial=1e-4, factor=0.5) == pytest.approx(2.5e-5)
