"""The guard with consequences: a network is judged before the next round trains on it, and perhaps trained anew.

What the pass of round r leaves (thresholds, statistics, a grid of predictions) is of the network of round r - 1. Its
judgement is written into round r's folder before that round trains. The policy of the experiment says what follows from
a fault: a warning; an error that stops the run; or a rollback, by which round r - 1 is trained again, from the network
of the round before that, at half the learning rate. Every rollback is first written into ``rollback.json``; only then
are the files of the rejected training removed, so a run that is killed in between removes them when it goes on.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from typing import Any, Callable, Mapping, Sequence

import numpy as np

from cbst_mx.config import Experiment
from cbst_mx.errors import CBSTError, DivergedError, RunError, TrainingError
from cbst_mx.evaluation.label_free import load_grid, load_saturated
from cbst_mx.evaluation.run_records import read_mapping
from cbst_mx.files import read_json, write_json
from cbst_mx.messages import stage_title
from cbst_mx.networks.parameters import sidecar_path
from cbst_mx.run_dir import RunDir, StageDir
from cbst_mx.selftrain import guard
from cbst_mx.selftrain.class_statistics import ImageStatistics
from cbst_mx.training.checkpoints import remove_checkpoints

__all__ = ["FACTOR", "Health"]

logger = logging.getLogger(__name__)

FACTOR = 0.5  # of the learning rate, by each rollback of a round


class Health:
    """Judges the stages of one run, and keeps the record of its rollbacks.

    Parameters
    ----------
    experiment : Experiment
        The experiment that is run.
    folder : RunDir
        Its run folder.
    """

    def __init__(self, experiment: Experiment, folder: RunDir):
        self._name, self._settings, self._folder = experiment.name, experiment.self_training.guard, folder
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
        judgement = guard.judge(record["predicted"], self._classes, kept=kept, portion=record["portion"], **options)
        write_json(stage.guard, {"network": index - 1, **judgement.to_json()})
        return judgement

    def has_judged_last(self) -> bool:
        """Return whether the network of the last round is judged; not if that was the last of fewer rounds."""
        path = self._folder.last.guard
        return path.is_file() and read_mapping(path).get("network") == self._rounds

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
        judgement = guard.judge(predicted, self._classes, **options)
        write_json(stage.guard, {"network": self._rounds, **judgement.to_json()})
        for sign in judgement.signs:
            logger.warning("%s: on the target's images, %s", self._title(self._rounds), sign.sentence)
        return judgement

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

    def refuses(self, index: int) -> tuple[str, ...]:
        """Judge the network that round `index` would train on; return its faults where they forbid that.

        Raises
        ------
        RunError
            If the network has a fault and the policy is ``stop``, or ``rollback`` and there is no way back.
        """
        judgement = self.judge(index)
        for sign in judgement.signs:
            if sign.kind in guard.OF_GUARD_ONLY and sign.kind != "kept":  # the others have been told with the pass
                logger.warning("%s: on the target's images, %s", self._title(index - 1), sign.sentence)
        if not judgement.faults or self._settings.policy == "warn":
            return ()
        if self._settings.policy == "stop":
            raise RunError(
                f"{self._text(index - 1)} may have collapsed, so round {index} was not trained: "
                f"{'; '.join(judgement.faults)}; look at {self._folder.stage(index).guard}, then go on with "
                f"self_training.guard.policy=warn{'' if index == 1 else ', or rollback to train it anew'}"
            )
        return judgement.faults

    def recover(self, index: int, error: CBSTError) -> tuple[str, ...]:
        """Return the reason to train round `index` anew after an error that says that its network has diverged.

        Empty where its training has and the policy is not ``rollback``: the error itself says what can be done.

        Raises
        ------
        RunError
            If its probabilities are not finite, and the policy is not ``rollback`` or the network is the source's.
        """
        if index and self._settings.policy == "rollback":
            return (str(error),)
        if isinstance(error, (DivergedError, TrainingError)):
            return ()
        way = "train it again" if index == 0 else "go on with self_training.guard.policy=rollback to train it anew"
        stage = self._folder.stage(index)
        raise RunError(f"{stage.parameters} has diverged, no pseudo-labels come from it: {error}; {way}") from error

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
                f"round {index} may have collapsed after {done} rollbacks, of {self._settings.rollbacks} allowed "
                f"(self_training.guard.rollbacks): {'; '.join(reasons)}; allow more, or go on with "
                "self_training.guard.policy=warn"
            )
        stage = self._folder.stage(index)
        if not stage.training.is_file():  # it diverged: what it left must not be continued at the smaller rate
            remove_checkpoints(stage.checkpoint)
        record = [*self.rollbacks(index), {"signs": list(reasons)}]
        for number, one in enumerate(record, 1):
            one["learning_rate_factor"] = FACTOR**number
        write_json(stage.rollback, {"rollbacks": record})
        logger.warning(
            "%s: rolled back to the network of stage %d, at %g times the learning rate: %s",
            self._title(index), index - 1, FACTOR ** len(record), "; ".join(reasons),
        )  # fmt: skip
        self.settle(index)

    def rollbacks(self, index: int) -> list[dict[str, Any]]:
        """Return the record of the rollbacks of round `index`: ``signs`` and ``learning_rate_factor`` of each.

        Raises
        ------
        RunError
            If the file is damaged.
        """
        path = self._folder.stage(index).rollback
        if not path.is_file():
            return []
        value = read_json(path)
        found = value.get("rollbacks") if isinstance(value, dict) else None
        if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
            raise RunError(f"{path} must hold a list of rollbacks, got {type(found).__name__}")
        return found

    def factor(self, index: int) -> float:
        """Return the factor of round `index`'s learning rate that its rollbacks have left."""
        return float(FACTOR ** len(self.rollbacks(index)))

    def settle(self, *rounds: int) -> None:
        """Remove what rejected trainings of these rounds left, where a rollback was recorded after them.

        Raises
        ------
        RunError
            If a record is damaged.
        """
        for index in rounds:
            self._settle(index)

    def _settle(self, index: int) -> None:
        stage, after = self._folder.stage(index), self._folder.stage(index + 1)
        recorded = len(self.rollbacks(index))
        if not recorded or not stage.training.is_file():
            return
        rollbacks = read_mapping(stage.training).get("rollbacks")
        if isinstance(rollbacks, list) and len(rollbacks) >= recorded:
            return
        # the mark of a finished step goes first from the pass, and last from the training: until then this is repeated
        for path in (after.thresholds, after.image_statistics, after.target_predictions, after.guard):
            _remove(path)
        shutil.rmtree(after.pseudo_labels, ignore_errors=True)
        for path in (stage.evaluation, stage.confusion, stage.predictions, stage.label_free):
            _remove(path)
        remove_checkpoints(stage.checkpoint)
        for path in (stage.parameters, sidecar_path(stage.parameters), stage.training):
            _remove(path)

    # -- parts ---------------------------------------------------------------------------------------------------

    def _title(self, index: int) -> str:
        return f"{self._name}, {stage_title(index)}"

    def _text(self, index: int) -> str:
        return "the source network" if index == 0 else f"the network of round {index}"


def _record(stage: StageDir) -> dict[str, Any]:
    value = read_json(stage.thresholds)
    if not isinstance(value, dict) or not {"predicted", "pixels", "kept_portion", "portion"} <= set(value):
        raise RunError(f"{stage.thresholds} is no record of pseudo-labels")
    return value


def _remove(path: Any) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
