"""Numbers of a first experiment: they follow images, machine and start, and stay within what the loader allows."""

from __future__ import annotations

from collections import Counter

import pytest

from cbst_mx.config.draft import Machine, choose
from cbst_mx.networks.spec import NetworkSpec

GB = 1 << 30
SMALL = Machine(2, 8 * GB)
PHOTOS = Counter({(180, 240): 100})


def test_the_rounds_begin_at_a_sixteenth():
    for pretrained in (None, NetworkSpec("fcn8s", 11, {"hidden": 512})):
        chosen = choose(PHOTOS, PHOTOS, SMALL, pretrained)
        assert chosen.round_rate == chosen.rate / 16


def test_a_crop_fits_into_nearly_all_images():
    assert choose(PHOTOS, PHOTOS, SMALL).crop == (128, 160)
    assert choose(Counter({(360, 480): 60, (480, 360): 40}), PHOTOS, SMALL).crop[1] <= 240
    mixed = choose(Counter({(180, 240): 50, (240, 180): 50}), Counter({(180, 240): 10}), SMALL)
    assert max(mixed.crop) <= 180
    assert choose(Counter({(180, 240): 99, (20, 20): 1}), PHOTOS, SMALL).crop == (128, 160)
    assert choose(Counter({(20, 24): 9}), Counter({(20, 24): 9}), SMALL).crop == (32, 32)
    assert all(side % 16 == 0 for side in choose(Counter({(1000, 700): 9}), PHOTOS, SMALL).crop)


def test_large_images_are_seen_smaller_and_training_goes_along():
    large = Counter({(3000, 4000): 20})
    chosen = choose(large, large, SMALL)
    assert chosen.long_side == 480
    assert chosen.scale == pytest.approx((0.7 * 480 / 4000, 1.3 * 480 / 4000), abs=1e-3)  # of three digits
    assert choose(PHOTOS, PHOTOS, SMALL).long_side is None


def test_reading_large_images_counts():
    large = Counter({(3000, 4000): 20})
    small, slow = choose(PHOTOS, PHOTOS, SMALL), choose(large, large, SMALL)
    assert slow.iterations < small.iterations / 2
    assert slow.iterations >= 400


def test_larger_machines_do_more_and_small_memory_less():
    small, large = choose(PHOTOS, PHOTOS, SMALL), choose(Counter({(360, 480): 100}), PHOTOS, Machine(16, 64 * GB))
    assert large.iterations > small.iterations
    assert large.crop > small.crop
    tight = choose(PHOTOS, PHOTOS, Machine(2, GB // 4))
    assert (tight.batch, tight.inference_batch) < (small.batch, small.inference_batch)
    assert choose(PHOTOS, PHOTOS, Machine(8, 64 * GB, gpus=1)).ctx == "gpu:0"


def test_pretrained_parameters_bring_their_network():
    spec = NetworkSpec("fcn8s", 11, {"hidden": 512, "kernel": 3}, (0.4, 0.4, 0.4), (1 / 255,) * 3)
    chosen = choose(PHOTOS, PHOTOS, Machine(2, 8 * GB, bfloat16=True), spec)
    assert chosen.network["options"] == {"hidden": 512, "kernel": 3}
    assert chosen.network["mean"] == [0.4, 0.4, 0.4]
    assert (chosen.amp, chosen.rate, chosen.batch) == ("bfloat16", 0.01, 4)
    assert chosen.minutes > choose(PHOTOS, PHOTOS, SMALL).minutes


def test_few_images_make_small_batches():
    assert choose(Counter({(180, 240): 3}), Counter({(180, 240): 1}), SMALL).batch == 2
