"""The loop: source training, then rounds of pseudo-labelling (step a) and retraining (step b), each evaluated.

Every stage reads its inputs from the run folder and writes its outputs there, the file that marks it as done last; a
finished stage is not run again, so a killed run continues. What the folder then says is read by `run_results`.
Stage 0 is the source network, stage r the network after round r. The last round is the result: none is chosen by
target labels.
"""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any, Sequence

import numpy as np

from cbst_mx.config import Experiment, Optimiser
from cbst_mx.data import ImageSet
from cbst_mx.data.image_headers import check_whole
from cbst_mx.errors import ConfigError, DivergedError, NotFiniteError, RunError, TrainingError
from cbst_mx.evaluation.evaluate import check_labelled
from cbst_mx.evaluation.run_results import RunResults
from cbst_mx.files import check_free_space, read_json, write_json
from cbst_mx.messages import Progress, silent, stage_title
from cbst_mx.networks.devices import parse_contexts, set_precision
from cbst_mx.networks.parameters import load_network, save_parameters
from cbst_mx.rounds.continuation import warn_of_threads
from cbst_mx.rounds.evaluations import evaluate, evaluate_snapshots, observe, snapshot_options
from cbst_mx.rounds.health import Health
from cbst_mx.rounds.opening import open_folder
from cbst_mx.rounds.phases import (
    follow_start,
    mine_classes,
    retraining_options,
    source_of_round,
    start_network,
    train_phase,
    warm_up,
    without_start,
)
from cbst_mx.rounds.prior import load_prior, renew_prior
from cbst_mx.rounds.target_pass import label_target, look_at_target
from cbst_mx.rounds.workload import estimate_needs, find_left
from cbst_mx.run_dir import RunDir, StageDir
from cbst_mx.run_dir.steps import EVALUATION, LABELS, PRIOR, RETRAINING, SOURCE
from cbst_mx.training.checkpoints import remove_checkpoints
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
    health : Health
        Judges a network before the next round trains on it.
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
        begun = RunDir(out).stage(0)
        experiment, changes = follow_start(experiment, kept=begun.parameters, data_root=data_root)
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
        # where the source network is made, what it started from may be gone
        start = None if begun.training.is_file() else self._start_network()
        sized = start_network(without_start(experiment), self.contexts) if start is None else start
        height, width, _ = self.target.image(0).shape
        sets: dict[str, ImageSet] = {"source": self.source, "target": self.target}
        numbers = {name: len(images) for name, images in sets.items()}
        numbers.update(validation=sum(map(len, self.validation.values())))
        left = find_left(experiment, RunDir(out), source=len(self.source))
        self.needs = estimate_needs(experiment, sized, size=(height, width), left=left, **numbers)
        check_free_space(out, self.needs.disk)
        sets.update({f"validation {name}": images for name, images in self.validation.items()})
        self.dir, self.record = open_folder(experiment, out, sets, changes, data_root=data_root, progress=progress)
        self.results = RunResults(out)
        self.health = Health(experiment, self.dir)
        with self.dir.logging():
            warn_of_threads(self.dir)
        self._start = start  # kept for the source training

    # -- stages --------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Run every stage that is not done yet and return the summary."""
        self.record.whole = True
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
            self.look_at_last()
            return self.write_summary()

    def round(self, index: int) -> None:
        """Run round `index` (1 is the first): pseudo-labels, retraining, evaluation."""
        self.pseudo_label(index)
        self.retrain(index)
        self.evaluate(index)

    def train_source(self) -> None:
        """Train the source network, or take over the initial parameters; then warm up, where the experiment says so."""
        stage = self.dir.stage(0)
        if self.record.done(SOURCE):
            return
        for name, images in self.validation.items():
            check_labelled(images, f"validation set {name}", every=True)
        if self.experiment.source_training is not None or self.experiment.self_training.rounds:
            check_labelled(self.source, "the source", use="trained on")
        for path in self.target.image_paths:  # else the last of them is first looked at after the source training
            check_whole(path)
        self.record.begin(SOURCE)
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
        self.health.settle(index - 1)
        while not self.record.done(LABELS, index):
            try:
                self._label(index, stage)
            except NotFiniteError as error:
                self._train_anew(index - 1, self.health.recover(index - 1, error))

    def _label(self, index: int, stage: StageDir) -> None:
        network, prior, limit = self._stage_network(index - 1), self._prior(), self.health.limit(index)
        self.record.begin(LABELS, index)
        options = {"prior": prior, "limit": limit, **self._common(index)}
        label_target(self.experiment, network, self.target, stage, index, **options)
        self.record.finish(LABELS, index)
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
        self.health.settle(index - 1, index)
        if self.record.done(RETRAINING, index):
            return
        if not stage.thresholds.is_file():
            raise RunError(f"{stage.thresholds} does not exist: run pseudo-label for round {index} first")
        self.record.check(LABELS, index)
        while faults := self.health.refuses(index):
            self._train_anew(index - 1, faults)
            self.pseudo_label(index)
        network = self._stage_network(index - 1)
        self.record.begin(RETRAINING, index)
        self._holds = -1  # its parameters change from here on
        source = source_of_round(self.experiment, index, self.source)
        samples = labelled_samples(source) + pseudo_labelled_samples(self.target, stage.pseudo_labels, self.label_space)
        options = retraining_options(self.experiment, index, len(source), len(self.target))
        options["factor"] *= self.health.factor(index)
        options["mining"] = mine_classes(self.experiment, read_json(stage.thresholds))
        try:
            self._train(stage, index, network, self.experiment.self_training.retraining, samples, **options)
        except (DivergedError, TrainingError) as error:
            if not (reasons := self.health.recover(index, error)):
                raise
            self.health.roll_back(index, reasons)
            self.retrain(index)

    def _train_anew(self, index: int, reasons: Sequence[str]) -> dict[str, Any]:
        """Roll round `index` back, train it again at a smaller learning rate, and return its evaluation."""
        self.health.roll_back(index, reasons)
        self._network, self._holds = None, -1
        self.retrain(index)
        return self.evaluate(index)

    def evaluate(self, index: int) -> dict[str, Any]:
        """Evaluate stage `index` on every validation set and return IoU per class and mIoU per set.

        Without a validation set the target images are predicted instead, see `label_free`; there is no IoU then.
        """
        stage = self.dir.stage(index)
        if self.record.done(EVALUATION, index):
            return read_json(stage.evaluation)
        try:
            return self._evaluate(index, stage)
        except NotFiniteError as error:
            return self._train_anew(index, self.health.recover(index, error))

    def _evaluate(self, index: int, stage: StageDir) -> dict[str, Any]:
        network = self._stage_network(index)
        self.record.begin(EVALUATION, index)
        common = self._common(index)
        if not self.validation:
            before, source = (self.dir.stage(other) if index else None for other in (index - 1, 0))
            observe(self.experiment, network, self.target, stage, before=before, source=source, **common)
        results = evaluate(self.experiment, network, self.validation, stage, **common)
        self.record.finish(EVALUATION, index)
        signs = self.results.validation_signs(index) if self.validation else self.results.target_signs(index)
        for sentence in signs:
            logger.warning("%s: %s", self._title(index), sentence)
        return results

    def look_at_last(self) -> None:
        """Judge the network of the last round as the others are by the rounds after them, where that is not done."""
        index, stage = self.experiment.self_training.rounds, self.dir.last
        if index and not self.health.has_judged_last():
            options = {"prior": self._prior(), **self._common(index)}
            look_at_target(self.experiment, self._stage_network(index), self.target, stage, **options)
            self.health.judge_last()

    def evaluate_snapshots(self) -> None:
        """Evaluate the source network after the epochs at which it was kept, where that is not done."""
        options = {"ctx": self.ctx, "progress": self.progress, "record": self.record}
        evaluate_snapshots(self.experiment, self.dir, self.validation, self.target, **options)

    def write_summary(self) -> dict[str, Any]:
        """Write and return the results of all stages that have been evaluated; the last one is the run's result."""
        for index in self.results.evaluated:  # those of other settings are made again
            self.evaluate(index)
        summary = self.results.summarise()
        write_json(self.dir.summary, summary)
        return summary

    # -- parts ---------------------------------------------------------------------------------------------------

    def _title(self, index: int) -> str:
        return f"{self.experiment.name}, {stage_title(index)}"

    def _common(self, index: int) -> dict[str, Any]:
        return {"ctx": self.ctx, "title": self._title(index), "progress": self.progress}

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
            where = {"ctx": self.ctx, "checkpoint": stage.warm_up, "progress": bar}
            record.update(warm_up(self.experiment, network, self.source, self.target, **where))
        if rollbacks := self.health.rollbacks(index):
            record["rollbacks"] = rollbacks
        save_parameters(stage.parameters, network, self.spec, self.label_space, config_hash=self.dir.config_hash)
        write_json(stage.training, record)
        self.record.finish(RETRAINING if index else SOURCE, index)
        remove_checkpoints(stage.checkpoint, stage.warm_up)
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
            self.record.check(RETRAINING if index else SOURCE, index)
            self._network, _, _ = load_network(stage.parameters, self.ctx)
            self._holds = index
        return self._network

    def _round_stage(self, index: int) -> StageDir:
        rounds = self.experiment.self_training.rounds
        if not 1 <= index <= rounds:
            raise ConfigError(f"round must be from 1 to {rounds} (self_training.rounds), got {index}")
        return self.dir.stage(index)

    def _prior(self) -> np.ndarray | None:
        if not self.experiment.self_training.uses_prior:
            return None
        progress = functools.partial(self.progress, f"{self.experiment.name}, spatial prior")
        if not self.record.done(PRIOR):
            self.record.begin(PRIOR)
            renew_prior(self.experiment, self.source, self.dir, data_root=self._data_root, progress=progress)
            self.record.finish(PRIOR)
        return load_prior(self.experiment, self.source, self.dir.spatial_prior)
