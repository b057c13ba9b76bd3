"""The commands ``prior build``, ``prior show`` and ``prior import``."""

from __future__ import annotations

import click
import numpy as np
import pytest
from click.testing import CliRunner
from scipy import io

from cbst_mx.cli import prior as commands
from cbst_mx.cli.base import OneSentence
from cbst_mx.data import open_labelled
from cbst_mx.data.image_files import read_rgb
from cbst_mx.label_space import CITYSCAPES_19, SYNTHIA_16
from cbst_mx.selftrain import prior_files, spatial_prior
from tests.tiny import write_scenes

SKY, ROAD = CITYSCAPES_19.names.index("sky"), CITYSCAPES_19.names.index("road")


def call(*arguments, code=0):
    main = OneSentence("cbst-mx", commands={command.name: command for command in commands.COMMANDS})
    result = CliRunner().invoke(main, ["prior", *map(str, arguments)])
    assert result.exit_code == code, (result.output, result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("data") / "d", source=12, source_val=0, target=1, target_val=0)


def test_build_counts_smooths_and_describes(streets, tmp_path):
    out = tmp_path / "new" / "prior.npz"
    text = call("build", "--source", "gta5", "--root", streets / "gta5", "--grid", 16, 32, "--out", out)
    assert "prior of 19 classes on 16 x 32 pixels from 12 label maps (normalisation sum) in" in text
    prior, metadata = prior_files.read(out)
    source = open_labelled("gta5", streets / "gta5", label_space=CITYSCAPES_19)
    np.testing.assert_array_equal(prior, spatial_prior.estimate(source, (16, 32)))
    assert metadata == {
        "format": 1,
        "grid": [16, 32],
        "names": list(CITYSCAPES_19.names),
        "kernel": 70.0,
        "sigma": 70 / 6,
        "normalisation": "sum",
        "images": 12,
    }
    np.testing.assert_allclose(prior[ROAD].mean(), 1, rtol=1e-5)  # 512 values rounded to float32
    assert prior[SKY, :4].mean() > 5 * prior[SKY, 8:].mean()
    assert prior[ROAD, :4].max() == 0
    assert [path.name for path in out.parent.iterdir()] == ["prior.npz"]


def test_build_options_reach_the_estimate(streets, tmp_path):
    out = tmp_path / "prior.npz"
    options = ("--kernel", 140, "--sigma", 20, "--normalisation", "frequency", "--label-space", "synthia-16")
    data = ("--source", "cityscapes", "--root", streets / "cityscapes", "--split", "train", "--labels", "labelIds")
    text = call("build", *data, *options, "--out", out)
    prior, metadata = prior_files.read(out)
    source = open_labelled("cityscapes", streets / "cityscapes", split="train", label_space=SYNTHIA_16)
    expected = spatial_prior.estimate(source, (256, 512), kernel=140, sigma=20, normalisation="frequency")
    np.testing.assert_array_equal(prior, expected)
    assert metadata["sigma"] == 20
    assert metadata["normalisation"] == "frequency"
    assert metadata["images"] == 1
    absent = [name for name, plane in zip(SYNTHIA_16.names, prior) if not plane.any()]
    assert absent
    assert f"and so never chosen with this prior: {', '.join(absent)} prior of 16 classes" in text


def test_build_from_a_list_of_images(streets, tmp_path, monkeypatch):
    (tmp_path / "list.txt").write_text("3\n00007.png\n")
    monkeypatch.chdir(tmp_path)  # a relative list is meant from here
    arguments = ("--source", "gta5", "--root", streets / "gta5", "--list", "list.txt", "--grid", 8, 16)
    assert "from 2 label maps" in call("build", *arguments, "--out", tmp_path / "prior.npz")
    source = open_labelled("gta5", streets / "gta5", label_space=CITYSCAPES_19).subset([2, 6])
    expected = spatial_prior.estimate(source, (8, 16))
    np.testing.assert_array_equal(prior_files.read(tmp_path / "prior.npz")[0], expected)


