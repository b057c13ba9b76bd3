"""The output folder of ``predict``: which images are done, and whose results it holds.

``predict.json`` is written before the first result, and removed when all are there. It has the SHA-256 of the network's
parameters, the settings that can change a result, and of every image path, bytes and time of change. As long as it is
there, results of the same image by the same network and settings are not made again, so that a call that was stopped
goes on; other results are refused, or made anew on request.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Mapping

import numpy as np

from cbst_mx.data import ImageSet
from cbst_mx.data.image_files import write_label_png, write_rgb_png
from cbst_mx.errors import DataError, RunError
from cbst_mx.files import file_digest, in_one_line, read_mapping, remove_file, remove_leftovers, write_json
from cbst_mx.label_space import LabelSpace
from cbst_mx.messages import counted, listed

__all__ = ["PredictionFolder", "refusal"]

RECORD = "predict.json"
_ENDINGS = ("_label.png", "_overlay.png")  # the second is written last


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
    overwrite : bool
        Make everything anew, whatever is there.

    Attributes
    ----------
    left : list of int
        Indices of the images that are not done.

    Raises
    ------
    RunError
        If the folder has results of other images, parameters or settings that would be overwritten, or its record is
        damaged; not with `overwrite`.
    DataError
        If an image or the parameters cannot be looked at.
    """

    def __init__(
        self, out: Path, parameters: Path, settings: Mapping[str, Any], images: ImageSet, *, overwrite: bool = False
    ):
        self._out = Path(out)
        self._images = images
        try:
            made_by = {"parameters": file_digest(parameters), "settings": dict(settings)}
            found = [(path, path.stat()) for path in images.image_paths]
        except FileNotFoundError as error:
            raise DataError(f"{error.filename} does not exist") from error
        except OSError as error:
            raise DataError(f"{error.filename or parameters} cannot be read: {in_one_line(error)}") from error
        wanted = {
            name: [os.path.abspath(path), status.st_size, status.st_mtime_ns]
            for name, (path, status) in zip(images.names, found)
        }
        before = {} if overwrite else self._record()
        known = before.get("images", {})
        other = sorted(key for key in made_by if before and before.get(key) != made_by[key])
        self.left = []
        for index, name in enumerate(images.names):
            there = [path for path in self._results(name) if os.path.lexists(path)]
            same = not other and known.get(name) == wanted[name]
            if same and len(there) == len(_ENDINGS):
                continue
            self.left.append(index)
            if there and not overwrite and (other or known.get(name, [None])[0] != wanted[name][0]):
                of = f", made with other {' and '.join(other)}" if other else ", made of another image" if known else ""
                raise RunError(f"{there[0]} exists already{of}: give another folder with --out, or --overwrite")
        self._new = {**made_by, "images": {**({} if other else known), **wanted}}
        self._begun = False

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

    def _results(self, name: str) -> list[Path]:
        return [self._out / f"{name}{ending}" for ending in _ENDINGS]

    def write(self, index: int, label: np.ndarray, overlay: np.ndarray, label_space: LabelSpace) -> None:
        """Write the results of an image, each whole or not at all.

        Parameters
        ----------
        index : int
            Index of the image.
        label : ndarray of shape (H, W), uint8
            TrainIds.
        overlay : ndarray of shape (H, W, 3), uint8
            The image under the colours of the classes.
        label_space : LabelSpace
            Gives the palette.

        Raises
        ------
        RunError
            If one cannot be written.
        """
        if not self._begun:
            remove_leftovers(self._out)
            for other in self.left:  # what is there is of an earlier call: with the record it would count as done
                for path in self._results(self._images.names[other]):
                    remove_file(path)
            write_json(self._out / RECORD, self._new)
            self._begun = True
        first, second = self._results(self._images.names[index])
        write_label_png(first, label, label_space)
        write_rgb_png(second, overlay)

    def close(self) -> None:
        """Remove the record, when all results are there."""
        remove_file(self._out / RECORD)


def refusal(refused: Mapping[str, str], total: int) -> str:
    """Return the sentence that names the images of which nothing could be made."""
    reasons = listed(list(refused.values()), 20)
    return f"{len(refused):,} of {counted(total, 'image')} could not be used, the others are done: {reasons}"
