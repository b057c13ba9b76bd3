"""The tables of a report, as rows of text and numbers.

C classes; IoU, shares and portions in percent, thresholds exp(-k_c) in [0, 1].
"""

from __future__ import annotations

import math
import shlex
import statistics
from datetime import datetime
from typing import Any, Callable, Mapping, NamedTuple

import numpy as np

from cbst_mx.data import LabelledImageSet
from cbst_mx.evaluation.protocols import worst_images
from cbst_mx.evaluation.run_results import BEST, UNLABELLED
from cbst_mx.evaluation.run_signs import news
from cbst_mx.evaluation.run_status import read_status
from cbst_mx.evaluation.shown import Shown
from cbst_mx.messages import stage_title
from cbst_mx.report.charts import shade
from cbst_mx.report.pictures import moves_between
from cbst_mx.report.story import DASH, Method, Story, mean, points, signed
from cbst_mx.report.tables import duration

__all__ = [
    "FILTERS",
    "Cell",
    "Shaded",
    "class_grid",
    "confusion_grids",
    "facts",
    "guard_rows",
    "image_rows",
    "kept_grid",
    "label_free_grid",
    "method_rows",
    "moves_grid",
    "share_grid",
    "threshold_grid",
]

_IMAGES = 8  # of the worst, and of the most changed


class Cell(NamedTuple):
    """A number of a shaded table as text, the colours of ground and ink, a longer text for those who ask, and more."""

    text: str
    ground: str | None = None
    ink: str | None = None
    note: str = ""
    small: str = ""  # below the number


class Shaded(NamedTuple):
    """A table of which the cells are shaded by their numbers: heads, and rows of a name and cells."""

    columns: list[str]
    rows: list[tuple[str, list[Cell]]]


FILTERS = {"points": points, "signed": signed}


def method_rows(story: Story) -> list[dict[str, Any]]:
    """Return a row for source-only and for every method: mIoU by seed, gain and interval, and the paper's number."""
    paper, rows = story.paper(), []
    for title, method, stage in story.columns() if story.name is not None else []:
        values = [100 * value for value in method.miou(stage).values()]
        gain = method.gain() if stage else None
        best = method.first.best() if stage and len(method.runs) == 1 and story.name == method.first.leading else None
        choice = method.first.label_free_choice() if stage and len(method.runs) == 1 else None
        rows.append(
            {
                "title": title,
                "stage": stage_title(stage),
                "miou": statistics.fmean(values),
                "spread": statistics.stdev(values) if len(values) > 1 else None,
                "seeds": [f"seed {seed}: {points(value)}" for seed, value in zip(method.runs, values)],
                "gain": None if gain is None else 100 * gain.gain,
                "low": None if gain is None else 100 * gain.low,
                "high": None if gain is None else 100 * gain.high,
                "paper": paper.get(title, {}).get("miou"),
                "adapted": method.first.adaptation,
                "best": None if best is None else f"{BEST}: round {best.stage}, {points(100 * best.miou)}",
                "choice": None if choice is None else f"{UNLABELLED}: round {choice.stage}",
            }
        )
    return rows


def class_grid(story: Story) -> dict[str, Any] | None:
    """Return IoU of every class and method, with differences to source-only and to the paper's row, in percent."""
    columns = story.columns() if story.name is not None else []
    if not columns:
        return None
    paper = story.paper()
    found = {
        title: {name: 100 * mean(values) for name, values in method.iou(stage).items()}
        for title, method, stage in columns
    }
    base = found[columns[0][0]] if columns[0][2] == 0 else {}
    rows = []
    for name, colour in zip(story.space.names, story.space.palette):
        cells = []
        for title, _, stage in columns:
            value = found[title].get(name, math.nan)
            stated = paper.get(title, {}).get("iou", {}).get(name)
            cells.append(
                {
                    "iou": value,
                    "gain": value - base.get(name, math.nan) if stage else None,
                    "paper": None if stated is None else value - stated,
                }
            )
        rows.append({"name": name, "colour": "#{:02x}{:02x}{:02x}".format(*colour), "cells": cells})
    return {"titles": [(title, bool(stage), title in paper) for title, _, stage in columns], "rows": rows}


