"""Where the time of a round goes: every stage of a labelling pass, of a training epoch and of an evaluation.

python tools/bench/pipeline.py [--networks fcn8s resnet38] [--repeats 7] [--quick] [--out docs/performance.md]

Two settings: the demo's network and generated scenes of its size, and the paper's networks at 1024 x 2048 (crops of 504
x 504). Images are PNGs, as those of GTA5 and Cityscapes are. All on one thread, so that processor seconds say what the
stages cost wherever they run; threads that overlap them make the wall-clock time shorter, not the work. Every stage
calls the function that the program calls.

The floor is the least that this machine can take: the bytes that have to be read and written by its memory bandwidth,
or the multiplications and additions by its rate in a large matrix product, both measured in the same run.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before the imports

import argparse
import functools
import json
import tempfile
from itertools import count
from pathlib import Path
from typing import Any, Callable, NamedTuple

import cv2
import numpy as np
from measuring import TITLES, asked, cpu_seconds, interleaved, machine, photograph, put, table

from cbst_mx.data.image_files import read_label, read_rgb, write_label_png, write_rgb_png
from cbst_mx.data.street_scenes import render_scene
from cbst_mx.data.transforms import IMAGENET_MEAN, IMAGENET_STD, TrainTransform, normalise
from cbst_mx.evaluation.confusion import confusion_matrix
from cbst_mx.evaluation.label_free import GridStatistics
from cbst_mx.label_space import CITYSCAPES_19
from cbst_mx.selftrain.class_maps import ClassMaps
from cbst_mx.selftrain.counting import StreamingThresholds
from cbst_mx.selftrain.network_maps import stride_probabilities
from cbst_mx.selftrain.pseudo_labels import confidence, select
from cbst_mx.training.losses import BatchLoss
from cbst_mx.training.optimiser import new_trainer
from cbst_mx.training.steps import plain_step
from symbols import get_network
from symbols.backend import gluon, mx

CLASSES = 19
PORTION = 0.2
COUNT, SELECT = "upsample + count", "select + write"


class Setting(NamedTuple):
    """A network, the images it sees, and the crops and batches it is trained on."""

    title: str
    network: str
    options: dict[str, Any]
    size: tuple[int, int]
    crop: tuple[int, int]
    resampling: str


class Stage(NamedTuple):
    """A stage of one image: seconds of the processor, and the least number of bytes or operations."""

    name: str
    seconds: float
    bytes: float = 0
    operations: float = 0
    network: bool = False


def operations(network: gluon.HybridBlock, size: tuple[int, int]) -> float:
    """Return the multiplications and additions of a network's convolutions for one image."""
    symbol = network(mx.sym.var("data"))
    inner = symbol.get_internals()
    _, shapes, _ = inner.infer_shape(data=(1, 3, *size))
    known = dict(zip(inner.list_outputs(), shapes))
    nodes = json.loads(symbol.tojson())["nodes"]
    total = 0.0
    for node in nodes:
        if node["op"] in ("Convolution", "Deconvolution"):
            before, weight = (nodes[index]["name"] for index, *_ in node["inputs"][:2])
            # every weight meets every pixel of what a convolution gives, and of what its transpose takes
            meets = node["name"] if node["op"] == "Convolution" else before
            places, weights = (known.get(name + "_output", known.get(name)) for name in (meets, weight))
            total += 2 * np.prod(weights) * np.prod(places[2:])
    return float(total)


def ceilings() -> tuple[float, float]:
    """Return bytes a second in a copy of large arrays, and operations a second in a large matrix product."""
    block, other = np.ones(1 << 26, np.float32), np.ones(1 << 26, np.float32)  # pages of their own
    spent = cpu_seconds(lambda: np.copyto(other, block), 7)
    square = mx.nd.random.normal(shape=(2048, 2048))
    layer = {"num_hidden": 2048, "no_bias": True}  # by oneDNN, which computes the convolutions too
    product = cpu_seconds(lambda: mx.nd.FullyConnected(square, square, **layer).wait_to_read(), 5)
    return 2 * block.nbytes / spent, 2 * 2048.0**3 / product


