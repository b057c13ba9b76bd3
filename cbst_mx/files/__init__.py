"""Files that are written completely or not at all, and every other call that changes a disk.

Nothing else in the package opens a file to write, renames, makes or removes one, so that tests can let each of these
calls fail; `reading` is the boundary to foreign files. Beside it stand the lock and the log of a run folder, and
encoders of other libraries, which are given a temporary path of this module.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import shutil
import time
import zipfile
from pathlib import Path
from typing import Any, Iterable, Iterator, Mapping

import numpy as np

from cbst_mx.errors import RunError
from cbst_mx.files.reading import (
    DEFLATE,
    SEAL,
    array_header,
    check_archive,
    check_end,
    digest_of,
    file_digest,
    in_one_line,
    open_file,
    open_npz,
    parse_json,
    read_bounded,
    read_json,
    read_mapping,
    reading,
)

__all__ = [
    "DEFLATE",
    "array_header",
    "atomic_folder",
    "atomic_path",
    "check_archive",
    "check_end",
    "check_free_space",
    "digest_of",
    "file_digest",
    "in_one_line",
    "link_file",
    "make_folder",
    "open_file",
    "open_npz",
    "pack_names",
    "part_path",
    "parse_json",
    "read_bounded",
    "read_json",
    "read_mapping",
    "reading",
    "remove_empty_folder",
    "remove_file",
    "remove_folder",
    "remove_leftovers",
    "replace_file",
    "save_npy",
    "save_npz",
    "sync_folder",
    "unpack_names",
    "write_bytes",
    "write_json",
    "write_text",
]

_LONGEST_NAME = 255  # bytes of a file's name
_BEGAN = time.time()


def _reason(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "no space left on the disk"
    if error.errno is None:  # NumPy, of a write that ended early: "38912 requested and 8160 written"
        return f"not written in full, as on a disk without space ({error})"
    return error.strerror or str(error)


@contextlib.contextmanager
def _changing(what: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot {what} {path}: {_reason(error)}") from error


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
        If the file cannot be written (no space, no permission). What was at `path` before is then still there, unless
        the disk fails behind the renaming: the new file is.
    """
    path = Path(path)
    temporary = part_path(path)
    with _changing("write", path):
        try:
            _make_folder(path.parent)
            yield temporary
            if durable:
                _sync_file(temporary)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        if durable:
            sync_folder(path.parent)


def part_path(path: Path, ending: str = "") -> Path:
    """Return where this process writes a file before it gets its name; `ending` says the format, where that matters."""
    name, after = path.name, f"{os.getpid()}.part{ending}"
    if len(os.fsencode(f".{name}.{after}")) > _LONGEST_NAME:  # a legal name may leave no room for what is put around it
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
    return path.with_name(f".{name}.{after}")


def _sync_file(path: Path) -> None:
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())


def make_folder(path: Path) -> None:
    """Make a folder and those above it, and wait until the disk has their names.

    Raises
    ------
    RunError
        If that cannot be.
    """
    with _changing("make the folder", path):
        _make_folder(Path(path))


def _make_folder(path: Path) -> None:
    missing = []
    while not path.is_dir():
        missing.append(path)
        if path.parent == path:
            break
        path = path.parent
    for folder in reversed(missing):
        with contextlib.suppress(FileExistsError):  # of another process at the same moment; a file is found out below
            os.mkdir(folder)
        sync_folder(folder.parent)


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


def remove_file(path: Path) -> None:
    """Remove a file, if it is there.

    Raises
    ------
    RunError
        If it cannot be removed.
    """
    with _changing("remove", path), contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def remove_empty_folder(path: Path) -> None:
    """Remove a folder that holds nothing.

    Raises
    ------
    RunError
        If it holds something or cannot be removed.
    """
    with _changing("remove", path):
        os.rmdir(path)


def remove_folder(path: Path) -> None:
    """Remove a folder with all that is in it, if it is there.

    Raises
    ------
    RunError
        If it cannot be removed.
    """
    with _changing("remove", path), contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)


def replace_file(source: Path, target: Path) -> None:
    """Rename a file, also into the place of another.

    Raises
    ------
    RunError
        If it cannot be renamed.
    """
    with _changing("rename", source):
        os.replace(source, target)


