"""Images and labels per second: the readers of this package against plain Pillow, alternating in one run.

python tools/bench/images.py [--repeats 5] [--against CHECKOUT]

Generated pictures of 1024 x 2048 pixels as JPEG and PNG, and a label map as palette PNG. The peer decodes with Pillow
and converts to RGB; it neither looks at the header nor notices JPEGs and PNGs whose data end early. Then the loader of
training: photographs (JPEG) with palette labels (PNG), crops of 504 x 504, one thread, beside the loader of another
checkout of this repository, alternating as well; each run is a process of its own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable

import cv2
import numpy as np
from PIL import Image

from cbst_mx.data.image_files import read_label, read_rgb

SIZE = (1024, 2048)
PHOTOGRAPHS = 8
ROOT = Path(__file__).resolve().parents[2]
DESCRIPTION = """label_space: cityscapes-19
ids: trainId
splits:
  all: {images: ["*.jpg"], labels: "{stem}.png"}
"""
# Run in a checkout of this repository, older ones too; prints images per second.
LOADER = """
import functools, sys, time
from cbst_mx.data import open_labelled
from cbst_mx.data.loader import BatchLoader
from cbst_mx.data.transforms import TrainTransform
from cbst_mx.label_space import CITYSCAPES_19

root = sys.argv[1]
images = open_labelled("folder", root, label_space=CITYSCAPES_19, split="all", description=root + "/d.yaml")
samples = [functools.partial(images.pair, index) for index in range(len(images))]
loader = BatchLoader(samples, TrainTransform(crop=(504, 504)), batch_size=2, seed=0, iterations=10)
batches = iter(loader)
next(batches)
start = time.perf_counter()
count = sum(len(batch[1]) for batch in batches)
print(count / (time.perf_counter() - start))
"""


def plain_rgb(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def plain_label(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def seconds(read: Callable[[Path], np.ndarray], path: Path) -> float:
    start = time.perf_counter()
    read(path)
    return time.perf_counter() - start


def loader_rate(checkout: Path, data: Path) -> float:
    """Return the images per second that the loader of a checkout prepares."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(
        [sys.executable, "-c", LOADER, str(data)], cwd=checkout, env=environment, check=True, stdout=subprocess.PIPE
    )
    return float(done.stdout)


def bench_loader(picture: np.ndarray, label: Image.Image, data: Path, repeats: int, other: Path | None) -> None:
    """Print the loader's images per second, and the median ratio to another checkout's in runs that alternate."""
    data.mkdir()
    (data / "d.yaml").write_text(DESCRIPTION)
    for number in range(PHOTOGRAPHS):
        Image.fromarray(np.roll(picture, 97 * number, axis=1)).save(data / f"{number}.jpg", quality=92)
        label.save(data / f"{number}.png")
    runs = [(loader_rate(ROOT, data), loader_rate(other, data) if other else 0.0) for _ in range(repeats)]
    mine, theirs = (statistics.median(column) for column in zip(*runs))
    text = f"loader: {mine:.1f} images a second"
    if other:
        text += f", {other.name} {theirs:.1f}, ratio {statistics.median(a / b for a, b in runs):.2f}"
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--against", type=Path, help="another checkout, whose loader runs too")
    arguments = parser.parse_args()
    repeats = arguments.repeats
    rng = np.random.default_rng(0)
    cells = rng.integers(0, 256, (SIZE[0] // 16, SIZE[1] // 16, 3)).astype(np.uint8)
    picture = cv2.GaussianBlur(cells.repeat(16, axis=0).repeat(16, axis=1), (0, 0), 3)
    label = Image.fromarray(rng.integers(0, 19, (64, 128)).astype(np.uint8).repeat(16, axis=0).repeat(16, axis=1))
    label.putpalette(bytes(768))
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / name for name in ("image.jpg", "image.png", "label.png")}
        Image.fromarray(picture).save(files["image.jpg"], quality=92)
        Image.fromarray(picture).save(files["image.png"], compress_level=1)
        label.save(files["label.png"])
        for name, path in files.items():
            ours, plain = (read_label, plain_label) if name.startswith("label") else (read_rgb, plain_rgb)
            assert np.array_equal(ours(path), plain(path))
            pairs = [(seconds(ours, path), seconds(plain, path)) for _ in range(4 * repeats)]
            mine, theirs = (statistics.median(column) for column in zip(*pairs))
            ratio = statistics.median(b / a for a, b in pairs)
            print(f"{name}: {1 / mine:.0f} a second, Pillow {1 / theirs:.0f}, ratio {ratio:.2f}")
        bench_loader(picture, label, Path(folder) / "data", repeats, arguments.against)


if __name__ == "__main__":
    main()
