"""Sentences that stay short."""

from __future__ import annotations

import pytest

from cbst_mx.messages import listed, ranges, silent


@pytest.mark.parametrize(
    ("items", "shown", "what", "expected"),
    [
        ([], 5, "", ""),
        (["a"], 5, "image", "a"),
        (range(5), 5, "", "0, 1, 2, 3, 4"),
        (range(6), 5, "", "0, 1, 2, 3, 4 and 1 more"),
        (range(6), 5, "gap", "0, 1, 2, 3, 4 and 1 more gap"),
        (range(7), 5, "city", "0, 1, 2, 3, 4 and 2 more cities"),
        (range(2502), 1, "", "0 and 2,501 more"),
    ],
)
def test_listed(items, shown, what, expected):
    assert listed(items, shown, what) == expected


@pytest.mark.parametrize(
    ("numbers", "width", "expected"),
    [
        ([], 1, []),
        ([5], 1, ["5"]),
        ([255, *range(35), -1], 1, ["-1", "0-34", "255"]),
        ([-2, -1, 0, 1], 1, ["-2", "-1", "0-1"]),
        ([3, 4, 5, 2500], 5, ["00003-00005", "02500"]),
    ],
)
def test_ranges(numbers, width, expected):
    assert ranges(numbers, width) == expected


def test_silent_takes_what_progress_and_counters_are_given():
    assert silent("pixels", 1, 2) is silent(1, 2) is None
