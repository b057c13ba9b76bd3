"""Your own images, described by a YAML file.

::

    label_space:                      # your own classes ...
      name: camvid-11
      names: [sky, building, pole]                                      # by trainId
      palette: [[128, 128, 128], [128, 0, 0], [192, 192, 128]]          # RGB by trainId
      ids: {0: 0, 1: 1, 2: 2, 11: ignore}                               # id in the label files -> trainId
    splits:
      day:
        images: ["train/0006R0_*.png", "val/*.png"]                     # globs below the data root
        labels: "{folder}annot/{stem}.png"                              # below the data root; may be left out
      dusk:
        images: ["train/0001TP_*.png"]

or, in place of your own classes, those of a known label space and the convention of the ids in the label files::

    label_space: cityscapes-19
    ids: cityscapes                   # or trainId

``{folder}`` is the image's folder below the root, ``{stem}`` its file name without the ending. An image's name is its
stem, with the folder in front where two images of a split have the same stem. Images may be of any format Pillow
reads.
"""

# pydantic evaluates annotations, and Python 3.8 has no list[str] or X | None there.
# ruff: noqa: UP006, UP007, UP045
from __future__ import annotations

import string
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Dict, List, Literal, Optional, Type, Union

from pydantic import Field, PrivateAttr, ValidationError, field_validator, model_validator

from cbst_mx.data.datasets import Format, ImageSet, LabelledImageSet, check_labels_exist, existing_folder
from cbst_mx.data.image_files import PathLike
from cbst_mx.errors import ConfigError, DataError
from cbst_mx.label_space import IGNORE, LABEL_SPACES, LabelSpace, get_label_space
from cbst_mx.strict_yaml import StrictModel, one_sentence, read_yaml

__all__ = [
    "FORMAT",
    "FolderDescription",
    "label_space",
    "open_images",
    "open_labelled",
    "read_description",
    "read_label_space",
]

_OWN_CONVENTION = "folder"
_PLACEHOLDERS = ("folder", "stem")


class FolderSplit(StrictModel):
    """One split: globs of its images and, where it has labels, the pattern of their paths."""

    images: List[str] = Field(min_length=1)
    labels: Optional[str] = None

    @field_validator("images")
    @classmethod
    def _images_below_root(cls, patterns: List[str]) -> List[str]:
        for pattern in patterns:
            _refuse_outside_root(pattern)
        return patterns

    @field_validator("labels")
    @classmethod
    def _labels_fill_in(cls, pattern: Optional[str]) -> Optional[str]:
        if pattern is None:
            return None
        _refuse_outside_root(pattern)
        try:
            used = [
                (name, spec, conversion)
                for _, name, spec, conversion in string.Formatter().parse(pattern)
                if name is not None
            ]
        except ValueError as error:
            raise ValueError(f"must be a pattern with {{folder}} and {{stem}}, got {pattern!r} ({error})") from error
        if any(name not in _PLACEHOLDERS or spec or conversion for name, spec, conversion in used):
            raise ValueError(f"must have no placeholders but {{folder}} and {{stem}}, got {pattern!r}")
        if "stem" not in [name for name, _, _ in used]:
            raise ValueError(f"must contain {{stem}}, or all images would share one label, got {pattern!r}")
        return pattern


class FolderDescription(StrictModel):
    """A data description as an object; made by `read_description`."""

    splits: Dict[str, FolderSplit] = Field(min_length=1)
    _origin: str = PrivateAttr("the data description")
    _space: LabelSpace = PrivateAttr()
    _convention: str = PrivateAttr(_OWN_CONVENTION)


class _OwnLabelSpace(StrictModel):
    name: str = Field(min_length=1)
    names: List[str] = Field(min_length=1)
    palette: List[List[int]]
    ids: Dict[int, Union[int, Literal["ignore"]]]


class _OwnClasses(FolderDescription):
    label_space: _OwnLabelSpace

    @model_validator(mode="after")
    def _fits_together(self) -> _OwnClasses:
        own = self.label_space
        if own.name in LABEL_SPACES:
            raise ValueError(f"the name of your own label space must not be that of a known one, got {own.name!r}")
        try:
            self._space = LabelSpace(
                name=own.name,
                names=tuple(own.names),
                palette=tuple(tuple(colour) for colour in own.palette),  # type: ignore[misc]
                raw_ids={_OWN_CONVENTION: {raw: IGNORE if to == "ignore" else to for raw, to in own.ids.items()}},
            )
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return self


class _KnownClasses(FolderDescription):
    label_space: str
    ids: str

    @model_validator(mode="after")
    def _known(self) -> _KnownClasses:
        try:
            self._space = get_label_space(self.label_space)
            self._space.check_convention(self.ids)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        self._convention = self.ids
        return self


