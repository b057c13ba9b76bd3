"""Sharpness and speed of ways to resize images, against Lanczos' kernel when shrinking and a cubic one when enlarging.

python tools/bench/resampling.py [--images FOLDER] [--count 8] [--repeats 5] [--drafts]
python tools/bench/resampling.py --scores [--camvid FOLDER] [--seeds 0 1 2] [--out docs/benchmarks-resampling.md]

Sharpness is the root mean square of the grey values' Laplacian as a share of the reference's: Pillow's Lanczos to
fewer pixels and Pillow's bicubic to more, in floating point and rounded once. Deviation is the mean difference in grey
levels. Factors are those of training crops (0.7 to 1.3) and of Cityscapes images for pseudo-labelling (1850/2048).
Speed is of one resize, and of a training sample by the loader: read from a PNG, scaled, cut to half the image's sides,
mirrored and normalised; both on one thread. Without a folder the images are generated street scenes of GTA5's size.
With --drafts only: the same images as JPEGs, and a picture of 3024 x 4032 pixels, read and resized to parts of their
size by "program" and by "draft", in processor seconds and in turns, and how far the results are apart in grey levels.

With --scores only: what "draft" moves in mIoU. The demo, and with --camvid the experiment camvid-dusk-cbst, with a
network that sees JPEGs of quality 92 at half their size, the crops of training as well: evaluated by both at the same
parameters, those of the source network and of the last round by "program", and adapted by both from one source network.
"""

from __future__ import annotations

import argparse
import functools
import io
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, NamedTuple

import cv2
import numpy as np
from measuring import ROOT, asked, interleaved, machine, photograph, put, table
from PIL import Image

from cbst_mx.data.image_files import read_draft, read_rgb, write_rgb_png
from cbst_mx.data.loader import BatchLoader
from cbst_mx.data.photographs import find_photographs
from cbst_mx.data.street_scenes import Shift, render_scene, write_demo_data
from cbst_mx.data.transforms import TrainTransform, resize_image

SIZE = (1052, 1914)  # pixels of a GTA5 image
FACTORS = (0.7, 0.85, 1850 / 2048, 1.15, 1.3)


def opencv(shrinking: int, enlarging: int) -> Callable[[np.ndarray, tuple[int, int]], np.ndarray]:
    """Return a resize by OpenCV's interpolations."""

    def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        kind = shrinking if size[0] < image.shape[0] else enlarging
        return cv2.resize(image, size[::-1], interpolation=kind)

    return resize


WAYS: dict[str, Callable[[np.ndarray, tuple[int, int]], np.ndarray]] = {
    "linear": resize_image,
    "area, cubic": opencv(cv2.INTER_AREA, cv2.INTER_CUBIC),
    "lanczos4, cubic": opencv(cv2.INTER_LANCZOS4, cv2.INTER_CUBIC),
    "linear, cubic": opencv(cv2.INTER_LINEAR, cv2.INTER_CUBIC),
    "program": lambda image, size: resize_image(image, size, "program"),
}


