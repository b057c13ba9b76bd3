"""Several runs side by side: mIoU over seeds, and what one gains over another with a paired interval over images.

N images, C classes. Two networks that are tested on the same images mostly err on the same ones, so the difference of
their means is known better than either mean: the images are drawn once for both.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Sequence

import numpy as np

from cbst_mx.errors import ConfigError, DataError, check_choice
from cbst_mx.evaluation.protocols import LEVEL, ImageMatrices, draw_images, narrow, resampled_miou
from cbst_mx.evaluation.run_experiment import find_runs
from cbst_mx.evaluation.run_results import RunResults
from cbst_mx.messages import counted, listed, stage_title

__all__ = ["Compared", "Gain", "PairedGain", "compare", "differ_in_target", "gain_over_source", "paired_gain"]

_ADAPTED = "adapted on "  # how `describe_target` names the images


@dataclass(frozen=True)
class Compared:
    """Runs of one experiment, one per seed, beside those of another.

    Attributes
    ----------
    name : str
        Name of the runs' folder.
    seeds : tuple of int
        Seeds of the runs.
    stage : str
        Stage that counts, in words.
    target : str
        What the runs were adapted on, in words.
    miou : tuple of float
        mIoU in [0, 1] by seed.
    gain : float
        Mean over the seeds of the difference of mIoU to the base's run of the same seed; 0 for the base.
    low, high : float
        Interval that holds `LEVEL` of the gains over bootstrap samples of the images, the same for both runs and for
        all seeds. It says nothing of other seeds.
    """

    name: str
    seeds: tuple[int, ...]
    stage: str
    target: str
    miou: tuple[float, ...]
    gain: float
    low: float
    high: float

    @property
    def mean(self) -> float:
        """Mean of mIoU over the seeds."""
        return statistics.fmean(self.miou)

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as JSON values."""
        return {**vars(self), "mean": self.mean, "level": LEVEL}


