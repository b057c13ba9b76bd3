"""What an experiment costs, before it starts: images, iterations, time, memory and disk.

The network, with random parameters, takes a few training steps and labels and evaluates an image on this device; the
rest is multiplication. What would take too long is measured on fewer crops or a smaller image, to whose number and
area the time of these networks is proportional. H x W pixels, seconds, bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import resource
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple

import numpy as np

from cbst_mx.config import Experiment, Optimiser
from cbst_mx.data import ImageSet
from cbst_mx.data.image_files import write_label_png, write_rgb_png
from cbst_mx.data.loader import BatchLoader
from cbst_mx.errors import ConfigError
from cbst_mx.label_space import LabelSpace
from cbst_mx.messages import Progress, silent
from cbst_mx.networks.build import build_network, parameter_bytes
from cbst_mx.networks.devices import parse_contexts, set_precision
from cbst_mx.rounds.phases import follow_start, start_path
from cbst_mx.rounds.workload import (
    Images,
    ImageSets,
    count_iterations,
    count_snapshots,
    estimate_needs,
    find_image_sets,
    prediction_options,
    source_indices,
    target_maps,
)
from cbst_mx.selftrain.class_statistics import ImageStatistics
from cbst_mx.selftrain.network_maps import predictions
from cbst_mx.selftrain.selection import label_set
from cbst_mx.selftrain.target_maps import SORTED_PIXELS
from cbst_mx.training.samples import labelled_samples
from cbst_mx.training.sgd import Schedule, train
from symbols.backend import gluon, mx

__all__ = ["Plan", "Stage", "make_plan"]

_SIDES = (0.25, 1.0)  # of the image in a first and, where that fits into the time, a second measurement
_MOST = 50  # repetitions of one measurement


@dataclass(frozen=True)
class Stage:
    """Cost of the source network or of one round.

    ``images`` are those trained on, ``iterations`` the training steps over them; the times are seconds.
    """

    name: str
    images: int
    iterations: int
    labelling: float
    training: float
    evaluation: float

    @property
    def seconds(self) -> float:
        """Seconds of all its steps."""
        return self.labelling + self.training + self.evaluation


@dataclass
class Plan:
    """Cost of a run on this device.

    Attributes
    ----------
    device : str
        Context and precision.
    stages : list of Stage
        The stages in their order.
    memory : int
        Bytes at most: of the GPU, or of this process on a CPU.
    disk : int
        Bytes at most, of the run folder.
    notes : list of str
        Sentences on how it was measured, and on what is not counted.
    """

    device: str
    disk: int = 0
    memory: int = 0
    stages: list[Stage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Seconds of all stages."""
        return sum(stage.seconds for stage in self.stages)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**dataclasses.asdict(self), "seconds": self.seconds}


