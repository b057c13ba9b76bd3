"""Foreign files: what goes wrong with one is a sentence, and none takes more memory than it is large."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import stat
import zipfile
from pathlib import Path
from typing import IO, Any, Iterator

import numpy as np

from cbst_mx.errors import CBSTError, DataError, RunError

__all__ = [
    "DEFLATE",
    "SEAL",
    "array_header",
    "check_archive",
    "check_end",
    "digest_of",
    "file_digest",
    "in_one_line",
    "open_file",
    "open_npz",
    "parse_json",
    "read_bounded",
    "read_json",
    "read_mapping",
    "reading",
]

SEAL = "seal"  # key of a file's own digest
DEFLATE = 1032  # bytes that one byte of deflated data can stand for at most
LARGEST_JSON = 256 << 20  # bytes of a record
_LONGEST_HEADER = 10_000  # bytes of the text that describes an array; numpy's own limit in later versions


@contextlib.contextmanager
def reading(what: object, error_type: type[CBSTError] = DataError) -> Iterator[None]:
    """Turn whatever goes wrong in the block into one sentence: the boundary between the program and foreign files.

    Parameters
    ----------
    what : object
        Name of the file, with which the sentence begins.
    error_type : type of CBSTError
        Error that is raised in the place of any other exception; a `CBSTError` passes as it is.

    Raises
    ------
    CBSTError
        If the block raises anything, memory and recursion errors included.
    """
    try:
        yield
    except CBSTError:
        raise
    except Exception as error:
        raise error_type(f"{what} cannot be read: {in_one_line(error)}") from error


def in_one_line(error: BaseException) -> str:
    """Return what an error says, or its kind where it says nothing, as part of a sentence."""
    return getattr(error, "strerror", None) or " ".join(str(error).split())[:200] or type(error).__name__


def read_bounded(path: str | os.PathLike[str], limit: int) -> bytes:
    """Read a file of at most `limit` bytes.

    Raises
    ------
    OSError
        If there is no such file, it cannot be opened, is no ordinary file (of a pipe one would wait, a device may have
        no end), or is larger.
    """
    try:
        check_end(path)
        with open(path, "rb") as stream:
            content = stream.read(limit + 1)
    except ValueError as error:  # a NUL in the path
        raise OSError(errno.EINVAL, str(error)) from error
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"it is larger than {limit:,} bytes")
    return content


def digest_of(values: Any) -> str:
    """Return the SHA-256 of JSON values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def read_json(path: Path, limit: int = LARGEST_JSON, *, finite: bool = True) -> Any:
    """Read the JSON file `path` of at most `limit` bytes, see :func:`parse_json`.

    One that :func:`.write_json` has sealed is given without its seal.

    Raises
    ------
    RunError
        If it is missing, no ordinary file, too large or damaged, or was altered since it was sealed.
    """
    try:
        values = parse_json(read_bounded(path, limit).decode("utf-8"), finite=finite)
        if isinstance(values, dict) and SEAL in values and values.pop(SEAL) != digest_of(values):
            raise ValueError("it was altered since it was written")
        return values
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist: the stage that writes it has not been run") from error
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read: {in_one_line(error)}") from error


def read_mapping(path: Path, *, finite: bool = True) -> dict[str, Any]:
    """Read a JSON file of names and values; with `finite`, one with NaN or an infinity is damaged.

    Raises
    ------
    RunError
        If it is missing, damaged, or something else.
    """
    value = read_json(path, finite=finite)
    if not isinstance(value, dict):
        raise RunError(f"{path} must hold names and values, got {type(value).__name__}")
    return value


def parse_json(text: str, *, finite: bool = True) -> Any:
    """Return the content of JSON text whose numbers are finite, if asked for, and of at most 64 bits where whole.

    Raises
    ------
    ValueError
        If it is no such text.
    RecursionError
        If it is too deep.
    """
    number = _finite_number if finite else float
    return json.loads(text, parse_int=_whole_number, parse_float=number, parse_constant=number)


def _whole_number(text: str) -> int:
    if len(text) > 21 or abs(int(text)) >= 1 << 64:
        raise ValueError(f"a number of {len(text):,} digits is too large")
    return int(text)


def _finite_number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is no number that is finite")
    return number


