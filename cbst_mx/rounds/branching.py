"""A new run that shares its first steps with another: the same files, then other settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Sequence

from cbst_mx.config import Experiment
from cbst_mx.errors import ConfigError, RunError
from cbst_mx.evaluation.run_experiment import load_run_experiment
from cbst_mx.files import (
    atomic_folder,
    link_file,
    make_folder,
    read_mapping,
    reading,
    write_bytes,
    write_json,
    write_text,
)
from cbst_mx.messages import listed
from cbst_mx.rounds.dependencies import changed_keys, step_keys
from cbst_mx.rounds.record import UNSETTLED
from cbst_mx.run_dir import RunDir, lock_folder
from cbst_mx.run_dir.folder import new_manifest
from cbst_mx.run_dir.ledger import Entry, Ledger
from cbst_mx.run_dir.links import check_links
from cbst_mx.run_dir.steps import EVALUATION, PRIOR, Step, all_steps

__all__ = ["branch"]


def branch(run: Path, begin: str, out: Path, changes: Sequence[str] = ()) -> tuple[Experiment, list[str]]:
    """Make a run folder that has the steps of another before `begin`, and goes on from there otherwise.

    Files are shared where the file system can (hard links; no command writes into a file that is there), and copied
    where it cannot.

    Parameters
    ----------
    run : Path
        The run folder to share with; it needs its ledger.
    begin : str
        First step that is not shared: ``round-N``, or ``round-N/retraining`` to keep the round's pseudo-labels.
    out : Path
        New folder.
    changes : sequence of str
        ``key=value`` pairs, as for :func:`.load_experiment`.

    Returns
    -------
    experiment : Experiment
        The experiment of the new folder.
    without_effect : list of str
        Changed settings of steps that are shared, which stay as they are.

    Raises
    ------
    ConfigError
        If there is no such step, or the changes cannot be.
    RunError
        If a step to be shared is not finished, or its files are not what it wrote; or `out` is there already.
    """
    folder = RunDir(run)
    check_links(folder.path)
    ledger = Ledger(folder)
    if not ledger.entries:
        raise RunError(f"{run} has no ledger.jsonl: run a command in it, which writes one of what it finds")
    before, experiment = (load_run_experiment(folder, some) for some in ((), tuple(changes)))
    steps = _shared(folder, begin, before)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"output folder {out} is not empty: give a new folder")
    held = lock_folder(folder.path)  # nothing changes on the way
    ledger = Ledger(folder)
    entries: list[Entry] = []
    without_effect: list[str] = []
    for step in steps:
        entry = ledger.finished(step)
        keys = step_keys(experiment, step.kind, step.stage)
        changed = {} if entry is None else changed_keys({k: v for k, v in entry.keys.items() if k in keys}, keys)
        if entry is None or not step.last.is_file():
            if step.kind not in (EVALUATION, PRIOR):
                raise RunError(f"{run} has no {step.title}, which comes before {begin}: branch from an earlier step")
            continue
        if step.kind == PRIOR and changed:  # estimated anew
            continue
        if problems := ledger.problems(entry, full=True):
            raise RunError(f"{run} cannot be branched: {listed(list(problems.values()), 3)}, see cbst-mx verify")
        if step.kind == EVALUATION:  # made again by itself where settings differ
            entries.append(entry)
            continue
        without_effect += [f"{key} ({step.title})" for key in changed]
        entries.append(
            replace(entry, keys={**entry.keys, **keys}, note=f"{UNSETTLED}{folder.path.resolve()} at {begin}")
        )
    with atomic_folder(out, durable=True, new=True) as new:
        _write(folder, RunDir(new), experiment, entries, begin)
    held.release()
    return experiment, without_effect


def _shared(folder: RunDir, begin: str, experiment: Experiment) -> list[Step]:
    """Return the steps before `begin`."""
    training = experiment.self_training
    steps = all_steps(folder, training.rounds, prior=training.uses_prior)
    names = [step.name for step in steps]
    wanted = begin if "/" in begin else f"{begin}/pseudo-labels"
    if wanted not in names or not wanted.endswith(("/pseudo-labels", "/retraining")):
        raise ConfigError(
            f"from must be round-N or round-N/retraining with N from 1 to {training.rounds} (self_training.rounds), "
            f"got {begin!r}"
        )
    return steps[: names.index(wanted)]


def _write(folder: RunDir, new: RunDir, experiment: Experiment, entries: Sequence[Entry], begin: str) -> None:
    """Write the files of the shared steps, and those that make the folder a run's."""
    for entry in entries:
        for name in entry.outputs:
            _share(folder.path / name, new.path / name)
    if folder.inputs.is_file():
        with reading(str(folder.inputs), RunError):
            content = folder.inputs.read_bytes()
        write_bytes(new.inputs, content)
    old = read_mapping(folder.manifest).get("inputs")
    inputs = dict(old) if isinstance(old, dict) else {}
    if not new.spatial_prior.is_file():
        inputs.pop("spatial_prior", None)
    text = experiment.to_yaml()
    manifest = new_manifest(text, identity=experiment.identity, inputs=inputs)
    manifest["branch"] = {"of": str(folder.path.resolve()), "from": begin}
    write_text(new.experiment, text)
    write_json(new.manifest, manifest, sealed=True)
    Ledger(new).append(*entries)


def _share(source: Path, target: Path) -> None:
    """Link a file, or the files of a folder, or copy them where the file system has no links."""
    if source.is_dir():
        make_folder(target)
        for path in source.iterdir():
            if path.is_file() and not path.name.startswith("."):
                _share(path, target / path.name)
        return
    link_file(source, target)
