"""What an experiment costs, before it starts: images, iterations, time, memory and disk.

The network, with random parameters, takes a few training steps and labels and evaluates images on this device, at two
or more amounts of work (crops, images, parts of their area); a line through them gives the rest, see
`cbst_mx.planning.measure`. What is said is how long the run takes on a machine that does nothing else, how far that may
be off, and how much slower other programs made the measurement. H x W pixels, seconds, bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from dataclasses import dataclass, field
from typing import Any, Iterator, NamedTuple

from cbst_mx.config import Experiment, Optimiser
from cbst_mx.errors import ConfigError
from cbst_mx.messages import Progress, counted, silent
from cbst_mx.networks.build import build_network
from cbst_mx.networks.devices import Memory, free_memory, parse_contexts, set_precision
from cbst_mx.planning import work
from cbst_mx.planning.measure import Peak, Series
from cbst_mx.planning.sharing import ALONE, Sharing
from cbst_mx.rounds.phases import follow_start, start_path
from cbst_mx.rounds.workload import (
    ImageSets,
    count_iterations,
    count_snapshots,
    estimate_needs,
    find_image_sets,
    kept_maps,
    source_indices,
)
from cbst_mx.training.steps import has_batch_statistics
from symbols.backend import gluon, mx

__all__ = ["Plan", "Sharing", "Stage", "make_plan"]

_GUESS = 4.0  # from so many times what was measured on, a time is hardly more than a guess
_CONTEXT = 1 << 30  # bytes; CUDA's own context takes less of a GPU
_SPREAD = 1.5  # from there on other programs are told of
_UNSURE = 1.3  # factor, where all was measured at its real size: a run also reads, saves and looks at files


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
    unsure : float
        Factor by which the time may be off, up or down, on a machine that does nothing else.
    busy : float
        Factor by which other programs made the measurement slower, at most.
    warnings : list of str
        Sentences on what is likely a mistake.
    notes : list of str
        Sentences on how it was measured, and on what is not counted.
    """

    device: str
    disk: int = 0
    memory: int = 0
    unsure: float = 1.0
    busy: float = 1.0
    warnings: list[str] = field(default_factory=list)
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
    sharing: Sharing = ALONE,
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
    sharing : Sharing
        Of a run on a cluster.
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
    sharing.check(experiment)
    contexts = parse_contexts(experiment.ctx)
    set_precision(experiment.amp, contexts)
    sets = find_image_sets(experiment)
    plan = Plan(device=experiment.ctx + ("" if experiment.amp == "none" else f", {experiment.amp}"))
    missing = [name for name, images in sets.named().items() if images.published]
    if missing:
        plan.notes.append(f"the data are not here ({', '.join(missing)}): the publishers' numbers of images are used")
    plan.warnings += _find_mistakes(experiment, sets)
    memory = free_memory(contexts[0])
    plan.warnings += _find_others(contexts[0], memory)
    network = build_network(experiment.network_spec(), contexts[0], seed=experiment.seed)
    peak = Peak(contexts[0], network)
    times = _measure(experiment, network, contexts, sets, seconds, peak, plan, sharing, progress)

    plan.stages += _stages(experiment, sets, times, network.stride, sharing)
    plan.notes += sharing.notes(network)
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
    if memory is None:
        plan.memory += needs.memory  # one image was labelled; the pool and the maps of all of them are more
    elif plan.memory > memory.total:
        plan.warnings.append(
            f"about {plan.memory / 1e9:.1f} GB of GPU memory are needed, and gpu:{contexts[0].device_id} has "
            f"{memory.total / 1e9:.1f} GB: --set images_per_pass, inference_batch or augmentation.crop lower, or "
            "--amp float16"
        )
    return plan


def _find_others(ctx: mx.Context, memory: Memory | None) -> Iterator[str]:
    """Yield whether other programs hold much of a GPU's memory before anything of this one is there."""
    if memory is not None and memory.total - memory.free > _CONTEXT:
        beside = "other programs hold the rest, and what fits is measured beside them"
        yield f"gpu:{ctx.device_id} has only {memory}: {beside}"


