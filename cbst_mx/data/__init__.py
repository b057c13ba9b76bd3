"""Raw files to (image uint8 RGB, label uint8 trainId): one reader per format.

`open_labelled` and `open_images` choose the reader by the format's name. Labels become trainIds here and nowhere else.
"""

from __future__ import annotations

from typing import Union

from cbst_mx.data import cityscapes, folder, gta5
from cbst_mx.data.datasets import ImageSet, LabelledImageSet
from cbst_mx.data.images import PathLike
from cbst_mx.errors import ConfigError
from cbst_mx.label_space import LabelSpace

__all__ = ["FORMATS", "ImageSet", "LabelledImageSet", "open_images", "open_labelled"]

FORMATS: tuple[str, ...] = ("gta5", "cityscapes", "folder")

# Options each format needs, and those it may have besides.
_NEEDED: dict[str, tuple[str, ...]] = {"gta5": (), "cityscapes": ("split",), "folder": ("split", "description")}
_OPTIONAL: dict[str, tuple[str, ...]] = {"gta5": (), "cityscapes": ("labels",), "folder": ()}

Description = Union[PathLike, folder.FolderDescription]


def open_labelled(
    format: str,
    root: PathLike,
    *,
    label_space: LabelSpace,
    split: str | None = None,
    labels: str | None = None,
    description: Description | None = None,
) -> LabelledImageSet:
    """Open images with their labels.

    Parameters
    ----------
    format : {"gta5", "cityscapes", "folder"}
        How the files are laid out.
    root : path
        Data root.
    label_space : LabelSpace
        The classes wanted; for "folder" it must be the description's.
    split : str, optional
        Needed for "cityscapes" and "folder".
    labels : {"labelIds", "labelTrainIds"}, optional
        Which label files, for "cityscapes" only; "labelIds" when not given.
    description : path or FolderDescription, optional
        The YAML file, needed for "folder" only.

    Raises
    ------
    ConfigError
        If the format is unknown or an option is missing, needless or wrong.
    DataError
        If the data cannot be used.
    """
    _check_options(format, split=split, labels=labels, description=description)
    if format == "gta5":
        return gta5.open_labelled(root, label_space)
    if format == "cityscapes":
        return cityscapes.open_labelled(root, str(split), label_space, labels=labels or "labelIds")
    described = _read(description)
    own = folder.label_space(described)
    if own != label_space:
        raise ConfigError(
            f"label_space must be {own.name}, as described for the data in {root}, got {label_space.name}"
            + (" with other classes, colours or ids" if own.name == label_space.name else "")
        )
    return folder.open_labelled(described, root, str(split))


def open_images(
    format: str, root: PathLike, *, split: str | None = None, description: Description | None = None
) -> ImageSet:
    """Open images alone, with no way to their labels.

    Parameters
    ----------
    format : {"gta5", "cityscapes", "folder"}
        How the files are laid out.
    root : path
        Data root.
    split : str, optional
        Needed for "cityscapes" and "folder".
    description : path or FolderDescription, optional
        The YAML file, needed for "folder" only.

    Raises
    ------
    ConfigError
        If the format is unknown or an option is missing, needless or wrong.
    DataError
        If the data cannot be used.
    """
    _check_options(format, split=split, description=description)
    if format == "gta5":
        return gta5.open_images(root)
    if format == "cityscapes":
        return cityscapes.open_images(root, str(split))
    return folder.open_images(_read(description), root, str(split))


def _check_options(format: str, **options: object) -> None:
    if format not in FORMATS:
        raise ConfigError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    for name, value in options.items():
        if value is None and name in _NEEDED[format]:
            raise ConfigError(f"{name} must be given for data of format {format}")
        if value is not None and name not in _NEEDED[format] + _OPTIONAL[format]:
            raise ConfigError(f"{name} must not be given for data of format {format}, got {value!r}")


def _read(description: Description | None) -> folder.FolderDescription:
    if isinstance(description, folder.FolderDescription):
        return description
    assert description is not None  # _check_options has refused it
    return folder.read_description(description)
