"""Predictions go on after a stop, overwrite on request alone, and one damaged image does not end the rest."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from cbst_mx.cli import main
from cbst_mx.cli.base import Bars
from cbst_mx.data.image_files import write_rgb_png
from cbst_mx.errors import StoppedError
from cbst_mx.label_space import CITYSCAPES_19
from cbst_mx.networks.build import build_network
from cbst_mx.networks.parameters import save_parameters
from cbst_mx.networks.spec import NetworkSpec
from symbols.backend import mx

SIZES = [(32, 48)] * 3 + [(40, 40)] * 2


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Return the parameters of two networks."""
    folder = tmp_path_factory.mktemp("networks")
    network = NetworkSpec("resnet38", 19, {"width": 1 / 32})
    for name in ("a", "b"):
        built = build_network(network, mx.cpu(), seed=ord(name))
        save_parameters(folder / f"{name}.params", built, network, CITYSCAPES_19)
    return folder / "a.params", folder / "b.params"


@pytest.fixture
def images(tmp_path):
    """Return a folder of five images."""
    rng = np.random.default_rng(0)
    for index, (height, width) in enumerate(SIZES):
        write_rgb_png(tmp_path / "in" / f"{index}.png", rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    return tmp_path / "in"


def predict(parameters, out, *arguments, code=0):
    arguments = ["predict", "--parameters", parameters, "--no-flip", "--out", out, *arguments]
    result = CliRunner().invoke(main, [str(one) for one in arguments])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stop_after(monkeypatch, number):
    """Let a stop be asked for after so many images."""
    called = Bars.__call__

    def stopping(self, what, done, total):
        called(self, what, done, total)
        if done == number and what == "prediction":
            raise StoppedError(what, done, total, signal=2)

    monkeypatch.setattr(Bars, "__call__", stopping)


@pytest.mark.parametrize("number", [1, 3, 4])
def test_the_same_command_goes_on_after_a_stop(networks, images, tmp_path, monkeypatch, number):
    predict(networks[0], tmp_path / "whole", images)
    with monkeypatch.context() as patch:
        stop_after(patch, number)
        output = predict(networks[0], tmp_path / "out", images, code=130)
    assert output.endswith(f"prediction: stopped at {number} of 5; the same command continues")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.png")}
    assert len(before) == 2 * number
    output = predict(networks[0], tmp_path / "out", images)
    assert f"{number} of 5 images are done already" in output
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_a_half_written_image_is_made_again(networks, images, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        predict(networks[0], tmp_path / "out", images, code=130)
    (tmp_path / "out" / "1_overlay.png").unlink()  # killed between the two
    (tmp_path / "out" / f".2_label.png.{2**22 + 1}.part").write_bytes(b"")  # of a writer that is gone
    assert "1 of 5 images are done already" in predict(networks[0], tmp_path / "out", images)
    assert len(contents(tmp_path / "out")) == 11


def test_nothing_else_goes_on_or_is_overwritten_but_on_request(networks, images, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        predict(networks[0], out, images, code=130)
    before = contents(out)
    other = "exists already, made with other parameters: give another folder with --out, or --overwrite"
    assert other in predict(networks[1], out, images, code=1)
    assert "made with other settings" in predict(networks[0], out, "--flip", images, code=1)
    write_rgb_png(tmp_path / "else" / "1.png", np.zeros((32, 48, 3), np.uint8))
    assert "made of another image" in predict(networks[0], out, tmp_path / "else", code=1)
    assert contents(out) == before
    predict(networks[1], out, "--overwrite", images)
    predict(networks[1], tmp_path / "other", images)
    assert contents(out) == contents(tmp_path / "other")
    assert "5 of 5 images are done already" in predict(networks[1], out, images)  # finished
    assert "made with other parameters" in predict(networks[0], out, images, code=1)
    predict(networks[0], out, "--overwrite", images)
    predict(networks[0], tmp_path / "first", images)
    assert contents(out) == contents(tmp_path / "first")


def test_overwriting_that_is_stopped_leaves_nothing_old(networks, images, tmp_path, monkeypatch):
    out = tmp_path / "out"
    predict(networks[0], out, images)
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        predict(networks[1], out, "--overwrite", images, code=130)
    assert "1 of 5 images are done already" in predict(networks[1], out, images)
    predict(networks[1], tmp_path / "whole", images)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_changed_image_is_made_again(networks, images, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        predict(networks[0], tmp_path / "out", images, code=130)
    write_rgb_png(images / "1.png", np.full((32, 48, 3), 9, np.uint8))
    os.utime(images / "1.png", ns=(1, 1))
    assert "1 of 5 images are done already" in predict(networks[0], tmp_path / "out", images)
    predict(networks[0], tmp_path / "whole", images)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


DAMAGES = {
    "header": lambda content: content[:20],
    "end": lambda content: content[:-30],
    "data": lambda content: content[:1000] + bytes([content[1000] ^ 1]) + content[1001:],
    "nothing": lambda content: b"",
    "text": lambda content: b"no image",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("index", [0, 1, 4])
def test_one_damaged_image_does_not_end_the_rest(networks, images, tmp_path, capfd, damage, index):
    predict(networks[0], tmp_path / "whole", images)
    path = images / f"{index}.png"
    good = path.read_bytes()
    path.write_bytes(DAMAGES[damage](good))
    capfd.readouterr()
    output = predict(networks[0], tmp_path / "out", images, code=1)
    assert capfd.readouterr().err == ""  # no word of a decoder's own
    assert "4 images segmented into" in output
    assert f"Error: 1 of 5 images could not be used, the others are done: image {path} " in output
    whole = contents(tmp_path / "whole")
    made = contents(tmp_path / "out")
    assert set(whole) - set(made) == {f"{index}_label.png", f"{index}_overlay.png"}
    made.pop("predict.json")
    whole.pop("predict.json")
    assert made == {name: whole[name] for name in made}
    path.write_bytes(good)  # mended: only it is left
    assert "4 of 5 images are done already" in predict(networks[0], tmp_path / "out", images)
    made = contents(tmp_path / "out")
    made.pop("predict.json")  # the file was written anew
    assert made == whole


@pytest.mark.parametrize("record", ["[]", "{}", '{"images": {"0": 1}}', "[" * 5000, '{"images": 1e999}'])
def test_a_damaged_record_is_one_sentence(networks, images, tmp_path, record):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "predict.json").write_text(record)
    output = predict(networks[0], tmp_path / "out", images, code=1)
    assert output.startswith("Error: ")
    assert "predict.json" in output
    predict(networks[0], tmp_path / "out", "--overwrite", images)
    assert len(contents(tmp_path / "out")) == 11


def test_results_are_not_written_through_links(networks, images, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "kept").write_text("kept")
    for name in ("0_label.png", "predict.json"):
        (tmp_path / "out" / name).symlink_to(tmp_path / "kept")
    predict(networks[0], tmp_path / "out", images, code=1)
    predict(networks[0], tmp_path / "out", "--overwrite", images)
    assert (tmp_path / "kept").read_text() == "kept"
    with Image.open(tmp_path / "out" / "0_label.png") as label:
        assert label.size == SIZES[0][::-1]


def test_the_record_names_network_settings_and_images(networks, images, tmp_path, monkeypatch):
    stop_after(monkeypatch, 1)
    predict(networks[0], tmp_path / "out", images, code=130)
    record = json.loads((tmp_path / "out" / "predict.json").read_text())
    assert set(record) == {"parameters", "settings", "images"}
    assert record["settings"] == {"flip": False, "upsampling": "bilinear", "resampling": "program", "int8": 0}
    assert record["images"]["0"][0] == str(images / "0.png")
