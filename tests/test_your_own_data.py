"""docs/your-own-data.md: its files are read as they stand, and it names every key."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cbst_mx.config import load_experiment
from cbst_mx.data.description import FolderDescription, FolderSplit, LabelRule, read_description
from cbst_mx.data.image_files import MOST_PIXELS, read_label, read_rgb
from cbst_mx.data.listing import ENDINGS
from cbst_mx.errors import DataError

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


def test_the_table_of_files_is_what_is_read(tmp_path):
    section = TEXT.split("## Which files are read")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert sorted(ending for row in rows for ending in re.findall(r"`([.]\w+)`", row[1])) == sorted(ENDINGS)
    assert f"{MOST_PIXELS:,} pixels" in section
    grey = Image.fromarray(np.zeros((6, 8), np.uint8))
    for _, endings, _, label in rows:
        for ending in re.findall(r"`([.]\w+)`", endings):
            path = tmp_path / f"a{ending}"
            (grey.convert("RGB") if ending == ".ppm" else grey.convert("P") if ending == ".bmp" else grey).save(path)
            assert read_rgb(path).shape == (6, 8, 3)
            if label.startswith("refused"):
                with pytest.raises(DataError, match="must be stored without loss|colours"):
                    read_label(path)
            elif ending != ".ppm":
                assert read_label(path).max() == 0
