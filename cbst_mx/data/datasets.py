"""Sets of images, with and without labels.

Adaptation gets an `ImageSet`, which has no way to a label: not an attribute to be left unread, but none at all.
Training on the source and evaluation get a `LabelledImageSet`. Images and labels are read from disk at each call.
"""

from __future__ import annotations

import copy
import operator
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterable, Sequence

import numpy as np

from cbst_mx.data.image_files import Draft, PathLike, read_draft, read_header, read_label, read_rgb, read_rows
from cbst_mx.data.label_files import files_below
from cbst_mx.data.png_pixels import Rows
from cbst_mx.errors import ConfigError, DataError
from cbst_mx.label_space import CITYSCAPES_19, LabelSpace
from cbst_mx.messages import counted

__all__ = ["LONGEST_NAME", "Format", "ImageSet", "LabelledImageSet", "existing_folder", "existing_labels"]

LONGEST_NAME = 240  # bytes of an image's name; 255 is what file systems take, with endings such as _overlay.png


def _paths(paths: Sequence[PathLike]) -> tuple[Path, ...]:
    return tuple(path if isinstance(path, Path) else Path(path) for path in paths)  # a path parses what it is given


class ImageSet:
    """Images by index, each with a name that is unique in the set and can be a file's stem.

    Parameters
    ----------
    names : sequence of str
        Names, without path separators.
    image_paths : sequence of path
        One file for each name.

    Raises
    ------
    DataError
        If a name occurs twice, cannot be a file's name, or leaves no room for the files that are named after it.
    """

    # No __dict__: nothing else can be attached to an unlabelled set.
    __slots__ = ("image_paths", "names")

    names: tuple[str, ...]
    image_paths: tuple[Path, ...]

    def __init__(self, names: Sequence[str], image_paths: Sequence[PathLike]) -> None:
        self.names = tuple(names)
        self.image_paths = _paths(image_paths)
        if len(self.names) != len(self.image_paths):
            names = counted(len(self.names), "name")
            raise ConfigError(f"image_paths must have one file per name, got {len(self.image_paths)} for {names}")
        for name, path in zip(self.names, self.image_paths):
            if not name.strip() or name.startswith(".") or any(character in name for character in "/\\\0"):
                raise DataError(f"the name of image {path} must be usable as a file name, got {name!r}")
            if not name.isprintable() and any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in name):
                raise DataError(
                    f"the name of image {str(path)!r} must be one line without control characters and readable as "
                    f"UTF-8, got {name!r}"
                )
            if len(name) > LONGEST_NAME // 4 and len(name.encode()) > LONGEST_NAME:
                raise DataError(
                    f"the name of image {path} must have at most {LONGEST_NAME} bytes, so that files can be named "
                    f"after it, got {len(name.encode())}"
                )
        name, count = Counter(self.names).most_common(1)[0] if self.names else ("", 0)
        if count > 1:
            twice = [str(path) for path, other in zip(self.image_paths, self.names) if other == name]
            raise DataError(f"image names must be unique, got {name!r} for {twice[0]} and {twice[1]}")

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int) -> np.ndarray:
        """Read one image as it is stored: rotation marks (EXIF) are not applied.

        Returns
        -------
        ndarray of shape (H, W, 3), uint8
            RGB.

        Raises
        ------
        DataError
            If the file cannot be read.
        """
        return read_rgb(self.image_paths[index])

    def rows(self, index: int) -> np.ndarray | Rows:
        """Read one image for a window of it, as :func:`.image_files.read_rows` does.

        Raises
        ------
        DataError
            If the file cannot be read.
        """
        return read_rows(self.image_paths[index]) if self._has_plain_files else self.image(index)

    def draft(self, index: int, wanted: Callable[[int, int], tuple[int, int]]) -> np.ndarray | Draft:
        """Read one image to be resized to the size `wanted` of its own, as :func:`.image_files.read_draft` does.

        Raises
        ------
        DataError
            If the file cannot be read.
        """
        return read_draft(self.image_paths[index], wanted) if self._has_plain_files else self.image(index)

    @property
    def _has_plain_files(self) -> bool:
        """Whether an image is its file alone; what a kind of set does with its images beside is not passed by."""
        return type(self).image is ImageSet.image

    def subset(self, indices: Iterable[int]) -> ImageSet:
        """Return the set of the chosen images, in the given order.

        Raises
        ------
        ConfigError
            If an index is outside 0 to len - 1.
        DataError
            If an index comes twice.
        """
        chosen = self._checked(indices)
        return ImageSet([self.names[i] for i in chosen], [self.image_paths[i] for i in chosen])

    def absolute(self) -> ImageSet:
        """Return the same set by absolute paths, for a process that works in another folder."""
        made = copy.copy(self)
        made.image_paths = tuple(path.absolute() for path in self.image_paths)
        return made

    def _checked(self, indices: Iterable[int]) -> list[int]:
        chosen = [operator.index(index) for index in indices]
        for index in chosen:
            if not 0 <= index < len(self):
                raise ConfigError(f"indices must be from 0 to {len(self) - 1}, got {index}")
        return chosen


