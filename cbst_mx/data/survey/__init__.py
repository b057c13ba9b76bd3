"""Looks at folders of photographs and label masks that nobody has described yet, and says what they are.

`files` tells photographs from masks, `pairs` finds which mask is whose, `rules` puts that into the globs and label
rules of a description, `values` counts the ids or colours in masks, `class_lists` reads the names that annotation tools
write beside them, `roles` says which images are for what. Nothing is written, and nothing is guessed silently: what was
left out or could be otherwise is a remark.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Sequence

from cbst_mx.data.datasets import existing_folder
from cbst_mx.data.doctor.layouts import LAYOUTS
from cbst_mx.data.image_files import Header
from cbst_mx.data.listing import all_images
from cbst_mx.data.photographs import is_result
from cbst_mx.data.survey.files import FileKinds, tell_apart
from cbst_mx.data.survey.pairs import Pairing, pair
from cbst_mx.data.survey.rules import ImageRule, LabelPattern, image_rule, label_rule
from cbst_mx.errors import DataError
from cbst_mx.messages import Progress, listed, silent

__all__ = ["ImageGroup", "Published", "Survey", "joined", "survey"]

# So many images without a label among labelled ones are a set of their own, not an oversight.
_MANY, _MANY_SHARE = 10, 0.2
# Words in folders' names that say nothing of which images these are.
_PLAIN = (
    "images",
    "image",
    "imgs",
    "img",
    "rgb",
    "photos",
    "photo",
    "pictures",
    "jpegimages",
    "frames",
    "color",
    "data",
)


@dataclass(frozen=True)
class ImageGroup:
    """Photographs that belong together: those of a folder and the folders in it.

    ``labels`` has the mask of each image, None where there is none; ``turned`` counts rotation marks of cameras.
    """

    name: str
    images: tuple[Path, ...]
    labels: tuple[Path | None, ...]
    sizes: Counter[tuple[int, int]]
    turned: int = 0
    grey: int = 0

    @property
    def labelled(self) -> int:
        """Number of the images that have a label."""
        return sum(label is not None for label in self.labels)


@dataclass(frozen=True)
class Published:
    """A data set in the layout of its publisher."""

    format: str
    root: Path


@dataclass(frozen=True)
class Survey:
    """What lies below a folder. ``remarks`` are sentences for the user, ``class_lists`` files that may name classes."""

    root: Path
    groups: tuple[ImageGroup, ...]
    published: tuple[Published, ...] = ()
    remarks: tuple[str, ...] = ()
    class_lists: tuple[Path, ...] = ()
    headers: dict[Path, Header] = field(default_factory=dict)

    def images_of(self, groups: Sequence[ImageGroup], labelled: bool = False) -> ImageRule:
        """Return the globs of some groups' images, and whether a list has to choose among what they fit.

        Raises
        ------
        DataError
            If no globs lead to them.
        """
        wanted = [path for group in groups for path, label in zip(group.images, group.labels) if label or not labelled]
        return image_rule(self.root, wanted)

    def labels_of(self, groups: Sequence[ImageGroup]) -> LabelPattern:
        """Return the rule that leads from some groups' images to their labels.

        Raises
        ------
        DataError
            If one rule does not fit all.
        """
        known = [(path, label) for group in groups for path, label in zip(group.images, group.labels) if label]
        return label_rule(self.root, known, [group.name for group in groups])


def joined(groups: Sequence[ImageGroup], name: str) -> ImageGroup:
    """Return several groups as one."""
    return ImageGroup(
        name,
        tuple(path for group in groups for path in group.images),
        tuple(path for group in groups for path in group.labels),
        sum((group.sizes for group in groups), Counter()),
        sum(group.turned for group in groups),
        sum(group.grey for group in groups),
    )


def survey(root: Path, *, exclude: Sequence[str] = (), recognise: bool = True, progress: Progress = silent) -> Survey:
    """Look at what lies below a folder.

    Parameters
    ----------
    root : Path
        The folder.
    exclude : sequence of str
        Folders and files to leave out, as paths or globs below `root`.
    recognise : bool
        Take the layouts of published data sets for what they look like.
    progress : callable, optional
        Called with (what, done, in all).

    Raises
    ------
    DataError
        If it is no folder, has no photographs, or it cannot be told which photograph a mask belongs to.
    """
    root = existing_folder(root, "folder", "a folder of photographs")
    published = _published(root) if recognise else ()
    listing = all_images(root)
    taken = [path for path in listing.files if not any(one.root in (path, *path.parents) for one in published)]
    kept = [path for path in taken if not _excluded(path.relative_to(root).as_posix(), exclude)]
    remarks = [f"files: {listing.remark()}"] if listing.remark() else []
    if len(kept) < len(taken):
        remarks.append(f"{len(taken) - len(kept):,} files left out as --exclude says")
    made = _made_by_us(root, kept)
    if made:
        remarks.append(f"{len(made):,} files of runs and predictions left out")
        kept = [path for path in kept if path not in made]
    kinds = tell_apart(root, kept, progress)
    remarks += kinds.remarks
    if not kinds.photographs and not published:
        raise DataError(
            f"folder {root} has no photographs: they must end in .png, .jpg or another of the endings that "
            "docs/your-own-data.md lists" + (f" ({listed(remarks, 3)})" if remarks else "")
        )
    pairing = pair(root, kinds.photographs, kinds.masks)
    remarks += pairing.remarks
    groups = _groups(root, kinds, pairing, remarks)
    beside = [path for pattern in ("*", "*/*") for path in sorted(root.glob(pattern)) if _may_name_classes(path)]
    return Survey(root, groups, published, tuple(remarks), tuple(beside[:20]), kinds.headers)


def _excluded(path: str, exclude: Sequence[str]) -> bool:
    parts = path.split("/")
    above = ["/".join(parts[: count + 1]) for count in range(len(parts))]
    return any(fnmatchcase(one, pattern.rstrip("/")) for pattern in exclude for one in above)


def _made_by_us(root: Path, files: Sequence[Path]) -> set[Path]:
    """Return the files in run folders and those that `predict` wrote: pseudo-labels are no truth."""
    runs: dict[Path, bool] = {root.parent: False}

    def in_run(folder: Path) -> bool:
        if folder not in runs:
            runs[folder] = all((folder / name).is_file() for name in ("manifest.json", "experiment.yaml"))
            runs[folder] = runs[folder] or in_run(folder.parent)
        return runs[folder]

    return {path for path in files if in_run(path.parent) or is_result(path)}


def _may_name_classes(path: Path) -> bool:
    words = ("class", "label", "palette", "legend", "meta", "color", "colour")
    return path.suffix.lower() in (".txt", ".csv", ".json") and any(word in path.stem.lower() for word in words)


def _published(root: Path) -> tuple[Published, ...]:
    """Return the data sets whose layouts a folder, or one in it, has."""
    places = [root, *sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))]
    found: list[Published] = []
    for place in places:
        for name, layout in LAYOUTS.items():
            if layout.marks and all(any(True for _ in place.glob(mark)) for mark in layout.marks):
                found.append(Published(name, place))
                break
        if found and place == root:
            break
    return tuple(found)


def _groups(root: Path, kinds: FileKinds, pairing: Pairing, remarks: list[str]) -> tuple[ImageGroup, ...]:
    by_folder: dict[tuple[str, ...], list[Path]] = {}
    for path in kinds.photographs:
        by_folder.setdefault(path.relative_to(root).parts[:-1], []).append(path)
    labelled = {folder: any(path in pairing.label for path in paths) for folder, paths in by_folder.items()}
    parts = _split([*by_folder], labelled)
    names = _names(parts)
    groups = []
    for name, folders in zip(names, parts):
        images = sorted(path for folder in folders for path in by_folder[folder])
        labels = [pairing.label.get(path) for path in images]
        wrong = [
            path for path, label in zip(images, labels) if label is not None and kinds.size(path) != kinds.size(label)
        ]
        if wrong:
            turned = sum(kinds.size(path) == kinds.size(pairing.label[path])[::-1] for path in wrong)
            of_turned = f", {turned} of them as if the picture were turned (EXIF)" if turned else ""
            remarks.append(
                f"{len(wrong):,} of the images of {name} left out: their labels have another size{of_turned} "
                f"({listed([path.relative_to(root).as_posix() for path in wrong], 3)})"
            )
            pairs = [(path, label) for path, label in zip(images, labels) if path not in set(wrong)]
            images, labels = [path for path, _ in pairs], [label for _, label in pairs]
        pairs = list(zip(images, labels))
        bare = [pair for pair in pairs if pair[1] is None]
        if len(bare) < len(pairs) and len(bare) >= max(_MANY, len(pairs) * _MANY_SHARE):
            remarks.append(
                f"{len(bare):,} of {len(pairs):,} images of {name} have no label: {name}-unlabelled is those"
            )
            groups += [_group(kinds, name, [pair for pair in pairs if pair[1] is not None])]
            groups += [_group(kinds, f"{name}-unlabelled", bare)]
        elif pairs:
            groups.append(_group(kinds, name, pairs))
    return tuple(groups)


def _group(kinds: FileKinds, name: str, pairs: Sequence[tuple[Path, Path | None]]) -> ImageGroup:
    headers = [kinds.headers[path] for path, _ in pairs]
    return ImageGroup(
        name,
        tuple(path for path, _ in pairs),
        tuple(label for _, label in pairs),
        Counter((header.height, header.width) for header in headers),
        sum(header.turn != 1 for header in headers),
        sum("grey" in header.colour for header in headers),
    )


def _split(
    folders: Sequence[tuple[str, ...]], labelled: dict[tuple[str, ...], bool], top: bool = True
) -> list[list[tuple[str, ...]]]:
    """Divide folders into groups: at the first place where they part, and below it where only some have labels."""
    if len(folders) == 1 or (not top and len({labelled[folder] for folder in folders}) == 1):
        return [sorted(folders)]
    depth = 0
    while all(len(folder) > depth for folder in folders) and len({folder[depth] for folder in folders}) == 1:
        depth += 1
    children: dict[str, list[tuple[str, ...]]] = {}
    for folder in folders:
        children.setdefault(folder[depth] if len(folder) > depth else "", []).append(folder)
    return [group for _, below in sorted(children.items()) for group in _split(below, labelled, top=False)]


def _names(parts: Sequence[Sequence[tuple[str, ...]]]) -> list[str]:
    """Return a name for each group of folders, of their common path without the words that say nothing."""
    paths = []
    for folders in parts:
        common = folders[0]
        for folder in folders:
            common = tuple(a for a, b in zip(common, folder) if a == b) if folder != common else common
        paths.append(common)
    telling = [tuple(word for word in path if word.lower() not in _PLAIN) or path[-1:] or ("images",) for path in paths]
    short = [path[-1] for path in telling]
    names = [one if short.count(one) == 1 else "-".join(path) for one, path in zip(short, telling)]
    names = [name if names.count(name) == 1 else "-".join(path) or "images" for name, path in zip(names, paths)]
    return [name if name.isprintable() and len(name) <= 60 else f"set-{place}" for place, name in enumerate(names, 1)]
