"""Files that are written completely or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import re
import shutil
import stat
import zipfile
from pathlib import Path
from typing import IO, Any, Iterator, Mapping

import numpy as np

from cbst_mx.errors import CBSTError, DataError, RunError

__all__ = [
    "DEFLATE",
    "array_header",
    "atomic_folder",
    "atomic_path",
    "check_archive",
    "check_end",
    "check_free_space",
    "file_digest",
    "in_one_line",
    "open_file",
    "open_npz",
    "parse_json",
    "read_bounded",
    "read_json",
    "reading",
    "remove_leftovers",
    "save_npz",
    "sync_folder",
    "write_json",
    "write_text",
]

_LONGEST_NAME = 255  # bytes of a file's name
DEFLATE = 1032  # bytes that one byte of deflated data can stand for at most
LARGEST_JSON = 256 << 20  # bytes of a record
_LONGEST_HEADER = 10_000  # bytes of the text that describes an array; numpy's own limit in later versions


def _reason(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "no space left on the disk"
    return error.strerror or str(error)


@contextlib.contextmanager
def atomic_path(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it when the block ends well and vanishes when it does not.

    Parameters
    ----------
    path : Path
        Its folder is made when it is not there.
    durable : bool
        Wait until the disk has the file; not worth it for the many small files of a folder that is renamed at the end.

    Raises
    ------
    RunError
        If the file cannot be written (no space, no permission); what was at `path` before is then still there.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    if len(os.fsencode(temporary.name)) > _LONGEST_NAME:  # a legal name may leave no room for what is put around it
        digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:32]
        temporary = path.with_name(f".{digest}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if durable:
            with open(temporary, "rb") as stream:
                os.fsync(stream.fileno())
        os.replace(temporary, path)
        if durable:
            sync_folder(path.parent)
    except OSError as error:
        raise RunError(f"cannot write {path}: {_reason(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def sync_folder(path: Path) -> None:
    """Wait until the disk has the names of the files in a folder, where its file system can be asked for that.

    Raises
    ------
    OSError
        If the disk fails.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove the temporary files of :func:`atomic_path` whose writers were killed.

    Those of processes that still run on this computer stay.

    Parameters
    ----------
    folder : Path
        Folder of the files that were being written; sub-folders are not looked into.
    name : str, optional
        Only what was being written to this name, the first file that goes into the folder: what bears the number of
        this process is then of an earlier one (containers number theirs from 1).
    """
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            found = re.fullmatch(r"\.(.+)\.([0-9]{1,10})\.part", path.name, re.DOTALL)
            if not found or name not in (None, found[1]):
                continue
            if not _is_running(int(found[2])) or (name is not None and int(found[2]) == os.getpid()):
                with contextlib.suppress(OSError):
                    path.unlink()


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # of another user
        return True
    return True


@contextlib.contextmanager
def atomic_folder(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that takes the place of `path` when the block ends well and vanishes when it does not.

    Parameters
    ----------
    path : Path
        Its parent is made when it is not there.
    durable : bool
        Wait until the disk has the files that lie directly in the folder.

    Raises
    ------
    RunError
        If it cannot be written (no space, no permission); what was at `path` before is then still there.
    """
    path = Path(path)
    whole = path.absolute()  # "." has no name
    temporary = whole.with_name(f".{whole.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in filter(Path.is_file, temporary.iterdir()) if durable else ():
            with open(file, "rb") as stream:
                os.fsync(stream.fileno())
        if durable:
            sync_folder(temporary)
        shutil.rmtree(path, ignore_errors=True)
        temporary.replace(path)
        if durable:
            sync_folder(whole.parent)
    except OSError as error:
        raise RunError(f"cannot write {path}: {_reason(error)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically (UTF-8)."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, values: Any) -> None:
    """Write `values` to `path` as JSON, atomically; NaN and infinity are refused, since JSON has none."""
    write_text(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


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


def read_json(path: Path, limit: int = LARGEST_JSON, *, finite: bool = True) -> Any:
    """Read the JSON file `path` of at most `limit` bytes, see :func:`parse_json`.

    Raises
    ------
    RunError
        If it is missing, no ordinary file, too large or damaged.
    """
    try:
        return parse_json(read_bounded(path, limit).decode("utf-8"), finite=finite)
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist: the stage that writes it has not been run") from error
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read: {in_one_line(error)}") from error


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


def check_free_space(path: Path, needed: int, *, what: str = "run folder") -> None:
    """Refuse to start where the disk of `path` has fewer than `needed` bytes free; `what` is how the sentence calls it.

    Raises
    ------
    RunError
        If it has fewer; the sentence names both figures in MB.
    """
    path = Path(path).absolute()
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise RunError(
            f"not enough disk space for the {what} {path}: about {needed / 1e6:.0f} MB are needed, "
            f"{free / 1e6:.0f} MB are free"
        )


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


def save_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays as a compressed ``.npz``, atomically."""
    archive = io.BytesIO()  # zipfile, when a write fails, tries again while it is taken apart and prints a traceback
    # Not np.savez_compressed(archive, **arrays), whose own arguments have names that users may give as well; the bytes
    # are the same.
    with zipfile.ZipFile(archive, "w", compression=zipfile.ZIP_DEFLATED) as members:
        for name, array in arrays.items():
            with members.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
    with atomic_path(path) as temporary:
        temporary.write_bytes(archive.getbuffer())
