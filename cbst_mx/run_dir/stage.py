"""The names of the files of one stage of a run; `cbst_mx.run_dir.folder` shows them all."""

from __future__ import annotations

from pathlib import Path
from typing import Mapping

import numpy as np

from cbst_mx.files import save_npz

__all__ = ["StageDir"]


class StageDir:
    """Paths of the source stage or of one round."""

    def __init__(self, path: Path):
        self.path = path

    @property
    def parameters(self) -> Path:
        """Parameters after the stage."""
        return self.path / "parameters.params"

    @property
    def checkpoint(self) -> Path:
        """Parameters and momentum within the stage; removed at its end."""
        return self.path / "checkpoint.params"

    @property
    def warm_up(self) -> Path:
        """Both networks of the warm-up and their optimisers within it; removed at its end."""
        return self.path / "warm_up.params"

    @property
    def training(self) -> Path:
        """Record of the training, written last: the stage's parameters are complete when it exists."""
        return self.path / "training.json"

    @property
    def pseudo_labels(self) -> Path:
        """Folder of pseudo-label PNGs."""
        return self.path / "pseudo_labels"

    @property
    def thresholds(self) -> Path:
        """Thresholds, counts and kept pixels, written last: the pseudo-labels are complete when it exists."""
        return self.path / "thresholds.json"

    @property
    def maps(self) -> Path:
        """Folder of the network's output while pseudo-labels are made."""
        return self.path / "maps.part"

    @property
    def image_statistics(self) -> Path:
        """Predicted pixels and confidences per target image and class."""
        return self.path / "image_statistics.npz"

    @property
    def target_predictions(self) -> Path:
        """Classes of the target images on a grid, by the network of the stage before, and what was saturated."""
        return self.path / "target_predictions.npz"

    @property
    def guard(self) -> Path:
        """Judgement on the network of the stage before and on the pseudo-labels, see `selftrain.guard`."""
        return self.path / "guard.json"

    @property
    def rollback(self) -> Path:
        """Record of the times that the round was trained anew at a smaller learning rate, and of the reasons."""
        return self.path / "rollback.json"

    @property
    def confusion(self) -> Path:
        """Confusion matrices of every validation set, int64 (N, C, C), beside the names of its classes and images."""
        return self.path / "confusion.npz"

    @property
    def evaluation(self) -> Path:
        """IoU per class and mIoU per validation set."""
        return self.path / "evaluation.json"

    @property
    def predictions(self) -> Path:
        """Predicted classes of the target images on a grid; only in runs without a validation set."""
        return self.path / "predictions.npz"

    @property
    def shown(self) -> Path:
        """Predictions on some images, made small, and how often each level of confidence is right; for reports."""
        return self.path / "shown.npz"

    @property
    def label_free(self) -> Path:
        """Class shares, confidence and moved pixels of the target images; only in runs without a validation set."""
        return self.path / "label_free.json"

    def save_confusion(self, matrices: Mapping[str, np.ndarray]) -> None:
        """Write confusion matrices and names, as `ImageMatrices.arrays` gives them, atomically."""
        save_npz(self.confusion, matrices)
