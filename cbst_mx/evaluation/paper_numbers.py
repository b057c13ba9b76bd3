"""The numbers of the paper's Tables 1 to 3, and whether a run reproduces a row of them.

IoU and mIoU of the paper are in percent, as printed, and so are tolerances; the results of runs are in [0, 1] and are
turned into percent here. Where the tables come from and which rows do not add up: ``paper_tables/README.md``.

A row is named by table, key (``source``, ``st``, ``cbst``, ``cbst-sp``, ``cbst-sp-mst``), network (``resnet38``,
``fcn8s``) and, in Table 1, city.
"""

from __future__ import annotations

import csv
import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Sequence

from cbst_mx.errors import ConfigError, RunError
from cbst_mx.files import read_json
from cbst_mx.label_space import CITYSCAPES_19, NTHU_13, SYNTHIA_13, SYNTHIA_16
from cbst_mx.run_dir import RunDir
from cbst_mx.strict_yaml import read_yaml

__all__ = [
    "EVIDENCE",
    "NETWORKS",
    "TABLES",
    "TOLERANCE",
    "Check",
    "Line",
    "Mean",
    "PaperRow",
    "RowKey",
    "check",
    "class_tolerance",
    "expected",
    "experiments",
    "is_of_table",
    "row_of",
    "row_of_run",
    "rows",
    "runs_below",
]

# No source states a spread: every published number is of one run. What there is: the authors' README says that results
# vary from run to run and that the best of the rounds is usually the second or third; the two published versions of
# one row (Table 3, ResNet-38 ST) contradict its mean by 1.5 and 6.9; averaging over scales alone moved a ResNet-38 of
# one author by 1.0 (itijyou/ademxapp, issue 33); and the mIoU of our own demo has a standard deviation of 2.5 to 3.8
# over five seeds (README). Two points is therefore a narrow band for one run, and it still does not tell CBST from
# CBST-SP (45.2 and 46.2): a verdict "within" says that a run agrees with the row, not that it excludes the next one.
TOLERANCE = 2.0

EVIDENCE = {
    "X": "a screenshot of the paper's table",
    "O": "a second one",
    "H": "a third one",
    "R": "README of the authors' program",
    "R0": "the same before 2018-11-20",
    "U": "a third party's leaderboard",
}

NETWORKS = {"resnet38": "ResNet-38", "fcn8s": "FCN8s-VGG16"}  # ours to the paper's

_FOLDER = Path(__file__).resolve().parent / "paper_tables"
_THIRTEEN = tuple(SYNTHIA_16.names[index] for index in SYNTHIA_13)
# Cells and stated means are rounded to 0.1. Where both are rounded right, the mean of the cells is within 0.05 of the
# true mean, and so is the stated one.
_ROUNDING = 0.1
_TINY = 1e-9  # decimal fractions in binary


@dataclass(frozen=True)
class Table:
    """What a table's numbers were measured on.

    Parameters
    ----------
    title : str
    experiments : str
        How the names of its experiments begin.
    label_space : str
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
    method : str
        As printed.
    network : str
        As printed, such as "ResNet-38".
    city : str
        Of Table 1; empty otherwise.
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
        listed = (("mIoU", self.miou, TABLES[self.table].names), ("mIoU*", self.miou_star, _THIRTEEN))
        return tuple(
            Mean(name, stated, _mean([self.iou[c] for c in names]))
            for name, stated, names in listed
            if stated is not None
        )

    @property
    def adds_up(self) -> bool:
        """Whether the cells give every mean the row states."""
        return all(mean.adds_up for mean in self.means)

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know about the numbers, a sentence each."""
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
    row : str
        The method as printed or its key, in any case: "CBST-SP", "source only", "Source", "cbst-sp-mst". "ST" of
        ResNet-38 in Table 3 is the authors' corrected row; "ST (paper row)" the printed one.
    network : {"resnet38", "fcn8s"}
    city : str
        Needed for Table 1: Rome, Rio, Tokyo or Taipei, in any case.

    Raises
    ------
    ConfigError
        If there is no such row; the sentence lists those there are.
    """
    _check_table(table)
    if network not in NETWORKS:
        raise ConfigError(f"network must be one of {', '.join(NETWORKS)}, got {network!r}")
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


def row_of(name: str) -> RowKey:
    """Return the row that an experiment of this name reproduces; ``-released`` at the end does not matter.

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


