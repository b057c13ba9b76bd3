"""Charts of a report as plain values that Plotly's script draws, each with its numbers as a table.

Colours are Okabe and Ito's, which colour-blind eyes tell apart; lines differ in their markers as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Sequence

import numpy as np

from cbst_mx.evaluation.shown import Shown
from cbst_mx.messages import stage_title
from cbst_mx.report.story import Method, Story, mean

__all__ = [
    "Chart",
    "Grid",
    "gain_chart",
    "kept_chart",
    "miou_chart",
    "reliability_chart",
    "shade",
    "training_charts",
]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MARKERS = ("circle", "square", "diamond", "triangle-up", "x", "cross")
# Cividis at 0, 1/4, ..., 1: one hue's way from dark to light for every kind of colour vision.
_SCALE = np.array([(0, 34, 78), (65, 77, 107), (124, 123, 120), (188, 175, 111), (254, 232, 56)], np.float64)


@dataclass(frozen=True)
class Grid:
    """A table of text and numbers.

    Attributes
    ----------
    columns : list of str
        Heads.
    rows : list of list
        Text, numbers or None; as many as there are heads.
    digits : int
        Decimals of numbers.
    """

    columns: list[str]
    rows: list[list[Any]]
    digits: int = 1


@dataclass(frozen=True)
class Chart:
    """A chart: what Plotly draws, and the same in numbers.

    Attributes
    ----------
    key : str
        Name of its element.
    title : str
        What it shows.
    traces : list of dict
        Plotly's data.
    layout : dict
        Plotly's layout, without colours of text and ground, which follow the page's.
    numbers : Grid
        The same as a table.
    """

    key: str
    title: str
    traces: list[dict[str, Any]]
    layout: dict[str, Any]
    numbers: Grid

    def drawing(self) -> dict[str, Any]:
        """Return what the script needs."""
        return {"key": self.key, "traces": self.traces, "layout": self.layout}


@dataclass
class _Look:
    """Colour and marker of every method."""

    titles: list[str]
    known: dict[str, tuple[str, str]] = field(init=False)

    def __post_init__(self) -> None:
        self.known = {
            title: (COLOURS[number % len(COLOURS)], _MARKERS[number % len(_MARKERS)])
            for number, title in enumerate(self.titles)
        }


def shade(value: float, low: float, high: float) -> tuple[str, str]:
    """Return the ground and the ink of a cell of a table, as CSS colours.

    Parameters
    ----------
    value, low, high : float
        Low is dark, high is light.

    Examples
    --------
    >>> shade(0.0, 0.0, 1.0), shade(1.0, 0.0, 1.0)
    (('#00224e', '#ffffff'), ('#fee838', '#000000'))
    """
    place = 0.0 if high <= low else min(max((value - low) / (high - low), 0.0), 1.0) * (len(_SCALE) - 1)
    first = min(int(place), len(_SCALE) - 2)
    colour = _SCALE[first] + (place - first) * (_SCALE[first + 1] - _SCALE[first])
    ink = "#000000" if colour @ (0.299, 0.587, 0.114) > 115 else "#ffffff"
    return "#" + "".join(f"{round(part):02x}" for part in colour), ink


def gain_chart(story: Story) -> Chart | None:
    """Return IoU gained by class over the source network, in points, the largest first; None without a round."""
    methods = [method for method in story.adapted if method.last and 0 in method.stages]
    if story.name is None or not methods:
        return None
    look = _Look([method.title for method in methods])
    gains = {method.title: _class_gains(method) for method in methods}
    first = gains[methods[0].title]
    names = sorted(first, key=lambda name: _order(mean(first[name])), reverse=True)
    traces: list[dict[str, Any]] = []
    for method in methods:
        colour, marker = look.known[method.title]
        known = gains[method.title]
        traces.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": method.title,
                "legendgroup": method.title,
                "offsetgroup": method.title,
                "y": names,
                "x": [_number(mean(known.get(name, [math.nan]))) for name in names],
                "marker": {"color": colour},
                "hovertemplate": "%{y}: %{x:+.1f}",
            }
        )
        if len(method.runs) > 1:
            dots = [
                (value, name, f"seed {seed}")
                for name in names
                for seed, value in zip(method.runs, known.get(name, []))
                if not math.isnan(value)
            ]
            traces.append({**_dots(method.title, dots, colour), "orientation": "h", "offsetgroup": method.title})
    layout = {
        "barmode": "group",
        "scattermode": "group",
        "height": 140 + (14 + 14 * len(methods)) * len(names),
        "xaxis": {"title": {"text": "IoU gained, points"}, "zeroline": True},
        "yaxis": {"autorange": "reversed", "automargin": True},
    }
    rows = [[name, *(_number(mean(gains[method.title].get(name, [math.nan]))) for method in methods)] for name in names]
    numbers = Grid(["class", *(method.title for method in methods)], rows)
    return Chart("gains", "Gain by class over the source network, the largest first", traces, layout, numbers)


def miou_chart(story: Story) -> Chart | None:
    """Return mIoU after every stage, in percent; None where nothing is evaluated."""
    methods = [method for method in story.adapted if method.stages] or story.methods[:1]
    if story.name is None or not any(method.stages for method in methods):
        return None
    look = _Look([method.title for method in methods])
    stages = sorted({stage for method in methods for stage in method.stages})
    traces, columns = [], {}
    for method in methods:
        colour, marker = look.known[method.title]
        found = {stage: [100 * value for value in method.miou(stage).values()] for stage in method.stages}
        columns[method.title] = {stage: mean(values) for stage, values in found.items()}
        traces.append(_line(method.title, list(found), [mean(values) for values in found.values()], colour, marker))
        if len(method.runs) > 1:
            dots = [(stage, value, f"seed {seed}") for stage in found for seed, value in zip(method.runs, found[stage])]
            traces.append(_dots(method.title, dots, colour))
    layout = {
        "xaxis": _stage_axis(stages),
        "yaxis": {"title": {"text": f"mIoU on {story.name}, %"}, "automargin": True},
    }
    rows = [
        [stage_title(stage), *(_number(column.get(stage, math.nan)) for column in columns.values())] for stage in stages
    ]
    return Chart("miou", "mIoU after every round", traces, layout, Grid(["stage", *columns], rows))


def kept_chart(method: Method, number: int = 0) -> Chart | None:
    """Return the portion p that was asked for and the share that has pseudo-labels, by round, in percent.

    `number` tells the charts of several methods apart.
    """
    rounds = [
        index for index in range(1, method.first.rounds + 1) if method.first.folder.stage(index).thresholds.is_file()
    ]
    if not rounds:
        return None
    found = {index: method.first.thresholds(index) for index in rounds}
    asked = [100 * float(found[index]["portion"]) for index in rounds]
    kept = [100 * float(found[index]["kept"].sum() / max(found[index]["predicted"].sum(), 1)) for index in rounds]
    traces = [
        _line("asked: portion p", rounds, asked, COLOURS[0], _MARKERS[0]),
        _line("kept of all pixels", rounds, kept, COLOURS[1], _MARKERS[1]),
    ]
    layout = {
        "xaxis": _stage_axis(rounds),
        "yaxis": {"title": {"text": "pixels, %"}, "rangemode": "tozero", "automargin": True},
    }
    rows = [[f"round {index}", one, other] for index, one, other in zip(rounds, asked, kept)]
    title = f"Portion asked for and kept: {method.title}"
    return Chart(f"kept-{number}", title, traces, layout, Grid(["round", "portion p, %", "kept, %"], rows))


def reliability_chart(curves: Sequence[tuple[str, Shown]]) -> Chart | None:
    """Return how often pixels of each confidence are right, in percent, by network; None without labelled pixels."""
    known = [(title, shown) for title, shown in curves if shown.pixels.sum()]
    if not known:
        return None
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "as sure as right",
            "x": [0, 100],
            "y": [0, 100],
            "line": {"dash": "dot", "color": "#888888", "width": 1},
            "hoverinfo": "skip",
        }
    ]
    rows = []
    for number, (title, shown) in enumerate(known):
        some = shown.pixels > 0
        sure, right = (100 * part[some] / shown.pixels[some] for part in (shown.confidence, shown.right))
        colour, marker = COLOURS[number % len(COLOURS)], _MARKERS[number % len(_MARKERS)]
        traces.append(_line(title, sure.tolist(), right.tolist(), colour, marker))
        levels = np.flatnonzero(some)
        for level, one, other in zip(levels, sure, right):
            rows.append([title, float(one), float(other), float(100 * shown.pixels[level] / shown.pixels.sum())])
    layout = {
        "xaxis": {"title": {"text": "confidence, %"}, "range": [0, 100]},
        "yaxis": {"title": {"text": "right, %"}, "range": [0, 100], "automargin": True},
    }
    numbers = Grid(["network", "confidence, %", "right, %", "of the pixels, %"], rows)
    return Chart("reliability", "How often the network is right when it is sure", traces, layout, numbers)


def training_charts(method: Method, number: int = 0) -> list[Chart]:
    """Return loss and, where it is recorded, learning rate over the iterations of all stages of the first run.

    `number` tells the charts of several methods apart.
    """
    places: list[int] = []
    losses: list[float] = []
    rates: list[float | None] = []
    rows, marks, offset = [], [], 0
    for index in range(method.first.rounds + 1):
        path = method.first.folder.stage(index).training
        record = method.first.read(path) if path.is_file() else {}
        if not record.get("iterations"):
            continue
        total, every = int(record["iterations"]), int(record["loss_every"])
        at = [*range(every, total, every), total][: len(record["loss"])]
        known = record.get("learning_rate") or []  # the first ones may be of an earlier version, which kept none
        known = [None] * (len(at) - len(known)) + known
        places += [offset + iteration for iteration in at]
        losses += record["loss"]
        rates += known
        rows += [[stage_title(index), i, loss, rate] for i, loss, rate in zip(at, record["loss"], known)]
        marks.append((offset, stage_title(index)))
        offset += total
    if not places:
        return []
    shapes = [
        {
            "type": "line",
            "x0": x,
            "x1": x,
            "y0": 0,
            "y1": 1,
            "yref": "paper",
            "line": {"dash": "dot", "width": 1, "color": "#888888"},
        }
        for x, _ in marks[1:]
    ]
    axis = {"title": {"text": "iterations, rounds divided by dotted lines"}}
    charts = [("loss", "Loss of training", "loss", losses)]
    if any(rate is not None for rate in rates):
        charts.append(("rate", "Learning rate of training", "learning rate", rates))  # type: ignore[arg-type]
    numbers = Grid(["stage", "iteration", "loss", "learning rate"], rows, digits=5)
    return [
        Chart(
            f"{key}-{number}",
            f"{title}: {method.title}",
            [{**_line(label, places, values, COLOURS[0], _MARKERS[0]), "mode": "lines"}],
            {
                "xaxis": axis,
                "yaxis": {"title": {"text": label}, "automargin": True, "rangemode": "tozero"},
                "shapes": shapes,
            },
            numbers if key == "loss" else Grid(["see"], [["the numbers of the loss"]]),
        )
        for key, title, label, values in charts
    ]


def _class_gains(method: Method) -> dict[str, list[float]]:
    """Return the gain of every class in points of IoU, one number per seed."""
    before, after = method.iou(0), method.iou(method.last or 0)
    return {
        name: [100 * (one - other) for one, other in zip(values, before[name])]
        for name, values in after.items()
        if name in before
    }


def _order(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _line(title: str, x: Sequence[Any], y: Sequence[Any], colour: str, marker: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": title,
        "legendgroup": title,
        "x": list(x),
        "y": list(y),
        "line": {"color": colour, "width": 2},
        "marker": {"symbol": marker, "size": 8, "color": colour},
    }


def _dots(title: str, dots: Sequence[tuple[Any, Any, str]], colour: str) -> dict[str, Any]:
    """Return a trace of x, y and what is said of each."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": title,
        "legendgroup": title,
        "showlegend": False,
        "x": [x for x, _, _ in dots],
        "y": [y for _, y, _ in dots],
        "text": [text for _, _, text in dots],
        "marker": {"symbol": "circle-open", "size": 6, "color": colour},
        "hovertemplate": "%{text}: %{x}, %{y}",
    }


def _stage_axis(stages: Sequence[int]) -> dict[str, Any]:
    return {
        "tickmode": "array",
        "tickvals": list(stages),
        "ticktext": [str(stage) if stage else "source" for stage in stages],
        "title": {"text": "round"},
    }
