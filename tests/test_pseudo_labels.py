"""Confidence and eq. 5, 8, 9 on arrays: equal to the paper's listing, to the NDArray form and to measured labels."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbst_mx.errors import DataError
from cbst_mx.label_space import CITYSCAPES_19
from cbst_mx.selftrain import class_maps
from cbst_mx.selftrain.class_maps import ClassMaps
from cbst_mx.selftrain.pseudo_labels import _candidates, confidence, select
from cbst_mx.selftrain.thresholds import Thresholds
from tests.maps import random_maps
from tests.reference import algorithms

GOLDEN = Path(__file__).parent / "golden" / "pseudo_labels.npz"
ROOT = Path(__file__).resolve().parents[1]


def thresholds(values):
    values = np.float32(values)
    return Thresholds("class-balanced", "paper", 0.2, values, np.ones(len(values), np.int64))


def smooth_maps(draw, classes, size):
    """Maps in which single classes rule whole regions, as networks give them: few classes compete in a tile."""
    seed, sharpness = draw(st.integers(0, 10**6)), draw(st.sampled_from([0.3, 2.0, 10.0, 60.0]))
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((classes, 3, 3)).astype(np.float32) * sharpness
    logits = np.stack([cv2.resize(plane, size[::-1], interpolation=cv2.INTER_LINEAR) for plane in coarse])
    logits += draw(st.sampled_from([0.0, 1.0])) * rng.standard_normal(logits.shape).astype(np.float32)
    exponentials = np.exp(logits - logits.max(axis=0))
    return (exponentials / exponentials.sum(axis=0)).astype(np.float32)


@st.composite
def priors(draw, classes):
    kind = draw(st.sampled_from(["none", "mild", "harsh", "zeros", "tiny"]))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    prior = rng.random((classes, 4, 6), dtype=np.float32)
    if kind == "none":
        return None
    return {"mild": prior + 1, "harsh": prior**20, "zeros": prior * (prior > 0.5), "tiny": prior * 1e-38}[kind].astype(
        np.float32
    )


@settings(max_examples=120, deadline=None)
@given(st.data(), st.integers(1, 9), st.sampled_from([((8, 12), (64, 96)), ((5, 9), (37, 70))]))
def test_leaving_out_hopeless_classes_changes_no_bit(data, classes, sizes):
    small, size = sizes
    maps = ClassMaps(smooth_maps(data.draw, classes, small), size)
    array = data.draw(priors(classes))
    prior = None if array is None else ClassMaps(array, size)
    limits = data.draw(st.lists(st.sampled_from([0.05, 0.5, 0.9, 1.0, np.inf, 1e-30, 1e-40, 0.0]), min_size=1))
    limits = np.resize(np.float32(limits), classes)
    whole = maps.rows(0, size[0])
    if prior is not None:
        whole = whole * prior.rows(0, size[0])
    tile = class_maps._TILE
    class_maps._TILE = (16, 24)
    try:
        value, predicted = confidence(maps, prior)
        (label,) = select(maps, [thresholds(limits)], prior)
    finally:
        class_maps._TILE = tile
    np.testing.assert_array_equal(value.view(np.uint32), whole.max(axis=0).view(np.uint32))
    np.testing.assert_array_equal(predicted, np.where(whole.max(axis=0) > 0, whole.argmax(axis=0), 255))
    with np.errstate(over="ignore"):
        winner = (whole / np.maximum(limits, np.finfo(np.float32).tiny)[:, None, None]).argmax(axis=0)
    kept = ((whole >= limits[:, None, None]) & (whole > 0)).any(axis=0)
    np.testing.assert_array_equal(label, np.where(kept, winner, 255))


def test_few_classes_are_computed_where_one_rules():
    logits = np.zeros((19, 16, 32), dtype=np.float32)
    logits[3, :, :16], logits[7, :, 16:] = 12, 12
    maps = ClassMaps(np.exp(logits) / np.exp(logits).sum(axis=0), (128, 256))
    found = _candidates(maps, None, slice(0, 128), slice(0, 64), [np.ones(19, np.float32)])
    assert found.tolist() == [3]
    found = _candidates(maps, None, slice(0, 128), slice(0, 256), [np.ones(19, np.float32)])
    assert found.tolist() == [3, 7]


def test_selection_is_that_of_the_ndarray_form_and_of_the_paper():
    from cbst_mx.selftrain.on_device import select as select_on_ndarray
    from symbols.backend import mx

    for seed, values in enumerate(([0.3, 0.9, 0.5], [np.inf, 0.4, 0.4], [0.0, 0.5, 0.5], [1e-42, 0.6, np.inf])):
        maps = random_maps(seed, (3, 9, 11), sharpness=1.0)
        maps[:, 0, 0] = 0
        (label,) = select(ClassMaps(maps), [thresholds(values)])
        np.testing.assert_array_equal(label, select_on_ndarray(mx.nd.array(maps), thresholds(values)))
        if min(values) > 1e-30:  # the transcription divides by them
            limits = [None if value == np.inf else float(np.float32(value)) for value in values]
            np.testing.assert_array_equal(label.ravel(), algorithms.solve(maps, limits))


def test_a_threshold_of_zero_keeps_every_pixel_that_has_a_confidence():
    maps = np.zeros((2, 3, 4), dtype=np.float32)
    maps[1, 1:] = 0.5
    maps[0, 2] = 1e-40
    for values in ([0, 0], [-1, -1]):  # set by hand: no rule gives these
        (label,) = select(ClassMaps(maps), [thresholds(values)])
        np.testing.assert_array_equal(label, [[255] * 4, [1] * 4, [1] * 4])


def test_a_pixel_without_confidence_belongs_to_no_class():
    maps = random_maps(3, (4, 6, 7))
    maps[:, 2:4] = 0
    maps[:, 5] = -0.01
    for prior in (None, ClassMaps(np.ones_like(maps))):
        value, predicted = confidence(ClassMaps(maps), prior)
        assert (predicted[[2, 3, 5]] == 255).all()
        np.testing.assert_array_equal(predicted[:2], maps[:, :2].argmax(axis=0))
        np.testing.assert_array_equal(value, maps.max(axis=0))
    absent = np.ones_like(maps)
    absent[:, 0] = 0  # where the prior excludes every class
    assert (confidence(ClassMaps(maps), ClassMaps(absent))[1][0] == 255).all()


def test_several_thresholds_at_once_are_each_by_itself():
    maps = ClassMaps(random_maps(4, (5, 8, 9), 1.0), (64, 72))
    chosen = [thresholds([0.5] * 5), thresholds([0.9, 0.1, 0.3, np.inf, 0.2]), thresholds([0, 0.5, 0.5, 0.5, 0.5])]
    for label, single in zip(select(maps, chosen), chosen):
        np.testing.assert_array_equal(label, select(maps, [single])[0])


@pytest.mark.parametrize("run", ["cb", "global", "sp"])
def test_released_labels_are_reproduced_from_the_measured_thresholds(run):
    with np.load(GOLDEN) as golden:
        maps, ids = golden["probability"], golden[f"{run}_pseudo_label_ids"]
        prior = ClassMaps(golden["spatial_prior"]) if run == "sp" else None
        limits = golden[f"{run}_threshold"].astype(np.float32)
    chosen = thresholds(np.where(limits == 0, 1, limits))
    for probability, expected in zip(maps, ids):
        (label,) = select(ClassMaps(probability), [chosen], prior)
        np.testing.assert_array_equal(CITYSCAPES_19.decode(label, "cityscapes"), expected)


def test_maps_of_float16_are_those_of_their_values_in_float32():
    maps = random_maps(5, (4, 6, 7)).astype(np.float16)
    for size in ((6, 7), (48, 56)):
        half, single = ClassMaps(maps, size), ClassMaps(maps.astype(np.float32), size)
        for ours, theirs in zip(confidence(half), confidence(single)):
            np.testing.assert_array_equal(ours, theirs)


def test_refusals():
    maps = random_maps(6, (3, 4, 5))
    with pytest.raises(DataError, match=r"prior must be of 3 classes and size \(8, 10\), got 3 and \(4, 5\)"):
        confidence(ClassMaps(maps, (8, 10)), ClassMaps(maps))
    with pytest.raises(DataError, match="thresholds must be of 3 classes, got 2"):
        select(ClassMaps(maps), [thresholds([0.5, 0.5])])
    for size in ((4, 5), (8, 10)):
        with pytest.raises(DataError, match="must be at least 0, got -3.*: logits have to go through a softmax"):
            confidence(ClassMaps(np.where(maps > 0.5, maps, np.float32(-3)), size))
        for bad in (np.nan, np.inf):
            broken = maps.copy()
            broken[2, 1, 1] = bad
            with pytest.raises(DataError, match="probabilities must be finite, got NaN or infinity"):
                confidence(ClassMaps(broken, size))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
def test_a_full_size_image_takes_less_than_300_mb():
    code = """
import numpy as np
from cbst_mx.selftrain.counting import StreamingThresholds
from cbst_mx.selftrain.class_maps import ClassMaps
from cbst_mx.selftrain.pseudo_labels import confidence, select

def memory(which):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(which))

def image():
    logits = np.random.default_rng(0).standard_normal((19, 128, 256)).astype(np.float32)
    return np.exp(logits) / np.exp(logits).sum(axis=0)

maps = image()
base = memory("VmRSS")
size = (1024, 2048)
prior = ClassMaps(maps, size)
state = StreamingThresholds(19)
state.add("a", *confidence(ClassMaps(maps, size), prior))
assert state.refine(["class-balanced", "global"], [0.2])
state.add("a", *confidence(ClassMaps(maps, size), prior))
select(ClassMaps(maps, size), [state.thresholds("class-balanced", 0.2)], prior)
print(memory("VmHWM") - base)
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=str(ROOT), capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 300, result.stdout  # MB
    print(result.stdout)
