"""What is measured of an experiment: training steps, pseudo-labelling, evaluation, and the reading of images."""

from __future__ import annotations

import functools
import itertools
import tempfile
from pathlib import Path
from typing import Any, Callable, Iterator

import numpy as np

from cbst_mx.config import Experiment
from cbst_mx.data import ImageSet
from cbst_mx.data.image_files import write_label_png, write_rgb_png
from cbst_mx.data.loader import BatchLoader
from cbst_mx.label_space import LabelSpace
from cbst_mx.messages import cores
from cbst_mx.planning.measure import Peak, Series, Timing, between, now, repeated, sampled
from cbst_mx.rounds.workload import Images, kept_maps, prediction_options, target_maps
from cbst_mx.selftrain.class_statistics import ImageStatistics
from cbst_mx.selftrain.network_maps import fitting_batch, predictions
from cbst_mx.selftrain.selection import label_set
from cbst_mx.selftrain.target_maps import SORTED_PIXELS
from cbst_mx.training.checkpoints import count_threads
from cbst_mx.training.samples import labelled_samples
from cbst_mx.training.sgd import Schedule, train
from symbols.backend import gluon, mx

__all__ = ["evaluated_at_once", "evaluation", "labelling", "reading_seconds", "training", "with_reading"]

_SIDES = (0.25, 0.5, 1.0)  # of an image or crop; the first two are measured whatever they take
_MOST = 50  # repetitions of one measurement


def with_reading(step: float, load: float, experiment: Experiment) -> float:
    """Return the time of a step whose images take `load` seconds of one core to read."""
    if not experiment.workers:
        return step + load
    free = experiment.workers  # readers work beside the network, on cores that it leaves to them
    if not experiment.ctx.startswith("gpu"):
        free = min(free, max(0, cores() - (count_threads() or cores())))  # 0: all cores, where nothing is said
    # on a core that a thread of the network has, all its threads wait for that one
    return max(step, load / free) if free else step + load


