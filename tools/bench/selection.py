"""Exact class-balanced selection against the ways it is usually done, all in one run.

python tools/bench/selection.py [--images 8] [--size 1024 2048] [--repeats 3] [--full]

The maps are generated: 19 classes at stride 8, regions of a few hundred pixels with blurred borders, classes of very
unequal size. Peers, written here after the descriptions of their data structures:

(a) arrays per class grown by append, every 4th value, Python's sorted; its whole pass also upsamples class by class
    (bicubic), saves every map at full size and reads it back for counting and for selecting;
(b) lists of floats per class, sorted;
(c) one array per class, numpy.partition.

The peers' whole pass keeps every map at full size on the disk: 159 MB an image. --full adds the peak memory for 50 and
for 500 images (a minute or two).
"""

from __future__ import annotations

import argparse
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
from scipy import ndimage

from cbst_mx.data.image_files import write_label_png
from cbst_mx.label_space import CITYSCAPES_19
from cbst_mx.labelling import MapFolder, run
from cbst_mx.selftrain.class_maps import ClassMaps
from cbst_mx.selftrain.counting import StreamingThresholds
from cbst_mx.selftrain.pseudo_labels import confidence, select
from cbst_mx.selftrain.thresholds import rank

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
    """Return the median of `repeats` runs."""
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


def report(what: str, value: float, unit: str, ratio: float = 0.0) -> None:
    """Print one line."""
    print(f"{what:64} {value:10.4g} {unit:12}" + (f" {ratio:7.1f} x ours" if ratio else ""), flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 2048), metavar=("H", "W"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--full", action="store_true")
    options = parser.parse_args()
    size, count, repeats = (options.size[0], options.size[1]), options.images, options.repeats
    full_bytes = 4 * CLASSES * size[0] * size[1]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "maps"
        folder.mkdir()
        for index in range(count):
            np.save(folder / f"{index:04}.npy", generated_map(index, size))
        maps = [np.load(path) for path in sorted(folder.glob("*.npy"))]
        images = [confidence(ClassMaps(array, size)) for array in maps]
        mean = np.mean([value.mean() for value, _ in images])
        print(f"{count} images of {size[0]} x {size[1]}, 19 classes, stride {STRIDE}, mean confidence {mean:.3f},")
        print(f"p = {PORTION}, median of {repeats}; one thread unless said otherwise; {os.cpu_count()} cores\n")

        cv2.setNumThreads(1)
        print("Thresholds of all classes, from confidences and predicted classes in memory")
        values, state = ours(images)
        assert np.array_equal(values, partitioned(images)), "not the thresholds of numpy.partition"
        own = seconds(lambda: ours(images), repeats) / count
        report("exact, all pixels, counted (ours)", own, "s/image")
        assert np.array_equal(values, ours_on_two_threads(images)), "two threads must change nothing"
        spent = seconds(lambda: ours_on_two_threads(images), repeats) / count
        report("    on two threads", spent, "s/image", spent / own)
        peers = {
            "(a) appended arrays, every 4th value, sorted": lambda: appended(images, 4),
            "(a) the same over all pixels": lambda: appended(images, 1),
            "(b) lists of floats, all pixels, sorted": lambda: listed(images),
            "(c) one array per class, numpy.partition, all pixels": lambda: partitioned(images),
        }
        for name, work in peers.items():
            spent = seconds(work, 1 if "sorted" in name else repeats) / count
            report(name, spent, "s/image", spent / own)
        report("state of ours", state.nbytes / 1e6, "MB")

        print("\nThe parts of a pass over one image (stride-8 map in memory)")
        one = ClassMaps(maps[0], size)
        full = one.rows(0, size[0])
        read = seconds(full.sum, repeats)
        report("plain read of the full-size map", read, "s/image")
        for name, source in (("full-size map in memory", ClassMaps(full)), ("stride-8 map, upsampled in tiles", one)):
            spent = seconds(lambda source=source: confidence(source), repeats)
            report(f"confidence and class: {name}", spent, "s/image")
            report("    share of the bandwidth of the plain read", 100 * read / spent, "%")
        noise = ClassMaps(generated_map(0, size, noise=True), size)
        spent = seconds(lambda: confidence(noise), repeats)
        report("confidence and class: every cell another class (worst case)", spent, "s/image")
        thresholds = state.thresholds("class-balanced", PORTION)
        (label,) = select(one, [thresholds])
        report("selection", seconds(lambda: select(one, [thresholds]), repeats), "s/image")
        png = Path(temporary) / "label.png"
        spent = seconds(lambda: write_label_png(png, label, CITYSCAPES_19), repeats)
        report(f"PNG of {png.stat().st_size / 1e3:.0f} kB", spent, "s/image")
        del full
        images.clear()

        print("\nThe whole labelling pass, from stride-8 maps on the disk to PNGs")
        out = Path(temporary) / "out"
        cv2.setNumThreads(1)
        two = seconds(lambda: whole_pass_of_ours(folder, out, 2), repeats) / count
        report("ours, 2 processes (their start included)", 1 / two, "images/s")
        single = seconds(lambda: whole_pass_of_ours(folder, out, 1), repeats) / count
        report("ours, 1 process", 1 / single, "images/s")
        cv2.setNumThreads(2)
        spent = seconds(lambda: whole_pass_of_a(folder, out, size), 1) / count
        report("(a), OpenCV on 2 threads", 1 / spent, "images/s")
        print(f"{'ours on 2 processes against (a)':64} {spent / two:10.1f} x")
        stored = next(folder.iterdir()).stat().st_size
        report("disk per image, float32 stride-8 map", stored / 1e6, "MB")
        print(
            f"{'    of the full-size map of ' + f'{full_bytes / 1e6:.0f} MB':64} {'1 /':>5} {full_bytes / stored:.1f}"
        )

        if options.full:
            print("\nPeak memory of the process that labels")
            few, many = peak_memory(folder, 50), peak_memory(folder, 500)
            report("50 images", few, "MB")
            report("500 images", many, "MB")
            report("    difference", 100 * (many / few - 1), "%")


if __name__ == "__main__":
    main()
