"""Exact class-balanced selection against the ways it is usually done, all in one run.

python tools/bench/selection.py [--images 24] [--size 1024 2048] [--repeats 3] [--out docs/benchmarks-selection.md]

The maps are generated: 19 classes at stride 8, regions of a few hundred pixels with blurred borders, classes of very
unequal size. Peers, written here after the descriptions of their data structures:

(a) arrays per class grown by append, every 4th value, Python's sorted; its whole pass also upsamples class by class
    (bicubic), saves every map at full size and reads it back for counting and for selecting;
(b) lists of floats per class, sorted;
(c) one array per class, numpy.partition.

The peers' whole pass keeps every map at full size on the disk: 159 MB an image.
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, List, Tuple

import cv2
import numpy as np
from measuring import asked, machine, put, table
from scipy import ndimage

from cbst_mx.data.image_files import write_label_png
from cbst_mx.label_space import CITYSCAPES_19
from cbst_mx.labelling import MapFolder, run
from cbst_mx.selftrain.class_maps import ClassMaps
from cbst_mx.selftrain.counting import StreamingThresholds
from cbst_mx.selftrain.pseudo_labels import confidence, select
from cbst_mx.selftrain.thresholds import rank

Row = Tuple[str, ...]
CLASSES = 19
STRIDE = 8
PORTION = 0.2


def generated_map(seed: int, size: tuple[int, int], *, noise: bool = False) -> np.ndarray:
    """Return probabilities at stride 8, float32 (19, H / 8, W / 8); with `noise`, every cell by itself."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((CLASSES, size[0] // STRIDE, size[1] // STRIDE))
    if not noise:
        coarse = np.stack([ndimage.gaussian_filter(plane, 12) for plane in logits])
        fine = np.stack([ndimage.gaussian_filter(plane, 1) for plane in logits])
        logits = 14 * coarse / coarse.std() + 2 * fine / fine.std()
        logits -= np.linspace(0, 20, CLASSES)[:, None, None]  # from the largest class to the smallest
    exponentials = np.exp(logits - logits.max(axis=0))
    return (exponentials / exponentials.sum(axis=0)).astype(np.float32)


# ----------------------------------------------------------------------------------- thresholds from confidences alone

Images = List[Tuple[np.ndarray, np.ndarray]]  # confidence float32 and predicted class uint8, (H, W) each


def ours(images: Images) -> tuple[np.ndarray, StreamingThresholds]:
    """Count, count again in the critical bins, read the thresholds."""
    state = StreamingThresholds(CLASSES)
    for index, image in enumerate(images):
        state.add(str(index), *image)
    if state.refine(["class-balanced"], [PORTION]):
        for index, image in enumerate(images):
            state.add(str(index), *image)
    return state.thresholds("class-balanced", PORTION).values, state


def ours_on_two_threads(images: Images) -> np.ndarray:
    """Do the same with two states, each with half of the images and a thread of its own, that are merged."""
    halves = [list(enumerate(images))[::2], list(enumerate(images))[1::2]]

    def count(part: StreamingThresholds, half: list[tuple[int, Any]]) -> StreamingThresholds:
        for index, image in half:
            part.add(str(index), *image)
        return part

    state = StreamingThresholds(CLASSES)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(2):
            for part in pool.map(count, [state.part(), state.part()], halves):
                state.merge(part)
            if not state.refine(["class-balanced"], [PORTION]):
                break
    return state.thresholds("class-balanced", PORTION).values


def appended(images: Images, step: int) -> np.ndarray:
    """Peer (a): arrays that grow by append, every `step`-th value, sorted by Python."""
    pools = [array("f") for _ in range(CLASSES)]
    for value, predicted in images:
        for index, pool in enumerate(pools):
            pool.extend(value[predicted == index][::step].tolist())
    return ranked([sorted(pool, reverse=True) for pool in pools])


def listed(images: Images) -> np.ndarray:
    """Peer (b): lists of floats."""
    pools: list[list[float]] = [[] for _ in range(CLASSES)]
    for value, predicted in images:
        for index, pool in enumerate(pools):
            pool += value[predicted == index].tolist()
    for pool in pools:
        pool.sort(reverse=True)
    return ranked(pools)


def partitioned(images: Images) -> np.ndarray:
    """Peer (c): one array per class and numpy.partition."""
    limits = []
    for index in range(CLASSES):
        pool = np.concatenate([value[predicted == index] for value, predicted in images])
        position = rank(PORTION, len(pool))
        limits.append(np.partition(pool, len(pool) - position)[len(pool) - position] if position else np.inf)
    return np.array(limits, dtype=np.float32)


