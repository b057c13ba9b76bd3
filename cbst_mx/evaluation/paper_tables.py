"""The published rows of the paper's Tables 1 to 3.

IoU and mIoU are in percent, as printed. Where the tables come from and which rows do not add up:
``paper_tables/README.md``.

A row is named by table, key (``source``, ``st``, ``cbst``, ``cbst-sp``, ``cbst-sp-mst``), network (``resnet38``,
``fcn8s``) and, in Table 1, city.
"""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping

from cbst_mx.errors import ConfigError, check_choice
from cbst_mx.evaluation.protocols import THIRTEEN, mean_over
from cbst_mx.label_space import CITYSCAPES_19, NTHU_13, SYNTHIA_16

__all__ = [
    "EVIDENCE",
    "NETWORKS",
    "TABLES",
    "Mean",
    "PaperRow",
    "RowKey",
    "Table",
    "expected",
    "experiments",
    "find_row",
    "matches_table",
    "rows",
]

EVIDENCE = {
    "X": "a screenshot of the paper's table",
    "O": "a second one",
    "H": "a third one",
    "R": "README of the authors' program",
    "R0": "the same before 2018-11-20",
    "U": "a third party's leaderboard",
}

#: Our names of the networks to the paper's.
NETWORKS = {"resnet38": "ResNet-38", "fcn8s": "FCN8s-VGG16"}

_FOLDER = Path(__file__).resolve().parent / "paper_tables"
# Cells and stated means are rounded to 0.1. Where both are rounded right, the mean of the cells is within 0.05 of the
# true mean, and so is the stated one.
_ROUNDING = 0.1
_TINY = 1e-9  # decimal fractions in binary


@dataclass(frozen=True)
class Table:
    """Data that a table's numbers were measured on.

    Parameters
    ----------
    title : str
        Title in our words.
    experiments : str
        Beginning of the names of its experiments.
    label_space : str
        Name of the label space.
    names : tuple of str
        Classes, in its order.
    source, target : str
        Formats of the data sets.
    validation : str
        The images evaluated on, in words.
    split : str
        Their split.
    images : int
        Their number, in Table 1 of one city.
    """

    title: str
    experiments: str
    label_space: str
    names: tuple[str, ...]
    source: str
    target: str
    validation: str
    split: str
    images: int


TABLES = {
    1: Table(
        "Table 1: Cityscapes to the NTHU cities, 13 classes",
        "nthu-{city}",
        NTHU_13.name,
        NTHU_13.names,
        "cityscapes",
        "nthu",
        "the 100 labelled images of the city",
        "test",
        100,
    ),
    2: Table(
        "Table 2: SYNTHIA to Cityscapes, 16 classes, mIoU* over 13",
        "synthia",
        SYNTHIA_16.name,
        SYNTHIA_16.names,
        "synthia",
        "cityscapes",
        "the 500 images of Cityscapes val",
        "val",
        500,
    ),
    3: Table(
        "Table 3: GTA5 to Cityscapes, 19 classes",
        "gta5",
        CITYSCAPES_19.name,
        CITYSCAPES_19.names,
        "gta5",
        "cityscapes",
        "the 500 images of Cityscapes val",
        "val",
        500,
    ),
}


@dataclass(frozen=True)
class RowKey:
    """The name of one of the authors' rows; `city` is empty outside Table 1."""

    table: int
    row: str
    network: str
    city: str = ""


@dataclass(frozen=True)
class Mean:
    """A mean a row states, and that of the cells it should be the mean of (None where the paper gives not all)."""

    name: str
    stated: float
    of_cells: float | None

    @property
    def adds_up(self) -> bool:
        """Whether rounding to 0.1 explains the difference."""
        return self.of_cells is None or abs(self.stated - self.of_cells) <= _ROUNDING + _TINY


@dataclass(frozen=True)
class PaperRow:
    """One row of a table.

    Parameters
    ----------
    table : int
        Number of the table.
    method : str
        As printed.
    network : str
        As printed, such as "ResNet-38".
    city : str
        City of a row of Table 1; empty otherwise.
    own : bool
        One of the authors' rows.
    iou : dict of str to (float or None)
        In percent by class; None where the paper gives none.
    miou, miou_star : float or None
        As stated: over all classes of the table, and over 13 of Table 2's.
    evidence : str
        Codes of `EVIDENCE`.
    """

    table: int
    method: str
    network: str
    city: str
    own: bool
    iou: Mapping[str, float | None]
    miou: float | None
    miou_star: float | None
    evidence: str

    @property
    def key(self) -> str:
        """The method in short: ``source``, ``st``, ``cbst``, ``cbst-sp``, ``cbst-sp-mst``; meant for own rows."""
        return _key(self.method)

    @property
    def means(self) -> tuple[Mean, ...]:
        """The means the row states."""
        listed = (("mIoU", self.miou, TABLES[self.table].names), ("mIoU*", self.miou_star, THIRTEEN))
        return tuple(
            Mean(name, stated, mean_over(self.iou, names)) for name, stated, names in listed if stated is not None
        )

    @property
    def adds_up(self) -> bool:
        """Whether the cells give every mean the row states."""
        return all(mean.adds_up for mean in self.means)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on numbers that contradict each other."""
        return tuple(
            f"{mean.name} is stated as {mean.stated:.1f}, but the row's cells average {mean.of_cells:.2f}"
            for mean in self.means
            if not mean.adds_up
        )

    def to_json(self) -> dict[str, float]:
        """Return IoU by class name, ``miou`` and in Table 2 ``miou_star``, in percent: an experiment's `expected`."""
        values = {**self.iou, "miou": self.miou, "miou_star": self.miou_star}
        return {name: value for name, value in values.items() if value is not None}


