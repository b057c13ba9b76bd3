"""docs/your-own-data.md: its files are read as they stand, and it names every key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cbst_mx.config import load_experiment
from cbst_mx.data.description import FolderDescription, FolderSplit, LabelRule, read_description

TEXT = (Path(__file__).parent.parent / "docs" / "your-own-data.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```yaml\n(.*?)```", TEXT, re.S)


@pytest.mark.parametrize("block", [block for block in BLOCKS if "splits:" in block])
def test_descriptions_are_read(tmp_path, block):
    (tmp_path / "d.yaml").write_text(block)
    assert read_description(tmp_path / "d.yaml").splits


def test_the_experiment_is_read(tmp_path):
    description, experiment = BLOCKS[:2]
    (tmp_path / "photos.yaml").write_text(description)
    (tmp_path / "e.yaml").write_text(experiment)
    assert load_experiment(tmp_path / "e.yaml").classes().names == ("road", "plants", "sky")
    assert load_experiment(tmp_path / "e.yaml", ("smoke=true",)).self_training.rounds == 2


@pytest.mark.parametrize("model", [FolderDescription, FolderSplit, LabelRule])
def test_every_key_is_named(model):
    for key in model.model_fields:
        assert re.search(rf"\b{key}\b", TEXT), key


def test_readme_links_to_it():
    assert "(docs/your-own-data.md)" in (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