# ------------------------------------------------------------------------------------------------------------- check


@dataclass(frozen=True)
class Line:
    """One comparison: a class or a mean.

    ``ours`` and ``paper`` in percent, None where there is no usable number; ``verdict`` is "within", "off", "missing"
    (no finite number of ours, which counts as a miss) or "not judged".
    """

    name: str
    ours: float | None
    paper: float | None
    tolerance: float
    verdict: str


@dataclass(frozen=True)
class Check:
    """The comparison of a run with a row.

    Parameters
    ----------
    row : PaperRow
    stage : str
        What of the run was compared.
    lines : tuple of Line
        Classes, then means.
    verdict : str
        "within tolerance", "off", or "not comparable (smoke)".
    notes : tuple of str
        A sentence each.
    """

    row: PaperRow
    stage: str
    lines: tuple[Line, ...]
    verdict: str
    notes: tuple[str, ...]

    @property
    def missed(self) -> bool:
        """Whether a number that was judged is off or missing."""
        return self.verdict == "off"


def class_tolerance(tolerance: float, classes: int) -> float:
    """Return the tolerance of one class's IoU that belongs to a tolerance of the mean over `classes` of them.

    Independent errors of the classes shrink by the square root of their number in the mean.
    """
    return tolerance * math.sqrt(classes)


def runs_below(path: Path) -> list[Path]:
    """Return the folder itself where it is a run, else the runs directly inside it (the folds of a city), by name.

    Raises
    ------
    RunError
        If there is none.
    """
    if RunDir(path).manifest.is_file():
        return [path]
    inside = sorted(child for child in path.iterdir() if RunDir(child).manifest.is_file()) if path.is_dir() else []
    if not inside:
        raise RunError(f"{path} is no run folder and holds none (a run folder has a manifest.json)")
    return inside


def row_of_run(path: Path, *, table: int | None = None, row: str | None = None, network: str | None = None) -> PaperRow:
    """Return the row to compare a run with; what is not given is what the run's experiment says of itself.

    Table and row are those under its key `paper`, else those of its name.

    Raises
    ------
    ConfigError
        If there is no such row.
    """
    run = _Run(path)
    if table is None or row is None:
        paper = run.settings.get("paper")
        if isinstance(paper, dict):
            own = RowKey(paper["table"], paper["row"], paper["network"])
        else:
            own = row_of(str(run.settings.get("name")))
        table, row = table or own.table, row or own.row
    return expected(table, row, network=network or str(run.of("network", "name")), city=run.city)


def is_of_table(table: int, data: Mapping[str, Any], images: int) -> bool:
    """Tell whether an image set, as an experiment describes it, is the one a table was evaluated on (or a fold)."""
    wanted = TABLES[table]
    if data.get("format") != wanted.target or data.get("split") != wanted.split:
        return False
    return images == wanted.images or (data.get("fold") is not None and 0 < images < wanted.images)


