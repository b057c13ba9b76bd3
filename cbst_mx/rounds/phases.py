"""The phases of a run, from the settings of an experiment to the arguments of training and evaluation.

C classes. Each function does one phase and knows nothing of run folders: which phases are due, and where their results
go, is the matter of `run`.
"""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

import numpy as np

from cbst_mx.config import Experiment, Optimiser
from cbst_mx.data import ImageSet, LabelledImageSet
from cbst_mx.data.class_mining import ClassMining
from cbst_mx.data.loader import BatchLoader
from cbst_mx.errors import ConfigError, check_choice
from cbst_mx.messages import Counter
from cbst_mx.networks.build import build_network, output_size
from cbst_mx.networks.devices import parse_contexts
from cbst_mx.networks.parameters import load_parameters
from cbst_mx.networks.sidecars import read_sidecar, sidecar_path
from cbst_mx.rounds.continuation import lower_rate, phase_identity
from cbst_mx.rounds.workload import count_iterations, source_indices
from cbst_mx.selftrain import class_statistics
from cbst_mx.selftrain.portion import learning_rate
from cbst_mx.training.adversarial import adapt_output_space
from cbst_mx.training.losses import label_stride
from cbst_mx.training.ranks import ALONE, Team
from cbst_mx.training.record import TrainingRecord
from cbst_mx.training.samples import Sample, labelled_samples, unlabelled_samples
from cbst_mx.training.sgd import Schedule, check_per_pass, train
from cbst_mx.training.steps import segments_of
from symbols.backend import gluon, mx

__all__ = [
    "check_batches",
    "follow_start",
    "mine_classes",
    "retraining_options",
    "source_of_round",
    "start_network",
    "start_path",
    "train_phase",
    "warm_up",
    "without_start",
]

logger = logging.getLogger(__name__)

FOLLOWED = ("skip_scale", "hidden", "kernel")


def follow_start(
    experiment: Experiment, *, kept: Path | None = None, data_root: Path | None = None
) -> tuple[Experiment, list[str]]:
    """Return the experiment with the input of the parameters that it starts from, whatever it states itself.

    Images that a network was not trained on make its parameters worthless, so their sidecar decides on mean and std. It
    also decides on those options of the network that belong to the weights (`FOLLOWED`), where the experiment does not
    state them.

    Parameters
    ----------
    experiment : Experiment
        The experiment to run.
    kept : Path, optional
        Parameters of the source network of a run that is continued; they stand for the file when it is gone.
    data_root : Path, optional
        As for :func:`start_network`.

    Returns
    -------
    experiment : Experiment
        The same object where it starts from nothing, or states what the parameters need.
    changes : list of str
        A sentence for the log per setting that was changed.

    Raises
    ------
    CheckpointError
        If the sidecar of the parameters is damaged.
    """
    path = start_path(experiment, data_root)
    if path is not None and kept is not None and not path.is_file():
        path = kept
    if path is None or not path.is_file() or not sidecar_path(path).is_file():
        return experiment, []  # refused by start_network, with what is missing
    stored, own = read_sidecar(path)[0], experiment.network_spec()
    if stored.name != own.name:
        return experiment, []
    changes: list[str] = []
    update: dict[str, Any] = {}
    if (stored.mean, stored.std) != (own.mean, own.std):
        update.update(mean=list(stored.mean), std=list(stored.std))
        changes.append(f"input as of {path}: {stored.input_text()}, not {own.input_text()} as in the experiment")
    taken = {key: stored.options[key] for key in FOLLOWED if key in stored.options and key not in own.options}
    if taken:
        update.update(options={**own.options, **taken})
        changes.append(f"network as of {path}: " + ", ".join(f"{key} {value}" for key, value in taken.items()))
    if not update:
        return experiment, []
    return experiment.model_copy(update={"network": experiment.network.model_copy(update=update)}), changes


