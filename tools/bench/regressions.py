"""Whether the parts of a small round take more time or memory than they did: a report that never fails a build.

python tools/bench/regressions.py [--repeats 5] [--update]

Each part is a process of its own: 24 generated scenes of 64 x 128 pixels, narrow networks, one thread. Its processor
seconds are compared with those of a fixed piece of NumPy (a sort, a product of waves, a histogram) that takes turns
with it, so that the number means the same on a slower machine, or a busy one; of several repeats the least counts.
What was measured last stands in regressions.json beside this file; a part that takes over 25 % more than that is
named. After a change that means to cost more, `--update` writes the file anew.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before the imports

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any, Callable

import cv2
import numpy as np
from growth import SIZE, evaluation, images_of, make_scenes, pseudo_labels, training_samples
from measuring import cpu_seconds, given, in_a_process, peak_bytes, table

BASELINE = Path(__file__).with_name("regressions.json")
IMAGES = 24
MORE = 0.25  # what is told


def training_steps(images: Any, folder: Path) -> Callable[[], None]:
    """Return some steps of SGD on a narrow FCN8s."""
    from cbst_mx.training.losses import BatchLoss
    from cbst_mx.training.steps import plain_step
    from symbols import get_network
    from symbols.backend import gluon, mx

    network = get_network("fcn8s", 19, width=1 / 16)
    network.initialize(mx.init.Xavier())
    network(mx.nd.zeros((1, 3, *SIZE)))
    network.hybridize(static_alloc=True, static_shape=True)
    trainer = gluon.Trainer(network.collect_params(), "sgd", {"learning_rate": 1e-4}, kvstore=None)
    batch, labels = mx.nd.ones((2, 3, *SIZE)), np.zeros((2, *SIZE), np.float32)
    rng, loss_of = np.random.default_rng(0), BatchLoss()

    def steps() -> None:
        for _ in range(4):
            plain_step(network, [batch], labels, loss_of, rng=rng)
            trainer.step(2)
        mx.nd.waitall()

    steps()
    return steps


PARTS: dict[str, Callable[[Any, Path], Callable[[], Any]]] = {
    "training samples": training_samples,
    "training steps": training_steps,
    "pseudo-labelling": pseudo_labels,
    "evaluation": evaluation,
}


def kernel() -> None:
    """Do the fixed work that parts are compared with."""
    values = np.sin(np.arange(1 << 19, dtype=np.float32))
    np.sort(values)
    (values * np.cos(values)).sum()
    np.bincount((values * 100 + 100).astype(np.uint8), minlength=256)


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


def main() -> None:
    """Measure, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--update", action="store_true", help="write what is measured as what to compare with")
    options = given(parser, measure)
    if options is None:
        return
    with tempfile.TemporaryDirectory() as scenes:
        make_scenes(Path(scenes))
        found = {part: in_a_process(__file__, scenes, part, options.repeats) for part in PARTS}
    before = json.loads(BASELINE.read_text("utf-8")) if BASELINE.is_file() else {}
    rows, more = [], []
    for part, values in found.items():
        cells = [part]
        for key, unit in (("time", ""), ("memory", " MB")):
            old = before.get(part, {}).get(key)
            change = values[key] / old - 1 if old else 0.0
            cells += [f"{values[key]:.3g}{unit}", f"{100 * change:+.0f} %" if old else "new"]
            if change > MORE:
                more.append(f"{part} takes {100 * change:.0f} % more {key} than {BASELINE.name} says")
        rows.append(tuple(cells))
    print(table(("part of a small round", "time, in kernels", "change", "peak memory", "change"), rows))
    print("\n".join(more) or "no part takes over 25 % more than before")
    if options.update:
        rounded = {part: {key: float(f"{value:.3g}") for key, value in one.items()} for part, one in found.items()}
        BASELINE.write_text(json.dumps(rounded, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
