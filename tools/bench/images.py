"""Images and labels per second: the readers of this package against plain Pillow, alternating in one run.

python tools/bench/images.py [--repeats 5]

Generated pictures of 1024 x 2048 pixels as JPEG and PNG, and a label map as palette PNG. The peer decodes with Pillow
and converts to RGB; it neither looks at the header nor notices JPEGs and PNGs whose data end early.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Callable

import cv2
import numpy as np
from PIL import Image

from cbst_mx.data.image_files import read_label, read_rgb

SIZE = (1024, 2048)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
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


if __name__ == "__main__":
    main()
