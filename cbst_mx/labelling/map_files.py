"""Files of class maps: which there are in a folder, and what one of them holds.

C classes, h x w cells. A map is an array (C, h, w) or (1, C, h, w) of a float type: the file ``NAME.npy``, an array of
``NAME.npz``, or a tensor of ``NAME.pt``, alone or in a dictionary, as ``torch.save`` writes it, which is read without
PyTorch. Of several arrays in a file the one called ``probability`` is the map, or the one of the key that was given.

Whatever is wrong with a file is one sentence that names it. A header that promises more numbers than the file holds is
refused before memory is asked for.
"""

from __future__ import annotations

import contextlib
import math
import os
import stat
import unicodedata
import zipfile
from pathlib import Path
from typing import IO, Any, Collection, Iterator, NamedTuple, Tuple

import numpy as np

from cbst_mx.data.listing import files_below
from cbst_mx.errors import CBSTError, CheckpointError, DataError
from cbst_mx.files import array_header, check_archive, open_file
from cbst_mx.messages import listed
from cbst_mx.networks.torch_files import read_tensors

__all__ = ["MapHeader", "Version", "array_bytes", "file_version", "find_maps", "read_header", "read_map"]

_SUFFIXES = (".npy", ".npz", ".pt")
_KEY = "probability"
_MOST_CLASSES = 253  # of a label space
_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # controls, bytes that are no text, ends of lines and paragraphs
_LONGEST_NAME = 251  # bytes, to which the ending of a PNG is added
_SHOWN = 8
_JOB = "job.json"  # stands in the output folders of labelling jobs

Version = Tuple[int, int]  # (bytes, time of change in nanoseconds) of a file


class MapHeader(NamedTuple):
    """What is known of a map before its numbers are read."""

    shape: tuple[int, int, int]  # (C, h, w)
    item_bytes: int  # memory for each number while it is read


