"""Runs as TensorBoard events, by tensorboardX, which needs neither TensorFlow nor PyTorch.

Steps are rounds for what is measured after a round, and iterations of the whole run for the training.
"""

from __future__ import annotations

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
from cbst_mx.report.story import Story, read_story

__all__ = ["write_events"]

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
    try:
        from tensorboardX import SummaryWriter  # type: ignore[import-untyped]
    except ImportError as error:
        raise ConfigError(
            "TensorBoard events need tensorboardX, which is not installed: pip install 'cbst_mx[report]'"
        ) from error
    story = read_story(folders, name=name)
    for method in story.methods:
        for seed, run in method.runs.items():
            place = out / method.title.replace("/", "-") / f"seed-{seed}"
            for old in place.glob("events.out.tfevents.*"):
                remove_file(old)
            with SummaryWriter(str(place)) as writer:
                _write_scalars(writer, run)
                _write_training(writer, run)
                _write_pictures(writer, run, story, data_root)


def _write_scalars(writer: Any, run: RunResults) -> None:
    for stage in run.evaluated:
        for name, result in run.evaluation(stage).items():
            writer.add_scalar(f"{name}/mIoU", 100 * result["miou"], stage)
            for key, value in result["iou"].items():
                if value is not None:
                    writer.add_scalar(f"{name}/IoU/{key}", 100 * value, stage)
    for stage in range(1, run.rounds + 1):
        if not run.folder.stage(stage).thresholds.is_file():
            continue
        found = run.thresholds(stage)
        writer.add_scalar("pseudo-labels/portion", found["portion"], stage)
        writer.add_scalar("pseudo-labels/kept", found["kept"].sum() / max(found["predicted"].sum(), 1), stage)
        shares = found["predicted"] / max(found["predicted"].sum(), 1)
        for key, value, share in zip(found["names"], found["values"], shares):
            if math.isfinite(value):
                writer.add_scalar(f"thresholds/{key}", float(value), stage)
            writer.add_scalar(f"shares/{key}", float(share), stage)


def _write_training(writer: Any, run: RunResults) -> None:
    offset = 0
    for stage in range(run.rounds + 1):
        path = run.folder.stage(stage).training
        record = run.read(path) if path.is_file() else {}
        for number, loss in enumerate(record.get("loss") or [], 1):
            iteration = min(number * record["loss_every"], record["iterations"])
            writer.add_scalar("training/loss", loss, offset + iteration)
        offset += record.get("iterations", 0)


def _write_pictures(writer: Any, run: RunResults, story: Story, data_root: Path | None) -> None:
    validation, target, _ = open_sets(run, story.name, data_root)
    if validation is not None and story.name is not None:
        places = {name: index for index, name in enumerate(validation.names)}
        for stage in run.evaluated:
            shown = run.shown(stage).get(story.name)
            names = [name for name in shown.predictions if name in places] if shown is not None else []
            for name in [names[index] for index in chosen_images(len(names), _IMAGES)]:
                picture = validation.label_space.colorize(shown.predictions[name])  # type: ignore[union-attr]
                writer.add_image(f"prediction/{name}", picture, stage, dataformats="HWC")
    if target is not None:
        for index in chosen_images(len(target), _IMAGES):
            for stage in range(1, run.rounds + 1):
                path = run.folder.stage(stage).pseudo_labels / f"{target.names[index]}.png"
                if path.is_file():
                    laid = overlay(target.image(index), read_label(path), story.space)
                    writer.add_image(f"pseudo-labels/{target.names[index]}", laid, stage, dataformats="HWC")
