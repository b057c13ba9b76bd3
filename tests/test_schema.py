"""Descriptions of the keys of YAML files, the JSON schemas made of them, and the command that prints these."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner

from cbst_mx.cli import main
from cbst_mx.config.schema import KINDS, NO_DEFAULT, json_schema, keys
from cbst_mx.strict_yaml import read_yaml

ROOT = Path(__file__).resolve().parents[1]
MODELS = [model for models in KINDS.values() for model in models]
EXPERIMENTS = sorted(path for path in ROOT.glob("experiments/**/*.yaml") if "self_training:" in path.read_text("utf-8"))
DESCRIPTIONS = sorted(path for path in ROOT.glob("experiments/**/*.yaml") if "splits:" in path.read_text("utf-8"))


def problems(kind, content):
    """Return what the schema finds in the content of a YAML file, whose keys JSON has as texts."""
    validator = jsonschema.Draft7Validator(json_schema(kind))
    return [error.message for error in validator.iter_errors(json.loads(json.dumps(content)))]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_key_says_what_it_means_and_where_it_comes_from(model):
    found = keys(model)
    assert len(found) > 10
    for key in found:
        assert re.match(r"[A-Zp`].*[.]$", key.meaning), key
        assert key.origin in ("paper", "inferred", "released", "ours"), key
        assert len(key.meaning) <= 260, key


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_number_has_its_unit(model):
    for key in keys(model):
        # of the columns of a reference, which no mapping of one's own keys has
        if re.search("integer|number", key.type):
            assert key.unit, key


def test_keys_are_those_of_the_models_in_their_order():
    rows = {key.name: key for key in keys(KINDS["experiment"][0])}
    assert list(rows)[:4] == ["name", "seed", "label_space", "source"]
    p = rows["self_training.portion.initial"]
    assert p[1:5] == ("number, 1e-06 to 1", "0.2", "share of the pixels", "paper")
    assert rows["self_training.method"].type == "st | cbst | cbst-sp"
    assert rows["self_training.method"].default == NO_DEFAULT
    assert rows["seed"].type == "integer, 0 to below 2^64"
    assert rows["augmentation.crop"].type == "list of 2 integers, 1 to 8,192"
    assert rows["source_training"].type == "mapping or null"
    assert rows["validation.NAME.format"].default == NO_DEFAULT
    assert {key.name for key in keys(KINDS["data"][0])} > {"splits.NAME.labels.replace", "label_space.palette"}


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiments_fit_their_schema(path):
    assert problems("experiment", read_yaml(path)) == []


@pytest.mark.parametrize("path", DESCRIPTIONS, ids=lambda path: path.stem)
def test_descriptions_fit_their_schema(path):
    assert problems("data", read_yaml(path)) == []


def test_files_of_both_kinds_were_tried():
    assert len(EXPERIMENTS) > 40
    assert len(DESCRIPTIONS) > 5


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"sed": 1}, "Additional properties are not allowed ('sed' was unexpected)"),
        ({"seed": -1}, "-1 is less than the minimum of 0"),
        ({"target": None}, "None is not of type 'object'"),
        ({"self_training": {"method": "CBST"}}, "'CBST' is not one of ['st', 'cbst', 'cbst-sp']"),
        ({"self_training": {"method": "st"}}, "'retraining' is a required property"),
    ],
)
def test_the_schema_of_experiments_marks_mistakes(change, sentence):
    assert sentence in problems("experiment", {**read_yaml(ROOT / "experiments" / "demo.yaml"), **change})


def test_an_experiment_that_extends_another_needs_no_key_but_none_may_be_misspelt():
    assert problems("experiment", {"extends": "a.yaml"}) == []
    assert problems("experiment", {"extends": "a.yaml", "self_training": {"portion": {"initial": 0.1}}}) == []
    assert problems("experiment", {"extends": "a.yaml", "self_training": {"portion": {"inital": 0.1}}})
    assert "'name' is a required property" in problems("experiment", {})


def test_the_schema_of_data_marks_mistakes():
    own = {"name": "a", "names": ["b"], "palette": [[0, 0, 0]], "ids": {0: "b", 255: "ignore"}}
    splits = {"day": {"images": ["*.jpg"], "labels": "{stem}.png"}}
    assert problems("data", {"label_space": own, "splits": splits}) == []
    assert problems("data", {"label_space": "cityscapes-19", "ids": "trainId", "splits": splits}) == []
    assert "'ids' is a required property" in problems("data", {"label_space": "cityscapes-19", "splits": splits})
    wrong = {"day": {"images": ["*.jpg"], "label": "{stem}.png"}}
    assert "Additional properties are not allowed ('label' was unexpected)" in problems(
        "data", {"label_space": own, "splits": wrong}
    )


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_command_prints_a_schema_that_editors_take(kind):
    result = CliRunner().invoke(main, ["schema", kind])
    assert result.exit_code == 0, result.output
    printed = json.loads(result.output)
    assert printed == json_schema(kind)
    jsonschema.Draft7Validator.check_schema(printed)
    text = json.dumps(printed)
    assert "$defs" not in text
    for reference in re.findall(r'"\$ref": "#/definitions/(\w+)"', text):
        assert reference in printed["definitions"]
    # what an editor shows beside a key
    name = "Experiment" if kind == "experiment" else "OwnClasses"
    assert all(node["description"] for node in printed["definitions"][name]["properties"].values())
