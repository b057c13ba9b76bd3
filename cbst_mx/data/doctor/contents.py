"""What is in the files: their first and last bytes, and the pixels of a sample."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Mapping, Sequence

import numpy as np

from cbst_mx.data.colour_masks import UnknownColourError
from cbst_mx.data.colour_profiles import foreign_profile
from cbst_mx.data.datasets import LabelledImageSet
from cbst_mx.data.doctor.findings import ARE, HAVE, HOLD, Examination, Part, Report, fix_text
from cbst_mx.data.doctor.geometry import check_geometry
from cbst_mx.data.image_files import MOST_PIXELS, Header, read_header, read_label, read_rgb
from cbst_mx.errors import DamagedError, DataError
from cbst_mx.label_space import CITYSCAPES_19, IGNORE
from cbst_mx.messages import Progress, counted, listed

__all__ = ["check_files", "check_pixels"]

_SHOWN = 5
_PEEKED = 5  # files looked into to say what a wrong kind of label is
_FORBIDDEN = "not open to this user (permission denied)"
_LARGE = f"too large: more than {MOST_PIXELS:,} pixels"
_MENDS = {_FORBIDDEN: "let this user read them", _LARGE: "cut them into parts, or make them smaller"}


# --- files --------------------------------------------------------------------------------------------------------


def check_files(found: Examination, part: Part, progress: Progress) -> None:
    """Look at the first and last bytes of every file, and leave in `part` what is not known to be broken.

    Parameters
    ----------
    found : Examination
        Gets the findings.
    part : Part
        Its images and labels are opened.
    progress : callable
        Called with (what, done, in all).
    """
    title = f"files{part.title}"
    total = len(part.images) + len(part.labels)
    headers: dict[Path, Header] = {}
    broken: set[Path] = set()
    for noun, paths, mend, step in (
        ("image", part.images.image_paths, part.mend_image, 0),
        ("label", part.labels, part.mend_label, len(part.images)),
    ):
        problems: dict[str, list[Path]] = {}
        for index, path in enumerate(paths):
            problem = _problem(path, headers)
            if problem:
                problems.setdefault(problem, []).append(path)
            progress(title, step + index + 1, total)
        for problem, wrong in problems.items():
            broken.update(wrong)
            found.add_files("error", noun, wrong, ARE, problem, _MENDS.get(problem, mend))
    _check_image_kinds(found, part, headers)
    broken.update(_check_label_kinds(found, part, headers))
    check_geometry(found, part, headers)
    # What is known to be broken is not read again.
    labels = part.labels or (None,) * len(part.images)
    good = [i for i, pair in enumerate(zip(part.images.image_paths, labels)) if not broken.intersection(pair)]
    part.images = part.images.subset(good)


def _problem(path: Path, headers: dict[Path, Header]) -> str:
    """Read the header of a file into `headers`; return what it is that keeps it from being used, if anything."""
    try:
        if path.is_file() and not path.stat().st_size:
            return "empty (0 bytes)"
        headers[path] = header = read_header(path)
    except DamagedError:
        return "damaged"
    except DataError as error:
        refused = isinstance(error.__cause__, PermissionError)
        return _FORBIDDEN if refused else "no image that can be read"
    except OSError:
        return _FORBIDDEN
    if header.height * header.width > MOST_PIXELS:
        return _LARGE
    return "" if header.whole else "truncated"


def _check_image_kinds(found: Examination, part: Part, headers: Mapping[Path, Header]) -> None:
    present = [path for path in part.images.image_paths if path in headers]
    deep = [path for path in present if headers[path].bits > 8]
    found.add_files("error", "image", deep, HAVE, "more than 8 bits per channel", "unpack the originals again")
    grey = [path for path in present if headers[path].colour not in ("rgb", "rgba") and headers[path].bits <= 8]
    label_like = [path for path in grey if headers[path].colour == "palette"]
    # the published photographs have none; one's own may, and are read
    severity, mend = ("warning", "look at the files") if part.size is None else ("error", "unpack them again")
    found.add_files(severity, "image", label_like, HAVE, "a palette: labels in the images' place?", mend)
    others = [path for path in grey if headers[path].colour != "palette"]
    found.add_files("warning", "image", others, ARE, "not RGB", "unpack the originals, unless they are grey indeed")


def _check_label_kinds(found: Examination, part: Part, headers: Mapping[Path, Header]) -> list[Path]:
    """Report labels of another form than the publisher's; return those that cannot be used."""
    assert not part.labels or isinstance(part.images, LabelledImageSet)
    groups: dict[tuple[str, int], list[Path]] = {}
    for path in part.labels:
        if path in headers and (headers[path].colour, headers[path].bits) not in part.label_kinds:
            groups.setdefault((headers[path].colour, headers[path].bits), []).append(path)
    lossy: dict[str, list[Path]] = {}
    for path in part.labels:
        if path in headers and headers[path].lossy:
            lossy.setdefault(headers[path].lossy, []).append(path)
    for codec, paths in lossy.items():
        found.add_files("error", "label", paths, ARE, f"{codec}, whose ids are not reliable", "use the original PNG")
    wrong = [path for paths in lossy.values() for path in paths]
    expects_raw = part.label_kinds[0] == ("rgb", 16)
    for (colour, bits), paths in groups.items():
        paths = [path for path in paths if not headers[path].lossy]
        if not paths:
            continue
        mend = part.mend_label
        wrong += paths
        if colour in ("rgb", "rgba"):
            if expects_raw:
                what = f"8 bits per channel instead of 16: {_truncated_to(paths)}"
                found.add_files("error", "label", paths, HAVE, what, mend)
            else:
                what = "colours instead of class ids" + (" (16 bits)" if bits == 16 else "")
                found.add_files("error", "label", paths, HOLD, what, mend)
        elif expects_raw and bits in (8, 16):
            what, advice = _converted_to(paths)
            found.add_files("error", "label", paths, HAVE, f"one channel instead of three: {what}", advice or mend)
        else:
            wanted = "not as published" if part.size is not None else "neither grey nor a palette of ids"
            found.add_files("error", "label", paths, ARE, f"{bits}-bit {colour}, {wanted}", mend)
    return wrong


