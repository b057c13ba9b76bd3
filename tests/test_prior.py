"""The spatial prior of a run: estimated as the experiment says, or the file that it names."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest
from scipy import io

from cbst_mx.config import load_experiment
from cbst_mx.data import open_labelled
from cbst_mx.errors import ConfigError, DataError, RunError
from cbst_mx.label_space import CITYSCAPES_19
from cbst_mx.rounds import Run, prior
from cbst_mx.run_dir import RunDir
from cbst_mx.selftrain import prior_files, spatial_prior
from tests.tiny import experiment, write_scenes

NAMES = list(CITYSCAPES_19.names)
SP = ("self_training.method=cbst-sp", "self_training.rounds=1")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Generated scenes, and a prior in the authors' format."""
    root = write_scenes(tmp_path_factory.mktemp("data") / "d", source=4, source_val=1, target=2, target_val=1)
    values = np.random.default_rng(0).random((19, 16, 32))
    values[3, :2, :2] = -0.001
    (root / "weights").mkdir()
    io.savemat(root / "weights" / "prior_array.mat", {"prior_array": values})
    return root


def log_of(folder):
    return (folder / "log.txt").read_text().splitlines()


def test_the_prior_is_estimated_once(data, tmp_path):
    settings = experiment("self_training.spatial_prior={grid: [8, 16], kernel: 70.0}")
    source, path, seen = settings.open_source(data), tmp_path / "prior.npz", []
    first = prior.load_prior(settings, source, path, progress=lambda *done: seen.append(done))
    assert (first.shape, first.dtype) == ((19, 8, 16), np.float32)
    assert seen[-1] == (4, 4)
    before = path.read_bytes()
    again = prior.load_prior(settings, source, path, progress=lambda *done: seen.append("again"))
    np.testing.assert_array_equal(again, first)
    assert "again" not in seen
    assert path.read_bytes() == before


@pytest.mark.parametrize("normalisation", spatial_prior.NORMALISATIONS)
def test_the_settings_reach_the_estimate_and_its_file(data, tmp_path, normalisation):
    settings = experiment(
        f"self_training.spatial_prior={{grid: [8, 16], kernel: 700.0, sigma: 300.0, normalisation: {normalisation}}}"
    )
    used = prior.load_prior(settings, settings.open_source(data), tmp_path / "prior.npz")
    stored, metadata = prior_files.read(tmp_path / "prior.npz")
    source = open_labelled("gta5", data / "gta5", label_space=CITYSCAPES_19)
    expected = spatial_prior.estimate(source, (8, 16), kernel=700, sigma=300, normalisation=normalisation)
    np.testing.assert_array_equal(stored, expected)
    np.testing.assert_array_equal(used, spatial_prior.within_one(expected))
    del metadata["format"], metadata["grid"]
    facts = {"names": NAMES, "kernel": 700.0, "sigma": 300.0, "normalisation": normalisation, "images": 4}
    assert metadata == facts


def test_a_file_is_used_as_it_is_and_recorded(data, tmp_path):
    settings = experiment(*SP, "self_training.spatial_prior={file: weights/prior_array.mat}")
    run = Run(settings, tmp_path / "run", data_root=data)
    file = data / "weights" / "prior_array.mat"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    manifest = json.loads(run.dir.manifest.read_text())
    assert manifest["inputs"]["spatial_prior"] == {"file": "weights/prior_array.mat", "sha256": digest}
    first = log_of(run.dir.path)[0]
    assert first.endswith(f"spatial prior: file weights/prior_array.mat, used as it is (SHA-256 {digest})")
    stored, metadata = prior_files.read(run.dir.spatial_prior)
    np.testing.assert_array_equal(stored, np.maximum(io.loadmat(file)["prior_array"], 0).astype(np.float32))
    assert (metadata["file"], metadata["sha256"], metadata["clamped"]) == ("prior_array.mat", digest, 4)
    run.run()
    assert run.dir.stage(1).thresholds.is_file()
    # the labels are those of eq. 9 with this prior: another file gives others
    io.savemat(tmp_path / "other.mat", {"prior_array": stored[::-1]})
    other = Run(
        experiment(*SP, f"self_training.spatial_prior={{file: {tmp_path / 'other.mat'}}}"),
        tmp_path / "b",
        data_root=data,
    )
    other.run()
    kc = [json.loads(r.dir.stage(1).thresholds.read_text())["threshold"] for r in (run, other)]
    assert kc[0] != kc[1]


def test_a_run_goes_on_without_the_file_but_never_with_another(data, tmp_path):
    file = tmp_path / "prior.mat"
    shutil.copy(str(data / "weights" / "prior_array.mat"), str(file))
    settings = experiment(*SP, f"self_training.spatial_prior={{file: {file}}}")
    folder = Run(settings, tmp_path / "run", data_root=data).dir
    before = folder.spatial_prior.read_bytes()
    file.unlink()
    Run(settings, tmp_path / "run", data_root=data)
    assert folder.spatial_prior.read_bytes() == before
    # killed before the copy was made, and the file is another one by now
    folder.spatial_prior.unlink()
    io.savemat(file, {"prior_array": np.ones((19, 4, 8))})
    with pytest.raises(RunError, match=r"^spatial prior prior.mat must be the file that .*run began with \(SHA-256 "):
        Run(settings, tmp_path / "run", data_root=data)
    shutil.copy(str(data / "weights" / "prior_array.mat"), str(file))
    Run(settings, tmp_path / "run", data_root=data)
    assert folder.spatial_prior.read_bytes() == before


