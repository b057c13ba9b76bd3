"""Training samples: source images with labels, target images with pseudo-labels or without any."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Callable, List, Sequence

import numpy as np

from cbst_mx.data.datasets import ImageSet, LabelledImageSet
from cbst_mx.data.image_files import read_label
from cbst_mx.data.png_pixels import Rows
from cbst_mx.errors import DataError, RunError
from cbst_mx.label_space import IGNORE, LabelSpace

__all__ = ["Sample", "Samples", "labelled_samples", "pseudo_labelled_samples", "unlabelled_samples"]


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """One image with its label, read when it is called; may be called from any thread, and sent to another process.

    Attributes
    ----------
    name : str
        Name of the image, for messages.
    read : callable
        Returns the image, uint8 (H, W, 3) RGB, or the rows of one, and the label, uint8 (H, W), trainIds with 255 =
        ignore.
    """

    name: str
    read: Callable[[], tuple[np.ndarray | Rows, np.ndarray]]

    def __call__(self) -> tuple[np.ndarray | Rows, np.ndarray]:
        return self.read()


Samples = List[Sample]


def _samples(images: ImageSet, read: Callable[[int], tuple[np.ndarray | Rows, np.ndarray]]) -> Samples:
    return [Sample(name, functools.partial(read, index)) for index, name in enumerate(images.names)]


def labelled_samples(images: LabelledImageSet) -> Samples:
    """Return one sample per image of a labelled set."""
    return _samples(images, images.sample)


def pseudo_labelled_samples(images: ImageSet, folder: Path, label_space: LabelSpace) -> Samples:
    """Return one sample per target image, with the pseudo-label ``folder/NAME.png`` in place of a label.

    Parameters
    ----------
    images : ImageSet
        The target training images.
    folder : Path
        Pseudo-labels of a round: 8-bit trainIds, 255 = not selected.
    label_space : LabelSpace
        The classes.

    Raises
    ------
    RunError
        If a pseudo-label is missing.
    """
    paths = [folder / f"{name}.png" for name in images.names]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise RunError(
            f"{len(missing)} of {len(paths)} pseudo-labels are missing, the first is {missing[0]}: "
            "run pseudo-label again"
        )

    return _samples(images, functools.partial(_pseudo_labelled, images, paths, label_space))


def _pseudo_labelled(
    images: ImageSet, paths: Sequence[Path], label_space: LabelSpace, index: int
) -> tuple[np.ndarray | Rows, np.ndarray]:
    image = images.rows(index)
    label = label_space.encode(read_label(paths[index]), "trainId", str(paths[index]))
    if image.shape[:2] != label.shape:
        raise DataError(f"pseudo-label {paths[index]} has not the size of image {images.image_paths[index]}")
    return image, label


def unlabelled_samples(images: ImageSet) -> Samples:
    """Return one sample per image of a set without labels: all its pixels are labelled 255."""

    def read(index: int) -> tuple[np.ndarray | Rows, np.ndarray]:
        image = images.rows(index)
        return image, np.full(image.shape[:2], IGNORE, np.uint8)

    return _samples(images, read)