def check(
    row: PaperRow,
    folders: Sequence[Path],
    *,
    tolerance: float = TOLERANCE,
) -> Check:
    """Compare a run, or the runs of all folds of a city, with a row of the paper.

    The result of a run is its last round, whatever other rounds gave; of a row without self-training, its source
    network. Every difference counts, above as well as below. Where the cells of a row do not give the mean it states,
    only means are judged: those that the cells do give, or else the one stated. Means of folds are over the folds that
    have the class.

    Parameters
    ----------
    row : PaperRow
    folders : sequence of Path
        Run folders: one, or in Table 1 one for each fold.
    tolerance : float
        Of means, in points; `class_tolerance` gives that of classes.

    Raises
    ------
    RunError
        If a run is of other data, another network or method than the row, or is not finished.
    ConfigError
        If `tolerance` is not a positive number.
    """
    if not (math.isfinite(tolerance) and tolerance > 0):
        raise ConfigError(f"tolerance must be a positive number of points, got {tolerance}")
    runs = [_Run(path) for path in folders]
    for run in runs:
        _check_comparable(run, row)
    smoke = any(run.smoke for run in runs)
    notes = list(row.notes)
    if not row.adds_up:
        notes.append("so classes are not judged, only " + " and ".join(mean.name for mean in _judged_means(row)))
    versions = [other for other in rows(row.table) if _name(other) == _name(row)]
    if len(versions) > 1:
        notes.append(f"the row was published in {len(versions)} versions; this is {row.method}")
    if not smoke:
        notes += _check_images(runs, row)
    results = [run.result(row) for run in runs]
    lines = _compare(row, results, tolerance)
    if len(runs) > 1:
        notes.append(f"mean over {len(runs)} folds")
    if smoke:
        verdict = "not comparable (smoke)"
        lines = tuple(Line(line.name, line.ours, line.paper, line.tolerance, "not judged") for line in lines)
    else:
        verdict = "off" if any(line.verdict in ("off", "missing") for line in lines) else "within tolerance"
    return Check(row, runs[0].stage_name(row), lines, verdict, tuple(notes))


def _compare(row: PaperRow, results: Sequence[Mapping[str, Any]], tolerance: float) -> tuple[Line, ...]:
    names = TABLES[row.table].names
    ours = {name: _over_runs([_listed(result).get(name) for result in results], len(results)) for name in names}
    lines = []
    wide = class_tolerance(tolerance, len(names))
    for name in names:
        lines.append(_line(name, ours[name], row.iou[name], wide, row.adds_up))
    for mean in row.means:
        if mean.name == "mIoU":
            complete = None not in ours.values()
            value = _over_runs([result.get("miou") for result in results], 1) if complete else None
        else:
            value = _mean([ours[name] for name in _THIRTEEN])
        lines.append(_line(mean.name, value, mean.stated, tolerance, mean in _judged_means(row)))
    return tuple(lines)


def _judged_means(row: PaperRow) -> list[Mean]:
    """Return the stated means that the cells give, or all where they give none."""
    return [mean for mean in row.means if mean.adds_up] or list(row.means)


def _line(name: str, ours: float | None, paper: float | None, tolerance: float, judged: bool) -> Line:
    if not judged or paper is None:
        verdict = "not judged"
    elif ours is None:
        verdict = "missing"
    else:
        verdict = "within" if abs(ours - paper) <= tolerance + _TINY else "off"
    return Line(name, ours, paper, tolerance, verdict)


def _over_runs(values: Sequence[Any], folds: int) -> float | None:
    """Return the mean in percent; None where a value is broken or missing.

    Only among folds (more than one) may a value be null: a class that occurs in none of a fold's few images.
    """
    there = [value for value in values if not (value is None and folds > 1)]
    if not there or not all(_is_iou(value) for value in there):
        return None
    return 100 * math.fsum(there) / len(there)


