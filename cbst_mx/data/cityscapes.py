"""Cityscapes (Cordts et al., CVPR 2016): leftImg8bit/<split>/<city>/ and gtFine/<split>/<city>/, as downloaded."""

from __future__ import annotations

from pathlib import Path

from cbst_mx.data.datasets import Format, ImageSet, LabelledImageSet, existing_folder, existing_labels
from cbst_mx.data.image_files import PathLike
from cbst_mx.data.listing import matching_images
from cbst_mx.errors import ConfigError, DataError, check_choice
from cbst_mx.label_space import CITYSCAPES_19, LabelSpace

__all__ = ["FORMAT", "LABEL_FILES", "open_images", "open_labelled"]

# Kind of label file -> what its ids mean.
LABEL_FILES = {"labelIds": "cityscapes", "labelTrainIds": "trainId"}

_SUFFIX = "_leftImg8bit.png"
_LAYOUT = "leftImg8bit/<split>/<city>/*" + _SUFFIX


def open_labelled(root: PathLike, split: str, label_space: LabelSpace, labels: str = "labelIds") -> LabelledImageSet:
    """Open a split with its fine labels.

    Parameters
    ----------
    root : path
        Folder that holds ``leftImg8bit`` and ``gtFine``.
    split : str
        "train" or "val"; the labels of "test" are not public.
    label_space : LabelSpace
        One with the convention of the label files.
    labels : {"labelIds", "labelTrainIds"}
        Which label files to read: those of the download, whose ids are Cityscapes ids, or those that the data set's
        own scripts (and ``cbst-mx prepare cityscapes``) make, whose trainIds are those of the 19 classes.

    Raises
    ------
    DataError
        If the root or the split is missing or empty, or an image has no label.
    ConfigError
        If the split has no labels, or `labels` or the label space do not fit.
    """
    check_choice("labels", labels, LABEL_FILES)
    label_space.check_convention(LABEL_FILES[labels])
    # In a label space with fewer classes the same numbers stand for other classes.
    if labels == "labelTrainIds" and label_space.names != CITYSCAPES_19.names:
        raise ConfigError(
            f"labels must be 'labelIds' for the classes of {label_space.name}, got 'labelTrainIds', "
            f"which hold the trainIds of {CITYSCAPES_19.name}"
        )
    if split == "test":
        raise ConfigError(
            "split must be 'train' or 'val' where labels are needed: those of Cityscapes 'test' are not public"
        )
    images = _images(root, split)
    names = _names(images)
    label_paths = [
        Path(root) / "gtFine" / split / path.parent.name / f"{name}_gtFine_{labels}.png"
        for name, path in zip(names, images)
    ]
    label_paths = existing_labels(images, label_paths)
    return LabelledImageSet(names, images, label_paths, label_space, LABEL_FILES[labels])


def open_images(root: PathLike, split: str) -> ImageSet:
    """Open the images of a split alone; names are such as "frankfurt_000000_000294".

    Parameters
    ----------
    root : path
        Folder that holds ``leftImg8bit``.
    split : str
        "train", "val", "test" or another folder of ``leftImg8bit``.

    Raises
    ------
    DataError
        If the root or the split is missing or empty.
    """
    images = _images(root, split)
    return ImageSet(_names(images), images)


def _names(images: list[Path]) -> list[str]:
    return [path.name[: -len(_SUFFIX)] for path in images]


def _images(root: PathLike, split: str) -> list[Path]:
    folder = existing_folder(root, "Cityscapes data root", "a folder with " + _LAYOUT) / "leftImg8bit"
    existing_folder(folder, "Cityscapes image folder", _LAYOUT)
    known = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if split not in known:
        raise DataError(f"split must be a folder of {folder} ({', '.join(known) or 'it has none'}), got {split!r}")
    images = [*matching_images(folder / split, "*/*" + _SUFFIX).files]
    if not images:
        raise DataError(f"Cityscapes split {folder / split} has no image: expected {_LAYOUT}")
    return images


FORMAT = Format(open_images, open_labelled, needed=("split",), optional=("labels",))
