"""The front door on arrays: equal to the sorted form and the labelling job, any float type, one-sentence refusals."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cbst_mx import selftrain
from cbst_mx.errors import ConfigError, DataError
from cbst_mx.labelling import MapFolder, run
from cbst_mx.selftrain.interpolation import INTERPOLATIONS
from tests.maps import random_maps

ROOT = Path(__file__).resolve().parents[1]


def maps_of(count=3, classes=5, size=(12, 17)):
    return [random_maps(seed, (classes, *size)) for seed in range(count)]


def assert_equal(found, expected):
    np.testing.assert_array_equal(found.values, expected.values)
    np.testing.assert_array_equal(found.counts, expected.counts)
    assert (found.policy, found.fidelity, found.portion) == (expected.policy, expected.fidelity, expected.portion)


def test_an_axis_of_one_image_is_left_out():
    maps = maps_of()
    found = selftrain.thresholds([array[None] for array in maps])
    assert_equal(found, selftrain.thresholds(maps))
    np.testing.assert_array_equal(
        selftrain.pseudo_labels(maps[0][None], found), selftrain.pseudo_labels(maps[0], found)
    )
    with pytest.raises(DataError, match=r"map 0 must be of shape \(C, H, W\), got \(3, 5, 12, 17\)"):
        selftrain.thresholds([np.array(maps)])


@pytest.mark.parametrize("fidelity", ["paper", "released"])
@pytest.mark.parametrize("policy", ["st", "cbst"])
def test_thresholds_and_labels_are_those_of_the_sorted_form(policy, fidelity):
    from cbst_mx.selftrain.kc import ConfidencePool
    from cbst_mx.selftrain.on_device import select
    from symbols.backend import mx

    maps = maps_of()
    pool = ConfidencePool(5, fidelity=fidelity)
    for array in maps:
        pool.add(mx.nd.array(array))
    expected = pool.thresholds({"st": "global", "cbst": "class-balanced"}[policy], 0.3)
    found = selftrain.thresholds(maps, portion=0.3, policy=policy, fidelity=fidelity)
    assert_equal(found, expected)
    np.testing.assert_array_equal(found.k, -np.log(found.values.astype(np.float64)))
    for array in maps:
        label = selftrain.pseudo_labels(array, found)
        assert label.dtype == np.uint8
        np.testing.assert_array_equal(label, select(mx.nd.array(array), expected))
        value, predicted = selftrain.confidence(array)
        np.testing.assert_array_equal(value, array.max(axis=0))
        np.testing.assert_array_equal(predicted, array.argmax(axis=0))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_maps_at_a_stride_with_a_prior_are_those_of_the_labelling_job(tmp_path, interpolation):
    from cbst_mx.data.image_files import read_label
    from cbst_mx.selftrain import prior_files

    sizes = [(46, 62), (46, 62), (41, 64), (48, 57)]
    maps = [random_maps(seed, (5, -(-h // 8), -(-w // 8))) for seed, (h, w) in enumerate(sizes)]
    prior = np.random.default_rng(9).random((5, 4, 6))
    (tmp_path / "maps").mkdir()
    for index, array in enumerate(maps):
        np.save(tmp_path / "maps" / f"{index}.npy", array)
    prior_files.save(tmp_path / "prior.npz", prior)
    folder = MapFolder.open(
        tmp_path / "maps",
        stride=8,
        size={str(index): size for index, size in enumerate(sizes)},
        interpolation=interpolation,
        prior=tmp_path / "prior.npz",
    )
    record = run(folder, tmp_path / "out", policy="class-balanced", portion=0.25)
    options = {"prior": prior, "stride": 8, "interpolation": interpolation}
    found = selftrain.thresholds(maps, portion=0.25, policy="cbst-sp", size=sizes, **options)
    assert found.to_json() == {key: record[key] for key in found.to_json()}
    for index, (array, size) in enumerate(zip(maps, sizes)):
        label = selftrain.pseudo_labels(array, found, size=size, **options)
        np.testing.assert_array_equal(label, read_label(tmp_path / "out" / "pseudo_labels" / f"{index}.png"))
        value, _ = selftrain.confidence(array, size=size, **options)
        assert value.shape == size


def test_a_prior_of_zeros_is_refused_by_its_name():
    with pytest.raises(DataError, match="^prior must hold a value above 0, got zeros only"):
        selftrain.thresholds(maps_of(), policy="cbst-sp", prior=np.zeros((len(maps_of()[0]), 4, 6)))


def test_any_float_type_and_anything_that_can_be_read_twice_will_do():
    maps = maps_of()
    expected = selftrain.thresholds(maps)
    assert_equal(selftrain.thresholds([array.astype(np.float64) for array in maps]), expected)
    assert_equal(selftrain.thresholds(np.stack(maps).astype(np.longdouble)), expected)
    assert_equal(selftrain.thresholds(tuple(maps)), expected)

    class Folder:
        def __iter__(self):
            return iter(maps)

    assert_equal(selftrain.thresholds(Folder()), expected)
    halves = [array.astype(np.float16) for array in maps]
    assert_equal(selftrain.thresholds(halves), selftrain.thresholds([array.astype(np.float32) for array in halves]))


def test_the_number_of_images_is_free_but_not_their_classes():
    assert selftrain.thresholds(maps_of(count=1)).counts.sum() == 12 * 17
    assert selftrain.thresholds([random_maps(0, (3, 1, 1))]).counts.sum() == 1
    with pytest.raises(DataError, match=r"^map 1 must have 5 classes, got shape \(4, 12, 17\)$"):
        selftrain.thresholds([*maps_of(1), *maps_of(1, classes=4)])


ONE = random_maps(0, (3, 4, 5))


@pytest.mark.parametrize(
    ("maps", "options", "message"),
    [
        ((array for array in [ONE]), {}, "maps must be readable more than once, .* only once: give list.maps.,"),
        ([], {}, "maps must hold at least one map, got none"),
        ([ONE, (255 * ONE).astype(np.uint8)], {}, "map 1 must hold probabilities of a float type, got uint8"),
        ([ONE.astype(np.int64)], {}, "map 0 must hold probabilities of a float type, got int64"),
        (ONE, {}, r"map 0 must be of shape \(C, H, W\), got \(4, 5\)"),
        ([ONE[:, :0]], {}, r"map 0 must be of shape \(C, H, W\), got \(3, 0, 5\)"),
        ([np.moveaxis(np.zeros((3, 4, 300), np.float32), 2, 0)], {}, r"at most 255 classes, got shape \(300, 3, 4\)"),
        ([ONE, np.log(ONE)], {}, "map 1: probabilities must be at least 0, got -.*: logits have to go through"),
        ([ONE * np.nan], {}, "map 0: probabilities must be finite, got NaN or infinity"),
        ([ONE], {"portion": 1.5}, r"portion must be in \(0, 1\], got 1.5"),
        ([ONE], {"policy": "best"}, "policy must be one of st, cbst, cbst-sp, global, class-balanced, got 'best'"),
        ([ONE], {"policy": "cbst-sp"}, "policy cbst-sp needs a prior"),
        ([ONE], {"fidelity": "mine"}, "fidelity must be one of paper, released, got 'mine'"),
        ([ONE], {"stride": 0}, "stride must be at least 1, got 0"),
        ([ONE], {"size": (4, 0)}, r"size must be a height and a width of at least 1 pixel, got \(4, 0\)"),
        ([ONE], {"stride": 8, "size": (40, 40)}, "map 0 must have the cells of 40 x 40 pixels at stride 8, got 4 x 5"),
        ([ONE, ONE], {"size": [(4, 5)]}, r"size must be one \(H, W\) or as many as there are maps, 1 are in both"),
        ([ONE], {"interpolation": "nearest"}, "interpolation must be one of bilinear, bicubic, pillow, got 'nearest'"),
        ([ONE], {"prior": np.ones((2, 4, 5))}, r"prior must have the 3 classes of the maps, got shape \(2, 4, 5\)"),
        ([ONE], {"prior": -np.ones((3, 4, 5))}, "prior must hold finite values of at least 0"),
        ([ONE], {"prior": np.ones((3, 4))}, r"prior must hold a prior of shape \(C, H, W\), got \(3, 4\)"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_sentence(maps, options, message):
    with pytest.raises((ConfigError, DataError), match=message) as caught:
        selftrain.thresholds(maps, **options)
    assert "\n" not in str(caught.value)


def test_labels_refuse_other_thresholds():
    with pytest.raises(ConfigError, match=r"thresholds must be what selftrain.thresholds returns, got list"):
        selftrain.pseudo_labels(ONE, [0.5, 0.5, 0.5])
    with pytest.raises(DataError, match=r"^probabilities must have 5 classes, got shape \(3, 4, 5\)$"):
        selftrain.pseudo_labels(ONE, selftrain.thresholds(maps_of()))


def test_it_works_where_mxnet_cannot_be_imported():
    code = """
