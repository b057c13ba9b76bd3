"""Files made once from a data set's own: labels as trainIds, images of one size.

Originals are never written to. What is there already is not made again, and files appear whole or not at all, so a run
that was stopped continues where it was.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Callable, Sequence

from PIL import Image

from cbst_mx.data.datasets import LabelledImageSet
from cbst_mx.data.image_files import (
    PathLike,
    read_header,
    read_label,
    read_rgb,
    write_label_png,
    write_palette_png,
    write_rgb_png,
)
from cbst_mx.data.transforms import resize_image, resize_label
from cbst_mx.errors import DataError, RunError
from cbst_mx.files import atomic_path, link_file
from cbst_mx.messages import Counter, silent

__all__ = ["resize_pairs", "write_missing", "write_train_ids"]


def write_missing(
    outputs: Sequence[Path], write: Callable[[int], None], *, workers: int = 1, progress: Counter = silent
) -> int:
    """Call ``write(i)`` for every i whose output is not there yet.

    Parameters
    ----------
    outputs : sequence of Path
        Files to write.
    write : callable
        Writes output i, whole or not at all; called from several threads.
    workers : int
        Number of threads, 1 or more.
    progress : callable, optional
        Called with how many outputs are there and how many there will be.

    Returns
    -------
    int
        How many were written.

    Raises
    ------
    CBSTError
        The first one that `write` raised; what has been written by then stays.
    """
    # One listing per folder: asking for each of 25,000 files takes minutes on a network drive.
    listings = {folder: set(os.listdir(folder)) for folder in {path.parent for path in outputs} if folder.is_dir()}
    todo = [i for i, path in enumerate(outputs) if path.name not in listings.get(path.parent, ())]
    done = len(outputs) - len(todo)
    with ThreadPoolExecutor(workers) as pool:  # leaving it waits for what is being written: no file stays half-made
        futures = [pool.submit(write, i) for i in todo]
        try:
            for future in as_completed(futures):
                future.result()
                done += 1
                progress(done, len(outputs))
        finally:
            for future in futures:
                future.cancel()
    return len(todo)


def write_train_ids(
    images: LabelledImageSet, outputs: Sequence[Path], *, workers: int = 1, progress: Counter = silent
) -> int:
    """Write the labels of a set as 8-bit palette PNGs of trainIds.

    Parameters
    ----------
    images : LabelledImageSet
        Images whose labels are read; they stay as they are.
    outputs : sequence of Path
        One file per image, none of them a label of the set.
    workers, progress
        As for `write_missing`.

    Returns
    -------
    int
        How many were written.

    Raises
    ------
    DataError
        If a label cannot be read.
    RunError
        If an output is an original or cannot be written.
    """
    _refuse_originals(outputs, [*images.label_paths, *images.image_paths])

    def write(index: int) -> None:
        write_label_png(outputs[index], images.label(index), images.label_space)

    return write_missing(outputs, write, workers=workers, progress=progress)


def resize_pairs(
    images: LabelledImageSet,
    image_folder: PathLike,
    label_folder: PathLike,
    size: tuple[int, int],
    *,
    workers: int = 1,
    progress: Counter = silent,
) -> int:
    """Copy images and their label files to other folders, all of one size.

    Images are resized bilinearly; labels take the nearest pixel and keep raw ids and palette. A file that has the size
    already is linked (a hard link, which takes no space), or copied where the file system cannot.

    Parameters
    ----------
    images : LabelledImageSet
        Images with 8-bit palette or grey labels; both stay as they are.
    image_folder, label_folder : path
        Where the results go, under the same file names.
    size : (int, int)
        Height and width in pixels.
    workers, progress
        As for `write_missing`.

    Returns
    -------
    int
        How many files were written or linked.

    Raises
    ------
    DataError
        If a file cannot be read, or there is a result of another size.
    RunError
        If a folder holds originals or cannot be written.
    """
    originals = [*images.image_paths, *images.label_paths]
    outputs = [Path(image_folder) / path.name for path in images.image_paths]
    outputs += [Path(label_folder) / path.name for path in images.label_paths]
    _refuse_originals(outputs, originals)
    for output in outputs:
        if output.exists() and _size(output) != size:
            raise DataError(
                f"{output} must be {size[0]} x {size[1]}, got {_size(output)[0]} x {_size(output)[1]}: "
                "delete it or choose another folder"
            )

    def write(index: int) -> None:
        original, output = originals[index], outputs[index]
        if _size(original) == size:
            _link(original, output)
        elif index < len(images):
            write_rgb_png(output, resize_image(read_rgb(original), size))
        else:
            with Image.open(original) as file:
                palette = bytes(file.getpalette() or [value for grey in range(256) for value in (grey, grey, grey)])
            write_palette_png(output, resize_label(read_label(original), size), palette)

    return write_missing(outputs, write, workers=workers, progress=progress)


def _size(path: Path) -> tuple[int, int]:
    header = read_header(path)
    return header.height, header.width


def _link(original: Path, output: Path) -> None:
    with atomic_path(output, durable=False) as temporary:
        link_file(original, temporary)


def _refuse_originals(outputs: Sequence[Path], originals: Sequence[Path]) -> None:
    # Folders are resolved, files are not: a link in an original's place would be replaced, not followed.
    folders = {folder: folder.resolve() for folder in {path.parent for path in (*outputs, *originals)}}
    taken = {(folders[path.parent], path.name) for path in originals}
    for output in outputs:
        if (folders[output.parent], output.name) in taken:
            raise RunError(f"{output} is an original and is never overwritten: choose another folder")