def _find_mistakes(experiment: Experiment, sets: ImageSets) -> Iterator[str]:
    """Yield what is likely a mistake of the experiment: a start that is not there, crops larger than the images."""
    with contextlib.suppress(ConfigError):
        start = start_path(experiment)
        if start is not None and not start.is_file():
            yield f"{start} is not there: the run starts from these parameters"
    height, width = experiment.augmentation.crop
    for name, images in (("source", sets.source), ("target", sets.target)):
        rows, columns = images.size
        if height > rows or width > columns:
            yield (
                f"crops of {height} x {width} are larger than the {name} images of {rows} x {columns}: their rest is "
                "padding, which costs time and memory; set augmentation.crop"
            )


class _Times(NamedTuple):
    """Measured seconds."""

    steps: dict[int, float]  # of a training step, by batch size; of the process with the largest part of it
    start: float  # of a training phase, before its first step
    reading: float | None  # of reading a source image; None where there is none to read
    labelling: float  # of pseudo-labelling an image
    evaluation: float  # of evaluating all validation images, or of predicting the target's where there are none


def _measure(
    experiment: Experiment,
    network: gluon.HybridBlock,
    contexts: list[mx.Context],
    sets: ImageSets,
    seconds: float,
    peak: Peak,
    plan: Plan,
    sharing: Sharing,
    progress: Progress,
) -> _Times:
    """Measure every kind of work in about `seconds`, and note in `plan` how."""
    training, settings = experiment.source_training, experiment.self_training
    phases = [training, settings.retraining if settings.rounds else None]
    batches = sorted({phase.batch_size for phase in phases if phase is not None})
    kinds = (1 if batches else 0) + (2 if settings.rounds else 1)  # training steps, labelling, evaluation
    share, done = seconds / kinds, itertools.count()
    found = _Findings(plan, peak.limit())
    # images before training: the memory of gradients and momentum stays
    progress("measuring", next(done), kinds)
    predicted = list(sets.validation.values()) or [sets.target]  # without a validation set, as `label_free` says
    first = predicted[0]
    number = min(work.evaluated_at_once(experiment, contexts[0], first.size), max(one.number for one in predicted))
    series = work.evaluation(experiment, network, contexts[0], first.size, number, share, peak)
    what = f"evaluation of {counted(number, 'image')} of {first.size[0]} x {first.size[1]}"
    evaluation = found.add(series, what, number) / number
    found.tell_fitting(series, number, "images", "inference_batch", "evaluation.long_side")
    # images of one size, or nearly: measured once, and counted by their area
    evaluation *= sum(images.pixels for images in predicted) / (first.size[0] * first.size[1])
    labelling = 0.0
    if settings.rounds:
        progress("measuring", next(done), kinds)
        size = sets.target.size
        series = work.labelling(experiment, network, contexts[0], sets.target, share, peak, sharing.processes > 1)
        labelling = found.add(series, f"pseudo-labelling of an image of {size[0]} x {size[1]}", 1)
        found.tell_fitting(series, 0, "images", "", "self_training.long_side")
    steps: dict[int, float] = {}
    start = 0.0
    if batches:
        progress("measuring", next(done), kinds)
        crop = "{} x {}".format(*experiment.augmentation.crop)
        parts = {batch: sharing.part(batch) for batch in batches}
        series = work.training(experiment, network, contexts, sorted({*parts.values()}), share, peak)
        start = series.start
        divides = "batch_size" if has_batch_statistics(network) else "images_per_pass"
        most = 0 if experiment.images_per_pass else max(parts.values())
        found.tell_fitting(series, most, "crops", divides, "augmentation.crop", least=len(contexts))
        exchange = sharing.exchange(network)
        for batch, part in parts.items():
            steps[batch] = exchange + found.add(series, f"training step of {counted(part, 'crop')} of {crop}", part)
    reading = None if sets.source.published else work.reading_seconds(experiment)
    if reading is None:
        plan.notes.append("the time to read images is not counted in training: there are none to read here")
    found.close(seconds)
    progress("measuring", kinds, kinds)
    return _Times(steps, start, reading, labelling, evaluation)


