"""Memory of kinds of work at the paper's sizes: ``python -m tools.rehearsal.measure EXPERIMENT JSON``.

Runs inside the environment. The JSON has ``changes`` of the experiment and ``rows``, each a kind of work, how much of
it is done at once, and further changes. Each is done twice or more with the program's own functions, by one network,
whose memory of before is given back; the largest memory of a card in MiB is printed for each row, as a JSON list.
Sizes, crops and networks are those of the experiment.
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
from cbst_mx.networks.devices import parse_contexts, release_memory, set_precision
from cbst_mx.rounds.workload import prediction_options, target_maps
from cbst_mx.selftrain.class_statistics import ImageStatistics
from cbst_mx.selftrain.counting import StreamingThresholds
from cbst_mx.selftrain.network_maps import predictions
from cbst_mx.selftrain.selection import label_set
from cbst_mx.training.adversarial import adapt_output_space
from cbst_mx.training.sgd import Schedule, place, train
from symbols.backend import gluon, mx
from tools.rehearsal.build import ROOT
from tools.rehearsal.inside import Card, stand_in

_ITERATIONS = 3
_SIZE = (1024, 2048)  # of Cityscapes
_SPARE = 16.0  # MiB that may be left of work before


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


def _begin_anew(network: gluon.HybridBlock, ctx: mx.Context) -> None:
    """Give back all memory but that of the parameters and their gradients."""
    place(network, [ctx])
    for parameter in network.collect_params().values():
        parameter._trainer = None  # keeps the momentum of a training before
    for block in [network, *network._children.values()]:
        block.hybridize(static_alloc=True, static_shape=True)  # buffers of calls before
    release_memory()
    mx.nd.waitall()
    ctx.empty_cache()


def main() -> None:
    """Do the work and print its memory."""
    name, text = sys.argv[1:]
    asked = json.loads(text)

    def load(*changes: str) -> Experiment:
        return load_experiment(ROOT / "experiments" / f"{name}.yaml", (*asked["changes"], *changes))

    experiment = load()
    contexts = parse_contexts(experiment.ctx)
    set_precision(experiment.amp, contexts)
    stand_in()
    network = build_network(experiment.network_spec(), contexts[0], seed=0)
    card, found, idle = Card(), [], 0.0
    for work, batch, changes in asked["rows"]:
        _begin_anew(network, contexts[0])
        idle = idle or card.used()
        if card.used() > idle + _SPARE:
            raise RuntimeError(f"{card.used() - idle:.0f} MiB are left from before {work}")
        card.reset()
        WORK[work](load(*changes), network, contexts, int(batch))
        mx.nd.waitall()
        found.append(round(max(card.peak(ctx.device_id) for ctx in contexts)))
    if not card.launches():
        raise RuntimeError("no kernel was started")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
