"""A whole round of self-training beside the same round in plain PyTorch: pseudo-labels, retraining, evaluation.

python tools/bench/rounds.py --torch-python PATH | --install-torch [--repeats 3] [--quick] [--full] [--out PAGE]

The peer, torch_round.py, goes the way of the PyTorch programs that came after CBST. Both have the same network
(FCN8s, float32) with the same parameters, trained on the source before anything is measured; the same generated scenes,
images, iterations, batches, crops, mirrored looks, threads and readers. Both print what they found, so that it can be
seen that they did the same work: thresholds, portions and mIoU are near, not equal, as crops, dropout and, in the
peer, every fourth confidence are drawn by each in its own way.

Each round is a process of its own; ours and the peer's take turns, nearer to the paper only once without ``--full``,
since two such rounds take two minutes. The imports are not counted; loading the parameters,
the first steps, checkpoints and all files are. Needs a Python with torch, numpy and Pillow.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from measuring import (
    ROOT,
    add_full,
    add_torch,
    asked,
    find_torch,
    given,
    machine,
    packages,
    printed,
    put,
    stage_seconds,
    table,
)

CLASSES = 19
PORTION = 0.2
EVERY = 4  # the peer takes every so manieth confidence, as the released programs do
STAGES = ("label", "retrain", "evaluate")
LAYOUTS = ("channels last", "contiguous")  # the first is the faster one for the demo's narrow network


class Setting(NamedTuple):
    """A network, its scenes and its phases."""

    title: str
    width: float
    size: tuple[int, int]
    images: tuple[int, int, int]  # source, target, validation
    crop: tuple[int, int]
    scale: tuple[float, float]
    batch: int
    iterations: int
    dropout: float
    resampling: str
    before: tuple[str, ...]  # the training on the source, which is not measured


DEMO = Setting(
    "Like the demo: FCN8s, width 1/8, 128 x 256",
    *(1 / 8, (128, 256), (120, 60, 30), (96, 192), (0.8, 1.3), 8, 60, 0.0, "linear"),
    ("source_training={iterations: 500, batch_size: 8, learning_rate: 0.01, warmup: 100, power: 0.9}",),
)
PAPER = Setting(
    "Nearer to the paper: FCN8s, width 1/2, 512 x 1024",
    *(1 / 2, (512, 1024), (12, 8, 4), (504, 504), (0.7, 1.3), 2, 6, 0.5, "program"),
    (
        "source_training={iterations: 80, batch_size: 4, learning_rate: 0.01, warmup: 20, power: 0.9}",
        "augmentation={crop: [96, 192], scale: [0.4, 0.8]}",
    ),
)
QUICK = Setting(
    "Quick: FCN8s, width 1/32, 64 x 128",
    *(1 / 32, (64, 128), (8, 6, 4), (48, 96), (0.8, 1.3), 4, 4, 0.0, "linear"),
    ("source_training={iterations: 20, batch_size: 4, learning_rate: 0.01}",),
)


def experiment(setting: Setting, *changes: str) -> Any:
    """Return the experiment of one round."""
    from cbst_mx.config import load_experiment

    phase = f"iterations: {setting.iterations}, batch_size: {setting.batch}, learning_rate: 0.001"
    return load_experiment(
        ROOT / "experiments" / "demo.yaml",
        (
            f"network.options={{width: {setting.width}, dropout: {setting.dropout}}}",
            f"augmentation={{crop: {list(setting.crop)}, scale: {list(setting.scale)}}}",
            f"resampling={setting.resampling}",
            f"self_training.retraining={{{phase}, bias_lr_mult: 1.0, bias_wd_mult: 1.0}}",
            f"self_training.portion={{initial: {PORTION}}}",
            "self_training.target_per_batch=null",
            "self_training.rounds=1",
            "validation={target: {format: cityscapes, root: cityscapes, split: val}}",
            *changes,
        ),
    )


def prepare(setting: Setting, folder: Path) -> dict[str, Any]:
    """Write scenes and the source network's parameters, and the peer's specification."""
    import numpy as np

    from cbst_mx.data.street_scenes import Shift, write_demo_data
    from cbst_mx.networks.parameters import load_network
    from cbst_mx.rounds import Run
    from symbols.backend import mx

    names = ("source_count", "target_count", "target_val_count")
    counts = dict(zip(names, setting.images), source_val_count=0)
    write_demo_data(folder / "data", **counts, size=setting.size, seed=0, shift=Shift())
    one = experiment(setting, f"network.options.dropout={setting.dropout / 5}", *setting.before)
    run = Run(one, folder / "source", data_root=folder / "data")
    run.train_source()
    start = run.dir.stage(0).parameters
    network, spec, _ = load_network(start, mx.cpu())
    np.savez(folder / "weights.npz", *(one.data().asnumpy() for one in network.collect_params().values()))
    space = one.classes()
    ids = np.full(256, 255, np.uint8)
    ids[:34] = space.encode(np.arange(34, dtype=np.uint8)[None], "cityscapes", "ids")[0]
    source, target, validation = run.source, run.target, run.validation["target"]
    return {
        "start": str(start),
        "weights": str(folder / "weights.npz"),
        "mean": list(spec.mean),
        "std": list(spec.std),
        "train_ids": ids.tolist(),
        "source": [[str(part) for part in pair] for pair in zip(source.image_paths, source.label_paths)],
        "target": [str(path) for path in target.image_paths],
        "validation": [[str(part) for part in pair] for pair in zip(validation.image_paths, validation.label_paths)],
    }


def our_round(setting: Setting, start: str, data: Path, out: Path) -> dict[str, Any]:
    """Run this project's round."""
    import logging

    from cbst_mx.rounds import Run

    logging.disable(logging.INFO)
    one = experiment(setting, "source_training=null", f"initial_parameters={start}")
    run = Run(one, out, data_root=data)
    run.train_source()  # takes the parameters over
    stage = run.dir.stage(1)

    def label() -> dict[str, Any]:
        run.pseudo_label(1)
        record = json.loads(stage.thresholds.read_text())
        return {
            "thresholds": [1.0 if value is None else value for value in record["threshold"]],
            "counts": record["predicted"],
            "kept": record["kept_portion"],
        }

    def retrain() -> dict[str, Any]:
        run.retrain(1)
        return {"loss": json.loads(stage.training.read_text())["loss"][-1]}

    return stage_seconds(
        {"label": label, "retrain": retrain, "evaluate": lambda: {"miou": run.evaluate(1)["target"]["miou"]}}
    )