def start_path(experiment: Experiment, data_root: Path | None = None) -> Path | None:
    """Return the file of the parameters that an experiment starts from; None for random ones.

    Raises
    ------
    ConfigError
        If the path is relative and there is no data root.
    """
    if experiment.initial_parameters is not None:
        return Path(experiment.initial_parameters)
    return None if experiment.pretrained is None else experiment.pretrained_path(data_root)


def start_network(
    experiment: Experiment, contexts: Sequence[mx.Context], *, data_root: Path | None = None
) -> gluon.HybridBlock:
    """Build the network of an experiment with the parameters it starts from: given, pretrained or random ones.

    Parameters
    ----------
    experiment : Experiment
        The experiment to run.
    contexts : sequence of mx.Context
        Devices of its training; the network lives on the first.
    data_root : Path, optional
        Folder that relative paths of pretrained parameters are in, instead of the one in ``CBST_DATA``.

    Raises
    ------
    ConfigError
        If a training phase could not work, which may be hours away, or pretrained parameters do not exist.
    CheckpointError
        If the parameters cannot be used.
    """
    spec = experiment.network_spec()
    network = build_network(spec, contexts[0], seed=experiment.seed)
    _check_training(experiment, network, len(contexts))
    path = start_path(experiment, data_root)
    if path is None:
        return network
    if experiment.pretrained is not None and not path.is_file():
        raise ConfigError(
            f"pretrained weights {path} do not exist: make them with cbst-mx import-weights FILE "
            f"--network {spec.name} --num-classes {spec.num_classes} --out {path}"
        )
    with contexts[0]:
        load_parameters(network, path, spec, experiment.classes())
    return network


def without_start(experiment: Experiment) -> Experiment:
    """Return the experiment with random parameters at its start: for a network of which only the shape matters."""
    return experiment.model_copy(update={"initial_parameters": None, "pretrained": None})


def check_batches(experiment: Experiment, processes: int = 1) -> None:
    """Refuse batches of fewer images than there are devices in all `processes` that train.

    Raises
    ------
    ConfigError
        If a phase has such batches, or passes of one.
    """
    devices = processes * len(parse_contexts(experiment.ctx))
    where = f"in ctx {experiment.ctx}" + (f" of {processes} processes" if processes > 1 else "")
    training = experiment.self_training
    sizes = [
        ("batch_size", phase.batch_size)
        for phase in (experiment.source_training, training.retraining if training.rounds else None)
        if phase is not None
    ]
    if processes > 1 and training.separate_domains and training.target_per_batch is not None:
        domains = training.target_per_batch, training.retraining.batch_size - training.target_per_batch
        sizes.append(("each domain's part of a batch", min(domains)))
    if processes > 1 and experiment.images_per_pass:
        sizes.append(("images_per_pass", experiment.images_per_pass))
    for name, size in sizes:
        if size < devices:
            raise ConfigError(f"{name} must be at least the number of devices {where}, got {size}")


def _check_training(experiment: Experiment, network: gluon.HybridBlock, devices: int) -> None:
    """Refuse now what would stop a training phase."""
    check_batches(experiment)
    mining = experiment.self_training.mining
    for name in mining.classes or () if mining is not None else ():
        check_choice("mining.classes", name, experiment.classes().names)
    crop = (experiment.augmentation.crop[0], experiment.augmentation.crop[1])
    label_stride(crop, output_size(network, crop))
    if experiment.gradient_checkpointing:
        segments_of(network)
    if experiment.images_per_pass:
        check_per_pass(network, experiment.images_per_pass, devices)
    if experiment.warm_up is not None and (devices > 1 or experiment.amp == "float16"):
        raise ConfigError(f"warm_up runs on one device without float16, got ctx {experiment.ctx}, amp {experiment.amp}")


def source_of_round(experiment: Experiment, index: int, source: LabelledImageSet) -> LabelledImageSet:
    """Return the source images that round `index` trains on, and log how many where the experiment takes a portion.

    Parameters
    ----------
    experiment : Experiment
        The experiment that is run.
    index : int
        Round, 1 is the first.
    source : LabelledImageSet
        All source images.
    """
    chosen = source_indices(experiment, index, len(source))
    if experiment.self_training.source_portion is not None:
        logger.info("%s, round %d: %d of %d source images", experiment.name, index, len(chosen), len(source))
    return source.subset(chosen)


