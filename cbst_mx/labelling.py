"""The labelling job: a folder of class probabilities of any framework becomes thresholds and pseudo-labels.

C classes, N images of H x W pixels; a stored map is (C, h, w), at full size or at a network's stride. The job looks
at the maps up to three times and holds one image at a time in each process: it counts confidences, counts again in the
critical bins where thresholds need it (``selftrain.streaming``), and selects. Nothing depends on the number of
processes. Without mxnet.

An output folder::

    OUT/
      job.json               what the job is; a folder of another job is refused
      state.npz              the counts (and the counts per image) and the files they are of; all that further portions
                             need, saved on the way
      image_statistics.npz   predicted pixels and confidences per image and class
      pseudo_labels/NAME.png trainIds with palette, 255 = not selected
      sweep.csv              kept pixels per class for several portions
      kc.json                thresholds, N_c and kept pixels per class, written last

``count`` in ``kc.json`` is the number of pixels predicted as each class (with the released rules, of those that entered
the pool), without the zeros that the released program puts into its pools.

The same call continues a job that was stopped, by an error as well: a file that could not be used may be mended or
taken away. What is counted cannot be taken out of the sums again, so a counted file must stay what it was (size and
time of change), or the count begins anew. For several machines the steps are `count` (each machine its shard),
:meth:`State.merge`, `count` again with the merged state, merge, and `run` with the merged state; thresholds are refused
as long as an image of any shard is not counted.
"""

from __future__ import annotations

import colorsys
import csv
import dataclasses
import functools
import hashlib
import io
import json
import time
import unicodedata
import zipfile
import zlib
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple, Union

import cv2
import numpy as np

from cbst_mx.data.images import read_label, write_label_png
from cbst_mx.errors import CBSTError, ConfigError, DataError, RunError
from cbst_mx.files import check_free_space, file_digest, read_json, save_npz, write_json, write_text
from cbst_mx.label_space import CITYSCAPES_19, IGNORE, LABEL_SPACES, NTHU_13, SYNTHIA_16, LabelSpace
from cbst_mx.selftrain import spatial_prior
from cbst_mx.selftrain.class_statistics import ImageStatistics
from cbst_mx.selftrain.streaming import LOWER, StreamingThresholds, read_arrays
from cbst_mx.selftrain.thresholds import Thresholds, check_fidelity, check_policy
from cbst_mx.selftrain.upsampling import INTERPOLATIONS, ClassMaps, confidence, select

__all__ = ["MapFolder", "Needs", "State", "check_request", "count", "label_space_of", "needs", "run", "sweep_rows"]

Progress = Callable[[str, int, int], None]  # (what, done, in all)

_SUFFIXES = (".npy", ".npz")
_BLOCK = 16  # images a process is given at a time, at most
_PIXELS = 1 << 16  # summed at a time: small enough for the processor's cache
_CHECKPOINT = 60.0  # seconds
_MOST_PORTIONS = 100
# What numpy and zipfile raise for damaged files, depending on where the damage is.
_UNREADABLE = (
    *(OSError, ValueError, KeyError, EOFError, NotImplementedError, RuntimeError, MemoryError),
    *(zipfile.BadZipFile, zlib.error),
)
_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # controls, bytes that are no text, ends of lines and paragraphs
_BY_COUNT = {space.num_classes: space for space in (CITYSCAPES_19, SYNTHIA_16, NTHU_13)}


def _silent(what: str, done: int, total: int) -> None:
    return None


# ------------------------------------------------------------------------------------------------------- the input


def label_space_of(classes: Optional[str], found: int) -> LabelSpace:
    """Return the label space of maps of `found` classes.

    Parameters
    ----------
    classes : str, optional
        A label space's name, or a number of classes. By default, and for a number, 19, 16 and 13 stand for Cityscapes,
        SYNTHIA and NTHU; the classes of any other number are called "class 0", "class 1", ...
    found : int
        C of the maps.

    Raises
    ------
    ConfigError
        If `classes` is no such name or number.
    DataError
        If the maps have another number of classes.
    """
    if classes is None:
        classes = str(found)
    if classes in LABEL_SPACES:
        space = LABEL_SPACES[classes]
    elif classes.isdigit() and 1 <= int(classes) <= 253:
        space = _BY_COUNT.get(int(classes)) or _unnamed(int(classes))
    else:
        known = ", ".join(sorted(LABEL_SPACES))
        raise ConfigError(f"classes must be a number from 1 to 253 or one of {known}, got {classes!r}")
    if space.num_classes != found:
        raise DataError(f"the maps must have the {space.num_classes} classes of {space.name}, they have {found}")
    return space


