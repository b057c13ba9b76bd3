"""What a run folder has, whether it is unaltered, and where two runs part: read without a network or an image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, NamedTuple

from cbst_mx.errors import CBSTError, RunError
from cbst_mx.evaluation.run_results import RunResults
from cbst_mx.evaluation.run_signs import guard_signs
from cbst_mx.files import read_json
from cbst_mx.messages import counted, listed
from cbst_mx.run_dir import RunDir, lock_owner
from cbst_mx.run_dir.ledger import Entry, Ledger
from cbst_mx.run_dir.rollbacks import read_rollbacks
from cbst_mx.run_dir.steps import EVALUATION, RETRAINING, Step, all_steps

__all__ = ["Parting", "StepStatus", "find_parting", "next_steps", "read_status", "verify", "without_line"]


class StepStatus(NamedTuple):
    """State of one step of a run."""

    step: str
    title: str
    state: str  # "finished", "altered", "begun" or "to do"
    begun: str | None  # ISO 8601, UTC
    end: str | None
    problems: list[str]  # files that are not what the step wrote
    miou: float | None  # of an evaluation, in [0, 1]
    warnings: list[str]  # of an evaluation, signs of a collapse that the guard sees; of a retraining, its rollbacks


def steps_of(run: RunResults) -> list[Step]:
    """Return the steps of a run that its experiment asks for, in their order."""
    return all_steps(run.folder, run.rounds, prior=run.settings.self_training.uses_prior)


def read_status(run: RunResults, *, full: bool = False) -> list[StepStatus]:
    """Return the state of every step.

    Parameters
    ----------
    run : RunResults
        The run.
    full : bool
        Read all files, see :meth:`.Ledger.problems`.

    Raises
    ------
    RunError
        If the ledger is damaged.
    """
    ledger = Ledger(run.folder)
    return [_state(run, ledger, step, full) for step in steps_of(run)]


def _state(run: RunResults, ledger: Ledger, step: Step, full: bool) -> StepStatus:
    finished, begun = ledger.finished(step), ledger.begun(step)
    done = step.last.is_file() and step.name not in ledger.rejected
    problems = list(ledger.problems(step, full=full).values()) if done else []
    state = "begun" if begun is not None else "to do"
    if done:
        state = "altered" if problems else "finished"
    entry = finished if done else begun
    miou, warnings = None, []
    if step.kind == RETRAINING:
        warnings = [_rollback_text(one) for one in read_rollbacks(run.folder, step.stage)]
    if step.kind == EVALUATION and done and step.epoch is None:
        try:
            miou = run.miou(step.stage) if run.leading is not None else None
            warnings = run.warnings(step.stage)
        except CBSTError as error:
            problems = problems or [str(error)]
    begun_at, end = (None, None) if entry is None else (entry.begun, entry.end)
    return StepStatus(step.name, step.title, state, begun_at, end, problems, miou, warnings)


def _rollback_text(one: Mapping[str, Any]) -> str:
    signs = one.get("signs")
    reasons = "; ".join(map(str, signs)) if isinstance(signs, list) else "no reason is recorded"
    return f"rolled back, to be trained at {one.get('learning_rate_factor')} times the learning rate: {reasons}"


def next_steps(run: RunResults, states: list[StepStatus]) -> str:
    """Return in a sentence what ``cbst-mx run`` would do in the folder."""
    owner = lock_owner(run.folder.path)
    if owner is not None:
        return f"{owner} works in it"
    due = [one for one in states if one.state in ("begun", "to do")]
    altered = [one for one in states if one.state == "altered"]
    if not due and not altered and run.folder.summary.is_file():
        return "nothing is left to do"
    if not due:
        return f"run looks at what was altered: {altered[0].title}" if altered else "run writes summary.json"
    goes_on = "goes on with" if due[0].state == "begun" and _has_checkpoint(run.folder, due[0].step) else "does"
    more = f", then {counted(len(due) - 1, 'more step')}" if len(due) > 1 else ""
    return f"run {goes_on} the {due[0].title}{more}"


def _has_checkpoint(folder: RunDir, step: str) -> bool:
    return (folder.path / step.partition("/")[0] / folder.stage(0).checkpoint.name).is_file()


def verify(folder: RunDir) -> tuple[list[str], int]:
    """Read every file that the ledger of a run names.

    Parameters
    ----------
    folder : RunDir
        The run folder.

    Returns
    -------
    problems : list of str
        A sentence for each file that is not what its step wrote, and for each step made from other files than there
        are.
    steps : int
        Number of steps that were looked at.

    Raises
    ------
    RunError
        If the folder has no ledger, or a damaged one.
    """
    ledger = Ledger(folder)
    if not ledger.entries:
        raise RunError(f"{folder.path} has no ledger.jsonl: the next command in it writes one of what it finds")
    names = dict.fromkeys(entry.step for entry in ledger.entries if entry.end)
    entries = [entry for name in names if (entry := ledger.finished(name)) is not None]
    problems = [text for entry in entries for text in ledger.problems(entry, full=True).values()]
    named = {Path(text.partition(" ")[0]).name for text in problems}
    beside = [text for text in _beside_ledger(folder, ledger) if not any(name in text for name in named)]
    return [*problems, *_broken_links(entries), *beside], len(entries)


def _beside_ledger(folder: RunDir, ledger: Ledger) -> Iterator[str]:
    """Yield what is wrong with the files that the ledger does not name, and with the ledger itself."""
    if ledger.torn:
        yield f"{folder.ledger.name} is cut off behind {counted(len(ledger.entries), 'line')}"
    try:
        run = RunResults(folder.path)
    except CBSTError as error:
        yield str(error)
        return
    if lacking := without_line(run, ledger):
        yield f"{folder.ledger.name} has no line for what is there: {listed(lacking, 8)}"
    for stage in range(run.rounds + 1):
        if not ledger.rejected:  # else a rollback is on its way
            yield from _said_by(guard_signs, run, stage)
        if folder.stage(stage).rollback.is_file():
            yield from _said_by(read_json, folder.stage(stage).rollback)
    yield from _said_by(run.label_free_scores)
    if folder.inputs.is_file():
        yield from _said_by(read_json, folder.inputs)
    if run.finished:
        yield from _said_by(lambda _: run.summary, None)


def _said_by(check: Callable[..., Any], *arguments: Any) -> Iterator[str]:
    try:
        check(*arguments)
    except CBSTError as error:
        yield str(error)


def without_line(run: RunResults, ledger: Ledger) -> list[str]:
    """Return the finished steps of a run that its ledger has no line for: the next command takes them as found."""
    steps = [step for step in steps_of(run) if step.last.is_file() and step.name not in ledger.rejected]
    return [step.name for step in steps if ledger.finished(step) is None]


def _broken_links(entries: list[Entry]) -> Iterator[str]:
    """Yield the steps that were made from other results of earlier steps than the ledger has."""
    there = {record["sha256"] for entry in entries for record in entry.outputs.values()}
    for entry in entries:
        for name in ("parameters", "pseudo-labels", "thresholds"):
            if name in entry.inputs and entry.inputs[name] not in there:
                yield f"{entry.step} was made from other {name} than there are"


class Parting(NamedTuple):
    """Where two runs part."""

    step: str
    reasons: list[str]  # settings and inputs that differ, in words
    results: list[str]  # files that differ, and the first number in each that does


def find_parting(one: RunResults, other: RunResults) -> Parting | None:
    """Return the first step of which two runs have different results, or only one has any; None where they agree.

    Raises
    ------
    RunError
        If a run has no ledger, or a damaged one.
    """
    ledgers = [Ledger(run.folder) for run in (one, other)]
    for run, ledger in zip((one, other), ledgers):
        if not ledger.entries:
            raise RunError(f"{run.folder.path} has no ledger.jsonl: the next command in it writes one of what it finds")
    longer = max((one, other), key=lambda run: run.rounds)
    for step in steps_of(longer):
        entries = [ledger.finished(step) for ledger in ledgers]
        first, second = entries
        if first is None and second is None:
            continue
        if first is None or second is None:
            folder = (one, other)[entries.index(None)].folder
            there = (folder.path / step.last.relative_to(longer.folder.path)).is_file()
            what = f"{folder.ledger} has no line for the" if there else f"{folder.path} has no"
            return Parting(step.name, [], [f"{what} {step.title}"])
        found = _different_files(one.folder, other.folder, first, second)
        if found:
            return Parting(step.name, list(_reasons(first, second)), found)
    return None


def _reasons(first: Entry, second: Entry) -> Iterator[str]:
    for key in dict.fromkeys([*first.keys, *second.keys]):
        values = [json.dumps(entry.keys.get(key)) for entry in (first, second)]
        if values[0] != values[1]:
            yield f"{key}: {values[0]} and {values[1]}"
    for name in dict.fromkeys([*first.inputs, *second.inputs]):
        if first.inputs.get(name) != second.inputs.get(name):
            yield f"other {name}"
    for name in dict.fromkeys([*first.versions, *second.versions]):
        if first.versions.get(name) != second.versions.get(name):
            yield f"{name} {first.versions.get(name)} and {second.versions.get(name)}"
    if first.threads != second.threads:
        yield f"OMP_NUM_THREADS {first.threads} and {second.threads}"


def _different_files(one: RunDir, other: RunDir, first: Entry, second: Entry) -> list[str]:
    """Return the files of a step that differ, those first that hold numbers."""
    found = []
    for name in sorted({*first.outputs, *second.outputs}, key=lambda name: (not name.endswith("s.json"), name)):
        digests = [entry.outputs.get(name, {}).get("sha256") for entry in (first, second)]
        if digests[0] == digests[1] or name.endswith(".params.json"):  # sidecars name the experiment
            continue
        number = _first_number(one.path / name, other.path / name) if name.endswith(".json") else None
        found.append(f"{name}: {number}" if number else name)
    return found


def _first_number(one: Path, other: Path) -> str | None:
    """Return the place of the first value in which two JSON files differ, with both values."""
    try:
        return _first_difference(read_json(one), read_json(other), "")
    except CBSTError:
        return None


def _first_difference(one: Any, other: Any, where: str) -> str | None:
    if isinstance(one, dict) and isinstance(other, dict):
        pairs = [(f"{where}.{key}" if where else str(key), one.get(key), other.get(key)) for key in {**one, **other}]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = [(f"{where}[{index}]", *pair) for index, pair in enumerate(zip(one, other))]
    else:
        return None if one == other else f"{where} is {json.dumps(one)[:60]} and {json.dumps(other)[:60]}"
    return next((text for name, a, b in pairs if (text := _first_difference(a, b, name))), None)