def _is_iou(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1


def _listed(result: Mapping[str, Any]) -> Mapping[str, Any]:
    iou = result.get("iou")
    return iou if isinstance(iou, Mapping) else {}


def _read_mapping(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise RunError(f"{path} must hold names and values, got {type(value).__name__}")
    return value


class _Run:
    """What a run folder says about itself."""

    def __init__(self, path: Path):
        self.folder = RunDir(path)
        self.settings = read_yaml(self.folder.experiment)
        self.manifest = _read_mapping(self.folder.manifest)
        self.summary = _read_mapping(self.folder.summary)
        self.smoke = self.settings.get("smoke") is True
        self.leading = str(self.summary.get("leading"))  # the validation set that counts
        self.data = self.of("validation", self.leading)
        if not isinstance(self.data, dict):
            raise RunError(
                f"{self.folder.experiment} has no validation set {self.leading!r}, which the summary leads with"
            )
        self.city = str(self.data.get("city") or "")

    def of(self, *keys: str) -> Any:
        """Return a setting of the experiment, None where it has none."""
        value: Any = self.settings
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    @property
    def images(self) -> Any:
        """Number of images evaluated on."""
        value: Any = self.manifest
        for key in ("inputs", "images", f"validation {self.leading}"):
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def stage_name(self, row: PaperRow) -> str:
        if row.key == "source":
            return "source network"
        rounds = self.of("self_training", "rounds")
        return f"round {rounds}, the last" if rounds else "the network that was given"

    def result(self, row: PaperRow) -> Mapping[str, Any]:
        """Return the results of the source network or of the last round."""
        wanted = 0 if row.key == "source" else self.of("self_training", "rounds")
        try:
            stages = {stage["round"]: stage["evaluation"] for stage in self.summary["stages"]}
            if wanted not in stages:
                done = max(stages, default="none")
                raise RunError(f"{self.folder.path} is not finished: round {wanted} is its result, it has {done}")
            result = stages[wanted][self.leading]
        except (KeyError, TypeError) as error:
            raise RunError(f"{self.folder.summary} is no summary of a run: {error!r}") from error
        if not isinstance(result, Mapping):
            raise RunError(
                f"{self.folder.summary} is no summary of a run: round {wanted} must hold names, got {result!r}"
            )
        return result


def _check_comparable(run: _Run, row: PaperRow) -> None:
    """Refuse a run that is of something else than the row."""
    table = TABLES[row.table]
    network = {printed: ours for ours, printed in NETWORKS.items()}[row.network]
    scales = [0.5, 0.75, 1.0] if row.key.endswith("-mst") else [1.0]
    method = row.key[: -len("-mst")] if row.key.endswith("-mst") else row.key
    required = [
        ("label space", run.of("label_space"), table.label_space),
        ("source", run.of("source", "format"), table.source),
        ("target", run.of("target", "format"), table.target),
        (f"validation set {run.leading}", run.data.get("format"), table.target),
        (f"split of validation set {run.leading}", run.data.get("split"), table.split),
        ("network", run.of("network", "name"), network),
        ("evaluation scales", sorted(run.of("evaluation", "scales") or [1.0]), scales),
    ]
    if row.city:
        required.append(("city", run.city, row.city))
    if method != "source":
        required.append(("method", run.of("self_training", "method"), method))
    for what, got, wanted in required:
        if got != wanted:
            raise RunError(
                f"{run.folder.path} cannot be compared with table {row.table}, {row.method}: its {what} must be "
                f"{wanted}, got {got}"
            )


def _check_images(runs: Sequence[_Run], row: PaperRow) -> list[str]:
    """Refuse runs that were not evaluated on the table's images, each once; return what to know."""
    table = TABLES[row.table]
    folds = [run.data.get("fold") for run in runs]
    if folds != [None]:
        ways = {(run.data.get("folds") or 10, run.data.get("fold_seed") or 0) for run in runs}
        count = next(iter(ways))[0]
        if row.table != 1:
            raise RunError(f"table {row.table} needs one run folder, got {len(runs)}")
        if len(ways) > 1 or None in folds or sorted(folds) != list(range(count)):
            given = ", ".join(str(fold) for fold in folds)
            raise RunError(
                f"table 1 needs one run of each fold, 0 to {count - 1}, all of one fold_seed, got folds {given}"
            )
    total = sum(run.images if isinstance(run.images, int) else 0 for run in runs)
    if total != table.images:
        raise RunError(
            f"{runs[0].folder.path} cannot be compared with table {row.table}: it must have been evaluated on "
            f"{table.validation}, got {total} images"
        )
    if row.table == 1 and folds == [None]:
        return ["one run on all 100 images; the paper's is the mean over 10 folds"]
    return []


# ------------------------------------------------------------------------------------------------------------ tables


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


def _name(row: PaperRow) -> tuple[str, str, str]:
    return row.city, row.network, row.key


def _check_table(table: int) -> None:
    if table not in TABLES:
        raise ConfigError(f"table must be 1, 2 or 3, got {table!r}")


def _key(method: str) -> str:
    words = method.strip().lower().partition(" (")[0]
    return {"source only": "source"}.get(words, words.replace("+", "-"))


def _number(text: str) -> float | None:
    return float(text) if text else None


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return math.fsum(numbers) / len(numbers) if len(numbers) == len(values) else None
