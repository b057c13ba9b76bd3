"""How time and memory grow with the number of images, and how long a large data set takes to open.

python tools/bench/growth.py [--images 100 300 1000 3000] [--files 25000] [--repeats 1] [--full] [--out PAGE]

Generated scenes of 64 x 128 pixels (24 of them under many names) and a narrow ResNet-38, so that what a program does
for every image beside the network shows. Each pass is a process of its own: the processor seconds of the pass, without
imports and the making of the network, and the largest memory that the process has had. Pseudo-labelling counts
confidences, as sets of more than 16 million pixels do, and keeps the network's output on the disk; training is what the
loader does. Opening is processor time from the start of Python on: all paths paired, then every header read, which is
what a run does before its first iteration.

A line a + b N is put through the times of N images so that the squares of the relative errors are least. a is what a
pass costs once: the network's first call builds its operators for a batch, and another for a smaller batch at the end.
Processes of all numbers take turns, and each measures a fixed piece of NumPy as well (kernels), so that the machine's
speed can be told from the program's.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before the imports

import argparse
import contextlib
import functools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from measuring import add_full, asked, cpu_seconds, given, in_a_process, kernel, machine, peak_bytes, put, table

SIZE = (64, 128)
SCENES = 24
PASSES = ("pseudo-labelling", "evaluation", "training samples")


def make_scenes(folder: Path) -> None:
    """Write a few scenes with labels."""
    from cbst_mx.data.image_files import write_label_png, write_rgb_png
    from cbst_mx.data.street_scenes import render_scene
    from cbst_mx.label_space import CITYSCAPES_19

    for index in range(SCENES):
        image, label = render_scene(0, index, domain="target", size=SIZE)
        write_rgb_png(folder / f"{index}.png", image)
        write_label_png(folder / f"{index}_label.png", label, CITYSCAPES_19)


def images_of(scenes: Path, count: int) -> Any:
    """Return a labelled set of `count` images, several of which are the same file."""
    from cbst_mx.data.datasets import LabelledImageSet
    from cbst_mx.label_space import CITYSCAPES_19

    files = [str(scenes / f"{index % SCENES}") for index in range(count)]
    images, labels = ([file + ending for file in files] for ending in (".png", "_label.png"))
    return LabelledImageSet([f"{index:05}" for index in range(count)], images, labels, CITYSCAPES_19, "trainId")


def run_pass(scenes: Path, what: str, count: int) -> dict[str, float]:
    """Do one pass in this process; return its seconds and the peak of the memory."""
    cv2.setNumThreads(1)
    images = images_of(scenes, count)
    with tempfile.TemporaryDirectory(dir=str(scenes)) as folder:
        work = {"pseudo-labelling": pseudo_labels, "evaluation": evaluation, "training samples": training_samples}
        begun = work[what](images, Path(folder))
        fixed = [cpu_seconds(kernel) for _ in range(5)]
        seconds = cpu_seconds(begun)
        fixed += [cpu_seconds(kernel) for _ in range(5)]
    return {"seconds": seconds, "kernel": statistics.median(fixed), "peak": peak_bytes()}


def line(seconds: dict[int, float]) -> tuple[float, float]:
    """Return a and b of the line a + b N whose squared relative errors are least."""
    rows = [(1 / spent, count / spent) for count, spent in seconds.items()]
    once, each = np.linalg.lstsq(np.array(rows), np.ones(len(rows)), rcond=None)[0]
    return float(once), float(each)


def small_network() -> Any:
    """Return a network that has run once."""
    from symbols import get_network
    from symbols.backend import mx

    network = get_network("resnet38", 19, width=1 / 32)
    network.initialize(mx.init.Xavier())
    network(mx.nd.zeros((1, 3, *SIZE))).wait_to_read()
    network.hybridize(static_alloc=True, static_shape=True)
    return network


def pseudo_labels(images: Any, folder: Path) -> Any:
    """Return a labelling pass."""
    from cbst_mx.data.image_files import write_label_png
    from cbst_mx.data.transforms import IMAGENET_MEAN, IMAGENET_STD
    from cbst_mx.evaluation.label_free import GridStatistics
    from cbst_mx.label_space import CITYSCAPES_19
    from cbst_mx.selftrain.selection import label_set
    from cbst_mx.selftrain.target_maps import TargetMaps
    from symbols.backend import mx

    maps = TargetMaps(
        small_network(), images, num_classes=19, folder=folder / "maps", ctx=mx.cpu(), keep="disk",
        mean=IMAGENET_MEAN, std=IMAGENET_STD,
    )  # fmt: skip
    (folder / "labels").mkdir()
    return lambda: label_set(
        maps, maps.collector("paper", sorted_pixels=0), policy="class-balanced", portion=0.2,
        write=lambda name, label: write_label_png(folder / "labels" / f"{name}.png", label, CITYSCAPES_19),
        statistics=GridStatistics(19, CITYSCAPES_19.names),
    )  # fmt: skip


def evaluation(images: Any, folder: Path) -> Any:
    """Return an evaluation."""
    from cbst_mx.data.transforms import IMAGENET_MEAN, IMAGENET_STD
    from cbst_mx.evaluation.evaluate import evaluate_network
    from symbols.backend import mx

    looks = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "ctx": mx.cpu(), "batch_size": 8}
    network = small_network()
    return lambda: evaluate_network(network, images, classes=images.label_space.names, **looks)


def training_samples(images: Any, folder: Path) -> Any:
    """Return an epoch of the loader, two images a batch."""
    from cbst_mx.data.loader import BatchLoader
    from cbst_mx.data.transforms import TrainTransform

    samples = [functools.partial(images.pair, index) for index in range(len(images))]
    loader = BatchLoader(
        samples, TrainTransform(crop=(48, 96), resampling="program"), batch_size=2, seed=0,
        iterations=len(images) // 2,
    )  # fmt: skip
    return lambda: [None for _ in loader]


def open_files(root: Path, files: int) -> dict[str, float]:
    """Open a data set in GTA5's layout, and look at every file; processor seconds since Python's start."""
    from cbst_mx.data import open_labelled
    from cbst_mx.data.image_headers import check_whole
    from cbst_mx.label_space import CITYSCAPES_19

    images = open_labelled("gta5", root, label_space=CITYSCAPES_19)
    opened = time.process_time()
    for path in (*images.image_paths, *images.label_paths):
        check_whole(path)
    assert len(images) == files
    return {"opened": opened, "looked at": time.process_time(), "peak": peak_bytes()}


def worker(scenes: str, what: str, count: str, root: str = "") -> dict[str, float]:
    """Do what the arguments say."""
    return open_files(Path(root), int(count)) if root else run_pass(Path(scenes), what, int(count))


def link_files(scenes: Path, root: Path, files: int) -> None:
    """Make a data set in GTA5's layout of hard links."""
    for folder, ending in (("images", ".png"), ("labels", "_label.png")):
        (root / folder).mkdir(parents=True)
        for index in range(files):
            os.link(scenes / f"{index % SCENES}{ending}", root / folder / f"{index:05}.png")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[100, 300, 1000, 3000])
    parser.add_argument("--files", type=int, default=25_000)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--out", type=Path, help="put the tables between the markers of this page too")
    add_full(parser, repeats=3)
    options = given(parser, worker)
    if options is None:
        return
    with contextlib.ExitStack() as stack:
        scenes = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        make_scenes(scenes)
        found: dict[tuple[str, int], list[dict[str, float]]] = {}
        for repeat in range(options.repeats):
            for count in options.images[:: 1 - 2 * (repeat % 2)]:
                for what in PASSES:
                    found.setdefault((what, count), []).append(in_a_process(__file__, scenes, what, count))
        rows, lines = [], []
        for what in PASSES:
            at = {count: {key: statistics.median(one[key] for one in found[what, count]) for key in ("seconds", "peak")}
                  for count in options.images}  # fmt: skip
            once, each = line({count: one["seconds"] for count, one in at.items()})
            lines.append(f"{what} {once:.2f} s + {1000 * each:.3g} ms an image")
            for count, one in at.items():
                spread = sorted(run["seconds"] for run in found[what, count])
                kernels = statistics.median(run["seconds"] / run["kernel"] for run in found[what, count])
                rows.append(
                    (
                        f"{what}, {count:,}",
                        f"{one['seconds']:.3g}",
                        f"{spread[0]:.3g} to {spread[-1]:.3g}",
                        f"{1000 * one['seconds'] / count:.3g}",
                        f"{kernels / count:.3g}",
                        f"{100 * (one['seconds'] / (once + each * count) - 1):+.1f}",
                        f"{one['peak'] / 1e6:.0f}",
                    )
                )
        root = scenes / "gta5"
        link_files(scenes, root, options.files)
        opened = [in_a_process(__file__, scenes, "open", options.files, root) for _ in range(options.repeats)]
    first, second, peak = (np.median([one[key] for one in opened]) for key in ("opened", "looked at", "peak"))
    head = (
        "pass, images",
        "CPU s",
        "least to most",
        "CPU ms an image",
        "kernels an image",
        "off the line, %",
        "peak memory, MB",
    )
    text = "\n".join(
        (
            f"One thread of {machine('mxnet', 'numpy')}; median of {options.repeats} processes; {asked()}.",
            "",
            table(head, rows),
            "",
            f"Lines: {'; '.join(lines)}.",
            "",
            f"{options.files:,} images with {options.files:,} labels: {first:.1f} CPU s from the start of Python until "
            f"they are opened, {second:.1f} CPU s until every header has been read; {peak / 1e6:.0f} MB.",
        )
    )
    print(text)
    if options.out:
        put(options.out, "growth", text)


if __name__ == "__main__":
    main()
