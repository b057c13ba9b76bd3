"""What a cluster of this machine costs and gains: labelling, and with --training the demo's source training.

    python tools/bench/cluster.py --images 24 --classes 19 --size 1024 2048
    python tools/bench/cluster.py --training --iterations 200

Labelling: one process and two, in turn, with the same generated maps, and the files must be the same. What counts is
user and system time of all processes together, not the time on the clock, which a busy machine stretches. Dask's own
setting (MALLOC_TRIM_THRESHOLD_=65536) is the third row. Where the work itself takes local:2 more than 1.3 times what it
takes one process, this ends with an error.

Training: a step of one process with one thread and with two, and of two processes of one thread each (--train-workers),
in turn. Two processes can gain on the clock only, so that stands beside the processor's seconds: of all processes, and
of the busiest one, below which the clock cannot come where each has one thread. The least of the repeats counts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from measuring import ROOT, add_full, machine, printed, table
from measuring import given as options_of

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


MOST = 1.3  # times the work of one process that two workers may take


def check(ratio):
    """End with an error where two workers take too many seconds of the processor beside one process."""
    if not ratio <= MOST:
        raise SystemExit(f"local:2 must take at most {MOST} times the seconds of one process, took {ratio:.2f}")


# Threads of each process, and how many processes train; none: the command itself.
WAYS = {
    "one process, one thread": (1, 0),
    "one process, two threads": (2, 0),
    "two processes, one thread each": (1, 2),
}
FIRST = 20  # step from which on is measured


def spent():
    """Return processor seconds by process: of this one and all below it, threads as well."""
    import psutil

    found = {}
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            found[process.pid] = times.user + times.system
    return found


def train(threads, trainers, iterations, data, out):
    """Train the demo's source network; return the seconds of a step: on the clock, of all, of the busiest process."""
    from cbst_mx.cli.cluster import opened
    from cbst_mx.cluster import Where
    from cbst_mx.config import load_experiment
    from cbst_mx.rounds import Run

    iterations, trainers, marks = int(iterations), int(trainers), []

    def progress(what, done, total):
        # not the last step: the processes have ended when it is told
        if what.endswith("training") and FIRST <= done < total and (not marks or time.monotonic() - marks[-1][1] > 2):
            marks.append((done, time.monotonic(), spent()))

    experiment = load_experiment(
        ROOT / "experiments" / "demo.yaml",
        ("validation={}", f"source_training.iterations={iterations}", "source_training.checkpoint_minutes=60"),
    )
    where = Where.parse(f"local:{trainers}") if trainers else None
    with opened(where, threads=int(threads), trainers=trainers) as cluster:
        Run(experiment, out, data_root=Path(data), cluster=cluster, progress=progress).train_source()
    (first, begun, before), (last, ended, after) = marks[0], marks[-1]
    own = [seconds - before.get(process, 0.0) for process, seconds in after.items()]
    return [one / (last - first) for one in (ended - begun, sum(own), max(own))]


def training(repeats, iterations):
    """Print a table of the ways to train."""
    from cbst_mx.data.street_scenes import Shift, write_demo_data

    found = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        counts = {"source_count": 60, "source_val_count": 1, "target_count": 4, "target_val_count": 1}
        write_demo_data(Path(folder) / "data", **counts, size=(64, 160), seed=0, shift=Shift())
        for repeat in range(repeats):
            for number, (name, (threads, trainers)) in enumerate(WAYS.items()):
                out = f"{folder}/{repeat}-{number}"
                order = [str(one) for one in (threads, trainers, iterations, f"{folder}/data", out)]
                environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)}
                found[name].append(printed(sys.executable, __file__, "--worker", json.dumps(order), **environment))
    print(f"{machine('mxnet', 'distributed')}; load {os.getloadavg()[0]:.1f}; seconds of a step")
    rows = [[name, *(f"{min(column):.3f}" for column in zip(*times))] for name, times in found.items()]
    print(table(["", "clock", "processor, all", "processor, busiest process"], rows))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--classes", type=int, default=19)
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 2048))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--training", action="store_true", help="measure training in place of labelling")
    parser.add_argument("--iterations", type=int, default=200)
    add_full(parser, repeats=3)
    given = options_of(parser, train)
    if given is None:
        return
    if given.training:
        training(given.repeats, given.iterations)
        return
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
    works = {name: min(found[name]) - min(starts[name]) for name in ways}
    alone = works["one process"]
    print(f"{given.images} images of {given.size[0]} x {given.size[1]}, {given.classes} classes, CPU seconds, least of")
    print(f"{given.repeats}: all, start (two small images), the work itself, and that against one process")
    for name in ways:
        whole, start, work = min(found[name]), min(starts[name]), works[name]
        print(f"{name:30} {whole:7.2f} {start:7.2f} {work:7.2f} {work / alone:7.2f}")
    check(works["local:2"] / alone)


if __name__ == "__main__":
    main()
