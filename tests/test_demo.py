"""The demo on a few small scenes: four methods, table, picture, continuation."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from cbst_mx import demo
from cbst_mx.cli import main
from cbst_mx.config import load_experiment
from cbst_mx.errors import RunError
from cbst_mx.messages import silent
from cbst_mx.rounds import Run
from tests.tiny import DEMO, experiment


@pytest.fixture
def small(tmp_path, monkeypatch):
    counts = {"source_count": 6, "source_val_count": 2, "target_count": 4, "target_val_count": 2}
    monkeypatch.setattr(demo, "SIZE", (32, 64))
    monkeypatch.setattr(demo, "COUNTS", counts)
    path = tmp_path / "small.yaml"
    changes = (
        "network.options={width: 0.03125, batch_norm: batch, dropout: 0.0, upsampling: learned}",
        "source_training.iterations=4",
        "self_training.retraining.iterations=2",
        "self_training.rounds=1",
    )
    path.write_text(experiment(*changes).to_yaml())
    return path


def test_demo_writes_tables_and_a_picture_and_continues(small, tmp_path):
    arguments = ["demo", "--out", str(tmp_path / "out"), "--experiment", str(small), "--seeds", "0,1"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert f"picture: {tmp_path / 'out' / 'comparison.png'}" in result.output
    assert "CBST-SP" in result.output
    assert "±" in result.output
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(stored["target"]) == {"0", "1"}
    assert list(stored["target"]["0"]) == list(demo.METHODS)
    for seed in (0, 1):
        folder = tmp_path / "out" / f"seed-{seed}"
        for method in demo.METHODS:
            summary = json.loads((folder / method / "summary.json").read_text())
            assert stored["target"][str(seed)][method] == summary["stages"][-1]["evaluation"]["target"]
            # every method starts from the same source network
            assert summary["stages"][0]["evaluation"]["target"] == stored["target"][str(seed)]["source"]
    table = (tmp_path / "out" / "results.md").read_text().splitlines()
    assert table[0] == "| class (IoU in %) | source-only | ST | CBST | CBST-SP |"
    assert table[-1].startswith("| mIoU | ")
    assert table[-1].count("±") == 4
    with Image.open(tmp_path / "out" / "comparison.png") as picture:
        assert picture.mode == "RGB"
        assert picture.width > 6 * 64
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == stored
    other = CliRunner().invoke(main, [*arguments, "--shift", "0.5"])
    assert other.exit_code == 1
    assert "holds a demo with other settings" in other.output


def test_the_demo_finds_its_experiment_from_any_folder(tmp_path, monkeypatch):
    seen = []

    def stop(experiment, *arguments, **options):
        seen.append(experiment)
        raise RunError("seen")

    monkeypatch.setattr(demo, "run_demo", stop)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["demo", "--out", "out"])
    assert (result.exit_code, result.output) == (1, "Error: seen\n")
    assert load_experiment(seen[0]) == load_experiment(DEMO)


def test_the_demo_runs_where_it_is_told(small, tmp_path, monkeypatch):
    seen = []

    def stop(experiment, *arguments, **options):
        seen.append(experiment.ctx)
        raise RunError("seen")

    monkeypatch.setattr(demo, "Run", stop)
    arguments = ["demo", "--out", str(tmp_path / "out"), "--experiment", str(small)]
    for more, ctx in (["--ctx", "cpu:1"], "cpu:1"), ([], "cpu"):
        result = CliRunner().invoke(main, [*arguments, *more])
        assert (result.exit_code, result.output.splitlines()[-1]) == (1, "Error: seen")
        assert seen.pop() == ctx


def test_make_demo_hands_over_its_device():
    command = ["make", "-n", "demo", "CTX=gpu:0", "EXTRAS=none"]
    done = subprocess.run(command, cwd=str(DEMO.parents[1]), capture_output=True, text=True, check=True)
    assert "cbst-mx demo --out runs/demo --seeds 0 --ctx gpu:0" in done.stdout


def test_the_data_root_is_no_environment_variable(small, tmp_path, monkeypatch):
    monkeypatch.delenv("CBST_DATA", raising=False)
    monkeypatch.setattr(demo, "Run", RunSeeingNoVariable)
    arguments = {"shift_strength": 0.7, "shift_seed": 0, "progress": silent}
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="started"):
        demo.run_demo(small, Path("out"), [0], **arguments)


class RunSeeingNoVariable(Run):
    def run(self):
        assert "CBST_DATA" not in os.environ
        assert self.target.image(0).shape == (32, 64, 3)
        raise RunError("started")


def test_wrong_seeds_are_wrong_usage(tmp_path):
    result = CliRunner().invoke(main, ["demo", "--out", str(tmp_path / "out"), "--seeds", "one"])
    assert result.exit_code == 2
    assert "must be integers with commas between them, got 'one'" in result.output
