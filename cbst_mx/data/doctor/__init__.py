"""Checks a data root before a long run, and says what is wrong and what mends it.

Sizes, colour types and ends of all files are looked at; the pixels of a sample of each part (train, val, a city's
test images, ...) are read, or of all. What is found is a list of `Finding`: an "error" makes the data unusable, a
"warning" is odd but usable, a "note" is good to know. `layouts` knows where each format's files lie, `contents` looks
into them, `findings` holds what they note.
"""

from __future__ import annotations

from pathlib import Path

from cbst_mx.data import FORMATS
from cbst_mx.data.doctor.contents import check_files, check_pixels
from cbst_mx.data.doctor.findings import Examination, Finding, Report
from cbst_mx.data.doctor.layouts import LAYOUTS, open_any
from cbst_mx.data.image_files import PathLike
from cbst_mx.data.lists import list_path, select_listed
from cbst_mx.errors import ConfigError, DataError, check_choice
from cbst_mx.messages import Progress, silent

__all__ = ["Finding", "Report", "examine"]


def examine(
    dataset: str,
    root: PathLike,
    *,
    sample: int | None = 50,
    list: PathLike | None = None,
    split: str | None = None,
    city: str | None = None,
    labels: str | None = None,
    description: PathLike | None = None,
    progress: Progress = silent,
) -> Report:
    """Check a data root.

    Parameters
    ----------
    dataset : str
        Format that it should have, a key of `cbst_mx.data.FORMATS`.
    root : path
        The data root.
    sample : int or None
        How many images of each part are read pixel by pixel, spread evenly; None reads all.
    list : path, optional
        Check only the images this list names (see `cbst_mx.data.lists`).
    split : str, optional
        Only this split: "train", "val" or "test" of "cityscapes", "train" or "test" of "nthu", one of those that the
        description of a "folder" names. All of them if not given.
    city : str, optional
        Only this city of "nthu".
    labels : str, optional
        Which label files, as for `cbst_mx.data.open_labelled`.
    description : path, optional
        The YAML file, needed for "folder".
    progress : callable, optional
        Called with (what, done, in all).

    Raises
    ------
    ConfigError
        If an argument is wrong. What is wrong with the data is a finding, never an exception.
    """
    check_choice("dataset", dataset, FORMATS)
    options = {"split": split, "city": city, "labels": labels, "description": description}
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        if name not in FORMATS[dataset].options:
            raise ConfigError(f"{name} must not be given for {dataset}, got {str(value)!r}")
    if sample is not None and sample < 1:
        raise ConfigError(f"sample must be 1 or more, got {sample}")
    found = Examination(Path(root), listed=list is not None)
    layout = LAYOUTS.get(dataset)
    takes_list = FORMATS[dataset].takes_list
    if takes_list and list is not None:
        given["list"] = list
    if layout is None:
        open_any(found, dataset, **given)
    else:
        layout.open(found, **given)
    if list is not None and not takes_list:
        _keep_listed(found, list)
    elif list is None and layout is not None and layout.check_count is not None:
        for part in found.parts:
            layout.check_count(found, part)
    for part in found.parts:
        part.count = len(part.images)
        check_files(found, part, progress)
    return check_pixels(found, dataset, sample, progress)


def _keep_listed(found: Examination, list: PathLike) -> None:
    """Leave only the images that a list names."""
    if len(found.parts) > 1:
        names = ", ".join(part.name for part in found.parts)
        raise ConfigError(f"a list chooses among the images of one part, got {names}: give split or city as well")
    for part in found.parts:
        path = list_path(list, found.root)
        try:
            part.images = select_listed(part.images, path, found.root)
        except DataError as error:
            found.add("error", str(error), path, "correct the list, or unpack the images that it names")