class Gain(NamedTuple):
    """What a run's last round gains over its source network on one validation set; all in [0, 1]."""

    name: str  # of the set
    images: int
    method: str  # "ST", "CBST" or "CBST-SP"
    before: float  # mIoU of the source network
    after: float
    low: float  # of the interval of the difference that holds `LEVEL` of the bootstrap samples of the images
    high: float

    @property
    def difference(self) -> float:
        """The gain."""
        return self.after - self.before

    def __str__(self) -> str:
        points, interval = 100 * self.difference, f"{100 * self.low:+.1f} to {100 * self.high:+.1f}"
        verb = "gained" if points >= 0 else "lost"
        what = f"{verb} {abs(points):.1f} mIoU" if abs(points) >= 0.05 else "neither gained nor lost mIoU"
        images = f"paired over {counted(self.images, 'image')}"
        unsure = "" if self.low > 0 or self.high < 0 else "; the interval holds 0, so these images do not tell"
        return (
            f"{self.method} {what} over the source network on {self.name}: "
            f"{100 * self.before:.1f} to {100 * self.after:.1f} % ({100 * LEVEL:g} % interval {interval}, "
            f"{images}){unsure}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**self._asdict(), "difference": self.difference, "level": LEVEL}


def gain_over_source(run: RunResults, name: str | None = None, *, samples: int = 1000, seed: int = 0) -> Gain | None:
    """Compare a run's last evaluated round with its source network, on the same images.

    Parameters
    ----------
    run : RunResults
        The run.
    name : str, optional
        The validation set; by default the one that the experiment names first.
    samples : int
        Bootstrap samples of the images, at least 1.
    seed : int
        Seed of the samples.

    Returns
    -------
    Gain or None
        None where there is no validation set, or no round.

    Raises
    ------
    RunError
        If a file is missing or damaged.
    ConfigError
        If the set is unknown, or `samples` is below 1.
    """
    chosen, stages = run.leading if name is None else name, run.evaluated
    if chosen is None or not stages or stages[0] != 0 or stages[-1] == 0:
        return None
    both = [run.matrices(stage) for stage in (0, stages[-1])]
    check_choice("set", chosen, both[-1])
    first, last = (narrow(one[chosen], run.classes().names) for one in both)
    found = paired_gain([(first, last)], samples=samples, seed=seed)
    method, (after,) = run.settings.self_training.method.upper(), found.after
    return Gain(chosen, len(first.images), method, after - found.gain, after, found.low, found.high)


def compare(folders: Sequence[Path], *, name: str | None = None, samples: int = 1000, seed: int = 0) -> list[Compared]:
    """Compare runs with those of the first folder, seed by seed.

    Parameters
    ----------
    folders : sequence of Path
        Each a run folder, or a folder of runs that differ in their seeds. The last evaluated stage of a run counts; all
        are evaluated on the same images.
    name : str, optional
        The validation set; by default the one that the first run names first.
    samples : int
        Bootstrap samples of the images, at least 1.
    seed : int
        Seed of the samples.

    Returns
    -------
    list of Compared
        One per folder, in their order; the first is the base.

    Raises
    ------
    RunError
        If a folder is no run and holds none, or a run has no results.
    DataError
        If a set is of other images or classes than the base's.
    ConfigError
        If the seeds differ, a set is unknown, or `samples` is below 1.
    """
    groups = [_read(path, name) for path in folders]
    base = groups[0]
    rows = []
    for path, group in zip(folders, groups):
        if set(group.matrices) != set(base.matrices):
            seeds = (listed(sorted(one)) for one in (base.matrices, group.matrices))
            raise ConfigError(
                "runs in {} must have the seeds of those in {}, {}, got {}".format(path, folders[0], *seeds)
            )
        for number, matrices in group.matrices.items():
            other = base.matrices[number]
            if (matrices.images, matrices.classes) != (other.images, other.classes):
                raise DataError(f"runs in {path} must be evaluated on the images and classes of those in {folders[0]}")
        pairs = [(base.matrices[number], matrices) for number, matrices in group.matrices.items()]
        found = paired_gain(pairs, samples=samples, seed=seed)
        numbers = (found.after, found.gain, found.low, found.high)
        rows.append(Compared(path.name, tuple(group.matrices), group.stage, group.target, *numbers))
    return rows


class PairedGain(NamedTuple):
    """What networks gain over others on the same images.

    Attributes
    ----------
    after : tuple of float
        mIoU in [0, 1] of the later network of every pair.
    gain : float
        Mean over the pairs of the difference of mIoU.
    low, high : float
        Interval that holds `LEVEL` of the gains over bootstrap samples of the images, the same for all networks.
    """

    after: tuple[float, ...]
    gain: float
    low: float
    high: float


def paired_gain(
    pairs: Sequence[tuple[ImageMatrices, ImageMatrices]], *, samples: int = 1000, seed: int = 0
) -> PairedGain:
    """Return what the second network of every pair gains over the first, over the pairs, with its interval.

    Parameters
    ----------
    pairs : sequence of two ImageMatrices
        At least one; all of the same images and classes.
    samples : int
        Bootstrap samples of the images, at least 1.
    seed : int
        Seed of the samples.

    Raises
    ------
    DataError
        If images or classes differ.
    ConfigError
        If `samples` is below 1.
    """
    first = pairs[0][0]
    if any((one.images, one.classes) != (first.images, first.classes) for pair in pairs for one in pair):
        raise DataError("networks to compare must be evaluated on the same images and classes, got others")
    draws = draw_images(len(first.images), samples=samples, seed=seed)
    means, gains = [], []
    for pair in pairs:
        (before, drawn_before), (after, drawn) = (resampled_miou(one, draws) for one in pair)
        means.append(after)
        gains.append(np.append(drawn - drawn_before, after - before))
    *resampled, gain = np.mean(gains, axis=0)
    low, high = np.nanpercentile(resampled, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return PairedGain(tuple(means), float(gain), float(low), float(high))


class _Group(NamedTuple):
    """Confusion matrices of runs by seed, the stage they are of, and what they were adapted on."""

    matrices: dict[int, ImageMatrices]
    stage: str
    target: str


def _read(path: Path, name: str | None) -> _Group:
    """Read the last evaluated stage of every run in a folder."""
    found: dict[int, ImageMatrices] = {}
    stages, targets = set(), set()
    for folder in find_runs(path):
        run = RunResults(folder)
        number = run.settings.seed
        if number in found:
            raise ConfigError(f"runs in {path} must differ in their seeds, got two of seed {number}")
        sets = run.matrices()
        chosen = run.leading if name is None else name
        check_choice("set", chosen, sets)
        found[number] = sets[str(chosen)]
        stages.add(stage_title(run.evaluated[-1]))
        targets.add(run.adaptation)
    return _Group(dict(sorted(found.items())), ", ".join(sorted(stages)), "; or ".join(sorted(targets)))


def differ_in_target(rows: Sequence[Compared]) -> bool:
    """Return whether two of the rows were adapted on different images; those that were not adapted differ from none."""
    return len({row.target[row.target.index(_ADAPTED) :] for row in rows if _ADAPTED in row.target}) > 1