def find_maps(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Find the maps in a folder and its sub-folders.

    They are found as images are (see `cbst_mx.data.listing`): hidden files and folders are left out, as are those that
    systems put there; the output folders of labelling jobs too.

    Parameters
    ----------
    folder : Path
        Links are followed; a folder that can be reached in two ways is looked into once.

    Returns
    -------
    maps : dict of str to Path
        By name: the path below `folder` without ending, parts joined by "/". Sorted by name.
    left_out : list of str
        Paths below `folder` of files of other kinds, and of output folders.

    Raises
    ------
    DataError
        If the folder is missing, cannot be read or holds no map, two files are of one name, or a name is none that an
        image can have.
    """
    if not folder.is_dir():
        raise DataError(f"folder of probabilities {folder} does not exist")
    found: list[tuple[str, Path]] = []
    files, outputs = files_below(folder, lambda below: (below / _JOB).is_file())
    left_out = [path.relative_to(folder).as_posix() + "/" for path in outputs]
    for path in files:
        inside = path.relative_to(folder).as_posix()
        if path.suffix.lower() in _SUFFIXES:
            found.append((inside[: -len(path.suffix)], path))
        else:
            left_out.append(inside)
    found.sort(key=lambda pair: pair[0])
    if not found:
        raise DataError(f"folder of probabilities {folder} holds no .npy, .npz or .pt file")
    for (first, path), (second, other) in zip(found, found[1:]):
        if first == second:
            raise DataError(f"every image must have one map, got {path} and {other}")
    parents = {parent.as_posix() for name, _ in found for parent in Path(name).parents}
    for name, path in found:
        if any(unicodedata.category(character) in _UNPRINTABLE for character in name):
            raise DataError(f"the name of a map must be text without control characters, got {name + path.suffix!r}")
        if len(os.fsencode(path.stem)) > _LONGEST_NAME:
            raise DataError(f"the name of a map must have at most {_LONGEST_NAME} bytes without its ending, got {path}")
        if f"{name}.png" in parents:
            raise DataError(f"the label of {path} must not have the name of a folder of maps, {folder / name}.png")
    return dict(found), sorted(left_out)


def file_version(path: Path) -> Version:
    """Return bytes and time of change of a file.

    Raises
    ------
    DataError
        If it is missing, or is no file, as a named pipe, for which one would wait.
    """
    with _reading(path):
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("it is no ordinary file")
    return found.st_size, found.st_mtime_ns


def read_header(path: Path, key: str | None = None) -> MapHeader:
    """Read the header of a file's map; of a ``.pt`` file, which has none, the map itself.

    Parameters
    ----------
    path : Path
        File as in the module's docstring.
    key : str, optional
        Name of the array in ``.npz`` and ``.pt`` files.

    Raises
    ------
    DataError
        If the file cannot be read or its array cannot be class probabilities.
    """
    with _reading(path):
        if _is_torch(path):
            values = _tensor(path, key)
            shape, dtype, more = values.shape, values.dtype, 4  # the file is in memory as well
        else:
            with _data(path, key) as (stream, size):
                shape, dtype = array_header(stream, size)
            more = 0 if dtype.itemsize <= 4 else 4  # becomes float32
        return MapHeader(_map_shape(path, shape, dtype), dtype.itemsize + more)


def read_map(path: Path, key: str | None = None, *, mapped: bool = False) -> np.ndarray:
    """Read a file's map.

    Parameters
    ----------
    path, key
        As for :func:`read_header`.
    mapped : bool
        Leave the numbers of a ``.npy`` of float32 or float16 on the disk.

    Returns
    -------
    ndarray of shape (C, h, w), float32 or float16
        In the machine's byte order; float32 where the file holds a larger type.

    Raises
    ------
    DataError
        As :func:`read_header`.
    """
    with _reading(path):
        if _is_torch(path):
            array = _tensor(path, key)
        else:
            with _data(path, key) as (stream, size):
                _map_shape(path, *array_header(stream, size))
            if _is_archive(path):
                with _data(path, key) as (stream, _):
                    array = np.lib.format.read_array(stream, allow_pickle=False)
            else:
                array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
        _map_shape(path, array.shape, array.dtype)
        array = array[0] if array.ndim == 4 else array
        if array.dtype.itemsize > 4:
            with np.errstate(over="ignore"):  # becomes infinite, which is refused
                return array.astype(np.float32)
        return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def array_bytes(path: Path, name: str) -> int:
    """Return the memory that an array of an ``.npz`` file takes while it becomes float32.

    Raises
    ------
    DataError
        If the file cannot be read or has no such array.
    """
    with _reading(path), open_file(path) as stream, zipfile.ZipFile(stream) as archive:
        member = archive.getinfo(f"{name}.npy")
        with archive.open(member) as content:
            shape, dtype = array_header(content, member.file_size)
    return math.prod(shape) * (4 if dtype == np.float32 else 4 + dtype.itemsize)


def _map_shape(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> tuple[int, int, int]:
    """Return the shape (C, h, w) of a map; refuse what cannot be probabilities."""
    if len(shape) == 4 and shape[0] > 1:
        raise DataError(f"{path} must hold the map of one image, got {shape[0]} of them (shape {shape})")
    found = shape[1:] if len(shape) == 4 else shape
    if len(found) != 3 or 0 in found:
        raise DataError(f"{path} must hold an array of shape (C, H, W), got {shape}")
    if dtype.kind in "iub":
        how = (
            "m = m.float(); torch.save(m / m.sum(-3, keepdim=True).clamp(min=1), path)"
            if _is_torch(path)
            else "m = np.float32(m); np.save(path, m / np.maximum(m.sum(axis=-3, keepdims=True), 1))"
        )
        raise DataError(
            f"{path} must hold probabilities as float16, float32 or float64, got {dtype}; whole numbers in their place "
            f"are converted by {how}"
        )
    if dtype.kind != "f":
        raise DataError(f"{path} must hold probabilities as float16, float32 or float64, got {dtype}")
    if found[0] > _MOST_CLASSES:
        raise DataError(
            f"{path} must hold at most {_MOST_CLASSES} classes, got {found[0]} (shape {shape}, classes first)"
        )
    return found[0], found[1], found[2]


def _is_torch(path: Path) -> bool:
    return path.suffix.lower() == ".pt"


def _is_archive(path: Path) -> bool:
    return path.suffix.lower() == ".npz"


def _tensor(path: Path, key: str | None) -> np.ndarray:
    """Return the map of a PyTorch file, float32, or the whole numbers that stand in its place."""
    try:
        tensors = read_tensors(path)
    except CheckpointError as error:
        raise DataError(
            f"{error}; a map is read as torch.save(map, path) or torch.save({{'{_KEY}': map}}, path) writes it"
        ) from error
    found = tensors["" if set(tensors) == {""} else _chosen(tensors, key)]  # a tensor by itself has no key
    with np.errstate(over="ignore"):  # becomes infinite, which is refused
        return np.asarray(found, np.float32) if found.dtype.kind == "f" else found


@contextlib.contextmanager
def _data(path: Path, key: str | None) -> Iterator[tuple[IO[bytes], int]]:
    """Yield the ``.npy`` data of a file's map and their bytes."""
    if not _is_archive(path):
        with open_file(path) as stream:
            if stream.read(2) == b"PK":
                raise ValueError("it is an .npz archive, and must be called so")
            stream.seek(0)
            yield stream, os.fstat(stream.fileno()).st_size
        return
    with open_file(path) as stream:
        if stream.read(6) == np.lib.format.MAGIC_PREFIX:
            raise ValueError("it is no archive, and must be called .npy")
    with open_file(path) as stream, zipfile.ZipFile(stream) as archive:
        check_archive(archive, os.fstat(stream.fileno()).st_size)
        names = [name[: -len(".npy")] for name in archive.namelist() if name.endswith(".npy")]
        member = archive.getinfo(_chosen(names, key) + ".npy")
        with archive.open(member) as content:
            yield content, member.file_size


def _chosen(names: Collection[str], key: str | None) -> str:
    """Return which of several arrays is the map."""
    there = listed([name if name.isprintable() else repr(name) for name in names], _SHOWN, "array") or "none"
    if key is not None:
        if key not in names:
            raise ValueError(f"it must hold an array called {key!r}, got {there}")
        return key
    if _KEY in names:
        return _KEY
    if len(names) != 1:
        raise ValueError(f"it must hold one array or one called {_KEY!r}, got {there} (--key names another)")
    return next(iter(names))


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[Any]:
    """Turn whatever goes wrong in the block into one sentence."""
    try:
        yield
    except CBSTError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except Exception as error:  # damaged headers make numpy raise whatever they lead to
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:400] or type(error).__name__
        form = ".pt" if _is_torch(path) else ".npy or .npz"
        raise DataError(f"{path} is not a readable {form} file of numbers: {reason}") from error
