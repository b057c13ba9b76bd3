"""What a network predicts where no label tells whether it is right: class shares, confidence, and what has moved.

N images, C classes. Runs without a validation set report this after every round in place of IoU. Beside the counts the
predicted classes are kept on a grid, every `STEP`-th pixel of every `STEP`-th row, which is enough to tell the share of
the pixels that two networks predict as different classes: of M grid points in all, the share is known to within
1 / sqrt(M) (two standard deviations, at worst), 0.1 % for 30 images of 1024 x 2048.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Sequence

import numpy as np

from cbst_mx.data.datasets import ImageSet
from cbst_mx.errors import DataError
from cbst_mx.evaluation.shared import Apart, NetworkFile, SharedNetwork
from cbst_mx.evaluation.shown import Shown, Shows, pack, unpack
from cbst_mx.files import open_npz, save_npz
from cbst_mx.messages import Counter, silent
from cbst_mx.selftrain.class_statistics import ImageStatistics, portions
from cbst_mx.selftrain.network_maps import confidences
from symbols.backend import gluon

__all__ = ["STEP", "GridStatistics", "load_grid", "load_saturated", "moved_share", "predict_set"]

STEP = 8  # pixels from one point of the grid to the next, along both sides


class GridStatistics(ImageStatistics):
    """Predictions of one network on one set of images: statistics per image and class, and the classes on a grid.

    Parameters
    ----------
    num_classes, class_names
        As for :class:`.ImageStatistics`.

    Attributes
    ----------
    grid : dict of str to ndarray of shape (h, w), uint8
        Predicted classes of each image at every `STEP`-th pixel; 255 where no class has any confidence.
    """

    def __init__(self, num_classes: int, class_names: Sequence[str] | None = None):
        super().__init__(num_classes, class_names)
        self.grid: dict[str, np.ndarray] = {}

    def add_pixels(self, name: str, confidence: np.ndarray, predicted: np.ndarray) -> None:
        """Add one image by its pixels, see :meth:`.ImageStatistics.add_pixels`."""
        super().add_pixels(name, confidence, predicted)
        first = [min(STEP, side) // 2 for side in predicted.shape]
        self.grid[name] = predicted[first[0] :: STEP, first[1] :: STEP].copy()

    def merge(self, other: ImageStatistics) -> None:
        """Add the images of `other`, see :meth:`.ImageStatistics.merge`."""
        super().merge(other)
        if isinstance(other, GridStatistics):
            self.grid.update(other.grid)

    def summary(self, before: Path | None = None, source: Path | None = None) -> dict[str, Any]:
        """Return the numbers of the set as JSON values.

        Parameters
        ----------
        before, source : Path, optional
            Files of :meth:`save_grid` of the network before and of the source network, on the same images.

        Returns
        -------
        dict
            ``images`` (N), ``names`` (C class names), ``predicted`` (pixels by class), ``share`` (of the pixels that
            are predicted as each class), ``confidence`` (mean of max_c p_n(c) over the pixels predicted as each class;
            None for a class that is not predicted) and ``mean_confidence`` (over all pixels); ``moved`` and
            ``moved_since_source``, the shares of the pixels that are another class than by `before` and by `source`,
            None where that is not given.

        Raises
        ------
        DataError
            If a file cannot be used, or no pixel has any confidence.
        """
        counts, sums = self.total(), self.confidence_sums.sum(axis=0)
        return {
            "images": len(self),
            "names": list(self.class_names or ()),
            "predicted": counts.tolist(),
            "share": portions(counts).tolist(),
            "confidence": [float(total / n) if n else None for total, n in zip(sums, counts)],
            "mean_confidence": float(sums.sum() / counts.sum()),
            "moved": None if before is None else moved_share(self.grid, load_grid(before)),
            "moved_since_source": None if source is None else moved_share(self.grid, load_grid(source)),
        }

    def save_grid(self, path: Path, *, saturated: float | None = None) -> None:
        """Write the grids to ``.npz``, atomically: arrays ``names``, ``sizes`` (h and w) and ``classes``, in turn.

        Parameters
        ----------
        path : Path
            The ``.npz`` file.
        saturated : float, optional
            Share of the network's cells that have a probability of exactly 1, kept beside the grids.
        """
        arrays = pack(self.grid)
        if saturated is not None:
            arrays["saturated"] = np.array([saturated], np.float64)
        save_npz(path, arrays)


def predict_set(
    network: gluon.HybridBlock | SharedNetwork,
    images: ImageSet,
    *,
    classes: Sequence[str],
    progress: Counter = silent,
    shows: Shows | Apart | None = None,
    **options: Any,
) -> GridStatistics:
    """Run a network over images without labels.

    Parameters
    ----------
    network : HybridBlock or SharedNetwork
        Maps images to logits, as for :func:`.network_maps.probabilities`.
    images : ImageSet
        The images.
    classes : sequence of C str
        Names of the network's classes.
    progress : callable
        Called with (images done, images in all).
    shows : Shows, optional
        Gets the predictions.
    **options
        Keyword arguments of :func:`.network_maps.confidences`.

    Raises
    ------
    DataError
        If an image cannot be read or a probability is not finite, naming the image.
    """
    statistics = GridStatistics(len(classes), classes)
    if isinstance(network, SharedNetwork):
        size = options.pop("batch_size", None)
        given = {"classes": classes, **options}
        for _, (part, shown) in network.run(_predict_part, images, size, given, progress):
            statistics.merge(part)
            if isinstance(shows, Shows):
                shows.merge(shown)
        return statistics
    for index, confidence, predicted in confidences(network, images, **options):
        statistics.add_pixels(images.names[index], confidence, predicted)
        if shows is not None:
            shows.add(index, images.names[index], confidence, predicted)
        progress(index + 1, len(images))
    return statistics


def _predict_part(
    file: NetworkFile,
    images: ImageSet,
    indices: Sequence[int],
    count: int,
    batch_size: int | None,
    options: dict[str, Any],
) -> tuple[GridStatistics, list[Shown]]:
    """Return the predictions on some images, and what is shown of each; on a worker."""
    network, device = file.load()
    shows = Apart(indices, count)
    return predict_set(network, images, batch_size=batch_size, shows=shows, **device, **options), shows.found


def load_grid(path: Path) -> dict[str, np.ndarray]:
    """Read what :meth:`GridStatistics.save_grid` has written.

    Raises
    ------
    DataError
        If the file is missing, damaged, or does not hold such grids.
    """
    with open_npz(path, "file of predicted classes") as stored:
        return unpack(stored, path)


def load_saturated(path: Path) -> float | None:
    """Read the share of the network's cells with a probability of exactly 1 that a file of grids holds; None if none.

    Raises
    ------
    DataError
        If the file is missing or damaged, or it is no share.
    """
    with open_npz(path, "file of predicted classes") as stored:
        if "saturated" not in stored.files:
            return None
        value = stored["saturated"]
    if value.shape != (1,) or value.dtype != np.float64 or not 0 <= value[0] <= 1:
        raise DataError(f"{path} must hold saturated as one share in [0, 1], got {value.dtype} of shape {value.shape}")
    return float(value[0])


def moved_share(now: dict[str, np.ndarray], before: dict[str, np.ndarray]) -> float:
    """Return the share of the pixels that two networks predict as different classes, in [0, 1].

    Parameters
    ----------
    now, before : dict of str to ndarray of shape (h, w), uint8
        Grids of the same images.

    Raises
    ------
    DataError
        If the images or their sizes differ, or there is none.
    """
    if {name: grid.shape for name, grid in now.items()} != {name: grid.shape for name, grid in before.items()}:
        raise DataError("predictions to compare must be of the same images in the same sizes, got others")
    total = sum(grid.size for grid in now.values())
    if not total:
        raise DataError("predictions to compare must be of at least one image, got none")
    return sum(int((grid != before[name]).sum()) for name, grid in now.items()) / total
