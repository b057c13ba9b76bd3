"""GTA5 ("Playing for Data", Richter et al., ECCV 2016): images/00001.png and labels/00001.png.

The labels are palette PNGs whose indices are Cityscapes ids. Most of the 24,966 images are 1052 x 1914, some are 1046
lines high or of another size: all are read as they are, and ``cbst-mx prepare gta5`` makes a copy of one size.
"""

from __future__ import annotations

from pathlib import Path

from cbst_mx.data.datasets import Format, ImageSet, LabelledImageSet, existing_folder, existing_labels
from cbst_mx.data.image_files import PathLike
from cbst_mx.data.listing import matching_images
from cbst_mx.errors import DataError
from cbst_mx.label_space import LabelSpace

__all__ = ["FORMAT", "open_images", "open_labelled"]

_LAYOUT = "images/*.png and labels/*.png with the same file names"


def open_labelled(root: PathLike, label_space: LabelSpace) -> LabelledImageSet:
    """Open the images with their labels.

    Parameters
    ----------
    root : path
        Folder that holds ``images`` and ``labels``.
    label_space : LabelSpace
        One with the convention "cityscapes".

    Raises
    ------
    DataError
        If the root or one of its folders is missing or empty, or an image has no label.
    ConfigError
        If the label space has no convention "cityscapes".
    """
    images = _images(root)
    labels = existing_folder(Path(root) / "labels", "GTA5 label folder", _LAYOUT)
    label_paths = [labels / path.name for path in images]
    label_paths = existing_labels(images, label_paths)
    return LabelledImageSet([path.stem for path in images], images, label_paths, label_space, "cityscapes")


def open_images(root: PathLike) -> ImageSet:
    """Open the images alone; names are file stems such as "00001".

    Raises
    ------
    DataError
        If the root or its folder ``images`` is missing or empty.
    """
    images = _images(root)
    return ImageSet([path.stem for path in images], images)


def _images(root: PathLike) -> list[Path]:
    folder = existing_folder(root, "GTA5 data root", "a folder with " + _LAYOUT) / "images"
    existing_folder(folder, "GTA5 image folder", _LAYOUT)
    images = [*matching_images(folder, "*.png").files]
    if not images:
        raise DataError(f"GTA5 image folder {folder} has no image: expected {_LAYOUT}")
    return images


FORMAT = Format(open_images, open_labelled)
