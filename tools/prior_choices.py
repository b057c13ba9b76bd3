"""What the normalisation and the width of the spatial prior change in one pseudo-labelling pass (CBST-SP).

python tools/prior_choices.py EXPERIMENT PARAMETERS [--portion 0.2]

Reads the experiment's source labels and target images below CBST_DATA, and a trained network. Prints, against the
experiment's default choice (sum, sigma a sixth of the kernel), how many pixels have another predicted class
argmax_c q_n(c) p_n(c), how many another pseudo-label, and by what factor the predicted shares of classes change.
The numbers of docs/reproducing.md:

    export CBST_DATA=scenes
    cbst-mx demo-data scenes --source 400 --source-val 2 --target 100 --target-val 10
    cbst-mx source experiments/demo.yaml --out run --set source_training.iterations=800
    python tools/prior_choices.py experiments/demo.yaml run/source/parameters.params
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np

import cbst_mx
from cbst_mx import selftrain
from cbst_mx.config import load_experiment
from cbst_mx.selftrain import spatial_prior


class Pass(NamedTuple):
    """One pass over the target images."""

    predicted: np.ndarray  # uint8 (N, H, W)
    labels: np.ndarray  # uint8 (N, H, W), 255 = not selected


def run(maps: list[np.ndarray], prior: np.ndarray | None, portion: float) -> Pass:
    """Return predicted classes and pseudo-labels of probabilities (C, H, W) under a prior (C, h, w)."""
    policy = "cbst" if prior is None else "cbst-sp"
    thresholds = selftrain.thresholds(maps, policy=policy, prior=prior, portion=portion)
    return Pass(
        np.stack([selftrain.confidence(values, prior=prior)[1] for values in maps]),
        np.stack([selftrain.pseudo_labels(values, thresholds, prior=prior) for values in maps]),
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("parameters", type=Path)
    parser.add_argument("--portion", type=float, default=0.2)
    arguments = parser.parse_args()
    experiment = load_experiment(arguments.experiment)
    source, target = experiment.open_source(), experiment.open_target()
    network = cbst_mx.load_network(arguments.parameters)
    maps = [np.asarray(network.predict(target.image(index))) for index in range(len(target))]
    grid, kernel = tuple(experiment.self_training.spatial_prior.grid), experiment.self_training.spatial_prior.kernel

    def estimate(normalisation: str, sigma: float | None = None) -> np.ndarray:
        return spatial_prior.estimate(source, grid, kernel=kernel, sigma=sigma, normalisation=normalisation)

    base = run(maps, estimate("sum"), arguments.portion)
    shares = np.bincount(base.predicted.ravel(), minlength=256)
    choices = {name: estimate(name) for name in ("maximum", "frequency")}
    for name, prior in {**choices, "sum, sigma kernel / 2": estimate("sum", kernel / 2), "no prior": None}.items():
        other = run(maps, prior, arguments.portion)
        factors = np.bincount(other.predicted.ravel(), minlength=256)[shares > 0] / shares[shares > 0]
        print(
            f"{name}: {100 * (other.predicted != base.predicted).mean():.1f} % of predicted classes, "
            f"{100 * (other.labels != base.labels).mean():.1f} % of pseudo-labels, "
            f"shares times {factors.min():.2f} to {factors.max():.2f}"
        )


if __name__ == "__main__":
    main()
