"""Pictures as people have them: files and folders of any depth, turned as their cameras' marks say.

For prediction on single pictures. Data sets are read as their files are stored, so that pixels stay in step with
labels.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Iterable, Sequence

import numpy as np

from cbst_mx.data.datasets import ImageSet
from cbst_mx.data.image_files import PathLike, read_header
from cbst_mx.data.listing import ENDINGS, Listing, all_images, matching_images, merged, names_below
from cbst_mx.errors import DataError

__all__ = ["Photographs", "ReadOnce", "files_of", "find_photographs", "is_result", "upright"]


def upright(stored: np.ndarray, turn: int) -> np.ndarray:
    """Turn and mirror stored pixels as a rotation mark says (EXIF 2.32, tag 0x0112, Orientation).

    Parameters
    ----------
    stored : ndarray of shape (H, W, ...)
        Pixels in the order of the file.
    turn : int
        The mark: 1 none, 2 mirrored left to right, 3 turned by 180 degrees, 4 mirrored top to bottom, 5 transposed,
        6 to be turned by 90 degrees clockwise, 7 transposed along the other diagonal, 8 by 90 degrees anticlockwise.

    Returns
    -------
    ndarray of shape (H, W, ...) or, for 5 to 8, (W, H, ...)
        The picture as it is meant to be seen.
    """
    turned = np.swapaxes(stored, 0, 1) if turn in (5, 6, 7, 8) else stored
    if turn in (3, 4, 7, 8):
        turned = turned[::-1]
    if turn in (2, 3, 6, 7):
        turned = turned[:, ::-1]
    return np.ascontiguousarray(turned)


class Photographs(ImageSet):
    """Images by index, each turned as its file's rotation mark says.

    Parameters
    ----------
    names, image_paths
        As for `ImageSet`.

    Raises
    ------
    DataError
        As for `ImageSet`, and if a file's header cannot be read.
    """

    __slots__ = ("turns",)

    #: Rotation mark of every image, 1 to 8; 1 for none.
    turns: tuple[int, ...]

    def __init__(self, names: Sequence[str], image_paths: Sequence[PathLike]) -> None:
        super().__init__(names, image_paths)
        self.turns = tuple(read_header(path).turn for path in self.image_paths)

    def image(self, index: int) -> np.ndarray:
        """Read one image.

        Returns
        -------
        ndarray of shape (H, W, 3), uint8
            RGB; height and width are exchanged where the mark asks for a quarter turn.

        Raises
        ------
        DataError
            If the file cannot be read.
        """
        return upright(super().image(index), self.turns[index])

    def subset(self, indices: Iterable[int]) -> Photographs:
        """Return the set of the chosen images, in the given order.

        Raises
        ------
        ConfigError
            If an index is outside 0 to len - 1.
        DataError
            If an index comes twice.
        """
        chosen = self._checked(indices)
        return Photographs([self.names[i] for i in chosen], [self.image_paths[i] for i in chosen])


class ReadOnce(ImageSet):
    """Images whose pixels are kept from the first reading until they are taken, for a consumer a little ahead.

    Parameters
    ----------
    images : ImageSet
        What is read.
    refused : dict of str to str, optional
        Takes name and reason of the images that cannot be read: a grey picture then stands in the place of each, since
        a consumer that counts images cannot leave one out. Without it they raise.
    """

    __slots__ = ("_images", "_kept", "_refused", "_size")

    def __init__(self, images: ImageSet, refused: dict[str, str] | None = None) -> None:
        super().__init__(images.names, images.image_paths)
        self._images = images
        self._kept: dict[int, np.ndarray] = {}
        self._refused = refused
        self._size: tuple[int, ...] = (64, 64, 3)  # of the image before, so that stand-ins share its batch

    def image(self, index: int) -> np.ndarray:
        """Read one image, and keep it.

        Raises
        ------
        DataError
            If the file cannot be read, and reasons are not gathered.
        """
        try:
            self._kept[index] = self._images.image(index)
        except DataError as error:
            if self._refused is None:
                raise
            self._refused[self.names[index]] = str(error)
            return np.full(self._size, 128, np.uint8)
        self._size = self._kept[index].shape
        return self._kept[index]

    def take(self, index: int) -> np.ndarray:
        """Return an image without reading its file again, and forget it.

        Raises
        ------
        DataError
            If it was not read before and cannot be read now.
        """
        kept = self._kept.pop(index, None)
        return self._images.image(index) if kept is None else kept


def files_of(path: Path) -> list[Path]:
    """Return what a path means: itself, or where it does not exist and is a glob, all files that it fits.

    Raises
    ------
    DataError
        If it does not exist and fits nothing, or is no glob that can be used.
    """
    if os.path.lexists(path):
        return [path]
    parts = path.parts
    first = next((place for place, part in enumerate(parts) if any(sign in part for sign in "*?[")), None)
    if first is None:
        raise DataError(f"image {path} does not exist")
    root, pattern = Path(*parts[:first]), "/".join(parts[first:])
    try:
        found = [*matching_images(root, pattern).files] if root.is_dir() else []
    except ValueError as error:
        raise DataError(f"images {path} must be files, folders or a glob: it {error}") from error
    if not found:
        raise DataError(f"no file fits {path}")
    return found


def find_photographs(
    paths: Sequence[Path], out: Path | None = None, refused: dict[str, str] | None = None
) -> tuple[Photographs, str]:
    """Find the images in files and folders, folders in folders too.

    Parameters
    ----------
    paths : sequence of Path
        Files, whatever their endings, and folders, of which `all_images` are taken. None gives no images.
    out : Path, optional
        Folder of results: what lies in it is no image. Nor are results of `cbst-mx predict` that lie elsewhere.
    refused : dict of str to str, optional
        Takes name and reason of the images whose headers cannot be read, as long as there are others; without it the
        first of them raises.

    Returns
    -------
    images : Photographs
        Names are those of the files without ending, with the folder in front where two would have one name.
    remark : str
        What was left out of the folders and why; empty if nothing was.

    Raises
    ------
    DataError
        If a path does not exist or cannot be read, a folder has no image, or two images have one name.
    """
    places: dict[Path, str] = {}  # folder of each image, from the argument that leads to it
    listings = []
    for path in paths:
        above = Path(os.path.abspath(path)).name if len(paths) > 1 else ""
        if path.is_dir():
            found = _in_folder(path, out)
            for file in found.files:
                place = (Path(above) / file.parent.relative_to(path)).as_posix()
                places[file] = "" if place == "." else place
        elif os.path.lexists(path):
            found = Listing((path,))
            places[path] = Path(os.path.abspath(path)).parent.name
        else:
            raise DataError(f"image {path} does not exist")
        listings.append(found)
    files = [*places]  # in the order of the arguments
    named = dict(zip(names_below(files, [places[file] for file in files]), files))
    if refused is not None and len(named) == len(files):
        for name, file in named.items():
            try:
                read_header(file)
            except DataError as error:
                refused[name] = str(error)
        if named and len(refused) == len(named):
            raise DataError(next(iter(refused.values())))
        named = {name: file for name, file in named.items() if name not in refused}
        files = [*named.values()]
    names = [*named] if len(named) == len(files) else names_below(files, [places[file] for file in files])
    return Photographs(names, files), merged(listings).remark()


def _in_folder(folder: Path, out: Path | None) -> Listing:
    found = all_images(folder)
    results = [file for file in found.files if is_result(file) or _is_below(file, out)]
    found = found.without("written by predict", results)
    if not found.files:
        remark = found.remark()
        what = f"folder {folder} holds no image: files that end in {', '.join(ENDINGS)} are taken"
        raise DataError(what + (f"; {remark}" if remark else ""))
    return found


def _is_below(path: Path, folder: Path | None) -> bool:
    return folder is not None and Path(os.path.abspath(folder)) in Path(os.path.abspath(path)).parents


_RESULTS = ("_label.png", "_overlay.png", "_colour.png", "_confidence.png")


def is_result(path: Path) -> bool:
    """Return whether a file is what `predict` writes of an image: its record or another result is beside it."""
    for ending in _RESULTS:
        if path.name.endswith(ending):
            stem = path.name[: -len(ending)]
            others = [path.with_name(stem + other) for other in _RESULTS if other != ending]
            return path.with_name("predict.json").is_file() or any(other.is_file() for other in others)
    return False
