"""Your own images, described by a YAML file.

::

    label_space:                      # your own classes ...
      name: camvid-11
      names: [sky, building, pole]                                      # by trainId
      palette: [[128, 128, 128], [128, 0, 0], [192, 192, 128]]          # RGB by trainId
      ids: {0: 0, 1: 1, 2: 2, 11: ignore}                               # id in the label files -> trainId
    splits:
      day:
        images: ["train/0006R0_*.png", "val/*.png"]                     # globs below the data root
        labels: "{folder}annot/{stem}.png"                              # below the data root; may be left out
      dusk:
        images: ["train/0001TP_*.png"]

or, in place of your own classes, those of a known label space and the convention of the ids in the label files::

    label_space: cityscapes-19
    ids: cityscapes                   # or trainId, or a mapping as above, or colours

``{folder}`` is the image's folder below the root, ``{stem}`` its file name without the ending. An image's name is its
stem, with the folder in front where two images of a split have the same stem. docs/your-own-data.md has every key:
colour masks, labels found by replacing parts of the image's path, images without labels, lists; and the formats that
are read.
"""

from __future__ import annotations

from pathlib import Path

from cbst_mx.data.datasets import Format, ImageSet, LabelledImageSet, existing_folder
from cbst_mx.data.description import FolderDescription, FolderSplit, label_space, read_description, read_label_space
from cbst_mx.data.image_files import PathLike, read_label
from cbst_mx.data.label_files import files_below
from cbst_mx.data.listing import Listing, matching_images, merged, names_below
from cbst_mx.data.lists import select_listed
from cbst_mx.errors import ConfigError, DataError
from cbst_mx.files import reading
from cbst_mx.label_space import LabelSpace
from cbst_mx.messages import counted

__all__ = [
    "FORMAT",
    "FolderDescription",
    "find_images",
    "label_space",
    "open_images",
    "open_labelled",
    "read_description",
    "read_label_space",
]


def open_labelled(
    description: FolderDescription, root: PathLike, split: str, list: PathLike | None = None
) -> LabelledImageSet:
    """Open a split with its labels.

    Parameters
    ----------
    description : FolderDescription
        Result of `read_description`.
    root : path
        The folder its patterns start from.
    split : str
        One of its splits that has labels.
    list : path, optional
        Text file that names the images to use; only these need labels.

    Raises
    ------
    DataError
        If the root is missing, a glob matches nothing, an image has no label (unless the split says
        ``unlabelled: skip``) or none has one.
    ConfigError
        If there is no such split or it has no labels.
    """
    described = _split(description, split)
    if described.labels is None:
        raise ConfigError(
            f"split {split!r} of {description._origin} has no key 'labels': it can only be used without labels"
        )
    images = open_images(description, root, split, list)
    rule = described.labels.paths()
    wanted = [rule.of(path.relative_to(root).as_posix()) for path in images.image_paths]
    with reading(f"the labels of split {split!r} below {root}"):
        labels = files_below(root, wanted, described.labels.ignore_case)
    missing = [i for i, label in enumerate(labels) if label is None]
    if missing and (described.unlabelled == "refuse" or len(missing) == len(images)):
        have = "has" if len(missing) == 1 else "have"
        raise DataError(
            f"{len(missing):,} of {counted(len(images), 'image')} {have} no label, the first is "
            f"{images.image_paths[missing[0]]}: expected {Path(root) / wanted[missing[0]]}"
            + ("" if described.unlabelled == "skip" else f" (unlabelled: skip in split {split!r} leaves them out)")
        )
    kept = [i for i, label in enumerate(labels) if label is not None]
    return LabelledImageSet(
        [images.names[i] for i in kept],
        [images.image_paths[i] for i in kept],
        [label for label in labels if label is not None],
        description._coding,
        description._convention,
        description._read or read_label,
        left_out=len(missing),
    )


def open_images(description: FolderDescription, root: PathLike, split: str, list: PathLike | None = None) -> ImageSet:
    """Open the images of a split alone.

    Parameters
    ----------
    description : FolderDescription
        Result of `read_description`.
    root : path
        The folder its patterns start from.
    split : str
        One of its splits.
    list : path, optional
        Text file that names the images to use, of those that the split's own list names.

    Raises
    ------
    DataError
        If the root is missing, a glob matches nothing, or a list names what is not there.
    ConfigError
        If there is no such split.
    """
    images = find_images(description, root, split).files
    named = ImageSet(names_below(images, [_below(path, root) for path in images]), images)
    return select_listed(select_listed(named, _split(description, split).list, root), list, root)


def _split(description: FolderDescription, split: str) -> FolderSplit:
    if split not in description.splits:
        known = ", ".join(description.splits)
        raise ConfigError(f"split must be one of {known} (those of {description._origin}), got {split!r}")
    return description.splits[split]


def _below(path: Path, root: PathLike) -> str:
    folder = path.parent.relative_to(root).as_posix()
    return "" if folder == "." else folder


def find_images(description: FolderDescription, root: PathLike, split: str) -> Listing:
    """Find the image files of a split, whatever its list, and say what is left out.

    Parameters
    ----------
    description : FolderDescription
        Result of `read_description`.
    root : path
        The folder its patterns start from.
    split : str
        One of its splits.

    Raises
    ------
    DataError
        If the root is missing, a glob matches nothing, or a file that it matches cannot be read.
    ConfigError
        If there is no such split, or a pattern is no glob.
    """
    patterns = _split(description, split).images
    base = existing_folder(
        root, "data root", f"a folder with {', '.join(patterns)} (split {split!r} of {description._origin})"
    )
    found = []
    for pattern in patterns:
        try:
            matches = matching_images(base, pattern)
        except (ValueError, RecursionError, OSError) as error:  # no glob; a name too long
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(
                f"{description._origin}: images of split {split!r} must be globs, got {pattern[:100]!r} ({reason})"
            ) from error
        if not matches.files:
            remark = matches.remark()
            raise DataError(
                f"data root {base} has no image {pattern} (split {split!r} of {description._origin})"
                + (f"; {remark}" if remark else "")
            )
        found.append(matches)
    return merged(found)


def _open_described_images(
    root: PathLike, *, split: str, description: PathLike | FolderDescription, list: PathLike | None = None
) -> ImageSet:
    return open_images(_described(description), root, split, list)


def _open_described_labelled(
    root: PathLike,
    *,
    label_space: LabelSpace,
    split: str,
    description: PathLike | FolderDescription,
    list: PathLike | None = None,
) -> LabelledImageSet:
    described = _described(description)
    own = described._space
    if own != label_space:
        raise ConfigError(
            f"label_space must be {own.name}, as described for the data in {root}, got {label_space.name}"
            + (" with other classes, colours or ids" if own.name == label_space.name else "")
        )
    return open_labelled(described, root, split, list)


def _described(description: PathLike | FolderDescription) -> FolderDescription:
    return description if isinstance(description, FolderDescription) else read_description(description)


FORMAT = Format(_open_described_images, _open_described_labelled, needed=("split", "description"), takes_list=True)
