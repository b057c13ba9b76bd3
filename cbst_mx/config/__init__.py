"""One experiment: a YAML file, typed and strict."""

from __future__ import annotations

from cbst_mx.config.experiment import DATA_VARIABLE, Experiment, below_data_root, load_experiment
from cbst_mx.config.fields import SCALES
from cbst_mx.config.parts import Data, Optimiser, SourceTraining
from cbst_mx.config.self_training import SelfTraining
from cbst_mx.config.start import describe_released_start, take_released_start
from cbst_mx.config.targets import describe_target, target_changes

__all__ = [
    "DATA_VARIABLE",
    "SCALES",
    "Data",
    "Experiment",
    "Optimiser",
    "SelfTraining",
    "SourceTraining",
    "below_data_root",
    "describe_released_start",
    "describe_target",
    "load_experiment",
    "take_released_start",
    "target_changes",
]
