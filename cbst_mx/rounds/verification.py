"""Whether the images and labels of a run are still those that its steps used."""

from __future__ import annotations

from typing import Iterator, Mapping, NamedTuple

from cbst_mx.data import ImageSet
from cbst_mx.errors import CBSTError, ConfigError
from cbst_mx.evaluation.run_results import RunResults
from cbst_mx.messages import Progress, listed, silent
from cbst_mx.rounds.inputs import InputFiles, Listing, find_changes

__all__ = ["Images", "verify_images"]

_SHOWN = 20  # names of one kind of change


class Images(NamedTuple):
    """What was found of the images of a run."""

    problems: list[str]  # sentences that name what changed, is missing or was added, set by set
    looked_at: int  # images
    remark: str = ""  # why none were looked at


def verify_images(run: RunResults, *, full: bool = False, progress: Progress = silent) -> Images:
    """Compare the images and labels of a run with their digests in ``inputs.json``.

    Parameters
    ----------
    run : RunResults
        The run.
    full : bool
        Read all files. Else those whose size and time of change are as recorded are taken as unaltered, which takes a
        look into the folder per file.
    progress : callable, optional
        Called with (what, files read, files in all).
    """
    files = InputFiles({}, progress)
    files.load(run.folder.inputs)
    recorded = files.known
    if not recorded:
        name = run.folder.inputs.name
        if run.folder.inputs.is_file():
            return Images([f"{name} is damaged: remove it, and the next command writes it anew"], 0)
        return Images([], 0, f"images were not looked at: {name} is not there")
    sets, problems, remark = _open(run)
    current = InputFiles({name: sets[name] for name in recorded if name in sets}, progress)
    current.known = {} if full else recorded
    looked_at = 0
    for name, before in recorded.items():
        if name not in sets:
            continue
        try:
            now = current.listing(name)
        except CBSTError as error:
            problems.append(f"{name} images: {error}")
            continue
        looked_at += len(now)
        problems += [f"{name} images: {text}" for text in _changes(before, now)]
    return Images(problems, looked_at, remark)


def _open(run: RunResults) -> tuple[Mapping[str, ImageSet], list[str], str]:
    """Return the image sets of a run that can be opened, what is wrong with others, and why none could be."""
    settings = run.settings
    sets: dict[str, ImageSet] = {}
    problems = []
    for name, open_set in (("source", settings.open_source), ("target", settings.open_target)):
        try:
            sets[name] = open_set()
        except ConfigError as error:  # where the data are is not said
            return {}, [], f"images were not looked at: {error}"
        except CBSTError as error:
            problems.append(f"{name} images: {error}")
    try:
        sets.update({f"validation {name}": images for name, images in settings.open_validation().items()})
    except CBSTError as error:
        problems.append(f"validation images: {error}")
    return sets, problems, ""


def _changes(before: Listing, now: Listing) -> Iterator[str]:
    """Yield a sentence for each kind of change between two listings, with the names."""
    found = find_changes(before, now)
    for what, names in (
        ("changed", found.images),
        ("with a changed label", found.labels),
        ("missing", found.removed),
        ("added", found.added),
    ):
        if names:
            yield f"{len(names):,} {what}: {listed(names, _SHOWN)}"
