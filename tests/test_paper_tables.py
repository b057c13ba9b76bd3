"""The published rows: their cells, their sums, and the experiments that reproduce them."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

import cbst_mx
from cbst_mx.errors import ConfigError
from cbst_mx.evaluation import paper_tables
from cbst_mx.evaluation.paper_tables import (
    EVIDENCE,
    TABLES,
    RowKey,
    expected,
    experiments,
    find_row,
    matches_table,
    rows,
)
from cbst_mx.label_space import CITYSCAPES_19, NTHU_13, SYNTHIA_13, SYNTHIA_16

FOLDER = Path(cbst_mx.__file__).parent / "evaluation" / "paper_tables"
CITIES = ("rome", "rio", "tokyo", "taipei")
NAMES = [
    *(f"gta5-{method}" for method in ("source", "st", "cbst", "cbst-sp", "cbst-sp-mst")),
    *(f"gta5-fcn8s-{method}" for method in ("source", "st", "cbst", "cbst-sp")),
    *(f"synthia-{method}" for method in ("source", "st", "cbst")),
    *(f"synthia-fcn8s-{method}" for method in ("source", "st", "cbst")),
    *(f"nthu-{city}-{method}" for city in CITIES for method in ("source", "st", "cbst")),
]


def lines_of(table):
    with open(FOLDER / f"table{table}.csv", newline="") as stream:
        return list(csv.DictReader(stream))


# ---------------------------------------------------------------------------------------------------------- the tables


@pytest.mark.parametrize(("table", "own", "all_"), [(1, 12, 28), (2, 6, 14), (3, 10, 24)])
def test_every_row_is_there(table, own, all_):
    # table 3 has one of the authors' nine rows in two versions
    assert (len(rows(table)), len(rows(table, own=False))) == (own, all_)
    assert all(row.own for row in rows(table))


@pytest.mark.parametrize("table", [1, 2, 3])
def test_cells_are_those_of_the_files(table):
    for row, line in zip(rows(table, own=False), lines_of(table)):
        cells = [value for name, value in line.items() if name.replace("*", "").replace("_", " ") in row.iou]
        assert ["" if value is None else f"{value:g}" for value in row.iou.values()] == [
            f"{float(cell):g}" if cell else "" for cell in cells
        ]
        assert tuple(row.iou) == TABLES[table].names
        assert {code.rstrip("123") for code in row.evidence.split("+")} <= {*EVIDENCE, "R"}


@pytest.mark.parametrize(
    ("table", "columns"),
    [
        (1, [("mean_of_13", "verdict")]),
        (2, [("mean_of_16", "verdict16"), ("mean_of_13", "verdict13")]),
        (3, [("mean_of_19", "verdict")]),
    ],
)
def test_sums_agree_with_those_done_elsewhere(table, columns):
    seen = set()
    for row, line in zip(rows(table, own=False), lines_of(table)):
        theirs = [(line[mean], line[verdict]) for mean, verdict in columns if line[mean]]
        assert len(theirs) == len(row.means)
        for mean, (value, verdict) in zip(row.means, theirs):
            assert mean.of_cells == pytest.approx(float(value), abs=0.0051)  # rounded to 0.01 there
            assert mean.adds_up == (not verdict.startswith("MISMATCH")), row
            seen.add(verdict)
    assert {"equal"} < seen


def test_rows_that_do_not_add_up():
    found = {(row.table, row.network, row.method): row.notes for t in TABLES for row in rows(t) if not row.adds_up}
    assert found == {
        (2, "FCN8s-VGG16", "CBST"): ("mIoU* is stated as 36.1, but the row's cells average 40.73",),
        (3, "ResNet-38", "ST (paper row)"): ("mIoU is stated as 41.5, but the row's cells average 48.36",),
        (3, "ResNet-38", "ST (README row since 67aaee9, 2018-11-20)"): (
            "mIoU is stated as 41.5, but the row's cells average 40.00",
        ),
    }


def test_numbers_known_from_the_paper():
    sp = expected(3, "CBST-SP", network="fcn8s")
    assert (sp.miou, sp.iou["road"], sp.iou["bicycle"]) == (36.1, 90.4, 28.6)
    assert expected(3, "cbst-sp+mst").miou == expected(3, "cbst-sp-mst").miou == 47.0
    synthia = expected(2, "CBST")
    assert (synthia.miou, synthia.miou_star, synthia.iou["traffic light"]) == (42.5, 48.4, 23.5)
    assert [expected(1, "CBST", city=city).miou for city in CITIES] == [53.6, 52.2, 48.8, 50.3]
    assert expected(3, "Source").miou == expected(3, "source only").miou == 35.4


def test_label_spaces_have_the_tables_classes():
    for table, space in ((1, NTHU_13), (2, SYNTHIA_16), (3, CITYSCAPES_19)):
        assert (TABLES[table].label_space, TABLES[table].names) == (space.name, space.names)
    assert tuple(SYNTHIA_16.names[index] for index in SYNTHIA_13) == NTHU_13.names


def test_st_of_resnet38_is_the_corrected_row():
    corrected, printed = expected(3, "ST"), expected(3, "ST (paper row)")
    assert corrected.iou["train"] == 0.6
    assert printed.iou["train"] == 20.9
    assert corrected.miou == printed.miou == 41.5
    assert corrected.key == printed.key == "st"


def test_numbers_for_experiment_files():
    values = expected(2, "ST", network="fcn8s").to_json()
    assert list(values) == [*SYNTHIA_16.names, "miou", "miou_star"]
    assert values["miou_star"] == 27.8
    assert list(expected(1, "ST", city="Rio").to_json())[-1] == "miou"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"table": 4, "row": "ST"}, r"^table must be 1, 2 or 3, got 4$"),
        (
            {"table": 2, "row": "CBST-SP"},
            r"^row must be one of 'Source only', 'ST', 'CBST' for ResNet-38 in table 2, got 'CBST-SP'$",
        ),
        ({"table": 3, "row": "ST", "network": "vgg"}, r"^network must be one of resnet38, fcn8s, got 'vgg'$"),
        ({"table": 1, "row": "ST"}, r"^city must be one of Rome, Rio, Tokyo, Taipei for a row of table 1, got ''$"),
        ({"table": 1, "row": "ST", "network": "fcn8s", "city": "Rio"}, r"^city must be one of none with this network"),
    ],
)
def test_unknown_rows_are_refused(arguments, sentence):
    with pytest.raises(ConfigError, match=sentence):
        expected(**arguments)


# ------------------------------------------------------------------------------------------------------ the experiments


def test_there_are_27_experiments():
    assert len(NAMES) == 27
    assert sorted(experiments()) == sorted(NAMES)


def test_experiments_and_rows_are_one_to_one():
    assert find_row("gta5-fcn8s-cbst-sp") == RowKey(3, "cbst-sp", "fcn8s")
    assert find_row("nthu-taipei-st") == RowKey(1, "st", "resnet38", "Taipei")
    assert find_row("synthia-cbst-released") == find_row("synthia-cbst")
    found = {
        expected(key.table, key.row, network=key.network, city=key.city).method
        for key in map(find_row, NAMES)
        if key.table == 3
    }
    assert found == {row.method for row in rows(3)} - {"ST (paper row)"}
    assert len({find_row(name) for name in NAMES}) == 27
    with pytest.raises(ConfigError, match=r"^experiment 'demo' is of no row of the paper: they are gta5-"):
        find_row("demo")


# ------------------------------------------------------------------------------------------------- images and files


def test_images_of_the_tables():
    val = {"format": "cityscapes", "split": "val"}
    assert matches_table(3, val, 500)
    assert matches_table(2, val, 500)
    assert not matches_table(1, val, 500)
    assert not matches_table(3, val, 12)
    assert not matches_table(3, {"format": "gta5", "split": None}, 500)
    city = {"format": "nthu", "split": "test", "fold": None}
    assert matches_table(1, city, 100)
    assert not matches_table(1, city, 10)
    assert matches_table(1, {**city, "fold": 3}, 10)


def test_the_files_travel_with_the_package():
    assert paper_tables._FOLDER == FOLDER
    assert sorted(path.name for path in FOLDER.iterdir()) == ["README.md", "table1.csv", "table2.csv", "table3.csv"]
