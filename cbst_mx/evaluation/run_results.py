"""Read the results of a run folder: experiment, thresholds, IoU, confusion matrices, and signs of a collapse.

C classes, N images of a validation set. Stage 0 is the source network, stage r the network after round r. Everything
comes from the files that the stages leave when they are done, so a run that is still going, or was stopped, is read as
a finished one is; no network is needed, nor mxnet.
"""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cbst_mx.config import Data
from cbst_mx.errors import CheckpointError, ConfigError, RunError, check_choice
from cbst_mx.evaluation.protocols import ImageMatrices
from cbst_mx.evaluation.run_experiment import count_images, describe_adaptation, load_run_experiment
from cbst_mx.evaluation.run_records import (
    as_thresholds,
    check_judgement,
    read_evaluation,
    read_label_free,
    read_matrices,
    read_thresholds,
)
from cbst_mx.evaluation.run_signs import warnings_of
from cbst_mx.evaluation.shown import Shown, load_shown
from cbst_mx.label_space import LabelSpace
from cbst_mx.networks.sidecars import read_sidecar
from cbst_mx.run_dir import RunDir, StageDir
from cbst_mx.run_dir.outputs import Outputs
from cbst_mx.selftrain import guard
from cbst_mx.selftrain.class_statistics import ImageStatistics

__all__ = ["BEST", "UNLABELLED", "Best", "Choice", "RunResults", "open_run"]

#: What is said of the round that :meth:`RunResults.best` gives, wherever it is shown.
BEST = "best of the rounds, chosen with target labels, as the program's README suggests"

#: What is said of the round that :meth:`RunResults.label_free_choice` gives.
UNLABELLED = "highest class-balanced confidence on the target of the rounds, chosen without labels"

_RUN_PATHS = ("experiment", "manifest", "log", "summary", "spatial_prior")
_STAGE_PATHS = (
    *("parameters", "training", "pseudo_labels", "thresholds"),
    *("image_statistics", "confusion", "predictions", "label_free", "evaluation"),
)


def open_run(folder: Path | str) -> RunResults:
    """Open the folder of a finished or running run.

    Parameters
    ----------
    folder : Path or str
        The run folder, as given to ``cbst-mx run --out``.

    Returns
    -------
    RunResults
        Reads what the run has written so far, whenever it is asked.

    Raises
    ------
    ConfigError
        If the folder has no ``experiment.yaml``, or that is no experiment.

    Examples
    --------
    >>> import cbst_mx
    >>> run = cbst_mx.open_run("runs/gta5-cbst")
    >>> run.experiment["self_training"]["method"], run.finished, run.evaluated
    ('cbst', False, [0, 1])
    >>> thresholds = run.thresholds(1)
    >>> thresholds["portion"], thresholds["policy"], thresholds["k"].shape
    (0.2, 'cbst', (19,))
    >>> round(run.miou(1), 3), round(run.iou(1)["road"], 3)  # of the validation set the experiment names first
    (0.583, 0.667)
    >>> run.confusion(1).shape  # images, truth, prediction
    (2, 19, 19)
    >>> run.paths(1)["pseudo_labels"].name
    'pseudo_labels'
    """
    return RunResults(folder)


class Best(NamedTuple):
    """A round and its mIoU in [0, 1], chosen by labels."""

    stage: int
    miou: float


class Choice(NamedTuple):
    """A round and its label-free score, chosen without labels."""

    stage: int
    score: float


