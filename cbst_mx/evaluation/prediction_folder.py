"""The output folder of ``predict``: which images are done, and whose results it holds.

``predict.json`` is written before the first result, and stays. It has the SHA-256 of the network's parameters, the
settings that can change a result, and of every image path, bytes and time of change. Results of the same image by the
same network and settings are not made again, so that a call that was stopped goes on, and one with more images makes
what is new; other results are refused, or made anew on request.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Mapping, Sequence, Union

import numpy as np

from cbst_mx.data import ImageSet
from cbst_mx.data.image_files import write_palette_png, write_rgb_png
from cbst_mx.errors import DataError, RunError
from cbst_mx.files import (
    file_digest,
    in_one_line,
    read_mapping,
    remove_file,
    remove_folder,
    remove_leftovers,
    write_json,
)
from cbst_mx.messages import counted, listed

__all__ = ["OUTPUTS", "PredictionFolder", "refusal", "write_pictures"]

RECORD = "predict.json"
#: What can be made of an image, in the order in which it is written: the file NAME_OUTPUT.png.
OUTPUTS = ("label", "colour", "confidence", "overlay")

Picture = Union[np.ndarray, "tuple[np.ndarray, bytes]"]  # RGB, or indices and their palette


class PredictionFolder:
    """Results of one network in one folder.

    Parameters
    ----------
    out : Path
        The folder; made with its first result.
    parameters : Path
        The network's parameters.
    settings : mapping
        Settings that can change a result, as JSON values.
    images : ImageSet
        The images to predict.
    outputs : sequence of str
        Which of `OUTPUTS` are made of every image.
    overwrite : bool
        Make everything anew, whatever is there.
    videos : ImageSet, optional
        Videos to predict, of which the results are NAME_OUTPUT.mp4, and of labels a folder.

    Attributes
    ----------
    left, videos_left : list of int
        Indices of the images, and of the videos, that are not done.

    Raises
    ------
    RunError
        If the folder has results of other images, parameters or settings, or its record is damaged; not with
        `overwrite`.
    DataError
        If an image or the parameters cannot be looked at.
    """

    def __init__(
        self,
        out: Path,
        parameters: Path,
        settings: Mapping[str, Any],
        images: ImageSet,
        *,
        outputs: Sequence[str] = ("label", "overlay"),
        overwrite: bool = False,
        videos: ImageSet | None = None,
    ):
        self._out = Path(out)
        self._outputs = [name for name in OUTPUTS if name in outputs]
        try:
            self._made_by = {"parameters": file_digest(parameters), "settings": dict(settings)}
        except FileNotFoundError as error:
            raise DataError(f"{error.filename} does not exist") from error
        except OSError as error:
            raise DataError(f"{error.filename or parameters} cannot be read: {in_one_line(error)}") from error
        self._before = {} if overwrite else self._record()
        self._overwrite = overwrite
        known = self._before.get("images", {})
        self._other = sorted(
            key for key in self._made_by if self._before and self._before.get(key) != self._made_by[key]
        )
        self._images, self._videos = images, videos
        self._results = [[*self._files(name, "png")] for name in images.names]
        names = [] if videos is None else videos.names
        self._video_results = [[*self._files(name, "mp4")] for name in names]
        wanted = self._stamps(images, "")
        moving = {} if videos is None else self._stamps(videos, "video ")
        self.left = self._to_do(wanted, self._results)
        self.videos_left = self._to_do(moving, self._video_results)
        if self._other and known:
            raise RunError(
                f"{out} holds results made with other {' and '.join(self._other)}: give another folder with --out, or "
                "--overwrite"
            )
        self._new = {**self._made_by, "images": {**known, **wanted, **moving}}
        self._begun = False

    @staticmethod
    def _stamps(images: ImageSet, kind: str) -> dict[str, list[Any]]:
        """Return path, bytes and time of change of each file, by its name."""
        try:
            found = [(path, path.stat()) for path in images.image_paths]
        except OSError as error:
            raise DataError(f"{error.filename} cannot be read: {in_one_line(error)}") from error
        return {
            kind + name: [os.path.abspath(path), status.st_size, status.st_mtime_ns]
            for name, (path, status) in zip(images.names, found)
        }

    def _to_do(self, wanted: Mapping[str, list[Any]], results: Sequence[Sequence[Path]]) -> list[int]:
        """Return the places of what is not done; refuse results that are of something else."""
        known = self._before.get("images", {})
        left = []
        for index, (key, stamp) in enumerate(wanted.items()):
            there = [path for path in results[index] if os.path.lexists(path)]
            same = not self._other and known.get(key) == stamp
            if same and len(there) == len(results[index]):
                continue
            left.append(index)
            if there and not self._overwrite and (self._other or known.get(key, [None])[0] != stamp[0]):
                other = f", made with other {' and '.join(self._other)}" if self._other else ""
                of = other or (", made of another image" if known else "")
                raise RunError(f"{there[0]} exists already{of}: give another folder with --out, or --overwrite")
        return left

    def _files(self, name: str, ending: str) -> list[Path]:
        """Return the results of an image or a video; the labels of a video are a folder of numbered files."""
        frames = {"mp4": ("label",)}.get(ending, ())
        return [self._out / f"{name}_{one}{'' if one in frames else '.' + ending}" for one in self._outputs]

    def _record(self) -> dict[str, Any]:
        """Return what the folder's record says; nothing where there is none."""
        path = self._out / RECORD
        if not os.path.lexists(path):
            return {}
        found = read_mapping(path)
        images = found.get("images")
        if not isinstance(images, dict) or not all(isinstance(one, list) and len(one) == 3 for one in images.values()):
            raise RunError(f"{path} is no record of predictions: give another folder with --out, or --overwrite")
        return found

    def write(self, index: int, pictures: Mapping[str, Picture]) -> None:
        """Write the results of an image, each whole or not at all.

        Parameters
        ----------
        index : int
            Index of the image.
        pictures : mapping of str to ndarray or (ndarray, bytes)
            For each output pixels of shape (H, W, 3), uint8; or (H, W), uint8, and their palette.

        Raises
        ------
        RunError
            If one cannot be written.
        """
        self.begin()
        write_pictures(self.image_files(index), pictures)

    def image_files(self, index: int) -> dict[str, Path]:
        """Return where the results of an image are written, by output."""
        return dict(zip(self._outputs, self._results[index]))

    def video_files(self, index: int) -> dict[str, Path]:
        """Return where the results of a video are to be written, by output."""
        self.begin()
        return dict(zip(self._outputs, self._video_results[index]))

    def begin(self) -> None:
        """Write the record, before the first result."""
        if self._begun:
            return
        remove_leftovers(self._out)
        # what is there is of an earlier call: with the record it would count as done
        for results in (*(self._results[i] for i in self.left), *(self._video_results[i] for i in self.videos_left)):
            for path in results:
                if path.is_dir() and not path.is_symlink():
                    remove_folder(path)
                else:
                    remove_file(path)
        write_json(self._out / RECORD, self._new)
        self._begun = True

    def clean(self) -> None:
        """Remove what other processes that wrote results have left half-written, when none does so any more."""
        for folder in {path.parent for paths in (*self._results, *self._video_results) for path in paths}:
            remove_leftovers(folder, owned=True)


def write_pictures(files: Mapping[str, Path], pictures: Mapping[str, Picture]) -> None:
    """Write the pictures of an image, each whole or not at all.

    Parameters
    ----------
    files : mapping of str to Path
        Where, by output.
    pictures : mapping
        As for :meth:`PredictionFolder.write`.

    Raises
    ------
    RunError
        If one cannot be written.
    """
    for output, path in files.items():
        picture = pictures[output]
        if isinstance(picture, tuple):
            write_palette_png(path, *picture)
        else:
            write_rgb_png(path, picture)


def refusal(refused: Mapping[str, str], total: int, what: str = "image") -> str:
    """Return the sentence that names the images, or other files, of which nothing could be made."""
    reasons = listed(list(refused.values()), 20)
    return f"{len(refused):,} of {counted(total, what)} could not be used, the others are done: {reasons}"
