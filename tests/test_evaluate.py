"""Evaluation of a network and of a parameter file: matrices, label spaces, the record."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from cbst_mx.cli import main
from cbst_mx.data import LabelledImageSet
from cbst_mx.data.image_files import write_label_png, write_rgb_png
from cbst_mx.errors import CheckpointError, ConfigError, DataError
from cbst_mx.evaluation.confusion import confusion_matrix
from cbst_mx.evaluation.evaluate import evaluate_network, evaluate_parameters
from cbst_mx.label_space import CITYSCAPES_19, SYNTHIA_16
from cbst_mx.networks.build import build_network
from cbst_mx.networks.parameters import save_parameters
from cbst_mx.networks.spec import NetworkSpec
from symbols.backend import gluon, mx

SIZE = (24, 32)
SPEC = NetworkSpec("fcn8s", 19, {"width": 1 / 32})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a data root with two images, their labels and a description, and parameters."""
    root = tmp_path_factory.mktemp("evaluate")
    rng = np.random.default_rng(0)
    for index in range(2):
        write_rgb_png(root / "images" / f"{index}.png", rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8))
        label = rng.integers(0, 19, SIZE, dtype=np.uint8)
        write_label_png(root / "labels" / f"{index}.png", label, CITYSCAPES_19)
    describe(root / "data.yaml", CITYSCAPES_19.names)
    save_parameters(root / "p.params", build_network(SPEC, mx.cpu(), seed=1), SPEC, CITYSCAPES_19)
    return root


def describe(path, names):
    path.write_text(
        f"label_space: {{name: mine, names: [{', '.join(names)}], "
        f"palette: {[[index, 0, 0] for index in range(len(names))]}, "
        f"ids: {{{', '.join(f'{i}: {i}' for i in range(len(names)))}}}}}\n"
        "splits: {all: {images: ['images/*.png'], labels: 'labels/{stem}.png'}}\n"
    )


def data(root, **changes):
    return {"format": "folder", "root": root, "split": "all", "description": root / "data.yaml", **changes}


class Channels(gluon.HybridBlock):
    """The image's own three channels as the logits of three classes."""

    stride = smallest = 1

    def hybrid_forward(self, F, x):
        return x * 100.0


def test_matrices_are_per_image_over_the_classes_of_the_truth(folder):
    paths = [[folder / kind / f"{index}.png" for index in range(2)] for kind in ("images", "labels")]
    images = LabelledImageSet(["0", "1"], *paths, CITYSCAPES_19, "trainId")
    seen = []
    classes = SYNTHIA_16.names[5:8]  # a network of fewer classes, in other places of the truth's list
    matrices = evaluate_network(
        Channels(),
        images,
        classes=classes,
        mean=(0, 0, 0),
        std=(1, 1, 1),
        ctx=mx.cpu(),
        batch_size=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 2), (2, 2)]
    place = np.array([CITYSCAPES_19.names.index(name) for name in classes])
    for index in range(2):
        expected = confusion_matrix(images.label(index), place[images.image(index).argmax(axis=2)].astype(np.uint8), 19)
        np.testing.assert_array_equal(matrices[index], expected)


def test_the_command_writes_what_the_library_says(folder, tmp_path):
    evaluation = evaluate_parameters(folder / "p.params", data(folder), flip=False, scales=[0.5, 1.0])
    arguments = ["evaluate", "--parameters", folder / "p.params", "--format", "folder", "--root", folder]
    arguments += ["--split", "all", "--description", folder / "data.yaml", "--scales", "0.5,1", "--no-flip"]
    result = CliRunner().invoke(main, [str(part) for part in [*arguments, "--out", tmp_path / "out.json"]])
    assert result.exit_code == 0, result.output
    assert "2 images; protocol 19: all 19 classes, that of Table 3; scales 0.5, 1 combined by mean, without flip" in (
        result.output
    )
    record = json.loads((tmp_path / "out.json").read_text())
    assert record == json.loads(json.dumps({**evaluation.to_json(), "parameters": str(folder / "p.params")}))
    assert list(record)[-4:] == ["protocol", "settings", "data", "parameters"]
    assert record["settings"] == {
        "flip": False,
        "scales": [0.5, 1.0],
        "combine": "mean",
        "long_side": None,
        "resampling": "program",
        "inference": "plain",
    }
    assert record["data"] == {
        "format": "folder",
        "root": str(folder),
        "split": "all",
        "list": None,
        "city": None,
        "fold": None,
        "images": 2,
    }


def test_settings_name_the_resampling_and_other_interpolations_only(folder, tmp_path):
    arguments = ["evaluate", "--parameters", folder / "p.params", "--format", "folder", "--root", folder]
    arguments += ["--split", "all", "--description", folder / "data.yaml", "--out", tmp_path / "out.json"]
    arguments += ["--long-side", 48, "--upsampling", "pillow", "--resampling", "linear"]
    result = CliRunner().invoke(main, [str(part) for part in arguments])
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "out.json").read_text())
    assert (record["settings"]["upsampling"], record["settings"]["resampling"]) == ("pillow", "linear")
    plain = evaluate_parameters(folder / "p.params", data(folder), long_side=48)
    assert "upsampling" not in plain.settings
    assert plain.settings["resampling"] == "program"
    other = evaluate_parameters(
        folder / "p.params", data(folder), long_side=48, upsampling="pillow", resampling="linear"
    )
    assert json.loads(json.dumps(other.result)) == {key: record[key] for key in other.result}
    with pytest.raises(ConfigError, match="upsampling must be one of bilinear, bicubic, pillow, got 'cubic'"):
        evaluate_parameters(folder / "p.params", data(folder), upsampling="cubic")


def test_int8_says_how_near_it_is_on_as_many_images_as_asked(folder):
    assert evaluate_parameters(folder / "p.params", data(folder)).agreement is None
    evaluation = evaluate_parameters(folder / "p.params", data(folder), inference="int8", calibration_images=1)
    assert evaluation.agreement.images == 1


def test_what_cannot_be_evaluated_is_refused(folder, tmp_path):
    describe(tmp_path / "other.yaml", [f"c{index}" for index in range(19)])
    with pytest.raises(
        CheckpointError, match=r"p\.params was trained for the classes of cityscapes-19, not for those of"
    ):
        evaluate_parameters(folder / "p.params", data(folder, description=tmp_path / "other.yaml"))
    with pytest.raises(ConfigError, match="^tile must be at least 1 row, got 0$"):
        evaluate_parameters(folder / "p.params", data(folder), tile=0)


def test_a_set_without_a_labelled_pixel_is_named(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "void")
    text = (folder / "data.yaml").read_text().replace("18: 18", "18: 18, 255: ignore")
    (tmp_path / "void" / "data.yaml").write_text(text)
    for path in (tmp_path / "void" / "labels").iterdir():
        write_label_png(path, np.full(SIZE, 255, dtype=np.uint8), CITYSCAPES_19)
    sentence = rf"^image set {tmp_path / 'void'} \(split all\) cannot be evaluated: none of its 2 labels has"
    with pytest.raises(DataError, match=sentence):
        evaluate_parameters(folder / "p.params", data(tmp_path / "void"))
