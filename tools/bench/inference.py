"""Inference: images per second before and now, buffers that stay or do not, and what lower precision costs in mIoU.

python tools/bench/inference.py [--parts speed buffers precision] [--networks fcn8s resnet38] [--full]
                                [--against CHECKOUT] [--demo FOLDER ...] [--out docs/performance.md]

speed: `evaluate`, mirrored as well, and the labels of a video at 1024 x 2048 by the paper's networks at full width with
random parameters, here and, with `--against`, in another checkout of this repository.

buffers: a forward pass with and without memory that MXNet lays out once and keeps (`static_alloc`, `static_shape`), for
images of one size and for two sizes in turns. All ways must give the same bits.

precision: mIoU on the demo's target validation images in float32, fused, bfloat16 and int8, of the networks in
`--demo`, seeds' folders of `make demo`; without it, of a source network that is trained here as the demo trains it.

All on one thread, each measurement a process of its own, in turns.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before the imports

import argparse
import functools
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Iterator

from measuring import (
    ROOT,
    TITLES,
    add_full,
    asked,
    cpu_seconds,
    given,
    in_a_process,
    in_turns,
    machine,
    peak_bytes,
    printed,
    put,
    table,
)

PARTS = ("speed", "buffers", "precision")
CLASSES = 19
BUFFERS = {
    "neither": (False, False),
    "static_alloc": (True, False),
    "and static_shape, as here": (True, True),
}
SIZE = (256, 512)
WIDTHS = {"narrow": 1 / 8, "full": 1.0}
PRECISIONS = {"float32": ("plain", "none"), "float32, fused": ("fused", "none"), "bfloat16": ("plain", "bfloat16"),
              "bfloat16, fused": ("fused", "bfloat16"), "int8": ("int8", "none")}  # fmt: skip
MOVES = 0.2  # mIoU that a form may move and still be called as good


def network_of(name: str, width: float) -> Any:
    """Return a network with random parameters, as the program makes it for inference."""
    from cbst_mx.networks.build import build_network
    from cbst_mx.networks.spec import NetworkSpec
    from symbols.backend import mx

    network = build_network(NetworkSpec(name, CLASSES, {"width": width}), mx.cpu(), seed=0)
    network.collect_params().setattr("grad_req", "null")
    return network


def run_speed(root: str, work: str, name: str, width: str, count: str, cold: str) -> dict[str, float]:
    """Evaluate images or label a video in this process, unless `cold` behind one image that does not count.

    Works in older checkouts too, hence the two ways to label a video.
    """
    import cv2

    from cbst_mx.data import open_labelled
    from cbst_mx.data.transforms import IMAGENET_MEAN, IMAGENET_STD
    from cbst_mx.data.videos import Video
    from cbst_mx.evaluation import predictor as module
    from cbst_mx.evaluation.evaluate import evaluate_network
    from cbst_mx.label_space import CITYSCAPES_19
    from cbst_mx.networks.spec import NetworkSpec
    from symbols.backend import mx

    cv2.setNumThreads(1)
    images = open_labelled(
        "folder", root, label_space=CITYSCAPES_19, split="all", description=Path(root) / "d.yaml"
    )  # fmt: skip
    network = network_of(name, float(width))
    looks = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "ctx": mx.cpu(), "batch_size": 1}

    def evaluate(chosen: Any, flip: bool = True) -> None:
        evaluate_network(network, chosen, classes=CITYSCAPES_19.names, flip=flip, **looks)

    def label() -> None:
        options = {"flip": False, "scales": (1.0,), "combine": "mean", "long_side": None}
        made = module.Predictor(network, NetworkSpec(name, CLASSES), CITYSCAPES_19, mx.cpu(), options, 1)
        video: Iterator[Any] = Video(Path(root) / "video.mp4")
        in_memory = getattr(module, "in_memory", None)
        parts = [video] if in_memory is None else (in_memory([frame]) for frame in video)
        assert sum(1 for part in parts for _ in made.labels(part)) == int(count)

    if not cold:
        evaluate(images.subset([0]), flip=False)
    begin = time.perf_counter()
    cpu = cpu_seconds({"evaluate": lambda: evaluate(images), "video": label}[work])
    return {"cpu": cpu / int(count), "wall": (time.perf_counter() - begin) / int(count), "peak": peak_bytes()}


def run_buffers(name: str, width: str, buffers: str, sizes: str, count: str) -> dict[str, Any]:
    """Run a network on random images, the sizes in turns; the passes of the first turn do not count."""
    from symbols.backend import mx

    static_alloc, static_shape = BUFFERS[buffers]
    network = network_of(name, WIDTHS[width])
    network.hybridize(static_alloc=static_alloc, static_shape=static_shape)
    rows, columns = SIZE
    mx.random.seed(0)
    given = [mx.nd.random.normal(shape=(1, 3, rows, columns - 64 * turn)) for turn in range(int(sizes))]
    found = hashlib.md5(b"".join(network(images).asnumpy().tobytes() for images in given))
    spent = [
        cpu_seconds(lambda images=images: network(images).wait_to_read()) for _ in range(int(count)) for images in given
    ]
    return {"cpu": statistics.median(spent), "peak": peak_bytes(), "found": found.hexdigest()}


def run_precision(root: str, precision: str, *parameters: str) -> dict[str, list[float]]:
    """Evaluate parameter files on the demo's target validation images."""
    import cv2

    cv2.setNumThreads(1)
    from symbols.backend import enable_amp

    inference, amp = PRECISIONS[precision]
    enable_amp(amp)
    from cbst_mx.evaluation.evaluate import evaluate_parameters

    data = {"format": "cityscapes", "root": root, "split": "val"}
    done = [evaluate_parameters(Path(one), data, inference=inference, resampling="linear") for one in parameters]
    return {
        "miou": [100 * one.result["miou"] for one in done],
        "same": [100 * one.agreement.same_class if one.agreement else 100.0 for one in done],
        "int8": [one.agreement.int8 if one.agreement else 0 for one in done],
    }


