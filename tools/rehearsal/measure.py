"""Memory of one kind of work at the paper's sizes: ``python -m tools.rehearsal.measure WORK KEY=VALUE ...``.

Runs inside the environment, does the work twice or more with the program's own functions, and prints the largest memory
of each card in MiB, as JSON. Sizes, crops and networks are those of the experiment.
"""

from __future__ import annotations

import functools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, Callable, Iterator

import numpy as np

from cbst_mx.config import Experiment, load_experiment
from cbst_mx.data import ImageSet
from cbst_mx.data.image_files import write_rgb_png
from cbst_mx.networks.build import build_network
from cbst_mx.networks.devices import parse_contexts, set_precision
from cbst_mx.rounds.workload import prediction_options, target_maps
from cbst_mx.selftrain.class_statistics import ImageStatistics
from cbst_mx.selftrain.counting import StreamingThresholds
from cbst_mx.selftrain.network_maps import predictions
from cbst_mx.selftrain.selection import label_set
from cbst_mx.training.adversarial import adapt_output_space
from cbst_mx.training.sgd import Schedule, train
from symbols.backend import gluon, mx
from tools.rehearsal.build import ROOT
from tools.rehearsal.inside import Card, stand_in

_ITERATIONS = 3
_SIZE = (1024, 2048)  # of Cityscapes


def training(experiment: Experiment, network: gluon.HybridBlock, contexts: list[mx.Context], batch: int) -> None:
    """Take some training steps of `batch` crops."""
    train(
        network,
        functools.partial(_batches, experiment, batch),  # type: ignore[arg-type]
        Schedule(1e-3, _ITERATIONS),
        ctx=contexts,
        seed=0,
        per_pass=experiment.images_per_pass,
        gradient_checkpointing=experiment.gradient_checkpointing,
        loss_scaling=experiment.amp == "float16",
    )


def warm_up(experiment: Experiment, network: gluon.HybridBlock, contexts: list[mx.Context], batch: int) -> None:
    """Adapt the network adversarially for some steps of `batch` crops of each domain."""
    loader: Any = functools.partial(_batches, experiment, batch)
    adapt_output_space(network, loader, loader, Schedule(1e-3, _ITERATIONS), num_classes=19, ctx=contexts[0], seed=0)


def labelling(experiment: Experiment, network: gluon.HybridBlock, contexts: list[mx.Context], batch: int) -> None:
    """Pseudo-label images of Cityscapes, with a prior where the experiment has one."""
    prior = np.ones((19, 512, 1024), np.float32) if experiment.self_training.uses_prior else None
    with tempfile.TemporaryDirectory() as folder:
        images = _images(Path(folder), 2)
        maps = target_maps(experiment, network, images, folder=Path(folder) / "maps", ctx=contexts[0], prior=prior)
        counted = StreamingThresholds(19, fidelity=experiment.self_training.fidelity)
        kept = {"statistics": ImageStatistics(19), "write": lambda name, label: None}
        label_set(maps, counted, policy=experiment.self_training.policy, portion=0.2, **kept)


def evaluation(experiment: Experiment, network: gluon.HybridBlock, contexts: list[mx.Context], batch: int) -> None:
    """Predict images of Cityscapes, `batch` at once."""
    with tempfile.TemporaryDirectory() as folder:
        images = _images(Path(folder), 2 * batch)
        for _ in predictions(network, images, **{**prediction_options(experiment, contexts[0]), "batch_size": batch}):
            pass


WORK: dict[str, Callable[[Experiment, gluon.HybridBlock, list[mx.Context], int], None]] = {
    "training": training,
    "warm-up": warm_up,
    "labelling": labelling,
    "evaluation": evaluation,
}


def _batches(experiment: Experiment, batch: int, first: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    height, width = experiment.augmentation.crop
    for _ in range(first, _ITERATIONS):
        yield np.zeros((batch, 3, height, width), np.float32), np.zeros((batch, height, width), np.float32)


def _images(folder: Path, number: int) -> ImageSet:
    path = folder / "image.png"
    write_rgb_png(path, np.zeros((*_SIZE, 3), np.uint8))
    return ImageSet([f"image {index}" for index in range(number)], [path] * number)


def main() -> None:
    """Do the work and print its memory."""
    work, name, batch, *changes = sys.argv[1:]
    experiment = load_experiment(ROOT / "experiments" / f"{name}.yaml", tuple(changes))
    contexts = parse_contexts(experiment.ctx)
    set_precision(experiment.amp, contexts)
    stand_in()
    network = build_network(experiment.network_spec(), contexts[0], seed=0)
    mx.nd.waitall()
    card = Card()
    WORK[work](experiment, network, contexts, int(batch))
    print(json.dumps({"peaks": [round(card.peak(ctx.device_id)) for ctx in contexts], "kernels": card.launches()}))


if __name__ == "__main__":
    main()
