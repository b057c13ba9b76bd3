"""The rules of the thresholds: ranks, policies by all their names, JSON."""

from __future__ import annotations

import numpy as np
import pytest

from cbst_mx.errors import ConfigError
from cbst_mx.selftrain import thresholds as front_door
from cbst_mx.selftrain.thresholds import POLICIES, Rank, Thresholds, rank, threshold_rule


def test_thresholds_say_infinity_and_zero_in_json():
    thresholds = Thresholds("class-balanced", "paper", 0.2, np.float32([0.5, np.inf, 0]), np.array([4, 0, 1]))
    stored = thresholds.to_json()
    assert stored["threshold"] == [0.5, None, 0.0]
    assert stored["kc"][1:] == [None, None]
    assert stored["count"] == [4, 0, 1]
    np.testing.assert_array_equal(thresholds.limits, np.float32([0.5, np.inf, np.finfo(np.float32).tiny]))


@pytest.mark.parametrize(
    ("count", "portion", "paper", "released"), [(10, 0.25, 2, 2), (14, 0.25, 4, 3), (7, 0.5, 4, 3), (1, 0.2, 0, 0)]
)
def test_rank(count, portion, paper, released):
    assert (rank(portion, count), rank(portion, count, "released")) == (paper, released)


def test_thresholds_are_compared_as_objects():
    one, other = (Thresholds("global", "paper", 0.2, np.float32([0.5, 0.5]), np.array([1, 1])) for _ in range(2))
    assert one == one  # noqa: PLR0124
    assert one != other


def test_policies_have_the_names_of_the_methods_and_of_their_rules():
    assert [threshold_rule(name) for name in ("st", "cbst", "cbst-sp")] == ["global", *2 * ["class-balanced"]]
    assert [threshold_rule(name) for name in POLICIES] == list(POLICIES)
    with pytest.raises(ConfigError, match="^policy must be one of st, cbst, cbst-sp, global, class-balanced, got"):
        threshold_rule("best")


def test_a_policy_is_one_function(monkeypatch):
    def top_ten(portion, counts, fidelity):
        return [Rank(index, 10) if count >= 10 else 0.5 for index, count in enumerate(counts)]

    monkeypatch.setitem(POLICIES, "top ten", top_ten)
    rng = np.random.default_rng(0)
    maps = rng.dirichlet([1, 1, 0.1], (20, 30)).transpose(2, 0, 1)
    maps[2, 0] = 0  # class 2 is not predicted in the first row
    found = front_door(list(maps[None].astype(np.float32)), policy="top ten", origin="scores")
    for index, (value, count) in enumerate(zip(found.values, found.counts)):
        own = np.sort(maps.astype(np.float32).max(axis=0)[maps.argmax(axis=0) == index])[::-1]
        assert count == len(own)
        assert value == (own[9] if count >= 10 else np.float32(0.5))