def ranked(pools: list[list[float]]) -> np.ndarray:
    """Return the value of the wanted rank of sorted pools."""
    positions = [rank(PORTION, len(pool)) for pool in pools]
    limits = [pool[position - 1] if position else np.inf for pool, position in zip(pools, positions)]
    return np.array(limits, dtype=np.float32)


# ------------------------------------------------------------------------------------------------------ the whole pass


def whole_pass_of_a(folder: Path, out: Path, size: tuple[int, int]) -> None:
    """Peer (a) from stride-8 maps to PNGs, with every map at full size on the disk."""
    out.mkdir()
    pools = [array("f") for _ in range(CLASSES)]
    names = sorted(folder.glob("*.npy"))
    for path in names:
        small = np.load(path)
        full = np.empty((CLASSES, *size), dtype=np.float32)
        for index, plane in enumerate(small):
            full[index] = cv2.resize(plane, size[::-1], interpolation=cv2.INTER_CUBIC)
        np.save(out / path.name, full)
    for path in names:
        full = np.load(out / path.name)
        value, predicted = full.max(axis=0), full.argmax(axis=0)
        for index, pool in enumerate(pools):
            pool.extend(value[predicted == index][::4].tolist())
    limits = ranked([sorted(pool, reverse=True) for pool in pools])
    for path in names:
        ratio = np.load(out / path.name) / limits[:, None, None]
        label = ratio.argmax(axis=0).astype(np.uint8)
        label[ratio.max(axis=0) < 1] = 255
        write_label_png(out / f"{path.stem}.png", label, CITYSCAPES_19)
    shutil.rmtree(out)


def whole_pass_of_ours(folder: Path, out: Path, workers: int) -> dict[str, Any]:
    """Return what the labelling job returns; its folder is removed."""
    record = run(MapFolder.open(folder, stride=STRIDE), out, policy="class-balanced", portion=PORTION, workers=workers)
    shutil.rmtree(out)
    return record


# ------------------------------------------------------------------------------------------------------------ figures


