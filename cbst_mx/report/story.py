"""What one or several runs say, read for a report: methods, gains, classes, rounds.

A method is one experiment with its runs by seed. C classes, S stages: stage 0 is the source network, stage r the
network after round r. IoU and gains are in [0, 1].
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Sequence

from cbst_mx.errors import CBSTError, ConfigError, DataError, check_choice
from cbst_mx.evaluation.comparison import PairedGain, paired_gain
from cbst_mx.evaluation.paper_check import find_run_row
from cbst_mx.evaluation.protocols import LEVEL, ImageMatrices, narrow
from cbst_mx.evaluation.run_experiment import find_runs
from cbst_mx.evaluation.run_results import RunResults
from cbst_mx.label_space import LabelSpace
from cbst_mx.messages import counted, stage_title
from cbst_mx.run_dir import RunDir

__all__ = ["DASH", "SOURCE", "Method", "Story", "find_below", "mean", "points", "read_story", "signed"]

SOURCE = "source-only"
DASH = "\N{EN DASH}"
_DEPTH = 4  # folders below one that is given
_APART = ("seed", "initial_parameters", "ctx", "amp")  # keys in which runs of one method may differ


@dataclass(frozen=True)
class Method:
    """One experiment and its runs.

    Attributes
    ----------
    title : str
        Name in tables and charts.
    runs : dict of int to RunResults
        By seed.
    name : str or None
        The validation set; None where the runs have none.
    """

    title: str
    runs: dict[int, RunResults]
    name: str | None

    @property
    def first(self) -> RunResults:
        """Run of the lowest seed."""
        return next(iter(self.runs.values()))

    @property
    def stages(self) -> list[int]:
        """Stages that all runs have evaluated."""
        common = set.intersection(*(set(run.evaluated) for run in self.runs.values()))
        return sorted(common)

    @property
    def last(self) -> int | None:
        """Last of the stages; None where there is none."""
        return self.stages[-1] if self.stages else None

    @property
    def adapts(self) -> bool:
        """Whether the runs have rounds."""
        return self.first.rounds > 0

    @property
    def finished(self) -> bool:
        """Whether all runs are finished."""
        return all(run.finished for run in self.runs.values())

    def miou(self, stage: int) -> dict[int, float]:
        """Return mIoU by seed."""
        return {seed: run.miou(stage, self.name) for seed, run in self.runs.items()}

    def iou(self, stage: int) -> dict[str, list[float]]:
        """Return the IoU of every class, one number per seed; NaN for a class in neither truth nor prediction."""
        found = [run.iou(stage, self.name) for run in self.runs.values()]
        return {name: [one.get(name, math.nan) for one in found] for name in found[0]}

    def matrices(self, stage: int) -> list[ImageMatrices]:
        """Return the confusion matrices over the network's classes, a run after the other."""
        found = []
        for run in self.runs.values():
            sets = run.matrices(stage)
            check_choice("set", str(self.name), sets)
            found.append(narrow(sets[str(self.name)], run.classes().names))
        return found

    def gain(self, samples: int = 1000, seed: int = 0) -> PairedGain | None:
        """Return the gain of the last stage over the source network of the same runs; None without a round."""
        if self.name is None or not self.last or 0 not in self.stages:
            return None
        pairs = list(zip(self.matrices(0), self.matrices(self.last)))
        return paired_gain(pairs, samples=samples, seed=seed)