def probabilities(setting: Setting, stride: int) -> np.ndarray:
    """Return maps at the network's stride as a trained network has them, float32 (C, h, w): classes in regions."""
    rng = np.random.default_rng(0)
    cells = (setting.size[0] // stride, setting.size[1] // stride)
    rough = rng.standard_normal((CLASSES, cells[0] // 8 + 2, cells[1] // 8 + 2)).astype(np.float32)
    logits = np.stack([cv2.resize(plane, cells[::-1], interpolation=cv2.INTER_CUBIC) for plane in rough]) * 4
    exponentials = np.exp(logits - logits.max(axis=0))
    return exponentials / exponentials.sum(axis=0)


def stages(setting: Setting, folder: Path, repeats: int) -> dict[str, list[Stage]]:
    """Return the stages of each part of a round, for one image."""
    height, width = setting.size
    pixels = height * width
    if height < 512:
        image, label = render_scene(0, 0, domain="target", size=setting.size)
    else:
        image, label = photograph(setting.size), render_scene(0, 0, domain="target", size=(512, 1024))[1]
        label = label.repeat(height // 512, axis=0).repeat(width // 1024, axis=1)
    paths = folder / "image.png", folder / "label.png", folder / "made.png"
    write_rgb_png(paths[0], image)
    write_label_png(paths[1], label, CITYSCAPES_19)
    network = get_network(setting.network, CLASSES, **setting.options)
    network.initialize(mx.init.Xavier(rnd_type="gaussian", factor_type="in", magnitude=2))
    network(mx.nd.zeros((1, 3, 32, 32)))
    network.hybridize(static_alloc=True, static_shape=True)

    stored = probabilities(setting, network.stride)
    seen = ClassMaps(stored, setting.size)
    sure, predicted = confidence(seen)
    state = StreamingThresholds(CLASSES)
    state.add("image", sure, predicted)
    if state.refine(["class-balanced"], [PORTION]):
        state.add("image", sure, predicted)
    thresholds = state.thresholds("class-balanced", PORTION)
    transform = TrainTransform(crop=setting.crop, resampling=setting.resampling)

    counted, statistics, numbers = StreamingThresholds(CLASSES), GridStatistics(CLASSES, CITYSCAPES_19.names), count()

    def first_look() -> None:
        name, pair = str(next(numbers)), confidence(ClassMaps(stored, setting.size))
        counted.add(name, *pair)  # of all images of a set in one
        statistics.add_pixels(name, *pair)

    def second_look() -> None:
        confidence(ClassMaps(stored, setting.size))

    def selection() -> None:
        (chosen,) = select(ClassMaps(stored, setting.size), [thresholds])
        np.bincount(chosen.reshape(-1), minlength=256)
        write_label_png(paths[2], chosen, CITYSCAPES_19)

    def to_device() -> None:
        mx.nd.array(np.stack([normalise(image, IMAGENET_MEAN, IMAGENET_STD)])).wait_to_read()

    def mirrored() -> None:
        mx.nd.array(np.stack([normalise(image, IMAGENET_MEAN, IMAGENET_STD)])[..., ::-1]).wait_to_read()

    def look(flip: bool) -> None:
        looks = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "ctx": mx.cpu(), "resampling": setting.resampling}
        stride_probabilities(network, [image], flip=flip, **looks)[0].wait_to_read()

    def read_truth() -> np.ndarray:
        return CITYSCAPES_19.encode(read_label(paths[1]), "trainId", "label")

    works: dict[str, Callable[[], Any]] = {
        "decode": lambda: read_rgb(paths[0]),
        "normalise": to_device,
        "mirrored": mirrored,
        COUNT: first_look,
        "again in critical bins": second_look,
        SELECT: selection,
        "label": read_truth,
        "argmax": lambda: confidence(ClassMaps(stored, setting.size)),
        "confusion": functools.partial(confusion_matrix, label, predicted, CLASSES),
    }
    spent = interleaved(works, repeats)
    draws = iter(range(1 << 20))
    crops = cpu_seconds(lambda: transform(image, label, np.random.default_rng(next(draws))), 4 * repeats)
    spent["transform"] = crops + cpu_seconds(lambda: normalise(image[: setting.crop[0], : setting.crop[1]]), repeats)

    large = pixels > 1 << 20
    if not large:
        look(False)
    # what the program calls, without what stands in a line of its own
    forward = cpu_seconds(lambda: look(False), 1 if large else repeats) - spent["normalise"]
    both_ways = cpu_seconds(lambda: look(True), 1 if large else repeats) - spent["normalise"] - spent["mirrored"]
    trainer = new_trainer(network.collect_params(), {"learning_rate": 1e-4, "momentum": 0.9})
    batch = 1 if large else 8
    crop = mx.nd.random.normal(shape=(batch, 3, *setting.crop))
    truth = np.zeros((batch, *setting.crop), np.float32)
    rng = np.random.default_rng(0)

    def step() -> None:
        with BatchLoss.of(network) as loss_of:
            plain_step(network, [crop], truth, loss_of, rng=rng)
        trainer.step(batch)
        mx.nd.waitall()

    step()
    training = cpu_seconds(step, 1 if large else repeats) / batch

    png, mask = paths[0].stat().st_size, paths[1].stat().st_size
    full, part = operations(network, setting.size), operations(network, setting.crop)
    decode = Stage("decode PNG", spent["decode"], png + 3 * pixels)
    inputs_of = Stage("normalise, to the device", spent["normalise"], (3 + 12) * pixels)
    forward_of = Stage("forward", forward, operations=full, network=True)
    twice = Stage("forward, twice (flip)", both_ways, operations=2 * full, network=True)
    both = inputs_of._replace(seconds=spent["normalise"] + spent["mirrored"], bytes=(3 + 24) * pixels)
    return {
        "pseudo-labelling, an image": [
            decode,
            both,
            twice,
            Stage(COUNT, spent[COUNT], stored.nbytes + 10 * pixels),
            Stage("again in critical bins", spent["again in critical bins"], stored.nbytes + 5 * pixels),
            Stage(SELECT, spent[SELECT], stored.nbytes + 2 * pixels),
        ],
        "training, an image of an epoch": [
            decode,
            Stage("decode label", spent["label"], mask + 2 * pixels),
            Stage("transform, normalise", spent["transform"], (3 + 4 + 12) * setting.crop[0] * setting.crop[1]),
            Stage("train step", training, operations=3 * part, network=True),
        ],
        "evaluation, an image": [
            decode,
            inputs_of,
            forward_of,
            Stage("upsample + argmax", spent["argmax"], stored.nbytes + 5 * pixels),
            Stage("decode label", spent["label"], mask + 2 * pixels),
            Stage("confusion matrix", spent["confusion"], 2 * pixels),
        ],
    }


def report(setting: Setting, found: dict[str, list[Stage]], bandwidth: float, rate: float) -> str:
    """Return the tables of one setting."""
    lines = [f"### {setting.title}", ""]
    for part, listed in found.items():
        total = sum(stage.seconds for stage in listed)
        rows = []
        for stage in listed:
            floor = stage.bytes / bandwidth + stage.operations / rate
            share = 100 * stage.seconds / total
            mark = " **" if not stage.network and share >= 10 else ""
            rows.append(
                (
                    stage.name,
                    f"{1000 * stage.seconds:.4g}",
                    f"{mark}{share:.2g}{mark.strip()}",
                    f"{1000 * floor:.2g}",
                    f"{stage.seconds / floor:.2g}",
                )
            )
        rows.append(("all", f"{1000 * total:.4g}", "100", "", ""))
        lines += [table((part, "CPU ms", "share, %", "floor, ms", "times the floor"), rows), ""]
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=["fcn8s"], choices=["fcn8s", "resnet38"])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="the demo's setting only")
    parser.add_argument("--out", type=Path, help="put the tables between the markers of this page too")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    demo = {"width": 0.125, "batch_norm": "batch", "dropout": 0.0, "upsampling": "learned"}
    settings = [Setting("The demo: FCN8s, width 1/8, 96 x 192", "fcn8s", demo, (96, 192), (64, 160), "linear")]
    for name in () if options.quick else options.networks:
        settings.append(Setting(f"{TITLES[name]}, width 1, 1024 x 2048", name, {}, (1024, 2048), (504, 504), "program"))
    bandwidth, rate = ceilings()
    head = (
        f"One thread of {machine('mxnet', 'numpy', 'opencv-python', 'imagecodecs', 'Pillow')}; memory "
        f"{bandwidth / 1e9:.1f} GB/s (reads and writes of a copy), float32 products {rate / 1e9:.0f} GFLOP/s; median "
        f"of {options.repeats}, networks at 1024 x 2048 once; {asked()}."
    )
    parts = [head, ""]
    for setting in settings:
        with tempfile.TemporaryDirectory() as folder:
            parts.append(report(setting, stages(setting, Path(folder), options.repeats), bandwidth, rate))
    text = "\n".join(parts).rstrip()
    print(text)
    if options.out:
        put(options.out, "pipeline", text)


if __name__ == "__main__":
    main()