def test_a_file_that_cannot_be_used_is_refused_before_anything_is_written(data, tmp_path):
    with pytest.raises(DataError, match="none.npz does not exist"):
        Run(experiment(*SP, "self_training.spatial_prior={file: none.npz}"), tmp_path / "run", data_root=data)
    np.savez(tmp_path / "few.npz", prior=np.ones((16, 4, 8)))
    with pytest.raises(DataError, match=r"must hold a prior of shape \(19, H, W\), got \(16, 4, 8\)"):
        Run(
            experiment(*SP, f"self_training.spatial_prior={{file: {tmp_path / 'few.npz'}}}"),
            tmp_path / "run",
            data_root=data,
        )
    assert not (tmp_path / "run").exists()
    # methods without a prior do not ask for it
    Run(experiment("self_training.spatial_prior={file: none.npz}"), tmp_path / "run", data_root=data)


def test_an_estimate_is_described_first_and_the_released_rules_say_what_it_is_not(data, tmp_path):
    line = (
        "spatial prior: estimated from the source labels, normalisation sum, kernel 70 and sigma 11.67 pixels at "
        "1024 x 2048, grid 16 x 32"
    )
    Run(experiment(*SP), tmp_path / "paper", data_root=data)
    assert log_of(tmp_path / "paper")[0].endswith(line)
    Run(experiment(*SP, "self_training.fidelity=released"), tmp_path / "released", data_root=data)
    assert log_of(tmp_path / "released")[0].endswith(
        line + "; not the authors' prior_array.mat, which the released program reads: name it with "
        "self_training.spatial_prior.file"
    )
    Run(experiment(), tmp_path / "cbst", data_root=data)
    assert not (tmp_path / "cbst" / "log.txt").read_text()


def test_a_given_prior_is_read_once(data, tmp_path):
    settings = experiment(*SP, "self_training.spatial_prior={file: weights/prior_array.mat}")
    folder = RunDir(tmp_path / "run")
    given = prior.given_prior(settings, folder, data_root=data)
    assert given is not None
    prior_files.save(folder.spatial_prior, given.values, given.metadata)
    assert prior.given_prior(settings, folder, data_root=data) is None
    assert prior.given_prior(experiment(*SP), RunDir(tmp_path / "other"), data_root=data) is None


# ---------------------------------------------------------------------------------------------------- the experiment


def test_a_file_takes_the_place_of_an_estimate_and_of_nothing_silently(tmp_path):
    estimated = tmp_path / "estimated.yaml"
    estimated.write_text(experiment(*SP).to_yaml())
    child = tmp_path / "child.yaml"

    def settings(text, *changes):
        child.write_text(f"extends: estimated.yaml\nself_training: {{spatial_prior: {text}}}\n")
        return load_experiment(child, changes).self_training.spatial_prior

    for given in (
        settings("{file: a.npz}"),
        settings("{}", "self_training.spatial_prior.file=a.npz"),
        settings("{kernel: 35.0}", "self_training.spatial_prior={file: a.npz}"),
        settings("{file: a.npz}", "smoke=true"),
    ):
        assert given.model_dump() == {"file": "a.npz"}
    assert settings("{kernel: 35.0, sigma: 9.0}", "self_training.spatial_prior.file=null").model_dump() == {
        "grid": [16, 32],
        "kernel": 35.0,
        "sigma": 9.0,
        "normalisation": "sum",
    }
    sentence = "file must not be given with kernel, normalisation: a file is used as it is, the others say how a prior"
    for text, changes in (
        ("{file: a.npz, kernel: 70.0, normalisation: maximum}", ()),
        ("{file: a.npz}", ("self_training.spatial_prior.kernel=70", "self_training.spatial_prior.normalisation=sum")),
        (
            "{}",
            (
                "self_training.spatial_prior.kernel=70",
                "self_training.spatial_prior.normalisation=sum",
                "self_training.spatial_prior.file=a.npz",
            ),
        ),
    ):
        with pytest.raises(ConfigError, match=sentence):
            settings(text, *changes)
    with pytest.raises(ConfigError, match="sigma must not be given with a kernel of 0"):
        settings("{kernel: 0.0, sigma: 3.0}")


def test_what_is_written_out_is_read_again(tmp_path):
    for changes in (
        (*SP, "self_training.spatial_prior={file: a.mat}"),
        (*SP, "self_training.spatial_prior.normalisation=maximum"),
        ("self_training.spatial_prior.normalisation=frequency",),
        ("self_training.spatial_prior.sigma=3.0",),
    ):
        settings = experiment(*changes)
        (tmp_path / "again.yaml").write_text(settings.to_yaml())
        assert load_experiment(tmp_path / "again.yaml") == settings


def test_run_folders_from_before_the_choice_are_those_of_the_maximum():
    def known(*changes):
        return experiment(*changes).identity["self_training"]["spatial_prior"]

    before = {"grid": [16, 32], "kernel": 70.0}
    assert known(*SP, "self_training.spatial_prior.normalisation=maximum") == before
    assert known(*SP) == {**before, "normalisation": "sum"}
    # and where no round uses a prior every choice is the same run
    assert known() == known("self_training.method=st") == known(*SP, "self_training.rounds=0") == before
