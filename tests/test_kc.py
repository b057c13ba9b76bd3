"""Thresholds and selection against literal transcriptions, worked cases and the released program's measured values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbst_mx.errors import ConfigError, DataError
from cbst_mx.label_space import CITYSCAPES_19
from cbst_mx.selftrain.kc import ConfidencePool
from cbst_mx.selftrain.on_device import select
from symbols.backend import mx
from tests.maps import random_maps
from tests.reference import algorithms

GOLDEN = Path(__file__).parent / "golden" / "pseudo_labels.npz"


def pool_of(maps, ctx=None, fidelity="paper"):
    pool = ConfidencePool(maps[0].shape[0], fidelity=fidelity)
    for probability in maps:
        pool.add(mx.nd.array(probability, ctx=ctx or mx.cpu()))
    return pool


def some_maps(seed, classes=5, images=3, size=(6, 9), levels=None):
    """Return probability maps; with `levels`, coarsely quantised so that many values are equal."""
    made = random_maps(seed, (images, classes, *size), 2.0)
    return list(np.round(made * levels) / np.float32(levels) if levels else made)


def reference_labels(maps, limits):
    return [np.array(algorithms.solve(m, limits), dtype=np.uint8).reshape(m.shape[1:]) for m in maps]


def expected(limits):
    return np.array([np.inf if limit is None else limit for limit in limits], dtype=np.float32)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    portion=st.sampled_from([0.01, 0.2, 0.35, 0.5, 1.0]),
    levels=st.sampled_from([None, 4, 10]),
    classes=st.integers(2, 6),
)
def test_both_policies_equal_the_literal_algorithms(seed, portion, levels, classes):
    maps = some_maps(seed, classes=classes, levels=levels)
    pool = pool_of(maps)
    k = algorithms.algorithm_1(maps, portion)
    limits, counts = algorithms.algorithm_2(maps, portion)
    class_balanced = pool.thresholds("class-balanced", portion)
    np.testing.assert_array_equal(class_balanced.values, expected(limits))
    np.testing.assert_array_equal(class_balanced.counts, counts)
    globally = pool.thresholds("global", portion)
    np.testing.assert_array_equal(globally.values, expected([k] * classes))
    for thresholds, oracle in ((class_balanced, limits), (globally, [k] * classes)):
        if levels and any(limit == 0 for limit in oracle if limit is not None):
            continue  # the transcription would divide by zero
        for probability, labels in zip(maps, reference_labels(maps, oracle)):
            chosen = select(mx.nd.array(probability), thresholds)
            # equal ratios of different classes may be told apart by float64's extra digits: they are ties in float32
            differs = chosen != labels
            assert not levels and not differs.any() or levels and (chosen[differs] != 255).all()


def test_a_case_worked_by_hand():
    # 2 classes, 5 pixels: class 0 is predicted with 0.9, 0.8, 0.7, class 1 with 0.6, 0.55
    first = np.array([[[0.9, 0.8, 0.7, 0.4, 0.45]]], dtype=np.float32)
    maps = [np.concatenate([first, 1 - first])]
    pool = pool_of(maps)
    thresholds = pool.thresholds("class-balanced", 0.5)  # ranks round(1.5) = 2 and round(1.0) = 1
    np.testing.assert_array_equal(thresholds.values, np.float32([0.8, 0.6]))
    np.testing.assert_array_equal(thresholds.counts, [3, 2])
    np.testing.assert_allclose(thresholds.k, -np.log([0.8, 0.6]), rtol=1e-6)  # float32 thresholds
    np.testing.assert_array_equal(select(mx.nd.array(maps[0]), thresholds), [[0, 0, 255, 1, 255]])
    globally = pool.thresholds("global", 0.4)  # rank 2 of 0.9, 0.8, 0.7, 0.6, 0.55
    np.testing.assert_array_equal(select(mx.nd.array(maps[0]), globally), [[0, 0, 255, 255, 255]])


def test_the_winner_can_differ_from_the_plain_argmax():
    maps = np.array([[[0.90, 0.51]], [[0.10, 0.49]]], dtype=np.float32)
    pool = pool_of([maps])
    thresholds = pool.thresholds("class-balanced", 1.0)
    balanced = type(thresholds)("class-balanced", "paper", 1.0, np.float32([0.9, 0.4]), thresholds.counts)
    np.testing.assert_array_equal(select(mx.nd.array(maps), balanced), [[0, 1]])


@pytest.mark.parametrize("portion", [0.2, 0.35, 0.5, 1.0])
def test_distinct_confidences_keep_exactly_the_ranked_number(portion):
    maps = some_maps(3, classes=4, images=2, size=(16, 16))
    pool = pool_of(maps)
    thresholds = pool.thresholds("class-balanced", portion)
    confidences = np.concatenate([m.max(axis=0).ravel() for m in maps])
    predicted = np.concatenate([m.argmax(axis=0).ravel() for m in maps])
    for index in range(4):
        own = confidences[predicted == index]
        assert len(np.unique(own)) == len(own)
        assert (own >= thresholds.values[index]).sum() == round(portion * len(own))


def test_saturated_confidences_are_all_kept():
    maps = np.zeros((2, 4, 8), dtype=np.float32)
    maps[0] = 1.0  # every pixel of class 0 at confidence 1: a strict inequality would keep none
    thresholds = pool_of([maps]).thresholds("class-balanced", 0.2)
    assert (select(mx.nd.array(maps), thresholds) == 0).all()


def test_a_class_never_predicted_keeps_nothing():
    maps = some_maps(1, classes=3)
    for m in maps:
        m[2] = 0
    thresholds = pool_of(maps).thresholds("class-balanced", 1.0)
    assert thresholds.counts[2] == 0
    assert thresholds.values[2] == np.inf
    assert thresholds.to_json()["threshold"][2] is None
    assert not any((select(mx.nd.array(m), thresholds) == 2).any() for m in maps)


def test_more_portion_keeps_more_pixels():
    maps = some_maps(5, size=(20, 20))
    pool = pool_of(maps)
    for policy in ("global", "class-balanced"):
        kept = []
        for portion in (0.1, 0.2, 0.35, 0.5, 0.8, 1.0):
            thresholds = pool.thresholds(policy, portion)
            kept.append(sum(int((select(mx.nd.array(m), thresholds) != 255).sum()) for m in maps))
        assert kept == sorted(kept)
        assert kept[0] < kept[-1] == 3 * 400


def test_order_of_images_and_context_change_nothing():
    maps = some_maps(6)
    first = pool_of(maps).thresholds("class-balanced", 0.3)
    second = pool_of(maps[::-1], ctx=mx.cpu(1)).thresholds("class-balanced", 0.3)
    np.testing.assert_array_equal(first.values, second.values)


@pytest.mark.parametrize("policy", ["global", "class-balanced"])
def test_a_common_factor_of_all_classes_changes_nothing(policy):
    # powers of two are exact in float32, so labels and pools agree everywhere
    maps = some_maps(7, classes=4, size=(12, 12))
    scaled = [m * np.float32(0.25) for m in maps]
    before, after = (pool_of(values).thresholds(policy, 0.3) for values in (maps, scaled))
    np.testing.assert_array_equal(after.values, before.values * np.float32(0.25))
    np.testing.assert_array_equal(after.counts, before.counts)
    for m, times in zip(maps, scaled):
        np.testing.assert_array_equal(select(mx.nd.array(times), after), select(mx.nd.array(m), before))


def test_a_factor_of_one_class_changes_the_pools():
    # the predicted class changes with it, and with that whose pool a pixel is in
    maps = some_maps(7, classes=4, size=(12, 12))
    factors = np.float32([1, 2, 1, 1])[:, None, None]
    before, after = (pool_of([m * f for m in maps]).thresholds("class-balanced", 0.3) for f in (1, factors))
    assert after.counts[1] > before.counts[1]
    assert (after.counts[[0, 2, 3]] < before.counts[[0, 2, 3]]).all()
    labels = [[select(mx.nd.array(m * f), t) for m in maps] for f, t in ((1, before), (factors, after))]
    assert (np.array(labels[0]) != np.array(labels[1])).any()


@pytest.mark.parametrize(("policy", "run"), [("class-balanced", "cb"), ("global", "global"), ("class-balanced", "sp")])
def test_released_rules_reproduce_the_measured_pass(policy, run):
    with np.load(GOLDEN) as golden:
        maps = golden["probability"] * golden["spatial_prior"] if run == "sp" else golden["probability"]
        limits, ids = golden[f"{run}_threshold"], golden[f"{run}_pseudo_label_ids"]
        portion, sizes = float(golden["portion"]), golden[f"{run}_class_size"]
    pool = pool_of(list(maps), fidelity="released")
    thresholds = pool.thresholds(policy, portion)
    np.testing.assert_array_equal(thresholds.values, np.where(limits == 0, 1, limits).astype(np.float32))
    if (
        policy == "class-balanced"
    ):  # their sizes count the extra zero of every pool; a global pass makes all sizes equal
        np.testing.assert_array_equal(thresholds.counts, np.maximum(sizes - 1, 0))
    for probability, expected_ids in zip(maps, ids):
        labels = select(mx.nd.array(probability), thresholds)
        np.testing.assert_array_equal(CITYSCAPES_19.decode(labels, "cityscapes"), expected_ids)


@pytest.mark.parametrize("policy", ["global", "class-balanced"])
def test_released_rules_turn_a_threshold_of_zero_into_one(policy):
    maps = some_maps(9, classes=3, images=1)
    thresholds = pool_of(maps, fidelity="released").thresholds(policy, 1.0)  # the rank is that of an extra zero
    assert thresholds.values.tolist() == [1, 1, 1]
    assert (select(mx.nd.array(maps[0]), thresholds) == 255).all()
    zeros = pool_of([np.zeros((3, 4, 6), np.float32)], fidelity="released").thresholds(policy, 0.4)
    assert zeros.values.tolist() == [1, 1, 1]


@pytest.mark.parametrize("policy", ["global", "class-balanced"])
def test_pixels_without_confidence_are_in_no_pool_and_get_no_label(policy):
    maps = some_maps(3, size=(8, 9))
    masked = [m.copy() for m in maps]
    for m in masked:
        m[:, 5:] = 0  # the own car, say
    masked[0][:, 4] = -0.01  # what bicubic interpolation may leave beside it
    masked.append(np.zeros_like(maps[0]))
    sure = [m[:, :5] for m in maps]
    sure[0] = sure[0][:, :4]
    for portion in (0.2, 0.7, 1.0):
        found, expected = (pool_of(m).thresholds(policy, portion) for m in (masked, sure))
        np.testing.assert_array_equal(found.values, expected.values)
        np.testing.assert_array_equal(found.counts, expected.counts)
        for m in masked:
            label = select(mx.nd.array(m), found)
            assert (label[(m <= 0).all(axis=0)] == 255).all()
    with pytest.raises(DataError, match="no pixel of the target set has a confidence above 0"):
        pool_of([np.zeros((3, 4, 6), np.float32)]).thresholds(policy, 0.4)


def test_paper_and_released_rules_differ():
    maps = some_maps(8, size=(20, 20))
    paper = pool_of(maps).thresholds("class-balanced", 0.2)
    released = pool_of(maps, fidelity="released").thresholds("class-balanced", 0.2)
    assert (paper.values != released.values).any()
    assert (paper.counts > 3 * released.counts).all()


@pytest.mark.parametrize("portion", [0, -0.1, 1.2, float("nan")])
def test_portion_outside_its_range_is_refused(portion):
    with pytest.raises(ConfigError, match=r"portion must be in \(0, 1\], got"):
        pool_of(some_maps(1)).thresholds("global", portion)


def test_other_refusals():
    with pytest.raises(ConfigError, match="policy must be one of global, class-balanced, got 'best'"):
        pool_of(some_maps(1)).thresholds("best", 0.2)
    with pytest.raises(ConfigError, match="fidelity must be one of paper, released, got 'mine'"):
        ConfidencePool(3, fidelity="mine")
    with pytest.raises(DataError, match="target set is empty"):
        ConfidencePool(3).thresholds("global", 0.2)
    with pytest.raises(DataError, match=r"probability must have shape \(3, H, W\), got \(5, 6, 9\)"):
        ConfidencePool(3).add(mx.nd.array(some_maps(1)[0]))
    with pytest.raises(DataError, match="must be finite"):
        ConfidencePool(2).add(mx.nd.array([[[np.nan]], [[0.5]]]))
    with pytest.raises(DataError, match=r"probability must have shape \(5, H, W\), got \(4, 2, 2\)"):
        select(mx.nd.zeros((4, 2, 2)), pool_of(some_maps(1)).thresholds("global", 0.2))
