"""Processor time of labelling on a cluster of this machine against one process, with glibc's variables and without.

    python tools/bench/cluster.py --images 24 --classes 19 --size 1024 2048

Both label the same generated maps, in turn, and the files must be the same. What counts is user and system time of all
processes together, not the time on the clock, which a busy machine stretches. Dask's own setting
(MALLOC_TRIM_THRESHOLD_=65536) is the third row.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
COMMAND = "from cbst_mx.cli import main; main(prog_name='cbst-mx')"
DASKS = (
    "from cbst_mx.cluster import nodes; nodes.MALLOC.clear(); nodes.MALLOC['MALLOC_TRIM_THRESHOLD_'] = '65536'\n"
    + COMMAND
)


def write_maps(folder, count, classes, size):
    """Write maps at stride 8 of generated probabilities."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(count):
        logits = rng.standard_normal((classes, size[0] // 8, size[1] // 8)).astype(np.float32)
        values = np.exp(3 * logits)
        np.save(folder / f"{index:04}.npy", values / values.sum(axis=0))


def seconds(code, maps, out, more):
    """Return user and system time of a command and all processes below it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    given = ["label", "--probabilities", str(maps), "--upsample", "8", "--portion", "0.2", "--out", str(out), *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code, *given], env=environment, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def labels(folder):
    return {path.name: path.read_bytes() for path in (folder / "pseudo_labels").glob("*.png")}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--classes", type=int, default=19)
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 2048))
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    ways = {
        "one process": (COMMAND, []),
        "local:2": (COMMAND, ["--cluster", "local:2"]),
        "local:2, dask's own setting": (DASKS, ["--cluster", "local:2"]),
    }
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        empty = root / "few"
        write_maps(empty, 2, given.classes, (64, 64))
        write_maps(root / "maps", given.images, given.classes, given.size)
        found = {name: [] for name in ways}
        starts = {name: [] for name in ways}
        for repeat in range(given.repeats):
            for number, (name, (code, more)) in enumerate(ways.items()):
                starts[name].append(seconds(code, empty, root / f"few-{repeat}-{number}", more))
                out = root / f"{repeat}-{number}"
                found[name].append(seconds(code, root / "maps", out, more))
                assert labels(out) == labels(root / "0-0")
    alone = min(found["one process"]) - min(starts["one process"])
    print(f"{given.images} images of {given.size[0]} x {given.size[1]}, {given.classes} classes, CPU seconds, least of")
    print(f"{given.repeats}: all, start (two small images), the work itself, and that against one process")
    for name in ways:
        whole, start = min(found[name]), min(starts[name])
        print(f"{name:30} {whole:7.2f} {start:7.2f} {whole - start:7.2f} {(whole - start) / alone:7.2f}")


if __name__ == "__main__":
    main()
