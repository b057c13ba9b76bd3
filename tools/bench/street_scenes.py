"""How fast generated street scenes are made, against reading the same scenes from PNG files, on one core.

python tools/bench/street_scenes.py [--count 50] [--size 128 256] [--repeats 3]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Callable

import cv2

from cbst_mx.data import open_labelled
from cbst_mx.data.street_scenes import Shift, render_scene, write_demo_data
from cbst_mx.label_space import CITYSCAPES_19


def rate(work: Callable[[], None], count: int, repeats: int) -> float:
    """Return the median over `repeats` of images per second."""
    seconds: list[float] = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return count / statistics.median(seconds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--size", type=int, nargs=2, default=(128, 256), metavar=("H", "W"))
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    size, count = tuple(options.size), options.count
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        write_demo_data(
            data,
            source_count=count,
            source_val_count=0,
            target_count=0,
            target_val_count=0,
            size=size,
            seed=0,
            shift=Shift(),
        )
        images = open_labelled("gta5", data / "gta5", label_space=CITYSCAPES_19)

        def read() -> None:
            for index in range(count):
                images.pair(index)

        peer = rate(read, count, options.repeats)
    print(f"{count} scenes of {size[0]} x {size[1]}, median of {options.repeats}, one thread")
    print(f"{'reading image and label PNG (peer)':36} {peer:7.1f} images/s")
    for domain in ("source", "target"):

        def render(domain: str = domain) -> None:
            for index in range(count):
                render_scene(0, index, domain=domain, size=size, shift=Shift())

        speed = rate(render, count, options.repeats)
        print(f"{'rendering, ' + domain + ' domain':36} {speed:7.1f} images/s   {speed / peer:.2f} x the peer")


if __name__ == "__main__":
    main()
