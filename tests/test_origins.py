"""``--print-config``: an experiment as it will be run, and where every value came from."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from cbst_mx.cli import main
from cbst_mx.config import load_experiment
from cbst_mx.config.origins import explained

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = ROOT / "experiments"


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


def origins(text):
    """Return key with dots to origin, and the values, of what is printed."""
    found, above = {}, []
    for line in text.splitlines()[1:]:
        level = (len(line) - len(line.lstrip())) // 2
        del above[level:]
        above.append(line.strip().partition(":")[0])
        if "  # " in line:
            found[".".join(above)] = line.partition("  # ")[2]
    return found, yaml.safe_load(text)


def printed(*arguments):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return origins(result.output)


def test_every_value_has_its_origin():
    file, base = "experiments/gta5-cbst-released.yaml", "experiments/base/gta5-resnet38.yaml"
    found, values = origins(explained(Path(file), ("seed=3",)))
    assert found["name"] == found["self_training.portion.initial"] == file
    assert found["self_training.method"] == "experiments/gta5-cbst.yaml"
    assert found["self_training.portion.step"] == found["network.options.batch_norm"] == base
    assert found["seed"] == "--set seed=3"
    assert found["self_training.guard.policy"] == found["source.split"] == "default"
    assert values["seed"] == 3
    assert values["target"]["list"] == "train-505.txt"


@pytest.mark.parametrize(
    "path", sorted(EXPERIMENTS.glob("*-*bst*.yaml")) + [EXPERIMENTS / "demo.yaml"], ids=lambda path: path.stem
)
def test_what_is_printed_is_the_same_experiment(path, tmp_path):
    (tmp_path / "printed.yaml").write_text(explained(path, ("smoke=true",)), "utf-8")
    assert load_experiment(tmp_path / "printed.yaml") == load_experiment(path, ("smoke=true",))


def test_changes_are_named_by_their_options(tmp_path):
    given = ("--rounds", 3, "--ctx", "cpu:1", "--recompute", "--set", "self_training.portion.initial=0.1")
    found, values = printed("plan", "experiments/gta5-cbst.yaml", "--target", "train", *given, "--print-config")
    assert found["self_training.rounds"] == "--rounds"
    assert found["ctx"] == "--ctx"
    assert found["self_training.keep_maps"] == "--recompute"
    assert found["target.split"] == "--target"
    assert found["self_training.portion.initial"] == "--set self_training.portion.initial=0.1"
    assert values["self_training"]["rounds"] == 3
    found, values = printed("run", "experiments/nthu-rome-cbst.yaml", "--fold", 4, "--smoke", "--print-config")
    assert found["target.fold"] == found["validation.target.fold"] == "--fold"
    assert found["smoke"] == "--smoke"
    assert found["augmentation.crop"] == found["self_training.retraining.iterations"] == "smoke"
    assert (values["target"]["fold"], values["augmentation"]["crop"]) == (4, [64, 64])


def test_a_start_that_is_given_or_there_is_told(tmp_path, monkeypatch):
    found, values = printed("run", "experiments/gta5-cbst.yaml", "--init", "a.params", "--print-config")
    assert found["initial_parameters"] == found["source_training"] == "--init"
    assert values["source_training"] is None
    monkeypatch.setenv("CBST_DATA", str(tmp_path))
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "gta5-source-released.params").touch()
    found, values = printed("run", "experiments/gta5-cbst-released.yaml", "--print-config")
    assert found["initial_parameters"] == found["pretrained"] == "the released start, which is there"
    assert values["initial_parameters"] == str(tmp_path / "weights" / "gta5-source-released.params")


def test_a_run_folder_from_before_a_choice_is_told(tmp_path):
    values = yaml.safe_load(explained(EXPERIMENTS / "gta5-cbst.yaml"))
    del values["resampling"]
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "new.yaml").write_text(yaml.safe_dump(values))
    found, values = printed("run", tmp_path / "new.yaml", "--out", tmp_path, "--print-config")
    assert values["resampling"] == "linear"
    assert found["resampling"] == f"{tmp_path / 'experiment.yaml'}, which does not say it"


def test_nothing_is_written_and_a_run_still_needs_its_folder(tmp_path):
    printed("run", "experiments/demo.yaml", "--out", tmp_path / "run", "--print-config")
    assert not (tmp_path / "run").exists()
    result = CliRunner().invoke(main, ["run", "experiments/demo.yaml"])
    assert result.exit_code == 2
    assert "Missing option '--out'" in result.output


def test_texts_of_any_kind_stay_one_line(tmp_path):
    change = 'name="a # b: é"'
    found, values = origins(explained(EXPERIMENTS / "demo.yaml", (change,)))
    assert values["name"] == "a # b: é"
    assert found["name"].endswith(f"--set {change}")