def training(
    experiment: Experiment,
    network: gluon.HybridBlock,
    contexts: list[mx.Context],
    batches: list[int],
    budget: float,
    peak: Peak,
) -> Series:
    """Measure training steps of parts of a crop, of one crop for each device, and of more up to the largest batch."""
    rng, rest = np.random.default_rng(0), []
    classes, least = experiment.classes().num_classes, len(contexts)

    def step(crop: tuple[int, int], size: int, time_left: float) -> Timing:
        height, width = crop
        images = rng.standard_normal((size, 3, height, width)).astype(np.float32)
        labels = rng.integers(0, classes, (size, height, width)).astype(np.float32)
        stamps = [now()]

        def given(first: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for done in itertools.count():
                last = stamps[-1].wall - stamps[-2].wall if done else 0.0
                if done > 1 and (done > _MOST or stamps[-1].wall + last > stamps[0].wall + time_left):
                    return
                yield images, labels

        def finished(done: int, total: int) -> None:
            mx.nd.waitall()
            stamps.append(now())

        train(
            network,
            given,  # type: ignore[arg-type]
            Schedule(1e-12, 10**9),  # the parameters stay what they are
            ctx=contexts,
            seed=experiment.seed,
            per_pass=experiment.images_per_pass,
            gradient_checkpointing=experiment.gradient_checkpointing,
            loss_scaling=experiment.amp == "float16",
            progress=finished,
        )
        times = between(stamps[1:])
        rest.append(max(0.0, stamps[1].cpu - stamps[0].cpu - min(times.cpu)))
        return times

    whole = (experiment.augmentation.crop[0], experiment.augmentation.crop[1])
    half = (_half(whole[0], network.stride), _half(whole[1], network.stride))
    part = half[0] * half[1] / (whole[0] * whole[1])
    points = [(part * least, half, least)] if part < 1 else []
    points += [(float(least), whole, least)]
    sizes = {2 * least, *batches}
    if contexts[0].device_type == "gpu":  # of those that do not fit the next smaller one is tried
        sizes |= {least * 2**power for power in range(batches[-1].bit_length())}
    points += [(float(size), whole, size) for size in sorted(sizes) if least < size <= batches[-1]]
    measures = [(amount, functools.partial(step, crop, size)) for amount, crop, size in points]
    series = sampled(measures, budget, peak)
    series.start = rest[-1]
    return series


def _half(pixels: int, stride: int) -> int:
    """Return about half the side of a crop, which the network's stride divides, at least 32 pixels."""
    return min(pixels, max(32, stride * round(pixels / (2 * stride))))


def reading_seconds(experiment: Experiment) -> float:
    """Return the time to read, cut and normalise one source image with its label: the least of three groups."""
    spec = experiment.network_spec()
    samples = labelled_samples(experiment.open_source())[:16]
    loader = BatchLoader(
        samples,
        experiment.augmentation.transform(resampling=experiment.resampling),
        batch_size=8,
        seed=experiment.seed,
        iterations=3,
        workers=0,
        mean=spec.mean,
        std=spec.std,
    )
    stamps = [now()]
    for _ in loader:
        stamps.append(now())
    times = between(stamps)
    return min(*times.wall, *times.cpu) / 8


def _images(
    work: Callable[[ImageSet, float], Any],
    size: tuple[int, int],
    number: int,
    budget: float,
    peak: Peak,
) -> Series:
    """Measure ``work(images, side)`` on parts of an image of `size`, on a whole one, and on `number` of them."""

    def measure(side: float, count: int, time_left: float) -> Timing:
        rows, columns = (max(32, round(side * pixels)) for pixels in size)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "image.png"
            rng = np.random.default_rng(0)
            write_rgb_png(path, rng.integers(0, 256, (rows, columns, 3), np.uint8))
            images = ImageSet([f"image {index}" for index in range(count)], [path] * count)
            return repeated(functools.partial(work, images, side), time_left)

    points = []
    for side in _SIDES:
        rows, columns = (max(32, round(side * pixels)) for pixels in size)
        points.append((rows * columns / (size[0] * size[1]), side, 1))
    points += [(float(count), 1.0, count) for count in sorted({min(2, number), number}) if count > 1]
    growing = [point for place, point in enumerate(points) if place == 0 or point[0] > points[place - 1][0]]
    return sampled([(a, functools.partial(measure, side, count)) for a, side, count in growing], budget, peak)


def labelling(
    experiment: Experiment,
    network: gluon.HybridBlock,
    ctx: mx.Context,
    target: Images,
    budget: float,
    peak: Peak,
    shared: bool = False,
) -> Series:
    """Measure the pseudo-labelling of a target image: all looks at it, selection and writing; `shared` by a cluster."""
    settings = experiment.self_training
    space: LabelSpace = experiment.classes()
    pixels = target.number * target.size[0] * target.size[1]
    # as all of them will be: the output for one image would stay in memory, and the network run once
    keep, _ = kept_maps(experiment, target.number, target.size, stride=network.stride, shared=shared)
    keep = "memory" if keep == "compact" else keep  # random parameters make every class likely, which is not compact
    as_all = experiment.model_copy(update={"self_training": settings.model_copy(update={"keep_maps": keep})})

    def once(images: ImageSet, side: float) -> None:
        with tempfile.TemporaryDirectory() as folder:
            maps = target_maps(as_all, network, images, folder=Path(folder) / "maps", ctx=ctx, side=side)
            label_set(
                maps,
                maps.collector(settings.fidelity, SORTED_PIXELS if pixels <= SORTED_PIXELS else 0),
                policy=settings.policy,
                portion=settings.portion.initial,
                write=lambda name, label: write_label_png(Path(folder) / f"{name}.png", label, space),
                statistics=ImageStatistics(space.num_classes),
            )

    return _images(once, target.size, 1, budget, peak)


def evaluated_at_once(experiment: Experiment, ctx: mx.Context, size: tuple[int, int]) -> int:
    """Return how many images of a size pass the network together when they are evaluated."""
    settings, on_cpu = experiment.evaluation, ctx.device_type == "cpu"
    fitting = fitting_batch(size, on_cpu=on_cpu, scales=settings.scales, long_side=settings.long_side)
    return experiment.inference_batch or fitting


def evaluation(
    experiment: Experiment,
    network: gluon.HybridBlock,
    ctx: mx.Context,
    size: tuple[int, int],
    number: int,
    budget: float,
    peak: Peak,
) -> Series:
    """Measure the prediction of images that are evaluated, `number` of them at a time."""

    def once(chosen: ImageSet, side: float) -> None:
        for _ in predictions(network, chosen, **prediction_options(experiment, ctx, side)):
            pass

    return _images(once, size, number, budget, peak)
