"""The experiment files: each row of the paper is one of them, says where its settings come from, and runs."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from cbst_mx.cli import main
from cbst_mx.config import load_experiment
from cbst_mx.evaluation import paper_tables
from cbst_mx.strict_yaml import read_yaml
from tests import dataset_fixtures

FOLDER = Path(__file__).parents[1] / "experiments"
ROWS = paper_tables.experiments()
RELEASED = sorted(path.stem for path in FOLDER.glob("*-released.yaml"))
# Not settings: what an experiment is called, and the numbers it is compared with.
NAMES = {"name", "paper", "origin", "extends", "seed", "smoke"}


def merged(name):
    """Return the settings that the files of an experiment state, as dotted keys."""

    def read(path):
        values = read_yaml(path)
        base = read(path.parent / values.pop("extends")) if "extends" in values else {}
        return {**base, **{key: value for key, value in leaves(values)}}

    def leaves(values, prefix=""):
        for key, value in values.items():
            if isinstance(value, dict):
                yield from leaves(value, f"{prefix}{key}.")
            else:
                yield prefix + key, value

    return read(FOLDER / f"{name}.yaml")


def test_there_is_one_file_for_every_row_of_the_authors():
    assert len(ROWS) == 27
    named = {path.stem for path in FOLDER.glob("*.yaml")}
    assert named == {*ROWS, *RELEASED, "demo", "demo-adversarial", "camvid-data", "camvid-dusk-cbst"}


@pytest.mark.parametrize("name", ROWS)
def test_expected_numbers_are_the_tables(name):
    experiment = load_experiment(FOLDER / f"{name}.yaml")
    key = ROWS[name]
    table, row, network, city = key.table, key.row, key.network, key.city
    paper = experiment.paper
    assert (experiment.name, paper.table, paper.network, experiment.network.name) == (name, table, network, network)
    assert experiment.target.city == experiment.validation["target"].city == (city or None)
    expected = paper_tables.expected(paper.table, paper.row, network=paper.network, city=city)
    assert expected.key == row
    assert paper.expected == expected.to_json()
    assert set(paper.expected) - {"miou", "miou_star"} == set(experiment.classes().names)
    first = (FOLDER / f"{name}.yaml").read_text().splitlines()[0]
    assert f'Table {table}, row "{paper.row}"' in first
    assert first.endswith(f"expected mIoU {expected.miou:g}.")


@pytest.mark.parametrize("name", [*ROWS, *RELEASED])
def test_every_setting_says_where_it_comes_from(name):
    settings = merged(name)
    origin = load_experiment(FOLDER / f"{name}.yaml").origin
    assert set(origin.values()) <= {"paper", "released", "author", "ours"}
    stated = [key for key in settings if key.split(".")[0] not in NAMES]
    missing = [key for key in stated if not any(key == o or key.startswith(o + ".") for o in origin)]
    assert not missing
    unused = [o for o in origin if not any(key == o or key.startswith(o + ".") for key in stated)]
    assert not unused


def test_the_two_fidelities_differ_where_paper_and_program_do():
    paper, released = (load_experiment(FOLDER / f"gta5-cbst{end}.yaml").self_training for end in ("", "-released"))
    assert (paper.fidelity, paper.rounds, paper.portion.initial, paper.mining.worst) == ("paper", 7, 0.20, 5)
    assert (released.fidelity, released.rounds, released.portion.initial, released.mining.worst) == (
        "released",
        6,
        0.15,
        3,
    )
    assert load_experiment(FOLDER / "gta5-st.yaml").self_training.mining is None
    assert load_experiment(FOLDER / "synthia-cbst.yaml").self_training.mining is None
    assert load_experiment(FOLDER / "synthia-cbst-released.yaml").self_training.mining.worst == 3


def make_steps(*arguments):
    """Return the calls of cbst-mx that make would do, each as its arguments; of a shell's `a || b` both."""
    steps = subprocess.run(
        ["make", "-n", *arguments], cwd=str(FOLDER.parent), capture_output=True, text=True, check=True
    ).stdout
    lines = steps.replace("\\\n", " ").splitlines()
    return [shlex.split(line.partition("cbst-mx ")[2]) for line in lines if "cbst-mx " in line]


def test_make_names_the_steps_of_an_experiment():
    words = [step[0] for step in make_steps("gta5-cbst")]
    assert words == ["source", *["pseudo-label", "retrain"] * 7, "run", "check-paper"]


def test_make_help_lists_every_experiment_in_one_line():
    lines = subprocess.run(
        ["make", "help"], cwd=str(FOLDER.parent), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in [*ROWS, *RELEASED]:
        assert len([line for line in lines if line.startswith(f"{name} - ")]) == 1


# ------------------------------------------------------------------------------------------------- smoke tests


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The four data sets, a few images each, in the publishers' formats."""
    root = tmp_path_factory.mktemp("data")
    dataset_fixtures.write_gta5(root / "gta5")
    dataset_fixtures.write_synthia(root / "synthia")
    dataset_fixtures.write_cityscapes(root / "cityscapes")
    dataset_fixtures.write_nthu(root / "nthu", train=2, test=10)
    names = sorted(path.name for path in (root / "cityscapes/leftImg8bit/train").rglob("*.png"))
    (root / "cityscapes" / "train-505.txt").write_text("\n".join(names[:2]) + "\n")
    return root


def call(data, *arguments, code=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], env={"CBST_DATA": str(data)})
    assert result.exit_code == code, result.output
    return result.output


@pytest.mark.parametrize("name", [*ROWS, *RELEASED])
def test_the_chain_runs_from_source_to_verdict(name, data, tmp_path):
    file = FOLDER / f"{name}.yaml"
    options = ["--smoke", "--set", "seed=1"]
    if name == "gta5-cbst-sp-mst":
        source = file.with_name("gta5-cbst-sp.yaml")
        call(data, "run", source, "--out", tmp_path / "cbst-sp", *options)
        options += ["--rounds", 0, "--init", tmp_path / "cbst-sp/round-2/parameters.params"]
    call(data, "run", file, "--out", tmp_path / "run", *options)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    rounds = 0 if name.endswith(("-source", "-mst")) else 2
    assert [stage["round"] for stage in summary["stages"]] == list(range(rounds + 1))
    assert "not comparable (smoke)" in call(data, "check-paper", tmp_path / "run")
    if name in RELEASED:
        thresholds = json.loads((tmp_path / "run/round-1/thresholds.json").read_text())
        assert thresholds["fidelity"] == "released"


@pytest.mark.parametrize("name", ["gta5-cbst", "gta5-cbst-sp-mst", "gta5-st-released", "nthu-rio-st"])
def test_the_steps_of_make_lead_to_a_verdict(name, data, tmp_path, monkeypatch):
    monkeypatch.chdir(FOLDER.parent)
    output = ""
    for step in make_steps(name, "SMOKE=1", f"RUNS={tmp_path}"):
        output = call(data, *step)
    assert step[0] == "check-paper"
    assert "not comparable (smoke)" in output
