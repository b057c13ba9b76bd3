"""Step b) of a round: unlabelled target images with their pseudo-labels as training samples."""

from __future__ import annotations

from pathlib import Path

from cbst_mx.data.datasets import ImageSet
from cbst_mx.data.image_files import read_label
from cbst_mx.data.loader import Sample
from cbst_mx.errors import DataError, RunError
from cbst_mx.label_space import LabelSpace
from cbst_mx.training.source import named

__all__ = ["pseudo_labelled_samples"]


def pseudo_labelled_samples(images: ImageSet, folder: Path, label_space: LabelSpace) -> list[Sample]:
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

    def read(index: int):
        image = images.image(index)
        label = label_space.encode(read_label(paths[index]), "trainId", str(paths[index]))
        if image.shape[:2] != label.shape:
            raise DataError(f"pseudo-label {paths[index]} has not the size of image {images.image_paths[index]}")
        return image, label

    return [named(lambda index=index: read(index), images.names[index]) for index in range(len(images))]