def rows(table: int, *, own: bool = True) -> tuple[PaperRow, ...]:
    """Return the authors' rows of a table in its order, or with `own` False all rows.

    ResNet-38 ST of Table 3 is there twice: as printed and as corrected in the authors' README.

    Raises
    ------
    ConfigError
        If there is no such table.
    """
    _check_table(table)
    return tuple(row for row in _read(table) if row.own or not own)


def expected(table: int, row: str, *, network: str = "resnet38", city: str = "") -> PaperRow:
    """Return one of the authors' rows.

    Parameters
    ----------
    table : {1, 2, 3}
        Number of the table.
    row : str
        The method as printed or its key, in any case: "CBST-SP", "source only", "Source", "cbst-sp-mst". "ST" of
        ResNet-38 in Table 3 is the authors' corrected row; "ST (paper row)" the printed one.
    network : {"resnet38", "fcn8s"}
        Our name of the network.
    city : str
        Needed for Table 1: Rome, Rio, Tokyo or Taipei, in any case.

    Raises
    ------
    ConfigError
        If there is no such row; the sentence lists those there are.
    """
    _check_table(table)
    check_choice("network", network, NETWORKS)
    own = [candidate for candidate in rows(table) if candidate.network == NETWORKS[network]]
    if table == 1:
        cities = list(dict.fromkeys(candidate.city for candidate in own)) or ["none with this network"]
        own = [candidate for candidate in own if candidate.city.lower() == city.lower()]
        if not own:
            raise ConfigError(f"city must be one of {', '.join(cities)} for a row of table 1, got {city!r}")
    exact = [candidate for candidate in own if candidate.method.lower() == row.strip().lower()]
    found = exact or [candidate for candidate in own if candidate.key == _key(row)]
    if not found:
        known = ", ".join(dict.fromkeys(repr(candidate.method) for candidate in own))
        raise ConfigError(f"row must be one of {known} for {NETWORKS[network]} in table {table}, got {row!r}")
    return found[-1]  # the correction stands after what it corrects


def find_row(name: str) -> RowKey:
    """Return the row that the experiment `name` reproduces; ``-released`` at the end does not matter.

    Raises
    ------
    ConfigError
        If it is none of the 27.
    """
    base = name[: -len("-released")] if name.endswith("-released") else name
    if base not in experiments():
        raise ConfigError(f"experiment {name!r} is of no row of the paper: they are {', '.join(experiments())}")
    return experiments()[base]


@functools.lru_cache(maxsize=None)
def experiments() -> dict[str, RowKey]:
    """Return the names of the experiments, one for each of the authors' rows, and their rows, in the tables' order.

    The network is named where it is not ResNet-38: ``gta5-cbst-sp``, ``synthia-fcn8s-st``, ``nthu-rome-cbst``.
    """
    short = {printed: network for network, printed in NETWORKS.items()}
    found = {}
    for table in (3, 2, 1):
        for row in rows(table):
            network = short[row.network]
            start = TABLES[table].experiments.format(city=row.city.lower())
            parts = [start, *([] if network == "resnet38" else [network]), row.key]
            found["-".join(parts)] = RowKey(table, row.key, network, row.city)
    return found


def matches_table(table: int, data: Mapping[str, Any], images: int) -> bool:
    """Tell whether an image set is the one a table was evaluated on, or a fold of it.

    Parameters
    ----------
    table : {1, 2, 3}
        Number of the table.
    data : mapping
        The image set as an experiment describes it.
    images : int
        Number of its images.
    """
    wanted = TABLES[table]
    if data.get("format") != wanted.target or data.get("split") != wanted.split:
        return False
    return images == wanted.images or (data.get("fold") is not None and 0 < images < wanted.images)


# ------------------------------------------------------------------------------------------------------------- files


@functools.lru_cache(maxsize=None)
def _read(table: int) -> tuple[PaperRow, ...]:
    with open(_FOLDER / f"table{table}.csv", encoding="utf-8", newline="") as stream:
        return tuple(_row(table, line) for line in csv.DictReader(stream))


def _row(table: int, line: Mapping[str, str]) -> PaperRow:
    cells = {name.rstrip("*").replace("_", " "): value for name, value in line.items()}
    return PaperRow(
        table=table,
        method=line["method"],
        network=line["network"],
        city=line["setting"].partition("NTHU/")[2],
        own=line["own"] == "1",
        iou={name: _number(cells[name]) for name in TABLES[table].names},
        miou=_number(line["stated_mean" if table == 1 else "stated_mIoU"]),
        miou_star=_number(line.get("stated_mIoU*", "")),
        evidence=line["evidence"],
    )


def _check_table(table: int) -> None:
    if table not in TABLES:
        raise ConfigError(f"table must be 1, 2 or 3, got {table!r}")


def _key(method: str) -> str:
    words = method.strip().lower().partition(" (")[0]
    return {"source only": "source"}.get(words, words.replace("+", "-"))


def _number(text: str) -> float | None:
    return float(text) if text else None