import sys
sys.modules["mxnet"] = None
import numpy as np
from cbst_mx import selftrain
maps = list(np.random.default_rng(0).dirichlet([1, 1, 1], (2, 8, 9)).transpose(0, 3, 1, 2))
print(selftrain.pseudo_labels(maps[0], selftrain.thresholds(maps)).shape)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=str(ROOT), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "(8, 9)\n"), done.stderr


def test_one_class_and_ties_are_said():
    maps = np.zeros((2, 3, 10, 20), np.float32)
    maps[:, 1] = 1
    with pytest.warns(UserWarning, match="pixels") as told:
        selftrain.thresholds(list(maps), portion=0.2)
    assert [str(one.message).partition(":")[0] for one in told] == [
        "all pixels are predicted as one class of 3",
        "100 % of the pixels are kept where 20 % were asked for",
    ]


def test_pixels_that_reach_their_threshold_are_counted():
    from cbst_mx.selftrain.counting import StreamingThresholds

    for dtype in (np.float32, np.float16):
        state, arrays = StreamingThresholds(5), [array.astype(dtype) for array in maps_of()]
        for again in (True, False):
            for index, array in enumerate(arrays):
                state.add(str(index), array.max(axis=0), array.argmax(axis=0).astype(np.uint8))
            if again and not state.refine(["class-balanced"], [0.3]):
                break
        found = state.thresholds("class-balanced", 0.3)
        expected = sum(
            np.bincount(classes[array.max(axis=0) >= found.values[classes]], minlength=5)
            for array, classes in ((array, array.argmax(axis=0)) for array in arrays)
        )
        np.testing.assert_array_equal(state.reached(found), expected)