def read_description(path: PathLike) -> FolderDescription:
    """Read and check a data description (see the module's text for its form).

    Raises
    ------
    ConfigError
        If it cannot be used; the message names the file, the key and what is allowed.
    """
    content = read_yaml(path)
    model: Type[FolderDescription] = _OwnClasses if isinstance(content.get("label_space"), dict) else _KnownClasses
    try:
        description = model.model_validate(content)
    except ValidationError as error:
        raise ConfigError(one_sentence(error, str(path), model)) from error
    description._origin = str(path)
    return description


def label_space(description: FolderDescription) -> LabelSpace:
    """Return the label space of a data description."""
    return description._space


def read_label_space(path: PathLike) -> LabelSpace:
    """Return the label space of a YAML data description.

    Raises
    ------
    ConfigError
        If it cannot be used; the message names the file, the key and what is allowed.
    """
    return label_space(read_description(path))


def open_labelled(description: FolderDescription, root: PathLike, split: str) -> LabelledImageSet:
    """Open a split with its labels.

    Parameters
    ----------
    description : FolderDescription
        Result of `read_description`.
    root : path
        The folder its patterns start from.
    split : str
        One of its splits that has labels.

    Raises
    ------
    DataError
        If the root is missing, a glob matches nothing, or an image has no label.
    ConfigError
        If there is no such split or it has no labels.
    """
    pattern = _split(description, split).labels
    if pattern is None:
        raise ConfigError(
            f"split {split!r} of {description._origin} has no key 'labels': it can only be used without labels"
        )
    images = _images(description, root, split)
    # A root-level image has an empty {folder}; the pattern's next slash must not lead to the top of the file system.
    label_paths = [
        Path(root) / pattern.format(folder=_below(path, root), stem=path.stem).lstrip("/") for path in images
    ]
    check_labels_exist(images, label_paths)
    return LabelledImageSet(_names(images, root), images, label_paths, description._space, description._convention)


def open_images(description: FolderDescription, root: PathLike, split: str) -> ImageSet:
    """Open the images of a split alone.

    Parameters
    ----------
    description : FolderDescription
        Result of `read_description`.
    root : path
        The folder its patterns start from.
    split : str
        One of its splits.

    Raises
    ------
    DataError
        If the root is missing or a glob matches nothing.
    ConfigError
        If there is no such split.
    """
    images = _images(description, root, split)
    return ImageSet(_names(images, root), images)


def _refuse_outside_root(pattern: str) -> None:
    parts = PurePosixPath(pattern)
    if not pattern or parts.is_absolute() or ".." in parts.parts:
        raise ValueError(f"must be below the data root, got {pattern!r}")


def _split(description: FolderDescription, split: str) -> FolderSplit:
    if split not in description.splits:
        known = ", ".join(description.splits)
        raise ConfigError(f"split must be one of {known} (those of {description._origin}), got {split!r}")
    return description.splits[split]


def _below(path: Path, root: PathLike) -> str:
    folder = path.parent.relative_to(root).as_posix()
    return "" if folder == "." else folder


def _images(description: FolderDescription, root: PathLike, split: str) -> List[Path]:
    patterns = _split(description, split).images
    base = existing_folder(
        root, "data root", f"a folder with {', '.join(patterns)} (split {split!r} of {description._origin})"
    )
    found = set()
    for pattern in patterns:
        try:
            matches = [path for path in base.glob(pattern) if path.is_file() and not path.name.startswith(".")]
        except ValueError as error:
            raise ConfigError(
                f"{description._origin}: images of split {split!r} must be globs, got {pattern!r} ({error})"
            ) from error
        if not matches:
            raise DataError(f"data root {base} has no image {pattern} (split {split!r} of {description._origin})")
        found.update(matches)
    return sorted(found)


def _names(images: List[Path], root: PathLike) -> List[str]:
    stems = Counter(path.stem for path in images)
    names = []
    for path in images:
        folder = _below(path, root)
        prefix = folder.replace("/", "__") + "__" if folder and stems[path.stem] > 1 else ""
        names.append(prefix + path.stem)
    return names


def _open_described_images(root: PathLike, *, split: str, description: Union[PathLike, FolderDescription]) -> ImageSet:
    return open_images(_described(description), root, split)


def _open_described_labelled(
    root: PathLike, *, label_space: LabelSpace, split: str, description: Union[PathLike, FolderDescription]
) -> LabelledImageSet:
    described = _described(description)
    own = described._space
    if own != label_space:
        raise ConfigError(
            f"label_space must be {own.name}, as described for the data in {root}, got {label_space.name}"
            + (" with other classes, colours or ids" if own.name == label_space.name else "")
        )
    return open_labelled(described, root, split)


def _described(description: Union[PathLike, FolderDescription]) -> FolderDescription:
    return description if isinstance(description, FolderDescription) else read_description(description)


FORMAT = Format(_open_described_images, _open_described_labelled, needed=("split", "description"))