def check_end(path: str | os.PathLike[str]) -> None:
    """Refuse a pipe or socket, which would be waited for, and a device, which may have no end.

    Raises
    ------
    OSError
        If `path` is one of these, or cannot be looked at.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # a folder is refused by what opens it
        kind = "named pipe" if stat.S_ISFIFO(mode) else "socket" if stat.S_ISSOCK(mode) else "device"
        raise OSError(errno.EINVAL, f"it is no ordinary file but a {kind}")


def open_file(path: str | os.PathLike[str]) -> IO[bytes]:
    """Open an ordinary file to read.

    Raises
    ------
    OSError
        If it is a pipe, socket or device, or cannot be opened.
    """
    check_end(path)
    return open(path, "rb")


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Return the digest of a file in hexadecimal.

    Raises
    ------
    OSError
        If it cannot be read, or is a pipe or device, which may have no end.
    """
    digest = hashlib.new(algorithm)
    with open_file(path) as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def array_header(stream: IO[bytes], size: int) -> tuple[tuple[int, ...], np.dtype]:
    """Read the header of ``.npy`` data, and refuse one that promises more numbers than there are, before any is read.

    Parameters
    ----------
    stream : binary file
        At the beginning of the data; left somewhere behind the header.
    size : int
        Bytes of the data, header included.

    Returns
    -------
    (tuple of int, dtype)

    Raises
    ------
    ValueError
        If the data are no array of numbers or texts, or cut off; numpy raises other errors for damaged headers.
    """
    head = io.BytesIO(stream.read(_LONGEST_HEADER))
    if not head.getvalue().startswith(np.lib.format.MAGIC_PREFIX):
        raise ValueError("it is empty" if not head.getvalue() else "it does not begin as a .npy file")
    version = np.lib.format.read_magic(head)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(head)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(head)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not read")
    if any(count < 0 for count in shape):
        raise ValueError(f"its header states the shape {shape}")
    needed, there = math.prod(shape) * dtype.itemsize, size - head.tell()
    if needed > there:
        raise ValueError(f"its header promises {needed:,} bytes of numbers, there are {max(there, 0):,}")
    return shape, dtype


def check_archive(archive: zipfile.ZipFile, size: int) -> None:
    """Refuse a zip archive that holds more than its bytes can: members that share data, or sizes that are not true.

    Parameters
    ----------
    archive : ZipFile
    size : int
        Bytes of its file.

    Raises
    ------
    ValueError
        If its members are compressed otherwise than by deflate, or unpack to more than `DEFLATE` times their bytes.
    """
    members = archive.infolist()
    if sum(member.compress_size for member in members) > size:
        raise ValueError("its members are larger than the file")
    for member in members:
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{member.filename[:100]!r} is compressed otherwise than by deflate")
        if member.file_size > DEFLATE * (member.compress_size + 1):
            raise ValueError(f"{member.filename[:100]!r} promises {member.file_size:,} bytes, which it cannot hold")


def _check_members(stream: IO[bytes]) -> None:
    """Refuse an ``.npz`` in which an array's header promises more numbers than its member holds."""
    with zipfile.ZipFile(stream) as archive:
        check_archive(archive, os.fstat(stream.fileno()).st_size)
        for member in archive.infolist():
            if not member.filename.endswith(".npy"):
                raise ValueError(f"it holds {member.filename[:100]!r}, which is no array")
            with archive.open(member) as content:
                array_header(content, member.file_size)


@contextlib.contextmanager
def open_npz(path: Path, what: str) -> Iterator[Any]:
    """Yield the open ``.npz`` file; what goes wrong with it in the block is one sentence that calls it `what`.

    Raises
    ------
    DataError
        If the file is missing, damaged or no archive, or the block raises anything but an error of this package.
    """
    try:
        with open_file(path) as stream:  # numpy leaves a damaged file it has opened itself open
            if stream.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX:
                raise ValueError("it holds one array without a name")
            _check_members(stream)
            stream.seek(0)
            yield np.load(stream, allow_pickle=False)
    except CBSTError:
        raise
    except Exception as error:  # damaged headers make numpy raise whatever they lead to
        raise DataError(f"{path} is not a readable {what}: {in_one_line(error)}") from error