def measure(
    setting: Setting, folder: Path, options: argparse.Namespace, torch: str, repeats: int
) -> dict[str, list[dict[str, Any]]]:
    """Return what the rounds of both sides took and found, by repeats."""
    around = {"OMP_NUM_THREADS": str(options.threads), "PYTHONPATH": str(ROOT)}
    own = [sys.executable, __file__, "--worker"]
    title = f"{setting.title.split(':')[0]}"
    made = printed(*own, json.dumps(["prepare", setting, str(folder)]), **around)
    import PIL.Image

    kind = PIL.Image.Resampling.BILINEAR if setting.resampling == "linear" else PIL.Image.Resampling.BICUBIC
    peer = {
        **{key: value for key, value in made.items() if key != "start"},
        **{key: getattr(setting, key) for key in ("width", "dropout", "crop", "scale", "batch", "iterations")},
        **{"classes": CLASSES, "portion": PORTION, "every": options.every, "learning_rate": 0.001},
        **{"threads": options.threads, "workers": options.peer_workers, "resampling": int(kind)},
        **{"inference_batch": options.peer_batch, "channels_last": options.peer_layout == LAYOUTS[0]},
    }
    found: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
    for repeat in range(repeats):
        out = folder / f"ours-{repeat}"
        work = ["ours", setting, made["start"], str(folder / "data"), str(out)]
        found["ours"].append(printed(*own, json.dumps(work), **around))
        spec = folder / f"peer-{repeat}.json"
        spec.write_text(json.dumps({**peer, "out": str(folder / f"peer-{repeat}")}))
        found["peer"].append(printed(torch, Path(__file__).with_name("torch_round.py"), spec, **around))
        for side, results in found.items():
            last = results[-1]
            seconds = ", ".join(f"{name} {last['wall'][name]:.2f} ({last['cpu'][name]:.2f} CPU)" for name in STAGES)
            print(f"{title}, {side}: {seconds} s", file=sys.stderr)
    return found


def rows(found: dict[str, list[dict[str, Any]]]) -> list[tuple[str, ...]]:
    """Return the rows of one setting's table: medians by the clock and of the processor, and ratios."""

    def median(side: str, clock: str, stages: tuple[str, ...]) -> float:
        return statistics.median(sum(one[clock][name] for name in stages) for one in found[side])

    lines = []
    for name, stages in (*((name, (name,)) for name in STAGES), ("round", STAGES)):
        cells = [name]
        for clock in ("wall", "cpu"):
            ours, peer = (median(side, clock, stages) for side in ("ours", "peer"))
            cells += [f"{ours:.2f}", f"{peer:.2f}", f"{peer / ours:.2f}"]
        lines.append(tuple(cells))
    return lines