def _peek(paths: Sequence[Path], read: Callable[[Path], np.ndarray]) -> set[int]:
    """Return the values in the first files."""
    values: set[int] = set()
    for path in paths[:_PEEKED]:
        try:
            values.update(np.unique(read(path)).tolist())
        except DataError:
            continue
    return values


def _truncated_to(paths: Sequence[Path]) -> str:
    red = _peek(paths, lambda path: read_rgb(path)[..., 0])
    if red <= {0}:
        return "another program has truncated them, every class id is 0"
    if max(red) > 22:
        return "these are colours (GT/COLOR in the place of GT/LABELS?)"
    return "another program has rewritten them"


def _converted_to(paths: Sequence[Path]) -> tuple[str, str]:
    values = _peek(paths, read_label)
    if IGNORE in values:
        return "they look like trainIds (255 occurs)", ""
    if values and max(values) <= 22:
        return "somebody has converted them to SYNTHIA's class ids", "use labels: ids, or unpack the originals again"
    return "somebody has converted them", ""


# --- pixels -------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Seen:
    """Findings in the pixels of one part; ``pixels`` and ``presence`` by trainId, int64 of shape (256,)."""

    examined: int = 0
    labels_read: int = 0
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, dtype=np.int64))
    presence: np.ndarray = field(default_factory=lambda: np.zeros(256, dtype=np.int64))
    ids: set[int] = field(default_factory=set)
    unknown: set[int] = field(default_factory=set)
    bad_images: list[Path] = field(default_factory=list)
    bad_labels: list[Path] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    with_unknown: list[Path] = field(default_factory=list)
    void: list[Path] = field(default_factory=list)
    odd_colours: list[Path] = field(default_factory=list)
    odd_colour: str = ""
    profiles: dict[str, list[Path]] = field(default_factory=dict)


def check_pixels(found: Examination, dataset: str, sample: int | None, progress: Progress) -> Report:
    """Read a sample of the images and labels, check the values and count the classes.

    Parameters
    ----------
    found : Examination
        Its parts are read; it gets the findings.
    dataset : str
        Name of the format.
    sample : int or None
        How many images of each part, spread evenly; None reads all.
    progress : callable
        Called with (what, done, in all).

    Returns
    -------
    Report
        With everything that was found.
    """
    space = found.label_space
    assert space is not None
    parts = []
    for part in found.parts:
        parts.append(_read_part(part, sample, progress))
        _report_pixels(found, dataset, part, parts[-1])
    pixels, presence = (
        sum((getattr(seen, name) for seen in parts), np.zeros(256, dtype=np.int64)) for name in ("pixels", "presence")
    )
    valid, total = int(pixels[: space.num_classes].sum()), int(pixels.sum())
    return Report(
        dataset=dataset,
        root=str(found.root),
        findings=tuple(found.findings),
        images={part.name or "images": part.count for part in found.parts},
        examined=sum(seen.examined for seen in parts),
        labels_read=sum(seen.labels_read for seen in parts),
        frequencies={name: float(pixels[i] / valid) for i, name in enumerate(space.names)} if valid else {},
        presence={name: int(presence[i]) for i, name in enumerate(space.names)} if valid else {},
        ignored=float(pixels[IGNORE] / total) if total else 0.0,
    )


