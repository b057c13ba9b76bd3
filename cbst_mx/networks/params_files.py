"""The structure of MXNet's ``.params`` files, looked at before MXNet reads them; needs no MXNet.

MXNet's own reader believes what a file says of itself: some files of a few bytes make it ask for gigabytes, others end
the process. So every length is compared here with the bytes that are there, and nothing is read but headers and names.
The format, little-endian: magic 0x112 and a zero (8 bytes each), the number of arrays (8), the arrays, the number of
names (8), the names (length in 8 bytes, then text). An array is a magic that says its version (4 bytes), its storage
(4; versions 2 and 3), its number of axes (4) and their lengths (8 each), device type and number (4 each), the kind of
its numbers (4), and the numbers.
"""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path
from typing import IO

from cbst_mx.errors import CheckpointError
from cbst_mx.files import open_file
from cbst_mx.messages import counted

__all__ = ["MAGIC", "check_structure"]

MAGIC = 0x112
_VERSIONS = {0xF993FAC8: 1, 0xF993FAC9: 2, 0xF993FACA: 3}
_DENSE = 0
_MOST_AXES = 32
_LONGEST_NAME = 4096  # bytes
# float32, float64, float16, uint8, int32, int8, int64, bool, bfloat16: their numbers in the file and their bytes
_BYTES = {0: 4, 1: 8, 2: 2, 3: 1, 4: 4, 5: 1, 6: 8, 7: 1, 12: 2}


class _DamagedError(ValueError):
    """The file is not what it says."""


class _Reader:
    """Reads numbers from a file, and knows how many bytes are left."""

    def __init__(self, stream: IO[bytes], size: int):
        self._stream, self._left = stream, size

    def take(self, count: int) -> bytes:
        self._reserve(count)
        return self._stream.read(count)

    def skip(self, count: int) -> None:
        self._reserve(count)
        self._stream.seek(count, os.SEEK_CUR)

    def number(self, form: str) -> int:
        return int(struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))[0])

    def count(self, each: int) -> int:
        """Read how many items of at least `each` bytes follow."""
        found = self.number("Q")
        if found * each > self._left:
            raise _DamagedError(f"it says that {found} items follow, which its bytes cannot hold")
        return found

    def end(self) -> None:
        if self._left:
            raise _DamagedError(f"{counted(self._left, 'byte')} left behind its end")

    def _reserve(self, count: int) -> None:
        if count > self._left:
            raise _DamagedError("it ends too early")
        self._left -= count


def check_structure(path: Path) -> None:
    """Refuse a file that MXNet's reader should not see.

    Parameters
    ----------
    path : Path
        The ``.params`` file.

    Raises
    ------
    CheckpointError
        If it is missing, cannot be read, or its parts are not what they say; if it holds arrays without names, sparse
        arrays, or numbers of an unknown kind.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"parameter file {path} does not exist")
    try:
        with open_file(path) as stream:
            _check(_Reader(stream, os.fstat(stream.fileno()).st_size))
    except OSError as error:
        raise CheckpointError(f"parameter file {path} cannot be read: {error.strerror or error}") from error
    except _DamagedError as error:
        raise CheckpointError(f"parameter file {path} is not a readable MXNet .params file: {error}") from error


def _check(reader: _Reader) -> None:
    if reader.number("Q") != MAGIC or reader.number("Q") != 0:
        raise _DamagedError("it does not begin like one")
    arrays = reader.count(16)
    for _ in range(arrays):
        _check_array(reader)
    names = reader.count(8)
    if arrays and not names:
        raise _DamagedError("it holds arrays without names; named arrays are needed")
    if names != arrays:
        raise _DamagedError(f"it holds {counted(arrays, 'array')} and {counted(names, 'name')}")
    seen = set()
    for _ in range(names):
        length = reader.number("Q")
        if length > _LONGEST_NAME:
            raise _DamagedError(f"a name must have at most {_LONGEST_NAME} bytes, got {length}")
        try:
            name = reader.take(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise _DamagedError("a name is no text") from error
        if name in seen:
            raise _DamagedError(f"two of its arrays are called {name!r}")
        seen.add(name)
    reader.end()


def _check_array(reader: _Reader) -> None:
    magic = reader.number("I")
    version = _VERSIONS.get(magic)
    if version in (2, 3):
        storage = reader.number("i")
        if storage != _DENSE:
            raise _DamagedError("sparse arrays are not read")
    # before version 1 the magic was the number of axes, of 4 bytes each
    axes = magic if version is None else reader.number("I")
    if axes > _MOST_AXES:
        raise _DamagedError(f"an array must have at most {_MOST_AXES} axes, got {axes}")
    if axes == 0:
        if version == 3:
            _check_numbers(reader, 1)
        return  # an empty array ends here
    sizes = [reader.number("I" if version is None else "q") for _ in range(axes)]
    if min(sizes) < 0:
        raise _DamagedError("an array has an axis of unknown length")
    _check_numbers(reader, math.prod(sizes))


def _check_numbers(reader: _Reader, count: int) -> None:
    reader.skip(8)  # device type and number
    kind = reader.number("i")
    if kind not in _BYTES:
        raise _DamagedError(f"an array holds numbers of an unknown kind ({kind})")
    reader.skip(count * _BYTES[kind])