@dataclass(frozen=True)
class Story:
    """Runs to report on.

    Attributes
    ----------
    methods : list of Method
        In the order in which they were given.
    name : str or None
        The validation set; None where the runs have none.
    space : LabelSpace
        Classes of the networks.
    """

    methods: list[Method]
    name: str | None
    space: LabelSpace

    @property
    def adapted(self) -> list[Method]:
        """The methods with rounds."""
        return [method for method in self.methods if method.adapts]

    @property
    def source(self) -> Method:
        """The method whose stage 0 stands for source-only: one without rounds, else the first."""
        return next((method for method in self.methods if not method.adapts), self.methods[0])

    @property
    def images(self) -> int:
        """Images of the validation set; 0 where there is none or nothing is evaluated."""
        first = self.methods[0]
        return len(first.matrices(first.stages[0])[0].images) if self.name is not None and first.stages else 0

    def answers(self) -> list[str]:
        """Return the answer to "did it help?", a sentence for each method."""
        return [self._answer(method) for method in self.adapted] or [self._source_answer()]

    def columns(self) -> list[tuple[str, Method, int]]:
        """Return what is compared: title, method and stage of source-only and of the last stage of every method."""
        found = [(SOURCE, self.source, 0)] if 0 in self.source.stages else []
        return found + [(method.title, method, method.last) for method in self.adapted if method.last]

    def paper(self) -> dict[str, dict[str, Any]]:
        """Return the paper's row of every method that belongs to one: mIoU and IoU in percent, by title."""
        found = {}
        for method in self.adapted:
            try:
                row = find_run_row(method.first.folder.path)
            except CBSTError:  # belongs to no row
                continue
            found[method.title] = {"table": row.table, "row": row.method, "miou": row.miou, "iou": dict(row.iou)}
        return found

    def _answer(self, method: Method) -> str:
        if method.last is None:
            return f"{method.title}: no stage has been evaluated yet."
        if self.name is None:
            return _label_free_answer(method)
        gain = method.gain()
        if gain is None:
            return f"{method.title}: no round has been evaluated yet; the source network has {_points(method, 0)} mIoU."
        better, worse = self.changed_classes(method)
        change = 100 * gain.gain
        verb = f"{'gained' if change > 0 else 'lost'} {abs(change):.1f} mIoU"
        verb = verb if abs(change) >= 0.05 else "neither gained nor lost mIoU"
        done = "" if method.last == method.first.rounds else f" after {method.last} of {method.first.rounds} rounds"
        sure = "" if gain.low > 0 or gain.high < 0 else " The interval holds 0: these images do not tell them apart."
        seeds = f", mean of {len(method.runs)} seeds" if len(method.runs) > 1 else ""
        interval = f"{100 * LEVEL:g} % interval {signed(100 * gain.low)} to {signed(100 * gain.high)}"
        return (
            f"{method.title} {verb} over the source network{done} ({interval}, paired over "
            f"{counted(self.images, 'image')}{seeds}); {counted(better, 'class')} better, {worse} worse."
            f"{sure}{_by_seed(method)}"
        )

    def changed_classes(self, method: Method) -> tuple[int, int]:
        """Return how many classes the last stage of a method has better and worse than its source network."""
        if not method.last or 0 not in method.stages:
            return 0, 0
        before, after = method.iou(0), method.iou(method.last)
        changes = [mean(after[name]) - mean(before[name]) for name in after if name in before]
        return sum(one > 0 for one in changes), sum(one < 0 for one in changes)

    def _source_answer(self) -> str:
        method = self.methods[0]
        if method.last is None:
            return "No stage has been evaluated yet."
        if self.name is None:
            return "The source network was not adapted: no round was asked for."
        return f"The source network has {_points(method, 0)} mIoU on {self.name}; no round was asked for."


def read_story(folders: Sequence[Path], *, name: str | None = None) -> Story:
    """Read runs for a report.

    Parameters
    ----------
    folders : sequence of Path
        Each a run folder, or a folder of runs. Runs of one experiment that differ in their seeds are one method.
    name : str, optional
        The validation set; by default the one that the first run names first.

    Returns
    -------
    Story

    Raises
    ------
    RunError
        If a folder is no run and holds none.
    ConfigError
        If the set is unknown, or two runs are the same.
    DataError
        If the runs have other classes or other sets than the first.
    """
    groups: dict[str, dict[int, RunResults]] = {}
    for path in dict.fromkeys(run for folder in folders for run in _runs_of(folder)):
        run = RunResults(path)
        runs = groups.setdefault(_kind(run), {})
        if run.settings.seed in runs:
            other = runs[run.settings.seed].folder.path
            raise ConfigError(f"runs must differ in their experiment or seed, got {other} and {path}")
        runs[run.settings.seed] = run
    first = next(iter(next(iter(groups.values())).values()))
    chosen = first.leading if name is None else name
    titles = _titles(list(groups.values()))
    methods = [Method(title, dict(sorted(runs.items())), chosen) for title, runs in zip(titles, groups.values())]
    space = first.classes()
    for method in methods:
        for run in method.runs.values():
            if run.classes().names != space.names:
                raise DataError(
                    f"runs must have the same classes, {run.folder.path} has others than {first.folder.path}"
                )
            if chosen is None and run.leading is not None:
                raise DataError(
                    f"{first.folder.path} has no validation set, {run.folder.path} has: give one kind of runs"
                )
            if chosen is not None:
                check_choice("set", chosen, run.settings.validation)
    return Story(methods, chosen, space)


