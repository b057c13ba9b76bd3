"""The guard with consequences: a network is judged before the next round trains on it, and perhaps trained anew.

What the pass of round r leaves (thresholds, statistics, a grid of predictions) is of the network of round r - 1. Its
judgement is written into round r's folder before that round trains. The policy of the experiment says what follows from
a fault: a warning; an error that stops the run; or a rollback, by which round r - 1 is trained again, from the network
of the round before that, at half the learning rate; see `cbst_mx.run_dir.rollbacks`.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Any, Callable, Iterator, Mapping, Sequence

import numpy as np

from cbst_mx.config import Experiment
from cbst_mx.errors import DivergedError, NotFiniteError, RunError, TrainingError
from cbst_mx.evaluation.label_free import load_grid, load_saturated
from cbst_mx.files import read_json, read_mapping, write_json
from cbst_mx.messages import counted, stage_title
from cbst_mx.networks.sidecars import read_sidecar, sidecar_path
from cbst_mx.run_dir import StageDir
from cbst_mx.run_dir.ledger import Ledger
from cbst_mx.run_dir.outputs import judged_files
from cbst_mx.run_dir.rejection import reject
from cbst_mx.run_dir.rollbacks import add_rollback, read_rollbacks
from cbst_mx.run_dir.steps import RETRAINING, find_step
from cbst_mx.selftrain import guard
from cbst_mx.selftrain.class_statistics import ImageStatistics
from cbst_mx.training.checkpoints import remove_checkpoints

__all__ = ["FACTOR", "Health", "RejectedError"]

logger = logging.getLogger(__name__)

_ON_TARGET = "on the target's images, "
FACTOR = 0.5  # of the learning rate, by each rollback of a round


class RejectedError(Exception):
    """The network of a stage is not to be gone on with: its round is rolled back.

    Parameters
    ----------
    stage : int
        The stage.
    reasons : sequence of str
        What is wrong with it.
    """

    def __init__(self, stage: int, reasons: Sequence[str]):
        super().__init__(stage, reasons)
        self.stage, self.reasons = stage, tuple(reasons)


class Health:
    """Judges the stages of one run, and rolls rounds back.

    Parameters
    ----------
    experiment : Experiment
        The experiment that is run.
    ledger : Ledger
        Ledger of its run folder.
    """

    def __init__(self, experiment: Experiment, ledger: Ledger):
        self._smoke = experiment.smoke
        self._name, self._settings = experiment.name, experiment.self_training.guard
        self._ledger, self._folder = ledger, ledger.folder
        self._rounds, self._classes = experiment.self_training.rounds, experiment.classes().names

    # -- judgement -----------------------------------------------------------------------------------------------

    def judge(self, index: int) -> guard.Judgement:
        """Judge the network of stage `index` - 1 by the pass of round `index`, and write ``guard.json`` there.

        Raises
        ------
        RunError
            If the record of the pass cannot be used.
        DataError
            If a file of predictions is damaged, or of other images than that of the round before.
        """
        stage, before = self._folder.stage(index), self._folder.stage(index - 1)
        record = _record(stage)
        options = self._against_others(stage, before, index)
        confident = 1 - record.get("without_confidence", 0) / max(record["pixels"], 1)
        kept = record["kept_portion"] / confident if confident else None
        options["confidence"] = self._confidences(stage, before) if index > 1 else None
        judgement = guard.judge(record["predicted"], self._classes, kept=kept, portion=record["portion"], **options)
        _write(stage, {"network": index - 1}, judgement)
        return judgement

    def mend(self, index: int) -> None:
        """Judge again by the pass of round `index`, where its ``guard.json`` was altered or is of another run.

        Raises
        ------
        RunError, DataError
            As for :meth:`judge`.
        """
        stage, step = self._folder.stage(index), find_step(self._folder, RETRAINING, index)
        entry = self._ledger.finished(step)
        known = entry is not None and any(name.endswith(stage.guard.name) for name in entry.outputs)
        altered = stage.guard in self._ledger.problems(step) if known else stage.guard.is_file() and not _judged(stage)
        if altered:
            self._tell_damage(stage)
            self.judge(index)

    def has_judged_last(self) -> bool:
        """Return whether the network of the last round is judged; not if that was another network than there is.

        Nor if the judgement, or a file that it was made from, was altered since.
        """
        stage, parameters = self._folder.last, self._folder.stage(self._rounds).parameters
        if not stage.guard.is_file():
            return False
        judged = _judged(stage)
        if judged is None:
            self._tell_damage(stage)
        if judged is None or judged.get("network") != self._rounds:
            return False
        there = sidecar_path(parameters).is_file()  # else nothing can be judged, nor needs to be
        return not there or judged.get("parameters") in (None, read_sidecar(parameters)[2])

    def judge_last(self) -> guard.Judgement:
        """Judge the network of the last round by ``last/``, and write ``guard.json`` there.

        Raises
        ------
        RunError
            If the record of a pass cannot be used.
        DataError
            If a file of predictions is damaged, or of other images than that of the round before.
        """
        stage = self._folder.last
        predicted = ImageStatistics.load(stage.image_statistics).total().tolist()
        options = self._against_others(stage, self._folder.stage(self._rounds), self._rounds + 1)
        options["confidence"] = self._confidences(stage, self._folder.stage(self._rounds))
        judgement = guard.judge(predicted, self._classes, **options)
        digest = read_sidecar(self._folder.stage(self._rounds).parameters)[2]
        _write(stage, {"network": self._rounds, "parameters": digest}, judgement)
        self.tell(self._rounds, [f"{_ON_TARGET}{sign.text}" for sign in judgement.signs if sign.kind not in guard.NEWS])
        self._tell_news(self._rounds, judgement)
        return judgement

    def tell(self, index: int, sentences: Sequence[str]) -> None:
        """Warn of what speaks against the network of stage `index`; in a smoke test, where it means nothing, do not."""
        for sentence in () if self._smoke else sentences:
            logger.warning("%s: %s", self._title(index), sentence)

    def _tell_news(self, index: int, judgement: guard.Judgement) -> None:
        for sign in () if self._smoke else judgement.signs:
            if sign.kind in guard.NEWS:
                logger.info("%s: %s%s", self._title(index), _ON_TARGET, sign.text)

    def _confidences(self, stage: StageDir, before: StageDir) -> guard.Confidence | None:
        """Return the mean confidence of every class in the pass before and in that of `stage`."""
        files = before.image_statistics, stage.image_statistics
        if not all(path.is_file() for path in files):  # not in folders of earlier versions
            return None
        then, now = (ImageStatistics.load(path).mean_confidence().tolist() for path in files)
        return then, now

    def _against_others(self, stage: StageDir, before: StageDir, index: int) -> dict[str, Any]:
        """Return what :func:`.guard.judge` takes of the pass before and of that of round 1, for that of `index`."""
        options: dict[str, Any] = {}
        if index > 1:
            options["first"] = _record(self._folder.stage(1))["predicted"]
        if stage.target_predictions.is_file():  # not in folders of earlier versions
            options["saturated"] = load_saturated(stage.target_predictions)
            if index > 1 and before.target_predictions.is_file():
                grids = load_grid(before.target_predictions), load_grid(stage.target_predictions)
                options["pairs"] = guard.agreement(*grids, len(self._classes))
        return options

    def limit(self, index: int) -> Callable[[np.ndarray], Mapping[int, float]] | None:
        """Return what names the classes that get fewer pseudo-labels in round `index`, for :func:`.label_set`.

        None where the experiment does not ask for it, and in the first round, before which there is nothing to compare.
        """
        if index == 1 or not self._settings.limits:
            return None
        first = _record(self._folder.stage(1))["predicted"]

        def factors(predicted: np.ndarray) -> Mapping[int, float]:
            found = guard.factors(predicted.tolist(), first, self._classes, hold_back=self._settings.hold_back)
            for number, factor in found.items():
                what = "no pseudo-labels" if not factor else f"pseudo-labels of {100 * factor:.3g} % of the portion"
                name = self._classes[number]
                logger.warning("%s, round %d: %s gets %s: it has grown too much", self._name, index, name, what)
            return found

        return factors

    # -- consequences --------------------------------------------------------------------------------------------

    def check(self, index: int) -> None:
        """Judge the network that round `index` would train on.

        Raises
        ------
        RunError
            If the network has a fault and the policy is ``stop``.
        RejectedError
            If it has a fault and the policy is ``rollback``.
        """
        judgement = self.judge(index)
        own = [kind for kind in guard.OF_GUARD_ONLY if kind != "kept"]  # the others have been told with the pass
        self.tell(index - 1, [f"{_ON_TARGET}{sign.text}" for sign in judgement.signs if sign.kind in own])
        self._tell_news(index - 1, judgement)
        if not judgement.faults or self._settings.policy == "warn":
            return
        if self._settings.policy == "stop":
            raise RunError(
                f"{self._text(index - 1)} may have collapsed, so round {index} was not trained: "
                f"{'; '.join(judgement.faults)}; look at {self._folder.stage(index).guard}, then go on with "
                f"self_training.guard.policy=warn{'' if index == 1 else ', or rollback to train it anew'}"
            )
        raise RejectedError(index - 1, judgement.faults)

    @contextlib.contextmanager
    def watch(self, index: int) -> Iterator[None]:
        """Let the network of stage `index` be judged by the block, which trains or uses it.

        Raises
        ------
        RejectedError
            If the block shows that the network has diverged, and the policy is ``rollback``.
        RunError
            If its probabilities are not finite, and the policy is not ``rollback`` or the network is the source's.
        """
        try:
            yield
        except (NotFiniteError, DivergedError, TrainingError) as error:
            if index and self._settings.policy == "rollback":
                raise RejectedError(index, (str(error),)) from error
            if not isinstance(error, NotFiniteError):
                raise  # it says itself what can be done
            way = "go on with self_training.guard.policy=rollback to train it anew" if index else "train it again"
            path = self._folder.stage(index).parameters
            raise RunError(f"{path} has diverged, no pseudo-labels come from it: {error}; {way}") from error

    def roll_back(self, index: int, reasons: Sequence[str]) -> None:
        """Record that round `index` is to be trained anew, and remove what its training and the pass after it left.

        Raises
        ------
        RunError
            If `index` is 0, the source network, or there were as many rollbacks as are allowed.
        """
        if index == 0:
            raise RunError(
                f"the source network may have collapsed, and no healthy round is there to go back to: "
                f"{'; '.join(reasons)}; train another one, or go on with self_training.guard.policy=warn"
            )
        done = sum(len(self.rollbacks(other)) for other in range(1, self._rounds + 1))
        if done >= self._settings.rollbacks:
            raise RunError(
                f"round {index} may have collapsed after {counted(done, 'rollback')}, of {self._settings.rollbacks} "
                f"allowed (self_training.guard.rollbacks): {'; '.join(reasons)}; allow more, or go on with "
                "self_training.guard.policy=warn"
            )
        stage = self._folder.stage(index)
        if not stage.training.is_file():  # it diverged: what it left must not be continued at the smaller rate
            remove_checkpoints(stage.checkpoint)
        number = add_rollback(self._folder, index, list(reasons), factor=FACTOR)
        logger.warning(
            "%s: rolled back to the network of stage %d, at %g times the learning rate: %s",
            self._title(index), index - 1, FACTOR**number, "; ".join(reasons),
        )  # fmt: skip
        reject(self._ledger, index)

    def rollbacks(self, index: int) -> list[dict[str, Any]]:
        """Return the record of the rollbacks of round `index`, see :func:`.read_rollbacks`."""
        return read_rollbacks(self._folder, index)

    def factor(self, index: int) -> float:
        """Return the factor of round `index`'s learning rate that its rollbacks have left."""
        return float(FACTOR ** len(self.rollbacks(index)))

    # -- parts ---------------------------------------------------------------------------------------------------

    def _tell_damage(self, stage: StageDir) -> None:
        where = f"{stage.path.name}/{stage.guard.name}"
        logger.warning("%s: %s, or what it judges, was altered; it is made again", self._name, where)

    def _title(self, index: int) -> str:
        return f"{self._name}, {stage_title(index)}"

    def _text(self, index: int) -> str:
        return "the source network" if index == 0 else f"the network of round {index}"


def _write(stage: StageDir, whose: Mapping[str, Any], judgement: guard.Judgement) -> None:
    write_json(stage.guard, {**whose, "of": judged_files(stage), **judgement.to_json()}, sealed=True)


def _judged(stage: StageDir) -> dict[str, Any] | None:
    """Return the judgement in a stage's folder; None of one that was altered, or is of other files than there are."""
    try:
        values = read_mapping(stage.guard)
        good = values.get("of") in (None, judged_files(stage))  # None: an earlier version's
    except RunError:
        return None
    return values if good else None


def _record(stage: StageDir) -> dict[str, Any]:
    value = read_json(stage.thresholds)
    if not isinstance(value, dict) or not {"predicted", "pixels", "kept_portion", "portion"} <= set(value):
        raise RunError(f"{stage.thresholds} is no record of pseudo-labels")
    return value
