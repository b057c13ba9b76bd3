"""Raw files to (image uint8 RGB, label uint8 trainId): one reader per format.

`open_labelled` and `open_images` choose the reader by the format's name. Labels become trainIds here and nowhere else.
"""

from __future__ import annotations

from typing import Union

from cbst_mx.data import cityscapes, folder, gta5, nthu, synthia
from cbst_mx.data.datasets import ImageSet, LabelledImageSet
from cbst_mx.data.image_files import PathLike
from cbst_mx.data.lists import select_listed
from cbst_mx.errors import ConfigError
from cbst_mx.label_space import LabelSpace

__all__ = ["FORMATS", "ImageSet", "LabelledImageSet", "open_images", "open_labelled"]

FORMATS: tuple[str, ...] = ("gta5", "synthia", "cityscapes", "nthu", "folder")

# Options each format needs, and those it may have besides; every format may have a list.
_NEEDED: dict[str, tuple[str, ...]] = {
    "gta5": (),
    "synthia": (),
    "cityscapes": ("split",),
    "nthu": ("city", "split"),
    "folder": ("split", "description"),
}
_OPTIONAL: dict[str, tuple[str, ...]] = {
    "gta5": (),
    "synthia": ("labels",),
    "cityscapes": ("labels",),
    "nthu": ("fold", "folds", "fold_seed"),
    "folder": (),
}
Description = Union[PathLike, folder.FolderDescription]


def open_labelled(
    format: str,
    root: PathLike,
    *,
    label_space: LabelSpace,
    split: str | None = None,
    labels: str | None = None,
    description: Description | None = None,
    list: PathLike | None = None,
    city: str | None = None,
    fold: int | None = None,
    folds: int | None = None,
    fold_seed: int | None = None,
) -> LabelledImageSet:
    """Open images with their labels.

    Parameters
    ----------
    format : {"gta5", "synthia", "cityscapes", "nthu", "folder"}
        How the files are laid out.
    root : path
        Data root.
    label_space : LabelSpace
        The classes wanted; for "folder" it must be the description's.
    split : str, optional
        Needed for "cityscapes", "nthu" and "folder".
    labels : str, optional
        Which label files: "labelIds" (when not given) or "labelTrainIds" of "cityscapes"; "raw" (when not given),
        "ids" or "trainIds" of "synthia".
    description : path or FolderDescription, optional
        The YAML file, needed for "folder" only.
    list : path, optional
        Text file that names the images to use, see `cbst_mx.data.lists`; a relative path starts at `root`.
    city : str, optional
        Needed for "nthu".
    fold, folds, fold_seed : int, optional
        For "nthu": which fold, of how many (10 when not given), of which seeded assignment (0 when not given).

    Raises
    ------
    ConfigError
        If the format is unknown or an option is missing, needless or wrong.
    DataError
        If the data cannot be used.
    """
    folding = {"fold": fold, "folds": folds, "fold_seed": fold_seed}
    _check_options(format, split=split, labels=labels, description=description, city=city, **folding)
    images: LabelledImageSet
    if format == "gta5":
        images = gta5.open_labelled(root, label_space)
    elif format == "synthia":
        images = synthia.open_labelled(root, label_space, labels=labels or "raw")
    elif format == "cityscapes":
        images = cityscapes.open_labelled(root, str(split), label_space, labels=labels or "labelIds")
    elif format == "nthu":
        images = nthu.open_labelled(root, str(city), str(split), label_space, **_given(folding))
    else:
        described = _read(description)
        own = folder.label_space(described)
        if own != label_space:
            raise ConfigError(
                f"label_space must be {own.name}, as described for the data in {root}, got {label_space.name}"
                + (" with other classes, colours or ids" if own.name == label_space.name else "")
            )
        images = folder.open_labelled(described, root, str(split))
    return select_listed(images, list, root)


def open_images(
    format: str,
    root: PathLike,
    *,
    split: str | None = None,
    description: Description | None = None,
    list: PathLike | None = None,
    city: str | None = None,
    fold: int | None = None,
    folds: int | None = None,
    fold_seed: int | None = None,
) -> ImageSet:
    """Open images alone, with no way to their labels.

    Parameters
    ----------
    format : {"gta5", "synthia", "cityscapes", "nthu", "folder"}
        How the files are laid out.
    root : path
        Data root.
    split, description, list, city, fold, folds, fold_seed
        As for `open_labelled`.

    Raises
    ------
    ConfigError
        If the format is unknown or an option is missing, needless or wrong.
    DataError
        If the data cannot be used.
    """
    folding = {"fold": fold, "folds": folds, "fold_seed": fold_seed}
    _check_options(format, split=split, description=description, city=city, **folding)
    if format == "gta5":
        images = gta5.open_images(root)
    elif format == "synthia":
        images = synthia.open_images(root)
    elif format == "cityscapes":
        images = cityscapes.open_images(root, str(split))
    elif format == "nthu":
        images = nthu.open_images(root, str(city), str(split), **_given(folding))
    else:
        images = folder.open_images(_read(description), root, str(split))
    return select_listed(images, list, root)


def _check_options(format: str, **options: object) -> None:
    if format not in FORMATS:
        raise ConfigError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    for name, value in options.items():
        if value is None and name in _NEEDED[format]:
            raise ConfigError(f"{name} must be given for data of format {format}")
        if value is not None and name not in _NEEDED[format] + _OPTIONAL[format]:
            raise ConfigError(f"{name} must not be given for data of format {format}, got {value!r}")
    for name in ("folds", "fold_seed"):
        if options.get(name) is not None and options.get("fold") is None:
            raise ConfigError(f"{name} must not be given without fold, got {options[name]!r}")


def _given(options: dict[str, int | None]) -> dict[str, int]:
    return {name: value for name, value in options.items() if value is not None}


def _read(description: Description | None) -> folder.FolderDescription:
    if isinstance(description, folder.FolderDescription):
        return description
    assert description is not None  # _check_options has refused it
    return folder.read_description(description)
