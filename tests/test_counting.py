"""Thresholds from counts against sorted confidences, value by value and bit by bit."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cbst_mx.errors import ConfigError, DataError
from cbst_mx.selftrain import counting
from cbst_mx.selftrain.counting import LOWER, UPPER, StreamingThresholds, keys_of, value_of
from cbst_mx.selftrain.thresholds import FIDELITIES, POLICIES, keep_none, rank
from tests.maps import random_maps
from tests.reference import algorithms

GOLDEN = Path(__file__).parent / "golden" / "pseudo_labels.npz"
PORTIONS = (0.01, 0.2, 0.35, 0.5, 1.0)


def pools(images, fidelity, classes):
    """Return the confidences of every class, as a literal loop over the pixels puts them there."""
    result = [[] for _ in range(classes)]
    for confidence, predicted in images:
        seen = [0] * classes
        for value, row in zip(confidence.ravel(), predicted.ravel()):
            if fidelity == "paper" or seen[row] % 4 == 0:
                result[row].append(value)
            seen[row] += 1
    return result


def sorted_thresholds(images, policy, portion, fidelity, classes):
    """Return the thresholds that sorting all confidences gives."""
    own = pools(images, fidelity, classes)
    chosen = own if policy == "class-balanced" else [[value for pool in own for value in pool]]
    values = []
    for pool in chosen:
        zeros = {"paper": 0, "released": 1 + classes if policy == "global" else 1}[fidelity]
        ordered = sorted(pool, reverse=True) + [np.float32(0)] * zeros
        position = rank(portion, len(ordered), fidelity) if pool else 0
        values.append(ordered[position - 1] if position else keep_none(fidelity))
        if fidelity == "released" and values[-1] == 0:
            values[-1] = 1
    return np.array(values * (classes if policy == "global" else 1), dtype=np.float32), [len(pool) for pool in own]


def counted(images, classes, *, fidelity="paper", policies=POLICIES, portions=PORTIONS):
    state = StreamingThresholds(classes, fidelity=fidelity)
    for index, image in enumerate(images):
        state.add(f"image {index}", *image)
    if state.refine(policies, portions):
        for index, image in enumerate(images):
            state.add(f"image {index}", *image)
    return state


def assert_same(state, images, policies=POLICIES, portions=PORTIONS):
    for policy in policies:
        for portion in portions:
            found = state.thresholds(policy, portion)
            values, counts = sorted_thresholds(images, policy, portion, state.fidelity, state.num_classes)
            np.testing.assert_array_equal(found.values.view(np.uint32), values.view(np.uint32))  # bit by bit
            np.testing.assert_array_equal(found.counts, counts)


def random_images(seed, *, classes=4, count=3, size=(7, 9), values=None):
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        confidence = rng.random(size, dtype=np.float32) ** 0.2 if values is None else rng.choice(values, size)
        images.append((np.float32(confidence), rng.integers(0, classes, size).astype(np.uint8)))
    return images


SPECIAL = np.float32(
    [0, 1e-45, 1e-40, 1.1754944e-38, 1e-7, 0.5, 1 - 2**-11, 1 - 2**-11 - 2**-24, 1 - 2**-24, 1, 1 + 2**-23, 1.25, 3e38]
)
LIKELY = st.floats(1 / 32, 1, width=32)
NEAR_ONE = st.integers(-10000, 100).map(lambda steps: 1 + steps * 2**-24)
ANY = st.one_of(LIKELY, NEAR_ONE, st.sampled_from(SPECIAL.tolist()), st.floats(0, 2, width=32))


@st.composite
def image_sets(draw):
    classes = draw(st.integers(1, 5))
    palette = draw(st.lists(ANY, min_size=1, max_size=40))  # a short list of values: ties
    images = []
    for _ in range(draw(st.integers(1, 4))):
        size = draw(st.sampled_from([(1, 1), (1, 3), (4, 5), (6, 8)]))
        rng = np.random.default_rng(draw(st.integers(0, 10**6)))
        used = rng.integers(0, classes, draw(st.integers(1, classes)))  # some classes may be absent
        images.append((rng.choice(np.float32(palette), size), rng.choice(used, size).astype(np.uint8)))
    return classes, images


@settings(max_examples=150, deadline=None)
@given(image_sets(), st.sampled_from(FIDELITIES), st.lists(st.floats(0.001, 1), min_size=1, max_size=4))
@example((1, [(np.float32([[0.5]]), np.uint8([[0]]))]), "paper", [0.5])
@example((3, [(np.full((5, 5), 0.7, np.float32), np.ones((5, 5), np.uint8))]), "released", [0.2, 1.0])
def test_equal_to_sorting(drawn, fidelity, portions):
    classes, images = drawn
    assert_same(counted(images, classes, fidelity=fidelity, portions=portions), images, portions=portions)


@settings(max_examples=40, deadline=None)
@given(image_sets(), st.data())
def test_neither_order_nor_shards_change_anything(drawn, data):
    classes, images = drawn
    names = [f"image {index}" for index in range(len(images))]
    whole = counted(images, classes)
    parts = data.draw(st.lists(st.integers(0, 2), min_size=len(images), max_size=len(images)))
    states = [StreamingThresholds(classes) for _ in range(3)]
    for index in data.draw(st.permutations(range(len(images)))):
        states[parts[index]].add(names[index], *images[index])
    merged = states[2]
    merged.merge(states[0])
    merged.merge(states[1])
    assert merged.pending(names) == []
    if merged.refine(POLICIES, PORTIONS):
        shards = [merged.part() for _ in range(3)]
        for index, image in enumerate(images):
            shards[parts[index]].add(names[index], *image)
        for shard in shards:
            merged.merge(shard)
    ours, theirs = merged.to_arrays(), whole.to_arrays()
    for key in theirs:
        np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=50))
def test_keys_are_in_the_order_of_the_values_and_lead_back(values):
    values = np.float32(values)
    keys = keys_of(values)
    ordered = values[np.argsort(keys, kind="stable")]
    assert (ordered[1:] >= ordered[:-1]).all()
    for value, key in zip(values, keys):
        assert value_of(int(key)).tobytes() == (value + np.float32(0)).tobytes()


def test_negative_confidences_are_in_their_order_too():
    images = random_images(1, values=np.float32([-0.25, -1e-3, -0.0, 0.0, 0.5, 1]))
    state = counted(images, 4)
    for policy in POLICIES:
        for portion in PORTIONS:
            values, _ = sorted_thresholds(images, policy, portion, "paper", 4)
            np.testing.assert_array_equal(state.thresholds(policy, portion).values, values)  # 0 equals -0


@pytest.mark.parametrize("policy", POLICIES)
def test_released_rules_turn_a_threshold_of_zero_into_one(policy):
    images = random_images(20, classes=2)  # every rank of p = 1 is that of an extra zero
    state = counted(images, 2, fidelity="released", portions=[0.5, 1.0])
    assert state.thresholds(policy, 1.0).values.tolist() == [1, 1]
    assert (state.thresholds(policy, 0.5).values < 1).all()
    for value in (0.0, -0.0, -0.01):  # a prior of 0, and what a bicubic map times 0, or alone, may be
        zeros = [(np.full((4, 6), value, np.float32), np.zeros((4, 6), np.uint8))]
        released = counted(zeros, 2, fidelity="released", portions=[0.4]).thresholds(policy, 0.4)
        assert released.values.tolist() == [1, 1]
        paper = counted(zeros, 2, portions=[0.4]).thresholds(policy, 0.4)
        assert paper.values[0] == np.float32(value)
        assert paper.k[0] == np.inf


@pytest.mark.parametrize("fidelity", FIDELITIES)
def test_pixels_of_no_class_are_in_no_pool_but_that_of_the_released_class_0(fidelity):
    images = random_images(21)
    masked = []
    for confidence, predicted in images:
        confidence, predicted = confidence.copy(), predicted.copy()
        confidence[5:], predicted[5:] = 0, 255
        masked.append((confidence, predicted))
    masked.append((np.zeros((3, 4), np.float32), np.full((3, 4), 255, np.uint8)))
    expected = [(c[:5], p[:5]) for c, p in images]
    if fidelity == "released":
        expected = [(c, np.where(p == 255, 0, p).astype(np.uint8)) for c, p in masked]
    assert_same(counted(masked, 4, fidelity=fidelity), expected)


def test_a_set_without_any_confidence_is_refused():
    state = StreamingThresholds(4)
    state.add("a", np.zeros((3, 4), np.float32), np.full((3, 4), 255, np.uint8))
    assert not state.refine(["global"], [0.2])
    with pytest.raises(DataError, match="no pixel of the target set has a confidence above 0"):
        state.thresholds("global", 0.2)


def test_values_from_denormal_to_huge_in_one_image():
    values = np.float32(2.0) ** np.arange(-149, 128, dtype=np.float32)
    images = random_images(2, size=(40, 40), values=values)
    assert_same(counted(images, 4), images)


def test_more_pixels_than_are_counted_at_a_time(monkeypatch):
    monkeypatch.setattr(counting, "_CHUNK", 16)
    images = random_images(3, size=(13, 11))
    assert_same(counted(images, 4), images)


@pytest.mark.parametrize("fidelity", FIDELITIES)
def test_the_sorted_ndarray_form_gives_the_same(fidelity):
    from cbst_mx.selftrain.kc import ConfidencePool
    from symbols.backend import mx

    maps = random_maps(4, (3, 5, 12, 14), 2.0)
    pool = ConfidencePool(5, fidelity=fidelity)
    for probability in maps:
        pool.add(mx.nd.array(probability))
    images = [(probability.max(axis=0), probability.argmax(axis=0).astype(np.uint8)) for probability in maps]
    state = counted(images, 5, fidelity=fidelity)
    for policy in POLICIES:
        for portion in PORTIONS:
            ours, theirs = state.thresholds(policy, portion), pool.thresholds(policy, portion)
            np.testing.assert_array_equal(ours.values, theirs.values)
            np.testing.assert_array_equal(ours.counts, theirs.counts)


def test_equal_to_the_literal_transcription_of_the_paper():
    rng = np.random.default_rng(5)
    maps = [m.astype(np.float32) for m in rng.dirichlet(np.full(4, 0.3), (2, 6, 5)).transpose(0, 3, 1, 2)]
    state = counted([(m.max(axis=0), m.argmax(axis=0).astype(np.uint8)) for m in maps], 4)
    for portion in PORTIONS:
        limits, counts = algorithms.algorithm_2(maps, portion)
        limits = np.float32([np.inf if limit is None else limit for limit in limits])
        np.testing.assert_array_equal(state.thresholds("class-balanced", portion).values, limits)
        np.testing.assert_array_equal(state.counts, counts)
        k = algorithms.algorithm_1(maps, portion)
        assert (state.thresholds("global", portion).values == np.float32(np.inf if k is None else k)).all()


@pytest.mark.parametrize(("policy", "run"), [("class-balanced", "cb"), ("global", "global"), ("class-balanced", "sp")])
def test_released_rules_reproduce_the_measured_thresholds(policy, run):
    with np.load(GOLDEN) as golden:
        maps = golden["probability"] * golden["spatial_prior"] if run == "sp" else golden["probability"]
        limits, portion = golden[f"{run}_threshold"], float(golden["portion"])
    images = [(m.max(axis=0), m.argmax(axis=0).astype(np.uint8)) for m in maps]
    state = counted(images, 19, fidelity="released", policies=[policy], portions=[portion])
    found = state.thresholds(policy, portion)
    np.testing.assert_array_equal(found.values, np.where(limits == 0, 1, limits).astype(np.float32))


def test_values_of_float16_need_no_second_pass():
    images = [(confidence.astype(np.float16).astype(np.float32), row) for confidence, row in random_images(6)]
    state = StreamingThresholds(4)
    for index, image in enumerate(images):
        state.add(str(index), *image)
    assert not state.refine(POLICIES, PORTIONS)
    assert_same(state, images)


def test_further_portions_after_the_second_pass():
    images = random_images(7)
    state = counted(images, 4, portions=[0.2])
    assert not state.refine(["global"], [0.2])  # known already
    with pytest.raises(DataError, match="need every image to be counted a second time: call refine first"):
        state.thresholds("class-balanced", 0.9)
    assert state.refine(["class-balanced"], [0.9])
    for index, image in enumerate(images):
        state.add(f"image {index}", *image)
    assert_same(state, images, policies=["class-balanced"], portions=[0.9])


def test_a_stopped_second_pass_goes_on():
    images = random_images(8)
    state = StreamingThresholds(4)
    for index, image in enumerate(images):
        state.add(str(index), *image)
    assert state.refine(["global"], [0.3])
    state.add("1", *images[1])
    assert state.refine(["global"], [0.3])
    assert state.pending(["0", "1", "2"]) == ["0", "2"]
    with pytest.raises(DataError, match="need every image to be counted a second time"):
        state.thresholds("global", 0.3)
    for name in ("2", "0"):
        state.add(name, *images[int(name)])
    assert_same(state, images, policies=["global"], portions=[0.3])


@pytest.mark.parametrize("complete", [False, True])
def test_arrays_hold_the_whole_state(complete):
    images = random_images(9)
    state = counted(images, 4) if complete else StreamingThresholds(4, fidelity="paper")
    if not complete:
        state.add("å", *images[0])
    again = StreamingThresholds.from_arrays(state.to_arrays())
    for key, array in state.to_arrays().items():
        np.testing.assert_array_equal(again.to_arrays()[key], array)
    if complete:
        assert_same(again, images)
    else:
        assert again.names == ("å",)
        assert again.pending(["å", "b"]) == ["b"]


def test_a_part_of_the_second_pass_does_not_grow_with_the_number_of_images():
    image = random_images(9)[0]
    sizes = []
    for count in (10, 1000):
        state = StreamingThresholds(4)
        for index in range(count):
            state.add_counts(f"berlin/berlin_{index:06d}_000019_leftImg8bit", np.array([index % 4]), np.array([1]))
        state.add("last", *image)
        assert state.refine(["global"], [0.5])
        part = pickle.loads(pickle.dumps(state.part()))
        part.add("last", *image)
        sizes.append(len(pickle.dumps(state.part())))
        state.merge(part)
        assert state.done == ("last",)
    assert sizes[0] == sizes[1]
    stranger = state.part()
    stranger.add("unknown", *image)
    with pytest.raises(DataError, match="image unknown must be one of those counted in the first pass"):
        state.merge(stranger)


def test_states_of_the_format_before_are_read():
    images = random_images(9)
    state = counted(images, 4)
    arrays = state.to_arrays()
    names = np.array(state.names, dtype=np.str_)
    old = {**arrays, "format": np.array(1), "names": names, "lower_names": names}
    del old["first_names"]
    again = StreamingThresholds.from_arrays(old)
    for key, array in arrays.items():
        np.testing.assert_array_equal(again.to_arrays()[key], array)
    assert_same(again, images)


def test_damaged_arrays_are_refused():
    arrays = counted(random_images(10), 4).to_arrays()
    for change, reason in (
        ({"format": np.array(7)}, "it is of format 7, this version reads formats up to 2"),
        ({"bins": arrays["bins"] + 4 * UPPER}, "array bins is damaged"),
        ({"counts": -arrays["counts"]}, "array counts is damaged"),
        ({"critical": arrays["critical"][::-1]}, "array critical is damaged"),
    ):
        with pytest.raises(ValueError, match=reason):
            StreamingThresholds.from_arrays({**arrays, **change})


@pytest.mark.parametrize("number", [0, -1, 256, 300, 2.5, "4", None])
def test_numbers_of_classes_that_cannot_be_counted_are_refused(number):
    with pytest.raises(ConfigError, match=f"num_classes must be a whole number from 1 to 255, got {number!r}"):
        StreamingThresholds(number)


def test_state_stays_small_however_many_images_there_are():
    rng = np.random.default_rng(11)
    state = StreamingThresholds(19)
    sizes = []
    for index in range(20):
        confidence = rng.uniform(1 / 19, 1, (64, 128)).astype(np.float32)
        state.add(str(index), confidence, rng.integers(0, 19, (64, 128)).astype(np.uint8))
        sizes.append(state.nbytes)
    assert sizes[-1] <= 1.1 * sizes[2]  # the first images do not reach both ends
    assert sizes[-1] < 19 * 4500 * 8  # 4.25 octaves of 1024 bins, 19 classes, 8 bytes
    state.refine(["class-balanced"], [0.2])
    assert state.nbytes <= sizes[-1] + 19 * LOWER * 8


def test_refusals():
    images = random_images(12)
    with pytest.raises(ConfigError, match="fidelity must be one of paper, released, got 'mine'"):
        StreamingThresholds(3, fidelity="mine")
    state = StreamingThresholds(4)
    with pytest.raises(DataError, match="target set is empty"):
        state.refine(["global"], [0.2])
    with pytest.raises(DataError, match="confidence of image a must be finite, got NaN or infinity"):
        state.add("a", np.float32([[0.5, np.nan]]), np.uint8([[0, 1]]))
    with pytest.raises(DataError, match="predicted of image a must be below 4 or 255, got 7"):
        state.add("a", np.float32([[0.5]]), np.uint8([[7]]))
    with pytest.raises(DataError, match=r"must be uint8 of the confidence's shape \(1, 1\)"):
        state.add("a", np.float32([[0.5]]), np.uint8([[0, 1]]))
    assert state.names == ()
    assert state.counts.sum() == 0
    state.add("a", *images[0])
    with pytest.raises(DataError, match="image a must be counted once only in a pass, it has been counted already"):
        state.add("a", *images[0])
    with pytest.raises(ConfigError, match=r"portion must be in \(0, 1\], got 0"):
        state.refine(["global"], [0])
    with pytest.raises(ConfigError, match="policy must be one of global, class-balanced, got 'best'"):
        state.thresholds("best", 0.2)
    state.refine(["global"], [0.2])
    with pytest.raises(DataError, match="image b must be one of those counted in the first pass, it is not"):
        state.add("b", *images[1])


def test_maps_that_change_between_the_passes_are_noticed():
    confidence, predicted = random_images(13, count=1)[0]
    state = StreamingThresholds(4)
    state.add("a", confidence, predicted)
    state.refine(POLICIES, [0.2])
    state.add("a", confidence * np.float32(0.9), predicted)
    with pytest.raises(
        DataError, match="second pass must see the values of the first: it met .* the maps have changed"
    ):
        state.thresholds("class-balanced", 0.2)


def test_states_that_do_not_fit_are_not_merged():
    images = random_images(14)
    first, second = StreamingThresholds(4), StreamingThresholds(4)
    first.add("a", *images[0])
    second.add("a", *images[0])
    before = first.to_arrays()["counts"].sum()
    with pytest.raises(DataError, match="states to merge must be of different images, got a in both"):
        first.merge(second)
    with pytest.raises(DataError, match="must be of 4 classes and fidelity paper, got 4 and released"):
        first.merge(StreamingThresholds(4, fidelity="released"))
    second.add("b", *images[1])
    second.refine(["global"], [0.5])
    with pytest.raises(DataError, match="must be of the same pass"):
        first.merge(second)
    assert first.to_arrays()["counts"].sum() == before
    other = StreamingThresholds(4)
    other.add("a", *images[0])
    other.add("b", *images[2])
    other.refine(["global"], [0.5])
    with pytest.raises(DataError, match="must go on from the same counts of the first"):
        second.merge(other)
    other = second.part()
    other._start_step_2(np.array([5]), other._first)
    with pytest.raises(DataError, match="must be for the same policies and portions"):
        second.merge(other)