def threshold_grid(method: Method) -> Shaded | None:
    """Return the thresholds exp(-k_c) of every class and round."""

    def cell(record: Mapping[str, Any], number: int) -> Cell:
        value, kc = float(record["values"][number]), float(record["k"][number])
        if math.isinf(value):
            return Cell(DASH, note="nothing may be kept")
        return Cell(f"{value:.3f}", *shade(value, 0, 1), note=f"k_c = {abs(kc):.4f} nats")

    return _round_grid(method, cell)


def share_grid(method: Method) -> Shaded | None:
    """Return the share of the target's pixels that is predicted as each class, by the network that labels them."""

    def cell(record: Mapping[str, Any], number: int) -> Cell:
        return _share_cell(float(record["predicted"][number] / max(record["predicted"].sum(), 1)))

    grid, run = _round_grid(method, cell), method.first
    counts = run.last_counts()
    if grid is None or counts is None:
        return grid
    total = max(sum(counts), 1)
    rows = [(name, [*cells, _share_cell(count / total)]) for (name, cells), count in zip(grid.rows, counts)]
    return Shaded([*(f"for {title}" for title in grid.columns), f"after {stage_title(run.rounds)}"], rows)


def kept_grid(method: Method) -> Shaded | None:
    """Return the pseudo-labels of each class per 100 pixels predicted as it, by round.

    There can be more: the class of a label is that of the largest p_c / exp(-k_c), not of the largest p_c.
    """

    def cell(record: Mapping[str, Any], number: int) -> Cell:
        predicted, kept = int(record["predicted"][number]), int(record["kept"][number])
        note = f"{kept:,} of {predicted:,} pixels"
        if not predicted:
            return Cell(DASH, note=note)
        value = 100 * kept / predicted
        return Cell(points(value), *shade(value, 0, 100), note=note)

    return _round_grid(method, cell)


def _round_grid(method: Method, cell: Callable[[Mapping[str, Any], int], Cell]) -> Shaded | None:
    """Return a cell of the record of every round for every class; None where no round has one."""
    run = method.first
    rounds = [index for index in range(1, run.rounds + 1) if run.folder.stage(index).thresholds.is_file()]
    found = [run.thresholds(index) for index in rounds]
    if not found:
        return None
    rows = [(name, [cell(record, number) for record in found]) for number, name in enumerate(found[0]["names"])]
    return Shaded([stage_title(index) for index in rounds], rows)


def _share_cell(share: float) -> Cell:
    """Return a share of the pixels in percent; shaded by its root, so that rare classes differ too."""
    return Cell(points(100 * share, 2), *shade(math.sqrt(100 * share), 0, 7))


def moves_grid(validation: LabelledImageSet | None, kept: Mapping[int, Shown]) -> Shaded | None:
    """Return the pixels that became right less those that became wrong, in percent of the class, by round."""
    found = moves_between(validation, kept)
    if validation is None or not found:
        return None
    names = validation.label_space.names
    columns = [(title, moves) for title, _, _, moves in found]
    rows = []
    for number, name in enumerate(names):
        cells = []
        for _, moves in columns:
            gained, lost, pixels = (int(part[number]) for part in (moves.gained, moves.lost, moves.pixels))
            if not pixels:
                cells.append(Cell(DASH))
                continue
            net = 100 * (gained - lost) / pixels
            note = f"{100 * gained / pixels:.1f} % became right, {100 * lost / pixels:.1f} % became wrong"
            small = f"{signed(100 * gained / pixels)} {signed(-100 * lost / pixels)}"
            cells.append(Cell(signed(net), *_diverging(net), note=note, small=small))
        rows.append((name, cells))
    return Shaded([title for title, _ in columns], rows)


def _diverging(value: float) -> tuple[str, str]:
    """Return ground and ink of a gain (blue) or a loss (orange), 25 points at its strongest."""
    strength = min(abs(value) / 25, 1.0)
    end = np.array((0, 114, 178) if value >= 0 else (213, 94, 0), np.float64)
    colour = 247 + strength * (end - 247)
    ink = "#000000" if colour @ (0.299, 0.587, 0.114) > 125 else "#ffffff"
    return "#" + "".join(f"{round(part):02x}" for part in colour), ink


