"""Which images are the source, the target, and those to evaluate on: what folders' names and labels say of it."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Sequence

from cbst_mx.data import FORMATS, open_images
from cbst_mx.data.image_files import read_header
from cbst_mx.data.survey import ImageGroup, Survey
from cbst_mx.errors import DataError
from cbst_mx.messages import listed

__all__ = ["Candidate", "Roles", "candidates", "suggest"]

_MEASURED = ("val", "valid", "validation", "test", "testing", "check", "eval", "evaluation", "holdout", "heldout")
_TARGET = ("target", "unlabelled", "unlabeled", "real", "dusk", "night", "fog", "rain", "snow")
_LOOKED_AT = 40  # images of a published data set


@dataclass(frozen=True)
class Candidate:
    """Images that may be the source, the target or for evaluation: a group of a survey, or published data."""

    name: str
    count: int
    labelled: int
    sizes: Counter[tuple[int, int]]
    group: ImageGroup | None = None
    data: tuple[tuple[str, Any], ...] = ()  # format, root and split of published data
    folder: Path | None = None  # of published images

    @property
    def format(self) -> str:
        """Format of the data."""
        return dict(self.data).get("format", "folder")


@dataclass(frozen=True)
class Roles:
    """Names of the candidates by what they are for, and why."""

    source: str
    target: str
    evaluate: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    open_questions: tuple[str, ...] = ()  # those of "source", "target", "evaluate" that more than one could be


def candidates(found: Survey) -> list[Candidate]:
    """Return all images that a survey found, by what they could be used as.

    Raises
    ------
    DataError
        If published data cannot be opened.
    """
    result = [Candidate(one.name, len(one.images), one.labelled, one.sizes, one) for one in found.groups]
    for one in found.published:
        splits: Sequence[str | None] = (None,)
        if one.format == "cityscapes":
            splits = [name for name in ("train", "val") if (one.root / "leftImg8bit" / name).is_dir()]
        elif FORMATS[one.format].needed:
            continue
        for split in splits:
            result.append(_published(one.format, one.root, split, found.root))
    return result


def _published(format: str, root: Path, split: str | None, above: Path) -> Candidate:
    images = open_images(format, root, split=split)
    looked_at = images.image_paths[:: max(1, len(images) // _LOOKED_AT)]
    headers = [read_header(path) for path in looked_at]
    usual = Counter((header.height, header.width) for header in headers).most_common(1)[0][0]
    data = (("format", format), ("root", str(root.resolve())), *((("split", split),) if split else ()))
    name = format if root == above else root.name
    place = Path(os.path.commonpath([str(path.parent) for path in images.image_paths]))
    name = f"{name}-{split}" if split else name
    return Candidate(name, len(images), len(images), Counter({usual: len(images)}), None, data, place)


def suggest(
    found: Sequence[Candidate],
    source: str | None = None,
    target: str | None = None,
    evaluate: Sequence[str] | None = None,
) -> Roles:
    """Say which images are for what.

    Parameters
    ----------
    found : sequence of Candidate
        From `candidates`.
    source, target : str, optional
        Names that are settled.
    evaluate : sequence of str, optional
        Names that are settled; empty for none.

    Raises
    ------
    DataError
        If a name is none of the candidates', nothing has labels, or nothing is left for the target.
    """
    by_name = {one.name: one for one in found}
    known = listed([*by_name], 20)
    for option, name in (("source", source), ("target", target), *(("evaluate", one) for one in evaluate or ())):
        if name is not None and name not in by_name:
            raise DataError(f"--{option} must be one of {known}, got {name!r}")
        if name is not None and option != "target" and not by_name[name].labelled:
            raise DataError(f"--{option} {name} must have labels, and no mask belongs to any of its images")
    if not any(one.labelled for one in found):
        raise DataError(
            f"no image has a label (looked at: {known}): labels are masks with the names of their images, perhaps with "
            "a word behind (0001.jpg, 0001_mask.png), in the same folders or in others that are alike (day, day-masks)"
        )
    reasons, unknown = [], []
    if target is None:
        target, why, sure = _target(found, source, evaluate or ())
        reasons.append(f"target: {target} ({why})")
        unknown += [] if sure else ["target"]
    rest = [one for one in found if one.labelled and one.name != target and one.name not in (evaluate or ())]
    if source is None:
        learnt = [one for one in rest if not _words(one.name, _MEASURED)] or rest
        if not learnt:
            raise DataError(
                f"no labelled images are left to learn from, beside the target {target}: name them, --source"
            )
        alone = [one for one in learnt if not _related(one.name, target)] or learnt
        source = max(alone, key=lambda one: one.labelled).name
        reasons.append(f"source: {source} ({'labelled' if len(rest) == 1 else 'most labels'})")
        unknown += ["source"] if len(rest) > 1 else []
    if evaluate is None:
        others = [one.name for one in rest if one.name != source]
        near = [name for name in others if _related(name, target)]
        if by_name[target].labelled and not near:
            near = [target]
        evaluate = near or [name for name in others if _words(name, _MEASURED)]
        if evaluate:
            reasons.append(f"evaluation: {listed(evaluate)} (labelled, and named like {'it' if near else 'a check'})")
        unknown += ["evaluate"] if others else []
    if source == target:
        raise DataError(f"source and target must be different images, got {source!r} for both")
    return Roles(source, target, tuple(evaluate), tuple(reasons), tuple(unknown))


def _target(found: Sequence[Candidate], source: str | None, evaluate: Sequence[str]) -> tuple[str, str, bool]:
    """Return the name of the target, why it is that, and whether it could be no other."""
    bare = [one for one in found if not one.labelled and one.name != source]
    if bare:
        named = [one for one in bare if _words(one.name, _TARGET)] or bare
        best = max(named, key=lambda one: one.count)
        return best.name, "without labels" if len(bare) == 1 else "most images without labels", len(bare) == 1
    rest = [one for one in found if one.name != source]
    named = [one for one in rest if _words(one.name, _TARGET) and not _words(one.name, _MEASURED)]
    # of data with labels throughout, what is named so, or has fewer labels; the most labels are the source's
    rest = named or sorted(rest, key=lambda one: -one.labelled)[0 if source is not None else 1 :]
    rest = [one for one in rest if one.format != "gta5"]
    if not rest:
        other = ", or name one of the folders with --target" if len(found) > 1 else ""
        raise DataError(
            "all images have labels and are of one kind: put the images to adapt to, which need no labels, into a "
            f"folder of their own{other}"
        )
    return rest[0].name, "its labels are used for evaluation alone", False


def _parts(name: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[^\W\d_]+", name)]


def _words(name: str, words: Sequence[str]) -> bool:
    return any(part in words for part in _parts(name))


def _related(name: str, target: str) -> bool:
    """Return whether two names share a word that says what the images are."""
    plain = {*_MEASURED, "train", "training", "set", "images", "unlabelled", "unlabeled", "labelled", "labeled"}
    return bool((set(_parts(name)) & set(_parts(target))) - plain)
