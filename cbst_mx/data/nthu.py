"""NTHU Cross-City (Chen et al., ICCV 2017): four cities, each with 3,200 unlabelled and 100 labelled images.

Per city ``Images/Train/*.jpg``, ``Images/Test/*.png`` and ``Labels/Test/<name>_eval.png``; the endings may be others.
The label files hold Cityscapes ids, of which 13 classes are evaluated.

Three splits: "train" is the unlabelled images; "test" the labelled ones or, with a fold, those held out in it; "rest"
the labelled images outside the fold. Without labels only "train" and "rest" can be opened, so pseudo-labels are never
made for images that the fold tests on. For the same reason "train" leaves out images with the name of a labelled one:
the published lists have such names (in Rio, for example), and nothing says whether the pictures are the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

from cbst_mx.data.datasets import Format, ImageSet, LabelledImageSet, existing_folder, existing_labels
from cbst_mx.data.folds import split_fold
from cbst_mx.data.image_files import PathLike
from cbst_mx.data.listing import matching_images, merged
from cbst_mx.errors import ConfigError, DataError, check_choice
from cbst_mx.label_space import NTHU_13, LabelSpace

__all__ = ["FORMAT", "CITIES", "SPLITS", "city_folder", "label_name", "list_images", "open_images", "open_labelled"]

CITIES = ("Rome", "Rio", "Tokyo", "Taipei")
SPLITS = ("train", "test", "rest")

_LAYOUT = "<city>/Images/Train, <city>/Images/Test and <city>/Labels/Test/*_eval.png"
_ENDINGS = (".jpg", ".jpeg", ".png")


def open_labelled(
    root: PathLike,
    city: str,
    split: str,
    label_space: LabelSpace,
    *,
    fold: int | None = None,
    folds: int = 10,
    fold_seed: int = 0,
) -> LabelledImageSet:
    """Open labelled images of a city.

    Parameters
    ----------
    root : path
        Folder that holds the cities' folders, or the city's own folder.
    city : {"Rome", "Rio", "Tokyo", "Taipei"}
        Name of the city.
    split : {"test", "rest"}
        All labelled images ("test" without a fold), those held out in the fold, or the others.
    label_space : LabelSpace
        One with the convention "cityscapes".
    fold : int, optional
        0 to `folds` - 1; needed for "rest".
    folds, fold_seed : int
        As for `cbst_mx.data.folds.assign_folds`.

    Raises
    ------
    DataError
        If a folder is missing or empty, or an image has no label.
    ConfigError
        If the city, the split or the fold cannot be used.
    """
    if split not in ("test", "rest"):
        _check_split(split)
        raise ConfigError("split must be 'test' or 'rest' where labels are needed: NTHU has none for 'train'")
    label_space.check_convention("cityscapes")
    images = _labelled_part(root, city, split, fold, folds, fold_seed)
    folder = city_folder(root, city) / "Labels" / "Test"
    existing_folder(folder, "NTHU label folder", _LAYOUT)
    label_paths = [folder / label_name(path) for path in images]
    label_paths = existing_labels(images, label_paths)
    return LabelledImageSet([path.stem for path in images], images, label_paths, label_space, "cityscapes")


def open_images(
    root: PathLike, city: str, split: str, *, fold: int | None = None, folds: int = 10, fold_seed: int = 0
) -> ImageSet:
    """Open images of a city to be used without labels.

    Parameters
    ----------
    root, city, fold, folds, fold_seed
        As for `open_labelled`.
    split : {"train", "rest"}
        The unlabelled images, or the labelled ones outside the fold.

    Raises
    ------
    DataError
        If a folder is missing or empty.
    ConfigError
        If the city, the split or the fold cannot be used.
    """
    _check_split(split)
    if split == "test":
        raise ConfigError(
            "split must be 'train' or 'rest' where NTHU is used without labels: "
            "pseudo-labels never come from the images that are tested on"
        )
    if split == "rest":
        images = _labelled_part(root, city, split, fold, folds, fold_seed)
    else:
        if fold is not None:
            raise ConfigError(f"fold must not be given for split 'train' of NTHU, which is in no fold, got {fold}")
        tested = {path.stem for path in list_images(city_folder(root, city) / "Images" / "Test")}
        images = [path for path in _pictures(root, city, "Train") if path.stem not in tested]
    return ImageSet([path.stem for path in images], images)


def city_folder(root: PathLike, city: str) -> Path:
    """Return the folder of a city: below the root, or the root itself where it has the city's name.

    Raises
    ------
    DataError
        If there is none.
    ConfigError
        If `city` is none of the four.
    """
    check_choice("city", city, CITIES)
    base = existing_folder(root, "NTHU data root", "a folder with " + _LAYOUT)
    if base.name == city and (base / "Images").is_dir():
        return base
    return existing_folder(base / city, "NTHU city folder", _LAYOUT)


def list_images(folder: Path) -> list[Path]:
    """Return the images of a folder in the order of their names; none if there is no such folder."""
    if not folder.is_dir():
        return []
    return [*merged([matching_images(folder, "*" + ending) for ending in _ENDINGS]).files]


def label_name(image: Path) -> str:
    """Return the file name of an image's label."""
    return f"{image.stem}_eval.png"


def _check_split(split: str) -> None:
    check_choice("split", split, SPLITS, of="NTHU")


def _labelled_part(
    root: PathLike, city: str, split: str, fold: int | None, folds: int, fold_seed: int
) -> Sequence[Path]:
    images = _pictures(root, city, "Test")
    if fold is None:
        if split == "rest":
            raise ConfigError("fold must be given for split 'rest' of NTHU")
        return images
    rest, held_out = split_fold([path.stem for path in images], fold, folds=folds, seed=fold_seed)
    return [images[index] for index in (held_out if split == "test" else rest)]


def _pictures(root: PathLike, city: str, part: str) -> list[Path]:
    folder = city_folder(root, city) / "Images" / part
    existing_folder(folder, "NTHU image folder", _LAYOUT)
    images = list_images(folder)
    if not images:
        raise DataError(f"NTHU image folder {folder} has no image: expected {_LAYOUT}")
    return images


FORMAT = Format(
    open_images,
    open_labelled,
    needed=("split", "city"),
    optional=("fold", "folds", "fold_seed"),
    label_space=NTHU_13.name,
)