def link_file(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system has no links.

    Raises
    ------
    RunError
        If neither can be done.
    """
    with _changing("write", target):
        _make_folder(Path(target).parent)
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)


def remove_leftovers(folder: Path, name: str | None = None, *, owned: bool = False, below: bool = False) -> None:
    """Remove the temporary files and folders of :func:`part_path` and `atomic_folder` whose writers were killed.

    Those of processes that still run on this computer stay. What bears the number of this process and is older than it
    is of an earlier one: containers number theirs from 1.

    Parameters
    ----------
    folder : Path
        Folder of the files that were being written.
    name : str, optional
        Only what was being written to this name, the first file that goes into the folder: whatever bears the number of
        this process is then of an earlier one.
    owned : bool
        No other process writes into the folder, since it is locked: their files are left over, whatever process has
        the number today.
    below : bool
        Look into the folders in it as well.
    """
    with contextlib.suppress(OSError):
        for path in [*folder.glob("**/*" if below else "*")]:
            found = re.fullmatch(r"\.(.+)\.([0-9]{1,10})\.part(?:\.[A-Za-z0-9]+)?", path.name, re.DOTALL)
            if not found or name not in (None, found[1]):
                continue
            with contextlib.suppress(OSError):
                left = owned or not _is_running(int(found[2]))
                if int(found[2]) == os.getpid():
                    left = name is not None or path.stat().st_mtime < _BEGAN
                if left:
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else os.unlink(path)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (OSError, OverflowError) as error:
        return not isinstance(error, ProcessLookupError)  # else it is of another user
    return True


@contextlib.contextmanager
def atomic_folder(path: Path, *, durable: bool = False, new: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that takes the place of `path` when the block ends well and vanishes when it does not.

    Several processes may write the same folder at once: each has a temporary one of its own.

    Parameters
    ----------
    path : Path
        Its parent is made when it is not there.
    durable : bool
        Wait until the disk has all that is in the folder.
    new : bool
        Replace only an empty folder: what another process has put there meanwhile stays.

    Raises
    ------
    RunError
        If it cannot be written (no space, no permission); what was at `path` before is then still there.
    """
    path = Path(path)
    whole = path.absolute()  # "." has no name
    temporary = whole.with_name(f".{whole.name}.{os.getpid()}.part")
    before = whole.with_name(f".{whole.name}.before.{os.getpid()}.part")
    for name in (whole.name, f"{whole.name}.before"):
        remove_leftovers(whole.parent, name)
    with _changing("write", path):
        try:
            if whole.is_dir() and whole.samefile(os.curdir):
                raise OSError(errno.EBUSY, "processes that work in a folder keep it from being replaced")
            _make_folder(whole.parent)
            os.mkdir(temporary)
            yield temporary
            remove_leftovers(temporary, owned=True, below=True)  # of workers that were killed while they wrote into it
            if durable:
                _sync_tree(temporary)
            if not new and whole.is_dir() and not whole.is_symlink():
                os.replace(whole, before)
            try:
                os.replace(temporary, whole)
            except OSError:
                if before.exists():
                    os.replace(before, whole)
                raise
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        if durable:
            sync_folder(whole.parent)
        shutil.rmtree(before, ignore_errors=True)


def _sync_tree(path: Path) -> None:
    for folder, _, files in os.walk(path, topdown=False):
        for name in files:
            _sync_file(Path(folder, name))
        sync_folder(Path(folder))


def write_bytes(path: Path, content: bytes | memoryview, *, durable: bool = True) -> None:
    """Write `content` to `path` atomically; `durable` as for :func:`atomic_path`."""
    with atomic_path(path, durable=durable) as temporary:
        _put(temporary, content)


def _put(path: Path, content: bytes | memoryview) -> None:
    with open(path, "wb") as stream:
        stream.write(content)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically (UTF-8)."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, values: Any, *, sealed: bool = False) -> None:
    """Write `values` to `path` as JSON, atomically; NaN and infinity are refused, since JSON has none.

    Parameters
    ----------
    path : Path
        The file.
    values : object
        JSON values.
    sealed : bool
        Add a digest of them, a mapping, under ``seal``: :func:`read_json` then finds out whether they were altered. For
        files whose digest stands nowhere else.
    """
    if sealed:
        values = {**values, SEAL: digest_of(values)}
    write_text(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


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
        digits = next((n for n in range(6) if f"{needed / 1e6:.{n}f}" != f"{free / 1e6:.{n}f}"), 6)  # else told alike
        raise RunError(
            f"not enough disk space for the {what} {path}: about {needed / 1e6:.{digits}f} MB are needed, "
            f"{free / 1e6:.{digits}f} MB are free"
        )


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
        _put(temporary, archive.getbuffer())


def save_npy(path: Path, array: np.ndarray, *, durable: bool = True) -> None:
    """Write an array as ``.npy``, atomically; `durable` as for :func:`atomic_path`."""
    with atomic_path(path, durable=durable) as temporary, open(temporary, "wb") as stream:
        np.save(stream, array, allow_pickle=False)


def pack_names(names: Iterable[str]) -> np.ndarray:
    """Return names as one array of UTF-8 bytes, uint8, with a zero behind each; NumPy's own texts take 4 to a letter.

    Examples
    --------
    >>> pack_names(["a", "bc"]).tolist()
    [97, 0, 98, 99, 0]
    """
    text = "".join(f"{name}\0" for name in names)
    return np.frombuffer(text.encode("utf-8", "surrogateescape"), dtype=np.uint8)


def unpack_names(array: np.ndarray) -> list[str]:
    """Return the names that :func:`pack_names` has packed, or those of an array of NumPy's texts.

    Raises
    ------
    ValueError
        If it is neither.
    """
    if array.ndim == 1 and array.dtype.kind == "U":
        return [str(name) for name in array]
    if array.ndim != 1 or array.dtype != np.uint8 or (array.size and array[-1] != 0):
        raise ValueError(f"it must hold names as UTF-8 bytes, got {array.dtype} of shape {array.shape}")
    return array.tobytes().decode("utf-8", "surrogateescape").split("\0")[:-1]
