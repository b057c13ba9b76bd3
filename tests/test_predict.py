"""`predict`: run folders, globs, videos, ONNX, outputs, one process at a time."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

import cbst_mx
from cbst_mx.cli import main
from cbst_mx.data.image_files import read_label, read_rgb, write_rgb_png
from cbst_mx.data.videos import Video, VideoFile
from cbst_mx.label_space import CITYSCAPES_19
from cbst_mx.networks.build import build_network
from cbst_mx.networks.parameters import save_parameters, sidecar_path
from cbst_mx.networks.spec import NetworkSpec
from cbst_mx.run_dir.lock import lock_folder
from cbst_mx.selftrain import network_maps
from symbols.backend import mx
from tests.tiny import experiment


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """Return the parameters of a tiny network."""
    path = tmp_path_factory.mktemp("network") / "a.params"
    spec = NetworkSpec("resnet38", 19, {"width": 1 / 32})
    save_parameters(path, build_network(spec, mx.cpu(), seed=1), spec, CITYSCAPES_19)
    return path


def picture(height=32, width=48, seed=0):
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return blocks.repeat(8, axis=0).repeat(8, axis=1)


@pytest.fixture
def images(tmp_path):
    """Return a folder with two images, one of them in a sub-folder."""
    write_rgb_png(tmp_path / "in" / "a.png", picture())
    write_rgb_png(tmp_path / "in" / "x" / "b.png", picture(seed=1))
    return tmp_path / "in"


@pytest.fixture
def video(tmp_path):
    """Return a video of 11 frames at 12.5 a second."""
    with VideoFile(tmp_path / "films" / "drive.mp4", 12.5) as film:
        for index in range(11):
            film.write(picture(64, 96, seed=index))
    return tmp_path / "films" / "drive.mp4"


def predict(parameters, out, *arguments, code=0):
    arguments = ["predict", "--parameters", parameters, "--no-flip", "--out", out, *arguments]
    result = CliRunner().invoke(main, [str(one) for one in arguments])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def copy_network(network, to):
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(str(network), str(to))
    shutil.copy(str(sidecar_path(network)), str(sidecar_path(to)))


def test_a_run_folder_is_its_last_round(network, images, tmp_path):
    run = tmp_path / "run"
    copy_network(network, run / "source" / "parameters.params")
    assert "network of the source training, before any round of" in predict(run, tmp_path / "0", images)
    copy_network(network, run / "round-2" / "parameters.params")
    copy_network(network, run / "round-10" / "parameters.params")
    (run / "round-11").mkdir()  # not trained yet
    assert f"network of round 10 of {run}" in predict(run, tmp_path / "1", images)
    assert "network of" not in predict(run / "round-2", tmp_path / "2", images)
    (tmp_path / "empty").mkdir()
    assert "empty has no trained network: give a run folder" in predict(
        tmp_path / "empty", tmp_path / "3", images, code=1
    )


def test_a_run_is_used_as_it_evaluates(network, images, tmp_path):
    run = tmp_path / "run"
    copy_network(network, run / "round-1" / "parameters.params")
    (run / "experiment.yaml").write_text(
        experiment("evaluation.long_side=64", "resampling=linear", "evaluation.scales=[0.5, 1.0]").to_yaml()
    )
    output = predict(run, tmp_path / "out", images)
    assert "as in the run's evaluation: --long-side 64, --scales 0.5,1" in output
    settings = json.loads((tmp_path / "out" / "predict.json").read_text())["settings"]
    assert (settings["long_side"], settings["resampling"], settings["flip"]) == (64, "linear", False)  # --no-flip
    predict(run / "round-1", tmp_path / "other", images, "--long-side", "32", "--scales", "1")
    settings = json.loads((tmp_path / "other" / "predict.json").read_text())["settings"]
    assert settings["long_side"] == 32
    assert "scales" not in settings


@pytest.fixture
def at_once(monkeypatch):
    """Return a list that takes how many images pass the network together, where those of 32 x 96 pass alone."""
    found, original = [], network_maps.stride_probabilities

    def noted(network, batch, **options):
        found.append(len(batch))
        return original(network, batch, **options)

    monkeypatch.setattr(network_maps, "stride_probabilities", noted)
    monkeypatch.setattr(network_maps, "_AT_ONCE", 32 * 96)
    return found


def test_of_large_images_and_frames_fewer_pass_at_once(network, images, video, tmp_path, at_once):
    predict(network, tmp_path / "small", images)
    assert at_once == [2]
    at_once.clear()
    predict(network, tmp_path / "large", images, "--long-side", "96")
    assert at_once == [1, 1]
    at_once.clear()
    predict(network, tmp_path / "frames", video)
    assert at_once == [1] * 11
    at_once.clear()
    predict(network, tmp_path / "fewer", video, "--long-side", "48", "--scales", "0.25,0.5")
    assert at_once == [1] * 22  # of each frame two scales; the results are as large as the frames


def test_what_the_experiment_says_of_images_at_once_is_kept_to(network, images, tmp_path, at_once):
    copy_network(network, tmp_path / "run" / "round-1" / "parameters.params")
    for given, expected in (((), [1, 1]), (("inference_batch=8",), [2])):
        text = experiment("evaluation.long_side=96", *given).to_yaml()
        (tmp_path / "run" / "experiment.yaml").write_text(text)
        predict(tmp_path / "run", tmp_path / f"out-{len(given)}", images)
        assert at_once == expected
        at_once.clear()


def test_globs_and_outputs(network, images, tmp_path):
    out = tmp_path / "out"
    outputs = [part for name in ("label", "colour", "confidence", "overlay") for part in ("--output", name)]
    predict(network, out, images / "**" / "*.png", *outputs, "--opacity", 1, "--legend")
    assert names(out) == sorted(
        ["predict.json"] + [f"{n}_{o}.png" for n in "ab" for o in ("label", "colour", "confidence", "overlay")]
    )
    label, colour, overlay = (
        read_label(out / "a_label.png"),
        *(read_rgb(out / f"a_{n}.png") for n in ("colour", "overlay")),
    )
    assert (colour == CITYSCAPES_19.colorize(label)).all()
    assert overlay.shape[0] > 32  # the legend below
    assert (overlay[:32] == colour).all()
    probability = cbst_mx.load_network(network, flip=False).predict(read_rgb(images / "a.png"))
    assert (probability.argmax(axis=0) == label).all()
    confidence = read_label(out / "a_confidence.png")
    # half a step of 1/255, and rounding of float32
    assert np.abs(confidence / 255 - probability.max(axis=0)).max() <= 0.5 / 255 + 1e-6
    assert "no file fits" in predict(network, tmp_path / "o", images / "*.gif", code=1)
    predict(network, tmp_path / "default", images)
    assert (read_label(tmp_path / "default" / "a_label.png") == label).all()
    assert names(tmp_path / "default") == [
        "a_label.png",
        "a_overlay.png",
        "b_label.png",
        "b_overlay.png",
        "predict.json",
    ]


def test_ids_of_label_files(network, images, tmp_path):
    predict(network, tmp_path / "t", images, "--output", "label")
    predict(network, tmp_path / "c", images, "--output", "label", "--ids", "cityscapes")
    train, city = (read_label(tmp_path / one / "a_label.png") for one in "tc")
    assert (CITYSCAPES_19.encode(city, "cityscapes", "x") == train).all()
    assert (read_rgb(tmp_path / "c" / "a_label.png") == CITYSCAPES_19.colorize(train)).all()
    own = tmp_path / "own.yaml"
    ids = {100 + place: name for place, name in enumerate(CITYSCAPES_19.names)}
    own.write_text(yaml.safe_dump({"label_space": "cityscapes-19", "ids": ids, "splits": {"a": {"images": ["*.png"]}}}))
    predict(network, tmp_path / "o", images, "--output", "label", "--ids", own)
    assert (read_label(tmp_path / "o" / "a_label.png") == train + 100).all()
    own.write_text(json.dumps({
        "label_space": {"name": "x", "names": ["a"], "palette": [[1, 2, 3]]}, "ids": "colours",
        "splits": {"a": {"images": ["*.png"]}},
    }))  # fmt: skip
    assert "must have ids, got colours" in predict(network, tmp_path / "p", images, "--ids", own, code=1)
    assert not (tmp_path / "p").exists()
    assert "convention" in predict(network, tmp_path / "p", images, "--ids", "nonsense", code=1)


def test_scales_change_the_settings(network, images, tmp_path):
    predict(network, tmp_path / "out", images, "--scales", "0.5,1", "--long-side", "64")
    record = json.loads((tmp_path / "out" / "predict.json").read_text())
    assert record["settings"]["scales"] == [0.5, 1.0]
    assert record["settings"]["long_side"] == 64
    write_rgb_png(images / "new.png", picture(seed=5))
    assert "exists already, made with other settings" in predict(network, tmp_path / "out", images, code=1)
    assert "holds results made with other settings" in predict(network, tmp_path / "out", images / "new.png", code=1)


def test_a_finished_folder_takes_more_images(network, images, tmp_path):
    predict(network, tmp_path / "out", images)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.png")}
    write_rgb_png(images / "c.png", picture(seed=2))
    assert "2 of 3 images are done already" in predict(network, tmp_path / "out", images)
    assert len(names(tmp_path / "out")) == 7
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())


def test_results_inside_the_input_are_no_images(network, images, tmp_path):
    predict(network, images / "results", images, "--output", "colour")
    output = predict(network, tmp_path / "out", images)
    assert "2 written by predict" in output
    assert len(names(tmp_path / "out")) == 5


def test_a_video_keeps_length_and_rate(network, images, video, tmp_path):
    out = tmp_path / "out"
    output = predict(network, out, video, images / "a.png", "--output", "label", "--output", "overlay", "--legend")
    assert "drive: 11 frames at 12.5 a second" in output
    assert "1 image segmented" in output
    made = Video(out / "drive_overlay.mp4")
    frames = [*made]
    assert (made.rate, len(frames)) == (12.5, 11)
    assert frames[0].shape[1] == 96
    labels = sorted((out / "drive_label").iterdir())
    assert [path.name for path in labels] == [f"{index:06}.png" for index in range(11)]
    one = cbst_mx.load_network(network, flip=False).predict([*Video(video)][3])
    assert (read_label(labels[3]) == one.argmax(axis=0)).all()
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.*") if path.name != "predict.json"}
    assert "frames" not in predict(
        network, out, video, images / "a.png", "--output", "label", "--output", "overlay", "--legend"
    )
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())


def test_of_videos_alone_there_are_overlays(network, video, tmp_path):
    predict(network, tmp_path / "out", video)
    assert names(tmp_path / "out") == ["drive_overlay.mp4", "predict.json"]


def test_a_damaged_video_does_not_end_the_rest(network, images, video, tmp_path, capfd):
    broken = video.with_name("broken.mp4")
    broken.write_bytes(video.read_bytes()[:300])
    output = predict(network, tmp_path / "out", broken, video, images, code=1)
    assert capfd.readouterr().err == ""  # no word of FFmpeg's own
    assert "2 images segmented" in output
    assert "1 video segmented" in output
    assert f"1 of 4 files could not be used, the others are done: video {broken} cannot be read" in output
    assert (tmp_path / "out" / "drive_overlay.mp4").is_file()
    assert not [name for name in names(tmp_path / "out") if "broken" in name or "part" in name]


def test_onnx_files_give_the_same_labels(network, images, tmp_path):
    pytest.importorskip("onnxruntime")
    result = CliRunner().invoke(
        main, ["export", "--parameters", str(network), "--out", str(tmp_path / "export"), "--onnx"]
    )
    assert result.exit_code == 0, result.output
    predict(network, tmp_path / "p", images)
    predict(tmp_path / "export", tmp_path / "o", images)  # the folder's only ONNX file
    for name in "ab":
        labels = [read_label(tmp_path / one / f"{name}_label.png") for one in "po"]
        # rounding may decide where two classes are equally probable
        assert (labels[0] == labels[1]).mean() > 0.999
    assert "inference, tile and ctx do not apply" in predict(
        tmp_path / "export", tmp_path / "q", images, "--inference", "fused", code=1
    )
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    assert "ONNX file" in predict(broken, tmp_path / "q", images, code=1)
    assert not (tmp_path / "q").exists()


def test_without_onnxruntime_the_way_out_is_said(images, tmp_path, monkeypatch):
    (tmp_path / "a.onnx").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    output = predict(tmp_path / "a.onnx", tmp_path / "out", images, code=1)
    assert "needs the package onnxruntime, which is not installed: pip install 'cbst_mx[onnx]'" in output


def test_one_process_writes_into_a_folder(network, images, tmp_path, monkeypatch):
    from cbst_mx.run_dir import lock as module

    lock = lock_folder(tmp_path / "out", "output folder")
    monkeypatch.setattr(module, "_held", {})  # as another process sees it
    assert "is in use by process" in predict(network, tmp_path / "out", images, code=1)
    lock.release()
    predict(network, tmp_path / "out", images)
    assert "lock" not in names(tmp_path / "out")
