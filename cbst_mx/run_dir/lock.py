"""One process per folder or file: a lock that the operating system takes back when its process ends, however that ends.

The lock is ``flock`` on the file ``lock`` in the folder, which says who holds it and is removed at the end. A file that
a killed process left is no lock and is taken over, so nothing ever has to be unlocked by hand. Commands that only read
take none. Where a file system has no locks (some network file systems), the log says so and work goes on without one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import socket
import threading
import weakref
from datetime import datetime, timezone
from pathlib import Path

from cbst_mx.errors import RunError
from cbst_mx.files import make_folder, read_bounded

try:
    import fcntl
except ImportError:  # not a system of the POSIX family
    fcntl = None  # type: ignore[assignment]

__all__ = ["LOCK", "Lock", "lock_file", "lock_folder", "lock_owner"]

logger = logging.getLogger(__name__)

LOCK = "lock"  # name of the file in the folder

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_LONGEST_NAME = 255  # bytes, on the usual file systems
_LONGEST = 1000  # bytes of what a lock's file says
_NO_LINK, _NO_WAIT = getattr(os, "O_NOFOLLOW", 0), getattr(os, "O_NONBLOCK", 0)
_held: weakref.WeakValueDictionary[Path, Lock] = weakref.WeakValueDictionary()  # by this process
_guard = threading.Lock()


class Lock:
    """A folder held by this process; given back when the object is gone or the process ends.

    Parameters
    ----------
    path : Path
        File of the lock.
    descriptor : int, optional
        Open file with the lock; None where the file system has none.
    """

    def __init__(self, path: Path, descriptor: int | None):
        self.path = path
        self.release = weakref.finalize(self, _release, path, descriptor, os.getpid())

    @property
    def works(self) -> bool:
        """Whether the file system keeps other processes out."""
        return self._descriptor is not None

    @property
    def _descriptor(self) -> int | None:
        found = self.release.peek()
        return None if found is None else found[2][1]


def lock_folder(folder: Path, what: str = "run folder") -> Lock:
    """Keep other processes out of a folder for as long as the returned object lives.

    Parameters
    ----------
    folder : Path
        Made when it does not exist.
    what : str
        Name of the folder's kind in sentences.

    Returns
    -------
    Lock
        The same object where this process holds the folder already.

    Raises
    ------
    RunError
        If another process holds it, or the file of the lock cannot be written.
    """
    return _lock(folder, LOCK, folder, what)


def lock_file(path: Path, what: str) -> Lock:
    """Keep other processes from writing a file for as long as the returned object lives; others in its folder may.

    Parameters
    ----------
    path : Path
        The file, which need not exist; the lock is ``.NAME.lock`` beside it.
    what : str
        Name of the file's kind in sentences.

    Raises
    ------
    RunError
        If another process holds it, or the file of the lock cannot be written.
    """
    name = f".{path.name}.{LOCK}"
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:32]}.{LOCK}"
    return _lock(path.absolute().parent, name, path, what)


def _lock(folder: Path, name: str, shown: Path, what: str) -> Lock:
    with _guard:
        try:
            make_folder(folder)
            path = folder.resolve() / name
            held = _held.get(path)
            if held is None or not held.release.alive:
                held = _held[path] = Lock(path, _acquire(path, shown, what))
        except OSError as error:
            raise RunError(f"cannot lock the {what} {shown}: {error.strerror or error}") from error
    if not held.works:
        logger.warning("%s %s: the file system has no locks, let no other process work in it", what, shown)
    return held


def lock_owner(folder: Path) -> str | None:
    """Return who works in a folder, in words; None where nobody seems to. Takes no lock, so that nobody is kept out."""
    path = folder / LOCK
    if not path.is_file():
        return None
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        values = json.loads(read_bounded(path, _LONGEST))
        if values["host"] == socket.gethostname():
            try:
                os.kill(int(values["process"]), 0)
            except ProcessLookupError:  # killed
                return None
    return _owner(path)


def _acquire(path: Path, shown: Path, what: str) -> int | None:
    """Return the open file with the lock; None where the file system has none."""
    while True:
        # neither a link, whose target would be written into, nor a pipe, which would be waited for
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _NO_LINK | _NO_WAIT, 0o666)
        try:
            if fcntl is None:
                raise OSError(errno.ENOSYS, "no locks")
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # a process that gives its lock back removes the file: what was locked here may be what it removed
            if not _is_at(descriptor, path):
                os.close(descriptor)
                continue
            owner = {
                "host": socket.gethostname(),
                "process": os.getpid(),
                "since": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            }
            with contextlib.suppress(OSError):  # full disk: the lock holds, it only cannot say whose it is
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, (json.dumps(owner) + "\n").encode(), 0)
            return descriptor
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise RunError(f"{what} {shown} is in use by {_owner(path)}: wait for its end, or stop it") from error
            if error.errno not in _NO_LOCKS:
                raise
            with contextlib.suppress(OSError):
                path.unlink()
            return None


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _owner(path: Path) -> str:
    """Return who says in the file of a lock that it holds it."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        values = json.loads(read_bounded(path, _LONGEST))
        return f"process {int(values['process'])} on {str(values['host'])[:100]!r} (since {str(values['since'])[:40]})"
    return "another process"


def _release(path: Path, descriptor: int | None, process: int) -> None:
    """Remove the file and give the lock back; a forked child does neither, since the lock is its parent's."""
    if descriptor is None:
        return
    try:
        if process == os.getpid():
            with contextlib.suppress(OSError):
                if _is_at(descriptor, path):
                    path.unlink()
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)