def retraining_options(experiment: Experiment, index: int, source: int, target: int) -> dict[str, Any]:
    """Return how round `index` composes its batches and its learning rate, as arguments of :func:`train_phase`.

    Parameters
    ----------
    experiment : Experiment
        The experiment that is run.
    index : int
        Round, 1 is the first.
    source, target : int
        Numbers of images it trains on.

    Returns
    -------
    dict
        ``groups``, ``parts`` and ``factor``.
    """
    training = experiment.self_training
    groups: list[tuple[int, int]] = []
    if training.target_per_batch is not None:
        places = training.target_per_batch
        groups = [(source, training.retraining.batch_size - places), (target, places)]
    return {
        "groups": groups,
        "parts": [places for _, places in groups] if training.separate_domains else (),
        "factor": learning_rate(index, initial=1.0, factor=training.learning_rate_factor),
    }


def train_phase(
    experiment: Experiment,
    network: gluon.HybridBlock,
    optimiser: Optimiser,
    samples: list[Sample],
    *,
    index: int,
    contexts: Sequence[mx.Context],
    checkpoint: Path,
    progress: Counter,
    groups: Sequence[tuple[int, int]] = (),
    parts: Sequence[int] = (),
    factor: float = 1.0,
    mining: ClassMining | None = None,
    snapshot: Callable[[int], None] | None = None,
    snapshot_every: int = 0,
    team: Team = ALONE,
    elsewhere: Callable[[int], None] | None = None,
) -> TrainingRecord:
    """Train the network in place by SGD, from the checkpoint where there is one.

    Parameters
    ----------
    experiment : Experiment
        The experiment that is run.
    network : HybridBlock
        The network to train.
    optimiser : Optimiser
        Settings of the phase.
    samples : list of Sample
        Images with their labels.
    index : int
        Stage: 0 for the source training, else the round; it seeds the order of the samples and their changes.
    contexts : sequence of mx.Context
        Devices.
    checkpoint : Path
        File of parameters and momentum within the phase.
    progress : callable
        Called with (done, in all).
    groups, parts
        Composition of batches, as for :class:`.BatchLoader` and :func:`.train`.
    factor : float
        Factor of the learning rate.
    mining : ClassMining, optional
        Rare-class mining of crops.
    snapshot, snapshot_every, team, elsewhere
        As for :func:`.train`.
    """
    iterations = count_iterations(optimiser, len(samples))
    return train(
        network,
        functools.partial(
            _batches, experiment, samples, optimiser, iterations, index=index, groups=groups or None, mining=mining
        ),
        Schedule(optimiser.learning_rate * factor, iterations, optimiser.warmup, optimiser.power),
        ctx=list(contexts),
        seed=experiment.seed,
        round=index,
        momentum=optimiser.momentum,
        weight_decay=optimiser.weight_decay,
        bias_lr_mult=optimiser.bias_lr_mult,
        bias_wd_mult=optimiser.bias_wd_mult,
        parts=parts,
        per_pass=experiment.images_per_pass,
        gradient_checkpointing=experiment.gradient_checkpointing,
        loss_scaling=experiment.amp == "float16",
        checkpoint=checkpoint,
        checkpoint_every=optimiser.checkpoint_every,
        checkpoint_minutes=optimiser.checkpoint_minutes,
        # for who comes next: the adversarial warm-up, in which a stop would else lose it, or another process
        checkpoint_end=team is not ALONE or index == 0 and experiment.warm_up is not None,
        identity=phase_identity(experiment, index, "training"),
        advice=lower_rate(experiment, index, checkpoint),
        snapshot=snapshot,
        snapshot_every=snapshot_every,
        team=team,
        elsewhere=elsewhere,
        progress=progress,
    )