def test_build_from_an_experiment_is_the_runs_own_prior(streets, tmp_path, monkeypatch):
    monkeypatch.setenv("CBST_DATA", str(streets))
    experiment = tmp_path / "experiment.yaml"
    experiment.write_text(
        "name: e\n"
        "source: {format: gta5, root: gta5}\n"
        "target: {format: cityscapes, root: cityscapes, split: train}\n"
        "validation: {target: {format: cityscapes, root: cityscapes, split: train}}\n"
        "source_training: {iterations: 1, batch_size: 1, learning_rate: 0.1}\n"
        "self_training:\n"
        "  method: cbst-sp\n"
        "  retraining: {iterations: 1, batch_size: 1, learning_rate: 0.1}\n"
        "  spatial_prior: {grid: [8, 16], kernel: 140}\n"
    )
    out = tmp_path / "prior.npz"
    call("build", "--experiment", experiment, "--out", out)
    source = open_labelled("gta5", streets / "gta5", label_space=CITYSCAPES_19)
    np.testing.assert_array_equal(prior_files.read(out)[0], spatial_prior.estimate(source, (8, 16), kernel=140))
    call("build", "--experiment", experiment, "--grid", 4, 8, "--kernel", 0, "--out", out)
    assert prior_files.read(out)[1]["grid"] == [4, 8]
    assert prior_files.read(out)[1]["kernel"] == 0
    assert prior_files.read(out)[1]["normalisation"] == "sum"
    settings = "{grid: [8, 16], kernel: 140, sigma: 30, normalisation: frequency}"
    experiment.write_text(experiment.read_text().replace("{grid: [8, 16], kernel: 140}", settings))
    call("build", "--experiment", experiment, "--out", out)
    expected = spatial_prior.estimate(source, (8, 16), kernel=140, sigma=30, normalisation="frequency")
    np.testing.assert_array_equal(prior_files.read(out)[0], expected)
    call("build", "--experiment", experiment, "--normalisation", "maximum", "--sigma", 20, "--out", out)
    assert [prior_files.read(out)[1][key] for key in ("normalisation", "sigma")] == ["maximum", 20]
    experiment.write_text(experiment.read_text().replace(settings, "{file: a.npz}"))
    text = call("build", "--experiment", experiment, "--out", out, code=2)
    assert text.endswith("experiment.yaml takes its prior from the file a.npz: nothing is built")
    text = call("build", "--experiment", experiment, "--split", "train", "--out", out, code=2)
    assert text.endswith("Error: --experiment says what the source is: leave out --split")


def test_build_from_a_described_folder(streets, tmp_path):
    description = tmp_path / "data.yaml"
    description.write_text(
        "label_space:\n"
        "  name: two\n"
        "  names: [street, rest]\n"
        "  palette: [[1, 2, 3], [4, 5, 6]]\n"
        "  ids: {7: 0, " + ", ".join(f"{i}: 1" for i in range(35) if i != 7) + "}\n"
        'splits: {all: {images: ["images/*.png"], labels: "labels/{stem}.png"}}\n'
    )
    data = ("--source", "folder", "--root", streets / "gta5", "--split", "all", "--description", description)
    out = tmp_path / "prior.npz"
    call("build", *data, "--grid", 16, 32, "--out", out)
    prior, metadata = prior_files.read(out)
    assert metadata["names"] == ["street", "rest"]
    source = open_labelled("gta5", streets / "gta5", label_space=CITYSCAPES_19)
    np.testing.assert_array_equal(prior[0], spatial_prior.estimate(source, (16, 32))[ROAD])
    text = call("build", *data, "--label-space", "cityscapes-19", "--out", out, code=1)
    assert "Error: label_space must be two" in text


