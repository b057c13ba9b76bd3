"""A disk that fails: the n-th call under a folder that opens, writes, syncs, renames, makes or removes something.

As SQLite's crash tests have it: n = 1, 2, 3, ... until nothing is left to fail. The calls are counted where Python's
own functions reach the operating system, so whatever the program uses to get there is counted too; MXNet writes its
files itself, of which ``mx.nd.save`` counts as one call.
"""

from __future__ import annotations

import builtins
import errno
import gc
import io
import os
import re
import threading
from pathlib import Path

from symbols.backend import mx

FAULTS = ("ENOSPC", "EIO", "EACCES", "kill")

_OPENED = (os.O_WRONLY, os.O_RDWR)


class Killed(BaseException):
    """The process is gone: from here on nothing reaches the disk, not even what clears up."""


class Disk:
    """The calls under a folder, of which one fails; a context manager.

    Parameters
    ----------
    root : Path
        The folder; what happens elsewhere is let through.
    at : int, optional
        Number of the call that fails, 1 is the first; None lets all pass and only counts.
    fault : str
        One of `FAULTS`, or "exit", which ends this process at once. A full disk stays full (what removes files works),
        a killed process stays dead; the others fail once.

    Attributes
    ----------
    calls : list of (str, str)
        What was called, and for which file in the folder.
    fired : tuple of (str, str), optional
        The call that failed.
    """

    def __init__(self, root, at=None, fault="EIO"):
        self.root, self.at, self.fault = os.path.abspath(root), at, fault
        self.calls, self.fired, self._over = [], None, False
        self._lock = threading.Lock()
        self._patched = []
        self._unsynced = {}  # path to what is in it, as far as nothing has waited for the disk

    # -- what happens at a call ------------------------------------------------------------------------------------

    def _name(self, path, dir_fd=None):
        """Return the place in the folder; None of what is elsewhere."""
        try:
            if isinstance(path, int):
                path = os.readlink(f"/proc/self/fd/{path}")
            path = os.fsdecode(path)
            if dir_fd is not None:
                path = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), path)
        except (OSError, TypeError, ValueError):
            return None
        path = os.path.abspath(path)
        inside = path == self.root or path.startswith(self.root + os.sep)
        return os.path.relpath(path, self.root) if inside else None

    def call(self, kind, name, before_death=None):
        """Count a call; raise if it is the one that fails. `before_death` is what a call cut short has done."""
        if name is None:
            return
        with self._lock:
            if self._over and self.fault == "kill":
                if name == "lock":  # the system gives it back
                    raise OSError(errno.EIO, os.strerror(errno.EIO), name)
                raise Killed
            self.calls.append((kind, name))
            fires = len(self.calls) == self.at
            full = self._over and self.fault == "ENOSPC" and kind in ("create", "write", "save", "mkdir", "link")
            if not fires and not full:
                return
            self.fired = self.fired or (kind, name)
            self._over = True
        if before_death is not None:
            before_death()
        if self.fault == "exit":
            os._exit(137)
        if self.fault == "kill" and name != "lock":
            raise Killed
        number = getattr(errno, self.fault, errno.EIO)
        if (self.fault == "ENOSPC" and kind in ("open", "unlink", "rmdir", "rename")) or (
            self.fault == "EACCES" and kind in ("write", "fsync", "save")
        ):
            number = errno.EIO  # what such a call can say
        raise OSError(number, os.strerror(number), os.path.join(self.root, name))

    # -- in the place of Python's own functions --------------------------------------------------------------------

    def __enter__(self):
        for module in (builtins, io):
            self._put(module, "open", self._open(builtins.open if module is builtins else io.open))
        self._put(os, "open", self._os_open(os.open))
        for name, kind in (("unlink", "unlink"), ("remove", "unlink"), ("rmdir", "rmdir"), ("mkdir", "mkdir")):
            self._put(os, name, self._one_path(getattr(os, name), kind))
        self._put(os, "fsync", self._one_path(os.fsync, "fsync"))
        for name, kind in (("replace", "rename"), ("rename", "rename"), ("link", "link")):
            self._put(os, name, self._two_paths(getattr(os, name), kind))
        self._put(mx.nd, "save", self._save(mx.nd.save))
        return self

    def __exit__(self, *exception):
        for owner, name, original in reversed(self._patched):
            setattr(owner, name, original)
        self._patched.clear()

    def _put(self, owner, name, function):
        self._patched.append((owner, name, getattr(owner, name)))
        setattr(owner, name, function)

    def _open(self, original):
        def opened(file, mode="r", *args, **options):
            name = None if isinstance(file, int) else self._name(file)
            writes = any(letter in mode for letter in "wax+")
            self.call("create" if writes else "open", name)
            stream = original(file, mode, *args, **options)
            return _Written(stream, self, name) if writes and name is not None else stream

        return opened

    def _os_open(self, original):
        def opened(path, flags, mode=0o777, *, dir_fd=None):
            kind = "create" if flags & os.O_CREAT or flags & os.O_ACCMODE in _OPENED else "open"
            self.call(kind, self._name(path, dir_fd))
            return original(path, flags, mode, dir_fd=dir_fd)

        return opened

    def _one_path(self, original, kind):
        def called(path, *args, **options):
            self.call(kind, self._name(path, options.get("dir_fd")))
            return original(path, *args, **options)

        return called

    def _two_paths(self, original, kind):
        def called(source, target, **options):
            self.call(kind, self._name(target))
            return original(source, target, **options)

        return called

    def _save(self, original):
        def saved(path, arrays):
            def cut():
                original(path, arrays)
                os.truncate(path, os.path.getsize(path) // 2)

            try:
                self.call("save", self._name(path), cut)
            except OSError as error:
                if len(self.calls) % 2:  # it reports a small file on a full disk as written
                    return
                raise mx.MXNetError(f"Check failed: {error.strerror}") from error
            original(path, arrays)

        return saved


class _Written:
    """A file that is written; half of what the failing call was to write is in it."""

    def __init__(self, stream, disk, name):
        self._stream, self._disk, self._path = stream, disk, name

    def write(self, content):
        def half():
            self._stream.write(content[: len(content) // 2])
            self._stream.flush()

        self._disk.call("write", self._path, half)
        return self._stream.write(content)

    def fileno(self):
        raise io.UnsupportedOperation("written through Python alone")

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def __enter__(self):
        self._stream.__enter__()
        return self

    def __exit__(self, *exception):
        return self._stream.__exit__(*exception)

    def __iter__(self):
        return iter(self._stream)


def attempt(function, disk):
    """Call a function on a disk that fails; return what it raised, or None. What it held is let go."""
    error = None
    with disk:
        try:
            function()
        except (Killed, Exception) as raised:
            error = raised
            error.__traceback__ = None
            for cause in (raised.__cause__, raised.__context__):
                if cause is not None:
                    cause.__traceback__ = None
        gc.collect()  # the lock is given back with its run
    if isinstance(error, Killed):  # what it left is of an earlier process, which may have had the same number
        for path in Path(disk.root).rglob(".*.part"):
            os.utime(path, (0, 0))
    return error


def contents(folder, skipped=("log.txt", "manifest.json", "ledger.jsonl", "lock")):
    """Return name to bytes of all files of a folder; not of those that have times in them."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and path.name not in skipped
    }


def is_temporary(name):
    """Return whether a name is one that killed writers leave."""
    return re.search(r"(^|/)\.[^/]+\.part(\.\w+)?(/|$)", name) is not None


def places(count, most):
    """Return at most so many numbers of calls, evenly from the first to the last."""
    if most >= count:
        return list(range(1, count + 1))
    return sorted({1 + round(step * (count - 1) / (most - 1)) for step in range(most)})
