"""Sums over the classes: what passes as a probability, what is refused, and the cause that is named."""

from __future__ import annotations

import numpy as np
import pytest

from cbst_mx import selftrain
from cbst_mx.errors import ConfigError, DataError
from cbst_mx.selftrain.map_checks import ORIGINS, check_sums, tolerance

CLASSES = 19


def scores(seed=0, classes=CLASSES, size=(24, 36)):
    return 3 * np.random.default_rng(seed).standard_normal((classes, *size))


def softmax(values, axis=0):
    exponentials = np.exp(values - values.max(axis=axis, keepdims=True))
    return exponentials / exponentials.sum(axis=axis, keepdims=True)


@pytest.mark.parametrize("classes", [2, 19, 150])
@pytest.mark.parametrize("kind", ["float64", "float32", "float16", "three decimals"])
def test_softmax_maps_pass_in_every_precision(classes, kind):
    maps = softmax(scores(classes=classes))
    maps = maps.round(3) if kind == "three decimals" else maps.astype(kind)
    found = check_sums(maps)
    assert 1 - tolerance(classes) <= found.smallest <= found.largest <= 1 + tolerance(classes)


def test_masked_regions_and_nan_have_no_sum():
    maps = softmax(scores())
    maps[:, 10:] = 0
    assert check_sums(maps).smallest == pytest.approx(1)
    assert check_sums(np.zeros((3, 4, 5))) is None
    maps[0, 0, 0] = np.nan  # other checks refuse that
    assert check_sums(maps).largest == pytest.approx(1)


@pytest.mark.parametrize(
    ("maps", "cause"),
    [
        (np.ones((5, 8, 9)), "every value is 1, as a softmax over the images of a batch gives them"),
        (softmax(scores(), axis=1), "they sum to 1 along the rows, so the softmax was taken over the wrong axis"),
        (softmax(scores(), axis=2), "must be of shape (C, H, W), they sum to 1 along the last axis instead"),
        (np.moveaxis(softmax(scores()), 0, 2), "they sum to 1 along the last axis instead"),
        (softmax(scores()) / 2, "got 0.5 to 0.5: every pixel has the same sum, by which the maps can be divided"),
        (0.001 * softmax(scores()), "got 0.001 to 0.001: every pixel has the same sum"),
        (1 / (1 + np.exp(-scores())), "sigmoids"),
        (np.maximum(softmax(scores(0)), softmax(scores(1))), "a maximum over scales does that"),
        (softmax(scores())[1:], "a class was left out"),
        (scores(), "logits have to go through a softmax"),
        (100 * softmax(scores()), "every pixel has the same sum, by which the maps can be divided"),
        (np.log(softmax(scores())) + 30, "logits have to go through a softmax"),
    ],
    ids=[
        "batch",
        "rows",
        "last",
        "classes last",
        "halved",
        "thousandth",
        "sigmoid",
        "maximum",
        "left out",
        "logits",
        "percent",
        "log",
    ],
)
def test_other_sums_are_refused_with_their_likely_cause(maps, cause):
    with pytest.raises(DataError, match="sum to") as caught:
        check_sums(maps.astype(np.float32))
    assert cause in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_wrong_border_is_seen():
    for place in ((slice(None), 0), (slice(None), -1), (slice(None), slice(None), 0), (slice(None), slice(None), -1)):
        maps = softmax(scores(size=(300, 400)))
        maps[place] *= 0.8
        with pytest.raises(DataError, match="got 0.8 to 1: a class was left out, or the maps were multiplied"):
            check_sums(maps)


def test_an_origin_explains_other_sums_within_its_bounds():
    one, other = softmax(scores(0)), softmax(scores(1))
    assert check_sums(np.maximum(one, other), "maximum").largest > 1.1
    assert check_sums(one * np.random.default_rng(2).random((CLASSES, 24, 36)), "prior").largest < 1
    assert check_sums(one * 40, "scores").largest == pytest.approx(40)
    assert check_sums(one * 1.2, "bicubic").largest == pytest.approx(1.2)
    with pytest.raises(DataError, match=r"must sum to 1 or more, the maximum over several scales, got 0\.9 to 0\.9"):
        check_sums(one * 0.9, "maximum")
    with pytest.raises(DataError, match="give or take 0.25"):
        check_sums(one * 1.3, "bicubic")


def test_the_front_door_takes_an_origin():
    maps = [np.maximum(softmax(scores(seed)), softmax(scores(seed + 9))) for seed in range(2)]
    with pytest.raises(DataError, match="^map 0: the classes of a pixel must sum to 1 .*say origin maximum"):
        selftrain.thresholds(maps)
    found = selftrain.thresholds(maps, origin="maximum")
    assert selftrain.pseudo_labels(maps[0], found, origin="maximum").shape == (24, 36)
    with pytest.raises(DataError, match="^probabilities: the classes"):
        selftrain.confidence(maps[0])
    with pytest.raises(ConfigError, match=f"origin must be one of {', '.join(ORIGINS)}, got 'max'"):
        selftrain.thresholds(maps, origin="max")