def confusion_grids(story: Story) -> list[tuple[str, Shaded]]:
    """Return the confusion matrices of source-only and the last stages: where the pixels of a class go, in percent."""
    grids = []
    for title, method, stage in story.columns() if story.name is not None else []:
        matrices = method.matrices(stage)
        counts = sum(one.counts.sum(axis=0) for one in matrices)
        names = matrices[0].classes
        rows = []
        for number, name in enumerate(names):
            total = int(counts[number].sum())
            cells = [
                Cell(
                    points(100 * part / total, 0),
                    *shade(100 * part / total, 0, 100),
                    note=f"{name} taken for {other}: {part:,} pixels",
                )
                if total
                else Cell(DASH)
                for other, part in zip(names, map(int, counts[number]))
            ]
            rows.append((name, cells))
        grids.append((title, Shaded(list(names), rows)))
    return grids


def image_rows(method: Method) -> dict[str, list[dict[str, Any]]]:
    """Return the most changed and the worst images of the first run: mIoU before and after, in percent."""
    if method.name is None or method.last is None:
        return {}
    last, first = method.matrices(method.last)[0], method.matrices(0)[0] if 0 in method.stages else None
    after = {one.name: one for one in worst_images(last, len(last.images))}
    before = {one.name: one for one in worst_images(first, len(first.images))} if first is not None else {}
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "before": 100 * before[name].miou if name in before else None,
            "after": 100 * one.miou,
            "change": 100 * (one.miou - before[name].miou) if name in before and method.last else None,
            "worst": f"{one.worst_class} {points(100 * one.worst_iou)}",
        }
        for name, one in after.items()
    ]
    changed = sorted((row for row in rows if row["change"] is not None), key=lambda row: row["change"])
    half = _IMAGES // 2
    ends = changed if len(changed) <= _IMAGES else [*changed[:half], *changed[-half:]]
    return {"changed": ends[::-1], "worst": rows[:_IMAGES]}


def guard_rows(method: Method) -> list[dict[str, Any]]:
    """Return what the guard says of every stage of the first run: numbers, and sentences."""
    rows = []
    for stage in range(method.first.rounds + 1):
        if stage not in method.first.evaluated:
            continue
        judged = method.first.judgement(stage)
        numbers = {
            "agreement": judged.get("agreement"),
            "drift": judged.get("drift"),
            "effective classes": judged.get("effective_classes"),
            "largest class": judged.get("largest"),
            "saturated": judged.get("saturated"),
        }
        told = {"warnings": method.first.warnings(stage), "news": news(method.first, stage)}
        rows.append({"stage": stage_title(stage), "numbers": numbers, **told})
    return rows


def label_free_grid(method: Method) -> Shaded | None:
    """Return class shares, confidence and moved pixels of every stage, in a run without a validation set."""
    run = method.first
    if run.leading is not None or not method.stages:
        return None
    found = {stage: run.label_free(stage) for stage in method.stages}
    names = next(iter(found.values()))["names"]
    rows = [(name, [_share_cell(one["share"][number]) for one in found.values()]) for number, name in enumerate(names)]
    for title, key in (
        ("mean confidence", "mean_confidence"),
        ("moved in the round", "moved"),
        ("moved since source", "moved_since_source"),
    ):
        rows.append((title, [Cell(points(None if one[key] is None else 100 * one[key])) for one in found.values()]))
    return Shaded([stage_title(stage) for stage in found], rows)


def facts(story: Story) -> list[dict[str, Any]]:
    """Return what each run was: folder, command that makes it again, what it was adapted on, versions, times."""
    rows = []
    for method in story.methods:
        for seed, run in method.runs.items():
            manifest = run.manifest
            steps = [step for step in read_status(run) if step.begun and step.end]
            seconds = sum((_time(step.end) - _time(step.begun)).total_seconds() for step in steps)
            versions = manifest.get("versions", {})
            rows.append(
                {
                    "title": f"{method.title}, seed {seed}",
                    "folder": str(run.folder.path),
                    "command": f"CBST_DATA=DATA cbst-mx run {shlex.quote(str(run.folder.experiment))} --out NEW_FOLDER",
                    "adapted": run.adaptation,
                    "created": manifest.get("created", DASH),
                    "took": duration(seconds) if steps else DASH,
                    "versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
                    "images": ", ".join(
                        f"{name} {count:,}" for name, count in manifest.get("inputs", {}).get("images", {}).items()
                    ),
                }
            )
    return rows


def _time(text: str | None) -> datetime:
    return datetime.fromisoformat(str(text))
