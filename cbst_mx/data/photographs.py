"""Pictures as people have them: files and folders of any depth, turned as their cameras' marks say.

For prediction on single pictures. Data sets are read as their files are stored, so that pixels stay in step with
labels.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Iterator, Sequence

import numpy as np

from cbst_mx.data.datasets import ImageSet
from cbst_mx.data.image_headers import read_header
from cbst_mx.errors import DataError

__all__ = ["ENDINGS", "Photographs", "find_photographs", "upright"]

#: Endings of the files that are taken from folders, in either case.
ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".ppm", ".pgm", ".jp2")


def upright(image: np.ndarray, turn: int) -> np.ndarray:
    """Return an image as viewers show it.

    Parameters
    ----------
    image : ndarray of shape (H, W, 3)
        Pixels as stored.
    turn : int
        EXIF mark of rotation: 1 is upright, 3 upside down, 6 and 8 lie on a side, 2, 4, 5 and 7 are mirror images.

    Returns
    -------
    ndarray of shape (H, W, 3) or (W, H, 3)
    """
    if turn in (5, 6, 7, 8):
        image = np.swapaxes(image, 0, 1)
    if turn in (3, 4, 7, 8):
        image = image[::-1]
    if turn in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


class Photographs(ImageSet):
    """Images that are turned upright when they are read."""

    def __init__(self, names: Sequence[str], paths: Sequence[Path]):
        super().__init__(names, paths)
        #: EXIF mark of every image, 1 for upright.
        self.turns = tuple(read_header(path).turn for path in self.image_paths)

    def image(self, index: int) -> np.ndarray:
        """Read one image, uint8 RGB (H, W, 3), upright."""
        return upright(super().image(index), self.turns[index])

    def subset(self, indices: Sequence[int]) -> Photographs:  # type: ignore[override]
        """Return the set of the chosen images, in the given order."""
        chosen = list(indices)
        return Photographs([self.names[i] for i in chosen], [self.image_paths[i] for i in chosen])


def find_photographs(paths: Sequence[Path]) -> tuple[Photographs, list[str]]:
    """Find the images in files and folders, folders in folders too.

    Links are followed, each folder once. Hidden files, the ``._`` files of a Mac among them, are no images.

    Parameters
    ----------
    paths : sequence of Path
        Files, whatever their endings, and folders, of which files with one of `ENDINGS` are taken.

    Returns
    -------
    images : Photographs
        Names are those of the files without ending; below a folder the names of its folders come first.
    left_out : list of str
        What was left out of the folders and why, a phrase each; empty if nothing was.

    Raises
    ------
    DataError
        If a path does not exist, a folder has no image, or two images have one name.
    """
    files: list[Path] = []
    names: list[str] = []
    hidden = others = 0
    for path in paths:
        if not path.is_dir():
            if not path.exists():
                raise DataError(f"image {path} does not exist")
            files.append(path)
            names.append(path.stem)
            continue
        before = len(files)
        for inside in _walk(path):
            if inside.name.startswith("."):
                hidden += 1
            elif inside.suffix.lower() not in ENDINGS or not inside.is_file():
                others += 1
            else:
                files.append(inside)
                names.append("_".join(inside.relative_to(path).with_suffix("").parts))
        if len(files) == before:
            raise DataError(f"folder {path} holds no image: files that end in {', '.join(ENDINGS)} are taken")
    left_out = [
        f"{count} {kind} file{'s' if count > 1 else ''}"
        for count, kind in ((hidden, "hidden"), (others, "other"))
        if count
    ]
    return Photographs(names, files), left_out


def _walk(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder, sorted; links to folders are followed, but no folder is entered twice."""
    entered: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        entered.add(os.path.realpath(place))
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and os.path.realpath(os.path.join(place, name)) not in entered
        )
        for name in sorted(files):
            yield Path(place) / name
