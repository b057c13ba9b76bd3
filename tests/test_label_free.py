"""Runs without a validation set: class shares, confidence and moved pixels in place of IoU."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

import cbst_mx
from cbst_mx.cli import main
from cbst_mx.errors import DataError, RunError
from cbst_mx.evaluation.label_free import STEP, GridStatistics, load_grid, load_saturated, moved_share
from cbst_mx.rounds import Run
from cbst_mx.selftrain.class_statistics import ImageStatistics
from cbst_mx.selftrain.network_maps import probabilities
from tests.tiny import DEMO, experiment, options, write_scenes

NAMES = ("road", "sky", "car")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes") / "data", size=(40, 64))


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """Return a run without validation sets, with its summary."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CBST_DATA", str(data))
        run = Run(experiment("validation={}"), tmp_path_factory.mktemp("runs") / "cbst")
        return run, run.run()


def predicted(*grids):
    statistics = GridStatistics(3, NAMES)
    for name, grid in grids:
        statistics.add_pixels(name, np.full(grid.shape, 0.5, np.float32), grid)
    statistics.grid = dict(grids)  # every pixel
    return statistics


def test_the_numbers_of_a_set():
    grid = np.array([[0, 0, 1], [0, 0, 255]], dtype=np.uint8)
    summary = predicted(("a", grid), ("b", grid)).summary()
    assert summary == {
        "images": 2,
        "names": list(NAMES),
        "predicted": [8, 2, 0],
        "share": [0.8, 0.2, 0.0],
        "confidence": [0.5, 0.5, None],
        "mean_confidence": 0.5,
        "moved": None,
        "moved_since_source": None,
    }


def test_moved_pixels_are_counted_against_two_networks(tmp_path):
    source, before, now = (np.array([row], dtype=np.uint8) for row in ([0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 1, 2]))
    for name, grid in (("source", source), ("before", before)):
        predicted(("a b/c.npy", grid)).save_grid(tmp_path / name)
    summary = predicted(("a b/c.npy", now)).summary(tmp_path / "before", tmp_path / "source")
    assert (summary["moved"], summary["moved_since_source"]) == (0.5, 0.75)


def test_grids_are_read_back(tmp_path):
    rng = np.random.default_rng(0)
    grids = {name: rng.integers(0, 3, shape, dtype=np.uint8) for name, shape in (("x", (2, 5)), ("y.npy", (1, 1)))}
    predicted(*grids.items()).save_grid(tmp_path / "grid.npz")
    found = load_grid(tmp_path / "grid.npz")
    assert list(found) == list(grids)
    assert all(np.array_equal(found[name], grid) for name, grid in grids.items())
    assert moved_share(found, grids) == 0


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"names": np.array(["a"])}, "grid.npz"),
        ({"names": np.zeros(1), "sizes": np.ones((1, 2), int), "classes": np.zeros(1, np.uint8)}, "must hold N names"),
        (
            {"names": np.array(["a"]), "sizes": np.full((1, 2), 3), "classes": np.zeros(8, np.uint8)},
            "must hold as many classes as its sizes say, got 8",
        ),
        (
            {"names": np.array(["a"]), "sizes": np.array([[-1, -8]]), "classes": np.zeros(8, np.uint8)},
            "must hold N names",
        ),
    ],
)
def test_damaged_grids_are_refused(tmp_path, arrays, sentence):
    np.savez(tmp_path / "grid.npz", **arrays)
    with pytest.raises(DataError, match=sentence):
        load_grid(tmp_path / "grid.npz")


def test_grids_of_other_images_are_not_compared():
    one, other = {"a": np.zeros((2, 2), np.uint8)}, {"a": np.zeros((2, 3), np.uint8)}
    for before in (other, {"b": one["a"]}, {}):
        with pytest.raises(DataError, match="of the same images in the same sizes, got others"):
            moved_share(one, before)
    with pytest.raises(DataError, match="at least one image, got none"):
        moved_share({}, {})


def test_a_run_without_validation_reports_what_needs_no_labels(finished):
    run, summary = finished
    assert summary["leading"] is None
    assert [stage["round"] for stage in summary["stages"]] == [0, 1, 2]
    opened = cbst_mx.open_run(run.dir.path)
    assert opened.finished
    for stage in summary["stages"]:
        index, numbers = stage["round"], stage["label_free"]
        assert stage["evaluation"] == {}
        assert numbers == opened.label_free(index)
        assert numbers["images"] == 5
        assert sum(numbers["predicted"]) == 5 * 40 * 64
        assert sum(numbers["share"]) == pytest.approx(1)
        assert (numbers["moved"] is None) == (index == 0)
        assert not run.dir.stage(index).confusion.exists()
    assert "of the pixels moved" in run.dir.log.read_text()


