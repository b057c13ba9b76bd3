"""What a labelling job has counted, in one file: continued after a stop, and merged from several machines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Mapping

import numpy as np

from cbst_mx.errors import ConfigError, DataError, RunError
from cbst_mx.files import open_npz, pack_names, save_npz, unpack_names
from cbst_mx.labelling.map_folder import MapFolder
from cbst_mx.messages import counted
from cbst_mx.selftrain.class_statistics import ImageStatistics
from cbst_mx.selftrain.counting import StreamingThresholds

__all__ = ["State"]


class State:
    """Counts of confidences and counts per image, with what they depend on and which files they are of, in one file.

    Parameters
    ----------
    settings : mapping
        What the counts depend on, as JSON values; see `MapFolder.settings`.
    counts : StreamingThresholds
    statistics : ImageStatistics
    origin : str
        What errors call it; the file it was read from.

    Attributes
    ----------
    all_images : set of str
        The images whose counts make thresholds: those of all shards.
    own_images : set of str
        Those that the present step is to count here.
    versions : dict of str to (int, int)
        Bytes and time of change of the file of every counted image.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        counts: StreamingThresholds,
        statistics: ImageStatistics,
        origin: str = "the state",
    ):
        self.settings = dict(settings)
        self.counts = counts
        self.statistics = statistics
        self.origin = origin
        self.all_images: set[str] = set()
        self.own_images: set[str] = set()
        self.versions: dict[str, tuple[int, int]] = {}

    @classmethod
    def new(cls, folder: MapFolder, fidelity: str) -> State:
        """Return the empty state for a folder."""
        settings = {**folder.settings(), "fidelity": fidelity}
        counts = StreamingThresholds(folder.num_classes, fidelity=fidelity)
        state = cls(settings, counts, ImageStatistics(folder.num_classes, folder.label_space.names))
        state.all_images, state.own_images = set(folder.all_names), set(folder.names)
        return state

    def check(self, folder: MapFolder, fidelity: str) -> None:
        """Refuse a folder whose maps are not counted with the settings of this state, or whose counted files changed.

        Raises
        ------
        RunError
            If they do not fit.
        """
        self._check({**folder.settings(), "fidelity": fidelity}, self.origin)
        for name, path, version in zip(folder.names, folder.paths, folder.versions):
            if self.versions.get(name, version) != version:
                raise RunError(
                    f"{path} must be the file that {self.origin} has counted, it has changed since: bring that one "
                    "back (with its time of change), or count all images again into a new file or folder"
                )

    def check_finished(self) -> None:
        """Refuse a state in which images of its own are still to be counted.

        Raises
        ------
        RunError
            If there are such images.
        """
        missing = len(self.counts.pending(self.own_images))
        if missing:
            done = len(self.own_images) - missing
            images = counted(len(self.own_images), "image")
            raise RunError(f"{self.origin} holds {done:,} of {images}: run label count again")

    def check_whole(self, folder: MapFolder) -> None:
        """Refuse a first count that is not of all images: thresholds would be those of a part.

        Raises
        ------
        RunError
            If images of any shard, or of `folder`, are not counted.
        """
        wanted = self.all_images | set(folder.names)
        missing = sorted(wanted.difference(self.counts.names))
        if missing:
            raise RunError(
                f"{self.origin} holds {len(wanted) - len(missing):,} of {counted(len(wanted), 'image')}, not "
                f"{missing[0]}: run label count again for what is missing, and merge"
            )

    def _check(self, settings: Mapping[str, Any], origin: str) -> None:
        for key, value in self.settings.items():
            if settings.get(key) != value:
                raise RunError(f"{origin} was counted with {key} {value!r}, it cannot go on with {settings.get(key)!r}")

    def merge(self, other: State, origin: str) -> None:
        """Add what another state counted; `origin` names it in errors.

        Raises
        ------
        RunError, DataError
            If the two do not fit together.
        """
        self._check(other.settings, "the first state")
        try:
            self.counts.merge(other.counts)
        except DataError as error:
            raise DataError(f"{origin}: {error}") from error
        if not self.counts.refining:
            self.statistics.merge(other.statistics)
        self.all_images |= other.all_images
        self.own_images |= other.own_images
        self.versions.update(other.versions)

    def continued(self, stored: State, folder: MapFolder) -> State:
        """Return `stored`, an interrupted count of the images of `folder`, if it began as this state.

        Raises
        ------
        RunError
            If it did not, or a counted file has changed.
        """
        stored.check(folder, str(self.settings["fidelity"]))
        same = stored.counts.refining == self.counts.refining
        if self.counts.refining:
            same = same and stored.counts.names == self.counts.names
            same = same and np.array_equal(stored.counts.critical, self.counts.critical)
        # of another shard something would remain
        same = same and set(stored.counts.done) <= {*folder.names, *self.counts.done}
        if not same:
            raise RunError(f"{stored.origin} is the state of another count: give a new file")
        stored.all_images, stored.own_images = (
            self.all_images,
            self.own_images,
        )  # files that were not counted may have gone or come
        return stored

    def save(self, path: Path) -> None:
        """Write the state as an ``.npz`` file, atomically."""
        arrays = self.counts.to_arrays()
        arrays["settings"] = np.array(json.dumps(self.settings))
        arrays["image_counts"] = self.statistics.counts
        arrays["image_confidence_sums"] = self.statistics.confidence_sums
        arrays["class_names"] = np.array(self.statistics.class_names or (), dtype=np.str_)
        arrays["whole"] = pack_names(sorted(self.all_images))
        arrays["own"] = pack_names(sorted(self.own_images))
        versions = [self.versions[name] for name in self.counts.names]
        arrays["versions"] = np.array(versions, dtype=np.int64).reshape(-1, 2)
        save_npz(path, arrays)

    @classmethod
    def load(cls, path: Path) -> State:
        """Read what :meth:`save` has written.

        Raises
        ------
        DataError
            If the file is missing, damaged, or no such state.
        """
        with open_npz(path, "state of counts") as stored:
            return cls._from_arrays({key: stored[key] for key in stored.files}, path)

    @classmethod
    def _from_arrays(cls, arrays: Mapping[str, Any], path: Path) -> State:
        try:
            counts = StreamingThresholds.from_arrays(arrays)
            settings = json.loads(str(arrays["settings"]))
            class_names = [str(name) for name in arrays["class_names"]]
            statistics = ImageStatistics(counts.num_classes, class_names or None)
            if "versions" not in arrays:
                raise ValueError("it does not say which files it is of (an older version wrote it): count again")
            rows = arrays["image_counts"], arrays["image_confidence_sums"], arrays["versions"]
            if not isinstance(settings, dict) or any(len(row) != len(counts.names) for row in rows):
                raise ValueError("its arrays do not belong together")
            state = cls(settings, counts, statistics, str(path))
            state.all_images, state.own_images = (set(unpack_names(arrays[key])) for key in ("whole", "own"))
            for name, pixels, sums, version in zip(counts.names, *rows):
                statistics.add(name, pixels, sums)
                state.versions[name] = (int(version[0]), int(version[1]))
        except KeyError as error:
            raise DataError(f"{path} is not a readable state of counts: it has no array {error}") from error
        except (ConfigError, DataError) as error:
            raise DataError(f"{path} is not a readable state of counts: {error}") from error
        return state