def test_build_refuses_and_leaves_nothing(streets, tmp_path):
    out = tmp_path / "prior.npz"
    source = ("--source", "gta5", "--root", streets / "gta5", "--out", out)
    for arguments, code, sentence in (
        (("--out", out), 2, "Error: give the source by --source and --root, or by --experiment"),
        (("--source", "gta5", "--root", tmp_path / "none", "--out", out), 1, "none does not exist: expected"),
        ((*source, "--split", "train"), 1, "Error: split must not be given for data of format gta5, got 'train'"),
        ((*source, "--label-space", "x"), 1, "Error: label space must be one of cityscapes-19, nthu-13, synthia-16"),
        ((*source, "--kernel", -1), 1, "Error: kernel must be 0 or more pixels, got -1.0"),
        ((*source, "--grid", 0, 3), 2, "Invalid value for '--grid'"),
    ):
        assert sentence in call("build", *arguments, code=code)
    assert not list(tmp_path.iterdir())


def test_show_draws_every_class(tmp_path):
    rng = np.random.default_rng(0)
    prior_files.save(tmp_path / "prior.npz", rng.random((3, 8, 16)), {"names": ["a", "b", "c"], "images": 4})
    np.savez(tmp_path / "bare.npz", prior=rng.random((16, 8, 16)))
    out = tmp_path / "sheet.png"
    text = call("show", tmp_path / "prior.npz", "--out", out)
    assert text.startswith("3 class maps drawn in ")
    assert text.endswith("sheet.png (8 x 16 pixels, 4 label maps, normalisation: not recorded)")
    small = read_rgb(out)
    assert "16 class maps drawn in" in call("show", tmp_path / "bare.npz", "--out", out)
    unnamed = read_rgb(out)
    call("show", tmp_path / "bare.npz", "--label-space", "synthia-16", "--out", out)
    named = read_rgb(out)
    assert small.shape[1] == 2 * 320 + 16 + 40
    assert named.shape[1] == 4 * 320 + 3 * 16 + 40
    assert named.shape == unnamed.shape
    assert (named != unnamed).any()
    text = call("show", tmp_path / "bare.npz", "--label-space", "nthu-13", "--out", out, code=1)
    assert text.startswith("Error: label space nthu-13 has 13 classes, but ")
    assert text.endswith("bare.npz has 16")
    assert "is not a readable spatial prior" in call("show", tmp_path / "none.npz", "--out", out, code=1)


def test_import_says_what_it_changed(tmp_path):
    values = np.random.default_rng(0).random((19, 8, 16))
    values[0, 0, :3] = -0.01
    file, out = tmp_path / "prior_array.mat", tmp_path / "prior.npz"
    io.savemat(file, {"prior_array": values})
    text = call("import", file, "--out", out)
    assert text.startswith("3 negative values, the smallest -0.01, became 0 prior of 19 classes (cityscapes-19) on 8 x")
    prior = prior_files.load(out, 19, CITYSCAPES_19.names)
    np.testing.assert_array_equal(prior, np.maximum(values, 0).astype(np.float32))
    metadata = prior_files.read(out)[1]
    assert metadata["imported"] == "prior_array.mat"
    shown = call("show", out, "--out", tmp_path / "sheet.png")
    assert shown.endswith("(8 x 16 pixels, normalisation: as imported)")
    assert metadata["clamped"] == 3
    call("import", file, "--out", out, "--grid", 4, 8)
    assert prior_files.load(out, 19).shape == (19, 4, 8)


def test_import_of_other_classes(tmp_path):
    file, out = tmp_path / "prior_array.mat", tmp_path / "prior.npz"
    io.savemat(file, {"prior_array": np.random.default_rng(0).random((16, 4, 8))})
    text = call("import", file, "--out", out)
    assert text.startswith("no negative values prior of 16 classes (without names: give --label-space to name them)")
    assert "names" not in prior_files.read(out)[1]
    call("import", file, "--label-space", "synthia-16", "--out", out)
    assert prior_files.read(out)[1]["names"] == list(SYNTHIA_16.names)
    out.unlink()
    text = call("import", file, "--label-space", "nthu-13", "--out", out, code=1)
    assert text.endswith("prior_array.mat has 16")
    assert not out.exists()


def test_commands_are_a_group_that_explains_itself():
    (group,) = commands.COMMANDS
    assert isinstance(group, click.Group)
    assert sorted(group.commands) == ["build", "import", "show"]
    for name in group.commands:
        assert "Usage: " in call(name, "--help")
