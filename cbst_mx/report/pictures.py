"""Pictures of a report: photographs, truths, predictions and pseudo-labels as files small enough to be part of a page.

P images, h x w pixels. A picture is a ``data:`` address: a JPEG of a photograph, or a PNG of classes in their colours,
of which pixels without a class are transparent.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping

import cv2
import numpy as np
from PIL import Image

from cbst_mx.data import ImageSet, LabelledImageSet
from cbst_mx.data.image_files import read_label
from cbst_mx.errors import CBSTError
from cbst_mx.evaluation.run_results import RunResults
from cbst_mx.evaluation.shown import LONG_SIDE, Shown, chosen_images, shrink
from cbst_mx.label_space import IGNORE, LabelSpace
from cbst_mx.messages import stage_title

__all__ = [
    "BUDGET",
    "Moves",
    "class_png",
    "count_moves",
    "draw_pictures",
    "moves_between",
    "open_sets",
    "photograph_jpeg",
]

BUDGET = (
    4_400_000  #: bytes of all pictures of a page at most; with Plotly's script and the numbers it stays below 10 MB
)
_SIDES = (LONG_SIDE, 384, 288, 208, 144, 96)  # pixels of the longer side, tried one after the other
_QUALITY = 78  # of JPEG
_HATCHED = 254  # index of the stripes over pixels without a pseudo-label
_STRIPE = (16, 16, 16)


@dataclass(frozen=True)
class _Row:
    """One image and how to draw its pictures, by their names; each takes the longer side in pixels."""

    name: str
    draws: dict[str, Callable[[int], bytes]]


def photograph_jpeg(image: np.ndarray, long_side: int) -> bytes:
    """Return a photograph, uint8 (H, W, 3) RGB, as JPEG of which the longer side has at most `long_side` pixels."""
    height, width = image.shape[:2]
    scale = min(1.0, long_side / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if scale < 1 else image
    _, encoded = cv2.imencode(".jpg", np.ascontiguousarray(small[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return bytes(encoded)


def class_png(train_ids: np.ndarray, space: LabelSpace, long_side: int, *, hatched: bool = False) -> bytes:
    """Return classes, uint8 (H, W), as PNG in their colours; where there is none, transparent or striped.

    Parameters
    ----------
    train_ids : ndarray of shape (H, W), uint8
        255 where there is no class.
    space : LabelSpace
        Colours of the classes.
    long_side : int
        Pixels of the longer side at most.
    hatched : bool
        Draw stripes where there is no class.
    """
    small = shrink(train_ids, long_side).copy()
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(space.palette)] = space.palette
    alpha = np.full(256, 255, np.uint8)
    alpha[IGNORE] = 0
    if hatched:
        rows, columns = np.indices(small.shape, sparse=True)
        small[(small == IGNORE) & ((rows + columns) % 8 < 2)] = _HATCHED
        colours[_HATCHED] = _STRIPE
    picture = Image.fromarray(small)
    picture.putpalette(colours.tobytes())  # turns mode L into P, the values stay
    stream = io.BytesIO()
    picture.save(stream, "PNG", transparency=alpha.tobytes())
    return stream.getvalue()


def draw_pictures(
    validation: ImageSet | None,
    shown: Mapping[str, Mapping[int, Shown]],
    target: ImageSet | None,
    runs: Mapping[str, RunResults],
    space: LabelSpace,
    *,
    images: int,
    budget: int = BUDGET,
) -> dict[str, Any]:
    """Draw the pictures of a page, as large as the budget allows.

    Parameters
    ----------
    validation : ImageSet, optional
        What the networks were shown on: the validation set with its truths, or images without labels.
    shown : mapping
        Method and stage to what is shown of its network on the validation set.
    target : ImageSet, optional
        The target's images, for pseudo-labels.
    runs : mapping
        Method to the run whose pseudo-labels are shown.
    space : LabelSpace
        Classes of the pseudo-labels.
    images : int
        Images of the validation set at most; of the target half as many.
    budget : int
        Bytes at most.

    Returns
    -------
    dict
        ``side`` (pixels of the longer side), ``predictions`` and ``pseudo_labels``: lists of mappings of ``name`` and
        of pictures by name: ``photo``, ``truth``, and by method lists over its stages.
    """
    parts = {
        "predictions": list(_prediction_rows(validation, shown, space, images)),
        "pseudo_labels": list(_pseudo_label_rows(target, runs, space, -(-images // 2))),
    }
    drawn: dict[str, list[dict[str, Any]]] = {}
    largest = float(_SIDES[0])
    for side in _SIDES:
        if side > largest and side != _SIDES[-1]:
            continue
        drawn = {
            key: [
                {"name": row.name, **{what: _address(draw(side)) for what, draw in row.draws.items()}} for row in rows
            ]
            for key, rows in parts.items()
        }
        size = sum(len(value) for rows in drawn.values() for row in rows for value in row.values())
        if size <= budget:
            break
        largest = side * (budget / size) ** 0.5  # what fits, where bytes grow as the area; they grow less
    return {"side": side, **drawn}


def _prediction_rows(
    validation: ImageSet | None, shown: Mapping[str, Mapping[int, Shown]], space: LabelSpace, count: int
) -> Iterator[_Row]:
    """Yield the images that the predictions of all networks were kept of."""
    networks = [(title, stage, one) for title, stages in shown.items() for stage, one in stages.items()]
    if validation is None or not networks:
        return
    labelled = validation if isinstance(validation, LabelledImageSet) else None
    space = space if labelled is None else labelled.label_space  # which may have more classes than the networks
    places = {name: index for index, name in enumerate(validation.names)}
    common = [name for name in networks[0][2].predictions if all(name in one.predictions for _, _, one in networks)]
    known = [name for name in common if name in places]
    for name in [known[index] for index in chosen_images(len(known), count)]:
        index = places[name]
        draws = {"photo": _photograph(validation, index)}
        if labelled is not None:
            draws["truth"] = _classes(labelled.label(index), space)
        for title, stage, one in networks:
            draws[f"{title}\n{stage}"] = _classes(one.predictions[name], space)
        yield _Row(name, draws)


def _pseudo_label_rows(
    target: ImageSet | None, runs: Mapping[str, RunResults], space: LabelSpace, count: int
) -> Iterator[_Row]:
    """Yield images of the target with the pseudo-labels of all rounds."""
    if target is None:
        return
    for index in chosen_images(len(target), count):
        name = target.names[index]
        draws = {"photo": _photograph(target, index)}
        for title, run in runs.items():
            for stage in range(1, run.rounds + 1):
                path = run.folder.stage(stage).pseudo_labels / f"{name}.png"
                if path.is_file():
                    draws[f"{title}\n{stage}"] = _classes(read_label(path), space, hatched=True)
        if len(draws) > 1:
            yield _Row(name, draws)


def _photograph(images: ImageSet, index: int) -> Callable[[int], bytes]:
    return lambda side: photograph_jpeg(images.image(index), side)


def _classes(train_ids: np.ndarray, space: LabelSpace, *, hatched: bool = False) -> Callable[[int], bytes]:
    return lambda side: class_png(train_ids, space, side, hatched=hatched)


def _address(content: bytes) -> str:
    kind = "png" if content.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


@dataclass(frozen=True, eq=False)
class Moves:
    """Labelled pixels that became right and that became wrong from one network to another, by class of the truth.

    Attributes
    ----------
    gained, lost, pixels : ndarray of shape (C,), int64
    """

    gained: np.ndarray
    lost: np.ndarray
    pixels: np.ndarray


def count_moves(truths: Mapping[str, np.ndarray], before: Shown, after: Shown, classes: int) -> Moves:
    """Count the pixels of small predictions that became right and wrong.

    Parameters
    ----------
    truths : mapping of str to ndarray of shape (H, W), uint8
        TrainIds by image.
    before, after : Shown
        Of the two networks.
    classes : int
        Number of classes C.
    """
    gained, lost, pixels = np.zeros((3, classes), np.int64)
    for name, truth in truths.items():
        if name not in before.predictions or name not in after.predictions:
            continue
        first, second = before.predictions[name], after.predictions[name]
        small = cv2.resize(truth, second.shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        known = small < classes
        was, now = first == small, second == small
        gained += np.bincount(small[known & now & ~was], minlength=classes)
        lost += np.bincount(small[known & was & ~now], minlength=classes)
        pixels += np.bincount(small[known], minlength=classes)
    return Moves(gained, lost, pixels)


def moves_between(validation: LabelledImageSet | None, kept: Mapping[int, Shown]) -> list[tuple[str, int, int, Moves]]:
    """Count moves from stage to stage, and from the source network to the last one.

    Parameters
    ----------
    validation : LabelledImageSet or None
        The images, with labels.
    kept : mapping of int to Shown
        What was kept of the predictions, by stage.

    Returns
    -------
    list of (str, int, int, Moves)
        Title, stage before, stage after, moves; empty without labels, predictions of the source network, or a round.
    """
    stages = [stage for stage in sorted(kept) if stage]
    if validation is None or not stages or 0 not in kept:
        return []
    wanted = set(kept[0].predictions)
    truths = {name: validation.label(index) for index, name in enumerate(validation.names) if name in wanted}
    pairs = [(f"{stage_title(stage - 1)} to {stage}", stage - 1, stage) for stage in stages if stage - 1 in kept]
    pairs.append(("in all", 0, stages[-1]))
    classes = len(validation.label_space.names)
    return [(title, one, other, count_moves(truths, kept[one], kept[other], classes)) for title, one, other in pairs]


def open_sets(
    run: RunResults, name: str | None, data_root: Path | None
) -> tuple[LabelledImageSet | None, ImageSet | None, list[str]]:
    """Open the images of a run for pictures; what cannot be opened is told in sentences.

    Returns
    -------
    validation, target : image sets, or None
    missing : list of str
        What is not there.
    """
    missing: list[str] = []
    validation = target = None
    try:
        if name is not None:
            validation = run.settings.open_validation(data_root)[name]
    except CBSTError as error:
        missing.append(f"Pictures of validation set {name} are left out: {error}{_advice(data_root)}")
    try:
        target = run.settings.open_target(data_root)
    except CBSTError as error:
        missing.append(f"Pictures of pseudo-labels are left out: {error}{_advice(data_root)}")
    return validation, target, missing


def _advice(data_root: Path | None) -> str:
    return "" if data_root is not None else " (or give it with --data)"