def _read_part(part: Part, sample: int | None, progress: Progress) -> _Seen:
    """Read a sample of one part."""
    seen, count = _Seen(), len(part.images)
    chosen = range(count) if sample is None or sample >= count else np.linspace(0, count - 1, sample).astype(int)
    for done, index in enumerate(int(i) for i in chosen):
        seen.examined += 1
        try:
            part.images.image(index)
            profile = foreign_profile(part.images.image_paths[index])
            if profile:
                seen.profiles.setdefault(profile, []).append(part.images.image_paths[index])
        except DamagedError:
            seen.bad_images.append(part.images.image_paths[index])
        except DataError as error:
            seen.refused.append(str(error))
        if isinstance(part.images, LabelledImageSet):
            _count_label(part.images, index, seen)
        progress(f"pixels{part.title}", done + 1, len(chosen))
    return seen


def _count_label(images: LabelledImageSet, index: int, seen: _Seen) -> None:
    """Count the pixels of each trainId in one label, or note what is wrong with it."""
    path, space = images.label_paths[index], images.label_space
    try:
        raw = images.read(path)
    except UnknownColourError as error:
        seen.odd_colours.append(path)
        seen.odd_colour = seen.odd_colour or str(error)
        return
    except DamagedError:
        seen.bad_labels.append(path)
        return
    except DataError as error:
        seen.refused.append(str(error))
        return
    ids = set(np.unique(raw).tolist())
    seen.ids |= ids
    unknown = ids - set(space.raw_ids[images.convention])
    if unknown:
        seen.unknown |= unknown
        seen.with_unknown.append(path)
        return
    counts = np.bincount(space.encode(raw, images.convention, str(path)).ravel(), minlength=256)
    seen.labels_read += 1
    seen.pixels += counts
    seen.presence += counts > 0
    if not counts[: space.num_classes].any():
        seen.void.append(path)


def _report_pixels(found: Examination, dataset: str, part: Part, seen: _Seen) -> None:
    """Add findings about the pixels of one part."""
    found.add_files("error", "image", seen.bad_images, ARE, "damaged", part.mend_image)
    found.add_files("error", "label", seen.bad_labels, ARE, "damaged", part.mend_label)
    for profile, paths in seen.profiles.items():
        what = f"a colour profile other than sRGB ({profile}), which is not applied: colours are read as stored"
        found.add_files("note", "image", paths, HAVE, what, "")
    for sentence in seen.refused[:_SHOWN]:
        found.add("error", sentence, "")
    if len(seen.refused) > _SHOWN:
        more = counted(len(seen.refused) - _SHOWN, "more file")
        found.add("error", f"{more} cannot be used for reasons like these", "")
    what = f"colours of no class: {seen.odd_colour}"
    mend = "correct the palette, name them under ignore_colours, or export the labels without smoothed borders"
    found.add_files("error", "label", seen.odd_colours, HAVE, what, mend)
    what = f"unknown ids ({listed(sorted(seen.unknown), _SHOWN)})"
    found.add_files("error", "label", seen.with_unknown, HAVE, what, part.mend_label)
    if (
        isinstance(part.images, LabelledImageSet)
        and part.images.convention == "cityscapes"
        and not seen.unknown
        # Vegetation, sky and cars have ids above 18 and are in any street scene.
        and seen.ids - {0, IGNORE}
        and max(seen.ids - {IGNORE}) < CITYSCAPES_19.num_classes
    ):
        text = f"the labels{part.title} look like trainIds: no id is above 18"
        found.add("error", text, part.labels[0], fix_text(part.mend_label, part.labels))
    if dataset == "synthia" and seen.void and len(seen.void) == seen.labels_read:
        # what is left of 16-bit labels that a program has cut to 8 bits, or whose channels it has exchanged
        found.add_files("error", "label", seen.void, HOLD, "no class: the class ids are lost", part.mend_label)
    else:
        found.add_files("warning", "label", seen.void, HOLD, "no evaluated class at all", "look at the files")