def seconds(work: Callable[[], Any], repeats: int) -> float:
    """Return the median of `repeats` runs, by the clock."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak_memory(maps: Path, images: int) -> float:
    """Return the peak memory in MB of a process that labels `images` images, and nothing else."""
    with tempfile.TemporaryDirectory(dir=str(maps.parent)) as folder:
        repeated = Path(folder) / "maps"
        repeated.mkdir()
        sources = sorted(maps.glob("*.npy"))
        for index in range(images):
            os.link(sources[index % len(sources)], repeated / f"{index:04}.npy")
        code = (
            "from pathlib import Path\n"
            "from cbst_mx.labelling import MapFolder, run\n"
            f"run(MapFolder.open(Path({str(repeated)!r}), stride={STRIDE}), Path({str(Path(folder) / 'out')!r}), "
            f"policy='class-balanced', portion={PORTION})\n"
            "lines = open('/proc/self/status').read().splitlines()\n"
            "print(next(line.split()[1] for line in lines if line.startswith('VmHWM')))\n"
        )
        result = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE)
        return int(result.stdout) / 1024


def of_thresholds(images: list[tuple[np.ndarray, np.ndarray]], repeats: int) -> tuple[list[Row], StreamingThresholds]:
    """Return the table of thresholds from confidences and classes in memory, and the state of ours."""
    count = len(images)
    values, state = ours(images)
    assert np.array_equal(values, partitioned(images)), "not the thresholds of numpy.partition"
    assert np.array_equal(values, ours_on_two_threads(images)), "two threads must change nothing"
    works: dict[str, Callable[[], object]] = {
        "ours: exact, all pixels, counted, two passes": lambda: ours(images),
        "ours on two threads": lambda: ours_on_two_threads(images),
        "(a) appended arrays, every 4th value, Python's sorted": lambda: appended(images, 4),
        "(a) the same over all pixels": lambda: appended(images, 1),
        "(b) lists of floats, all pixels, sorted": lambda: listed(images),
        "(c) one array per class, numpy.partition, all pixels": lambda: partitioned(images),
    }
    spent = {name: seconds(work, 1 if "sorted" in name else repeats) / count for name, work in works.items()}
    own = next(iter(spent.values()))
    return [(name, f"{each:.4f}", f"{each / own:.2f}") for name, each in spent.items()], state


def of_one_image(array: np.ndarray, size: tuple[int, int], state: StreamingThresholds, repeats: int) -> list[Row]:
    """Return the table of the parts of a pass over an image whose map at stride 8 is in memory."""
    one = ClassMaps(array, size)
    full = one.rows(0, size[0])
    read = seconds(full.sum, repeats)
    rows = [(f"plain read of the full-size map, {full.nbytes / 1e6:.0f} MB", f"{read:.4f}", "1")]
    noise = ClassMaps(generated_map(0, size, noise=True), size)
    works = {
        "confidence and class of the full-size map": lambda: confidence(ClassMaps(full)),
        "confidence and class, stride-8 map upsampled in tiles": lambda: confidence(one),
        "the same, every cell another class (the worst case)": lambda: confidence(noise),
    }
    thresholds = state.thresholds("class-balanced", PORTION)
    (label,) = select(one, [thresholds])
    works["selection"] = lambda: select(one, [thresholds])
    with tempfile.TemporaryDirectory() as folder:
        png = Path(folder) / "label.png"
        write_label_png(png, label, CITYSCAPES_19)
        works[f"PNG of {png.stat().st_size / 1e3:.0f} kB"] = lambda: write_label_png(png, label, CITYSCAPES_19)
        for name, work in works.items():
            spent = seconds(work, repeats)
            rows.append((name, f"{spent:.4f}", f"{spent / read:.1f}"))
    return rows


def of_whole_passes(folder: Path, size: tuple[int, int], count: int, repeats: int) -> list[Row]:
    """Return the table of the whole pass, from maps at stride 8 on the disk to PNGs."""
    out = folder.parent / "out"
    spent = {}
    for name, workers in (("ours, 2 processes, their start included", 2), ("ours, 1 process", 1)):
        spent[name] = seconds(functools.partial(whole_pass_of_ours, folder, out, workers), repeats) / count
    cv2.setNumThreads(2)
    title = "(a): bicubic upsampling class by class, full-size maps saved and read back, OpenCV on 2 threads"
    spent[title] = seconds(lambda: whole_pass_of_a(folder, out, size), 1) / count
    cv2.setNumThreads(1)
    own = next(iter(spent.values()))
    return [(name, f"{1 / each:.1f}", f"{each / own:.2f}") for name, each in spent.items()]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 2048), metavar=("H", "W"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="put the tables between the markers of this page too")
    options = parser.parse_args()
    size, count, repeats = (options.size[0], options.size[1]), options.images, options.repeats
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "maps"
        folder.mkdir()
        for index in range(count):
            np.save(folder / f"{index:04}.npy", generated_map(index, size))
        maps = [np.load(path) for path in sorted(folder.glob("*.npy"))]
        images = [confidence(ClassMaps(array, size)) for array in maps]
        mean = np.mean([value.mean() for value, _ in images])
        thresholds, state = of_thresholds(images, repeats)
        del images
        parts = of_one_image(maps[0], size, state, repeats)
        passes = of_whole_passes(folder, size, count, repeats)
        stored, few, many = next(folder.iterdir()).stat().st_size, peak_memory(folder, 50), peak_memory(folder, 500)
    whole = 4 * CLASSES * size[0] * size[1]
    text = "\n\n".join(
        [
            f"{machine('numpy', 'opencv-python', 'imagecodecs')}; {count} generated maps, {CLASSES} "
            f"classes, stride {STRIDE}, images of {size[0]} x {size[1]}, mean confidence {mean:.3f}, p = {PORTION}; "
            f"medians of {repeats}, by the clock, one thread unless said otherwise; {asked()}.",
            "### Thresholds of all classes, from confidences and predicted classes in memory",
            table(("", "s per image", "times ours"), thresholds),
            f"The state of ours is {state.nbytes / 1e6:.1f} MB, whatever the number of images.",
            "### One image, from a stride-8 map in memory",
            table(("", "s", "times the plain read"), parts),
            "### The whole labelling pass, from stride-8 maps on the disk to PNGs",
            table(("", "images per second", "time, times ours"), passes),
            f"Disk between the passes: {stored / 1e6:.1f} MB an image, a {whole / stored:.0f}th of the full map. Peak "
            f"memory of the process that labels: {few:.1f} MB with 50 images, {many:.1f} MB "
            f"with 500 ({100 * (many / few - 1):+.1f} %).",
        ]
    )
    print(text)
    if options.out:
        put(options.out, "selection", text)


if __name__ == "__main__":
    main()