def make_plan(
    experiment: Experiment,
    *,
    seconds: float = 60.0,
    progress: Progress = silent,
) -> Plan:
    """Measure on the experiment's device and work out what its run costs.

    Parameters
    ----------
    experiment : Experiment
        Its image sets are opened where their folders are there; for the paper's data sets the published figures stand
        in for missing ones.
    seconds : float
        About how long to measure; on a slow device the smallest measurements can take longer.
    progress : callable, optional
        Called with (what, done, in all).

    Returns
    -------
    Plan

    Raises
    ------
    CBSTError
        If the experiment cannot be run here or its number of images is unknown.
    """
    if not seconds > 0:
        raise ConfigError(f"seconds must be above 0, got {seconds}")
    with contextlib.suppress(ConfigError):  # where there is no data root
        experiment, _ = follow_start(experiment)
    contexts = parse_contexts(experiment.ctx)
    set_precision(experiment.amp, contexts)
    sets = find_image_sets(experiment)
    plan = Plan(device=experiment.ctx + ("" if experiment.amp == "none" else f", {experiment.amp}"))
    missing = [name for name, images in sets.named().items() if images.published]
    if missing:
        plan.notes.append(f"the data are not here ({', '.join(missing)}): the publishers' numbers of images are used")
    with contextlib.suppress(ConfigError):
        start = start_path(experiment)
        if start is not None and not start.is_file():
            plan.notes.append(f"{start} is not there: the run starts from these parameters")

    base = _memory_now(contexts[0])
    network = build_network(experiment.network_spec(), contexts[0], seed=experiment.seed)
    # parameters, gradients and momentum do not grow with a batch
    meter = _Meter(contexts[0], base + 3 * parameter_bytes(network))
    times = _measure(experiment, network, contexts, sets, seconds, meter, plan, progress)

    plan.stages += _stages(experiment, sets, times)
    if experiment.self_training.rounds:
        plan.notes.append(
            "the labels of the last round include a last look of its network at the target, counted as that part of "
            "pseudo-labelling in which the network runs"
        )
    if experiment.warm_up is not None:
        plan.notes.append("the adversarial warm-up is not counted")
    if count_snapshots(experiment.source_training, sets.source.number):
        plan.notes.append("evaluating the snapshots of the source training is not counted")
    if experiment.target.fold is not None:
        plan.notes.append(f"one fold of {experiment.target.folds or 10}; the source network is shared")
    if experiment.self_training.uses_prior and experiment.self_training.spatial_prior.file is None:
        plan.notes.append("estimating the spatial prior, once over all source labels, is not counted")
    plan.memory = meter.most
    total = sum(images.number for images in sets.validation.values())
    needs = estimate_needs(
        experiment,
        network,
        source=sets.source.number,
        target=sets.target.number,
        size=sets.target.size,
        validation=total,
    )
    plan.disk = needs.disk
    return plan


class _Times(NamedTuple):
    """Measured seconds."""

    steps: dict[int, float]  # of a training step, by batch size
    reading: float | None  # of reading a source image; None where there is none to read
    labelling: float  # of pseudo-labelling an image
    evaluation: float  # of evaluating all validation images, or of predicting the target's where there are none


def _measure(
    experiment: Experiment,
    network: gluon.HybridBlock,
    contexts: list[mx.Context],
    sets: ImageSets,
    seconds: float,
    meter: _Meter,
    plan: Plan,
    progress: Progress,
) -> _Times:
    """Measure every kind of work in about `seconds`, and note in `plan` how."""
    training, settings = experiment.source_training, experiment.self_training
    phases = [training, settings.retraining if settings.rounds else None]
    batches = sorted({phase.batch_size for phase in phases if phase is not None})
    kinds = len(batches) + (2 if settings.rounds else 1)  # training steps, labelling, evaluation
    share = seconds / (4 if settings.rounds else 2)  # source training, retraining, labelling, evaluation
    steps: dict[int, float] = {}
    for batch in batches:
        progress("measuring", len(steps), kinds)
        steps[batch] = _training_seconds(experiment, network, contexts, batch, share, meter, plan)
    reading = None if sets.source.published else _reading_seconds(experiment)
    if reading is None:
        plan.notes.append("the time to read images is not counted in training: there are none to read here")
    labelling = 0.0
    if settings.rounds:
        progress("measuring", len(batches), kinds)
        labelling = _labelling_seconds(experiment, network, contexts[0], sets.target, share, meter, plan)
    progress("measuring", kinds - 1, kinds)
    # images of one size, or nearly: measured once, and counted by their area
    predicted = list(sets.validation.values()) or [sets.target]  # without a validation set, as `label_free` says
    first = predicted[0]
    evaluation = _evaluation_seconds(experiment, network, contexts[0], first, share, meter, plan)
    evaluation *= sum(images.pixels for images in predicted) / (first.size[0] * first.size[1])
    progress("measuring", kinds, kinds)
    return _Times(steps, reading, labelling, evaluation)


