"""Runs side by side: gains by hand, the paired interval, and what cannot be compared."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from cbst_mx.cli import main
from cbst_mx.errors import ConfigError, DataError, RunError
from cbst_mx.evaluation.comparison import compare, differ_in_target
from cbst_mx.evaluation.confusion import mean_iou
from cbst_mx.evaluation.protocols import ImageMatrices, draw_images, resampled_miou
from tests.fake_run import write_run


def group(folder, seeds=(0, 1), done=1):
    """Write a run per seed, each a copy of the fake run."""
    for seed in seeds:
        run = write_run(folder / f"seed-{seed}", done=done)
        settings = yaml.safe_load(run.experiment.read_text())
        run.experiment.write_text(yaml.safe_dump({**settings, "seed": seed}))
    return folder


def test_the_gain_is_the_mean_difference_by_seed(tmp_path):
    source, adapted = group(tmp_path / "source", done=0), group(tmp_path / "cbst")
    base, row = compare([source, adapted])
    # IoU of the source network: 4/8 of the road, 0 of the sky; of round 1: 4/6 and 2/4
    assert base.miou == pytest.approx((0.25, 0.25))
    assert (base.stage, base.gain, base.low, base.high) == ("source", 0, 0, 0)
    assert row.miou == pytest.approx((7 / 12, 7 / 12))
    assert (row.name, row.seeds, row.stage) == ("cbst", (0, 1), "round 1")
    assert row.gain == pytest.approx(1 / 3)
    # both images are alike: every sample has the same gain
    assert (row.low, row.high) == pytest.approx((1 / 3, 1 / 3))


def test_the_interval_is_paired():
    # Ten images of very different difficulty, on each of which the second network is right at 5 more pixels: alone,
    # each mean is uncertain; the gain is not.
    rng = np.random.default_rng(0)
    right = rng.integers(20, 80, size=10)

    def matrices(hits):
        counts = np.zeros((10, 2, 2), np.int64)
        for image, hit in enumerate(hits):
            counts[image] = [[hit, 100 - hit], [100 - hit, hit]]
        return ImageMatrices(("a", "b"), tuple(map(str, range(10))), counts)

    draws = draw_images(10, samples=2000, seed=0)
    (first, drawn), (second, other) = (resampled_miou(matrices(hits), draws) for hits in (right, right + 5))
    assert first == mean_iou(matrices(right).counts.sum(axis=0))
    assert np.ptp(np.percentile(other - drawn, [2.5, 97.5])) < 0.2 * np.ptp(np.percentile(drawn, [2.5, 97.5]))
    assert second > first


def test_single_runs_are_compared_as_well(tmp_path):
    runs = [write_run(tmp_path / name, done=done).path for name, done in (("a", 0), ("b", 1))]
    assert [row.gain for row in compare(runs)] == pytest.approx([0, 1 / 3])


def test_what_cannot_be_compared_is_refused(tmp_path):
    base = group(tmp_path / "base")
    with pytest.raises(ConfigError, match="other must have the seeds of those in .*base, 0, 1, got 0, 2$"):
        compare([base, group(tmp_path / "other", seeds=(0, 2))])
    twice = group(tmp_path / "twice")
    (twice / "seed-1" / "experiment.yaml").write_bytes((twice / "seed-0" / "experiment.yaml").read_bytes())
    with pytest.raises(ConfigError, match="twice must differ in their seeds, got two of seed 0$"):
        compare([base, twice])
    with pytest.raises(RunError, match="is no run folder and holds none"):
        compare([base, tmp_path / "none"])
    with pytest.raises(ConfigError, match="^set must be one of target, got 'x'$"):
        compare([base, base], name="x")
    with pytest.raises(ConfigError, match="^samples must be at least 1, got 0$"):
        compare([base, base], samples=0)
    fewer = group(tmp_path / "fewer")
    stage = fewer / "seed-1" / "round-1" / "confusion.npz"
    with np.load(stage) as stored:
        arrays = dict(stored)
    arrays["target"], arrays["target.images"] = arrays["target"][:1], arrays["target.images"][:1]
    np.savez(stage, **arrays)
    with pytest.raises(DataError, match="fewer must be evaluated on the images and classes of those in .*base$"):
        compare([base, fewer])


def test_the_command_prints_a_table(tmp_path):
    command = ["compare", str(group(tmp_path / "source", done=0)), str(group(tmp_path / "cbst"))]
    shown = CliRunner(env={"COLUMNS": "80"}).invoke(main, [*command, "--out", str(tmp_path / "out.json")])
    assert shown.exit_code == 0, shown.output
    assert [line.split() for line in shown.output.splitlines() if line.strip().startswith("cbst")] == [
        ["cbst", "round", "1", "58.3", "±", "0.0", "+33.3", "+33.3", "to", "+33.3"]
    ]
    assert "source, cbst: adapted on cityscapes train without labels\n" in shown.output
    assert "adapted on different images" not in shown.output
    assert "seeds 0, 1; 1000 bootstrap samples of the images, seed 0" in shown.output
    assert json.loads((tmp_path / "out.json").read_text())[1]["gain"] == pytest.approx(1 / 3)


def test_it_is_said_where_runs_were_adapted_on_different_images(tmp_path):
    """Another split, and a network that is only tested here but was adapted on that split in its own run."""
    train, val = write_run(tmp_path / "train"), write_run(tmp_path / "val")
    settings = yaml.safe_load(val.experiment.read_text())
    settings["target"]["split"] = "val"
    val.experiment.write_text(yaml.safe_dump(settings))
    tested = write_run(tmp_path / "tested", rounds=0, done=0)
    settings = yaml.safe_load(tested.experiment.read_text())
    settings["initial_parameters"] = str(val.path / "round-1" / "parameters.params")
    tested.experiment.write_text(yaml.safe_dump(settings))
    source = write_run(tmp_path / "source", rounds=0, done=0)
    for other in (val, tested):
        shown = CliRunner().invoke(
            main, ["compare", str(train.path), str(other.path), "--out", str(tmp_path / "o.json")]
        )
        assert shown.exit_code == 0, shown.output
        assert "adapted on different images: a gain is not of the method alone\n" in shown.output
        assert "adapted on cityscapes val" in json.loads((tmp_path / "o.json").read_text())[1]["target"]
    assert not differ_in_target(compare([source.path, train.path]))
    assert not differ_in_target(compare([val.path, tested.path]))
