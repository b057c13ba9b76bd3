"""Image lists: text files that name the images to use, one per line.

::

    # everything after a number sign is a comment
    00001.png
    17                                                          # 00017 of GTA5, 0000017 of SYNTHIA
    images/00018.png    labels/00018.png                        # only the first column counts
    frankfurt/frankfurt_000000_000294_leftImg8bit.png
    frankfurt_000000_000294

A line names an image by its path, its file name or its bare name, so the lists that come with released programs can be
used as they are. Lists choose, they do not order: the images keep the data set's order.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Sequence, TypeVar

from cbst_mx.data.datasets import ImageSet
from cbst_mx.data.image_files import PathLike
from cbst_mx.errors import DataError
from cbst_mx.messages import listed

__all__ = ["find_listed", "list_path", "read_list", "select_listed"]

_Images = TypeVar("_Images", bound=ImageSet)

_ENDINGS = (".png", ".jpg", ".jpeg")
_CITYSCAPES = "_leftImg8bit"


def list_path(list: PathLike, root: PathLike) -> Path:
    """Return the path of a list: absolute, or below the data root."""
    return Path(root) / list


def read_list(path: PathLike) -> tuple[str, ...]:
    """Read the names of a list, as they are written there.

    Raises
    ------
    DataError
        If the file is missing, no text or names nothing.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise DataError(f"image list {path} does not exist (a relative path starts at the data root)") from error
    except UnicodeDecodeError as error:
        raise DataError(f"image list {path} must be text in UTF-8, one image per line") from error
    except OSError as error:
        raise DataError(f"image list {path} cannot be read: {error.strerror or error}") from error
    rows = [line.split("#", 1)[0].split() for line in lines]
    names = tuple(row[0] for row in rows if row)
    if not names:
        raise DataError(f"image list {path} names no image")
    return names


def find_listed(names: Sequence[str], entries: Sequence[str], origin: str) -> list[int]:
    """Find the images of a list.

    Parameters
    ----------
    names : sequence of str
        Names of an `ImageSet`.
    entries : sequence of str
        Entries of the list, from `read_list`.
    origin : str
        The list's name, for the message.

    Returns
    -------
    list of int
        Ascending indices into `names`.

    Raises
    ------
    DataError
        If a name is unknown or comes twice.
    """
    by_name = {name: index for index, name in enumerate(names)}
    # "17" may stand for "00017"; ASCII digits only, since int() takes more than that.
    by_number = {int(name): index for index, name in enumerate(names) if _is_number(name)}
    found: dict[int, str] = {}
    unknown = []
    for entry in entries:
        name = _bare(entry)
        index = by_name.get(name, by_number.get(int(name)) if _is_number(name) else None)
        if index is None:
            unknown.append(entry)
        elif index in found:
            raise DataError(f"image list {origin} must name an image once, got {found[index]!r} and {entry!r}")
        else:
            found[index] = entry
    if unknown:
        raise DataError(
            f"image list {origin} names {len(unknown)} of {len(entries)} images that are not there: {listed(unknown)} "
            f"(the data have {len(names)} images, such as {names[0] if names else 'none'})"
        )
    return sorted(found)


def select_listed(images: _Images, list: PathLike | None, root: PathLike) -> _Images:
    """Return the images that a list names, or all of them if there is no list.

    Parameters
    ----------
    images : ImageSet
        Labelled or not.
    list : path or None
        The text file; a relative path starts at `root`.
    root : path
        The data root.

    Raises
    ------
    DataError
        If the list cannot be used or names images that are not there.
    """
    if list is None:
        return images
    path = list_path(list, root)
    return images.subset(find_listed(images.names, read_list(path), str(path)))  # type: ignore[return-value]


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _bare(entry: str) -> str:
    name = PurePosixPath(entry.replace("\\", "/")).name
    for ending in _ENDINGS:
        if name.lower().endswith(ending):
            name = name[: -len(ending)]
            break
    return name[: -len(_CITYSCAPES)] if name.endswith(_CITYSCAPES) else name