def _unnamed(number: int) -> LabelSpace:
    colours = []
    for index in range(number):  # hues a golden section apart differ however many there are
        red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.6, 0.9)
        colours.append((int(255 * red), int(255 * green), int(255 * blue)))
    names = tuple(f"class {index}" for index in range(number))
    return LabelSpace(name=f"classes-{number}", names=names, palette=tuple(colours), raw_ids={})


@dataclasses.dataclass(frozen=True)
class MapFolder:
    """The class maps of a folder, one image per ``.npy`` or ``.npz`` file, and how they become full-size maps.

    Attributes
    ----------
    label_space : LabelSpace
        The C classes.
    names : tuple of str
        The files' names without suffix, sorted.
    paths : tuple of Path
    shapes : tuple of (int, int, int)
        (C, h, w) as stored.
    item_bytes : int
        Bytes per stored value, the largest of all files.
    sizes : tuple of (int, int)
        (H, W) of the images.
    versions : tuple of (int, int)
        Bytes and time of change (in nanoseconds) of the files.
    whole : tuple of str
        The names in the folder, of which `names` may be a shard.
    stride : int
        Pixels per cell along each side.
    size : (int, int), optional
        (H, W) of every image, where that was given.
    interpolation : {"bilinear", "bicubic"}
    prior : Path, optional
        Spatial prior.
    prior_sha256 : str, optional
        Of its file.
    """

    label_space: LabelSpace
    names: Tuple[str, ...]
    paths: Tuple[Path, ...]
    shapes: Tuple[Tuple[int, int, int], ...]
    sizes: Tuple[Tuple[int, int], ...]
    item_bytes: int
    versions: Tuple[Tuple[int, int], ...]
    whole: Tuple[str, ...]
    stride: int = 1
    size: Optional[Tuple[int, int]] = None
    interpolation: str = "bilinear"
    prior: Optional[Path] = None
    prior_sha256: Optional[str] = None

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        classes: Optional[str] = None,
        stride: int = 1,
        size: Union[Tuple[int, int], Mapping[str, Tuple[int, int]], None] = None,
        interpolation: str = "bilinear",
        prior: Optional[Path] = None,
        shard: Tuple[int, int] = (1, 1),
    ) -> MapFolder:
        """Look at every file of `folder` without reading its numbers.

        Parameters
        ----------
        folder : Path
            Its files ``NAME.npy`` and ``NAME.npz`` (one array, or one called ``probability``) hold float32 or float16
            maps (C, h, w); other files are left alone.
        classes : str, optional
            As for :func:`label_space_of`.
        stride : int
            Pixels per cell along each side; 1 for maps at full size.
        size : (int, int) or mapping of str to (int, int), optional
            (H, W) of all images, or by name, where they are not `stride` times the map.
        interpolation, prior
            As the attributes.
        shard : (int, int)
            (i, n): the i-th of n parts of the sorted files, every n-th file from the i-th on; (1, 1) is all.

        Raises
        ------
        ConfigError
            If an argument is not allowed.
        DataError
            If the folder is missing or holds no map, or a file cannot be used.
        """
        if stride < 1:
            raise ConfigError(f"upsample must be at least 1, got {stride}")
        if interpolation not in INTERPOLATIONS:
            raise ConfigError(f"upsampling must be one of {', '.join(INTERPOLATIONS)}, got {interpolation!r}")
        part, parts = shard
        if not 1 <= part <= parts:
            raise ConfigError(f"shard must be I/N with I from 1 to N, got {part}/{parts}")
        if not folder.is_dir():
            raise DataError(f"folder of probabilities {folder} does not exist")
        paths = sorted(
            (path for path in folder.iterdir() if path.suffix in _SUFFIXES and not path.name.startswith(".")),
            key=lambda path: path.stem,
        )
        if not paths:
            raise DataError(f"folder of probabilities {folder} holds no .npy or .npz file")
        for first, second in zip(paths, paths[1:]):
            if first.stem == second.stem:
                raise DataError(f"every image must have one map, got {first} and {second}")
        if parts > len(paths):
            raise ConfigError(f"shard must be one of at most {len(paths)} (one for each map), got {part}/{parts}")
        for path in paths:
            if any(unicodedata.category(character) in _UNPRINTABLE for character in path.stem):
                raise DataError(f"the name of a map must be text without control characters, got {path.name!r}")
        whole = tuple(path.stem for path in paths)
        paths = paths[part - 1 :: parts]
        versions = tuple(_version(path) for path in paths)
        shapes: List[Tuple[int, int, int]] = []
        sizes: List[Tuple[int, int]] = []
        item_bytes = 0
        for path in paths:
            shape, dtype = _header(path)
            if dtype.kind != "f" or dtype.itemsize not in (2, 4):
                raise DataError(f"{path} must hold float32 or float16 probabilities, got {dtype}")
            if len(shape) != 3 or 0 in shape:
                raise DataError(f"{path} must hold an array of shape (C, H, W), got {shape}")
            if shape[0] > 253:
                raise DataError(f"{path} must hold at most 253 classes, got {shape[0]} (shape {shape}, classes first)")
            if shapes and shape[0] != shapes[0][0]:
                raise DataError(f"{path} must have the {shapes[0][0]} classes of {paths[0].name}, got {shape[0]}")
            shapes.append((shape[0], shape[1], shape[2]))
            sizes.append(_size(path, shapes[-1], stride, size))
            item_bytes = max(item_bytes, dtype.itemsize)
        found = cls(
            label_space=label_space_of(classes, shapes[0][0]),
            names=tuple(path.stem for path in paths),
            paths=tuple(paths),
            shapes=tuple(shapes),
            sizes=tuple(sizes),
            item_bytes=item_bytes,
            versions=versions,
            whole=whole,
            stride=stride,
            size=size if isinstance(size, tuple) else None,
            interpolation=interpolation,
            prior=prior,
            prior_sha256=None if prior is None else _sha256(prior),
        )
        found.prior_maps(0)  # refuse what is wrong with it now
        return found

    @property
    def num_classes(self) -> int:
        """C."""
        return self.label_space.num_classes

    def subset(self, indices: Sequence[int]) -> MapFolder:
        """Return the same for some of the images."""
        chosen: Dict[str, Any] = {
            field: tuple(getattr(self, field)[index] for index in indices)
            for field in ("names", "paths", "shapes", "sizes", "versions")
        }
        chosen["whole"] = ()  # sent to a process with every block
        return dataclasses.replace(self, **chosen)

    def maps(self, index: int) -> ClassMaps:
        """Return the probabilities of one image, seen at full size.

        Raises
        ------
        DataError
            If the file cannot be read, or has changed since the folder was opened.
        """
        if _version(self.paths[index]) != self.versions[index]:
            raise DataError(f"{self.paths[index]} has changed since this run began: give the same command again")
        stored = _read(self.paths[index], mapped=self.shapes[index][1:] == self.sizes[index])
        if stored.shape != self.shapes[index]:
            raise DataError(f"{self.paths[index]} has changed: its shape was {self.shapes[index]}, is {stored.shape}")
        return ClassMaps(stored, self.sizes[index], interpolation=self.interpolation)

    def prior_maps(self, index: int) -> Optional[ClassMaps]:
        """Return the spatial prior at the size of one image, None where there is none."""
        if self.prior is None or self.prior_sha256 is None:
            return None
        # the names of unnamed classes are ours: there is nothing to compare
        names = self.label_space.names if self.label_space.name in LABEL_SPACES else None
        return _sized_prior(self.prior, self.prior_sha256, self.num_classes, names, self.sizes[index])

    def confidence(self, index: int) -> Tuple[np.ndarray, np.ndarray]:
        """Return confidence float32 (H, W) and predicted class uint8 (H, W) of one image.

        Raises
        ------
        DataError
            Naming the file, if it cannot be used.
        """
        try:
            maps = self.maps(index)
            _check_order(maps)
            return confidence(maps, self.prior_maps(index))
        except DataError as error:
            if str(self.paths[index]) in str(error):
                raise
            raise DataError(f"{self.paths[index]}: {error}") from error

    def settings(self) -> Dict[str, Any]:
        """Return what the counts depend on besides the files, as JSON values."""
        return {
            "classes": self.num_classes,
            "upsample": self.stride,
            "size": None if self.size is None else list(self.size),
            "upsampling": self.interpolation,
            "spatial prior (SHA-256)": self.prior_sha256,
        }

    def prior_bytes(self) -> int:
        """Return how much memory the spatial prior takes while it is read, 0 where there is none."""
        if self.prior is None:
            return 0
        shape, dtype = _header(self.prior, "prior")
        return int(np.prod(shape)) * (4 if dtype == np.float32 else 4 + dtype.itemsize)


