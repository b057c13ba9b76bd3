"""What the stages of an experiment take: numbers of images and iterations, disk space and memory.

H x W pixels, C classes, N images; bytes.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Callable, NamedTuple

import numpy as np

from cbst_mx.config import Data, Experiment, Optimiser, SourceTraining, below_data_root
from cbst_mx.data import ImageSet
from cbst_mx.data.published import published
from cbst_mx.errors import ConfigError
from cbst_mx.evaluation.label_free import STEP
from cbst_mx.networks.build import parameter_bytes
from cbst_mx.run_dir import RunDir
from cbst_mx.selftrain.portion import iterations_of_epochs, portion, select_source
from cbst_mx.selftrain.selection import PIXEL_BYTES, Needs
from cbst_mx.selftrain.target_maps import SORTED_PIXELS, TargetMaps, maps_needed
from symbols.backend import gluon, mx

__all__ = [
    "ImageSets",
    "Images",
    "Left",
    "count_iterations",
    "count_snapshots",
    "estimate_needs",
    "find_image_sets",
    "find_left",
    "kept_maps",
    "prediction_options",
    "scale_side",
    "source_indices",
    "target_maps",
]


class Images(NamedTuple):
    """Number of images of a set, and the size of the first of them."""

    number: int
    size: tuple[int, int]
    published: bool  # the publisher's figures, for want of the data

    @property
    def pixels(self) -> int:
        """Pixels of all images."""
        return self.number * self.size[0] * self.size[1]


class ImageSets(NamedTuple):
    """Facts of the image sets of an experiment."""

    source: Images
    target: Images
    validation: dict[str, Images]

    def named(self) -> dict[str, Images]:
        """Return all sets by their names in sentences."""
        validation = {f"validation {name}": images for name, images in self.validation.items()}
        return {"source": self.source, "target": self.target, **validation}


def find_image_sets(experiment: Experiment) -> ImageSets:
    """Return the facts of an experiment's image sets, from the publishers where their folders are not there.

    Raises
    ------
    ConfigError
        If a folder is not there and no publisher states the number of its images.
    DataError
        If a folder cannot be used.
    """
    source = _facts(experiment.source, experiment.open_source)
    target = _facts(experiment.target, experiment.open_target)
    validation = {
        name: _facts(data, lambda name=name: experiment.open_validation()[name])  # type: ignore[misc]
        for name, data in experiment.validation.items()
    }
    return ImageSets(source, target, validation)


def _facts(data: Data, open_set: Callable[[], ImageSet]) -> Images:
    """Return the facts of an image set, from the publisher where its folder is not there."""
    root: Path | None = None
    with contextlib.suppress(ConfigError):  # relative, and there is no data root
        root = below_data_root(data.root)
    if root is not None and root.is_dir():
        images = open_set()
        height, width = images.image(0).shape[:2]
        return Images(len(images), (height, width), False)
    found = None if data.list else published(data.format, data.split)
    if found is None:
        what = f"{data.format} with the list {data.list}" if data.list else f"{data.format} data in {data.root}"
        raise ConfigError(f"the number of images must be known, and the folder of {what} is not there: set CBST_DATA")
    count, size = found
    if data.fold is not None:
        held_out = round(count / (data.folds or 10))
        count = count - held_out if data.split == "rest" else held_out
    return Images(count, size, True)


def source_indices(experiment: Experiment, index: int, total: int) -> list[int]:
    """Return which of `total` source images round `index` trains on; all of them where no portion is given."""
    schedule, fidelity = experiment.self_training.source_portion, experiment.self_training.fidelity
    if schedule is None:
        return list(range(total))
    values = schedule.model_dump(exclude={"policy"})
    return select_source(
        total,
        portion(index, **values, fidelity=fidelity),
        round_index=index,
        seed=experiment.seed,
        policy=schedule.policy,
        fidelity=fidelity,
    )


def count_iterations(optimiser: Optimiser, images: int) -> int:
    """Return the iterations of a training phase over `images` images."""
    if optimiser.iterations is not None:
        return optimiser.iterations
    return iterations_of_epochs(optimiser.epochs or 0, images=images, batch_size=optimiser.batch_size)


def count_snapshots(training: SourceTraining | None, images: int) -> int:
    """Return how often the source training over `images` images keeps its network, at its end included."""
    if training is None or not training.snapshots:
        return 0
    every = iterations_of_epochs(training.snapshots, images=images, batch_size=training.batch_size)
    return -(-count_iterations(training, images) // every)


def scale_side(long_side: int | None, side: float) -> int | None:
    """Return `long_side` (pixels) times the factor `side`, at least the 32 pixels of the smallest input; None stays."""
    return None if long_side is None else max(32, round(side * long_side))


class Left(NamedTuple):
    """How many of a run's results are still to be written."""

    parameters: int  # networks of stages
    snapshots: int  # networks of the source training on the way
    labels: int  # rounds of pseudo-labels
    evaluations: int  # of stages and snapshots
    checkpoint: int = 0  # bytes of one that is there already


def find_left(experiment: Experiment, folder: RunDir, *, source: int) -> Left:
    """Return what a run still has to write into its folder.

    Parameters
    ----------
    experiment : Experiment
        The experiment to run.
    folder : RunDir
        Its run folder, which need not exist.
    source : int
        Number of source images.
    """
    stages = [folder.stage(index) for index in range(experiment.self_training.rounds + 1)]
    trained = [stage for stage in stages if stage.training.is_file()]
    snapshots = count_snapshots(experiment.source_training, source)
    kept = snapshots if stages[0].training.is_file() else len(folder.snapshots())
    evaluated = [folder.snapshot(epoch) for epoch in folder.snapshots()]
    return Left(
        len(stages) - len(trained),
        max(0, snapshots - kept),
        sum(not stage.thresholds.is_file() for stage in stages[1:]),
        sum(not stage.evaluation.is_file() for stage in stages)
        + max(0, snapshots - sum(stage.evaluation.is_file() for stage in evaluated)),
        sum(stage.checkpoint.stat().st_size for stage in stages if stage.checkpoint.is_file()),
    )


