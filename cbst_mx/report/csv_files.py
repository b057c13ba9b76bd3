"""The numbers of runs as CSV, for spreadsheets and for plots of one's own.

Long tables: a line per number, so that they join and filter. IoU, shares and portions are in [0, 1], thresholds are
exp(-k_c), k_c is in nats; a number that does not exist is an empty field.
"""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any, Iterator, Sequence

from cbst_mx.files import remove_file, write_text
from cbst_mx.report.pictures import moves_between, open_sets
from cbst_mx.report.story import Method, Story, read_story

__all__ = ["write_tables"]

_RUN = ("method", "seed", "folder", "round")


def write_tables(
    folders: Sequence[Path], out: Path, *, name: str | None = None, data_root: Path | None = None
) -> list[Path]:
    """Write the tables of runs as CSV.

    Parameters
    ----------
    folders : sequence of Path
        Each a run folder, or a folder of runs.
    out : Path
        Folder of the files: ``iou.csv``, ``gains.csv``, ``thresholds.csv``, ``images.csv``,
        ``moves.csv``, ``label_free.csv``, ``guard.csv``, ``reliability.csv``, ``training.csv``; those of which there is
        nothing are not written, and removed.
    name : str, optional
        The validation set; by default the one that the first run names first.
    data_root : Path, optional
        Folder that relative data roots are in, instead of the one in ``CBST_DATA``; ``moves.csv`` needs the labels.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    CBSTError
        If a run cannot be read.
    """
    story = read_story(folders, name=name)
    tables = {
        "iou.csv": ((*_RUN, "set", "class", "iou"), _iou(story)),
        "gains.csv": (("method", "seeds", "round", "set", "miou", "gain", "low", "high"), _gains(story)),
        "thresholds.csv": (
            (*_RUN, "portion", "class", "threshold", "k_c", "counted", "predicted", "kept"),
            _thresholds(story),
        ),
        "images.csv": ((*_RUN, "set", "image", "truth", "prediction", "pixels"), _images(story)),
        "moves.csv": ((*_RUN, "before", "set", "class", "gained", "lost", "pixels"), _moves(story, data_root)),
        "label_free.csv": ((*_RUN, "class", "share", "confidence", "moved"), _label_free(story)),
        "guard.csv": ((*_RUN, "number", "value"), _guard(story)),
        "reliability.csv": ((*_RUN, "set", "level", "pixels", "right", "confidence"), _reliability(story)),
        "training.csv": ((*_RUN, "iteration", "loss", "gradient_norm", "learning_rate"), _training(story)),
    }
    written = []
    for file, (head, rows) in tables.items():
        lines = list(rows)
        remove_file(out / file)  # of an earlier call
        if lines:
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows([head, *lines])
            write_text(out / file, text.getvalue())
            written.append(out / file)
    return written


def _runs(story: Story) -> Iterator[tuple[Method, int, Any, tuple[Any, ...]]]:
    for method in story.methods:
        for seed, run in method.runs.items():
            yield method, seed, run, (method.title, seed, str(run.folder.path))


def _iou(story: Story) -> Iterator[Sequence[Any]]:
    for _, _, run, begin in _runs(story):
        for stage in run.evaluated:
            for name, result in run.evaluation(stage).items():
                for key, value in {**result["iou"], "mIoU": result["miou"]}.items():
                    yield (*begin, stage, name, key, _number(value))


def _gains(story: Story) -> Iterator[Sequence[Any]]:
    for method in story.adapted:
        gain = method.gain()
        if gain is not None:
            mean = sum(gain.after) / len(gain.after)
            seeds = " ".join(map(str, method.runs))
            yield method.title, seeds, method.last, story.name, mean, gain.gain, gain.low, gain.high


def _thresholds(story: Story) -> Iterator[Sequence[Any]]:
    for _, _, run, begin in _runs(story):
        for stage in range(1, run.rounds + 1):
            if not run.folder.stage(stage).thresholds.is_file():
                continue
            found = run.thresholds(stage)
            columns = (found[key] for key in ("names", "values", "k", "counts", "predicted", "kept"))
            for name, value, kc, *counts in zip(*columns):
                numbers = (_number(float(value)), _number(float(kc)), *map(int, counts))
                yield (*begin, stage, found["portion"], name, *numbers)


def _images(story: Story) -> Iterator[Sequence[Any]]:
    for _, _, run, begin in _runs(story):
        for stage in run.evaluated:
            for name, matrices in run.matrices(stage).items():
                for image, row, column in zip(*matrices.counts.nonzero()):
                    place = (matrices.images[image], matrices.classes[row], matrices.classes[column])
                    yield (*begin, stage, name, *place, int(matrices.counts[image, row, column]))


def _moves(story: Story, data_root: Path | None) -> Iterator[Sequence[Any]]:
    for _, _, run, begin in _runs(story):
        validation, _, _ = open_sets(run, story.name, data_root)
        kept = {stage: run.shown(stage).get(str(story.name)) for stage in run.evaluated}
        found = {stage: shown for stage, shown in kept.items() if shown is not None}
        for _, before, after, moves in moves_between(validation, found):
            names = validation.label_space.names  # type: ignore[union-attr]
            for place in zip(names, moves.gained, moves.lost, moves.pixels):
                yield (*begin, after, before, story.name, place[0], *map(int, place[1:]))


def _label_free(story: Story) -> Iterator[Sequence[Any]]:
    for _, _, run, begin in _runs(story):
        for stage in run.evaluated if run.leading is None else ():
            found = run.label_free(stage)
            for name, share, confidence in zip(found["names"], found["share"], found["confidence"]):
                yield (*begin, stage, name, share, _number(confidence), _number(found["moved"]))


def _guard(story: Story) -> Iterator[Sequence[Any]]:
    for _, _, run, begin in _runs(story):
        for stage in run.evaluated:
            for name, value in run.judgement(stage).items():
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    yield (*begin, stage, name, _number(value))


def _reliability(story: Story) -> Iterator[Sequence[Any]]:
    for _, _, run, begin in _runs(story):
        for stage in run.evaluated:
            labelled = {name: shown for name, shown in run.shown(stage).items() if shown.pixels.any()}
            for name, shown in labelled.items():
                for level, numbers in enumerate(zip(shown.pixels, shown.right, shown.confidence)):
                    yield (*begin, stage, name, level, *(number.item() for number in numbers))


def _training(story: Story) -> Iterator[Sequence[Any]]:
    for _, _, run, begin in _runs(story):
        for stage in range(run.rounds + 1):
            path = run.folder.stage(stage).training
            record = run.read(path) if path.is_file() else {}
            losses = record.get("loss") or []
            # the first ones may be of an earlier version, which kept none
            columns = [record.get(key) or [] for key in ("gradient_norm", "learning_rate")]
            norms, rates = ([None] * (len(losses) - len(column)) + column for column in columns)
            for number, (loss, norm, rate) in enumerate(zip(losses, norms, rates), 1):
                iteration = min(number * record["loss_every"], record["iterations"])
                yield (*begin, stage, iteration, _number(loss), _number(norm), _number(rate))


def _number(value: Any) -> Any:
    """Return a number; nothing where it is none or not finite."""
    return None if value is None or not math.isfinite(value) else value
