"""Spatial prior: counts by hand, smoothing, normalisation, what a constant changes, resizing, files, MATLAB files."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import io

from cbst_mx import selftrain
from cbst_mx.data import open_labelled
from cbst_mx.data.street_scenes import render_scene
from cbst_mx.errors import ConfigError, DataError
from cbst_mx.label_space import CITYSCAPES_19
from cbst_mx.selftrain import prior_files, spatial_prior
from cbst_mx.selftrain.class_maps import ClassMaps
from cbst_mx.selftrain.kc import ConfidencePool
from cbst_mx.selftrain.on_device import select
from symbols.backend import mx
from tests.maps import softmax
from tests.reference import prior as reference
from tests.tiny import write_scenes


class Labels:
    """A labelled set of given label maps."""

    label_space = CITYSCAPES_19

    def __init__(self, *maps):
        self._maps = [np.array(m, dtype=np.uint8) for m in maps]

    def __len__(self):
        return len(self._maps)

    def label(self, index):
        return self._maps[index]


def test_counts_worked_by_hand_without_smoothing():
    prior = spatial_prior.estimate(
        Labels([[0, 1], [1, 255]], [[0, 0], [1, 2]]), (2, 2), kernel=0, normalisation="maximum"
    )
    np.testing.assert_array_equal(prior[0], [[1, 0.5], [0, 0]])  # class 0 occurs 2, 1, 0, 0 times
    np.testing.assert_array_equal(prior[1], [[0, 0.5], [1, 0]])
    np.testing.assert_array_equal(prior[2], [[0, 0], [0, 1]])
    assert not prior[3:].any()


def test_smoothing_spreads_by_the_scaled_kernel():
    counts = np.zeros((1, 128, 256))
    counts[0, 64, 128] = 1
    maps = spatial_prior.smooth(counts, normalisation="maximum")
    assert maps.dtype == np.float32
    assert (maps >= 0).all()
    rows = np.flatnonzero(maps[0].sum(axis=1))
    # 70 pixels at height 1024 are 8.75 pixels at 128: three sigma to either side of the centre, rounded to pixels
    assert 8 <= rows[-1] - rows[0] + 1 <= 10
    assert maps[0, 64, 128] == 1


def test_generated_streets_have_sky_above_and_road_below(tmp_path):
    write_scenes(tmp_path / "d", source=30, source_val=0, target=0, target_val=0, size=(64, 128))
    source = open_labelled("gta5", tmp_path / "d" / "gta5", label_space=CITYSCAPES_19)
    prior = spatial_prior.estimate(source, (32, 64), normalisation="maximum")
    sky, road = prior[CITYSCAPES_19.names.index("sky")], prior[CITYSCAPES_19.names.index("road")]
    assert sky[:8].mean() > 0.2
    assert sky[16:].max() < 0.05
    assert road[16:].mean() > 0.5
    assert road[:8].max() < 0.05


def test_resizing():
    prior = spatial_prior.smooth(np.random.default_rng(0).poisson(1.0, (3, 16, 32)))
    large = spatial_prior.resized(prior, (64, 128))
    assert large.shape == (3, 64, 128)
    assert large.dtype == np.float32
    assert (large >= 0).all()
    # bilinear interpolation repeats the border, which shifts the mean a little
    np.testing.assert_allclose(large.mean(axis=(1, 2)), prior.mean(axis=(1, 2)), rtol=0.02)
    np.testing.assert_array_equal(large, ClassMaps(prior, (64, 128)).rows(0, 64))  # one interpolation everywhere
    assert spatial_prior.resized(prior, (16, 32)) is prior


def test_reading_makes_no_copy_of_the_array(tmp_path):
    import tracemalloc

    np.savez(tmp_path / "prior.npz", prior=np.ones((19, 128, 256), np.float32))
    tracemalloc.start()
    try:
        prior, _ = prior_files.read(tmp_path / "prior.npz")
        assert tracemalloc.get_traced_memory()[1] < 1.5 * prior.nbytes
    finally:
        tracemalloc.stop()


def test_file_round_trip_and_refusals(tmp_path):
    prior = spatial_prior.smooth(np.ones((19, 4, 8)))
    path = tmp_path / "prior.npz"
    prior_files.save(path, prior)
    np.testing.assert_array_equal(prior_files.load(path, 19), prior)
    with pytest.raises(DataError, match=r"must hold a prior of shape \(13, H, W\), got \(19, 4, 8\)"):
        prior_files.load(path, 13)
    prior_files.save(path, -prior)
    with pytest.raises(DataError, match="finite values of at least 0"):
        prior_files.load(path, 19)
    path.write_bytes(b"nonsense")
    with pytest.raises(DataError, match="is not a readable spatial prior"):
        prior_files.load(path, 19)
    with pytest.raises(DataError, match="is not a readable spatial prior"):
        prior_files.load(tmp_path / "none.npz", 19)
    with pytest.raises(ConfigError, match="kernel must be 0 or more pixels, got -1"):
        spatial_prior.smooth(np.ones((1, 2, 2)), kernel=-1)


# -------------------------------------------------------------------------------------------------- normalisation


def test_normalisations_worked_by_hand():
    source = Labels([[0, 1], [1, 255]], [[0, 0], [1, 2]])

    def prior(normalisation):
        return spatial_prior.estimate(source, (2, 2), kernel=0, normalisation=normalisation)

    # class 0 occurs 2, 1, 0, 0 times in two label maps, class 1 0, 1, 2, 0 times
    np.testing.assert_array_equal(prior("maximum")[0], [[1, 0.5], [0, 0]])
    # the means over the four pixels are 3/4
    np.testing.assert_array_equal(prior("sum")[:2], np.float32([[[8 / 3, 4 / 3], [0, 0]], [[0, 4 / 3], [8 / 3, 0]]]))
    np.testing.assert_array_equal(prior("frequency")[:3], [[[1, 0.5], [0, 0]], [[0, 0.5], [1, 0]], [[0, 0], [0, 0.5]]])
    for normalisation in spatial_prior.NORMALISATIONS:
        assert not prior(normalisation)[3:].any()


def test_normalisations_differ_by_one_factor_per_class():
    counts = 1 + np.random.default_rng(0).poisson(1.0, (4, 16, 32))
    maps = {n: spatial_prior.smooth(counts, normalisation=n, images=7) for n in spatial_prior.NORMALISATIONS}
    np.testing.assert_allclose(maps["sum"].mean(axis=(1, 2)), 1, rtol=1e-5)  # 512 values rounded to float32
    np.testing.assert_array_equal(spatial_prior.smooth(counts), maps["sum"])  # the default
    for other in ("sum", "frequency"):
        factors = maps[other] / maps["maximum"]
        # both are rounded to float32
        np.testing.assert_allclose(factors, np.broadcast_to(factors[:, :1, :1], factors.shape), rtol=1e-6)


def test_sigma_sets_the_width_and_the_kernel_its_end():
    counts = np.zeros((1, 256, 512))
    counts[0, 128, 256] = 1
    default, narrow, same = (
        spatial_prior.smooth(counts, kernel=70, sigma=sigma, normalisation="sum")[0] for sigma in (None, 4.0, 70 / 6)
    )
    np.testing.assert_allclose(same, default, rtol=1e-6)
    assert narrow.max() > 4 * default.max()
    for maps in (default, narrow):
        rows, columns = np.nonzero(maps)
        # 70 pixels are 17.5 at this grid, half of them to either side: 9 pixels and the one in the middle
        assert np.ptp(rows) + 1 == np.ptp(columns) + 1 == 19
    spread = (default.sum(axis=1) * (np.arange(256) - 128) ** 2).sum() / default.sum()
    # cut off at three standard deviations a Gaussian loses 3 % of its variance; a pixel's width adds about 1 %
    assert spread == pytest.approx((70 / 6 / 4) ** 2, rel=0.05)


def test_estimate_refuses_before_it_reads():
    class Unread(Labels):
        def label(self, index):
            raise AssertionError("read")

    source = Unread([[0]])
    for arguments, sentence in (
        ({"grid": (0, 4)}, r"^grid must be a height and a width of at least 1 pixel, got \(0, 4\)$"),
        ({"kernel": float("nan")}, "^kernel must be 0 or more pixels, got nan$"),
        ({"sigma": 0.0}, "^sigma must be more than 0 pixels, got 0.0$"),
        ({"kernel": 0, "sigma": 2.0}, "^sigma must not be given with a kernel of 0, which does not smooth, got 2.0$"),
        ({"normalisation": "l2"}, "^normalisation must be one of sum, maximum, frequency, got 'l2'$"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            spatial_prior.estimate(source, **{"grid": (2, 2), **arguments})


# ------------------------------------------------------------------ what a factor of all classes, and of one, changes


def scenes(count=3, size=(32, 64)):
    """Return confident probabilities (count, 19, H, W) of street scenes and a positive prior (19, H, W)."""
    labels = [render_scene(1, index, domain="target", size=size)[1] for index in range(count)]
    rng = np.random.default_rng(0)
    logits = 6.0 * np.stack([np.arange(19)[:, None, None] == label for label in labels])
    logits += 0.5 * rng.standard_normal(logits.shape)
    probabilities = softmax(logits).astype(np.float32)
    source = Labels(*(render_scene(0, index, domain="source", size=size)[1] for index in range(20)))
    return probabilities, np.float32(0.2) + np.float32(0.8) * spatial_prior.estimate(
        source, size, normalisation="maximum"
    )


def labelled(probabilities, prior, portion=0.3, fidelity="paper", policy="class-balanced"):
    """Return the thresholds and pseudo-labels of a whole pass (Algorithm 2, eq. 8 and 9)."""
    maps = [mx.nd.array(probability * prior) for probability in probabilities]
    pool = ConfidencePool(len(prior), fidelity=fidelity)
    for values in maps:
        pool.add(values)
    thresholds = pool.thresholds(policy, portion)
    return thresholds, np.stack([select(values, thresholds) for values in maps])


def times(prior, index, factor):
    changed = prior.copy()
    changed[index] *= np.float32(factor)
    return changed


@pytest.mark.parametrize("name", ["road", "sky", "car", "person"])
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_factor_of_a_class_that_changes_no_predicted_class_changes_no_label(name, factor):
    probabilities, prior = scenes()
    index = CITYSCAPES_19.names.index(name)
    changed = times(prior, index, factor)
    # what the equality rests on
    np.testing.assert_array_equal((probabilities * prior).argmax(axis=1), (probabilities * changed).argmax(axis=1))
    before, labels = labelled(probabilities, prior)
    after, same = labelled(probabilities, changed)
    assert (labels == index).any()
    assert (labels == 255).any()
    # powers of two multiply floats without rounding: equal to the last bit
    assert after.values[index] == before.values[index] * np.float32(factor)
    np.testing.assert_array_equal(same, labels)


@pytest.mark.parametrize("factor", [0.7, 1.3])
def test_such_a_factor_that_rounds_moves_pixels_on_the_threshold_only(factor):
    probabilities, prior = scenes()
    index = CITYSCAPES_19.names.index("building")
    before, labels = labelled(probabilities, prior)
    after, others = labelled(probabilities, times(prior, index, factor))
    # each product and quotient is rounded to float32, a relative 6e-8
    assert after.values[index] == pytest.approx(before.values[index] * factor, rel=4e-7)
    ratio = (probabilities * prior / before.values[:, None, None]).max(axis=1)
    np.testing.assert_array_equal(others[abs(ratio - 1) > 1e-6], labels[abs(ratio - 1) > 1e-6])
    assert (abs(ratio - 1) > 1e-6).mean() > 0.99


def unsure(seed=3):
    """Return probabilities (2, 5, 16, 32) without a confident class, whose predictions are easily overturned, and q."""
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(5), (2, 16, 32)).transpose(0, 3, 1, 2).astype(np.float32)
    return probabilities, rng.random((5, 16, 32)).astype(np.float32)


@pytest.mark.parametrize("policy", ["global", "class-balanced"])
@pytest.mark.parametrize("factor", [2.0**-20, 8.0, 2.0**30])
def test_a_factor_common_to_all_classes_changes_nothing(factor, policy):
    # powers of two multiply floats without rounding: equal to the last bit
    probabilities, prior = unsure()
    before, labels = labelled(probabilities, prior, policy=policy)
    after, same = labelled(probabilities, prior * np.float32(factor), policy=policy)
    np.testing.assert_array_equal(same, labels)
    np.testing.assert_array_equal(after.counts, before.counts)
    np.testing.assert_array_equal(after.values, before.values * np.float32(factor))
    assert len(np.unique(labels)) == 6  # every class, and pixels without a label


def test_a_common_factor_that_rounds_moves_pixels_on_the_threshold_only():
    probabilities, prior = unsure()
    before, labels = labelled(probabilities, prior)
    after, others = labelled(probabilities, prior * np.float32(0.3))
    np.testing.assert_allclose(after.values, before.values * np.float32(0.3), rtol=4e-7)  # a few roundings to float32
    ratio = (probabilities * prior / before.values[:, None, None]).max(axis=1)
    np.testing.assert_array_equal(others[abs(ratio - 1) > 1e-6], labels[abs(ratio - 1) > 1e-6])
    assert (abs(ratio - 1) > 1e-6).mean() > 0.99


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_factor_of_one_class_changes_the_pools_and_the_labels(factor):
    probabilities, prior = unsure()
    before, labels = labelled(probabilities, prior)
    after, others = labelled(probabilities, times(prior, 2, factor))
    # Algorithm 2 takes the portion of a pool that has grown or shrunk
    assert (after.counts[2] > before.counts[2]) == (factor > 1)
    assert abs(after.counts[2] - before.counts[2]) > 0.1 * before.counts[2]
    assert after.values[2] != before.values[2] * np.float32(factor)
    assert (others != labels).mean() > 0.01


def test_sum_and_maximum_choose_other_labels():
    source = Labels(*(render_scene(0, index, domain="source", size=(32, 64))[1] for index in range(20)))
    probabilities, _ = scenes()
    both = [
        labelled(probabilities, spatial_prior.estimate(source, (32, 64), normalisation=normalisation))
        for normalisation in ("sum", "maximum")
    ]
    assert (both[0][0].counts != both[1][0].counts).any()
    assert (both[0][1] != both[1][1]).any()


@pytest.mark.parametrize("factor", [1.0, 2.0, 2.0**20])
def test_a_common_factor_changes_nothing_by_the_released_rules_either(factor):
    # They give a class without pixels the threshold 1, which a prior above 1 reaches: class 1 is nowhere the strongest,
    # but in half of the pixels far more frequent than elsewhere.
    probabilities = np.float32([[[[0.6, 0.6, 0.6, 0.6]], [[0.4, 0.4, 0.4, 0.4]]]])
    prior = np.float32([[[4.0, 4.0, 2.0, 2.0]], [[0.5, 0.5, 2.75, 2.75]]])
    reached, labels = labelled(probabilities, prior, portion=0.5, fidelity="released")
    assert reached.values[1] == 1
    assert (labels == 1).any()
    below = spatial_prior.within_one(prior * np.float32(factor))
    np.testing.assert_array_equal(below, prior / 8)  # the largest value, 4, becomes 0.5
    expected = labelled(probabilities, prior / np.float32(2**21), portion=0.5, fidelity="released")[1]
    np.testing.assert_array_equal(labelled(probabilities, below, portion=0.5, fidelity="released")[1], expected)
    assert not (expected == 1).any()
    # the front door does so by itself
    given = prior * np.float32(factor)
    found = selftrain.thresholds(probabilities, policy="cbst-sp", prior=given, portion=0.5, fidelity="released")
    np.testing.assert_array_equal(selftrain.pseudo_labels(probabilities[0], found, prior=given), expected[0])


def test_a_prior_is_brought_below_one_by_a_power_of_two():
    prior = np.float32([[[0.0, 1e-30, 5.0]], [[3.0, 1.0, 0.7]]])
    np.testing.assert_array_equal(spatial_prior.within_one(prior), prior * np.float32(0.125))
    for unchanged in (prior / 5, np.ones((1, 1, 1), np.float32)):
        assert spatial_prior.within_one(unchanged) is unchanged


def test_k_c_given_takes_the_factor_of_its_class():
    factor = 8.0
    probabilities, prior = unsure()
    thresholds, labels = labelled(probabilities, prior)
    # eq. 8 and 9 alone: k_c given, a factor of one class is a shift of its k_c, whoever wins
    values = thresholds.values.copy()
    values[2] *= np.float32(factor)
    for probability, expected in zip(probabilities, labels):
        product = mx.nd.array(probability * times(prior, 2, factor))
        np.testing.assert_array_equal(select(product, replace(thresholds, values=values)), expected)


def test_a_constant_that_overturns_predictions_changes_the_pools():
    # Algorithm 2 pools by argmax_c q_n(c) p_n(c): here doubling one map moves the middle pixel to its pool
    probabilities = np.float32([[[[0.9, 0.6, 0.2]], [[0.1, 0.4, 0.8]]]])
    prior = np.ones((2, 1, 3), np.float32)
    before, labels = labelled(probabilities, prior, portion=1.0)
    after, others = labelled(probabilities, times(prior, 1, 2), portion=1.0)
    assert before.counts.tolist() == [2, 1]
    assert after.counts.tolist() == [1, 2]
    assert labels.tolist() == [[[0, 0, 1]]]
    assert others.tolist() == [[[0, 1, 1]]]
    # normalised maps do not know the constant
    np.testing.assert_array_equal(
        labelled(probabilities, spatial_prior.normalised(times(prior, 1, 2)), portion=1.0)[1], labels
    )


@pytest.mark.parametrize("normalisation", ["maximum", "sum"])
def test_normalisation_removes_constants(normalisation):
    maps = np.random.default_rng(0).random((3, 8, 16)).astype(np.float32)
    expected = spatial_prior.normalised(maps, normalisation)
    np.testing.assert_array_equal(spatial_prior.normalised(times(maps, 1, 0.25), normalisation), expected)
    np.testing.assert_allclose(spatial_prior.normalised(times(maps, 1, 0.3), normalisation), expected, rtol=1e-6)


# ------------------------------------------------------------------------------------------------------ golden values


def test_the_literal_prior_still_gives_the_golden_values():
    made = reference.make()
    with np.load(reference.GOLDEN) as golden:
        assert sorted(golden.files) == sorted(made)
        for name in golden.files:
            # the last digit of exp may differ between machines
            np.testing.assert_allclose(golden[name], made[name], rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("case", list(reference.CASES))
def test_a_pass_with_the_prior_gives_the_golden_values(case):
    kernel, sigma, normalisation = reference.CASES[case]
    with np.load(reference.GOLDEN) as golden:
        labels, probability, portion = golden["labels"], golden["probability"], float(golden["portion"])
        prior, threshold, count, label = (golden[f"{case}_{part}"] for part in ("prior", "threshold", "count", "label"))
    space = Labels(*labels)
    found = spatial_prior.estimate(space, labels.shape[1:], kernel=kernel, sigma=sigma, normalisation=normalisation)
    # sums in another order and one rounding to float32; classes that are in no label stay 0
    np.testing.assert_allclose(found[: reference.CLASSES], prior, rtol=1e-6)
    assert not found[reference.CLASSES - 1 :].any()
    # given the same numbers, the pass is the literal one to the last bit
    thresholds, chosen = labelled(probability, prior, portion=portion)
    np.testing.assert_array_equal(thresholds.values, threshold)
    np.testing.assert_array_equal(thresholds.counts, count)
    np.testing.assert_array_equal(chosen, label)
    below = selftrain.thresholds(probability, policy="cbst-sp", prior=prior, portion=portion)
    for image, expected in zip(probability, label):
        np.testing.assert_array_equal(selftrain.pseudo_labels(image, below, prior=prior), expected)


def test_the_golden_values_tell_the_normalisations_apart():
    with np.load(reference.GOLDEN) as golden:
        labels = [golden[f"{case}_label"] for case in reference.CASES]
    for index, one in enumerate(labels):
        for other in labels[:index]:
            assert (one != other).mean() > 0.02


# ------------------------------------------------------------------------------------------------------------- files

PRIOR = np.random.default_rng(0).random((19, 4, 8)).astype(np.float32)
NAMES = list(CITYSCAPES_19.names)


def test_metadata_are_kept_and_names_compared(tmp_path):
    path = tmp_path / "prior.npz"
    prior_files.save(path, PRIOR, {"names": NAMES, "kernel": 70.0, "images": 3})
    prior, metadata = prior_files.read(path)
    assert prior.dtype == np.float32
    assert np.array_equal(prior, PRIOR)
    assert metadata == {"format": 1, "grid": [4, 8], "names": NAMES, "kernel": 70.0, "images": 3}
    with np.load(path, allow_pickle=False) as stored:  # for other programs
        assert sorted(stored.files) == ["metadata", "prior"]
        assert stored["prior"].dtype == np.float32
        assert json.loads(str(stored["metadata"])) == metadata
    np.testing.assert_array_equal(prior_files.load(path, 19, NAMES), PRIOR)
    other = [*NAMES[:9], "grass", *NAMES[10:]]
    with pytest.raises(DataError, match="must hold a prior of the same classes: class 9 is 'terrain', not 'grass'$"):
        prior_files.load(path, 19, other)


def test_a_file_with_the_array_alone_is_read(tmp_path):
    path = tmp_path / "prior.npz"
    np.savez(path, prior=PRIOR.astype(np.float64))
    prior, metadata = prior_files.read(path)
    assert metadata == {}
    assert prior.dtype == np.float32
    np.testing.assert_array_equal(prior_files.load(path, 19, NAMES), PRIOR)


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "prior.npz"
    prior_files.save(path, PRIOR)
    whole = path.read_bytes()
    damaged = [whole[:length] for length in (0, 3, 100, len(whole) - 30)]
    damaged.append(whole[:200] + bytes(40) + whole[240:])
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(DataError, match="is not a readable spatial prior"):
            prior_files.read(path)
    for values, sentence in (
        ({"other": PRIOR}, "is not a readable spatial prior"),
        ({"prior": np.array([None])}, "is not a readable spatial prior.*holds Python objects"),
        ({"prior": PRIOR.astype(np.complex64)}, "its numbers are of type complex64"),
        ({"prior": PRIOR, "metadata": np.array("[]")}, "its metadata are no mapping"),
        ({"prior": PRIOR, "metadata": np.array('{"format": 2}')}, "must be of format 1 or older, got 2: a newer"),
        (
            {"prior": PRIOR, "metadata": np.array('{"names": ["road"]}')},
            r"must name each of its 19 classes, got \['road",
        ),
        ({"prior": PRIOR[0]}, r"must hold a prior of shape \(C, H, W\), got \(4, 8\)"),
        ({"prior": PRIOR * np.nan}, "must hold finite values of at least 0"),
    ):
        np.savez(path, **values)
        with pytest.raises(DataError, match=sentence):
            prior_files.read(path)
    with open(path, "wb") as stream:
        np.save(stream, PRIOR)
    with pytest.raises(DataError, match="it holds one array without a name"):
        prior_files.read(path)
    with pytest.raises(DataError, match=r"'prior'\): No such file or directory$"):
        prior_files.read(tmp_path / "none.npz")


# -------------------------------------------------------------------------------------------------------------- MATLAB


def matlab(path, **arrays):
    io.savemat(path, arrays, do_compression=True)
    return path


def test_matlab_file_is_read_and_small_negative_values_become_zero(tmp_path):
    values = PRIOR.astype(np.float64)
    values[3, 0, :5] = -0.001
    values[4, 1, 2] = -0.002
    prior, clamped, smallest = prior_files.read_matlab(matlab(tmp_path / "a.mat", prior_array=values, other=[1, 2]))
    assert prior.dtype == np.float32
    assert prior.flags.c_contiguous
    assert clamped == 6
    assert smallest == np.float32(-0.002)
    np.testing.assert_array_equal(prior, np.maximum(values, 0).astype(np.float32))
    counts = (10 * PRIOR).astype(np.uint8)
    prior, clamped, _ = prior_files.read_matlab(matlab(tmp_path / "b.mat", prior_array=counts))
    assert clamped == 0
    assert np.array_equal(prior, counts)


def test_matlab_maps_are_shrunk_to_means(tmp_path):
    path = matlab(tmp_path / "a.mat", prior_array=PRIOR)
    prior, _, _ = prior_files.read_matlab(path, grid=(2, 4))
    expected = PRIOR.reshape(19, 2, 2, 4, 2).mean(axis=(2, 4))
    np.testing.assert_allclose(prior, expected, rtol=1e-6)  # sums of four in another order
    with pytest.raises(ConfigError, match="^grid must be at most 4 x 8, got 4 x 16$"):
        prior_files.read_matlab(path, grid=(4, 16))


def test_a_given_file_is_read_as_it_is(tmp_path):
    path = matlab(tmp_path / "prior_array.MAT", prior_array=np.where(PRIOR < 0.1, -0.001, 5 * PRIOR))
    prior, metadata = prior_files.read_given(path, 19, NAMES)
    np.testing.assert_array_equal(prior, np.where(PRIOR < 0.1, 0, 5 * PRIOR.astype(np.float64)).astype(np.float32))
    clamped = int((PRIOR < 0.1).sum())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    expected = {"normalisation": "as given", "clamped": clamped, "names": NAMES, "file": path.name, "sha256": digest}
    assert metadata == expected
    prior_files.save(tmp_path / "a.npz", 5 * PRIOR, {"names": NAMES, "normalisation": "maximum", "images": 4})
    prior, metadata = prior_files.read_given(tmp_path / "a.npz", 19, NAMES)
    np.testing.assert_array_equal(prior, 5 * PRIOR)
    assert (metadata["normalisation"], metadata["images"], metadata["file"]) == ("maximum", 4, "a.npz")
    # its copy says the same, and is used times a power of two
    prior_files.save(tmp_path / "copy.npz", prior, metadata)
    assert prior_files.read(tmp_path / "copy.npz")[1] == metadata
    np.testing.assert_array_equal(prior_files.load(tmp_path / "copy.npz", 19, NAMES), 5 * PRIOR / np.float32(8))


def test_given_files_that_cannot_be_used_are_refused(tmp_path):
    zero = matlab(tmp_path / "zero.mat", prior_array=np.zeros((19, 4, 8)))
    few = matlab(tmp_path / "few.mat", prior_array=PRIOR[:16])
    low = matlab(tmp_path / "low.mat", prior_array=np.log(PRIOR))
    bad = matlab(tmp_path / "bad.mat", prior_array=PRIOR * np.nan)
    flat = matlab(tmp_path / "flat.mat", prior_array=PRIOR[0])
    np.savez(tmp_path / "negative.npz", prior=PRIOR - 0.5)
    np.savez(tmp_path / "zero.npz", prior=PRIOR * 0)
    prior_files.save(tmp_path / "other.npz", PRIOR, {"names": [*NAMES[:9], "grass", *NAMES[10:]]})
    for path, sentence in (
        (zero, "zero.mat must hold a value above 0, got zeros only: no pixel could get a label$"),
        (few, r"few.mat must hold a prior of shape \(19, H, W\), got \(16, 4, 8\)$"),
        (low, "low.mat must hold frequencies, whose negative values are small, got -"),
        (bad, "bad.mat must hold finite values, got NaN or infinity"),
        (flat, r"real numbers of shape \(C, H, W\), got single of shape \(4, 8\)$"),
        (tmp_path / "negative.npz", "negative.npz must hold finite values of at least 0$"),
        (tmp_path / "zero.npz", "zero.npz must hold a value above 0"),
        (tmp_path / "other.npz", "class 9 is 'grass', not 'terrain'$"),
        (tmp_path / "none.mat", "^spatial prior .*none.mat does not exist: put the file there, or name another$"),
        (Path(__file__), r"test_spatial_prior.py must be a .npz file or the authors' .mat file$"),
    ):
        with pytest.raises(DataError, match=sentence):
            prior_files.read_given(path, 19, NAMES)


def test_matlab_files_are_refused(tmp_path):
    path = tmp_path / "a.mat"
    for arrays, sentence in (
        ({"q": PRIOR, "note": "x"}, "a.mat must hold the array 'prior_array', got q, note$"),
        ({"prior_array": PRIOR[0]}, r"real numbers of shape \(C, H, W\), got single of shape \(4, 8\)$"),
        ({"prior_array": PRIOR + 1j}, r"real numbers of shape \(C, H, W\), got complex single of shape \(19, 4, 8\)$"),
        ({"prior_array": "text"}, "got char of shape"),
        ({"prior_array": {"a": 1}}, "got struct of shape"),
        ({"prior_array": np.where(PRIOR > 0.5, np.nan, PRIOR)}, "got NaN or infinity in 'prior_array'$"),
        ({"prior_array": PRIOR.astype(np.float64) * 1e300}, "got NaN or infinity"),
        ({"prior_array": np.log(PRIOR)}, "must hold frequencies, whose negative values are small, got -"),
    ):
        matlab(path, **arrays)
        with pytest.raises(DataError, match=sentence):
            prior_files.read_matlab(path)
    for start in (b"", b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(384)):
        path.write_bytes(start + b"\x89HDF\r\n\x1a\n" + bytes(2000))
        with pytest.raises(DataError, match=r"is a MATLAB v7.3 \(HDF5\) file: save it with MATLAB's option -v7"):
            prior_files.read_matlab(path)
    whole = matlab(path, prior_array=PRIOR).read_bytes()
    for content in (b"", b"nonsense" * 100, whole[:150], whole[:-100]):
        path.write_bytes(content)
        with pytest.raises(DataError, match="a.mat is not a readable MATLAB file: "):
            prior_files.read_matlab(path)
    with pytest.raises(DataError, match="is not a readable MATLAB file: No such file or directory$"):
        prior_files.read_matlab(tmp_path / "none.mat")
