"""SYNTHIA-RAND-CITYSCAPES (Ros et al., CVPR 2016): RGB/0000000.png and GT/LABELS/0000000.png, 760 x 1280.

The published labels are PNGs of three channels with 16 bits each: the first (red) holds the class id, the second the
instance. Many programs, Pillow among them, keep the upper 8 bits of such files, which makes every class id 0. Labels
that have come through one, or that somebody has converted, are refused unless the caller says what they are.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cbst_mx.data.datasets import Format, ImageSet, LabelledImageSet, existing_folder, existing_labels
from cbst_mx.data.image_files import PathLike, read_header, read_label, read_rgb16
from cbst_mx.data.listing import matching_images
from cbst_mx.errors import DataError, check_choice
from cbst_mx.label_space import SYNTHIA_16, LabelSpace

__all__ = ["FORMAT", "LABEL_FILES", "label_folder", "open_images", "open_labelled", "read_class_ids"]

# Kind of label file -> what its ids mean: the published files; one channel with the same ids, in their place; one
# channel with trainIds, in the folder that cbst-mx prepare synthia makes.
LABEL_FILES = {"raw": "synthia", "ids": "synthia", "trainIds": "trainId"}

_LAYOUT = "RGB/*.png and GT/LABELS/*.png with the same file names"


def open_labelled(root: PathLike, label_space: LabelSpace, labels: str = "raw") -> LabelledImageSet:
    """Open the images with their labels.

    Parameters
    ----------
    root : path
        Folder that holds ``RGB`` and ``GT`` ("RAND_CITYSCAPES" in the download).
    label_space : LabelSpace
        One with the convention "synthia".
    labels : {"raw", "ids", "trainIds"}
        Which label files to read: the published ones in ``GT/LABELS``; files of one channel with the same ids there;
        or those that ``cbst-mx prepare synthia`` writes, in ``GT/LABELS_synthia-16``.

    Raises
    ------
    DataError
        If the root or one of its folders is missing or empty, or an image has no label.
    ConfigError
        If `labels` is unknown or the label space has no convention "synthia".
    """
    check_choice("labels", labels, LABEL_FILES, of="SYNTHIA")
    label_space.check_convention("synthia")
    images = _images(root)
    folder = label_folder(root, labels, label_space)
    if labels == "trainIds":
        existing_folder(folder, "SYNTHIA label folder", f"what `cbst-mx prepare synthia {root}` makes")
    else:
        existing_folder(folder, "SYNTHIA label folder", _LAYOUT)
    label_paths = [folder / path.name for path in images]
    label_paths = existing_labels(images, label_paths)
    names = [path.stem for path in images]
    read = read_class_ids if labels == "raw" else read_label
    return LabelledImageSet(names, images, label_paths, label_space, LABEL_FILES[labels], read)


def open_images(root: PathLike) -> ImageSet:
    """Open the images alone; names are file stems such as "0000000".

    Raises
    ------
    DataError
        If the root or its folder ``RGB`` is missing or empty.
    """
    images = _images(root)
    return ImageSet([path.stem for path in images], images)


def label_folder(root: PathLike, labels: str, label_space: LabelSpace) -> Path:
    """Return the folder of one kind of label files.

    TrainIds differ between label spaces, so their folder is named after theirs.
    """
    return Path(root) / "GT" / (f"LABELS_{label_space.name}" if labels == "trainIds" else "LABELS")


def read_class_ids(path: PathLike) -> np.ndarray:
    """Read the class ids of a published label file.

    Returns
    -------
    ndarray of shape (H, W), uint16
        Class ids of SYNTHIA, 0 to 22.

    Raises
    ------
    DataError
        If the file is missing, truncated, or not of the published form.
    """
    header = read_header(path)
    if header.colour not in ("rgb", "rgba"):
        raise DataError(
            f"label {path} must be the published RGB PNG of 16 bits per channel, got {header.bits}-bit "
            f"{header.colour}: unpack it again, or use labels 'ids' if its values are SYNTHIA's class ids"
        )
    if header.bits != 16:
        raise DataError(
            f"label {path} must have 16 bits per channel as published, got {header.bits}: another program has "
            "truncated it and its class ids cannot be trusted, unpack it again"
        )
    return read_rgb16(path)[..., 0]


def _images(root: PathLike) -> list[Path]:
    folder = existing_folder(root, "SYNTHIA data root", "a folder with " + _LAYOUT) / "RGB"
    existing_folder(folder, "SYNTHIA image folder", _LAYOUT)
    images = [*matching_images(folder, "*.png").files]
    if not images:
        raise DataError(f"SYNTHIA image folder {folder} has no image: expected {_LAYOUT}")
    return images


FORMAT = Format(open_images, open_labelled, optional=("labels",), label_space=SYNTHIA_16.name)
