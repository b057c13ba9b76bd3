"""Signs of a collapse: classes that swallow others, that vanish, and a distribution that moves."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cbst_mx.errors import DataError
from cbst_mx.selftrain.guard import (
    ADVICE,
    FAULTS,
    NEWS,
    OF_GUARD_ONLY,
    agreement,
    effective_classes,
    extremes,
    factors,
    find_signs,
    judge,
    renamed,
    score,
    signs,
)

NAMES = ("road", "building", "truck", "rider")
FIRST = (5000, 4880, 100, 20)


def sentences(now, first):
    return [sign.sentence for sign in find_signs(now, first, NAMES)]


def test_a_healthy_round_gives_no_sign():
    assert signs(FIRST, FIRST, NAMES) == []
    assert signs((5400, 4300, 199, 101), FIRST, NAMES) == []  # truck below 2 %, rider 5 times but still rare


def test_only_portions_count():
    assert signs(np.array(FIRST) * 7, FIRST, NAMES) == []


def test_a_class_that_swallows_others_is_named():
    assert signs((4700, 4580, 700, 20), FIRST, NAMES) == [
        f"truck is predicted at 7 % of the pixels, at first 1 %: its pseudo-labels may be wrong; {ADVICE['grown']}"
    ]


APPEARED = ((4900, 4780, 0, 320), (5000, 5000, 0, 0))  # now, and at first


@pytest.mark.parametrize(
    ("confidence", "kind", "sentence"),
    [
        (None, "appeared", ": the class has appeared"),
        ([math.nan, 0.7], "appeared", ": the class has appeared"),  # it was not there a round before
        ([None, 0.7], "appeared", ": the class has appeared"),
        ([0.5, 0.7], "appeared", ": the class has appeared, and its mean confidence grows (0.50 to 0.70)"),
        ([0.7, 0.5], "grown", ", and its mean confidence falls (0.70 to 0.50): its pseudo-labels may be wrong"),
    ],
)
def test_a_class_that_appears_is_news_unless_its_confidence_falls(confidence, kind, sentence):
    both = None if confidence is None else tuple([0.9, 0.9, 0.9, one] for one in confidence)
    (sign,) = find_signs(*APPEARED, NAMES, both)
    assert (sign.kind, sign.train_id) == (kind, 3)
    assert sign.sentence == f"rider is predicted at 3.2 % of the pixels, at first 0 %{sentence}"
    assert len(signs(*APPEARED, NAMES, both)) == (kind == "grown")
    judged = judge(APPEARED[0], NAMES, first=APPEARED[1], confidence=both)
    assert judged.faults == ()
    assert [one["advice"] for one in judged.to_json()["signs"]] == [ADVICE[kind]]
    assert factors(*APPEARED, NAMES) == {3: 0.0}  # where a round is to hold back what has grown, it does so with this


def test_classes_that_are_never_predicted_are_named_before_round_1():
    many = [10_000, 9_000, *[0] * 9]
    names = [f"class {number}" for number in range(11)]
    (sign,) = judge(many, names).signs
    assert sign.kind == "missing"
    assert sign.sentence == (
        "9 of 11 classes are never predicted (class 2, class 3, class 4, class 5, class 6 and 4 more): "
        "self-training cannot bring them"
    )
    assert judge(many, names).faults == ()
    assert judge(many, names, first=many).signs == ()
    (sign,) = judge([10_000, 9_000, 0], names[:3]).signs
    assert sign.text == (
        f"1 of 3 classes is never predicted (class 2): self-training cannot bring it; {ADVICE['missing']}"
    )
    assert judge([400, 300, 0], names[:3]).signs == ()  # too few pixels to say anything


def test_every_kind_has_its_advice():
    assert set(ADVICE) == {*FAULTS, *OF_GUARD_ONLY, *NEWS, "grown", "lost"}
    assert all(ADVICE.values())


def test_a_class_that_vanishes_is_named():
    assert sentences((5000, 4975, 25, 0), FIRST) == [
        "truck is predicted at 0.25 % of the pixels, at first 1 %: the class is being lost",
        "rider is predicted at 0 % of the pixels, at first 0.2 %: the class is being lost",
    ]


def test_one_class_everywhere_is_a_collapse():
    found = sentences((10000, 0, 0, 0), FIRST)
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
    assert sentences((500_300, 499_000, 700, 0), first) == [
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
        f"the same everywhere, and its pseudo-labels will say so; {ADVICE['constant']}"
    )
    assert extremes([count // 10**5 for count in counts], names) == []  # a handful of pixels


# --------------------------------------------------------------------------------- one network against the one before


def grids(*rows):
    return {str(number): np.array([row], np.uint8) for number, row in enumerate(rows)}


def test_agreement_counts_what_became_of_every_class():
    before, now = grids([0, 0, 1, 255], [2, 2, 2, 2]), grids([0, 1, 1, 0], [2, 2, 0, 255])
    assert agreement(before, now, 3).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 2]]
    with pytest.raises(DataError, match="of the same images in the same sizes"):
        agreement(before, grids([0, 1, 1, 0]), 3)
    with pytest.raises(DataError, match="of classes 0 to 1 or 255, got others"):
        agreement(before, now, 2)


def test_classes_that_took_the_names_of_others_are_found():
    rng = np.random.default_rng(0)
    healthy = np.diag([5000, 3000, 1500, 490, 10]) + rng.integers(0, 5, (5, 5))
    assert renamed(healthy) == {}
    assert renamed(healthy[:, [1, 2, 3, 4, 0]]) == {0: 4, 1: 0, 2: 1, 3: 2}  # the last one is too small to tell
    # two classes of 1 and 0.5 % in one another's places: no training does that
    rare = np.diag([9000, 850, 100, 50])
    assert renamed(rare[:, [0, 1, 3, 2]]) == {2: 3, 3: 2}
    # a class that passes into another one is no permutation: the other one has more pixels of its own
    assert renamed(np.array([[5000, 0, 0], [1200, 0, 0], [0, 0, 3800]])) == {}
    # one that others do not return from is one from 10 % of all pixels on
    for moved, found in ((500, {}), (1500, {1: 2})):
        assert renamed(np.array([[10_000 - moved, 0, 0], [0, 0, moved], [0, 0, 0]])) == found
    assert renamed(np.zeros((3, 3), np.int64)) == {}


def test_the_effective_number_of_classes():
    assert effective_classes([7, 7, 7, 0]) == pytest.approx(3)
    assert effective_classes([9, 0]) == 1
    assert effective_classes([0, 0]) == 0


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"saturated": 0.6}, "saturated"),
        ({"kept": 0.4, "portion": 0.2}, "kept"),
        ({"pairs": np.diag(FIRST)[:, [1, 0, 2, 3]]}, "renamed"),
        ({"pairs": np.diag(FIRST) + 9000 * np.triu(np.ones((4, 4), np.int64), 1)}, "disagrees"),
        ({"first": (2600, 2400, 2500, 2500), "predicted": (9500, 300, 200, 0)}, "narrowed"),
        ({"first": (1000, 4000, 2000, 3000)}, "moved"),
        ({"predicted": (10_000, 0, 0, 0)}, "constant"),
    ],
)
def test_every_fault_is_judged(options, kind):
    predicted = options.pop("predicted", FIRST)
    found = judge(predicted, NAMES, **options)
    assert kind in [sign.kind for sign in found.signs]
    assert found.faults
    record = found.to_json()
    assert record["healthy"] is False
    sentence = next(s.sentence for s in found.signs if s.kind == kind)
    written = next(sign for sign in record["signs"] if sign["kind"] == kind)
    assert (written["sentence"], written["advice"]) == (sentence, ADVICE[kind])


def test_a_healthy_network_is_judged_so():
    healthy = np.diag([4000, 4000, 80, 15]) + 30
    found = judge(FIRST, NAMES, first=FIRST, pairs=healthy, saturated=0.2, kept=0.21, portion=0.2)
    assert (found.signs, found.faults, found.renamed) == ((), (), {})
    numbers = found.numbers
    assert numbers["agreement"] == pytest.approx((8095 + 120) / (8095 + 480))
    assert (numbers["drift"], numbers["largest"], numbers["saturated"]) == (0, 0.5, 0.2)
    assert judge(FIRST, NAMES).numbers["drift"] is None
    # a class that has grown is told, and no fault of the whole network
    grown = judge((4700, 4580, 700, 20), NAMES, first=FIRST)
    assert [sign.kind for sign in grown.signs] == ["grown"]
    assert grown.faults == ()


def test_a_class_that_has_grown_is_held_back_or_has_its_share_capped():
    now = (4700, 4600, 700, 0)
    assert factors(now, FIRST, NAMES, hold_back=True) == {2: 0.0}
    assert factors(now, FIRST, NAMES) == {2: pytest.approx(0.01 / 0.07)}
    assert factors(FIRST, FIRST, NAMES) == {}


def test_the_score_is_the_mean_confidence_of_all_classes():
    counts = np.array([1000, 10, 0, 0])
    assert score(counts, np.array([900.0, 5.0, 0, 0])) == pytest.approx((0.9 + 0.5) / 4)
    assert score(np.zeros(4, np.int64), np.zeros(4)) == 0