def _sha256(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as error:
        raise DataError(f"spatial prior {path} cannot be read: {error.strerror or error}") from error


def _version(path: Path) -> Tuple[int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise _unusable(path, error) from error
    return found.st_size, found.st_mtime_ns


def _check_order(maps: ClassMaps) -> None:
    """Refuse maps whose classes come last: there the values of a row sum to 1 along the wrong axis."""
    row = maps.cells(slice(0, 1), slice(0, maps.size[1]))[:, 0].astype(np.float32)  # (C, w)
    with np.errstate(all="ignore"):  # NaN and infinity are refused later
        wrong = np.abs(row.sum(axis=1) - 1).max() < 0.01 and np.abs(row.sum(axis=0) - 1).max() > 0.1
    if wrong:
        raise DataError("probabilities must be of shape (C, H, W), they sum to 1 along the last axis instead")


def _size(
    path: Path,
    shape: Tuple[int, int, int],
    stride: int,
    given: Union[Tuple[int, int], Mapping[str, Tuple[int, int]], None],
) -> Tuple[int, int]:
    """Return (H, W) of one image; refuse a size that the map does not fit."""
    if given is None:
        return shape[1] * stride, shape[2] * stride
    size = given if isinstance(given, tuple) else given[path.stem]
    for cells, pixels in zip(shape[1:], size):
        if cells not in (pixels // stride, -(-pixels // stride)):
            raise DataError(
                f"{path} must have the cells of {size[0]} x {size[1]} pixels at stride {stride}, "
                f"got {shape[1]} x {shape[2]}"
            )
    return size


def _member(names: Sequence[str]) -> str:
    """Return which array of an ``.npz`` is the map."""
    if "probability" in names:
        return "probability"
    if len(names) != 1:
        raise ValueError(f"it must hold one array or one called 'probability', got {', '.join(names) or 'none'}")
    return names[0]


def _unusable(path: Path, error: BaseException) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path} does not exist")
    reason = getattr(error, "strerror", None) or error
    return DataError(f"{path} is not a readable .npy or .npz file of numbers: {reason}")


def _is_archive(path: Path) -> bool:
    """Return whether a map is in an ``.npz``; refuse an ``.npz`` that is called ``.npy``."""
    if path.suffix != ".npy":
        return True
    with open(path, "rb") as stream:
        if stream.read(2) == b"PK":
            raise ValueError("it is an .npz archive, and must be called so")
    return False


def _header(path: Path, member: Optional[str] = None) -> Tuple[Tuple[int, ...], np.dtype]:
    """Return shape and type of a file's map, or of an archive's array `member`, without reading its numbers."""
    try:
        if member is None and not _is_archive(path):
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
            return mapped.shape, mapped.dtype
        with zipfile.ZipFile(path) as archive:
            names = [name[: -len(".npy")] for name in archive.namelist() if name.endswith(".npy")]
            with archive.open((member or _member(names)) + ".npy") as stream:
                version = np.lib.format.read_magic(stream)
                if version == (1, 0):
                    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
                else:
                    shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
                return shape, dtype
    except _UNREADABLE as error:
        raise _unusable(path, error) from error


def _read(path: Path, *, mapped: bool) -> np.ndarray:
    """Return a file's map in the machine's byte order; `mapped` leaves the numbers of a ``.npy`` on the disk."""
    try:
        if not _is_archive(path):
            array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
        else:
            with open(path, "rb") as stream:  # numpy leaves a damaged file it has opened itself open
                stored = np.load(stream, allow_pickle=False)
                if isinstance(stored, np.ndarray):
                    raise ValueError("it is no archive, and must be called .npy")
                array = stored[_member(stored.files)]
    except _UNREADABLE as error:
        raise _unusable(path, error) from error
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


# In the key the hash stands for what the file holds; neighbouring images share the prior, resized tile by tile.
@functools.lru_cache(maxsize=1)
def _prior(path: Path, sha256: str, num_classes: int, names: Optional[Tuple[str, ...]]) -> np.ndarray:
    return spatial_prior.load(path, num_classes, names)


@functools.lru_cache(maxsize=4)
def _sized_prior(
    path: Path, sha256: str, num_classes: int, names: Optional[Tuple[str, ...]], size: Tuple[int, int]
) -> ClassMaps:
    return ClassMaps(_prior(path, sha256, num_classes, names), size)


# ------------------------------------------------------------------------------------------------------- the state


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
    whole : set of str
        The images whose counts make thresholds: those of all shards.
    own : set of str
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
        self.whole: Set[str] = set()
        self.own: Set[str] = set()
        self.versions: Dict[str, Tuple[int, int]] = {}

    @classmethod
    def new(cls, folder: MapFolder, fidelity: str) -> State:
        """Return the empty state for a folder."""
        settings = {**folder.settings(), "fidelity": fidelity}
        counts = StreamingThresholds(folder.num_classes, fidelity=fidelity)
        state = cls(settings, counts, ImageStatistics(folder.num_classes, folder.label_space.names))
        state.whole, state.own = set(folder.whole), set(folder.names)
        return state

    def check(self, folder: MapFolder, fidelity: str) -> None:
        """Refuse a folder whose maps are not counted with the settings of this state, or whose counted files changed.

        Raises
        ------
        RunError
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
        """
        missing = len(self.counts.pending(self.own))
        if missing:
            done = len(self.own) - missing
            raise RunError(f"{self.origin} holds {done} of {len(self.own)} images: run label count again")

    def check_whole(self, folder: MapFolder) -> None:
        """Refuse a first count that is not of all images: thresholds would be those of a part.

        Raises
        ------
        RunError
            If images of any shard, or of `folder`, are not counted.
        """
        wanted = self.whole | set(folder.names)
        missing = sorted(wanted.difference(self.counts.names))
        if missing:
            raise RunError(
                f"{self.origin} holds {len(wanted) - len(missing)} of {len(wanted)} images, not {missing[0]}: run label"
                " count again for what is missing, and merge"
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
        self.whole |= other.whole
        self.own |= other.own
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
        stored.whole, stored.own = self.whole, self.own  # files that were not counted may have gone or come
        return stored

    def save(self, path: Path) -> None:
        """Write the state as an ``.npz`` file, atomically."""
        arrays = self.counts.to_arrays()
        arrays["settings"] = np.array(json.dumps(self.settings))
        arrays["image_counts"] = self.statistics.counts
        arrays["image_confidence_sums"] = self.statistics.confidence_sums
        arrays["class_names"] = np.array(self.statistics.class_names or (), dtype=np.str_)
        arrays["whole"] = np.array(sorted(self.whole), dtype=np.str_)
        arrays["own"] = np.array(sorted(self.own), dtype=np.str_)
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
        arrays = read_arrays(path)
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
            state.whole, state.own = ({str(name) for name in arrays[key]} for key in ("whole", "own"))
            for name, pixels, sums, version in zip(counts.names, *rows):
                statistics.add(name, pixels, sums)
                state.versions[name] = (int(version[0]), int(version[1]))
        except (ValueError, KeyError, IndexError, ConfigError, DataError) as error:
            raise DataError(f"{path} is not a readable state of counts: {error}") from error
        return state


# ----------------------------------------------------------------------------------------------------- the passes


def _per_class(values: np.ndarray, classes: np.ndarray, num_classes: int) -> Tuple[np.ndarray, np.ndarray]:
    """Return how many values belong to each class, int64 (C,), and their sums, float64 (C,)."""
    # Neighbours mostly belong to one class: with eight sums a class the processor need not wait for the one before.
    length = 8 * num_classes
    counts, sums = np.zeros(length, dtype=np.int64), np.zeros(length)
    turns = np.arange(_PIXELS) % 8
    for start in range(0, len(values), _PIXELS):
        part = classes[start : start + _PIXELS].astype(np.intp)
        part *= 8
        part += turns[: len(part)]
        counts += np.bincount(part, minlength=length)
        sums += np.bincount(part, weights=values[start : start + _PIXELS], minlength=length)
    return counts.reshape(-1, 8).sum(axis=1), sums.reshape(-1, 8).sum(axis=1)


def _count_block(
    folder: MapFolder, template: StreamingThresholds
) -> Tuple[StreamingThresholds, Optional[ImageStatistics], Optional[CBSTError]]:
    """Count some images; return their counts, in the first step their statistics, and what stopped it on the way."""
    part = template.part()
    statistics = None if part.refining else ImageStatistics(folder.num_classes)
    for index, name in enumerate(folder.names):
        try:
            value, predicted = folder.confidence(index)
            part.add(name, value, predicted)
        except CBSTError as error:
            return part, statistics, error
        if statistics is not None:
            statistics.add(name, *_per_class(value.reshape(-1), predicted.reshape(-1), folder.num_classes))
    return part, statistics, None


def _select_block(
    folder: MapFolder, thresholds: Sequence[Thresholds], out: Optional[Path], reuse: bool
) -> Tuple[np.ndarray, int]:
    """Label some images; return kept pixels int64 (len(thresholds), C) and pixels.

    The labels of the first thresholds are written to `out`. Where that is all that is wanted, with `reuse` a label that
    is there already is counted instead of made again: it is this very job's. One that is damaged is made again.
    """
    kept = np.zeros((len(thresholds), folder.num_classes), dtype=np.int64)
    pixels = 0
    for index, name in enumerate(folder.names):
        path = None if out is None else out / f"{name}.png"
        stored = _stored_label(path, folder.sizes[index]) if path and reuse and len(thresholds) == 1 else None
        if stored is not None:
            labels = [stored]
        else:
            labels = select(folder.maps(index), thresholds, folder.prior_maps(index))
            if path is not None:
                write_label_png(path, labels[0], folder.label_space)
        for row, label in zip(kept, labels):
            row += np.bincount(label.reshape(-1), minlength=IGNORE + 1)[: folder.num_classes]
        pixels += labels[0].size
    return kept, pixels


def _stored_label(path: Path, size: Tuple[int, int]) -> Optional[np.ndarray]:
    """Return a label written before; None where there is none that can be used."""
    try:
        label = read_label(path)
    except DataError:
        return None
    return label if label.shape == size else None


def _start() -> None:
    cv2.setNumThreads(1)  # the processes share the processor already


def _context() -> BaseContext:
    """Return how processes start: never as copies of this one, which may hold threads of other libraries."""
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])  # imported once for all of them
    return context


class _Workers:
    """The processes of a job, started when they are first needed; with one worker this process does all."""

    def __init__(self, number: int):
        _check_workers(number)
        self._number = number
        self._pool: Optional[ProcessPoolExecutor] = None

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def blocks(
        self, function: Callable[..., Any], folder: MapFolder, names: Sequence[str], *arguments: Any
    ) -> Iterator[Tuple[int, Any]]:
        """Call ``function(part of folder, *arguments)`` for all of `names`, block by block.

        Yields the length of a block and the result, in any order.
        """
        length = max(1, min(_BLOCK, -(-len(names) // (2 * self._number))))
        places = {name: index for index, name in enumerate(folder.names)}
        indices = [places[name] for name in names]
        blocks = [folder.subset(indices[start : start + length]) for start in range(0, len(indices), length)]
        if self._number == 1 or len(blocks) <= 1:
            for block in blocks:
                yield len(block.names), function(block, *arguments)
            return
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self._number, _context(), initializer=_start)
        waiting: Dict[Future, int] = {}
        try:
            while blocks or waiting:
                while blocks and len(waiting) < 2 * self._number:  # results wait in memory
                    block = blocks.pop(0)
                    waiting[self._pool.submit(function, block, *arguments)] = len(block.names)
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    yield waiting.pop(future), future.result()
        except BrokenProcessPool as error:
            raise RunError("a worker process was stopped from outside, perhaps for lack of memory") from error
        finally:
            for future in waiting:
                future.cancel()


def _check_workers(workers: int) -> None:
    if workers < 1:
        raise ConfigError(f"workers must be at least 1, got {workers}")


def count(
    folder: MapFolder,
    state: State,
    path: Path,
    *,
    workers: int = 1,
    progress: Progress = _silent,
) -> None:
    """Count every image of `folder` that the present step of `state` has not counted, and save the state to `path`.

    Parameters
    ----------
    folder : MapFolder
    state : State
    path : Path
        The state is also saved there on the way.
    workers : int
        Processes; the result is the same for any number.
    progress : callable, optional
        Called with (what, images done, images in all).

    Raises
    ------
    CBSTError
        If a map cannot be used or a file not be written (what was counted so far is not lost), or before anything is
        done if the disk is too small.
    """
    portions = -(-len(state.counts.critical) // (folder.num_classes + 1))
    check_free_space(path.absolute().parent, needs(folder, workers=workers, portions=portions, labels=False).disk)
    with _Workers(workers) as pool:
        _count(folder, state, path, pool, progress)


def _count(folder: MapFolder, state: State, path: Path, pool: _Workers, progress: Progress) -> None:
    what = "second count" if state.counts.refining else "count"
    names = state.counts.pending(folder.names)
    done, saved = len(folder.names) - len(names), time.monotonic()
    versions = dict(zip(folder.names, folder.versions))
    try:
        for number, (part, statistics, error) in pool.blocks(_count_block, folder, names, state.counts.part()):
            state.counts.merge(part)
            if statistics is not None:
                state.statistics.merge(statistics)
                state.versions.update((name, versions[name]) for name in part.done)
            if error is not None:
                raise error
            done += number
            progress(what, done, len(folder.names))
            if time.monotonic() - saved > _CHECKPOINT:
                state.save(path)
                saved = time.monotonic()
    finally:
        state.save(path)


# --------------------------------------------------------------------------------------------------------- the job


class Needs(NamedTuple):
    """What a job takes, in bytes; generous estimates."""

    disk: int
    memory: int


def needs(folder: MapFolder, *, workers: int, portions: int = 1, labels: bool = True) -> Needs:
    """Return how much disk space and memory (of all processes together) a job needs.

    Parameters
    ----------
    folder : MapFolder
    workers : int
        Processes.
    portions : int
        How many portions are looked at.
    labels : bool
        Whether pseudo-labels are written.
    """
    areas = [height * width for height, width in folder.sizes]
    critical = (folder.num_classes + 1) * portions * LOWER * 8
    state = 4_000_000 + critical + len(folder.names) * 16 * folder.num_classes
    # PNGs of label maps are far below one bit a pixel
    disk = 2 * state + (sum(areas) // 8 + 4096 * len(areas) if labels else 0)
    largest = max(range(len(areas)), key=areas.__getitem__)
    stored = int(np.prod(folder.shapes[largest])) * max(4, folder.item_bytes)
    prior = folder.prior_bytes()
    # measured: 100 MB for the program, at most 40 bytes per pixel of an image
    return Needs(disk, (workers + (workers > 1)) * (100_000_000 + state + prior) + workers * (stored + 40 * max(areas)))


def check_request(
    policy: str, portion: Optional[float], portions: Sequence[float], *, fidelity: str, workers: int
) -> List[float]:
    """Return the portions to look at, that of the labels first and each once.

    Parameters
    ----------
    policy, portion, portions, fidelity, workers
        As for :func:`run`.

    Raises
    ------
    ConfigError
        If one of them is not allowed.
    """
    check_fidelity(fidelity)
    _check_workers(workers)
    wanted = list(dict.fromkeys([*([] if portion is None else [portion]), *portions]))
    if len(wanted) > _MOST_PORTIONS:
        raise ConfigError(f"portions must be at most {_MOST_PORTIONS}, got {len(wanted)}")
    for value in wanted:
        check_policy(policy, value)
    return wanted


def run(
    folder: MapFolder,
    out: Path,
    *,
    policy: str,
    portion: Optional[float],
    portions: Sequence[float] = (),
    fidelity: str = "paper",
    state: Optional[State] = None,
    workers: int = 1,
    progress: Progress = _silent,
) -> Dict[str, Any]:
    """Run the whole job into the folder `out`, or go on with it.

    Parameters
    ----------
    folder : MapFolder
        The maps.
    out : Path
        New, empty, or of this very job.
    policy : {"global", "class-balanced"}
        ST or CBST.
    portion : float, optional
        p of the pseudo-labels; None writes none (nor ``kc.json``).
    portions : sequence of float
        Portions of the sweep table.
    fidelity : {"paper", "released"}
        Whose rules thresholds follow.
    state : State, optional
        Counts made before, for example merged from several machines. Every map of `folder` must be counted in it.
    workers : int
        Processes; the result is the same for any number.
    progress : callable, optional
        Called with (what, images done, images in all).

    Returns
    -------
    dict
        What ``kc.json`` holds (without `portion`: only the key ``sweep``), with ``sweep``, the rows of ``sweep.csv``.

    Raises
    ------
    CBSTError
        If anything given cannot be used. Finished parts stay; the same call goes on from them.
    """
    wanted = check_request(policy, portion, portions, fidelity=fidelity, workers=workers)
    if not wanted:
        raise ConfigError("a portion or portions must be given, got neither")
    if state is not None:
        _check_counted(folder, state, fidelity, policy, wanted)
    identity = {
        "settings": {**folder.settings(), "fidelity": fidelity},
        "names": list(folder.label_space.names),
        "policy": policy,
        "portion": portion,
        "portions": list(portions),
        "counted images": None if state is None else len(state.counts.names),
        # of a count that goes on the state knows the files
        "files": None if state is None else hashlib.sha256(json.dumps(folder.names).encode()).hexdigest(),
    }
    with _Workers(workers) as pool:
        check_free_space(out, needs(folder, workers=workers, portions=len(wanted), labels=portion is not None).disk)
        _open(out, identity)
        sweep_path, state_path = out / "sweep.csv", out / "state.npz"
        labels = out / "pseudo_labels" if portion is not None else None
        reuse = state_path.is_file()  # else nobody knows of which files the labels are
        if reuse:
            state = _stored(folder, state_path, state, fidelity)
            made = [sweep_path] if portions else []
            if labels is not None:
                made += [out / "kc.json", *(labels / f"{name}.png" for name in folder.names)]
            if not state.counts.pending(folder.names) and all(path.is_file() and path.stat().st_size for path in made):
                record = {} if portion is None else read_json(out / "kc.json")
                return {**record, "sweep": _read_sweep(sweep_path) if portions else []}
        state = _counted(folder, state_path, state, fidelity, [policy], wanted, pool, progress)
        state.statistics.save(out / "image_statistics.npz")
        thresholds = [state.counts.thresholds(policy, value) for value in wanted]
        kept = np.zeros((len(wanted), folder.num_classes), dtype=np.int64)
        pixels = done = 0
        for number, block in pool.blocks(_select_block, folder, folder.names, thresholds, labels, reuse):
            kept += block[0]
            pixels += block[1]
            done += number
            progress("selection", done, len(folder.names))

    result: Dict[str, Any] = {}
    if portions:
        chosen = [wanted.index(value) for value in portions]
        result["sweep"] = sweep_rows([thresholds[i] for i in chosen], kept[chosen], folder.label_space.names)
        write_text(sweep_path, _to_csv(result["sweep"]))
    if portion is not None:
        record = {
            **thresholds[0].to_json(),
            "names": list(folder.label_space.names),
            "kept": [int(value) for value in kept[0]],
            "pixels": pixels,
            "kept_portion": float(kept[0].sum() / pixels),
            "images": len(folder.names),
            "settings": state.settings,
        }
        write_json(out / "kc.json", record)
        result.update(record)
    result.setdefault("sweep", [])
    return result


def _counted(
    folder: MapFolder,
    path: Path,
    state: Optional[State],
    fidelity: str,
    policies: Sequence[str],
    portions: Sequence[float],
    pool: _Workers,
    progress: Progress,
) -> State:
    """Return the counts from which the thresholds can be read, those of `state` or anew; saved to `path`."""
    if state is None:
        state = State.new(folder, fidelity)
    if not state.counts.refining and state.counts.pending(folder.names):
        _count(folder, state, path, pool, progress)
    if state.counts.refine(policies, portions):
        _count(folder, state, path, pool, progress)
    if not path.is_file():
        state.save(path)
    return state


def _stored(folder: MapFolder, path: Path, given: Optional[State], fidelity: str) -> State:
    """Return the counts of a job that goes on; refuse them when the images are others than those that were counted."""
    state = State.load(path)
    state.check(folder, fidelity)
    if given is None:
        complete = state.counts.refining or not state.counts.pending(state.own)
        gone = sorted(set(state.counts.names).difference(folder.names))
        come = sorted(set(folder.names).difference(state.counts.names)) if complete else []
        state.whole, state.own = set(folder.whole), set(folder.names)
        if gone or come:
            what = f"{gone[0]}, which it has counted, is gone" if gone else f"{come[0]} is new"
            raise RunError(f"{path} must be of the same files as before, {what}: give a new output folder")
    return state


def _check_counted(folder: MapFolder, state: State, fidelity: str, policy: str, portions: Sequence[float]) -> None:
    """Refuse a state in which a map is missing, or which needs maps that are not in the folder."""
    state.check(folder, fidelity)
    state.check_whole(folder)
    missing = sorted(set(state.counts.names).difference(folder.names))
    if missing:
        # the maps of this folder are not enough for another pass: the state must have had it
        try:
            for value in portions:
                state.counts.thresholds(policy, value)
        except DataError as error:
            raise DataError(
                f"the state holds images that are not in the folder, such as {missing[0]}, and needs a second count of "
                "them for these portions: run label count with --refine on every machine and merge the results"
            ) from error


def _open(out: Path, identity: Mapping[str, Any]) -> None:
    """Make the output folder, or go on in it when it is this very job's."""
    path = out / "job.json"
    identity = json.loads(json.dumps(identity))
    if path.is_file():
        stored = read_json(path)
        changed = [key for key in identity if not isinstance(stored, dict) or stored.get(key) != identity[key]]
        if changed:
            raise RunError(
                f"output folder {out} belongs to another job (other {', '.join(changed)}): give a new folder"
            )
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"output folder {out} is not empty and not of a labelling job: give a new or empty folder")
    else:
        write_json(path, identity)


_COLUMNS = ("portion", "train_id", "name", "count", "threshold", "kc", "kept")


def sweep_rows(thresholds: Sequence[Thresholds], kept: np.ndarray, names: Sequence[str]) -> List[Dict[str, Any]]:
    """Return the sweep table: one row per portion and class.

    Parameters
    ----------
    thresholds : sequence of Thresholds
        One per portion.
    kept : ndarray of shape (len(thresholds), C), int64
        Pixels of each pseudo-label class.
    names : sequence of str
        C class names.

    Returns
    -------
    list of dict
        ``portion``, ``train_id``, ``name``, ``count`` (N_c), ``threshold``, ``kc`` (None where nothing may be kept) and
        ``kept``.
    """
    rows = []
    for chosen, counts in zip(thresholds, kept):
        record = chosen.to_json()
        for index, name in enumerate(names):
            values = (chosen.portion, index, name, *(record[key][index] for key in _COLUMNS[3:6]), int(counts[index]))
            rows.append(dict(zip(_COLUMNS, values)))
    return rows


def _to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _read_sweep(path: Path) -> List[Dict[str, Any]]:
    types: Dict[str, Callable[[str], Any]] = {"train_id": int, "name": str, "count": int, "kept": int}
    with open(path, encoding="utf-8", newline="") as stream:
        return [
            {key: types.get(key, float)(value) if value else None for key, value in row.items()}
            for row in csv.DictReader(stream)
        ]
