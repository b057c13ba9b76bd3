"""Raw files to (image uint8 RGB, label uint8 trainId): one reader per format.

`FORMATS` is the list of the formats; a reader is a module with a `Format`, and one line there. `open_labelled` and
`open_images` choose the reader by the format's name. Labels become trainIds here and nowhere else.
"""

from __future__ import annotations

from typing import Any

from cbst_mx.data import cityscapes, folder, gta5, nthu, synthia
from cbst_mx.data.datasets import Format, ImageSet, LabelledImageSet
from cbst_mx.data.image_files import PathLike
from cbst_mx.data.lists import select_listed
from cbst_mx.errors import ConfigError, check_choice
from cbst_mx.label_space import LabelSpace

__all__ = ["FORMATS", "Format", "ImageSet", "LabelledImageSet", "open_images", "open_labelled"]

FORMATS: dict[str, Format] = {
    "gta5": gta5.FORMAT,
    "synthia": synthia.FORMAT,
    "cityscapes": cityscapes.FORMAT,
    "nthu": nthu.FORMAT,
    "folder": folder.FORMAT,
}


def open_labelled(
    format: str, root: PathLike, *, label_space: LabelSpace, list: PathLike | None = None, **options: Any
) -> LabelledImageSet:
    """Open images with their labels.

    Parameters
    ----------
    format : str
        How the files are laid out, a key of `FORMATS`.
    root : path
        Data root.
    label_space : LabelSpace
        The classes wanted; for "folder" it must be the description's.
    list : path, optional
        Text file that names the images to use, see `cbst_mx.data.lists`; a relative path starts at `root`.
    **options
        Which of the images and labels; None is as good as not given.

        * split : str, needed for "cityscapes", "nthu" and "folder".
        * labels : str, which label files: "labelIds" (when not given) or "labelTrainIds" of "cityscapes"; "raw" (when
          not given), "ids" or "trainIds" of "synthia".
        * description : path or FolderDescription, the YAML file, needed for "folder" only.
        * city : str, needed for "nthu".
        * fold, folds, fold_seed : int, for "nthu": which fold, of how many (10 when not given), of which seeded
          assignment (0 when not given).

    Raises
    ------
    ConfigError
        If the format is unknown or an option is missing, needless or wrong.
    DataError
        If the data cannot be used.
    """
    given = _check_options(format, options)
    if FORMATS[format].takes_list:
        return FORMATS[format].open_labelled(root, label_space=label_space, list=list, **given)
    images = FORMATS[format].open_labelled(root, label_space=label_space, **given)
    return select_listed(images, list, root)


def open_images(format: str, root: PathLike, *, list: PathLike | None = None, **options: Any) -> ImageSet:
    """Open images alone, with no way to their labels.

    Parameters
    ----------
    format : str
        How the files are laid out, a key of `FORMATS`.
    root : path
        Data root.
    list, **options
        As for `open_labelled`, without labels.

    Raises
    ------
    ConfigError
        If the format is unknown or an option is missing, needless or wrong.
    DataError
        If the data cannot be used.
    """
    given = _check_options(format, options, without=("labels",))
    if FORMATS[format].takes_list:
        return FORMATS[format].open_images(root, list=list, **given)
    return select_listed(FORMATS[format].open_images(root, **given), list, root)


def _check_options(format: str, options: dict[str, Any], without: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the options that are given, if the format takes them and they are enough."""
    check_choice("format", format, FORMATS)
    given = {name: value for name, value in options.items() if value is not None}
    for name in FORMATS[format].needed:
        if name not in given:
            raise ConfigError(f"{name} must be given for data of format {format}")
    for name, value in given.items():
        if name not in FORMATS[format].options or name in without:
            raise ConfigError(f"{name} must not be given for data of format {format}, got {value!r}")
    for name in ("folds", "fold_seed"):
        if name in given and "fold" not in given:
            raise ConfigError(f"{name} must not be given without fold, got {given[name]!r}")
    return given
