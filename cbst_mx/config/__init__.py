"""One experiment: a YAML file, typed and strict."""

from __future__ import annotations

from cbst_mx.config.experiment import DATA_VARIABLE, Experiment, below_data_root, load_experiment
from cbst_mx.config.parts import SCALES, Data, Optimiser, SelfTraining

__all__ = [
    "DATA_VARIABLE",
    "SCALES",
    "Data",
    "Experiment",
    "Optimiser",
    "SelfTraining",
    "below_data_root",
    "load_experiment",
]
