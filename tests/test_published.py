"""What the publishers state, against the numbers of their papers."""

from __future__ import annotations

import pytest

from cbst_mx.data import FORMATS, published
from cbst_mx.evaluation import server_export


def test_counts_of_the_publishers():
    assert len(published.GTA5) == 24966
    assert len(published.SYNTHIA) == 9400
    assert {split: sum(cities.values()) for split, cities in published.CITYSCAPES.items()} == {
        "train": 2975,
        "val": 500,
        "test": 1525,
    }
    assert len(published.CITYSCAPES["train"]) == 18


@pytest.mark.parametrize(
    ("dataset", "split", "expected"),
    [
        ("gta5", None, (24966, (1052, 1914))),
        ("synthia", None, (9400, (760, 1280))),
        ("cityscapes", "train", (2975, (1024, 2048))),
        ("cityscapes", "test", (1525, (1024, 2048))),
        ("cityscapes", "dev", None),
        ("nthu", "train", (3200, (1024, 2048))),
        ("nthu", "rest", (100, (1024, 2048))),
        ("folder", "day", None),
    ],
)
def test_images_and_sizes(dataset, split, expected):
    assert published.published(dataset, split) == expected


def test_only_formats_have_sizes():
    assert set(published.SIZES) == set(FORMATS) - {"folder"}


def test_the_server_checks_against_the_same_numbers():
    assert server_export.SPLITS["val"] is published.CITYSCAPES["val"]
    assert server_export.SPLITS["test"] is published.CITYSCAPES["test"]
