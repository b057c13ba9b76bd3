"""The loop: source training, then rounds of pseudo-labelling (step a) and retraining (step b), each evaluated.

Every stage reads its inputs from the run folder and writes its outputs there, the file that marks it as done last; a
finished stage is not run again, so a killed run continues. What the folder then says is read by `run_results`.
Stage 0 is the source network, stage r the network after round r. The last round is the result: none is chosen by
target labels.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from pathlib import Path
from typing import Any

import numpy as np

from cbst_mx.config import Experiment, Optimiser, describe_released_start
from cbst_mx.data import LabelledImageSet
from cbst_mx.data.image_files import read_header, write_label_png
from cbst_mx.errors import ConfigError, RunError
from cbst_mx.evaluation.evaluate import check_labelled
from cbst_mx.evaluation.run_results import RunResults
from cbst_mx.files import atomic_folder, check_free_space, read_json, write_json
from cbst_mx.messages import Progress, silent, stage_title
from cbst_mx.networks.devices import parse_contexts, set_precision
from cbst_mx.networks.parameters import load_network, save_parameters
from cbst_mx.rounds.evaluations import evaluate, evaluate_snapshots, observe, snapshot_options
from cbst_mx.rounds.phases import follow_start, mine_classes, start_network, train_phase, warm_up
from cbst_mx.rounds.prior import describe_prior, given_prior, keep_given, load_prior
from cbst_mx.rounds.workload import estimate_needs, source_indices, target_maps
from cbst_mx.run_dir import RunDir, StageDir
from cbst_mx.selftrain.class_statistics import ImageStatistics
from cbst_mx.selftrain.portion import learning_rate, portion
from cbst_mx.selftrain.selection import label_set, remarks
from cbst_mx.training.samples import Samples, labelled_samples, pseudo_labelled_samples
from symbols.backend import gluon

__all__ = ["Run"]

logger = logging.getLogger(__name__)


class Run:
    """One experiment in one run folder.

    Parameters
    ----------
    experiment : Experiment
        The experiment to run.
    out : Path
        The run folder; created, or continued when it is this experiment's.
    progress : callable, optional
        Called with (what, done, in all) as work goes on.
    data_root : Path, optional
        Folder that relative data roots are in, instead of the one in ``CBST_DATA``.

    Attributes
    ----------
    dir : RunDir
        The names of the run folder's files.
    results : RunResults
        What the folder says so far.
    needs : Needs
        Disk space of the run, and memory in addition to the network's own.

    Raises
    ------
    CBSTError
        If an input cannot be used or the folder is another run's: before anything is written.
    """

    def __init__(
        self, experiment: Experiment, out: Path, *, progress: Progress = silent, data_root: Path | None = None
    ):
        experiment = experiment.as_begun(RunDir(out).experiment)
        experiment, changes = follow_start(experiment, data_root=data_root)
        if (released := describe_released_start(experiment, data_root)) is not None:
            changes.insert(0, released)
        self.experiment = experiment
        self.progress = progress
        self.label_space = experiment.classes()
        self.spec = experiment.network_spec()
        self.contexts = parse_contexts(experiment.ctx)
        self.ctx = self.contexts[0]  # where everything but training computes
        set_precision(experiment.amp, self.contexts)
        self._data_root = data_root
        self.source = experiment.open_source(data_root)
        self.target = experiment.open_target(data_root)
        self.validation = experiment.open_validation(data_root)
        self._network: gluon.HybridBlock | None = None
        self._holds = -1  # the stage whose parameters the network holds
        start = self._start_network()
        height, width, _ = self.target.image(0).shape
        numbers = {"source": len(self.source), "target": len(self.target)}
        validation = sum(map(len, self.validation.values()))
        self.needs = estimate_needs(experiment, start, size=(height, width), validation=validation, **numbers)
        check_free_space(out, self.needs.disk)
        given = given_prior(experiment, RunDir(out), data_root=data_root)
        numbers.update({f"validation {name}": len(images) for name, images in self.validation.items()})
        inputs: dict[str, Any] = {"images": numbers}
        if given is not None:
            inputs["spatial_prior"] = given.record(experiment.self_training.spatial_prior.file)
        self.dir = RunDir.open(out, experiment.to_yaml(), identity=experiment.identity, inputs=inputs)
        if given is not None:
            keep_given(given, self.dir)
        self.results = RunResults(out)
        with self.dir.logging():
            for sentence in changes:
                logger.info("%s: %s", experiment.name, sentence)
            if experiment.self_training.uses_prior:
                logger.info("%s", describe_prior(experiment, self.dir))
            others = ((f"validation {name}", images) for name, images in self.validation.items())
            for name, images in (("source", self.source), *others):
                if images.left_out:
                    every = len(images) + images.left_out
                    logger.info("%s: %d of %d images left out, without a label", name, images.left_out, every)
        # kept for the source training, where that is still due
        self._start = None if self.dir.stage(0).training.is_file() else start

    # -- stages --------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Run every stage that is not done yet and return the summary."""
        with self.dir.logging():
            logger.info(
                "%s: up to %.0f MB on the disk and, beside the network's own, %.0f MB of memory",
                self.experiment.name,
                self.needs.disk / 1e6,
                self.needs.memory / 1e6,
            )
            self.train_source()
            self.evaluate(0)
            self.evaluate_snapshots()
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
        for name, images in self.validation.items():
            check_labelled(images, f"validation set {name}", every=True)
        if self.experiment.source_training is not None or self.experiment.self_training.rounds:
            check_labelled(self.source, "the source", use="trained on")
        for path in self.target.image_paths:  # else the last of them is first looked at after the source training
            read_header(path)
        network, self._start = self._start_network() if self._start is None else self._start, None
        if self.experiment.source_training is None:
            self._finish_training(stage, 0, network, {"taken from": str(self.experiment.initial_parameters)})
        else:
            snapshots = snapshot_options(self.experiment, network, self.dir, images=len(self.source))
            samples = labelled_samples(self.source)
            self._train(stage, 0, network, self.experiment.source_training, samples, **snapshots)

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
        network = self._stage_network(index - 1)
        p = portion(index, **training.portion.model_dump(), fidelity=training.fidelity)
        what = f"{self._title(index)}: pseudo-labels"
        prior = self._prior() if training.uses_prior else None
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
        for sentence in remarks(labelling, statistics.total()):
            logger.warning("%s: %s", self._title(index), sentence)
        for sentence in self.results.target_signs(index - 1) if self.validation else ():
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
        network = self._stage_network(index - 1)
        self._holds = -1  # its parameters change from here on
        source = self._round_source(index)
        samples = labelled_samples(source) + pseudo_labelled_samples(self.target, stage.pseudo_labels, self.label_space)
        groups: list[tuple[int, int]] = []
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
            mining=mine_classes(self.experiment, read_json(stage.thresholds)),
        )

    def _round_source(self, index: int) -> LabelledImageSet:
        """Return the source images that round `index` trains on."""
        chosen = source_indices(self.experiment, index, len(self.source))
        if self.experiment.self_training.source_portion is not None:
            logger.info("%s: %d of %d source images", self._title(index), len(chosen), len(self.source))
        return self.source.subset(chosen)

    def evaluate(self, index: int) -> dict[str, Any]:
        """Evaluate stage `index` on every validation set and return IoU per class and mIoU per set.

        Without a validation set the target images are predicted instead, see `label_free`; there is no IoU then.
        """
        stage = self.dir.stage(index)
        if stage.evaluation.is_file():
            return read_json(stage.evaluation)
        network = self._stage_network(index)
        common = {"ctx": self.ctx, "title": self._title(index), "progress": self.progress}
        if not self.validation:
            before, source = (self.dir.stage(other) if index else None for other in (index - 1, 0))
            observe(self.experiment, network, self.target, stage, before=before, source=source, **common)
        results = evaluate(self.experiment, network, self.validation, stage, **common)
        signs = self.results.validation_signs(index) if self.validation else self.results.target_signs(index)
        for sentence in signs:
            logger.warning("%s: %s", self._title(index), sentence)
        return results

    def evaluate_snapshots(self) -> None:
        """Evaluate the source network after the epochs at which it was kept, where that is not done."""
        options = {"ctx": self.ctx, "progress": self.progress}
        evaluate_snapshots(self.experiment, self.dir, self.validation, self.target, **options)

    def write_summary(self) -> dict[str, Any]:
        """Write and return the results of all stages that have been evaluated; the last one is the run's result."""
        summary = self.results.summarise()
        write_json(self.dir.summary, summary)
        return summary

    # -- parts ---------------------------------------------------------------------------------------------------

    def _title(self, index: int) -> str:
        return f"{self.experiment.name}, {stage_title(index)}"

    def _start_network(self) -> gluon.HybridBlock:
        return start_network(self.experiment, self.contexts, data_root=self._data_root)

    def _train(
        self,
        stage: StageDir,
        index: int,
        network: gluon.HybridBlock,
        optimiser: Optimiser,
        samples: Samples,
        **options: Any,
    ) -> None:
        """Train for stage `index`; `options` are further ones of :func:`.train_phase`."""
        what = f"{self._title(index)}: training"
        record = train_phase(
            self.experiment,
            network,
            optimiser,
            samples,
            index=index,
            contexts=self.contexts,
            checkpoint=stage.checkpoint,
            progress=functools.partial(self.progress, what),
            **options,
        )
        if record.losses:
            logger.info("%s done, %d iterations, last loss %.4f", what, record.iterations, record.losses[-1])
        self._finish_training(stage, index, network, record.to_json())

    def _finish_training(self, stage: StageDir, index: int, network: gluon.HybridBlock, record: dict[str, Any]) -> None:
        """Adapt the source network, where the experiment says so, and write the parameters of stage `index`."""
        if index == 0:
            bar = functools.partial(self.progress, f"{self.experiment.name}, warm-up")
            record.update(warm_up(self.experiment, network, self.source, self.target, ctx=self.ctx, progress=bar))
        save_parameters(stage.parameters, network, self.spec, self.label_space, config_hash=self.dir.config_hash)
        write_json(stage.training, record)
        with contextlib.suppress(FileNotFoundError):
            stage.checkpoint.unlink()
        self._network, self._holds = network, index

    def _stage_network(self, index: int) -> gluon.HybridBlock:
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
        progress = functools.partial(self.progress, f"{self.experiment.name}, spatial prior")
        return load_prior(self.experiment, self.source, self.dir.spatial_prior, progress=progress)
