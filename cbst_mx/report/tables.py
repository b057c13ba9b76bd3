"""Tables of IoU: methods against classes, protocols, rows of the paper; in percent with one decimal.

A result is what `cbst_mx.evaluation.confusion.summary` returns (or what was read back from its JSON): a mapping with
``iou`` (class name to a number in [0, 1] or None) and ``miou``. A class without IoU is shown as an en dash. Classes run
down the table and methods across it, which fits a terminal (rich cuts off at the right what a narrower one cannot
hold).
"""

from __future__ import annotations

import math
import statistics
import textwrap
from datetime import datetime
from typing import Any, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from cbst_mx.errors import DataError
from cbst_mx.evaluation.comparison import Compared
from cbst_mx.evaluation.confusion import class_accuracy, iou_per_class
from cbst_mx.evaluation.paper_check import Check
from cbst_mx.evaluation.paper_tables import PaperRow
from cbst_mx.evaluation.protocols import LEVEL, ImageMatrices, WorstImage
from cbst_mx.evaluation.protocols import Result as ProtocolResult
from cbst_mx.evaluation.run_status import StepStatus
from cbst_mx.evaluation.snapshots import Snapshot
from cbst_mx.label_space import LabelSpace

__all__ = [
    "as_markdown",
    "check_table",
    "class_table",
    "comparison_table",
    "duration",
    "iou_table",
    "label_free_table",
    "mean_std_table",
    "paper_table",
    "plain_table",
    "plan_table",
    "planned_time",
    "protocol_table",
    "snapshot_table",
    "status_table",
    "sweep_table",
    "threshold_table",
    "worst_images_table",
]

Result = Mapping[str, Any]

_DASH = "\N{EN DASH}"
_MEAN = "mIoU"
_WORDS = ("mean of", "protocol of", "verdict", "worst class", "taken by", "stage", "state")  # columns of words


def iou_table(rows: Mapping[str, Result], label_space: LabelSpace) -> Table:
    """Return a table of one result per method, the mean last.

    Parameters
    ----------
    rows : mapping
        Method name to result, in the order of display.
    label_space : LabelSpace
        Classes and their order.

    Raises
    ------
    DataError
        If there is no method, or a result lacks a class of `label_space`.
    """
    return _table({method: [result] for method, result in rows.items()}, label_space)