def _stages(experiment: Experiment, sets: ImageSets, times: _Times) -> Iterator[Stage]:
    """Yield the cost of the source network and of every round."""

    def trained(optimiser: Optimiser, images: int) -> tuple[int, float]:
        iterations = count_iterations(optimiser, images)
        step = times.steps[optimiser.batch_size]
        if times.reading is not None:
            load = times.reading * optimiser.batch_size
            # readers work beside the network
            step = max(step, load / experiment.workers) if experiment.workers else step + load
        return iterations, iterations * step

    training, settings = experiment.source_training, experiment.self_training
    source, target = sets.source.number, sets.target.number
    iterations, spent = (0, 0.0) if training is None else trained(training, source)
    yield Stage("source", source if training else 0, iterations, 0.0, spent, times.evaluation)
    for index in range(1, settings.rounds + 1):
        images = len(source_indices(experiment, index, source)) + target
        iterations, spent = trained(settings.retraining, images)
        passes = 1.0
        if index == settings.rounds:  # its own network looks at the target as well, once and without labels
            passes += 0.5 if settings.keep_maps == "recompute" else 1.0
        yield Stage(f"round {index}", images, iterations, passes * target * times.labelling, spent, times.evaluation)


# ---------------------------------------------------------------------------------------------------------- memory


def _memory_now(ctx: mx.Context) -> int:
    if ctx.device_type == "gpu":
        free, total = mx.context.gpu_memory_info(ctx.device_id)
        return total - free
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class _Meter:
    """The largest memory use, scaled from what was measured; `fixed` bytes do not grow with the work."""

    def __init__(self, ctx: mx.Context, fixed: int):
        self._ctx, self._fixed = ctx, fixed
        self.most = fixed

    def note(self, fraction: float) -> None:
        """Take account of a measurement of `fraction` of the work."""
        used = _memory_now(self._ctx)
        self.most = max(self.most, used, int(self._fixed + max(0, used - self._fixed) / fraction))


# ------------------------------------------------------------------------------------------------------------ time


def _repeated(work: Callable[[], Any], budget: float) -> float:
    """Return the median time of `work` over the runs that fit into `budget`, at least one, after one to warm up."""
    start = time.perf_counter()
    work()
    times: list[float] = []
    while not times or (len(times) < _MOST and time.perf_counter() - start + times[-1] < budget):
        before = time.perf_counter()
        work()
        times.append(time.perf_counter() - before)
    return statistics.median(times)


