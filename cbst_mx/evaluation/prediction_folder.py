"""The folder of ``cbst-mx predict``: locked while it works, gone on with where it was stopped.

While results are missing, ``.unfinished.json`` in the folder says what they are made from; it goes with the last one.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any, Mapping

from cbst_mx.data import ImageSet
from cbst_mx.errors import RunError
from cbst_mx.files import file_digest, read_json, remove_leftovers, write_json
from cbst_mx.run_dir import Lock, lock_folder

__all__ = ["PredictionFolder"]


class PredictionFolder:
    """Results of prediction in a folder, two files for each image.

    Parameters
    ----------
    path : Path
        The folder; made when it does not exist.
    images : ImageSet
        Images to predict.

    Attributes
    ----------
    left : list of int
        Indices of the images without results.

    Raises
    ------
    RunError
        If there are results already, and not of a command that was stopped.
    """

    def __init__(self, path: Path, images: ImageSet):
        self._path, self._images = path, images
        self._record = path / ".unfinished.json"
        self._lock: Lock | None = None
        self.left = list(range(len(images)))
        existing = [result for index in self.left for result in self.results(index) if result.exists()]
        if existing and not self._record.is_file():
            raise RunError(f"{existing[0]} exists already: give another folder with --out")

    def begin(self, parameters: Path, settings: Mapping[str, Any]) -> None:
        """Keep other processes out, and note what the results are made from.

        Parameters
        ----------
        parameters : Path
            File of the network.
        settings : mapping
            What else decides the results, as JSON values.

        Raises
        ------
        RunError
            If results of other images, parameters or settings are there, or another process works in the folder.
        """
        states = [[name, *_state(path)] for name, path in zip(self._images.names, self._images.image_paths)]
        about = {"parameters": file_digest(parameters), "settings": dict(settings), "images": states}
        self._lock = lock_folder(self._path, "output folder")
        if self._record.is_file() and read_json(self._record) != json.loads(json.dumps(about)):
            raise RunError(
                f"{self._path} has results of other images, parameters or options: give another folder with --out"
            )
        for folder in {result.parent for index in self.left for result in self.results(index)} | {self._path}:
            remove_leftovers(folder)
        write_json(self._record, about)
        self.left = [index for index in self.left if not all(result.is_file() for result in self.results(index))]

    def results(self, index: int) -> tuple[Path, Path]:
        """Return the files of the label of an image and of its overlay, the last one written last."""
        name = self._images.names[index]
        return self._path / f"{name}_label.png", self._path / f"{name}_overlay.png"

    def finish(self) -> None:
        """Say that all results are there, and let others work in the folder."""
        with contextlib.suppress(FileNotFoundError):
            self._record.unlink()
        if self._lock is not None:
            self._lock.release()


def _state(path: Path) -> tuple[int, str]:
    status = path.stat()
    return status.st_size, str(status.st_mtime_ns)
