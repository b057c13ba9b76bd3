"""The loop: source training, then rounds of pseudo-labelling (step a) and retraining (step b), each evaluated.

The only module that sees the experiment and all stages. Every stage reads its inputs from the run folder and writes its
outputs there, the file that marks it as done last; a finished stage is not run again, so a killed run continues.
Stage 0 is the source network, stage r the network after round r. The last round is the result: none is chosen by
target labels.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any, Callable, Sequence

import numpy as np

from cbst_mx.config import Experiment, Optimiser
from cbst_mx.data import ImageSet, LabelledImageSet
from cbst_mx.data.class_mining import ClassMining
from cbst_mx.data.image_files import write_label_png
from cbst_mx.data.loader import BatchLoader
from cbst_mx.errors import ConfigError, RunError
from cbst_mx.evaluation import confusion, protocols
from cbst_mx.evaluation.evaluate import evaluate_network
from cbst_mx.files import atomic_folder, check_free_space, read_json, write_json
from cbst_mx.messages import Progress, silent
from cbst_mx.networks.build import build_network, output_size, parameter_bytes
from cbst_mx.networks.devices import parse_contexts, set_precision
from cbst_mx.networks.parameters import load_network, load_parameters, save_parameters
from cbst_mx.run_dir import RunDir, StageDir
from cbst_mx.selftrain import class_statistics, guard, prior_files, spatial_prior
from cbst_mx.selftrain.class_statistics import ImageStatistics
from cbst_mx.selftrain.portion import iterations_of_epochs, learning_rate, portion, select_source
from cbst_mx.selftrain.selection import PIXEL_BYTES, Needs, label_set
from cbst_mx.selftrain.target_maps import SORTED_PIXELS, TargetMaps, maps_needed
from cbst_mx.training.adversarial import adapt_output_space
from cbst_mx.training.losses import label_stride
from cbst_mx.training.samples import Samples, labelled_samples, pseudo_labelled_samples, unlabelled_samples
from cbst_mx.training.sgd import Schedule, train
from cbst_mx.training.steps import segments_of
from symbols.backend import gluon, mx

__all__ = [
    "Run",
    "iterations_of",
    "needs",
    "scaled_side",
    "source_of_round",
    "target_maps",
]

logger = logging.getLogger(__name__)


def source_of_round(experiment: Experiment, index: int, total: int) -> list[int]:
    """Return which of `total` source images round `index` trains on."""
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


def iterations_of(optimiser: Optimiser, images: int) -> int:
    """Return the iterations of a training phase over `images` images."""
    if optimiser.iterations is not None:
        return optimiser.iterations
    return iterations_of_epochs(optimiser.epochs or 0, images=images, batch_size=optimiser.batch_size)


def needs(
    experiment: Experiment,
    network: gluon.HybridBlock,
    *,
    target: int,
    size: tuple[int, int],
    validation: int,
) -> Needs:
    """Return what the whole run takes beside its network: the folder at its largest, and memory for pseudo-labels.

    Parameters
    ----------
    experiment : Experiment
    network : HybridBlock
        With known shapes.
    target, validation : int
        Number of target and of all validation images.
    size : tuple of int
        Height and width of a target image.
    """
    training = experiment.self_training
    classes = experiment.classes().num_classes
    parameters = parameter_bytes(network)
    labels = target * (size[0] * size[1] // 8 + 2048)  # PNGs of label maps are far below one bit a pixel
    matrices = validation * 8 * classes**2
    keep, maps = maps_needed(
        target,
        size,
        num_classes=classes,
        stride=network.stride,
        keep=training.keep_maps,
        scales=training.scales,
        long_side=training.long_side,
    )
    kept = {keep: maps} if training.rounds else {}
    checkpoint = 3 * parameters  # parameters and momentum, twice while one replaces the other
    disk = (training.rounds + 1) * (parameters + matrices) + training.rounds * labels + checkpoint
    pixels = size[0] * size[1]
    pool = target * pixels if target * pixels <= SORTED_PIXELS else 0  # sorted, or else counted
    memory = PIXEL_BYTES * pixels + 20 * pool if training.rounds else 0  # sorting copies values and classes
    return Needs(disk + kept.get("disk", 0), memory + kept.get("memory", 0))


def scaled_side(long_side: int | None, side: float) -> int | None:
    """Return `long_side` (pixels) times the factor `side`, at least the 32 pixels of the smallest input; None stays."""
    return None if long_side is None else max(32, round(side * long_side))


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
    """Return the maps of target images as the experiment wants them; `side` is a factor of its `long_side`."""
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
        long_side=scaled_side(training.long_side, side),
    )


class Run:
    """One experiment in one run folder.

    Parameters
    ----------
    experiment : Experiment
        What to run.
    out : Path
        The run folder; created, or continued when it is this experiment's.
    progress : callable, optional
        Called with (what, done, in all) as work goes on.

    Raises
    ------
    CBSTError
        If an input cannot be used or the folder is another run's: before anything is written.
    """

    def __init__(self, experiment: Experiment, out: Path, *, progress: Progress = silent):
        self.experiment = experiment
        self.progress = progress
        self.label_space = experiment.classes()
        self.spec = experiment.network_spec()
        self.contexts = parse_contexts(experiment.ctx)
        self.ctx = self.contexts[0]  # where everything but training computes
        set_precision(experiment.amp, self.contexts)
        self.source = experiment.open_source()
        self.target = experiment.open_target()
        self.validation = experiment.open_validation()
        self._network: gluon.HybridBlock | None = None
        self._holds = -1  # the stage whose parameters the network holds
        self._logging = False
        network = build_network(self.spec, self.ctx, seed=experiment.seed)
        self._check_training(network)
        if experiment.initial_parameters is not None:
            self._load(network, Path(experiment.initial_parameters))
        elif experiment.pretrained is not None:
            path = experiment.pretrained_path()
            if not path.is_file():
                raise ConfigError(
                    f"pretrained weights {path} do not exist: make them with cbst-mx import-weights FILE "
                    f"--network {self.spec.name} --num-classes {self.spec.num_classes} --out {path}"
                )
            self._load(network, path)
        #: What the run takes beside its network.
        self.needs = needs(
            experiment,
            network,
            target=len(self.target),
            size=self.target.image(0).shape[:2],
            validation=sum(map(len, self.validation.values())),
        )
        check_free_space(out, self.needs.disk)
        counts = {"source": len(self.source), "target": len(self.target)}
        counts.update({f"validation {name}": len(images) for name, images in self.validation.items()})
        self.dir = RunDir.open(out, experiment.to_yaml(), identity=experiment.identity, inputs={"images": counts})

    # -- stages --------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Run every stage that is not done yet and return the summary."""
        with self.logging():
            logger.info(
                "%s: up to %.0f MB on the disk and, beside the network's own, %.0f MB of memory",
                self.experiment.name,
                self.needs.disk / 1e6,
                self.needs.memory / 1e6,
            )
            self.train_source()
            self.evaluate(0)
            for index in range(1, self.experiment.self_training.rounds + 1):
                self.round(index)
            return self.write_summary()

    def round(self, index: int) -> None:
        """Run round `index` (1 is the first): pseudo-labels, retraining, evaluation."""
        self.pseudo_label(index)
        self.retrain(index)
        self.evaluate(index)

    def train_source(self) -> None:
        """Train the source network, or take over the initial parameters; then warm up, where the experiment says so."""
        stage = self.dir.stage(0)
        if stage.training.is_file():
            return
        experiment = self.experiment
        if experiment.initial_parameters is not None:
            network = build_network(self.spec, self.ctx)
            self._load(network, Path(experiment.initial_parameters))
            record = {"taken from": str(experiment.initial_parameters)}
            self._finish_training(stage, 0, network, self._warm_up(network, record))
            return
        assert experiment.source_training is not None  # the experiment has been validated
        if experiment.pretrained is None:
            network = build_network(self.spec, self.ctx, seed=experiment.seed)
        else:
            network = build_network(self.spec, self.ctx)
            self._load(network, experiment.pretrained_path())
        self._train(stage, 0, network, experiment.source_training, labelled_samples(self.source))

    def pseudo_label(self, index: int) -> None:
        """Step a) of round `index`: thresholds from the confidences of all target images, then their pseudo-labels.

        Raises
        ------
        RunError
            If the network of the round before is not there.
        """
        stage = self._round_stage(index)
        if stage.thresholds.is_file():
            return
        training = self.experiment.self_training
        network = self._network_of(index - 1)
        p = portion(index, **training.portion.model_dump(), fidelity=training.fidelity)
        what = f"{self._title(index)}: pseudo-labels"
        prior = self._prior() if training.method == "cbst-sp" else None
        opened = target_maps(self.experiment, network, self.target, folder=stage.maps, ctx=self.ctx, prior=prior)
        statistics = ImageStatistics(self.label_space.num_classes, self.label_space.names)
        with contextlib.closing(opened) as maps, atomic_folder(stage.pseudo_labels) as folder:
            logger.info("%s: %.0f MB of network output, kept by: %s", what, maps.bytes / 1e6, maps.keep)
            labelling = label_set(
                maps,
                maps.collector(training.fidelity),
                policy=training.policy,
                portion=p,
                write=lambda name, label: write_label_png(folder / f"{name}.png", label, self.label_space),
                what=what,
                statistics=statistics,
                progress=self.progress,
            )
        statistics.save(stage.image_statistics)
        record = labelling.to_json(self.label_space.names, method=training.method, predicted=statistics.total())
        write_json(stage.thresholds, record)
        logger.info("%s: p = %.2f, %.1f %% of the pixels kept", self._title(index), p, 100 * labelling.kept_portion)
        for sentence in self._target_signs(index - 1):
            logger.warning("%s: %s", self._title(index - 1), sentence)

    def retrain(self, index: int) -> None:
        """Step b) of round `index`: SGD on source labels and pseudo-labels together, from the round before's network.

        Raises
        ------
        RunError
            If the pseudo-labels or the network of the round before are not there.
        """
        stage = self._round_stage(index)
        if stage.training.is_file():
            return
        if not stage.thresholds.is_file():
            raise RunError(f"{stage.thresholds} does not exist: run pseudo-label for round {index} first")
        training = self.experiment.self_training
        network = self._network_of(index - 1)
        self._holds = -1  # its parameters change from here on
        source = self._source_of(index)
        samples = labelled_samples(source) + pseudo_labelled_samples(self.target, stage.pseudo_labels, self.label_space)
        groups: list[tuple] = []
        if training.target_per_batch is not None:
            places = training.target_per_batch
            groups = [(len(source), training.retraining.batch_size - places), (len(self.target), places)]
        self._train(
            stage,
            index,
            network,
            training.retraining,
            samples,
            groups=groups,
            parts=[places for _, places in groups] if training.separate_domains else (),
            factor=learning_rate(index, initial=1.0, factor=training.learning_rate_factor),
            mining=self._mining(read_json(stage.thresholds)["predicted"]),
        )

    def _source_of(self, index: int) -> LabelledImageSet:
        """Return the source images round `index` trains on."""
        if self.experiment.self_training.source_portion is None:
            return self.source
        chosen = source_of_round(self.experiment, index, len(self.source))
        logger.info("%s: %d of %d source images", self._title(index), len(chosen), len(self.source))
        return self.source.subset(chosen)

    def _mining(self, counts: list[int]) -> ClassMining | None:
        """Return the rare-class mining for the pixels predicted of every class; ST mines nothing."""
        settings = self.experiment.self_training.mining
        if settings is None or self.experiment.self_training.method == "st":
            return None
        predicted = np.array(counts, dtype=np.int64)
        worst = class_statistics.worst_classes(predicted, min(settings.worst, len(predicted)))
        priority = class_statistics.priority_classes(predicted, settings.priority)
        logger.info(
            "mined classes: %s", ", ".join(self.label_space.names[c] for c in dict.fromkeys([*priority, *worst]))
        )
        return ClassMining(worst, priority, probability=settings.probability)

    def evaluate(self, index: int) -> dict[str, Any]:
        """Evaluate stage `index` on every validation set and return IoU per class and mIoU per set."""
        stage = self.dir.stage(index)
        if stage.evaluation.is_file():
            return read_json(stage.evaluation)
        network = self._network_of(index)
        arrays: dict[str, np.ndarray] = {}
        results: dict[str, Any] = {}
        for name, images in self.validation.items():
            counts = evaluate_network(
                network,
                images,
                classes=self.label_space.names,
                mean=self.spec.mean,
                std=self.spec.std,
                ctx=self.ctx,
                **self.experiment.evaluation.model_dump(),
                batch_size=self.experiment.inference_batch,
                progress=lambda done, total, name=name: self.progress(
                    f"{self._title(index)}: evaluation on {name}", done, total
                ),
            )
            counted = protocols.ImageMatrices(images.label_space.names, images.names, counts)
            arrays.update(counted.arrays(name))
            counts = protocols.narrow(counted, self.label_space.names).counts
            results[name] = confusion.summary(counts.sum(axis=0), self.label_space)
            logger.info("%s: mIoU on %s %.1f %%", self._title(index), name, 100 * results[name]["miou"])
        stage.save_confusion(arrays)
        write_json(stage.evaluation, results)
        for sentence in self._validation_signs(index):
            logger.warning("%s: %s", self._title(index), sentence)
        return results

    def warnings(self, index: int) -> list[str]:
        """Return what speaks for a collapse of stage `index`, as far as its files tell; see `selftrain.guard`."""
        return [*self._target_signs(index), *self._validation_signs(index)]

    def _target_signs(self, index: int) -> list[str]:
        """Return the signs on the target's training images, whose predictions the next round counts."""
        if not 1 <= index < self.experiment.self_training.rounds:
            return []
        stages = self.dir.stage(index + 1), self.dir.stage(1)
        if not all(stage.thresholds.is_file() for stage in stages):
            return []
        now, first = (read_json(stage.thresholds)["predicted"] for stage in stages)
        return [f"on the target's images, {sentence}" for sentence in guard.signs(now, first, self.label_space.names)]

    def _validation_signs(self, index: int) -> list[str]:
        """Return the signs on the validation sets; labels play no part but that unlabelled pixels are left out."""
        stages = self.dir.stage(index), self.dir.stage(0)
        if index == 0 or not all(stage.evaluation.is_file() for stage in stages):
            return []
        now, first = (protocols.read_matrices(stage) for stage in stages)
        found = []
        for name, matrices in now.items():
            counts = (sets[name].counts.sum(axis=(0, 1)) for sets in (now, first))
            found += [f"on validation set {name}, {sentence}" for sentence in guard.signs(*counts, matrices.classes)]
        return found

    def write_summary(self) -> dict[str, Any]:
        """Write and return the results of all stages that have been evaluated; the last one is the run's result."""
        stages: list[dict[str, Any]] = []
        for index in range(self.experiment.self_training.rounds + 1):
            path = self.dir.stage(index).evaluation
            if path.is_file():
                stages.append({"round": index, "evaluation": read_json(path), "warnings": self.warnings(index)})
        summary = {
            "name": self.experiment.name,
            "method": self.experiment.self_training.method,
            "seed": self.experiment.seed,
            "leading": next(iter(self.validation)),
            "stages": stages,
        }
        write_json(self.dir.summary, summary)
        return summary

    @contextlib.contextmanager
    def logging(self):
        """Write what the package logs into the run folder's log file while the (outermost) block runs."""
        if self._logging:
            yield
            return
        self._logging = True
        handler = logging.FileHandler(self.dir.log, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        package = logging.getLogger("cbst_mx")
        level = package.level
        package.addHandler(handler)
        package.setLevel(logging.INFO)
        try:
            yield
        finally:
            self._logging = False
            package.removeHandler(handler)
            package.setLevel(level)
            handler.close()

    def _title(self, index: int) -> str:
        return f"{self.experiment.name}, " + ("source" if index == 0 else f"round {index}")

    # -- parts ---------------------------------------------------------------------------------------------------

    def _train(
        self,
        stage: StageDir,
        index: int,
        network: gluon.HybridBlock,
        optimiser: Optimiser,
        samples: Samples,
        *,
        groups: Sequence[tuple] = (),
        parts: Sequence[int] = (),
        factor: float = 1.0,
        mining: ClassMining | None = None,
    ) -> None:
        experiment = self.experiment
        iterations = iterations_of(optimiser, len(samples))

        def loader(start: int) -> BatchLoader:
            return self._loader(
                samples, optimiser, iterations, start=start, round=index, groups=groups or None, mining=mining
            )

        schedule = Schedule(optimiser.learning_rate * factor, iterations, optimiser.warmup, optimiser.power)
        what = f"{self._title(index)}: training"
        record = train(
            network,
            loader,
            schedule,
            ctx=self.contexts,
            seed=experiment.seed,
            round=index,
            momentum=optimiser.momentum,
            weight_decay=optimiser.weight_decay,
            bias_lr_mult=optimiser.bias_lr_mult,
            bias_wd_mult=optimiser.bias_wd_mult,
            parts=parts,
            gradient_checkpointing=experiment.gradient_checkpointing,
            loss_scaling=experiment.amp == "float16",
            checkpoint=stage.checkpoint,
            checkpoint_every=optimiser.checkpoint_every,
            progress=lambda done, total: self.progress(what, done, total),
        )
        if record.losses:
            logger.info("%s done, %d iterations, last loss %.4f", what, record.iterations, record.losses[-1])
        values = record.to_json()
        self._finish_training(stage, index, network, values if index else self._warm_up(network, values))

    def _warm_up(self, network: gluon.HybridBlock, record: dict[str, Any]) -> dict[str, Any]:
        """Adapt the source network adversarially, where the experiment asks for it; return the record with its own."""
        settings = self.experiment.warm_up
        if settings is None:
            return record
        optimiser = settings.optimiser
        iterations = iterations_of(optimiser, len(self.source) + len(self.target))

        def loader(samples: Samples) -> Callable[[int], BatchLoader]:
            return lambda start: self._loader(samples, optimiser, iterations, start=start)

        adapted = adapt_output_space(
            network,
            loader(labelled_samples(self.source)),
            loader(unlabelled_samples(self.target)),
            Schedule(optimiser.learning_rate, iterations, optimiser.warmup, optimiser.power),
            num_classes=self.label_space.num_classes,
            ctx=self.ctx,
            seed=self.experiment.seed,
            weight=settings.weight,
            discriminator_learning_rate=settings.discriminator_learning_rate,
            discriminator_width=settings.discriminator_width,
            momentum=optimiser.momentum,
            weight_decay=optimiser.weight_decay,
            bias_lr_mult=optimiser.bias_lr_mult,
            bias_wd_mult=optimiser.bias_wd_mult,
            progress=lambda done, total: self.progress(f"{self.experiment.name}, warm-up", done, total),
        )
        return {**record, "warm_up": adapted.to_json()}

    def _loader(self, samples: Samples, optimiser: Optimiser, iterations: int, **options: Any) -> BatchLoader:
        mining = options.pop("mining", None)
        return BatchLoader(
            samples,
            self.experiment.augmentation.transform(mining=mining),
            batch_size=optimiser.batch_size,
            seed=self.experiment.seed,
            iterations=iterations,
            workers=self.experiment.workers,
            mean=self.spec.mean,
            std=self.spec.std,
            **options,
        )

    def _finish_training(self, stage: StageDir, index: int, network: gluon.HybridBlock, record: dict[str, Any]) -> None:
        save_parameters(stage.parameters, network, self.spec, self.label_space, config_hash=self.dir.config_hash)
        write_json(stage.training, record)
        with contextlib.suppress(FileNotFoundError):
            stage.checkpoint.unlink()
        self._network, self._holds = network, index

    def _network_of(self, index: int) -> gluon.HybridBlock:
        """Return the network with the parameters of stage `index`."""
        if self._network is None or self._holds != index:
            stage = self.dir.stage(index)
            if index == 0 and self.experiment.initial_parameters is not None:
                self.train_source()  # takes them over where that is not done
            if not stage.training.is_file():
                what = "source" if index == 0 else f"retrain for round {index}"
                raise RunError(f"{stage.parameters} is not there or not finished: run {what} first")
            self._network, _, _ = load_network(stage.parameters, self.ctx)
            self._holds = index
        return self._network

    def _round_stage(self, index: int) -> StageDir:
        rounds = self.experiment.self_training.rounds
        if not 1 <= index <= rounds:
            raise ConfigError(f"round must be from 1 to {rounds} (self_training.rounds), got {index}")
        return self.dir.stage(index)

    def _prior(self) -> np.ndarray:
        path = self.dir.spatial_prior
        if not path.is_file():
            settings = self.experiment.self_training.spatial_prior
            prior = spatial_prior.estimate(
                self.source,
                (settings.grid[0], settings.grid[1]),
                kernel=settings.kernel,
                progress=lambda done, total: self.progress(f"{self.experiment.name}, spatial prior", done, total),
            )
            prior_files.save(path, prior, {"names": list(self.label_space.names), "kernel": settings.kernel})
        return prior_files.load(path, self.label_space.num_classes, self.label_space.names)

    def _check_training(self, network: gluon.HybridBlock) -> None:
        """Refuse now what would stop a training phase, which may be hours away."""
        experiment = self.experiment
        for phase in (experiment.source_training, experiment.self_training.retraining):
            if phase is not None and phase.batch_size < len(self.contexts):
                raise ConfigError(
                    f"batch_size must be at least the number of devices in ctx {experiment.ctx}, got {phase.batch_size}"
                )
        crop = (experiment.augmentation.crop[0], experiment.augmentation.crop[1])
        label_stride(crop, output_size(network, crop))
        if experiment.gradient_checkpointing:
            segments_of(network)
        if experiment.warm_up is not None and (len(self.contexts) > 1 or experiment.amp == "float16"):
            raise ConfigError(
                f"warm_up runs on one device without float16, got ctx {experiment.ctx}, amp {experiment.amp}"
            )

    def _load(self, network: gluon.HybridBlock, path: Path) -> None:
        with self.ctx:
            load_parameters(network, path, self.spec, self.label_space)