def worker(what: str, *arguments: str) -> dict[str, Any]:
    """Do in this process what a measurement asks for."""
    return {"speed": run_speed, "buffers": run_buffers, "precision": run_precision}[what](*arguments)


def speed(options: argparse.Namespace, name: str) -> str:
    """Return the table of a network's images per second."""
    from images import make_files

    trees = {"now": ROOT}
    if options.against:
        git = ["git", "-C", str(options.against), "rev-parse", "--short", "HEAD"]
        before = subprocess.run(git, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
        trees = {before: options.against.resolve(), **trees}
    titles = {"evaluate": "evaluate, mirrored as well", "video": "labels of a video"}
    works = {work: titles[work] for work in options.works}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        make_files(data, options.images)

        def once(work: str, tree: Path) -> dict[str, Any]:
            cold = "cold" if options.cold else ""
            asked = json.dumps(["speed", str(data), work, name, str(options.width), str(options.images), cold])
            return printed(sys.executable, __file__, "--worker", asked, PYTHONPATH=str(tree))

        found = in_turns(
            {(work, tree): functools.partial(once, work, where) for work in works for tree, where in trees.items()},
            options.repeats,
        )
    rows = []
    for work, title in works.items():
        each = [found[work, tree] for tree in trees]
        rows.append(
            (
                f"{TITLES[name]}, {title}",
                *(f"{1 / one[clock]:.4f}" for clock in ("cpu", "wall") for one in each),
                *([f"{each[0]['cpu'] / each[-1]['cpu']:.2f}"] if options.against else []),
                *(f"{one['peak'] / 1e9:.1f}" for one in each),
            )
        )
    head = ["images a second, 1024 x 2048"]
    head += [f"{tree}, of the {clock}" for clock in ("processor", "clock") for tree in trees]
    head += ["now / before, processor"] if options.against else []
    head += [f"{tree}, peak GB" for tree in trees]
    behind = "in a new process" if options.cold else "behind one that does not count"
    what = f"width {options.width:g}, images: {options.images} {behind}, median of {options.repeats}"
    return f"{first_line(what)}\n\n{table(head, rows)}"


def buffers(options: argparse.Namespace, name: str) -> str:
    """Return the table of a network's buffers that stay or do not."""
    rows = []
    for width in WIDTHS:
        count = 8 if width == "narrow" else 2
        works: dict[Any, Callable[[], dict[str, Any]]] = {
            (sizes, mode): functools.partial(in_a_process, __file__, "buffers", name, width, mode, sizes, count)
            for sizes in (1, 2)
            for mode in BUFFERS
        }
        found = in_turns(works, options.repeats)
        for sizes in (1, 2):
            assert len(set().union(*(found[sizes, mode]["found"] for mode in BUFFERS))) == 1, "bits must be the same"
            where = f"width {WIDTHS[width]:g}, {SIZE[0]} x {SIZE[1]}{' and narrower in turns' if sizes > 1 else ''}"
            for mode in BUFFERS:
                one = found[sizes, mode]
                against = 100 * (one["cpu"] / found[sizes, "neither"]["cpu"] - 1)
                rows.append(
                    (f"{where}: {mode}", f"{1000 * one['cpu']:.4g}", f"{against:+.1f}", f"{one['peak'] / 1e6:.0f}")
                )
    head = (f"{TITLES[name]}, a forward pass", "CPU ms", "against neither, %", "peak memory, MB")
    return f"{first_line(f'median of {options.repeats} processes')}\n\n{table(head, rows)}"


def precision(options: argparse.Namespace, name: str) -> str:
    """Return the table of mIoU."""
    del name  # the demo has one network
    with tempfile.TemporaryDirectory() as folder:
        seeds = options.demo or [trained_demo(Path(folder))]
        rows, moves = [], {form: [] for form in PRECISIONS if form != "float32"}
        for seed in seeds:
            start = seed / "source" / "source" / "parameters.params"
            networks = {"source network": start}
            for index in range(1, len([*seed.glob("cbst/round-*/parameters.params")]) + 1):
                networks[f"round {index}"] = seed / "cbst" / f"round-{index}" / start.name
            root = seed / "data" / "cityscapes"
            found: dict[str, Any] = {
                form: in_a_process(__file__, "precision", root, form, *networks.values()) for form in PRECISIONS
            }
            base, near = found["float32"]["miou"], found["int8"]
            moved = {form: [one - other for one, other in zip(found[form]["miou"], base)] for form in moves}
            for form in moves:
                moves[form] += moved[form]
            rows += [
                (
                    f"{seed.name}, {title}" if len(seeds) > 1 else title,
                    f"{base[index]:.2f}",
                    *(f"{moved[form][index]:+.2f}" for form in moves),
                    f"{near['same'][index]:.2f}",
                    f"{near['int8'][index]}",
                )
                for index, title in enumerate(networks)
            ]
    most = {form: max(map(abs, moved)) for form, moved in moves.items()}
    below = ", ".join(
        f"{form} {most[form]:.2f} ({'below' if most[form] < MOVES else 'not below'} {MOVES})" for form in most
    )
    head = ("the demo, mIoU in %", "float32", *most, "int8: same class, %", "convolutions in int8")
    return f"{first_line('mirrored as well')}\n\n{table(head, rows)}\n\nMoved at most: {below}."


def trained_demo(folder: Path) -> Path:
    """Write scenes into `folder`, train a source network as the demo does, and return it: it is like a seed's."""
    import rounds as whole_rounds

    from cbst_mx.demo import COUNTS, SIZE

    counts = (COUNTS["source_count"], COUNTS["target_count"], COUNTS["target_val_count"])
    setting = whole_rounds.DEMO._replace(size=SIZE, images=counts, crop=SIZE, before=())
    whole_rounds.prepare(setting, folder)
    return folder


def first_line(what: str) -> str:
    """Return the line above a table: machine, versions, what, command and day."""
    return f"One thread of {machine('mxnet', 'numpy')}; {what}; {asked()}."


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--networks", nargs="+", choices=tuple(TITLES), default=["fcn8s"])
    parser.add_argument("--against", type=Path, help="another checkout of this repository, whose inference runs too")
    parser.add_argument("--images", type=int, default=1, help="images and frames of the speed")
    parser.add_argument("--works", nargs="+", choices=("evaluate", "video"), default=("evaluate", "video"))
    parser.add_argument("--cold", action="store_true", help="count the first image of a process: it fits buffers too")
    parser.add_argument("--width", type=float, default=1.0, help="of the networks of the speed")
    parser.add_argument("--repeats", type=int, default=1, help="processes of each measurement, in turns")
    parser.add_argument("--demo", type=Path, nargs="+", help="seeds' folders of make demo, such as runs/demo/seed-0")
    parser.add_argument("--out", type=Path, help="put the tables between the markers of this page too")
    add_full(parser, networks=tuple(TITLES), images=2)
    options = given(parser, worker)
    if options is None:
        return
    for part in options.parts:
        needs = {"speed": "against", "precision": "demo"}.get(part)
        kept = needs is not None and getattr(options, needs) is None
        for name in options.networks if part != "precision" else [""]:
            text = {"speed": speed, "buffers": buffers, "precision": precision}[part](options, name)
            print(f"{text}\n", flush=True)
            if options.out and kept:
                print(f"The page keeps the table it has, which is of --{needs}.\n", flush=True)
            elif options.out:
                put(options.out, f"inference {part} {name}".strip(), text)


if __name__ == "__main__":
    main()
