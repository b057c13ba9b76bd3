"""Results in the format of the Cityscapes evaluation server, and a check of such an archive.

A zip archive with one PNG per image, 1024 x 2048 pixels of 8 bits, grey, whose values are Cityscapes label ids (not
trainIds), named ``<city>_<sequence>_<frame>*.png`` as the evaluation program of the data set's own scripts looks for
them. ``city_sequence_frame`` is called the frame here.
"""

from __future__ import annotations

import io
import os
import re
import zipfile
from pathlib import Path
from typing import Sequence

import numpy as np
from PIL import Image

from cbst_mx.data import published
from cbst_mx.data.image_files import read_label
from cbst_mx.data.listing import matching_images
from cbst_mx.errors import CBSTError, ConfigError, DataError, check_choice
from cbst_mx.files import atomic_path, check_archive, in_one_line, open_file
from cbst_mx.label_space import CITYSCAPES_19, IGNORE, LabelSpace
from cbst_mx.messages import Counter, counted, silent

__all__ = ["SPLITS", "export", "find_predictions", "problems"]

SPLITS = {split: published.CITYSCAPES[split] for split in ("test", "val")}  # images of each city
_SIZE = published.SIZES["cityscapes"]
_NAME = re.compile(r"(?P<frame>(?P<city>[a-z-]+)_\d{6}_\d{6})(?!\d).*\.png")
_LABEL_IDS = tuple(int(raw) for raw in CITYSCAPES_19.decode(np.arange(19, dtype=np.uint8)[None], "cityscapes")[0])
_LARGEST_FILE = 16 * 2**20  # bytes; 8 times the uncompressed pixels
_MOST_FILES = 10_000
_PNG_START = b"\x89PNG\r\n\x1a\n"
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # equal predictions give equal archives


def find_predictions(folder: Path) -> dict[str, Path]:
    """Find the label maps of a folder and its subfolders, behind links too.

    Hidden files and those ending in ``_overlay.png``, which `cbst-mx predict` writes beside them, are left out.

    Returns
    -------
    dict of str to Path
        Frame such as "berlin_000000_000019" to file, by frame.

    Raises
    ------
    DataError
        If there is none, one has no frame in its name, or two are of one frame.
    """
    found: dict[str, Path] = {}
    for path in matching_images(folder, "**/*.png").files:
        if path.name.endswith("_overlay.png"):
            continue
        match = _NAME.fullmatch(f"{path.stem}{path.suffix.lower()}")
        if match is None:
            raise DataError(f"{path} must be named <city>_<6 digits>_<6 digits>*.png, as the images of Cityscapes are")
        frame = match["frame"]
        if frame in found:
            raise DataError(f"{found[frame]} and {path} are predictions of one image: leave one of them")
        found[frame] = path
    if not found:
        raise DataError(f"{folder} has no prediction: expected <city>_<6 digits>_<6 digits>*.png")
    return dict(sorted(found.items()))


def export(
    predictions: dict[str, Path],
    out: Path,
    *,
    label_space: LabelSpace,
    progress: Counter = silent,
) -> None:
    """Write predictions as an archive for the server, whole or not at all.

    Parameters
    ----------
    predictions : dict of str to Path
        Frame to PNG of trainIds, 1024 x 2048.
    out : Path
        The zip file.
    label_space : LabelSpace
        Meaning of the trainIds; one of Cityscapes' classes.
    progress : callable
        Called with (done, in all).

    Raises
    ------
    DataError
        If a prediction cannot be read, has another size, or a pixel without class.
    ConfigError
        If the label space has no Cityscapes ids.
    RunError
        If the archive cannot be written.
    """
    label_space.check_convention("cityscapes")
    if Path(out).suffix != ".zip":
        raise ConfigError(f"the archive must be a .zip file, got {out}")
    with atomic_path(Path(out)) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for index, (frame, path) in enumerate(predictions.items()):
            archive.writestr(zipfile.ZipInfo(f"{frame}.png", _ZIP_TIME), _label_ids_png(path, label_space))
            progress(index + 1, len(predictions))


def _label_ids_png(path: Path, label_space: LabelSpace) -> bytes:
    train_ids = read_label(path)
    if train_ids.shape != _SIZE:
        raise DataError(
            f"{path} must be {_SIZE[0]} x {_SIZE[1]} pixels, got {train_ids.shape[0]} x {train_ids.shape[1]}"
        )
    if train_ids.max() >= label_space.num_classes:
        what = f"{IGNORE} (no class)" if train_ids.max() == IGNORE else str(train_ids.max())
        raise DataError(
            f"{path} must hold a trainId from 0 to {label_space.num_classes - 1} at every pixel, got {what}"
        )
    stream = io.BytesIO()
    Image.fromarray(label_space.decode(train_ids.astype(np.uint8), "cityscapes")).save(stream, format="PNG")
    return stream.getvalue()


