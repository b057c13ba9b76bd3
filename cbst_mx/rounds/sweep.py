"""Many experiments with several seeds: which runs there are, in which order they can be done, and what came of them.

A run is one experiment with one seed and, where its images are in folds, one fold. It is a command of its own in a
folder of its own, OUT/NAME/seed-S or OUT/NAME/seed-S/fold-F, so that other machines can do it. A run that starts from
another experiment's network waits for that experiment with the same seed.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, Sequence

from cbst_mx.config import Experiment, load_experiment, take_released_start
from cbst_mx.data.description import is_description
from cbst_mx.errors import ConfigError, StoppedError
from cbst_mx.evaluation.run_results import RunResults
from cbst_mx.files import digest_of, read_json, write_json
from cbst_mx.messages import Progress, Share, Shares, listed, silent
from cbst_mx.run_dir import RunDir

__all__ = ["Alone", "Planned", "Row", "SweepResult", "plan", "sweep"]

_RECORD = "sweep.json"  # what was done, in the output folder
_RESULTS = "results.json"
_MOST = 10_000  # runs
_DOWN = "the run that it starts from has failed"


@dataclass(frozen=True)
class Planned:
    """One run of a sweep.

    Attributes
    ----------
    name : str
        Name of the experiment.
    file : Path
        Its file.
    seed : int
    fold : int or None
    folder : Path
        The run folder.
    network : Path
        The parameters it ends with: of its last round, or the source network where it has none.
    start : int or None
        Place in the plan of the run whose network this one starts from.
    arguments : tuple of str
        The command.
    identity : str
        Digest of what the run is.
    """

    name: str
    file: Path
    seed: int
    fold: int | None
    folder: Path
    network: Path
    start: int | None
    arguments: tuple[str, ...]
    identity: str

    @property
    def title(self) -> str:
        """Name, seed and fold, for sentences."""
        return f"{self.name}, seed {self.seed}" + ("" if self.fold is None else f", fold {self.fold}")

    @property
    def key(self) -> str:
        """What the record calls it."""
        return "/".join([self.name, f"seed-{self.seed}", *([] if self.fold is None else [f"fold-{self.fold}"])])


def plan(
    files: Sequence[Path],
    seeds: Sequence[int],
    out: Path,
    *,
    changes: Sequence[str] = (),
    options: Sequence[str] = (),
) -> list[Planned]:
    """Return the runs of a sweep, each behind the one that it starts from.

    Experiments that others start from, and which are not among `files`, are looked for beside them and added.

    Parameters
    ----------
    files : sequence of Path
        Experiment files; descriptions of data, which ``experiments/*.yaml`` finds too, are left out.
    seeds : sequence of int
        Each is a whole repetition.
    out : Path
        Folder of all run folders.
    changes : sequence of str
        ``key=value``, as ``--set`` takes them.
    options : sequence of str
        Further arguments of every command.

    Raises
    ------
    ConfigError
        If a file cannot be used, two have one name, an experiment that another starts from is not there, or there are
        too many runs.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds must be whole numbers, each once, got {listed(seeds) or 'none'}")
    known: dict[str, Path] = {}
    for file in [file for file in files if not is_description(file)] or files:
        name = load_experiment(file, tuple(changes)).name
        if known.setdefault(name, file) != file:
            raise ConfigError(f"experiments must have names of their own, got {name!r} in {known[name]} and {file}")
    runs: list[Planned] = []
    for seed in seeds:
        done: dict[str, list[int]] = {}
        for name in list(known):
            _add(name, known, seed, out, changes, options, runs, done, ())
    if len(runs) > _MOST:
        raise ConfigError(f"a sweep must have at most {_MOST:,} runs, got {len(runs):,}")
    return runs


def _add(
    name: str,
    known: dict[str, Path],
    seed: int,
    out: Path,
    changes: Sequence[str],
    options: Sequence[str],
    runs: list[Planned],
    done: dict[str, list[int]],
    above: tuple[str, ...],
) -> list[int]:
    """Add the runs of an experiment behind those that it starts from; return their places, one for each fold."""
    if name in done:
        return done[name]
    if name in above:
        raise ConfigError(f"experiments must not start from each other, got {' from '.join([*above, name])}")
    own = (*changes, f"seed={seed}")
    experiment = load_experiment(known[name], own)
    starts: list[int | None] = [None]
    if experiment.starts_from is not None and take_released_start(experiment) is experiment:
        other = experiment.starts_from
        if other not in known:
            beside = known[name].with_name(f"{other}.yaml")
            if not beside.is_file():
                raise ConfigError(f"{known[name]} starts from {other}, and there is no {beside}: give its file as well")
            known[other] = beside
        starts = [*_add(other, known, seed, out, changes, options, runs, done, (*above, name))]
    trained_only = experiment.self_training.rounds == 0 and experiment.starts_from is None
    target = experiment.target
    folds: list[int | None] = [None] if trained_only or target.fold is None else [*range(target.folds or 10)]
    done[name] = []
    for place, fold in enumerate(folds):
        start = starts[place] if len(starts) == len(folds) else starts[0]
        folder = out / name / f"seed-{seed}"
        folder = folder if fold is None else folder / f"fold-{fold}"
        given = ["source" if trained_only else "run", str(known[name]), "--out", str(folder), "--quiet", *options]
        given += [] if fold is None else ["--fold", str(fold)]
        given += [] if start is None else ["--init", str(runs[start].network)]
        given += [part for change in own for part in ("--set", change)]
        identity = digest_of([experiment.identity, fold])
        done[name].append(len(runs))
        network = RunDir(folder).stage(experiment.self_training.rounds).parameters
        runs.append(Planned(name, known[name], seed, fold, folder, network, start, tuple(given), identity))
    return done[name]


class Alone:
    """Who does shares of work where there is no cluster: this process, one after the other."""

    size, together = 1, None

    def each(
        self,
        function: Callable[..., Any],
        shares: Sequence[Share],
        *,
        waiting_for: Callable[[], None] = silent,
        ahead: int = 1,
    ) -> Iterator[tuple[int, Any]]:
        """Call a function with the arguments of every share; it gets `waiting_for` too."""
        for index, share in enumerate(shares):
            yield index, function(*share.arguments, waiting_for)


@dataclass(frozen=True)
class Row:
    """One experiment of a sweep.

    Attributes
    ----------
    name : str
    miou : dict of int to float
        In [0, 1] by seed, of the last round on the leading validation set; of folds their mean.
    expected : float or None
        The paper's, in [0, 1].
    """

    name: str
    miou: Mapping[int, float]
    expected: float | None

    @property
    def mean(self) -> float | None:
        """Mean over the seeds; None without one."""
        return statistics.fmean(self.miou.values()) if self.miou else None

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over the seeds; None of fewer than two."""
        return statistics.stdev(self.miou.values()) if len(self.miou) > 1 else None

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        by_seed = {str(seed): value for seed, value in self.miou.items()}
        return {"name": self.name, "miou": by_seed, "mean": self.mean, "std": self.spread, "expected": self.expected}


@dataclass(frozen=True)
class SweepResult:
    """What came of a sweep.

    Attributes
    ----------
    rows : list of Row
        By experiment, in the order of the plan.
    failed : dict of str to str
        Title of a run to what was wrong.
    """

    rows: list[Row]
    failed: Mapping[str, str]


def sweep(
    runs: Sequence[Planned],
    out: Path,
    function: Callable[..., tuple[int, str]],
    *,
    cluster: Shares | None = None,
    progress: Progress = silent,
) -> SweepResult:
    """Do all runs that are not done yet, and write ``OUT/results.json``.

    Parameters
    ----------
    runs : sequence of Planned
        From :func:`plan`.
    out : Path
        The folder.
    function : callable
        Runs a command: gives the code that it returned and its last line.
    cluster : Shares, optional
        Who runs them; by default they are run here, one after the other.
    progress : callable, optional
        Called with (what, runs done, runs in all).

    Raises
    ------
    StoppedError
        If `progress` asks for a stop; the same call goes on.
    """
    record = _read_record(out)
    failed: dict[str, str] = {}
    done = {place for place, run in enumerate(runs) if _is_done(run, record)}
    tell = _teller(progress, done, runs)
    tell()
    places: list[int] = []
    shares: list[Share] = []

    def take_what_is_ready() -> None:
        for place, run in enumerate(runs):
            if place not in done and place not in places and (run.start is None or run.start in done):
                places.append(place)
                shares.append(Share((run.arguments,), [run.title], stays=True))

    take_what_is_ready()
    for index, (code, said) in (cluster or Alone()).each(function, shares, waiting_for=tell, ahead=1):
        run = runs[places[index]]
        if code == 0:
            done.add(places[index])
            record[run.key] = run.identity
            write_json(out / _RECORD, dict(sorted(record.items())))
            take_what_is_ready()
        else:
            failed[run.title] = said or f"ended with code {code}"
        tell()
    for run in runs:
        if run.start is not None and runs[run.start].title in failed:
            failed.setdefault(run.title, _DOWN)
    failed = {run.title: failed[run.title] for run in runs if run.title in failed}
    result = SweepResult(_rows(runs, done), failed)
    write_json(out / _RESULTS, {"rows": [row.to_json() for row in result.rows], "failed": failed})
    return result


def _teller(progress: Progress, done: set[int], runs: Sequence[Planned]) -> Callable[[], None]:
    def tell() -> None:
        try:
            progress("runs", len(done), len(runs))
        except StoppedError as error:
            error.keep("all")  # those that were at work save what they have
            raise

    return tell


def _read_record(out: Path) -> dict[str, str]:
    path = out / _RECORD
    if not path.is_file():
        return {}
    found = read_json(path)
    if not isinstance(found, dict):
        raise ConfigError(f"{path} must hold the runs that are done, by name: remove it, nothing is lost with it")
    return found


def _is_done(run: Planned, record: Mapping[str, str]) -> bool:
    """Return whether a run was done as it is wanted now."""
    return record.get(run.key) == run.identity and _is_finished(run.folder)


def _is_finished(folder: Path) -> bool:
    return RunDir(folder).manifest.is_file() and RunResults(folder).finished


def _rows(runs: Sequence[Planned], done: set[int]) -> list[Row]:
    """Return the results of the experiments; a seed counts where all its folds are done."""
    rows = []
    for name in dict.fromkeys(run.name for run in runs):
        own = [place for place, run in enumerate(runs) if run.name == name]
        miou: dict[int, float] = {}
        for seed in dict.fromkeys(runs[place].seed for place in own):
            places = [place for place in own if runs[place].seed == seed]
            if set(places) <= done:
                found = [_miou(runs[place].folder) for place in places]
                values = [value for value in found if value is not None]
                if len(values) == len(found):
                    miou[seed] = statistics.fmean(values)
        rows.append(Row(name, miou, _expected(load_experiment(runs[own[0]].file))))
    return rows


def _miou(folder: Path) -> float | None:
    results = RunResults(folder)
    return None if results.leading is None else results.miou()


def _expected(experiment: Experiment) -> float | None:
    """Return the paper's mIoU, in [0, 1]."""
    expected = {} if experiment.paper is None else experiment.paper.expected
    return expected["miou"] / 100 if "miou" in expected else None
