"""A tiny run folder with numbers that are known, for tests and examples that read one; made without a network."""

from __future__ import annotations

import numpy as np
import yaml

from cbst_mx.evaluation.confusion import summary
from cbst_mx.evaluation.protocols import ImageMatrices
from cbst_mx.files import write_json
from cbst_mx.label_space import CITYSCAPES_19
from cbst_mx.run_dir import RunDir
from cbst_mx.run_dir.ledger import Entry, Ledger, output_record
from cbst_mx.run_dir.steps import all_steps

NAMES = CITYSCAPES_19.names


def write_run(path, *, rounds=2, done=1):
    """Write a run of CBST that has evaluated its source network and its first `done` rounds, and return its folder.

    Two validation images of four pixels: road, road, sky, sky. The source network takes everything for road, later
    rounds only one of the pixels of sky: over both images the IoU of road is 4 / 6 then, and that of sky 2 / 4.
    """
    folder = RunDir(path)
    folder.path.mkdir(parents=True)
    settings = {
        "name": "gta5-cbst",
        "source": {"format": "gta5", "root": "gta5"},
        "target": {"format": "cityscapes", "root": "cityscapes", "split": "train"},
        "validation": {"target": {"format": "cityscapes", "root": "cityscapes", "split": "val"}},
        "initial_parameters": "source.params",
        "self_training": {
            "method": "cbst",
            "rounds": rounds,
            "retraining": {"iterations": 1, "batch_size": 1, "learning_rate": 0.1},
        },
    }
    folder.experiment.write_text(yaml.safe_dump(settings))
    write_json(folder.manifest, {"name": "gta5-cbst", "inputs": {"images": {"validation target": 2}}})
    road, sky = NAMES.index("road"), NAMES.index("sky")
    for stage in range(done + 1):
        counts = np.zeros((2, 19, 19), np.int64)
        counts[:, road, road] = 2
        right = 0 if stage == 0 else 1
        counts[:, sky, sky], counts[:, sky, road] = right, 2 - right
        matrices = ImageMatrices(NAMES, ("frame 0", "frame 1"), counts)
        where = folder.stage(stage)
        where.path.mkdir()
        where.save_confusion(matrices.arrays("target"))
        write_json(where.evaluation, {"target": summary(counts.sum(axis=0), CITYSCAPES_19)})
        if stage:
            write_thresholds(where, {road: 0.5, sky: 0.25})
    return folder


def write_thresholds(stage, values):
    """Write the record of pseudo-labels of the classes in `values`, trainId to exp(-k_c), 10 pixels each, 2 kept."""
    stage.pseudo_labels.mkdir(exist_ok=True, parents=True)
    present = [c in values for c in range(len(NAMES))]
    record = {
        "policy": "class-balanced",
        "fidelity": "paper",
        "portion": 0.2,
        "threshold": [values.get(c) for c in range(len(NAMES))],
        "kc": [-float(np.log(values[c])) if c in values else None for c in range(len(NAMES))],
        "count": [10 * there for there in present],
        "method": "cbst",
        "names": list(NAMES),
        "predicted": [10 * there for there in present],
        "kept": [2 * there for there in present],
        "pixels": 20,
        "kept_portion": 0.2,
    }
    write_json(stage.thresholds, record)


def write_ledger(folder):
    """Write the ledger that the steps of a folder of `write_run` would have left, with stand-ins for parameters."""
    steps = all_steps(folder, 2, prior=False)
    entries = []
    for step in steps:
        if step.kind in ("source", "retraining"):
            for path in step.files:
                path.write_text('{"rollbacks": []}\n' if path.name == "rollback.json" else "{}\n")
        if step.last.is_file():
            outputs = {
                path.relative_to(folder.path).as_posix(): output_record(path) for path in step.files if path.exists()
            }
            began, end = (f"2024-01-01T00:0{minute}:00.000+00:00" for minute in (0, 1))
            entries.append(Entry(step.name, began, 0, {"classes": list(NAMES)}, {}, end=end, outputs=outputs))
    write_json(folder.inputs, {"source": {"a": [["0" * 64, 1, 1]]}})
    Ledger(folder).append(*entries)
