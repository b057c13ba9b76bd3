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
from typing import Any, Callable

import numpy as np

from cbst_mx.config import Experiment
from cbst_mx.data.image_headers import check_whole
from cbst_mx.errors import ConfigError, RunError
from cbst_mx.evaluation.evaluate import check_labelled
from cbst_mx.evaluation.run_results import RunResults
from cbst_mx.evaluation.run_signs import target_signs, validation_signs
from cbst_mx.evaluation.shared import SharedNetwork
from cbst_mx.files import read_json, write_json
from cbst_mx.messages import DETAIL, Progress, Shares, silent, stage_title
from cbst_mx.rounds.evaluations import evaluate, evaluate_snapshots, observe, snapshot_options
from cbst_mx.rounds.health import Health, RejectedError
from cbst_mx.rounds.opening import open_run
from cbst_mx.rounds.phases import check_batches, mine_classes, retraining_options, source_of_round
from cbst_mx.rounds.prior import load_prior, renew_prior
from cbst_mx.rounds.stage_networks import StageNetworks
from cbst_mx.rounds.target_pass import label_target, look_at_target
from cbst_mx.run_dir import StageDir
from cbst_mx.run_dir.steps import EVALUATION, LABELS, PRIOR, RETRAINING, SOURCE
from cbst_mx.training.samples import labelled_samples, pseudo_labelled_samples
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
    cluster : Shares, optional
        A :class:`cbst_mx.cluster.Cluster`, whose workers run the networks over images, and train where it says so.

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
        self,
        experiment: Experiment,
        out: Path,
        *,
        progress: Progress = silent,
        data_root: Path | None = None,
        cluster: Shares | None = None,
    ):
        self._cluster = cluster
        together = None if cluster is None else cluster.together
        check_batches(experiment, 1 if together is None else together.size)
        opened = open_run(experiment, out, progress=progress, data_root=data_root)
        self._opened, self.experiment, self.needs = opened, opened.experiment, opened.needs
        self.source, self.target, self.validation = opened.source, opened.target, opened.validation
        self.dir, self.record, self.ctx = opened.folder, opened.record, opened.contexts[0]
        self.spec, self.label_space = self.experiment.network_spec(), self.experiment.classes()
        self.results = RunResults(out)
        self.health = Health(self.experiment, self.record.ledger)
        self._networks = StageNetworks(opened, self.health, cluster)

    @property
    def progress(self) -> Progress:
        """Called with (what, done, in all) as work goes on."""
        return self._opened.progress

    @progress.setter
    def progress(self, progress: Progress) -> None:
        self._opened.progress = progress

    # -- stages --------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Run every stage that is not done yet and return the summary."""
        self.record.whole = True
        with self.dir.logging():
            disk, memory = self.needs.disk / 1e6, self.needs.memory / 1e6
            sentence = "%s: up to %.0f MB on the disk and, beside the network's own, %.0f MB of memory"
            logger.info(sentence, self.experiment.name, disk, memory, extra=DETAIL)
            self.train_source()
            self.evaluate(0)
            self.evaluate_snapshots()
            if self.experiment.self_training.rounds:
                self._prior()  # made again where it was altered
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
        if self.record.done(SOURCE):
            return
        for name, images in self.validation.items():
            check_labelled(images, f"validation set {name}", every=True)
        if self.experiment.source_training is not None or self.experiment.self_training.rounds:
            check_labelled(self.source, "the source", use="trained on")
        for path in self.target.image_paths:  # else the last of them is first looked at after the source training
            check_whole(path)
        self.record.begin(SOURCE)
        network = self._networks.start()
        if self.experiment.source_training is None:
            self._networks.finish(0, network, {"taken from": str(self.experiment.initial_parameters)})
        else:
            snapshots = snapshot_options(self.experiment, network, self.dir, images=len(self.source))
            samples = labelled_samples(self.source)
            self._networks.train(0, network, self.experiment.source_training, samples, **snapshots)

    def pseudo_label(self, index: int) -> None:
        """Step a) of round `index`: thresholds from the confidences of all target images, then their pseudo-labels.

        Raises
        ------
        RunError
            If the network of the round before is not there.
        """
        self._until_healthy(LABELS, index, self._label)

    def retrain(self, index: int) -> None:
        """Step b) of round `index`: SGD on source labels and pseudo-labels together, from the round before's network.

        Raises
        ------
        RunError
            If the pseudo-labels or the network of the round before are not there.
        """
        self._until_healthy(RETRAINING, index, self._retrain)

    def evaluate(self, index: int) -> dict[str, Any]:
        """Evaluate stage `index` on every validation set and return IoU per class and mIoU per set.

        Without a validation set the target images are predicted instead, see `label_free`; there is no IoU then.
        """
        self._until_healthy(EVALUATION, index, self._evaluate)
        return read_json(self.dir.stage(index).evaluation)

    def look_at_last(self) -> None:
        """Judge the network of the last round as the others are by the rounds after them, where that is not done."""
        index, stage = self.experiment.self_training.rounds, self.dir.last
        if index and not self.health.has_judged_last():
            options = {"prior": self._looking_prior(), **self._common(index)}
            look_at_target(self.experiment, self._looking_network(index), self.target, stage, **options)
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

    def _label(self, index: int) -> None:
        stage = self._round_stage(index)
        if self.record.done(LABELS, index):
            return
        with self.health.watch(index - 1):
            network, prior, limit = self._looking_network(index - 1), self._looking_prior(), self.health.limit(index)
            self.record.begin(LABELS, index)
            options = {"prior": prior, "limit": limit, **self._common(index)}
            label_target(self.experiment, network, self.target, stage, index, **options)
        self.record.finish(LABELS, index)
        self.health.tell(index - 1, target_signs(self.results, index - 1) if self.validation else ())

    def _retrain(self, index: int) -> None:
        stage = self._round_stage(index)
        if self.record.done(RETRAINING, index):
            self.health.mend(index)
            return
        if not stage.thresholds.is_file():
            raise RunError(f"{stage.thresholds} does not exist: run pseudo-label for round {index} first")
        self.record.check(LABELS, index)
        self.health.check(index)
        network = self._stage_network(index - 1)
        self.record.begin(RETRAINING, index)
        source = source_of_round(self.experiment, index, self.source)
        samples = labelled_samples(source) + pseudo_labelled_samples(self.target, stage.pseudo_labels, self.label_space)
        options = retraining_options(self.experiment, index, len(source), len(self.target))
        options["factor"] *= self.health.factor(index)
        options["mining"] = mine_classes(self.experiment, read_json(stage.thresholds))
        with self.health.watch(index):
            self._networks.train(index, network, self.experiment.self_training.retraining, samples, **options)

    def _evaluate(self, index: int) -> None:
        if self.record.done(EVALUATION, index):
            return
        stage, network, common = self.dir.stage(index), self._looking_network(index), self._common(index)
        self.record.begin(EVALUATION, index)
        with self.health.watch(index):
            if not self.validation:
                before, source = (self.dir.stage(other) if index else None for other in (index - 1, 0))
                observe(self.experiment, network, self.target, stage, before=before, source=source, **common)
            evaluate(self.experiment, network, self.validation, stage, **common)
        self.record.finish(EVALUATION, index)
        signs = validation_signs(self.results, index) if self.validation else target_signs(self.results, index)
        self.health.tell(index, signs)

    def _until_healthy(self, kind: str, index: int, work: Callable[[int], None]) -> None:
        """Do a step; where that shows that a round is to be rolled back, do all again from its training on."""
        while True:
            try:
                return work(index)
            except RejectedError as rejected:
                before = rejected.stage
                self.health.roll_back(before, rejected.reasons)
                self._networks.forget()
            if before < index or kind == EVALUATION:
                self.retrain(before)
            if before < index:
                self.evaluate(before)
                if kind == RETRAINING:
                    self.pseudo_label(index)

    def _stage_network(self, index: int) -> gluon.HybridBlock:
        """Return the network with the parameters of stage `index`."""
        if index == 0 and self.experiment.initial_parameters is not None:
            self.train_source()  # takes them over where that is not done
        return self._networks.load(index)

    def _looking_network(self, index: int) -> gluon.HybridBlock | SharedNetwork:
        """Return the network of stage `index` to be run over images, which the workers of a cluster may do."""
        return self._networks.shared(index, self._stage_network(index))

    def _looking_prior(self) -> np.ndarray | Path | None:
        prior = self._prior()
        return prior if prior is None or self._cluster is None else self.dir.spatial_prior

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
            renew_prior(self.experiment, self.source, self.dir, data_root=self._opened.data_root, progress=progress)
            self.record.finish(PRIOR)
        return load_prior(self.experiment, self.source, self.dir.spatial_prior)
