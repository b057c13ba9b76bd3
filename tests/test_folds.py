"""Folds: what they depend on, their sizes, and what is refused."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from cbst_mx.data.folds import assign_folds, split_fold
from cbst_mx.errors import ConfigError

NAMES = [f"pano_{i:05}_2_180" for i in range(100)]


def test_every_image_is_held_out_once():
    held_out = [split_fold(NAMES, fold)[1] for fold in range(10)]
    assert [len(indices) for indices in held_out] == [10] * 10
    assert sorted(index for indices in held_out for index in indices) == list(range(100))
    for fold in range(10):
        rest, inside = split_fold(NAMES, fold)
        assert sorted(rest + inside) == list(range(100))
        assert list(rest) == sorted(rest)
        assert list(inside) == sorted(inside)


def test_folds_depend_on_names_number_and_seed_alone():
    assigned = assign_folds(NAMES)
    order = np.random.default_rng(0).permutation(100)
    np.testing.assert_array_equal(assign_folds([NAMES[i] for i in order]), assigned[order])
    np.testing.assert_array_equal(assign_folds(NAMES, folds=10, seed=0), assigned)
    # By chance 10 of 100 agree; 25 or more is beyond five standard deviations.
    assert (assign_folds(NAMES, seed=1) == assigned).sum() < 25
    assert set(assign_folds(NAMES, folds=4).tolist()) == {0, 1, 2, 3}


def test_folds_are_the_ones_documented():
    # Written out once more: results that name a fold and a seed stay comparable.
    ranked = sorted(NAMES, key=lambda name: hashlib.sha256(f"3/{name}".encode()).hexdigest())
    expected = {name: rank % 10 for rank, name in enumerate(ranked)}
    assert assign_folds(NAMES, seed=3).tolist() == [expected[name] for name in NAMES]


def test_folds_that_do_not_divide_differ_by_one():
    assert sorted(np.bincount(assign_folds(NAMES[:23], folds=5)).tolist()) == [4, 4, 5, 5, 5]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"fold": 10}, "fold must be from 0 to 9, got 10"),
        ({"fold": -1}, "fold must be from 0 to 9, got -1"),
        ({"fold": 0, "folds": 1}, "folds must be from 2 to the number of images, 100, got 1"),
        ({"fold": 0, "folds": 101}, "folds must be from 2 to the number of images, 100, got 101"),
        ({"fold": 0, "seed": -1}, "fold_seed must be 0 or more, got -1"),
    ],
)
def test_refusals(arguments, sentence):
    with pytest.raises(ConfigError) as error:
        split_fold(NAMES, **arguments)
    assert str(error.value) == sentence