class RunResults:
    """Results of one run folder, read when they are asked for.

    Methods that take `stage` read the last evaluated stage by default; `name` is a validation set, by default the one
    that the experiment names first. Reading raises RunError or DataError if a file is missing or damaged, with a
    sentence that names it.

    Parameters
    ----------
    path : Path or str
        The run folder.

    Attributes
    ----------
    folder : RunDir
        The names of its files.
    settings : Experiment
        The experiment as it was run.

    Raises
    ------
    ConfigError
        If the folder has no ``experiment.yaml``, or that is no experiment.
    """

    def __init__(self, path: Path | str):
        self.folder = RunDir(Path(path))
        self.settings = load_run_experiment(self.folder)
        self._outputs = Outputs(self.folder)

    def __repr__(self) -> str:
        return f"RunResults({str(self.folder.path)!r})"

    # -- the run -------------------------------------------------------------------------------------------------

    @property
    def experiment(self) -> dict[str, Any]:
        """The experiment as plain values, with all defaults."""
        return self.settings.model_dump()

    @property
    def rounds(self) -> int:
        """Number of rounds that the experiment asks for."""
        return self.settings.self_training.rounds

    def classes(self) -> LabelSpace:
        """Return the classes, also where the description of the data is not there any more.

        Raises
        ------
        ConfigError
            If it is not, nor the parameters of any stage, which know them too.
        """
        try:
            return self.settings.classes()
        except ConfigError:
            for stage in range(self.rounds + 1):
                with contextlib.suppress(CheckpointError):
                    space = read_sidecar(self.folder.stage(stage).parameters)[1]
                    if space is not None:
                        return space
            raise

    @property
    def leading(self) -> str | None:
        """Name of the validation set that summaries lead with: the first; None where the experiment has none."""
        return next(iter(self.settings.validation), None)

    @property
    def adaptation(self) -> str:
        """What the run, or without rounds its start, was adapted on, in words, and whether that is transductive."""
        return describe_adaptation(self.folder, self.settings, self.manifest)

    def best(self) -> Best | None:
        """Return the round that labels would choose: of the highest mIoU on the leading validation set.

        The result of a run is its last round. This is beside it, for comparison with numbers of which it is not known
        that no label chose them; of equal rounds it is the first. None where no round was evaluated with labels.
        """
        rounds = [stage for stage in self.evaluated if stage > 0] if self.leading is not None else []
        found = [Best(stage, self.miou(stage)) for stage in rounds]
        return max(found, key=lambda one: one.miou) if found else None

    def label_free_scores(self) -> dict[int, float]:
        """Return `guard.score` of every stage whose network has been over the target, in the next round or last."""
        last = self.folder.last
        files = {stage: self.folder.stage(stage + 1).image_statistics for stage in range(self.rounds)}
        if self._outputs.read_judgement(last).get("network") == self.rounds and self.rounds:
            files[self.rounds] = last.image_statistics
        found = {}
        for stage, path in files.items():
            if path.is_file():
                self._outputs.check(path)
                seen = ImageStatistics.load(path)
                found[stage] = guard.score(seen.total(), seen.confidence_sums.sum(axis=0))
        return found

    def label_free_choice(self) -> Choice | None:
        """Return the round of the highest label-free score, of equal ones the last; None where a round has none."""
        scores = [Choice(stage, score) for stage, score in self.label_free_scores().items() if stage]
        return max(scores, key=lambda one: one[::-1]) if 0 < len(scores) == self.rounds else None

    @property
    def evaluated(self) -> list[int]:
        """Stages that have been evaluated, in their order."""
        return [stage for stage in range(self.rounds + 1) if self.folder.stage(stage).evaluation.is_file()]

    @property
    def finished(self) -> bool:
        """Whether all stages are evaluated and the summary is written."""
        return self.folder.summary.is_file() and len(self.evaluated) == self.rounds + 1

    @property
    def manifest(self) -> dict[str, Any]:
        """Hash, versions and inputs of the run."""
        return self.read(self.folder.manifest)

    @property
    def summary(self) -> dict[str, Any]:
        """Results of all stages, as the run wrote them at its end; RunError where stages have others since."""
        return self._outputs.read_summary(self.summarise()["stages"])

    def paths(self, stage: int | None = None) -> dict[str, Path]:
        """Return the files and folders that exist, by what they are: those of the run, or those of one stage."""
        if stage is None:
            named = {key: getattr(self.folder, key) for key in _RUN_PATHS}
        else:
            named = {key: getattr(self._stage(stage), key) for key in _STAGE_PATHS}
        return {key: path for key, path in named.items() if path.exists()}

    # -- one stage -----------------------------------------------------------------------------------------------

    def thresholds(self, stage: int) -> dict[str, Any]:
        """Return the thresholds of round `stage` and what they kept.

        Returns
        -------
        dict
            ``portion`` (p), ``policy`` ("st", "cbst" or "cbst-sp"), ``fidelity``, ``names`` (C class names),
            ``values`` (float32 (C,), exp(-k_c); infinity for a class of which nothing may be kept), ``k`` (float64
            (C,), k_c in nats), ``counts`` (int64 (C,), N_c), ``kept`` and ``predicted`` (int64 (C,), pixels of the
            pseudo-labels, and pixels predicted as each class).
        """
        path = self._stage(stage, first=1).thresholds
        record = read_thresholds(path, self.read)
        return as_thresholds(record, path)

    def evaluation(self, stage: int | None = None) -> dict[str, Any]:
        """Return the results of a stage by validation set, as ``confusion.summary`` gives them."""
        return read_evaluation(self._stage(self._last(stage)).evaluation, self.read)

    def iou(self, stage: int | None = None, name: str | None = None) -> dict[str, float]:
        """Return the IoU of each class, in [0, 1]; NaN for a class in neither truth nor prediction."""
        values = self._result(stage, name, "iou")
        return {key: math.nan if value is None else float(value) for key, value in values.items()}

    def miou(self, stage: int | None = None, name: str | None = None) -> float:
        """Return the mean IoU, in [0, 1]."""
        return float(self._result(stage, name, "miou"))

    def confusion(self, stage: int | None = None, name: str | None = None) -> np.ndarray:
        """Return the confusion matrix of each image, int64 (N, C, C): rows truth, columns prediction, in pixels.

        The classes are those of the labels, which may be more than the network's; :meth:`matrices` names them.
        """
        return self._chosen(self.matrices(stage), name).counts

    def label_free(self, stage: int | None = None) -> dict[str, Any]:
        """Return what a stage predicts on the target images, in a run without a validation set.

        Returns
        -------
        dict
            ``images``, ``names``, ``predicted``, ``share``, ``confidence`` and ``mean_confidence``, as
            `GridStatistics.summary` gives them; ``moved`` and ``moved_since_source``, the share of the pixels
            predicted as another class than by the stage before and by the source network, None for the source network.

        Raises
        ------
        RunError
            If the run has validation sets, or the stage is not evaluated.
        """
        if self.leading is not None:
            raise RunError(f"{self.folder.path} has validation sets: its stages are told by evaluation, not label_free")
        return read_label_free(self._stage(self._last(stage)).label_free, self.read)

    def matrices(self, stage: int | None = None) -> dict[str, ImageMatrices]:
        """Return the confusion matrices with their classes and images, by validation set in the order of evaluation.

        Raises
        ------
        RunError
            If a file is missing or does not fit the other.
        DataError
            If ``confusion.npz`` is damaged.
        """
        folder = self._stage(self._last(stage))
        results = read_evaluation(folder.evaluation, self.read)
        if not results:
            return {}
        if not folder.confusion.is_file():
            raise RunError(f"{folder.confusion} does not exist: the stage has not been evaluated")
        self._outputs.check(folder.confusion)
        return read_matrices(folder.confusion, folder.evaluation, list(results))

    def shown(self, stage: int | None = None) -> dict[str, Shown]:
        """Return what reports show of a stage, by image set; empty where it was evaluated by an earlier version.

        Raises
        ------
        RunError, DataError
            If the file is altered or damaged.
        """
        path = self._stage(self._last(stage)).shown
        if not path.is_file():
            return {}
        self._outputs.check(path)
        return load_shown(path)

    def judgement(self, stage: int) -> dict[str, Any]:
        """Return what the guard said of the network of a stage, as ``guard.json`` has it; empty where nothing.

        Raises
        ------
        RunError
            If the file is damaged, or of other files than there are.
        """
        where = self.folder.stage(stage + 1) if stage < self.rounds else self.folder.last
        judged = self._outputs.read_judgement(where)
        if judged.get("network") != stage:
            return {}
        check_judgement(judged, where.guard)
        return judged

    def warnings(self, stage: int) -> list[str]:
        """Return what speaks for a collapse of a stage, as far as its files tell; see `run_signs`."""
        return [] if self.settings.smoke else warnings_of(self, stage)  # such a network has learned nothing

    def last_counts(self) -> list[int] | None:
        """Return the pixels of the target predicted as each class by the last round's network; None if unknown."""
        last = self.folder.last
        if not self.rounds or not last.image_statistics.is_file():
            return None
        if self._outputs.read_judgement(last).get("network") != self.rounds:
            return None
        self._outputs.check(last.image_statistics)
        return ImageStatistics.load(last.image_statistics).total().tolist()

    def mean_confidence(self, path: Path) -> list[float | None]:
        """Return the mean confidence of every class by a file of image statistics of this run."""
        self._outputs.check(path)
        return ImageStatistics.load(path).mean_confidence().tolist()

    def summarise(self) -> dict[str, Any]:
        """Return the results of all stages that have been evaluated; the last one is the run's result."""
        training = self.settings.self_training
        return {
            "name": self.settings.name,
            "method": training.method,
            "seed": self.settings.seed,
            "target": self.adaptation,
            "leading": self.leading,
            "stages": [
                {
                    "round": stage,
                    "evaluation": self.evaluation(stage),
                    **({} if self.leading else {"label_free": self.label_free(stage)}),
                    "warnings": self.warnings(stage),
                }
                for stage in self.evaluated
            ],
        }

    # -- a validation set ----------------------------------------------------------------------------------------

    def validation(self, name: str) -> Data | None:
        """Return a validation set as the experiment describes it; None where it has none of this name."""
        return self.settings.validation.get(name)

    def images(self, name: str) -> int:
        """Return the number of images of a validation set that the manifest states, 0 where it states none."""
        return count_images(self.manifest, f"validation {name}")

    # -- parts ---------------------------------------------------------------------------------------------------

    def read(self, path: Path) -> dict[str, Any]:
        """Read a JSON file of the folder; see :class:`.Outputs`."""
        return self._outputs.read(path)

    def _stage(self, stage: int, first: int = 0) -> StageDir:
        if not first <= stage <= self.rounds:
            raise ConfigError(f"stage must be from {first} to {self.rounds} (self_training.rounds), got {stage}")
        return self.folder.stage(stage)

    def _last(self, stage: int | None) -> int:
        if stage is not None:
            return stage
        if not self.evaluated:
            raise RunError(f"{self.folder.path} has no results yet: no stage has been evaluated")
        return self.evaluated[-1]

    def _chosen(self, sets: dict[str, Any], name: str | None) -> Any:
        name = self.leading if name is None else name
        if name is None:
            raise RunError(f"{self.folder.path} has no validation set, so no IoU: label_free tells its stages")
        check_choice("set", name, sets)
        return sets[name]

    def _result(self, stage: int | None, name: str | None, key: str) -> Any:
        return self._chosen(self.evaluation(stage), name)[key]