def _batches(
    experiment: Experiment,
    samples: list[Sample],
    optimiser: Optimiser,
    iterations: int,
    start: int,
    *,
    index: int = 0,
    groups: Sequence[tuple[int, int]] | None = None,
    mining: ClassMining | None = None,
) -> BatchLoader:
    """Return the batches of a phase from iteration `start` on."""
    spec = experiment.network_spec()
    return BatchLoader(
        samples,
        experiment.augmentation.transform(mining=mining, resampling=experiment.resampling),
        batch_size=optimiser.batch_size,
        seed=experiment.seed,
        round=index,
        iterations=iterations,
        start=start,
        workers=experiment.workers,
        cache=experiment.cache_mb * 1_000_000,
        mean=spec.mean,
        std=spec.std,
        groups=groups,
    )


def warm_up(
    experiment: Experiment,
    network: gluon.HybridBlock,
    source: LabelledImageSet,
    target: ImageSet,
    *,
    ctx: mx.Context,
    checkpoint: Path,
    progress: Counter,
) -> dict[str, Any]:
    """Adapt the source network adversarially, where the experiment asks for it.

    Parameters
    ----------
    experiment : Experiment
        The experiment that is run.
    network : HybridBlock
        The source network, adapted in place.
    source, target : image sets
        Labelled images, and images without labels.
    ctx : mx.Context
        Device.
    checkpoint : Path
        File of both networks and their optimisers within the warm-up.
    progress : callable
        Called with (done, in all).

    Returns
    -------
    dict
        Its record under the key ``warm_up``, as JSON values; empty where the experiment asks for none.
    """
    settings = experiment.warm_up
    if settings is None:
        return {}
    optimiser = settings.optimiser
    iterations = count_iterations(optimiser, len(source) + len(target))
    adapted = adapt_output_space(
        network,
        functools.partial(_batches, experiment, labelled_samples(source), optimiser, iterations),
        functools.partial(_batches, experiment, unlabelled_samples(target), optimiser, iterations),
        Schedule(optimiser.learning_rate, iterations, optimiser.warmup, optimiser.power),
        num_classes=experiment.classes().num_classes,
        ctx=ctx,
        seed=experiment.seed,
        weight=settings.weight,
        discriminator_learning_rate=settings.discriminator_learning_rate,
        discriminator_width=settings.discriminator_width,
        momentum=optimiser.momentum,
        weight_decay=optimiser.weight_decay,
        bias_lr_mult=optimiser.bias_lr_mult,
        bias_wd_mult=optimiser.bias_wd_mult,
        checkpoint=checkpoint,
        checkpoint_every=optimiser.checkpoint_every,
        checkpoint_minutes=optimiser.checkpoint_minutes,
        identity=phase_identity(experiment, 0, "warm-up"),
        advice=lower_rate(experiment, 0, checkpoint, warm_up=True),
        progress=progress,
    )
    return {"warm_up": adapted.to_json()}


def mine_classes(experiment: Experiment, record: Mapping[str, Any]) -> ClassMining | None:
    """Return the rare-class mining of a round; None where the experiment has none for its method.

    Parameters
    ----------
    experiment : Experiment
        The experiment that is run.
    record : mapping
        Record of the round's pseudo-labels; its ``predicted`` has the pixels predicted as each class.
    """
    settings = experiment.self_training.mining
    if settings is None or experiment.self_training.method not in settings.methods:
        return None
    if settings.classes is not None:
        known = experiment.classes().names
        return ClassMining([known.index(name) for name in settings.classes], probability=settings.probability)
    predicted = np.array(record["predicted"], dtype=np.int64)
    worst = class_statistics.worst_classes(predicted, min(settings.worst, len(predicted)))
    priority = class_statistics.priority_classes(predicted, settings.priority)
    names = experiment.classes().names
    logger.info("mined classes: %s", ", ".join(names[c] for c in dict.fromkeys([*priority, *worst])))
    return ClassMining(worst, priority, probability=settings.probability)
