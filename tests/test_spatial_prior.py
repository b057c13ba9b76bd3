"""Spatial prior: counts by hand, smoothing, normalisation, resizing, files."""

from __future__ import annotations

import numpy as np
import pytest

from cbst_mx.data import open_labelled
from cbst_mx.data.street_scenes import Shift, write_demo_data
from cbst_mx.errors import ConfigError, DataError
from cbst_mx.label_space import CITYSCAPES_19
from cbst_mx.selftrain import spatial_prior


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
    prior = spatial_prior.estimate(Labels([[0, 1], [1, 255]], [[0, 0], [1, 2]]), (2, 2), kernel=0)
    np.testing.assert_array_equal(prior[0], [[1, 0.5], [0, 0]])  # class 0 occurs 2, 1, 0, 0 times
    np.testing.assert_array_equal(prior[1], [[0, 0.5], [1, 0]])
    np.testing.assert_array_equal(prior[2], [[0, 0], [0, 1]])
    assert not prior[3:].any()


def test_smoothing_spreads_by_the_scaled_kernel():
    counts = np.zeros((1, 128, 256))
    counts[0, 64, 128] = 1
    maps = spatial_prior.smooth(counts)
    assert maps.dtype == np.float32 and (maps >= 0).all()
    rows = np.flatnonzero(maps[0].sum(axis=1))
    # 70 pixels at height 1024 are 8.75 pixels at 128: three sigma to either side of the centre, rounded to pixels
    assert 8 <= rows[-1] - rows[0] + 1 <= 10
    assert maps[0, 64, 128] == 1


def test_generated_streets_have_sky_above_and_road_below(tmp_path):
    write_demo_data(
        tmp_path / "d",
        source_count=30,
        source_val_count=0,
        target_count=0,
        target_val_count=0,
        size=(64, 128),
        seed=0,
        shift=Shift(),
    )
    source = open_labelled("gta5", tmp_path / "d" / "gta5", label_space=CITYSCAPES_19)
    prior = spatial_prior.estimate(source, (32, 64))
    sky, road = prior[CITYSCAPES_19.names.index("sky")], prior[CITYSCAPES_19.names.index("road")]
    assert sky[:8].mean() > 0.2 and sky[16:].max() < 0.05
    assert road[16:].mean() > 0.5 and road[:8].max() < 0.05


def test_resizing():
    prior = spatial_prior.smooth(np.random.default_rng(0).poisson(1.0, (3, 16, 32)))
    large = spatial_prior.resized(prior, (64, 128))
    assert large.shape == (3, 64, 128) and large.dtype == np.float32 and (large >= 0).all()
    # bilinear interpolation repeats the border, which shifts the mean a little
    np.testing.assert_allclose(large.mean(axis=(1, 2)), prior.mean(axis=(1, 2)), rtol=0.02)
    assert spatial_prior.resized(prior, (16, 32)) is prior


def test_file_round_trip_and_refusals(tmp_path):
    prior = spatial_prior.smooth(np.ones((19, 4, 8)))
    path = tmp_path / "prior.npz"
    spatial_prior.save(path, prior)
    np.testing.assert_array_equal(spatial_prior.load(path, 19), prior)
    with pytest.raises(DataError, match=r"must hold a prior of shape \(13, H, W\), got \(19, 4, 8\)"):
        spatial_prior.load(path, 13)
    spatial_prior.save(path, -prior)
    with pytest.raises(DataError, match="finite values of at least 0"):
        spatial_prior.load(path, 19)
    path.write_bytes(b"nonsense")
    with pytest.raises(DataError, match="is not a readable spatial prior"):
        spatial_prior.load(path, 19)
    with pytest.raises(DataError, match="is not a readable spatial prior"):
        spatial_prior.load(tmp_path / "none.npz", 19)
    with pytest.raises(ConfigError, match="kernel must be 0 or more pixels, got -1"):
        spatial_prior.smooth(np.ones((1, 2, 2)), kernel=-1)
