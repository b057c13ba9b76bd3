"""What a run folder may not do to those who open it: names and links in it must not lead out of it.

Run folders are passed on. A name in a ledger is joined to the folder, and files in it are written anew, so a name such
as ``../x`` or a link to somewhere else would read or write there.
"""

from __future__ import annotations

import os
from pathlib import Path

from cbst_mx.errors import RunError
from cbst_mx.files import in_one_line

__all__ = ["below", "check_links", "leads_out"]


def below(folder: Path, name: str) -> Path:
    """Return the path of a file that a record in a folder names, by its path below the folder with slashes.

    Raises
    ------
    ValueError
        If the name leads out of the folder, or cannot be shown.
    """
    parts = name.split("/")
    if not name.isprintable() or "\\" in name or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{name[:100]!r} is no path below the folder")
    return folder.joinpath(*parts)


def check_links(folder: Path) -> None:
    """Refuse a folder with links out of it: what is written to them would be written elsewhere.

    Parameters
    ----------
    folder : Path
        Looked through with all folders below it; it may itself be a link.

    Raises
    ------
    RunError
        If a link leads out of it, or a folder cannot be read.
    """
    waiting, top = [folder], os.path.realpath(folder)
    try:
        while waiting:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_symlink():
                        if _is_outside(entry.path, top):
                            raise RunError(
                                f"{entry.path} is a link that leads out of {folder}: put the file itself in its place"
                            )
                    elif entry.is_dir(follow_symlinks=False):
                        waiting.append(Path(entry.path))
    except OSError as error:
        raise RunError(f"{folder} cannot be read: {in_one_line(error)}") from error


def leads_out(path: Path, folder: Path) -> bool:
    """Return whether links on the way to a file of a folder lead out of that folder."""
    return _is_outside(os.fspath(path), os.path.realpath(folder))


def _is_outside(path: str, top: str) -> bool:
    target = os.path.realpath(path)
    return os.path.commonpath([top, target]) != top
