"""Whether the parts of a small round take more time or memory than they did: a report that never fails a build.

python tools/bench/regressions.py [--repeats 5] [--processes 1] [--update]

Each part is a process of its own: 24 generated scenes of 64 x 128 pixels, narrow networks, one thread. Its processor
seconds are compared with those of a fixed piece of NumPy (a sort, a product of waves, a histogram) that takes turns
with it, so that the number means the same on a slower machine, or a busy one; of several repeats the least counts, of
several processes the median.

What was measured last stands in regressions.json beside this file, by the vector instructions that a processor has:
wider ones make networks faster than NumPy, so that the numbers of one kind say nothing of another. A part that takes
over 25 % more than its kind's is named; on a processor whose kind is not there nothing is. After a change that means to
cost more, or on a new kind of processor, `--update --processes 5` on a quiet machine writes this kind's numbers anew.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before the imports

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict

import cv2
import numpy as np
from growth import SIZE, evaluation, images_of, make_scenes, pseudo_labels, training_samples
from measuring import cpu_seconds, given, in_a_process, instructions, kernel, peak_bytes, table

BASELINE = Path(__file__).with_name("regressions.json")
IMAGES = 24
MORE = 0.25  # what is told


def training_steps(images: Any, folder: Path) -> Callable[[], None]:
    """Return some steps of SGD on a narrow FCN8s."""
    from cbst_mx.training.losses import BatchLoss
    from cbst_mx.training.optimiser import new_trainer
    from cbst_mx.training.steps import plain_step
    from symbols import get_network
    from symbols.backend import mx

    network = get_network("fcn8s", 19, width=1 / 16)
    network.initialize(mx.init.Xavier())
    network(mx.nd.zeros((1, 3, *SIZE)))
    network.hybridize(static_alloc=True, static_shape=True)
    trainer = new_trainer(network.collect_params(), {"learning_rate": 1e-4, "momentum": 0.9, "wd": 5e-4})
    batch, labels = mx.nd.ones((2, 3, *SIZE)), np.zeros((2, *SIZE), np.float32)
    rng = np.random.default_rng(0)

    def steps() -> None:
        with BatchLoss.of(network) as loss_of:
            for _ in range(4):
                plain_step(network, [batch], labels, loss_of, rng=rng)
                trainer.step(2)
        mx.nd.waitall()

    steps()
    return steps


Numbers = Dict[str, Dict[str, float]]  # of each part "time" and "memory"
PARTS: dict[str, Callable[[Any, Path], Callable[[], Any]]] = {
    "training samples": training_samples,
    "training steps": training_steps,
    "pseudo-labelling": pseudo_labels,
    "evaluation": evaluation,
}


def measure(scenes: str, part: str, repeats: str) -> dict[str, float]:
    """Measure one part in this process: its processor seconds by those of the kernel, and the peak of the memory."""
    cv2.setNumThreads(1)
    images, spent, fixed = images_of(Path(scenes), IMAGES), [], []
    for _ in range(int(repeats)):
        with tempfile.TemporaryDirectory(dir=scenes) as folder:
            work = PARTS[part](images, Path(folder))
            fixed += [cpu_seconds(kernel) for _ in range(5)]
            spent.append(cpu_seconds(work))
    return {"time": min(spent) / min(fixed), "memory": peak_bytes() / 1e6}


def compared(found: Numbers, before: Numbers | None, kind: str) -> str:
    """Return the report: a table, and what takes more than it did on the same kind of processor."""
    rows, more = [], []
    for part, values in found.items():
        cells = [part]
        for key, unit in (("time", ""), ("memory", " MB")):
            old = (before or {}).get(part, {}).get(key)
            change = values[key] / old - 1 if old else 0.0
            cells += [f"{values[key]:.3g}{unit}", f"{100 * change:+.0f} %" if old else "new"]
            if change > MORE:
                more.append(f"{part} takes {100 * change:.0f} % more {key} than {BASELINE.name} says")
        rows.append(tuple(cells))
    if before is None:
        more = [f"nothing to compare with: {BASELINE.name} has no processor with {kind}; --update adds this one"]
    head = ("part of a small round", "time, in kernels", "change", "peak memory", "change")
    return table(head, rows) + "\n" + ("\n".join(more) or f"no part takes over 25 % more than before, {kind}")


def main() -> None:
    """Measure, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="of each part in a process")
    parser.add_argument("--processes", type=int, default=1, help="of each part")
    parser.add_argument("--update", action="store_true", help="write what is measured as what to compare with")
    options = given(parser, measure)
    if options is None:
        return
    runs: dict[str, list[dict[str, float]]] = {part: [] for part in PARTS}
    with tempfile.TemporaryDirectory() as scenes:
        make_scenes(Path(scenes))
        for _ in range(options.processes):
            for part, several in runs.items():
                several.append(in_a_process(__file__, scenes, part, options.repeats))
    found = {
        part: {key: statistics.median(one[key] for one in several) for key in ("time", "memory")}
        for part, several in runs.items()
    }
    kinds = json.loads(BASELINE.read_text("utf-8")) if BASELINE.is_file() else {}
    print(compared(found, kinds.get(instructions()), instructions()))
    if options.update:
        kinds[instructions()] = {
            part: {key: float(f"{value:.3g}") for key, value in one.items()} for part, one in found.items()
        }
        BASELINE.write_text(json.dumps(dict(sorted(kinds.items())), indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