def problems(path: Path, *, split: str = "test", progress: Counter = silent) -> list[str]:
    """Say what is wrong with an archive for the server, a line for each problem; none when all is well.

    Looks at the names, the number of images of each city, and each image's format, size and values. Values other than
    the 19 evaluated label ids are a problem: such a pixel can only be wrong, and trainIds give themselves away by them.

    Parameters
    ----------
    path : Path
        The zip file.
    split : {"test", "val"}
        Images that must be there.
    progress : callable
        Called with (done, in all).

    Raises
    ------
    DataError
        If the file is missing or no zip archive.
    ConfigError
        If `split` is neither.
    """
    check_choice("split", split, SPLITS)
    found: list[str] = []
    frames: dict[str, list[str]] = {}
    try:
        with open_file(path) as stream, zipfile.ZipFile(stream) as archive:
            check_archive(archive, os.fstat(stream.fileno()).st_size)
            members = [member for member in archive.infolist() if not member.is_dir()]
            if len(members) > _MOST_FILES:
                wanted = sum(SPLITS[split].values())
                raise DataError(f"{path} holds {counted(len(members), 'file')}, the server takes {wanted:,}")
            for index, member in enumerate(members):
                name = member.filename if member.filename.isprintable() else repr(member.filename)  # for the terminal
                match = _NAME.fullmatch(member.filename.rpartition("/")[2])
                if match is None:
                    found.append(f"{name}: not named <city>_<6 digits>_<6 digits>*.png")
                else:
                    frames.setdefault(match["frame"], []).append(name)
                    problem = _image_problem(archive, member)
                    if problem:
                        found.append(f"{name}: {problem}")
                progress(index + 1, len(members))
    except CBSTError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # zipfile raises many kinds for a damaged directory
        raise DataError(f"{path} is no zip archive, or a damaged one") from error
    for frame, files in sorted(frames.items()):
        if len(files) > 1:
            found.append(f"{frame}: {counted(len(files), 'file')}, {', '.join(sorted(files))}")
    return found + _count_problems(list(frames), split)


def _count_problems(frames: Sequence[str], split: str) -> list[str]:
    wanted = SPLITS[split]
    counts: dict[str, int] = {}
    for frame in frames:
        city = frame.rsplit("_", 2)[0]
        counts[city] = counts.get(city, 0) + 1
    found = []
    if len(frames) != sum(wanted.values()):
        found.append(f"{counted(len(frames), 'image')}, {split} has {sum(wanted.values())}")
    for city in sorted({*wanted, *counts}):
        if city not in wanted:
            found.append(f"{counted(counts[city], 'image')} of {city}, which is not in {split}")
        elif counts.get(city, 0) != wanted[city]:
            found.append(f"{counted(counts.get(city, 0), 'image')} of {city}, {split} has {wanted[city]}")
    return found


def _image_problem(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> str:
    """Return what is wrong with one image; empty when nothing is."""
    if member.file_size > _LARGEST_FILE:
        return f"{member.file_size / 2**20:.0f} MB, too large for an image of labels"
    try:
        content = archive.read(member)
    except Exception as error:  # damaged, encrypted, of an unknown kind: every decompressor has errors of its own
        return f"cannot be unpacked ({in_one_line(error)})"
    if not content.startswith(_PNG_START) or len(content) < 26:
        return "not a PNG"
    # Width, height, bits and colour type stand behind the signature (8 bytes), a length and "IHDR" (8).
    width, height = (int.from_bytes(content[start : start + 4], "big") for start in (16, 20))
    if content[24:26] != b"\x08\x00":
        kinds = {0: "grey", 2: "colour", 3: "palette", 4: "grey with alpha", 6: "colour with alpha"}
        return f"must be grey of 8 bits, is {kinds.get(content[25], 'unknown')} of {content[24]} bits"
    if (height, width) != _SIZE:
        return f"must be {_SIZE[0]} x {_SIZE[1]} pixels, is {height} x {width}"
    try:
        with Image.open(io.BytesIO(content)) as image:
            counts = np.array(image.histogram())
    except Exception as error:  # whatever Pillow raises for damaged data
        return f"damaged ({in_one_line(error)})"
    wrong = [value for value in np.flatnonzero(counts).tolist() if value not in _LABEL_IDS]
    if wrong:
        shown = ", ".join(map(str, wrong[:8])) + (" and more" if len(wrong) > 8 else "")
        hint = "; are these trainIds?" if max(np.flatnonzero(counts)) < CITYSCAPES_19.num_classes else ""
        return f"has values that are no evaluated label id: {shown}{hint}"
    return ""
