"""Data roots of every format for the tests of the doctor, and publishers who published no more."""

from __future__ import annotations

import pytest

from cbst_mx.data import published
from tests.dataset_fixtures import (
    SIZE,
    write_cityscapes,
    write_gta5,
    write_nthu,
    write_synthia,
)

WRITERS = {"gta5": write_gta5, "synthia": write_synthia, "cityscapes": write_cityscapes, "nthu": write_nthu}


@pytest.fixture
def small_publishers(monkeypatch):
    """Let the publishers have published the fixtures."""
    monkeypatch.setattr(published, "GTA5", range(1, 4))
    monkeypatch.setattr(published, "SYNTHIA", range(3))
    monkeypatch.setattr(published, "CITYSCAPES", {"train": {"ulm": 3}, "val": {"lindau": 2}, "test": {"bonn": 1}})
    monkeypatch.setattr(published, "NTHU", {"Train": 4, "Test": 3})
    monkeypatch.setattr(published, "SIZES", dict.fromkeys(published.SIZES, SIZE))
    monkeypatch.setattr(published, "GTA5_HEIGHTS", range(SIZE[0] - 1, SIZE[0] + 2))


@pytest.fixture
def roots(tmp_path, small_publishers):
    return {name: write(tmp_path / name) for name, write in WRITERS.items()}


def errors(report):
    return [finding for finding in report.findings if finding.severity == "error"]


def the_error(report):
    """Give the only error."""
    assert len(errors(report)) == 1, report.findings
    return errors(report)[0]