def reference(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the image resized in floating point, rounded once."""
    kernel = Image.Resampling.LANCZOS if size[0] < image.shape[0] else Image.Resampling.BICUBIC
    planes = [
        np.asarray(Image.fromarray(plane.astype(np.float32)).resize(size[::-1], kernel))
        for plane in image.transpose(2, 0, 1)
    ]
    return np.clip(np.rint(np.stack(planes, axis=-1)), 0, 255).astype(np.uint8)


def energy(image: np.ndarray) -> float:
    """Return the root mean square of the Laplacian of the grey values."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return float(np.sqrt(np.square(cv2.Laplacian(grey, cv2.CV_32F)).mean()))


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    """Return the median time of `repeats` calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def photographs(folder: Path | None, count: int) -> list[np.ndarray]:
    """Return images of a folder, evenly spread, or generated scenes."""
    if folder is None:
        return [render_scene(0, index, domain="source", size=SIZE)[0] for index in range(count)]
    found, _ = find_photographs([folder])
    chosen = np.linspace(0, len(found) - 1, min(count, len(found))).astype(int)
    return [read_rgb(found.image_paths[index]) for index in chosen]


def each(work: Callable[[Path], object], paths: list[Path]) -> None:
    """Do the work for each path."""
    for path in paths:
        work(path)


def drafts(images: list[np.ndarray], repeats: int) -> None:
    """Print rates of JPEGs that are resized whole and from a draft, and the difference between the two."""
    for sort, kind in ((images, "given"), ([photograph((3024, 4032))], "large")):
        height, width = sort[0].shape[:2]
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / f"{index}.jpg" for index in range(len(sort))]
            for path, image in zip(paths, sort):
                Image.fromarray(image).save(path, quality=92)
            for part in (2, 3, 4, 8):
                size = (height // part, width // part)

                def whole(path: Path, size: tuple[int, int] = size) -> np.ndarray:
                    return resize_image(read_rgb(path), size, "program")

                def draft(path: Path, size: tuple[int, int] = size) -> np.ndarray:
                    return resize_image(read_draft(path, lambda *_: size), size, "draft")

                apart = [np.abs(whole(path).astype(int) - draft(path)) for path in paths]
                largest, mean = max(one.max() for one in apart), np.mean([one.mean() for one in apart])
                works = {way.__name__: functools.partial(each, way, paths) for way in (whole, draft)}
                rates = {name: len(paths) / spent for name, spent in interleaved(works, repeats).items()}
                print(
                    f"| {kind}, {height} x {width} to 1/{part} | {rates['whole']:.1f} | {rates['draft']:.1f} | "
                    f"{rates['draft'] / rates['whole']:.1f} | {largest} | {mean:.2f} |"
                )


class Halved(NamedTuple):
    """An experiment whose network sees images at half their size, and how its data come into a folder."""

    title: str
    name: str  # of the experiment
    long_side: int
    changes: tuple[str, ...]
    write: Callable[[Path, int, int], None]  # folder, seed, how many times larger than the network's input


def as_jpeg(path: Path) -> None:
    """Make a JPEG of an image, under its old name: files are read as what they hold."""
    content = io.BytesIO()
    Image.fromarray(read_rgb(path)).save(content, format="JPEG", quality=92)
    path.write_bytes(content.getvalue())


def write_scenes(folder: Path, seed: int, factor: int) -> None:
    """Write the demo's scenes larger, those of the target as JPEGs; at more than twice only those to be evaluated."""
    from cbst_mx import demo

    counts = {name: count for name, count in demo.COUNTS.items() if factor == 2 or name == "target_val_count"}
    size = (factor * demo.SIZE[0], factor * demo.SIZE[1])
    write_demo_data(folder, **{**dict.fromkeys(demo.COUNTS, 0), **counts}, size=size, seed=seed, shift=Shift())
    for path in (folder / "cityscapes" / "leftImg8bit").rglob("*.png"):
        as_jpeg(path)


def write_camvid(folder: Path, seed: int, factor: int, *, camvid: Path) -> None:
    """Write CamVid, its images as JPEGs."""
    for path in camvid.rglob("*.png"):
        target = folder / "camvid" / path.relative_to(camvid)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        if not path.parent.name.endswith("annot"):
            as_jpeg(target)


def halved(camvid: Path | None) -> list[Halved]:
    """Return what is scored."""
    scale = "augmentation.scale=[0.4,0.65]"
    found = [Halved("scenes", "demo", 160, (scale,), write_scenes)]
    if camvid is not None:
        changes = ("augmentation.crop=[64,80]", "augmentation.scale=[0.35,0.65]")
        write = functools.partial(write_camvid, camvid=camvid)
        found.append(Halved("photographs", "camvid-dusk-cbst", 120, changes, write))
    return found


def run(one: Halved, seed: int, kind: str, data: Path, out: Path, *changes: str) -> tuple[Any, list[float]]:
    """Run the experiment; return the run and the mIoU of its stages in percent."""
    from cbst_mx.config import load_experiment
    from cbst_mx.rounds import Run

    sides = (f"{part}.long_side={one.long_side}" for part in ("self_training", "evaluation"))
    always = (f"seed={seed}", f"resampling={kind}", *sides, *one.changes)
    experiment = load_experiment(ROOT / "experiments" / f"{one.name}.yaml", (*always, *changes))
    done = Run(experiment, out, data_root=data)
    return done, [100 * stage["evaluation"]["target"]["miou"] for stage in done.run()["stages"]]


def both(parameters: Path, images: Any, long_side: int) -> tuple[list[float], float]:
    """Return the mIoU by "program" and by "draft" and the share of pixels whose class moves, all in percent."""
    from cbst_mx.evaluation.confusion import confusion_matrix, mean_iou
    from cbst_mx.networks.parameters import load_network
    from cbst_mx.selftrain.network_maps import predictions
    from symbols.backend import mx

    network, spec, space = load_network(parameters, mx.cpu())
    looks = {"mean": spec.mean, "std": spec.std, "ctx": mx.cpu(), "flip": True, "long_side": long_side}
    found = [
        [classes for _, classes in predictions(network, images, resampling=kind, **looks)]
        for kind in ("program", "draft")
    ]
    truth = [images.label(index) for index in range(len(images))]
    matrices = (sum(confusion_matrix(*pair, space.num_classes) for pair in zip(truth, maps)) for maps in found)
    moved = np.mean([(one != other).mean() for one, other in zip(*found)])
    return [100 * mean_iou(matrix) for matrix in matrices], 100 * float(moved)


def score(one: Halved, seed: int, folder: Path) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    """Return the rows of a seed: both kinds at the same parameters, and adapted by each."""
    from cbst_mx.data import open_labelled

    one.write(folder / "data", seed, 2)
    source, _ = run(one, seed, "program", folder / "data", folder / "source", "self_training.rounds=0")
    start, images, title = source.dir.stage(0).parameters, source.validation["target"], f"{one.title}, seed {seed}"
    begin = ("source_training=null", f"initial_parameters={start}")
    kinds = {kind: run(one, seed, kind, folder / "data", folder / kind, *begin) for kind in ("program", "draft")}
    ends = [stages[-1] for _, stages in kinds.values()]
    made, stages = kinds["program"]
    scored = {f"{title}, 1/2, source network": (start, images)}
    for factor in (3, 4, 8) if one.write is write_scenes else ():
        root = folder / str(factor)
        one.write(root, seed, factor)
        larger = open_labelled("cityscapes", root / "cityscapes", label_space=images.label_space, split="val")
        scored[f"{title}, 1/{factor}, source network"] = start, larger
    last = len(stages) - 1
    scored[f"{title}, 1/2, round {last}"] = made.dir.stage(last).parameters, images
    rows = []
    for name, (parameters, seen) in scored.items():
        (whole, draft), moved = both(parameters, seen, one.long_side)
        rows.append((name, f"{whole:.2f}", f"{draft:.2f}", f"{draft - whole:+.2f}", f"{moved:.2f}"))
    return rows, (title, f"{stages[0]:.2f}", *(f"{end:.2f}" for end in ends), f"{ends[1] - ends[0]:+.2f}")


def scores(options: argparse.Namespace) -> None:
    """Print what "draft" moves in mIoU."""
    same, adapted = [], []
    for one in halved(options.camvid):
        for seed in options.seeds:
            with tempfile.TemporaryDirectory() as folder:
                rows, row = score(one, seed, Path(folder))
            same += rows
            adapted.append(row)
            print(*rows, row, sep="\n", file=sys.stderr)
    heads = (
        ("same parameters, mIoU in %", "program", "draft", "difference", "pixels of another class, %"),
        ("adapted by CBST, mIoU in %", "source network", "program", "draft", "difference"),
    )
    first = f"{machine('mxnet', 'numpy', 'simplejpeg', 'Pillow')}; {asked()}."
    text = "\n\n".join([first, *(table(head, rows) for head, rows in zip(heads, (same, adapted)))])
    print(text)
    if options.out:
        put(options.out, "draft scores", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--drafts", action="store_true")
    parser.add_argument("--scores", action="store_true")
    parser.add_argument("--camvid", type=Path, help="a folder of CamVid, for scores of photographs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="put the scores between the markers of this page too")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    if options.scores:
        scores(options)
        return
    images = photographs(options.images, options.count)
    print(f"{len(images)} images, the first of {images[0].shape[0]} x {images[0].shape[1]}")
    if options.drafts:
        drafts(images, options.repeats)
        return
    for factor in FACTORS:
        print(f"factor {factor:.3f}")
        for name, resize in WAYS.items():
            shares, deviations, times = [], [], []
            for image in images:
                size = (round(image.shape[0] * factor), round(image.shape[1] * factor))
                found, best = resize(image, size), reference(image, size)
                shares.append(energy(found) / energy(best))
                deviations.append(np.abs(found.astype(int) - best).mean())
                times.append(milliseconds(functools.partial(resize, image, size), options.repeats))
            print(
                f"  {name:16} sharpness {np.mean(shares):.3f}  deviation {np.mean(deviations):.2f}  "
                f"{np.mean(times):.2f} ms"
            )
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{index}.png" for index in range(len(images))]
        for path, image in zip(paths, images):
            write_rgb_png(path, image)
        for name in ("linear", "program"):
            print(f"training sample, {name}: {milliseconds(functools.partial(load, paths, name), 3) / 32:.2f} ms")


def load(paths: list[Path], resampling: str) -> None:
    """Make a batch of 32 training samples."""

    def sample(path: Path) -> tuple[np.ndarray, np.ndarray]:
        image = read_rgb(path)
        return image, np.zeros(image.shape[:2], np.uint8)

    height, width = read_rgb(paths[0]).shape[:2]
    transform = TrainTransform(crop=(height // 2, width // 2), resampling=resampling)
    samples = [functools.partial(sample, path) for path in paths] * 32
    for _ in BatchLoader(samples, transform, batch_size=1, seed=0, iterations=32):
        pass


if __name__ == "__main__":
    main()
