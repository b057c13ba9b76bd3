"""Runs as TensorBoard events, by tensorboardX, which needs neither TensorFlow nor PyTorch.

Steps are rounds for what is measured after a round, and iterations of the whole run for the training.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
from pathlib import Path
from typing import Any, Sequence

from cbst_mx.data.image_files import read_label
from cbst_mx.errors import ConfigError
from cbst_mx.evaluation.run_results import RunResults
from cbst_mx.evaluation.shown import chosen_images
from cbst_mx.files import remove_file
from cbst_mx.report.figures import overlay
from cbst_mx.report.pictures import open_sets
from cbst_mx.report.story import read_story

__all__ = ["LiveEvents", "check_installed", "write_events"]

_IMAGES = 4


def write_events(folders: Sequence[Path], out: Path, *, name: str | None = None, data_root: Path | None = None) -> None:
    """Write runs as events: scalars, thresholds per class, and pictures of predictions and pseudo-labels.

    Parameters
    ----------
    folders : sequence of Path
        Each a run folder, or a folder of runs.
    out : Path
        Gets a folder for every run, METHOD/seed-N; what is in one is replaced.
    name : str, optional
        The validation set; by default the one that the first run names first.
    data_root : Path, optional
        Folder that relative data roots are in, instead of the one in ``CBST_DATA``.

    Raises
    ------
    CBSTError
        If a run cannot be read, or tensorboardX is not installed.
    """
    check_installed()
    story = read_story(folders, name=name)
    for method in story.methods:
        for seed, run in method.runs.items():
            place = out / method.title.replace("/", "-") / f"seed-{seed}"
            with contextlib.closing(LiveEvents(run, place, name=story.name, data_root=data_root)) as events:
                events.catch_up()


def check_installed() -> None:
    """Check that tensorboardX is there.

    Raises
    ------
    ConfigError
        If it is not.
    """
    if importlib.util.find_spec("tensorboardX") is None:
        raise ConfigError("TensorBoard events need tensorboardX, which is not installed: pip install 'cbst_mx[report]'")


class LiveEvents:
    """The events of one run, which may be going on.

    Parameters
    ----------
    run : RunResults
        The run.
    out : Path
        Folder of the events; those of an earlier call are replaced.
    name : str, optional
        The validation set of the pictures.
    data_root : Path, optional
        As in :func:`write_events`.
    """

    def __init__(self, run: RunResults, out: Path, *, name: str | None = None, data_root: Path | None = None):
        from tensorboardX import SummaryWriter  # type: ignore[import-untyped]

        self._run, self._name, self._data_root = run, name, data_root
        self._told: set[tuple[str, int]] = set()
        self._offset: tuple[int, int] | None = None  # the stage that is trained, and the iterations before it
        for old in out.glob("events.out.tfevents.*"):
            remove_file(old)
        self._writer = SummaryWriter(str(out))

    def catch_up(self) -> None:
        """Write what the run folder has and was not written yet."""
        run = self._run
        for stage in range(run.rounds + 1):
            if run.folder.stage(stage).training.is_file() and self._is_new("training", stage):
                _write_training(self._writer, run, stage)
            if stage and run.folder.stage(stage).thresholds.is_file() and self._is_new("thresholds", stage):
                _write_thresholds(self._writer, run, stage)
                _write_pseudo_labels(self._writer, run, stage, self._data_root)
        for stage in run.evaluated:
            if self._is_new("evaluation", stage):
                _write_evaluation(self._writer, run, stage)
                _write_predictions(self._writer, run, stage, self._name, self._data_root)
        self._writer.flush()

    def training(self, stage: int, iteration: int, loss: float, rate: float | None) -> None:
        """Write the loss of an iteration of a training that goes on; the record of that training is left out then."""
        self._told.add(("training", stage))
        if self._offset is None or self._offset[0] != stage:
            self._offset = stage, _iterations_before(self._run, stage)
        step = self._offset[1] + iteration
        self._writer.add_scalar("training/loss", loss, step)
        if rate is not None:
            self._writer.add_scalar("training/learning rate", rate, step)

    def close(self) -> None:
        """End the file."""
        self._writer.close()

    def _is_new(self, what: str, stage: int) -> bool:
        new = (what, stage) not in self._told
        self._told.add((what, stage))
        return new


def _write_evaluation(writer: Any, run: RunResults, stage: int) -> None:
    for name, result in run.evaluation(stage).items():
        writer.add_scalar(f"{name}/mIoU", 100 * result["miou"], stage)
        for key, value in result["iou"].items():
            if value is not None:
                writer.add_scalar(f"{name}/IoU/{key}", 100 * value, stage)


def _write_thresholds(writer: Any, run: RunResults, stage: int) -> None:
    found = run.thresholds(stage)
    writer.add_scalar("pseudo-labels/portion", found["portion"], stage)
    writer.add_scalar("pseudo-labels/kept", found["kept"].sum() / max(found["predicted"].sum(), 1), stage)
    shares = found["predicted"] / max(found["predicted"].sum(), 1)
    for key, value, share in zip(found["names"], found["values"], shares):
        if math.isfinite(value):
            writer.add_scalar(f"thresholds/{key}", float(value), stage)
        writer.add_scalar(f"shares/{key}", float(share), stage)


def _iterations_before(run: RunResults, stage: int) -> int:
    paths = [run.folder.stage(before).training for before in range(stage)]
    return sum(run.read(path).get("iterations", 0) for path in paths if path.is_file())


def _write_training(writer: Any, run: RunResults, stage: int) -> None:
    record, offset = run.read(run.folder.stage(stage).training), _iterations_before(run, stage)
    columns = (("training/loss", "loss"), ("training/learning rate", "learning_rate"))
    for title, key in columns:
        for number, value in enumerate(record.get(key) or [], 1):
            iteration = min(number * record["loss_every"], record["iterations"])
            writer.add_scalar(title, value, offset + iteration)


def _write_predictions(writer: Any, run: RunResults, stage: int, name: str | None, data_root: Path | None) -> None:
    shown = None if name is None else run.shown(stage).get(name)
    if shown is None:
        return
    validation, _, _ = open_sets(run, name, data_root)
    known = set() if validation is None else set(validation.names)
    names = [image for image in shown.predictions if image in known]
    for image in [names[index] for index in chosen_images(len(names), _IMAGES)]:
        picture = validation.label_space.colorize(shown.predictions[image])  # type: ignore[union-attr]
        writer.add_image(f"prediction/{image}", picture, stage, dataformats="HWC")


def _write_pseudo_labels(writer: Any, run: RunResults, stage: int, data_root: Path | None) -> None:
    _, target, _ = open_sets(run, None, data_root)
    if target is None:
        return
    for name in [target.names[index] for index in chosen_images(len(target), _IMAGES)]:
        path = run.folder.stage(stage).pseudo_labels / f"{name}.png"
        if path.is_file():
            laid = overlay(target.image(target.names.index(name)), read_label(path), run.classes())
            writer.add_image(f"pseudo-labels/{name}", laid, stage, dataformats="HWC")
