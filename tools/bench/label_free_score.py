"""Do scores without labels put the rounds of runs in the order of their mIoU? Spearman's rank correlations.

    python tools/bench/label_free_score.py RUN [RUN ...]

RUN is the folder of a finished run with a validation set. For each candidate it prints: the correlation over all rounds
of all runs together, the mean of the correlations within each run, and the mean mIoU of the rounds that the candidate
would choose, beside that of the last rounds and of the best ones.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from cbst_mx.evaluation.run_results import RunResults
from cbst_mx.files import read_json
from cbst_mx.selftrain import guard
from cbst_mx.selftrain.class_statistics import ImageStatistics

SCORES = ("class-balanced confidence", "mean confidence", "effective classes", "agreement")


def rows_of(run: RunResults) -> list[dict[str, float]]:
    """Return mIoU and every score of the rounds of a run."""
    found = []
    for stage in range(1, run.rounds + 1):
        folder = run.folder.stage(stage + 1) if stage < run.rounds else run.folder.last
        seen = ImageStatistics.load(folder.image_statistics)
        counts, sums = seen.total(), seen.confidence_sums.sum(axis=0)
        agreement = read_json(folder.guard)["agreement"] if folder.guard.is_file() else None
        values = (
            guard.score(counts, sums),
            float(sums.sum() / counts.sum()),
            guard.effective_classes(counts.tolist()),
            np.nan if agreement is None else agreement,
        )
        found.append({"mIoU": run.miou(stage), **dict(zip(SCORES, values))})
    return found


def main(folders: list[str]) -> None:
    """Print the table."""
    runs = [rows_of(RunResults(Path(folder))) for folder in folders]
    rounds = [row for run in runs for row in run]
    print(f"{len(runs)} runs, {len(rounds)} rounds; mIoU of the last {mean(run[-1]['mIoU'] for run in runs)}, "
          f"of the best {mean(max(row['mIoU'] for row in run) for run in runs)}")  # fmt: skip
    for name in SCORES:
        if any(np.isnan(row[name]) for row in rounds):
            print(f"{name}: not known for every round")
            continue
        together = correlation(rounds, name)
        within = np.nanmean([correlation(run, name) for run in runs])
        chosen = mean(max(run, key=lambda row, name=name: row[name])["mIoU"] for run in runs)
        print(f"{name}: all rounds together {together:.2f}, within a run {within:.2f}; mIoU of the chosen {chosen}")


def correlation(rows: list[dict[str, float]], name: str) -> float:
    """Return Spearman's rank correlation of a score with mIoU."""
    return float(spearmanr([row[name] for row in rows], [row["mIoU"] for row in rows])[0])


def mean(values) -> str:
    """Return the mean of values in [0, 1], in %."""
    return f"{100 * np.mean(list(values)):.1f}"


if __name__ == "__main__":
    main(sys.argv[1:])