def _runs_of(folder: Path) -> list[Path]:
    """Return the runs of a folder; RunError where there is none."""
    return list(find_below([folder]).values()) or find_runs(folder)


def mean(values: Sequence[float]) -> float:
    """Return the mean of those that are numbers; NaN where none is."""
    known = [value for value in values if not math.isnan(value)]
    return statistics.fmean(known) if known else math.nan


def _kind(run: RunResults) -> str:
    """Return what runs of one method have in common."""
    settings = run.settings.model_dump(mode="json", exclude=set(_APART))
    settings["name"] = re.sub(r"[-_ ]?seed[-_ ]?\d+$", "", settings["name"])
    return json.dumps(settings, sort_keys=True, default=str)


def _titles(groups: Sequence[dict[int, RunResults]]) -> list[str]:
    """Return a title for every group: its method, with the experiment's or folder's name where that is not enough."""
    runs = [next(iter(group.values())) for group in groups]
    wanted = [
        [_method(run), f"{_method(run)} ({run.settings.name})", f"{_method(run)} ({_folder(run)})"] for run in runs
    ]
    for level in range(3):
        titles = [one[level] for one in wanted]
        if len(set(titles)) == len(titles):
            return titles
    return [f"{title}, {number}" for number, title in enumerate((one[2] for one in wanted), 1)]


def _method(run: RunResults) -> str:
    return run.settings.self_training.method.upper() if run.rounds else SOURCE


def _folder(run: RunResults) -> str:
    path = run.folder.path
    return path.parent.name if path.name.startswith("seed-") else path.name


def _label_free_answer(method: Method) -> str:
    last = method.first.label_free(method.last)
    moved = last["moved_since_source"]
    text = f"{method.title}, {stage_title(method.last or 0)}: mean confidence {last['mean_confidence']:.3f}"
    text += (
        f", {100 * moved:.1f} % of the target's pixels moved to another class since the source network"
        if moved is not None
        else ""
    )
    return f"{text}. There are no labels to tell whether that is for the better."


def _points(method: Method, stage: int) -> str:
    return f"{100 * statistics.fmean(method.miou(stage).values()):.1f}"


def _by_seed(method: Method) -> str:
    """Return the gain of every seed, where there are several, and whether they disagree."""
    if len(method.runs) < 2:
        return ""
    before, after = method.miou(0), method.miou(method.last or 0)
    gains = {seed: 100 * (after[seed] - before[seed]) for seed in method.runs}
    told = ", ".join(f"seed {seed} {signed(gain)}" for seed, gain in gains.items())
    disagree = min(gains.values()) < -0.05 and max(gains.values()) > 0.05
    return f" The seeds disagree: {told}." if disagree else f" By seed: {told}."


def points(value: float | None, digits: int = 1) -> str:
    """Return a number with its decimals; an en dash where there is none."""
    if value is None or math.isnan(value):
        return DASH
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def signed(value: float | None, digits: int = 1) -> str:
    """Return a number with its sign, but for zero, and its decimals; an en dash where there is none."""
    if value is None or math.isnan(value):
        return DASH
    rounded = round(value, digits)
    return f"{rounded:+.{digits}f}".replace("-", "\N{MINUS SIGN}") if rounded else f"{0:.{digits}f}"


def find_below(folders: Sequence[Path]) -> dict[str, Path]:
    """Return the runs that are the folders, or at most four levels below them, by key.

    Links to folders are not followed. The key is a digest of the path.
    """
    found: list[Path] = []
    level = [path.absolute() for path in folders]
    for _ in range(_DEPTH + 1):
        below: list[Path] = []
        for path in level:
            if RunDir(path).manifest.is_file():
                found.append(path)
            elif path.is_dir():
                below += sorted(child for child in path.iterdir() if child.is_dir() and not child.is_symlink())
        level = below
    return {hashlib.sha256(str(path).encode("utf-8", "surrogateescape")).hexdigest()[:12]: path for path in found}