def estimate_needs(
    experiment: Experiment,
    network: gluon.HybridBlock,
    *,
    source: int,
    target: int,
    size: tuple[int, int],
    validation: int,
    left: Left | None = None,
) -> Needs:
    """Estimate the run's disk space, and the memory that pseudo-labelling needs in addition to the network.

    Parameters
    ----------
    experiment : Experiment
        The experiment to run.
    network : HybridBlock
        Its network, with known shapes.
    source, target, validation : int
        Number of source, target and all validation images.
    size : tuple of int
        Height and width of a target image.
    left : Left, optional
        What is still to be written; None for all of it.
    """
    training = experiment.self_training
    parameters = parameter_bytes(network)
    pixels = size[0] * size[1]
    labels = target * (pixels // 8 + 2048)  # PNGs of label maps are far below one bit a pixel
    # a confusion matrix of 8-byte numbers per image, or the grid of `label_free`
    evaluated = validation * 8 * experiment.classes().num_classes ** 2 or target * pixels // STEP**2
    if left is None:
        kept = count_snapshots(experiment.source_training, source)
        left = Left(training.rounds + 1, kept, training.rounds, training.rounds + 1 + kept)
    # parameters and momentum: two generations, and a third while it is written
    checkpoint = max(0, 6 * parameters - left.checkpoint) if left.parameters else 0
    disk = (left.parameters + left.snapshots) * parameters + left.evaluations * evaluated + left.labels * labels
    disk += checkpoint
    if not left.labels:
        return Needs(disk, 0)
    keep, maps = kept_maps(experiment, target, size, stride=network.stride)
    pool = target * pixels if target * pixels <= SORTED_PIXELS else 0  # sorted, or else counted
    memory = PIXEL_BYTES * pixels + 20 * pool  # sorting copies values and classes
    return Needs(disk + (maps if keep == "disk" else 0), memory + (maps if keep in ("memory", "compact") else 0))


def kept_maps(
    experiment: Experiment, images: int, size: tuple[int, int], *, stride: int, shared: bool = False
) -> tuple[str, int]:
    """Return where the network's output for the target images stays between looks at them, and how much it is.

    Parameters
    ----------
    experiment : Experiment
        The experiment to run.
    images : int
        Number of target images.
    size : tuple of int
        H and W.
    stride : int
        Of the network.
    shared : bool
        Whether the workers of a cluster look at them, none of which has what another keeps in its memory.

    Returns
    -------
    keep : {"memory", "compact", "disk", "recompute"}
    bytes : int
        As for :func:`.maps_needed`.
    """
    training = experiment.self_training
    keep, needed = maps_needed(
        images,
        size,
        num_classes=experiment.classes().num_classes,
        stride=stride,
        keep=training.keep_maps,
        scales=training.scales,
        long_side=training.long_side,
        whole=training.uses_prior or experiment.ctx.startswith("gpu"),
    )
    if shared and keep in ("memory", "compact"):
        keep = "disk" if stride > 1 else "recompute"
    return keep, needed


def target_maps(
    experiment: Experiment,
    network: gluon.HybridBlock,
    images: ImageSet,
    *,
    folder: Path,
    ctx: mx.Context,
    prior: np.ndarray | None = None,
    side: float = 1.0,
) -> TargetMaps:
    """Open the maps of target images as the experiment wants them.

    Parameters
    ----------
    experiment : Experiment
        The experiment to run.
    network : HybridBlock
        The network that labels.
    images : ImageSet
        The images to label.
    folder : Path
        Where maps are kept that are kept on the disk.
    ctx : mx.Context
        Where the network computes.
    prior : ndarray of shape (C, h, w), float32, optional
        The spatial prior q_n(c).
    side : float
        Factor of the experiment's `long_side`, for images that are smaller than its own.
    """
    training = experiment.self_training
    spec = experiment.network_spec()
    return TargetMaps(
        network,
        images,
        num_classes=spec.num_classes,
        folder=folder,
        ctx=ctx,
        prior=prior,
        keep=training.keep_maps,
        scales=training.scales,
        interpolation=training.upsampling,
        mean=spec.mean,
        std=spec.std,
        flip=training.flip,
        long_side=scale_side(training.long_side, side),
        resampling=experiment.resampling,
    )


def prediction_options(experiment: Experiment, ctx: mx.Context, side: float = 1.0) -> dict[str, Any]:
    """Return how networks are evaluated, as keyword arguments of :func:`.network_maps.predictions`.

    Parameters
    ----------
    experiment : Experiment
        The experiment to run.
    ctx : mx.Context
        Where the network computes.
    side : float
        Factor of the experiment's `long_side`, for images that are smaller than its own.
    """
    spec, settings = experiment.network_spec(), experiment.evaluation.model_dump()
    return {
        "mean": spec.mean,
        "std": spec.std,
        "ctx": ctx,
        "batch_size": experiment.inference_batch,
        "interpolation": settings.pop("upsampling"),
        **settings,
        "long_side": scale_side(settings["long_side"], side),
        "resampling": experiment.resampling,
    }
