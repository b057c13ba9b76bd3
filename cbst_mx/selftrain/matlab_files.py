"""Read one array of numbers of a MATLAB file (versions 5 to 7), trusting nothing that the file says of itself.

The public reader of such files, scipy's, can end the process when a file is damaged. Here no more memory is asked for
than the file can fill: zlib makes at most 1,032 bytes of one.

The format is MathWorks' "MAT-File Format": a header of 128 bytes, whose last two tell the byte order, then elements,
each with a type and a length. A variable is an element of type "matrix", whose parts are flags, dimensions, name, and
numbers in column order; it may be inside an element of type "compressed". Version 7.3 is HDF5 and another format.
"""

from __future__ import annotations

import math
import os
import zlib
from pathlib import Path
from typing import IO, Any, NamedTuple, Union

import numpy as np

from cbst_mx.files import open_file

__all__ = ["NUMBERS", "Variable", "read_variable"]

_HEADER = 128
_VERSION = 0x0100
_INT8, _INT32, _UINT32, _MATRIX, _COMPRESSED = 1, 5, 6, 14, 15
_DTYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_OPAQUE = 17
_KINDS = {
    **{1: "cell", 2: "struct", 3: "object", 4: "char", 5: "sparse", 6: "double", 7: "single", 8: "int8", 9: "uint8"},
    **{10: "int16", 11: "uint16", 12: "int32", 13: "uint32", 14: "int64", 15: "uint64", 16: "function", 17: "opaque"},
}
#: Kinds of arrays of numbers.
NUMBERS = tuple(kind for number, kind in _KINDS.items() if 6 <= number <= 15)
_COMPLEX, _LOGICAL = 0x0800, 0x0200
_MOST_AXES = 32
_LONGEST_NAME = 4096
_MOST_EXPANDED = 1032  # bytes that zlib makes of one
_MOST_VARIABLES = 10_000


class Variable(NamedTuple):
    """One variable of a file."""

    kind: str  # "double", "struct", ...; "complex double", "logical"
    shape: tuple[int, ...]
    numbers: np.ndarray | None  # of the variable that was asked for, where it has that many axes and is real


class _Inflated:
    """Bytes that are decompressed as they are read."""

    def __init__(self, data: bytes):
        self._rest = data
        self._zlib = zlib.decompressobj()
        self.left = _MOST_EXPANDED * len(data)

    def read(self, count: int) -> bytes:
        parts, wanted = [], count
        while wanted and not self._zlib.eof:
            part = self._zlib.decompress(self._rest, wanted)
            self._rest = self._zlib.unconsumed_tail
            if not part and not self._rest:
                break
            parts.append(part)
            wanted -= len(part)
        self.left -= count - wanted
        return b"".join(parts)

    def check_end(self) -> None:
        """Refuse data that go on, or end without the right checksum."""
        self.read(1)
        if not self._zlib.eof:
            raise ValueError("compressed data are cut off or longer than stated")


class _Part:
    """Bytes of a stream up to an end."""

    def __init__(self, stream: IO[bytes], length: int):
        self._stream, self.left = stream, length

    def read(self, count: int) -> bytes:
        data = self._stream.read(min(count, self.left))
        self.left -= len(data)
        return data

    def check_end(self) -> None:
        """Do nothing: what follows is of no interest."""


_Source = Union[_Inflated, _Part]


def read_variable(path: Path, name: str, axes: int) -> dict[str, Variable]:
    """List the variables of a file, and read one of them.

    Parameters
    ----------
    path : Path
        MATLAB file of version 5 to 7.
    name : str
        Name of the array that is read.
    axes : int
        Number of axes it must have to be read.

    Returns
    -------
    dict of str to Variable
        By name, in the file's order.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is no such file, or damaged.
    """
    found: dict[str, Variable] = {}
    with open_file(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        head = stream.read(_HEADER)
        order = {b"IM": "<", b"MI": ">"}.get(head[126:128])
        if order is None or _number(head[124:126], order) != _VERSION:
            raise ValueError("it does not begin as a file of MATLAB 5 to 7")
        while stream.tell() < size:
            kind, length = (_number(_exactly(stream, 4), order) for _ in range(2))
            end = stream.tell() + length
            if end > size:
                raise ValueError("it is cut off")
            source: _Source = _Part(stream, length)
            if kind == _COMPRESSED:
                source = _Inflated(stream.read(length))
                kind = _number(_exactly(source, 4), order)
                source.left = min(source.left, _number(_exactly(source, 4), order))
            if kind != _MATRIX:
                raise ValueError(f"it has an element of the unknown type {kind}")
            own_name, variable = _variable(source, order, name, axes)
            if own_name:  # the last one of many files is MATLAB's own and has none
                found.setdefault(own_name, variable)
            if len(found) > _MOST_VARIABLES:
                raise ValueError(f"it has more than {_MOST_VARIABLES:,} variables")
            stream.seek(end)
    return found


def _variable(source: _Source, order: str, wanted: str, axes: int) -> tuple[str, Variable]:
    """Return name and description of a variable, with its numbers if it is the wanted one."""
    flags = _number(_element(source, order, _UINT32, 8)[:4], order)
    kind = _KINDS.get(flags & 0xFF, "unknown")
    shape: tuple[int, ...] = (1,)
    if flags & 0xFF != _OPAQUE:
        sides = _element(source, order, _INT32, 4 * _MOST_AXES)
        shape = tuple(int(side) for side in np.frombuffer(sides, f"{order}i4"))
        if any(side < 0 for side in shape):
            raise ValueError(f"a variable has the shape {shape}")
    name = _element(source, order, _INT8, _LONGEST_NAME).decode("latin-1")
    if kind in NUMBERS and flags & _LOGICAL:
        kind = "logical"
    if kind in NUMBERS and flags & _COMPLEX:
        kind = f"complex {kind}"
    if name != wanted or kind not in NUMBERS or len(shape) != axes or 0 in shape:
        return name, Variable(kind, shape, None)
    stored, length, short = _tag(source, order)
    if stored not in _DTYPES:
        raise ValueError(f"the numbers of {name} are of the unknown type {stored}")
    dtype = np.dtype(order + _DTYPES[stored])
    if length != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name} has {length:,} bytes of numbers, not those of shape {shape}")
    data = short if short is not None else _exactly(source, length)
    source.read(0 if short is not None else -length % 8)
    source.check_end()
    return name, Variable(kind, shape, np.frombuffer(data, dtype).reshape(shape, order="F"))


def _tag(source: _Source, order: str) -> tuple[int, int, bytes | None]:
    """Return type and length of an element, and its bytes where they are in the tag."""
    word = _number(_exactly(source, 4), order)
    if word >> 16:
        if word >> 16 > 4:
            raise ValueError("it has a damaged tag")
        return word & 0xFFFF, word >> 16, _exactly(source, 4)[: word >> 16]
    return word, _number(_exactly(source, 4), order), None


def _element(source: _Source, order: str, kind: int, longest: int) -> bytes:
    """Return the bytes of an element of a given type."""
    found, length, short = _tag(source, order)
    if found != kind or length > longest:
        raise ValueError(f"it has a part of type {found} and {length:,} bytes where type {kind} is due")
    if short is not None:
        return short
    data = _exactly(source, length)
    _exactly(source, -length % 8)
    return data


def _number(data: bytes, order: str) -> int:
    return int.from_bytes(data, "little" if order == "<" else "big")


def _exactly(source: Any, count: int) -> bytes:
    left = getattr(source, "left", count)
    data = source.read(count) if count <= left else b""
    if len(data) != count:
        raise ValueError("it is cut off")
    return data
