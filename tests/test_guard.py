"""Signs of a collapse: classes that swallow others, that vanish, and a distribution that moves."""

from __future__ import annotations

import numpy as np
import pytest

from cbst_mx.selftrain.guard import extremes, signs

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


MANY = tuple(f"class {c}" for c in range(19))


def shares(*largest, classes=19, pixels=10**6):
    """Return counts: some shares, the rest evenly over the other classes."""
    rest = (1 - sum(largest)) / max(1, classes - len(largest))
    return [round(pixels * share) for share in (*largest, *[rest] * (classes - len(largest)))]


def test_a_rare_class_that_is_gone_is_named():
    first = (500_000, 499_000, 700, 300)  # both below 0.1 %
    assert signs((500_300, 499_000, 700, 0), first, NAMES) == [
        "rider is predicted at 0 % of the pixels, at first 0.03 %: the class is being lost"
    ]
    assert signs((500_200, 499_000, 700, 100), first, NAMES) == []
    assert signs((500_000, 500_000, 0, 0), (500_000, 499_950, 20, 30), NAMES) == []  # a few pixels are noise


def test_healthy_predictions_have_no_extremes():
    assert extremes(shares(0.29), MANY) == []
    assert extremes(shares(0.6), MANY) == []
    assert extremes(shares(0.75, classes=21), [*MANY, "a", "b"]) == []  # a background
    assert extremes(shares(0.97, classes=2), NAMES[:2]) == []
    assert extremes(shares(0.4, 0.3, 0.1, 0.1, 0.06, 0.02, 0.01, 0.005, 0.004, 0.001), MANY) == []


@pytest.mark.parametrize(
    ("counts", "share"),
    [
        (shares(1.0), "100"),  # a constant predictor, which no comparison with its start shows
        (shares(0.99), "99"),
        (shares(0.83), "83"),
        (shares(0.92, classes=4), "92"),
        (shares(0.99, classes=2), "99"),
    ],
)
def test_a_class_that_takes_nearly_all_pixels_is_named_whatever_was_before(counts, share):
    names = MANY[: len(counts)]
    assert signs(counts, counts, names) == []
    assert extremes(counts, names)[0] == (
        f"{share} % of the pixels are predicted as class 0, one class of {len(counts)}: the network predicts nearly "
        "the same everywhere, and its pseudo-labels will say so"
    )
    assert extremes([count // 10**5 for count in counts], names) == []  # a handful of pixels
