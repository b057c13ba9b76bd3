"""Which steps of a run are finished, and whether they still are what this experiment would make.

A step is finished when the file that it writes last is there and all its files are as the ledger has them. What it was
made from (settings that can change it, images, labels, parameters) is compared when a command begins, so that a change
that would alter a finished training is refused, and one that alters none goes on.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, Iterator, Mapping

from cbst_mx.config import Experiment
from cbst_mx.data import ImageSet
from cbst_mx.errors import RunError
from cbst_mx.files import file_digest, reading, remove_file
from cbst_mx.messages import Progress, listed, silent
from cbst_mx.rounds.adoption import experiment_before, found_entries
from cbst_mx.rounds.dependencies import changed_keys, step_keys
from cbst_mx.rounds.inputs import InputFiles
from cbst_mx.run_dir import RunDir
from cbst_mx.run_dir.folder import versions
from cbst_mx.run_dir.ledger import Entry, Ledger, now
from cbst_mx.run_dir.rejection import settle
from cbst_mx.run_dir.steps import EVALUATION, LABELS, PRIOR, RETRAINING, SOURCE, Step, all_steps, find_step
from cbst_mx.training.checkpoints import remove_checkpoints

__all__ = ["UNSETTLED", "Record"]

logger = logging.getLogger(__name__)

#: Beginning of the note of steps that a branch shares, until it takes the present images over.
UNSETTLED = "new branch of "
_MOST_CHANGES = 8  # in a sentence


class Record:
    """The ledger of a run folder, as this experiment sees it.

    Parameters
    ----------
    experiment : Experiment
        The experiment that is run.
    folder : RunDir
        Its run folder, which need not exist.
    sets : mapping of str to ImageSet
        The images: "source", "target" and "validation NAME".
    given : mapping of str to Path
        Files besides images that the run reads: "parameters at the start" and "spatial prior file"; None of neither.
    progress : callable, optional
        Called with (what, done, in all).
    """

    def __init__(
        self,
        experiment: Experiment,
        folder: RunDir,
        sets: Mapping[str, ImageSet],
        *,
        given: Mapping[str, Path | None] | None = None,
        progress: Progress = silent,
    ):
        self.experiment = experiment
        self.folder = folder
        self.files = InputFiles(sets, progress)
        self.names = list(sets)
        self.given = {name: path for name, path in (given or {}).items() if path is not None}
        self.whole = False  # whether all that is left is to be done, not a single step
        self.ledger = Ledger(folder)
        self._classes = list(experiment.classes().names)
        self._told: set[str] = set()
        self._adopted: list[Entry] = []

    # -- when a command begins -----------------------------------------------------------------------------------

    def compare(self, folder: RunDir) -> None:
        """Refuse to go on where this experiment would have made a finished training, or its pseudo-labels, otherwise.

        Parameters
        ----------
        folder : RunDir
            The run folder, locked.

        Raises
        ------
        RunError
            If it would; the sentence names the step and what differs, with the old and the new value.
        DataError
            If an image cannot be read.
        """
        self.folder, self.ledger = folder, Ledger(folder)
        settle(self.ledger)
        self.files.load(folder.inputs)
        self._adopted = list(found_entries(experiment_before(folder), folder, self.ledger, self._steps(), self._keys))
        refused: dict[tuple[str, ...], str] = {}  # what differs, to the first step that it would alter
        for step in self._steps():
            entry = self._finished(step)
            if entry is None and step.kind in (SOURCE, RETRAINING) and folder.stage(step.stage).checkpoint.is_file():
                entry = self.ledger.begun(step)
            if entry is None or step.kind == EVALUATION or entry.note.startswith(UNSETTLED):
                continue
            if differences := tuple(self._differences(step, entry)):
                refused.setdefault(differences, step.title if entry.end else f"{step.title}, which has begun,")
        if refused:
            differences, title = next(iter(refused.items()))
            raise RunError(self._refusal(differences, title))
        with folder.logging():
            if self.ledger.torn:
                logger.warning("%s is cut off: a step without a line is taken as it is found", folder.ledger)
                self.ledger.append()
            self.files.mend(folder.inputs)
            self._adopt()

    def _refusal(self, differences: tuple[str, ...], title: str) -> str:
        step = next(step for step in self._steps() if title.startswith(step.title))
        where = f"output folder {self.folder.path} belongs to another run"
        if "which has begun" in title:
            checkpoint = self.folder.stage(step.stage).checkpoint
            way = f"give what it began with to go on, or remove {checkpoint} to begin the step anew"
        else:
            begin = step.name if step.kind == RETRAINING else f"round-{max(step.stage, 1)}"
            way = "give it unchanged to go on, or a new folder"
            if step.kind in (LABELS, RETRAINING):
                way += f"; cbst-mx branch {self.folder.path} --from {begin} --out NEW shares what stays"
        return f"{where}: {title} would be altered by {listed(list(differences), _MOST_CHANGES)} ({way})"

    def _adopt(self) -> None:
        """Write into the ledger what was found in the folder and had no line, and say so in the log."""
        if self._adopted:
            names = listed([self._step(found.step).title for found in self._adopted], _MOST_CHANGES)
            logger.info("%s: not in the ledger, taken as found: %s", self.experiment.name, names)
            for found in self._adopted:
                if not found.inputs:
                    found.inputs.update(self._inputs(self._step(found.step)))
            self.ledger.append(*self._adopted)
            self._adopted = []
            self.files.save(self.folder.inputs)
        for step in self._steps():
            entry = self.ledger.finished(step)
            if entry is not None and entry.note.startswith(UNSETTLED) and step.kind != EVALUATION:
                self._settle(step, entry)
            if entry is not None and step.kind in (SOURCE, RETRAINING) and self.ledger.begun(step) is None:
                stage = self.folder.stage(step.stage)
                if step.last.is_file():  # killed before it could remove them
                    remove_checkpoints(stage.checkpoint, stage.warm_up)
        self._tell_versions()

    def _settle(self, step: Step, entry: Entry) -> None:
        """Take over the present images into a step that a branch shares with the run it left."""
        inputs = {**entry.inputs, **self._inputs(step)}
        if inputs != entry.inputs:
            logger.info("%s: %s is kept as it is, although what it was made from has changed", self._name, step.title)
        note = entry.note.replace("new ", "", 1)
        self.ledger.update(replace(entry, keys=self._keys(step), inputs=inputs, note=note))
        self.files.save(self.folder.inputs)

    def _tell_versions(self) -> None:
        entries = [entry for entry in self.ledger.entries if entry.versions]
        if not entries:
            return
        before, found = entries[-1].versions, versions()
        other = [f"{key} {found.get(key)} (was {before[key]})" for key in before if before[key] != found.get(key)]
        here = Entry("", "", 0, {}, {}).threads
        if entries[-1].threads != here:
            other.append(f"OMP_NUM_THREADS {here} (was {entries[-1].threads})")
        if other:
            logger.warning("%s: goes on with %s: numbers may differ", self._name, ", ".join(other))

    # -- the steps of a command ----------------------------------------------------------------------------------

    def done(self, kind: str, stage: int = 0, *, epoch: int | None = None) -> bool:
        """Return whether a step need not be done; where its files were altered, the log says so and it must.

        Raises
        ------
        RunError
            If all that is left is to be done, and it needs the altered files of a training, which takes long: the
            sentence names the command that makes them again.
        """
        step = find_step(self.folder, kind, stage, epoch=epoch)
        if not step.last.is_file():
            return False
        entry = self.ledger.finished(step)
        if entry is None:  # found, and unfit
            self._tell(step, {step.last: "its files do not fit together"}, "it is made again")
            return False
        if kind == EVALUATION and (differences := self._differences(step, entry)):
            logger.info("%s: %s is made again: %s", self._name, step.title, listed(differences, _MOST_CHANGES))
            return False
        used = kind == LABELS and not self.folder.stage(stage).training.is_file()
        problems = self.ledger.problems(step, full=used)
        needed = {path: problem for path, problem in problems.items() if self._is_needed(step, path)}
        if not problems or (self.whole and not needed):
            self._tell(step, problems, "it is not needed for what is left")
            return True
        if self.whole and kind in (SOURCE, RETRAINING):
            raise RunError(self._damage(step, needed))
        self._tell(step, problems, "it is made again")
        return False

    def check(self, kind: str, stage: int = 0) -> None:
        """Refuse to build on a step whose files are not what it wrote.

        Raises
        ------
        RunError
            If they are not; the sentence names the command that makes them again.
        """
        step = find_step(self.folder, kind, stage)
        problems = self.ledger.problems(step, full=kind == LABELS)
        if kind in (SOURCE, RETRAINING):
            problems = {path: problem for path, problem in problems.items() if _is_of_network(step, path)}
        if problems:
            raise RunError(self._damage(step, problems))

    def begin(self, kind: str, stage: int = 0, *, epoch: int | None = None) -> None:
        """Write into the ledger that a step begins, and from what.

        Raises
        ------
        RunError
            If images have changed since an earlier step used them.
        """
        step = find_step(self.folder, kind, stage, epoch=epoch)
        self.files.refresh()
        inputs = self._inputs(step)
        if kind != EVALUATION:
            for name in self._sets_of(step):
                if (change := self.files.changes(name)) and self._used(name):
                    raise RunError(f"{name} images have changed since the run began: {change}")
        self.files.save(self.folder.inputs)
        self.ledger.append(Entry(step.name, now(), self.experiment.seed, self._keys(step), inputs))

    def finish(self, kind: str, stage: int = 0, *, epoch: int | None = None) -> None:
        """Write into the ledger that a step is finished, with the digests of its files."""
        step = find_step(self.folder, kind, stage, epoch=epoch)
        begun, before = self.ledger.begun(step), self.ledger.finished(step)
        if begun is None:
            begun = Entry(step.name, now(), self.experiment.seed, self._keys(step), self._inputs(step))
        if kind == EVALUATION:
            self._remove_obsolete(step)
        outputs = self.ledger.outputs(step)
        self.ledger.append(replace(begun, end=now(), outputs=outputs))
        if before is None or kind == EVALUATION:
            return
        other = [name for name in outputs if before.outputs.get(name, {}).get("sha256") != outputs[name]["sha256"]]
        if other and any(entry.end for entry in self._later(step)):
            logger.warning(
                "%s: %s came out otherwise than before (%s): what was made after it is of the earlier one",
                self._name,
                step.title,
                listed(other, 3),
            )

    def _remove_obsolete(self, step: Step) -> None:
        """Remove what an evaluation with or without validation sets left, after one of the other kind."""
        stage = self.folder.stage(step.stage)
        others = (stage.predictions, stage.label_free) if self.experiment.validation else (stage.confusion,)
        for path in others if step.epoch is None else ():
            remove_file(path)

    # -- parts ---------------------------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return self.experiment.name

    def _steps(self) -> list[Step]:
        training = self.experiment.self_training
        rounds = training.rounds
        while self.folder.stage(rounds + 1).path.is_dir():  # of a run that had more of them
            rounds += 1
        return all_steps(self.folder, rounds, prior=training.uses_prior)

    def _step(self, name: str) -> Step:
        return next(step for step in self._steps() if step.name == name)

    def _later(self, step: Step) -> Iterator[Entry]:
        names = [other.name for other in self._steps()]
        for name in names[names.index(step.name) + 1 :]:
            entry = self.ledger.finished(name)
            if entry is not None:
                yield entry

    def _finished(self, step: Step) -> Entry | None:
        return self._recorded(step) if step.last.is_file() else None

    def _recorded(self, step: Step) -> Entry | None:
        """Return the line of a finished step, in the ledger or about to be written there."""
        return self.ledger.finished(step) or next((e for e in self._adopted if e.step == step.name), None)

    def _used(self, name: str) -> bool:
        """Return whether a finished training or its pseudo-labels used a set of images."""
        return any(
            f"{name} images" in entry.inputs
            for step in self._steps()
            if step.kind != EVALUATION and (entry := self._finished(step)) is not None
        )

    def _keys(self, step: Step) -> dict[str, Any]:
        keys = step_keys(self.experiment, step.kind, step.stage)
        keys["classes"] = self._classes
        for name in self._sets_of(step):
            if name != "target":
                keys.update({f"{name} labels: {key}": value for key, value in self.files.meaning(name).items()})
        return keys

    def _sets_of(self, step: Step) -> list[str]:
        """Return the names of the image sets that a step reads."""
        experiment = self.experiment
        if step.kind == SOURCE:
            sets = ["source"] if experiment.source_training is not None or experiment.warm_up is not None else []
            return [*sets, "target"] if experiment.warm_up is not None else sets
        if step.kind == PRIOR:
            return [] if experiment.self_training.spatial_prior.file is not None else ["source"]
        if step.kind == LABELS:
            return ["target"]
        if step.kind == RETRAINING:
            return ["source", "target"]
        validation = [name for name in self.names if name.startswith("validation ")]
        return [*validation, "target"] if step.epoch is not None or not validation else validation

    def _inputs(self, step: Step) -> dict[str, str]:
        """Return the digests of what a step is made from, as it is now."""
        inputs = {f"{name} images": self.files.digest(name) for name in self._sets_of(step)}
        for name, path in self.given.items():
            if (
                step.kind == (PRIOR if "prior" in name else SOURCE) and path.is_file()
            ):  # gone: its copy is in the folder
                with reading(path, RunError):
                    inputs[name] = file_digest(path)
        before = find_step(self.folder, RETRAINING if step.stage > 1 else SOURCE, max(step.stage - 1, 0))
        if step.kind in (LABELS, RETRAINING):
            inputs["parameters"] = self._output(before, self.folder.stage(step.stage - 1).parameters)
        if step.kind == LABELS and self.experiment.self_training.uses_prior:
            inputs["spatial prior"] = self._output(find_step(self.folder, PRIOR), self.folder.spatial_prior)
        if step.kind == RETRAINING:
            labels, stage = find_step(self.folder, LABELS, step.stage), self.folder.stage(step.stage)
            inputs["pseudo-labels"] = self._output(labels, stage.pseudo_labels)
            inputs["thresholds"] = self._output(labels, stage.thresholds)
        if step.kind == EVALUATION:
            if step.epoch is not None:
                inputs["parameters"] = self._output(before, self.folder.snapshot(step.epoch).parameters)
            else:
                trained = find_step(self.folder, RETRAINING if step.stage else SOURCE, step.stage)
                inputs["parameters"] = self._output(trained, self.folder.stage(step.stage).parameters)
        return {name: digest for name, digest in inputs.items() if digest}

    def _output(self, step: Step, path: Path) -> str:
        """Return the recorded digest of a file of a step; empty where there is none."""
        entry = self._recorded(step)
        name = path.relative_to(self.folder.path).as_posix()
        return "" if entry is None else str(entry.outputs.get(name, {}).get("sha256", ""))

    def _differences(self, step: Step, entry: Entry) -> list[str]:
        """Return how the step would be made otherwise than it was, each difference in words."""
        found = []
        keys = self._keys(step)
        sets = {key.partition(":")[0] for key in keys if ":" in key}  # what others mean does not matter any more
        before = {key: value for key, value in entry.keys.items() if ":" not in key or key.partition(":")[0] in sets}
        for key, (old, new) in changed_keys(before, keys).items():
            found.append(f"{key} {_shown(new)} (was {_shown(old)})")
        own = ["parameters"] if step.kind == EVALUATION else []
        now_is = self._inputs(step)
        for name in now_is:
            if name in entry.inputs and now_is[name] != entry.inputs[name]:
                if name.endswith(" images"):
                    change = self.files.changes(name[: -len(" images")]) or "others than those it was made from"
                    found.append(f"{name}: {change}")
                elif name in self.given:
                    found.append(f"other content of {self.given[name]} ({name})")
                elif name in own:
                    found.append("other parameters")
        return found

    def _is_needed(self, step: Step, path: Path) -> bool:
        """Return whether an altered file is needed for what is left to do, or for what is said at the end."""
        if step.kind == LABELS:
            retrained = self.folder.stage(step.stage).training.is_file()
            return path != self.folder.stage(step.stage).pseudo_labels or not retrained
        if step.kind in (SOURCE, RETRAINING):
            if not _is_of_network(step, path):
                return False
            following = [find_step(self.folder, EVALUATION, step.stage)]
            if step.stage < self.experiment.self_training.rounds:
                following += [find_step(self.folder, kind, step.stage + 1) for kind in (LABELS, RETRAINING)]
            return not all(other.last.is_file() for other in following)
        return True

    def _damage(self, step: Step, problems: Mapping[Path, str]) -> str:
        return (
            f"{listed(list(problems.values()), 3)} in {self.folder.path}, which is not what the {step.title} wrote: "
            f"put it back from a copy, or run {step.again.replace('--round', 'for round')} again"
        )

    def _tell(self, step: Step, problems: Mapping[Path, str], what: str) -> None:
        if problems and step.name not in self._told:
            self._told.add(step.name)
            logger.warning("%s: %s: %s; %s", self._name, step.title, listed(list(problems.values()), 3), what)


def _is_of_network(step: Step, path: Path) -> bool:
    """Return whether a file of a training is of its network; not of a snapshot, nor of what the guard says."""
    return path.parent == step.last.parent and path.name.startswith(("training", "parameters"))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