class _Findings:
    """Turns measurements into a plan: the largest memory, how sure the times are, and a sentence on each.

    Of a GPU `limit` is how many bytes can be taken.
    """

    def __init__(self, plan: Plan, limit: int | None = None):
        self._plan, self._limit, self._busy, self._stretch = plan, limit, 1.0, 1.0

    def add(self, series: Series, what: str, amount: float) -> float:
        """Take one kind of work, of which `amount` is done at a time, and return its seconds."""
        plan, seconds, stretch = self._plan, series.seconds_at(amount), series.stretch(amount)
        # what did not fit is done in smaller parts, as `tell_fitting` says
        fits = series.too_large is None
        plan.memory = max(plan.memory, series.bytes_at(amount) if fits else max(series.peaks))
        self._busy, self._stretch = max(self._busy, series.busy), max(self._stretch, stretch)
        scaled = "" if stretch == 1.0 else f", extrapolated from {1 / stretch:.2g} of it: uncertain"
        plan.notes.append(f"measured: {what}, {seconds:.3g} s{scaled}")
        return seconds

    def tell_fitting(self, series: Series, amount: int, things: str, key: str, size: str, *, least: int = 1) -> None:
        """Say how many fit into a GPU's memory at once, as a warning where that is not what the experiment has.

        Parameters
        ----------
        series : Series
            What was measured.
        amount : int
            How many of them the experiment has at once; 0 where their number is fixed.
        things : str
            What there were several of: "crops" or "images".
        key, size : str
            Keys of the experiment: how many pass at once ("" where it is one), and how large they are.
        least : int
            How many must pass at once.
        """
        if series.too_large is None:
            if self._limit is not None and amount:
                number, ends = series.room(amount, self._limit)
                said = f"{counted(number, things[:-1])} at once"
                line = f"{said}, not for {2 * number}, by the line through what was measured"
                self._plan.notes.append(f"the GPU has memory for {line if ends else f'at least {said}'}")
            return
        most = series.amounts[-1]
        if most >= least and key:
            advice = f"{series.too_large:g} {things} at once do not fit into the GPU's memory, {most:g} do: "
            advice += f"--set {key}={most:g}" if key != "batch_size" else f"lower {key}"
        else:
            share = f"{things} of {most / least:.2g} of their area do"
            advice = f"{things} do not fit into the GPU's memory even one at a time, {share}: lower {size}"
        self._plan.warnings.append(advice)

    def close(self, seconds: float) -> None:
        """State how far the time may be off, where `seconds` were there to measure."""
        plan = self._plan
        if self._stretch > _GUESS:
            plan.warnings.append(
                f"in {seconds:g} s no more than {1 / self._stretch:.2g} of what is done at a time could be measured; "
                f"the times are hardly more than a guess, give --seconds {max(60, 10 * seconds):g}"
            )
        # a rule of thumb: a quarter for each doubling that is not measured
        plan.unsure = _UNSURE * (1 + 0.25 * math.log2(self._stretch))
        plan.unsure *= min(self._busy, _SPREAD)  # repeats that differ may be other programs, or the machine itself
        plan.busy = self._busy


def _stages(experiment: Experiment, sets: ImageSets, times: _Times, stride: int, sharing: Sharing) -> Iterator[Stage]:
    """Yield the cost of the source network and of every round."""

    def trained(optimiser: Optimiser, images: int) -> tuple[int, float]:
        iterations = count_iterations(optimiser, images)
        step = times.steps[optimiser.batch_size]
        if times.reading is not None:
            step = work.with_reading(step, times.reading * sharing.part(optimiser.batch_size), experiment)
        return iterations, times.start + iterations * step

    training, settings = experiment.source_training, experiment.self_training
    source, target = sets.source.number, sets.target.number
    labelling, evaluation = times.labelling / sharing.processes, times.evaluation / sharing.processes
    iterations, spent = (0, 0.0) if training is None else trained(training, source)
    yield Stage("source", source if training else 0, iterations, 0.0, spent, evaluation)
    for index in range(1, settings.rounds + 1):
        images = len(source_indices(experiment, index, source)) + target
        iterations, spent = trained(settings.retraining, images)
        passes = 1.0
        if index == settings.rounds:  # its own network looks at the target as well, once and without labels
            keep, _ = kept_maps(experiment, target, sets.target.size, stride=stride, shared=sharing.processes > 1)
            passes += 0.5 if keep == "recompute" else 1.0
        yield Stage(f"round {index}", images, iterations, passes * target * labelling, spent, evaluation)