def agreement(found: dict[str, list[dict[str, Any]]]) -> str:
    """Say in words how near the results of both sides are."""
    ours, peer = found["ours"][-1], found["peer"][-1]
    print("class: pixels, threshold; ours | peer", file=sys.stderr)
    for index, values in enumerate(zip(ours["counts"], ours["thresholds"], peer["counts"], peer["thresholds"])):
        print(f"{index:5}: {values[0]:9} {values[1]:.5f} | {values[2]:9} {values[3]:.5f}", file=sys.stderr)
    total = sum(ours["counts"])
    common = [index for index, count in enumerate(ours["counts"]) if count >= total / 1000]
    far = max(abs(ours["thresholds"][index] - peer["thresholds"][index]) for index in common)
    kept, losses, scores = (
        " and ".join(f"{factor * one[key]:.{digits}f}" for one in (ours, peer))
        for key, factor, digits in (("kept", 100, 2), ("loss", 1, 3), ("miou", 100, 1))
    )
    return (
        f"Ours and the peer's: {kept} % of the pixels kept; loss of the last iteration {losses}; mIoU {scores} %. "
        f"Thresholds exp(-k_c) of the {len(common)} classes with 0.1 % of the pixels or more differ by at most "
        f"{far:.4f}."
    )


def worker(what: str, setting: list[Any], *arguments: str) -> dict[str, Any]:
    """Do in this process what a measurement asks for."""
    chosen = Setting(*(tuple(part) if isinstance(part, list) else part for part in setting))
    if what == "prepare":
        return prepare(chosen, Path(arguments[0]))
    return our_round(chosen, arguments[0], Path(arguments[1]), Path(arguments[2]))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_torch(parser)
    parser.add_argument("--repeats", type=int, default=3, help="rounds of each side, in turns")
    parser.add_argument("--paper-repeats", type=int, default=1, help="of those nearer to the paper")
    parser.add_argument("--threads", type=int, default=1, help="of both networks; two wait for each other")
    parser.add_argument("--peer-workers", type=int, default=2, help="reading processes of the peer; we have 2 threads")
    parser.add_argument("--peer-batch", type=int, default=1, help="images that pass its network together in inference")
    parser.add_argument("--peer-layout", choices=LAYOUTS, default=LAYOUTS[0], help="of its images and parameters")
    parser.add_argument("--every", type=int, default=EVERY, help="which confidences the peer takes; 1: all")
    parser.add_argument("--settings", nargs="+", choices=("demo", "paper"), default=("demo", "paper"))
    parser.add_argument("--quick", action="store_true", help="one tiny setting: does everything run?")
    parser.add_argument("--out", type=Path, help="put the tables between the markers of this page too")
    add_full(parser, paper_repeats=3)
    options = given(parser, worker)
    if options is None:
        return
    torch = find_torch(options)
    if torch is None:
        return
    theirs = packages(torch, "torch", "numpy", "Pillow")
    settings = [QUICK] if options.quick else [{"demo": DEMO, "paper": PAPER}[name] for name in options.settings]
    own = machine("mxnet", "numpy", "opencv-python", "Pillow")
    parts = [
        f"{options.threads} thread{'s'[: options.threads - 1]} of {own}; {theirs}, {options.peer_layout}, "
        f"{options.peer_workers} reading processes; {asked()}."
    ]
    for setting in settings:
        with tempfile.TemporaryDirectory() as folder:
            repeats = options.paper_repeats if setting is PAPER else options.repeats
            found = measure(setting, Path(folder), options, torch, repeats)
        source, target, validation = setting.images
        what = (
            f"{target} target images labelled, {setting.iterations} iterations with {setting.batch} crops of "
            f"{setting.crop[0]} x {setting.crop[1]} (of {source} source and {target} target images), "
            f"{validation} images evaluated; median of {repeats}."
        )
        head = ("stage", "ours, s", "PyTorch, s", "ratio", "ours, CPU s", "PyTorch, CPU s", "ratio")
        parts += [f"### {setting.title}", f"{what} {agreement(found)}", table(head, rows(found))]
    text = "\n\n".join(parts)
    print(text)
    if options.out:
        put(options.out, "rounds", text)


if __name__ == "__main__":
    main()