def test_the_numbers_are_those_of_the_stages_network(finished):
    # Recomputed from full-size probabilities; the run makes them tile by tile, hence the tolerance of the means.
    run, summary = finished
    network, settings = run._stage_network(2), run.experiment.evaluation
    maps = [
        probabilities(
            network, [run.target.image(i)], mean=run.spec.mean, std=run.spec.std, ctx=run.ctx, flip=settings.flip
        ).asnumpy()[0]
        for i in range(len(run.target))
    ]
    numbers = summary["stages"][2]["label_free"]
    counts = sum(np.bincount(one.argmax(axis=0).reshape(-1), minlength=19) for one in maps)
    assert numbers["predicted"] == counts.tolist()
    assert numbers["mean_confidence"] == pytest.approx(np.mean([one.max(axis=0) for one in maps]), rel=1e-5)
    grid = load_grid(run.dir.stage(2).predictions)
    for name, one in zip(run.target.names, maps):
        assert np.array_equal(grid[name], one.argmax(axis=0)[STEP // 2 :: STEP, STEP // 2 :: STEP])
    before = load_grid(run.dir.stage(1).predictions)
    assert numbers["moved"] == pytest.approx(np.mean([(grid[name] != before[name]).mean() for name in grid]))


def test_iou_of_such_a_run_is_refused_in_a_sentence(finished):
    opened = cbst_mx.open_run(finished[0].dir.path)
    with pytest.raises(RunError, match="has no validation set, so no IoU: label_free tells its stages"):
        opened.miou()
    with pytest.raises(RunError, match="has no validation set, so no IoU"):
        opened.confusion()
    assert opened.matrices() == {}


def test_label_free_numbers_of_a_run_with_validation_are_refused(tmp_path):
    from tests.fake_run import write_run

    with pytest.raises(RunError, match="has validation sets"):
        cbst_mx.open_run(write_run(tmp_path / "run").path).label_free()


def test_a_run_that_collapses_is_named(finished, tmp_path):
    run, _ = finished
    for index, counts in ((0, [90, 10]), (1, [10, 90])):
        path = run.dir.stage(index).label_free
        record = json.loads(path.read_text())
        record["predicted"] = counts + [0] * 17
        changed = tmp_path / "run" / path.relative_to(run.dir.path)
        changed.parent.mkdir(parents=True)
        changed.write_text(json.dumps(record))
    (tmp_path / "run" / "experiment.yaml").write_bytes(run.dir.experiment.read_bytes())
    signs = cbst_mx.open_run(tmp_path / "run").warnings(1)
    assert any(sign.startswith("on the target's images, sidewalk is predicted at 90 %") for sign in signs)


def test_the_commands_show_the_numbers(finished, data, monkeypatch, tmp_path):
    run, summary = finished
    monkeypatch.setenv("CBST_DATA", str(data))
    runner = CliRunner(env={"COLUMNS": "80"})
    again = runner.invoke(main, ["run", str(DEMO), *options("validation={}"), "--out", str(run.dir.path)])
    assert again.exit_code == 0, again.output
    shown = runner.invoke(main, ["results", str(run.dir.path), "--out", str(tmp_path / "out.json")])
    assert shown.exit_code == 0, shown.output
    for output in (again.output, shown.output):
        assert "no validation set" in output
        assert "round 2" in output
        assert "mean confidence, %" in output
        assert "adapted on cityscapes train, 5 images without their labels\n" in output
    assert all(one["target"].startswith("adapted on") for one in json.loads((tmp_path / "out.json").read_text()))
    assert [one["round"] for one in json.loads((tmp_path / "out.json").read_text())] == [0, 1, 2]
    one = runner.invoke(main, ["results", str(run.dir.path), "--set", "target"])
    assert "Error: set must be left out" in one.output
    check = runner.invoke(main, ["check-paper", str(run.dir.path), "--table", "1", "--row", "cbst"])
    assert "has no validation set: the paper's numbers need one" in check.output


def test_plan_counts_the_predictions_of_the_target(data, monkeypatch):
    monkeypatch.setenv("CBST_DATA", str(data))
    command = ["plan", str(DEMO), *options("validation={}"), "--seconds", "1"]
    result = CliRunner(env={"COLUMNS": "80"}).invoke(main, command)
    assert result.exit_code == 0, result.output
    source = next(line.split() for line in result.output.splitlines() if line.strip().startswith("source"))
    assert "\N{EN DASH}" not in source[-3:]


def test_statistics_that_keep_a_grid_have_the_numbers_of_those_without(tmp_path):
    rng = np.random.default_rng(0)
    classes, values = rng.integers(0, 3, (20, 30)).astype(np.uint8), rng.random((20, 30)).astype(np.float32)
    plain, kept = ImageStatistics(3, NAMES), GridStatistics(3, NAMES)
    for statistics in (plain, kept):
        statistics.add_pixels("a", values, classes)
    np.testing.assert_array_equal(plain.counts, kept.counts)
    np.testing.assert_array_equal(plain.confidence_sums, kept.confidence_sums)
    path = tmp_path / "grid.npz"
    kept.save_grid(path)
    assert load_saturated(path) is None
    kept.save_grid(path, saturated=0.25)
    assert load_saturated(path) == 0.25
    np.testing.assert_array_equal(load_grid(path)["a"], classes[STEP // 2 :: STEP, STEP // 2 :: STEP])
    kept.save_grid(path, saturated=1.5)
    with pytest.raises(DataError, match=r"grid.npz must hold saturated as one share in \[0, 1\], got float64"):
        load_saturated(path)
