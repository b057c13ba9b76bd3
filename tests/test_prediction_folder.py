"""The folder of ``cbst-mx predict``: it goes on, refuses what is not its own, and keeps other processes out."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from cbst_mx.cli import base, main
from cbst_mx.data.image_files import write_rgb_png
from cbst_mx.errors import StoppedError
from cbst_mx.label_space import CITYSCAPES_19
from cbst_mx.networks.build import build_network
from cbst_mx.networks.parameters import save_parameters
from cbst_mx.networks.spec import NetworkSpec
from symbols.backend import mx
from tests.test_lock import HOLD, owner

IMAGES = 12  # in batches of 8


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Return the arguments that predict images with a small network."""
    root = tmp_path_factory.mktemp("predict")
    spec = NetworkSpec("fcn8s", 19, {"width": 0.03125})
    save_parameters(root / "p.params", build_network(spec, mx.cpu(), seed=0), spec, CITYSCAPES_19)
    rng = np.random.default_rng(0)
    for index in range(IMAGES):
        write_rgb_png(root / "images" / f"{index:02d}.png", rng.integers(0, 256, (32, 64, 3), np.uint8))
    return ["predict", "--parameters", str(root / "p.params"), str(root / "images")]


def call(arguments, out, code=0):
    result = CliRunner().invoke(main, [*arguments, "--out", str(out)])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def stopped(given, tmp_path, monkeypatch):
    """Return a folder in which the command was stopped after three images."""

    def stop(self, what, done, total):
        if done == 3:
            raise StoppedError(what, done, total, signal=15)

    with monkeypatch.context() as patch:
        patch.setattr(base.Bars, "__call__", stop)
        output = call(given, tmp_path / "out", code=143)
    assert f"prediction: stopped at 3 of {IMAGES}; the same command continues" in output
    return tmp_path / "out"


def test_a_stopped_prediction_goes_on_to_the_same_files(given, stopped, tmp_path):
    call(given, tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    assert len(whole) == 2 * IMAGES
    kept = {name: (stopped / name).stat().st_mtime_ns for name in contents(stopped) if name[0] != "."}
    assert len(kept) == 6
    (stopped / "02_overlay.png").unlink()  # as if killed between the two files of an image
    call(given, stopped)
    assert contents(stopped) == whole
    assert {name: (stopped / name).stat().st_mtime_ns for name in kept if name[:2] < "02"} == {
        name: time for name, time in kept.items() if name[:2] < "02"
    }


def test_results_of_something_else_are_not_mixed(given, stopped):
    sentence = "has results of other images, parameters or options: give another folder with --out"
    assert sentence in call([*given, "--no-flip"], stopped, code=1)
    os.utime(given[-1] + "/00.png", (1, 1))
    assert sentence in call(given, stopped, code=1)


def test_finished_results_are_refused(given, tmp_path):
    call(given, tmp_path / "out")
    assert "exists already: give another folder" in call(given, tmp_path / "out", code=1)


def test_two_predictions_into_one_folder_are_refused(given, tmp_path):
    command = [sys.executable, "-c", HOLD, tmp_path / "out"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        output = call(given, tmp_path / "out", code=1)
        process.kill()
    assert f"output folder {tmp_path / 'out'} is {owner(process)}" in output


def test_parameters_that_cannot_be_used_leave_no_folder(given, tmp_path):
    (tmp_path / "p.params").write_bytes(b"x")
    call(["predict", "--parameters", str(tmp_path / "p.params"), given[-1]], tmp_path / "out", code=1)
    assert not (tmp_path / "out").exists()
