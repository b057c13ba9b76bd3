"""Signs of a collapse: classes that swallow others, that vanish, and a distribution that moves."""

from __future__ import annotations

import numpy as np
import pytest

from cbst_mx.selftrain.guard import signs

NAMES = ("road", "building", "truck", "rider")
FIRST = (5000, 4880, 100, 20)


def test_a_healthy_round_gives_no_sign():
    assert signs(FIRST, FIRST, NAMES) == []
    assert signs((5400, 4300, 199, 101), FIRST, NAMES) == []  # truck below 2 %, rider 5 times but still rare


def test_only_portions_count():
    assert signs(np.array(FIRST) * 7, FIRST, NAMES) == []


def test_a_class_that_swallows_others_is_named():
    assert signs((4700, 4580, 700, 20), FIRST, NAMES) == [
        "truck is predicted at 7 % of the pixels, at first 1 %: its pseudo-labels may be wrong"
    ]
    (sentence,) = signs((4900, 4780, 0, 320), (5000, 5000, 0, 0), NAMES)  # a class that was not there before
    assert sentence.startswith("rider is predicted at 3.2 % of the pixels, at first 0 %")


def test_a_class_that_vanishes_is_named():
    assert signs((5000, 4975, 25, 0), FIRST, NAMES) == [
        "truck is predicted at 0.25 % of the pixels, at first 1 %: the class is being lost",
        "rider is predicted at 0 % of the pixels, at first 0.2 %: the class is being lost",
    ]


def test_one_class_everywhere_is_a_collapse():
    found = signs((10000, 0, 0, 0), FIRST, NAMES)
    assert len(found) == 4
    assert found[-1] == "50 % of the pixels have moved to other classes since before round 1"


@pytest.mark.parametrize(("now", "first"), [((0, 0, 0, 0), FIRST), (FIRST, (0, 0, 0, 0))])
def test_without_pixels_there_is_nothing_to_say(now, first):
    assert signs(now, first, NAMES) == []