class LabelledImageSet(ImageSet):
    """Images with their label maps.

    Parameters
    ----------
    names, image_paths
        As for `ImageSet`.
    label_paths : sequence of path
        One file for each image.
    label_space : LabelSpace
        The classes.
    convention : str
        Meaning of the raw ids in the label files, one of the label space's conventions.
    read : callable
        Reads the raw ids (H, W) of a label file. A function of a module or an object that can be pickled, so that the
        set can travel to workers.
    left_out : int
        Number of images that were left out because they have no label.
    """

    __slots__ = ("convention", "label_paths", "label_space", "left_out", "read")

    label_paths: tuple[Path, ...]
    label_space: LabelSpace
    convention: str
    read: Callable[[PathLike], np.ndarray]
    left_out: int

    def __init__(
        self,
        names: Sequence[str],
        image_paths: Sequence[PathLike],
        label_paths: Sequence[PathLike],
        label_space: LabelSpace,
        convention: str,
        read: Callable[[PathLike], np.ndarray] = read_label,
        *,
        left_out: int = 0,
    ) -> None:
        super().__init__(names, image_paths)
        label_space.check_convention(convention)
        self.label_paths = _paths(label_paths)
        self.label_space = label_space
        self.convention = convention
        self.read = read
        self.left_out = left_out
        if len(self.label_paths) != len(self.image_paths):
            images = counted(len(self), "image")
            raise ConfigError(f"label_paths must have one file per image, got {len(self.label_paths)} for {images}")

    def absolute(self) -> LabelledImageSet:
        """Return the same set by absolute paths, those of the labels too."""
        made = copy.copy(self)
        made.image_paths = tuple(path.absolute() for path in self.image_paths)
        made.label_paths = tuple(path.absolute() for path in self.label_paths)
        return made

    def label(self, index: int) -> np.ndarray:
        """Read one label map.

        Returns
        -------
        ndarray of shape (H, W), uint8
            TrainIds, 255 = ignore.

        Raises
        ------
        DataError
            If the file cannot be read or has an unknown id.
        """
        path = self.label_paths[index]
        return self.label_space.encode(self.read(path), self.convention, str(path))

    def pair(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Read an image and its label map, which must be of one size.

        Returns
        -------
        image : ndarray of shape (H, W, 3), uint8
            RGB.
        label : ndarray of shape (H, W), uint8
            TrainIds, 255 = ignore.

        Raises
        ------
        DataError
            If a file cannot be used or the sizes differ.
        """
        image = self.image(index)
        return image, self._label_of(image, index)

    def sample(self, index: int) -> tuple[np.ndarray | Rows, np.ndarray]:
        """Read an image and its label map for a window of both: as :meth:`pair`, the image as :meth:`rows` gives it.

        Raises
        ------
        DataError
            If a file cannot be used or the sizes differ.
        """
        image = self.rows(index)
        return image, self._label_of(image, index)

    def _label_of(self, image: np.ndarray | Rows, index: int) -> np.ndarray:
        """Return the label map of an image, refused if it has another size."""
        label = self.label(index)
        if image.shape[:2] != label.shape:
            exchanged = image.shape[1::-1] == label.shape and read_header(self.image_paths[index]).turn in range(5, 9)
            raise DataError(
                f"label {self.label_paths[index]} must have the height and width of image {self.image_paths[index]}, "
                f"{image.shape[0]} x {image.shape[1]}, got {label.shape[0]} x {label.shape[1]}"
                + (
                    ": the image is marked as turned by 90 degrees (EXIF), which is not applied; turn its pixels "
                    "themselves and drop the mark"
                    if exchanged
                    else ""
                )
            )
        return label

    def subset(self, indices: Iterable[int]) -> LabelledImageSet:
        """Return the set of the chosen images with their labels, in the given order.

        Raises
        ------
        ConfigError
            If an index is outside 0 to len - 1.
        DataError
            If an index comes twice.
        """
        chosen = self._checked(indices)
        return LabelledImageSet(
            [self.names[i] for i in chosen],
            [self.image_paths[i] for i in chosen],
            [self.label_paths[i] for i in chosen],
            self.label_space,
            self.convention,
            self.read,
            left_out=self.left_out,
        )


@dataclass(frozen=True)
class Format:
    """How to open data of one layout: what a reader module offers to `cbst_mx.data.FORMATS`.

    Parameters
    ----------
    open_images : callable
        ``(root, **options) -> ImageSet``.
    open_labelled : callable
        ``(root, *, label_space, **options) -> LabelledImageSet``.
    needed : tuple of str
        Options without which the data cannot be opened.
    optional : tuple of str
        Options that may be given besides; "labels" is for `open_labelled` only. A list of images always may.
    label_space : str
        Name of the known label space that its label files are usually read in.
    takes_list : bool
        Whether both callables take ``list`` themselves, so that only the images it names are looked at.
    """

    open_images: Callable[..., ImageSet]
    open_labelled: Callable[..., LabelledImageSet]
    needed: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    label_space: str = CITYSCAPES_19.name
    takes_list: bool = False

    @property
    def options(self) -> tuple[str, ...]:
        """Names of all options."""
        return self.needed + self.optional


def existing_folder(path: PathLike, what: str, expected: str) -> Path:
    """Return the path of a folder, which must be there.

    Parameters
    ----------
    path : path
        The folder.
    what, expected : str
        Name of the folder and of its expected content, for the message.

    Raises
    ------
    DataError
        If there is no such folder.
    """
    folder = Path(path)
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "does not exist"
        raise DataError(f"{what} {folder} {problem}: expected {expected}")
    return folder


def existing_labels(image_paths: Sequence[Path], label_paths: Sequence[Path]) -> list[Path]:
    """Return label files as they are called on the disk, whatever the Unicode form and the case of the ending.

    Parameters
    ----------
    image_paths, label_paths : sequence of Path
        One expected label for each image; the folders of the labels are taken as they are.

    Raises
    ------
    DataError
        If an image has none, or could have two; the message names the first and says how many have none.
    """
    found: dict[Path, Path | None] = {}
    folders: dict[Path, list[Path]] = {}
    for path in label_paths:
        folders.setdefault(path.parent, []).append(path)
    for folder, inside in folders.items():
        try:
            found.update(zip(inside, files_below(folder, [path.name for path in inside])))
        except OSError as error:
            raise DataError(f"label folder {folder} cannot be read: {error.strerror or error}") from error
    labels = [found[path] for path in label_paths]
    missing = [index for index, label in enumerate(labels) if label is None]
    if missing:
        have = "has" if len(missing) == 1 else "have"
        raise DataError(
            f"{len(missing):,} of {counted(len(image_paths), 'image')} {have} no label, the first is "
            f"{image_paths[missing[0]]}: expected {label_paths[missing[0]]}"
        )
    return [label for label in labels if label is not None]