def label_free_table(rows: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return a table of what networks predict where there are no labels: class shares, confidence, moved pixels.

    Parameters
    ----------
    rows : mapping
        Stage to its numbers, as ``RunResults.label_free`` gives them, in the order of display.

    Raises
    ------
    DataError
        If there is no stage.
    """
    if not rows:
        raise DataError("a table needs at least one stage, got none")
    table = plain_table("class (% of the pixels)", *rows)
    stages = list(rows.values())
    for number, name in enumerate(stages[0]["names"]):
        table.add_row(Text(name), *(_points(100 * stage["share"][number]) for stage in stages))
    table.add_section()
    for title, key in (
        ("mean confidence, %", "mean_confidence"),
        ("moved in the round, %", "moved"),
        ("moved since source, %", "moved_since_source"),
    ):
        cells = [None if stage[key] is None else 100 * stage[key] for stage in stages]
        table.add_row(title, *map(_points, cells), style="bold")
    return table


def snapshot_table(snapshots: Sequence[Snapshot], chosen: Mapping[str, int]) -> Table:
    """Return a table of the source network by epoch: mIoU of every set, confidence and signs without labels, choices.

    Parameters
    ----------
    snapshots : sequence of cbst_mx.evaluation.snapshots.Snapshot
        At least one.
    chosen : mapping
        Rule to the epoch it takes.
    """
    table = plain_table("epoch", *(f"mIoU {name}" for name in snapshots[0].miou), "confidence", "signs", "taken by")
    for one in snapshots:
        means = (_points(100 * value) for value in one.miou.values())
        taken = ", ".join(rule for rule, epoch in chosen.items() if epoch == one.epoch)
        table.add_row(str(one.epoch), *means, f"{100 * one.mean_confidence:.1f}", str(len(one.signs)), taken)
    return table


def comparison_table(rows: Sequence[Compared]) -> Table:
    """Return a table of runs side by side: mIoU over their seeds, gain over the first, and its interval.

    Parameters
    ----------
    rows : sequence of cbst_mx.evaluation.comparison.Compared
        The base first.
    """
    table = plain_table("runs", "stage", "mIoU in %", "gain", f"{100 * LEVEL:g} % interval")
    for number, row in enumerate(rows):
        interval = f"{100 * row.low:+.1f} to {100 * row.high:+.1f}" if number else _DASH
        gain = f"{100 * row.gain:+.1f}" if number else _DASH
        table.add_row(Text(row.name), row.stage, _cell(row.miou), gain, interval)
    return table


def threshold_table(found: Mapping[str, Any], *, title: str) -> Table:
    """Return a table of the thresholds of a pass, class by class: pixels predicted, threshold, k, and pixels kept.

    Parameters
    ----------
    found : mapping
        ``names``, ``counts``, ``values`` (exp(-k_c); infinite or None for a class of which nothing may be kept), ``k``
        and ``kept``, each with an entry per class.
    title : str
        Above the table.
    """
    table = plain_table("class", "predicted", "threshold", "k", "kept", title=title)
    for name, count, value, k, kept in zip(*(found[key] for key in ("names", "counts", "values", "k", "kept"))):
        table.add_row(Text(name), f"{count:,}", _threshold(value), _threshold(k), f"{kept:,}")
    table.add_section()
    table.add_row("all", f"{sum(found['counts']):,}", "", "", f"{sum(found['kept']):,}", style="bold")
    return table


def _threshold(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return _DASH
    return f"{abs(value):.6f}"  # neither is negative: k of a threshold of 1 is -0.0


def sweep_table(rows: Sequence[Mapping[str, Any]], portions: Sequence[float]) -> Table:
    """Return a table of the pixels that each class keeps, by portion.

    Parameters
    ----------
    rows : sequence of mapping
        ``name``, ``train_id`` and ``kept`` of every class, portion after portion.
    portions : sequence of float
        The portions.
    """
    table = plain_table("class", *(f"p = {portion:g}" for portion in portions), title="kept pixels by portion")
    classes = len(rows) // len(portions)
    for index in range(classes):
        own = [row for row in rows if row["train_id"] == index]
        table.add_row(Text(own[0]["name"]), *(f"{row['kept']:,}" for row in own))
    totals = [sum(row["kept"] for row in rows[start : start + classes]) for start in range(0, len(rows), classes)]
    table.add_section()
    table.add_row("all", *(f"{total:,}" for total in totals), style="bold")
    return table


def plan_table(stages: Sequence[Any]) -> Table:
    """Return a table of what the stages of a run cost (pseudo-labels, training, evaluation), the sum last.

    Parameters
    ----------
    stages : sequence
        Stages with the attributes of `cbst_mx.planning.Stage`.
    """
    table = plain_table("stage", "images", "iterations", "labels", "training", "test", "all")
    for stage in stages:
        times = (stage.labelling, stage.training, stage.evaluation, stage.seconds)
        table.add_row(stage.name, f"{stage.images:,}", f"{stage.iterations:,}", *map(duration, times))
    table.add_section()
    sums = (sum(getattr(s, name) for s in stages) for name in ("labelling", "training", "evaluation", "seconds"))
    table.add_row("all", "", f"{sum(stage.iterations for stage in stages):,}", *map(duration, sums))
    return table


def planned_time(plan: Any) -> str:
    """Return in words how long a run takes, and how far that may be off.

    Parameters
    ----------
    plan : Plan
        With the attributes of `cbst_mx.planning.Plan`.
    """
    low, high = (duration(plan.seconds * factor) for factor in (1 / plan.unsure, plan.unsure))
    return f"about {duration(plan.seconds)} on a machine that does nothing else, likely {low} to {high}"


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    if not seconds:
        return _DASH
    for limit, divisor, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.1f} {unit}"
    return f"{seconds / 86_400:.1f} d"


def mean_std_table(runs: Mapping[str, Sequence[Result]], label_space: LabelSpace) -> Table:
    """Return a table of the mean and the sample standard deviation over several seeds per method.

    The standard deviation (divided by the number of seeds - 1) is left out where there is one value only. A class that
    has no IoU for some seeds is averaged over the others.

    Parameters
    ----------
    runs : mapping
        Method name to its results, one per seed.
    label_space : LabelSpace
        Classes and their order.

    Raises
    ------
    DataError
        If there is no method, a method has no result, or a result lacks a class of `label_space`.
    """
    return _table(runs, label_space)


def as_markdown(runs: Mapping[str, Sequence[Result]], label_space: LabelSpace) -> str:
    """Return the table of `mean_std_table` as Markdown text."""
    header, lines = _cells(runs, label_space)
    rule = ["---"] + ["---:"] * (len(header) - 1)
    cells = [[text.replace("|", "\\|") for text in line] for line in [header, rule, *lines]]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells) + "\n"


def protocol_table(results: Sequence[ProtocolResult]) -> Table:
    """Return a table of one protocol per line: its mean, interval and the table of the paper it belongs to.

    Parameters
    ----------
    results : sequence of cbst_mx.evaluation.protocols.Result
        Scores by each protocol, their intervals holding `LEVEL` of the samples.
    """
    table = plain_table("protocol", "mIoU in %", f"{100 * LEVEL:g} % interval", "mean of", "protocol of")
    for result in results:
        interval = f"{100 * result.low:.1f} to {100 * result.high:.1f}"
        protocol = result.protocol
        table.add_row(
            protocol.name, f"{100 * result.miou:.1f}", interval, protocol.meaning, protocol.table or "no table"
        )
    return table


def class_table(matrices: ImageMatrices) -> Table:
    """Return a table of one class per line: its IoU, and the part of its pixels that is predicted right.

    Parameters
    ----------
    matrices : ImageMatrices
        The confusion matrices of an image set; all its truth counts.
    """
    table = plain_table("class", "IoU in %", "accuracy in %")
    total = matrices.counts.sum(axis=0)
    for name, *values in zip(matrices.classes, iou_per_class(total), class_accuracy(total)):
        table.add_row(Text(name), *(_points(None if math.isnan(value) else 100 * float(value)) for value in values))
    return table


def worst_images_table(images: Sequence[WorstImage]) -> Table:
    """Return a table of one image per line, with the class it has most wrong."""
    table = plain_table("image", "mIoU in %", "classes", "worst class")
    for image in images:
        worst = f"{image.worst_class} {100 * image.worst_iou:.1f}"
        table.add_row(Text(image.name), f"{100 * image.miou:.1f}", str(image.classes), worst)
    return table


def paper_table(rows: Sequence[PaperRow], *, title: str) -> Table:
    """Return rows of one table of the paper side by side, classes and means downwards.

    A stated mean that the row's cells do not give is marked with a question mark.

    Raises
    ------
    DataError
        If there is no row.
    """
    if not rows:
        raise DataError("a table needs at least one row, got none")
    # Six methods fit into 80 columns, however long their names.
    table = plain_table("IoU in %", *(_narrow(row.method) for row in rows), title=title)
    for name in rows[0].iou:
        table.add_row(name, *(_points(row.iou[name]) for row in rows))
    table.add_section()
    for mean in ("mIoU", "mIoU*"):
        stated = [{m.name: m for m in row.means}.get(mean) for row in rows]
        if any(stated):
            cells = [_DASH if m is None else f"{m.stated:.1f}{'' if m.adds_up else '?'}" for m in stated]
            table.add_row(mean, *cells, style="bold")
    table.add_row("evidence", *(_narrow(row.evidence.replace("+", " ")) for row in rows), style="dim")
    return table


def check_table(check: Check) -> Table:
    """Return a run's numbers beside the paper's, class by class, with the verdict on each."""
    table = plain_table("class (IoU in %)", "ours", "paper", "difference", "allowed", "verdict")
    for number, line in enumerate(check.lines):
        if number == len(check.row.iou):
            table.add_section()
        both = line.ours is not None and line.paper is not None
        difference = f"{line.ours - line.paper:+.1f}" if both else _DASH  # type: ignore[operator]
        allowed = f"±{line.tolerance:.1f}" if line.verdict != "not judged" else ""
        table.add_row(
            line.name,
            _points(line.ours),
            _points(line.paper),
            difference,
            allowed,
            line.verdict,
            style="bold red" if line.verdict in ("off", "missing") else "",
        )
    return table


def plain_table(first: str, *others: str, title: str | None = None, words: Sequence[str] = ()) -> Table:
    """Return an empty table in the style of all tables: a rule below the header, and no other lines.

    Parameters
    ----------
    first : str
        Header of the first column, which is of words.
    others : str
        Headers of the other columns, which are of numbers.
    title : str, optional
        Above the table.
    words : sequence of str
        Headers of other columns of words; they are not to the right, and their cells may be folded.
    """
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", header_style="bold", show_edge=False)
    for number, text in enumerate((first, *others)):
        numbers = number and text not in _WORDS and text not in words
        table.add_column(Text(text), justify="right" if numbers else "left", overflow="ellipsis" if numbers else "fold")
    return table


def _narrow(text: str) -> str:
    return "\n".join(textwrap.wrap(text, 8))


def _points(value: float | None) -> str:
    return _DASH if value is None else f"{value:.1f}"


def _table(runs: Mapping[str, Sequence[Result]], label_space: LabelSpace) -> Table:
    header, lines = _cells(runs, label_space)
    table = Table(box=SIMPLE_HEAD, header_style="bold", show_edge=False)
    for number, text in enumerate(header):
        # Where the terminal is narrow, lines may break between words; a number cut short would be a wrong number.
        longest = max(len(word) for line in lines for word in line[number].split())
        # Text, not str: a method's name may hold brackets, which rich would read as markup.
        table.add_column(Text(text), justify="right" if number else "left", min_width=longest)
    for line in lines:
        mean = line is lines[-1]
        if mean:
            table.add_section()
        table.add_row(*(Text(text) for text in line), style="bold" if mean else "")
    return table


def _cells(runs: Mapping[str, Sequence[Result]], label_space: LabelSpace) -> tuple[list[str], list[list[str]]]:
    """Return the header and the lines of the table as text."""
    if not runs:
        raise DataError("a table needs at least one method, got none")
    columns = [["class (IoU in %)", *label_space.names, _MEAN]]
    for method, results in runs.items():
        if not results:
            raise DataError(f"method {method} needs at least one result, got none")
        for result in results:
            missing = [name for name in label_space.names if name not in result["iou"]]
            if missing:
                raise DataError(f"a result of method {method} has no entry for class {missing[0]}")
        values = [[result["iou"][name] for result in results] for name in label_space.names]
        columns.append([method, *(_cell(v) for v in values), _cell([result["miou"] for result in results])])
    header, *lines = (list(line) for line in zip(*columns))
    return header, lines


def _cell(values: Sequence[float | None]) -> str:
    numbers = [100 * value for value in values if value is not None]
    if not numbers:
        return _DASH
    text = f"{statistics.fmean(numbers):.1f}"
    if len(numbers) > 1:
        text += f" ± {statistics.stdev(numbers):.1f}"
    return text


def status_table(states: Sequence[StepStatus]) -> Table:
    """Return a table of the steps of a run: state, when each began, how long it took, and mIoU."""
    table = plain_table("step", "state", "began (UTC)", "took", _MEAN)
    for one in states:
        took = ""
        if one.begun and one.end:
            took = str(datetime.fromisoformat(one.end) - datetime.fromisoformat(one.begun)).partition(".")[0]
        began = one.begun[5:16].replace("T", " ") if one.begun else ""
        mean = "" if one.miou is None else f"{100 * one.miou:.1f}"
        table.add_row(one.title, one.state, began, took, mean)
    return table
