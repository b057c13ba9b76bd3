"""Runs with pictures for tests of the report, made without a network: known images, truths, predictions."""

from __future__ import annotations

import json

import cv2
import numpy as np
import yaml

from cbst_mx.data.image_files import write_label_png, write_rgb_png
from cbst_mx.evaluation.confusion import confusion_matrix, summary
from cbst_mx.evaluation.protocols import ImageMatrices
from cbst_mx.evaluation.shown import TARGET, Shows, save_shown
from cbst_mx.files import write_json
from cbst_mx.label_space import LabelSpace
from cbst_mx.run_dir import RunDir

HOSTILE = '<img src=x onerror="document.title=1">'  # a class and an image have this name
NAMES = ("road", HOSTILE, "sky", "tree")
PALETTE = ((128, 64, 128), (220, 20, 60), (70, 130, 180), (107, 142, 35))
SPACE = LabelSpace("report", NAMES, PALETTE, {"raw": {0: 0, 1: 1, 2: 2, 3: 3}})


def _field(rng, size):
    """Return classes in blobs, as a network's."""
    coarse = rng.normal(size=(len(NAMES), 6, 9)).astype(np.float32)
    planes = [cv2.resize(plane, size[::-1], interpolation=cv2.INTER_CUBIC) for plane in coarse]
    return np.argmax(planes, axis=0).astype(np.uint8)


def write_data(root, *, images, size=(48, 96)):
    """Write images and labels of a validation set and a target, with a description; return the truths by name."""
    rng = np.random.default_rng(0)
    truths = {}
    for part in ("check", "target"):
        for index in range(images):
            name = f"{index} {HOSTILE}" if index == 0 else str(index)
            label = _field(rng, size)
            photo = SPACE.colorize(label).astype(np.int64) + rng.integers(-25, 25, (*size, 3))
            write_rgb_png(root / part / f"{name}.png", np.clip(photo, 0, 255).astype(np.uint8))
            if part == "check":
                write_label_png(root / "check-labels" / f"{name}.png", label, SPACE)
                truths[name] = label
    labelled = {"images": ["check/*.png"], "labels": "check-labels/{stem}.png"}
    description = {
        "label_space": {
            "name": "report",
            "names": list(NAMES),
            "palette": [list(colour) for colour in PALETTE],
            "ids": {index: index for index in range(len(NAMES))},
        },
        "splits": {"check": labelled, "target": {"images": ["target/*.png"]}},
    }
    (root / "data.yaml").write_text(yaml.safe_dump(description))
    return truths


def write_run(path, root, truths, *, rounds=2, done=None, seed=0, method="cbst", gain=0.06, labelled=True, shown=True):
    """Write a run that errs on 40 % of the pixels at first, and on `gain` less in every round."""
    done = rounds if done is None else done
    folder = RunDir(path)
    data = {"format": "folder", "root": str(root), "description": str(root / "data.yaml")}
    training = {"iterations": 40, "batch_size": 1, "learning_rate": 0.1}
    settings = {
        "name": f"photos-{method}",
        "seed": seed,
        "label_space": "folder",
        "source": {**data, "split": "check"},
        "target": {**data, "split": "target"},
        "validation": {"check": {**data, "split": "check"}} if labelled else {},
        "source_training": training,
        "self_training": {"method": method, "rounds": rounds, "retraining": training},
    }
    folder.path.mkdir(parents=True)
    folder.experiment.write_text(yaml.safe_dump(settings))
    counts = {"source": len(truths), "target": len(truths), "validation check": len(truths)}
    write_json(folder.manifest, {"name": settings["name"], "created": "2026-01-01", "inputs": {"images": counts}})
    rng = np.random.default_rng((seed, len(method)))
    for stage in range(done + 1):
        where = folder.stage(stage)
        where.path.mkdir()
        write_json(where.training, {"iterations": 40, "loss_every": 20, "loss": [1.0 / (stage + 1), 0.5 / (stage + 1)]})
        if labelled:
            _evaluate(where, truths, 0.4 - gain * stage, rng, shown)
        else:
            _observe(where, stage, truths, rng)
        if stage:
            _label(where, truths, rng, method, 0.15 + 0.05 * stage)
    if done == rounds:
        write_json(folder.summary, {"name": settings["name"]})
    return folder


def _evaluate(where, truths, wrong, rng, shown):
    counts, shows = [], Shows(len(truths))
    for index, (name, truth) in enumerate(truths.items()):
        other = _field(rng, truth.shape)
        patch = cv2.resize(rng.random((12, 18)).astype(np.float32), truth.shape[::-1]) < wrong
        predicted = np.where(patch, other, truth)
        counts.append(confusion_matrix(truth, predicted, len(NAMES)))
        shows.add(index, name, np.where(patch, 0.55, 0.93).astype(np.float32), predicted, truth)
    matrices = ImageMatrices(NAMES, tuple(truths), np.array(counts))
    where.save_confusion(matrices.arrays("check"))
    if shown:
        save_shown(where.shown, {"check": shows.shown})
    write_json(where.evaluation, {"check": summary(matrices.counts.sum(axis=0), SPACE)})


def _observe(where, stage, truths, rng):
    shows = Shows(len(truths))
    for index, (name, truth) in enumerate(truths.items()):
        shows.add(index, name, np.full(truth.shape, 0.8, np.float32), _field(rng, truth.shape))
    save_shown(where.shown, {TARGET: shows.shown})
    share = [0.4, 0.3, 0.2, 0.1]
    moved = 0.1 if stage else None
    record = {"images": 3, "names": list(NAMES), "predicted": [40, 30, 20, 10], "share": share}
    record.update(confidence=[0.9] * 4, mean_confidence=0.8, moved=moved, moved_since_source=moved)
    write_json(where.label_free, record)
    write_json(where.evaluation, {})


def _label(where, truths, rng, method, portion):
    shape = next(iter(truths.values())).shape
    for name in truths:
        label = _field(rng, shape)
        label[rng.random(shape) > portion] = 255
        write_label_png(where.pseudo_labels / f"{name}.png", label, SPACE)
    values = [0.9, 0.8, 0.7, None] if method == "cbst" else [0.85] * 4
    record = {
        "policy": "class-balanced" if method == "cbst" else "global",
        "fidelity": "paper",
        "portion": portion,
        "threshold": values,
        "kc": [None if value is None else -float(np.log(value)) for value in values],
        "count": [400, 300, 200, 0],
        "method": method,
        "names": list(NAMES),
        "predicted": [400, 300, 200, 0],
        "kept": [int(400 * portion), int(300 * portion), int(200 * portion), 0],
        "pixels": 900,
        "kept_portion": portion,
    }
    where.thresholds.write_text(json.dumps(record))
