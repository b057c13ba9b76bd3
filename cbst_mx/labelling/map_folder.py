"""The input of the labelling job: class maps in files, opened without reading their numbers.

C classes, H x W pixels; a stored map is (C, h, w), at full size or at a network's stride.
"""

from __future__ import annotations

import dataclasses
import functools
import unicodedata
import zipfile
from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np

from cbst_mx.data.folder import read_label_space
from cbst_mx.errors import ConfigError, DataError
from cbst_mx.files import file_digest
from cbst_mx.label_space import LabelSpace, find, numbered
from cbst_mx.selftrain import prior_files
from cbst_mx.selftrain.class_maps import INTERPOLATIONS, ClassMaps, size_at_stride
from cbst_mx.selftrain.map_checks import Sums, check_origin, check_sums
from cbst_mx.selftrain.views import HostMap

__all__ = ["MapFolder"]

_SUFFIXES = (".npy", ".npz")
_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # controls, bytes that are no text, ends of lines and paragraphs


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
    all_names : tuple of str
        The names in the folder, of which `names` may be a shard.
    stride : int
        Pixels per cell along each side.
    size : (int, int), optional
        (H, W) of every image, where that was given.
    interpolation : {"bilinear", "bicubic"}
    origin : {"plain", "bicubic", "maximum", "prior", "scores"}
        What the classes of a pixel sum to, see ``map_checks.ORIGINS``.
    prior : Path, optional
        Spatial prior.
    prior_sha256 : str, optional
        SHA-256 of the prior's file.
    """

    label_space: LabelSpace
    names: tuple[str, ...]
    paths: tuple[Path, ...]
    shapes: tuple[tuple[int, int, int], ...]
    sizes: tuple[tuple[int, int], ...]
    item_bytes: int
    versions: tuple[tuple[int, int], ...]
    all_names: tuple[str, ...]
    stride: int = 1
    size: tuple[int, int] | None = None
    interpolation: str = "bilinear"
    origin: str = "plain"
    prior: Path | None = None
    prior_sha256: str | None = None

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        classes: str | None = None,
        stride: int = 1,
        size: tuple[int, int] | Mapping[str, tuple[int, int]] | None = None,
        interpolation: str = "bilinear",
        origin: str = "plain",
        prior: Path | None = None,
        shard: tuple[int, int] = (1, 1),
    ) -> MapFolder:
        """Look at every file of `folder` without reading its numbers.

        Parameters
        ----------
        folder : Path
            Its files ``NAME.npy`` and ``NAME.npz`` (one array, or one called ``probability``) hold float32 or float16
            maps (C, h, w); other files are left alone.
        classes : str, optional
            Label space by name, number of classes or YAML file, as for :func:`cbst_mx.label_space.find`.
        stride : int
            Pixels per cell along each side; 1 for maps at full size.
        size : (int, int) or mapping of str to (int, int), optional
            (H, W) of all images, or by name, where they are not `stride` times the map.
        interpolation, origin, prior
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
        check_origin(origin)
        part, parts = shard
        if not 1 <= part <= parts:
            raise ConfigError(f"shard must be I/N with I from 1 to N, got {part}/{parts}")
        paths = _map_paths(folder)
        if parts > len(paths):
            raise ConfigError(f"shard must be one of at most {len(paths)} (one for each map), got {part}/{parts}")
        all_names = tuple(path.stem for path in paths)
        paths = paths[part - 1 :: parts]
        versions = tuple(_version(path) for path in paths)
        shapes: list[tuple[int, int, int]] = []
        sizes: list[tuple[int, int]] = []
        item_bytes = 0
        for path in paths:
            shape, bytes_each = _map_header(path)
            if shapes and shape[0] != shapes[0][0]:
                raise DataError(f"{path} must have the {shapes[0][0]} classes of {paths[0].name}, got {shape[0]}")
            shapes.append(shape)
            own = size if size is None or isinstance(size, tuple) else size[path.stem]
            sizes.append(size_at_stride(shape, stride, own, str(path)))
            item_bytes = max(item_bytes, bytes_each)
        found = cls(
            label_space=find(classes, shapes[0][0], origin=str(paths[0]), read=read_label_space),
            names=tuple(path.stem for path in paths),
            paths=tuple(paths),
            shapes=tuple(shapes),
            sizes=tuple(sizes),
            item_bytes=item_bytes,
            versions=versions,
            all_names=all_names,
            stride=stride,
            size=size if isinstance(size, tuple) else None,
            interpolation=interpolation,
            origin=origin,
            prior=prior,
            prior_sha256=None if prior is None else _sha256(prior),
        )
        found.prior_maps(0)  # refuse what is wrong with it now
        return found

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return self.label_space.num_classes

    def subset(self, indices: Sequence[int]) -> MapFolder:
        """Return the same for some of the images."""
        chosen: dict[str, Any] = {
            field: tuple(getattr(self, field)[index] for index in indices)
            for field in ("names", "paths", "shapes", "sizes", "versions")
        }
        chosen["all_names"] = ()  # sent to a process with every block
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

    def prior_maps(self, index: int) -> ClassMaps | None:
        """Return the spatial prior at the size of one image, None where there is none."""
        if self.prior is None or self.prior_sha256 is None:
            return None
        # the names of unnamed classes are ours: there is nothing to compare
        names = None if self.label_space == numbered(self.num_classes) else self.label_space.names
        return _sized_prior(self.prior, self.prior_sha256, self.num_classes, names, self.sizes[index])

    def view(self, index: int) -> HostMap:
        """Return one image as the pass sees it.

        Raises
        ------
        DataError
            If the file cannot be used, naming it; so do the errors of the view.
        """
        path = str(self.paths[index])
        try:
            maps = self.maps(index)
            check_sums(maps.stored, self.origin, release=maps.release)
            bounded = self.origin not in ("prior", "scores")
            return HostMap(maps, self.prior_maps(index), path, bounded=bounded)
        except DataError as error:
            raise error if path in str(error) else DataError(f"{path}: {error}") from error

    def sums(self) -> Sums | None:
        """Return what the classes of the first map sum to."""
        return check_sums(self.maps(0).stored, self.origin)

    def settings(self) -> dict[str, Any]:
        """Return what the counts depend on besides the files, as JSON values."""
        origin = {} if self.origin == "plain" else {"origin": self.origin}
        return {
            **origin,
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


def _map_paths(folder: Path) -> list[Path]:
    """Return the files of a folder that are maps, sorted by their names; refuse names that no image can have."""
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
    for path in paths:
        if any(unicodedata.category(character) in _UNPRINTABLE for character in path.stem):
            raise DataError(f"the name of a map must be text without control characters, got {path.name!r}")
    return paths


def _map_header(path: Path) -> tuple[tuple[int, int, int], int]:
    """Return the shape of a file's map and its bytes per number; refuse what cannot be probabilities."""
    shape, dtype = _header(path)
    if dtype.kind != "f" or dtype.itemsize not in (2, 4):
        raise DataError(f"{path} must hold float32 or float16 probabilities, got {dtype}")
    if len(shape) != 3 or 0 in shape:
        raise DataError(f"{path} must hold an array of shape (C, H, W), got {shape}")
    if shape[0] > 253:
        raise DataError(f"{path} must hold at most 253 classes, got {shape[0]} (shape {shape}, classes first)")
    return (shape[0], shape[1], shape[2]), dtype.itemsize


def _sha256(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as error:
        raise DataError(f"spatial prior {path} cannot be read: {error.strerror or error}") from error


def _version(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise _unusable(path, error) from error
    return found.st_size, found.st_mtime_ns


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


def _header(path: Path, member: str | None = None) -> tuple[tuple[int, ...], np.dtype]:
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
    except Exception as error:  # damaged headers make numpy raise whatever they lead to
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
    except Exception as error:  # damaged headers make numpy raise whatever they lead to
        raise _unusable(path, error) from error
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


# In the key the hash stands for what the file holds; neighbouring images share the prior, resized tile by tile.
@functools.lru_cache(maxsize=1)
def _prior(path: Path, sha256: str, num_classes: int, names: tuple[str, ...] | None) -> np.ndarray:
    return prior_files.load(path, num_classes, names)


@functools.lru_cache(maxsize=4)
def _sized_prior(
    path: Path, sha256: str, num_classes: int, names: tuple[str, ...] | None, size: tuple[int, int]
) -> ClassMaps:
    return ClassMaps(_prior(path, sha256, num_classes, names), size)