def _training_seconds(
    experiment: Experiment,
    network: gluon.HybridBlock,
    contexts: list[mx.Context],
    batch: int,
    budget: float,
    meter: _Meter,
    plan: Plan,
) -> float:
    """Return the time of one training step of `batch` crops."""
    height, width = experiment.augmentation.crop
    classes = experiment.classes().num_classes
    rng = np.random.default_rng(0)

    def step(size: int, time_left: float) -> float:
        images = rng.standard_normal((size, 3, height, width)).astype(np.float32)
        labels = rng.integers(0, classes, (size, height, width)).astype(np.float32)
        stamps = [time.perf_counter()]

        def batches(first: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for done in itertools.count():
                last = stamps[-1] - stamps[-2] if done else 0.0
                if done > 1 and (done > _MOST or stamps[-1] + last > stamps[0] + time_left):
                    return
                yield images, labels

        def finished(done: int, total: int) -> None:
            mx.nd.waitall()
            stamps.append(time.perf_counter())

        train(
            network,
            batches,  # type: ignore[arg-type]
            Schedule(1e-12, 10**9),  # the parameters stay what they are
            ctx=contexts,
            seed=experiment.seed,
            gradient_checkpointing=experiment.gradient_checkpointing,
            loss_scaling=experiment.amp == "float16",
            progress=finished,
        )
        return statistics.median(np.diff(stamps)[1:])

    small = min(batch, len(contexts))
    start = time.perf_counter()
    seconds, measured = step(small, min(1.0, budget) if small < batch else budget), small
    meter.note(measured / batch)
    if small < batch and time.perf_counter() - start + 2 * seconds * batch / small < budget:
        seconds, measured = step(batch, budget), batch
        meter.note(1.0)
    scaled = "" if measured == batch else f", scaled from {measured}"
    seconds *= batch / measured
    plan.notes.append(f"measured: training step of {batch} crops of {height} x {width}, {seconds:.3g} s{scaled}")
    return seconds


def _reading_seconds(experiment: Experiment) -> float:
    """Return the time to read, cut and normalise one source image with its label."""
    spec = experiment.network_spec()
    samples = labelled_samples(experiment.open_source())[:16]
    loader = BatchLoader(
        samples,
        experiment.augmentation.transform(resampling=experiment.resampling),
        batch_size=1,
        seed=experiment.seed,
        iterations=8,
        workers=0,
        mean=spec.mean,
        std=spec.std,
    )
    start = time.perf_counter()
    for _ in loader:
        pass
    return (time.perf_counter() - start) / len(loader)


def _scaled(
    work: Callable[[ImageSet, float], Any], what: str, size: tuple[int, int], budget: float, meter: _Meter, plan: Plan
) -> float:
    """Return the time that ``work(images, side)`` takes for one image of `size`, if it must from a smaller one."""
    start = time.perf_counter()
    seconds = fraction = 0.0
    for side in _SIDES:
        rows, columns = (max(32, round(side * pixels)) for pixels in size)
        share = rows * columns / (size[0] * size[1])
        if fraction and time.perf_counter() - start + 2 * seconds * share / fraction > budget:
            break
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "image.png"
            rng = np.random.default_rng(0)
            write_rgb_png(path, rng.integers(0, 256, (rows, columns, 3), np.uint8))
            images = ImageSet(["image"], [path])
            seconds = _repeated(functools.partial(work, images, side), budget / 2 if side == 1.0 else 0.0)
        fraction = share
        meter.note(fraction)
    scaled = "" if fraction == 1.0 else f", scaled from {fraction:.2g} of its area"
    plan.notes.append(f"measured: {what} of an image of {size[0]} x {size[1]}, {seconds / fraction:.3g} s{scaled}")
    return seconds / fraction


def _labelling_seconds(
    experiment: Experiment,
    network: gluon.HybridBlock,
    ctx: mx.Context,
    target: Images,
    budget: float,
    meter: _Meter,
    plan: Plan,
) -> float:
    """Return the time of pseudo-labelling one target image: all looks at it, selection and writing."""
    settings = experiment.self_training
    space: LabelSpace = experiment.classes()
    pixels = target.number * target.size[0] * target.size[1]

    def work(images: ImageSet, side: float) -> None:
        with tempfile.TemporaryDirectory() as folder:
            maps = target_maps(experiment, network, images, folder=Path(folder) / "maps", ctx=ctx, side=side)
            label_set(
                maps,
                maps.collector(settings.fidelity, SORTED_PIXELS if pixels <= SORTED_PIXELS else 0),
                policy=settings.policy,
                portion=settings.portion.initial,
                write=lambda name, label: write_label_png(Path(folder) / f"{name}.png", label, space),
                statistics=ImageStatistics(space.num_classes),
            )

    return _scaled(work, "pseudo-labelling", target.size, budget, meter, plan)


def _evaluation_seconds(
    experiment: Experiment,
    network: gluon.HybridBlock,
    ctx: mx.Context,
    images: Images,
    budget: float,
    meter: _Meter,
    plan: Plan,
) -> float:
    """Return the time of predicting one image that is evaluated."""

    def work(chosen: ImageSet, side: float) -> None:
        for _ in predictions(network, chosen, **prediction_options(experiment, ctx, side)):
            pass

    return _scaled(work, "evaluation", images.size, budget, meter, plan)
