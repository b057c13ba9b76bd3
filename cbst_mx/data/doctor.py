"""Checks a data root before a long run, and says what is wrong and what mends it.

Sizes, colour types and ends of all files are looked at; the pixels of a sample of each part (train, val, a city's
test images, ...) are read, or of all. What is found is a list of `Finding`: an "error" makes the data unusable, a
"warning" is odd but usable, a "note" is good to know.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Iterable, Mapping, Sequence

import numpy as np

from cbst_mx.data import cityscapes, folder, nthu, synthia
from cbst_mx.data.datasets import ImageSet, LabelledImageSet
from cbst_mx.data.image_files import Header, PathLike, read_header, read_label, read_rgb
from cbst_mx.data.lists import find_listed, list_path, read_list
from cbst_mx.errors import ConfigError, DataError
from cbst_mx.label_space import CITYSCAPES_19, IGNORE, NTHU_13, SYNTHIA_16, LabelSpace
from cbst_mx.messages import Progress, silent

__all__ = ["DATASETS", "Finding", "Report", "examine", "published"]

DATASETS = ("gta5", "synthia", "cityscapes", "nthu", "folder")

_Mend = Callable[[Sequence[Path]], str]  # files -> the command that brings them back

# Images per city of Cityscapes: 2,975 for training, 500 for validation, 1,525 for testing.
_CITYSCAPES = {
    "train": {
        "aachen": 174, "bochum": 96, "bremen": 316, "cologne": 154, "darmstadt": 85, "dusseldorf": 221, "erfurt": 109,
        "hamburg": 248, "hanover": 196, "jena": 119, "krefeld": 99, "monchengladbach": 94, "strasbourg": 365,
        "stuttgart": 196, "tubingen": 144, "ulm": 95, "weimar": 142, "zurich": 122,
    },
    "val": {"frankfurt": 267, "lindau": 59, "munster": 174},
    "test": {"berlin": 544, "bielefeld": 181, "bonn": 46, "leverkusen": 58, "mainz": 298, "munich": 398},
}  # fmt: skip
_GTA5 = range(1, 24967)
_GTA5_PER_ARCHIVE = 2500  # 01_images.zip holds 00001 to 02500
_SYNTHIA = range(9400)
_NTHU = {"Train": 3200, "Test": 100}
# Height and width. Some images of GTA5 are a few lines lower or higher.
_SIZES = {"gta5": (1052, 1914), "synthia": (760, 1280), "cityscapes": (1024, 2048), "nthu": (1024, 2048)}
_GTA5_HEIGHTS = range(1040, 1061)

_ARCHIVES = (".zip", ".rar", ".tar", ".gz", ".tgz", ".7z", ".part", ".crdownload")
_SHOWN = 5
_PEEKED = 5  # files looked into to say what a wrong kind of label is


def published(dataset: str, split: str | None = None) -> tuple[int, tuple[int, int]] | None:
    """Return how many images a data set of the paper has, and their height and width.

    Parameters
    ----------
    dataset : str
        One of `DATASETS`.
    split : str, optional
        Of Cityscapes and NTHU, whose numbers are those of one city; the labelled images are "test" or "rest".

    Returns
    -------
    tuple or None
        None where nothing is published: for one's own data.
    """
    counts = {
        "gta5": len(_GTA5),
        "synthia": len(_SYNTHIA),
        "cityscapes": sum(_CITYSCAPES.get(str(split), {}).values()),
        "nthu": _NTHU["Train" if split == "train" else "Test"],
    }
    return (counts[dataset], _SIZES[dataset]) if counts.get(dataset) else None


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or worth knowing.

    ``severity`` is "error", "warning" or "note"; ``what`` a sentence without a full stop; ``where`` the path, and how
    many more; ``fix`` the command or the step that mends it, empty for a note.
    """

    severity: str
    what: str
    where: str
    fix: str = ""


@dataclass(frozen=True)
class Report:
    """What `examine` found.

    ``images`` counts the images of each part, ``examined`` those whose pixels were read; ``frequencies`` gives each
    class's share of the labelled pixels read (they sum to 1) and ``presence`` the number of label maps it occurs in,
    both empty where no label was read; ``ignored`` is the share of pixels that count nowhere.
    """

    dataset: str
    root: str
    findings: tuple[Finding, ...]
    images: Mapping[str, int]
    examined: int
    labels_read: int
    frequencies: Mapping[str, float]
    presence: Mapping[str, int]
    ignored: float

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return all(finding.severity != "error" for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "dataset": self.dataset,
            "root": self.root,
            "ok": self.ok,
            "findings": [vars(finding) for finding in self.findings],
            "images": dict(self.images),
            "examined": self.examined,
            "labels_read": self.labels_read,
            "frequencies": dict(self.frequencies),
            "presence": dict(self.presence),
            "ignored": self.ignored,
        }


@dataclass
class _Part:
    """Images that belong together, with the label file of each, or without labels."""

    name: str
    images: ImageSet
    # What the publisher's images and labels look like.
    size: tuple[int, int] | None = None  # height, width
    near: range = range(0)  # other heights that occur in the original
    label_kinds: tuple[tuple[str, int], ...] = (("palette", 8), ("grey", 8))  # colour, bits
    mend_image: _Mend = lambda paths: "unpack them again"
    mend_label: _Mend = lambda paths: "unpack them again"
    mend_size: str = ""
    count: int = 0

    @property
    def labels(self) -> tuple[Path, ...]:
        return self.images.label_paths if isinstance(self.images, LabelledImageSet) else ()


@dataclass
class _Examination:
    """What is being gathered."""

    root: Path
    label_space: LabelSpace | None = None
    findings: list[Finding] = field(default_factory=list)
    parts: list[_Part] = field(default_factory=list)

    def add(self, severity: str, what: str, where: PathLike, fix: str = "") -> None:
        self.findings.append(Finding(severity, what, str(where), fix))

    def add_files(self, severity: str, noun: str, paths: Sequence[Path], what: str, mend: str | _Mend) -> None:
        """Add one finding for several files, if any; `what` follows "3 labels", its verb in braces."""
        if paths:
            fix = mend if isinstance(mend, str) else mend(paths)
            one = len(paths) == 1
            words = {"are": "is", "have": "has", "hold": "holds", "do": "does"}
            text = what.format(**{many: single if one else many for many, single in words.items()})
            more = "" if one else f" and {len(paths) - 1:,} more"
            self.add(severity, f"{len(paths):,} {noun}{'' if one else 's'} {text}", f"{paths[0]}{more}", fix)


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
    dataset : {"gta5", "synthia", "cityscapes", "nthu", "folder"}
        What it should be.
    root : path
        The data root.
    sample : int or None
        Of each part, how many images are read pixel by pixel, spread evenly; None reads all.
    list : path, optional
        Check only the images this list names (see `cbst_mx.data.lists`).
    split : str, optional
        Only this split: "train", "val" or "test" of "cityscapes", "train" or "test" of "nthu", one of those that the
        description of a "folder" names. All of them when not given.
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
    if dataset not in DATASETS:
        raise ConfigError(f"dataset must be one of {', '.join(DATASETS)}, got {dataset!r}")
    allowed = {"synthia": ("labels",), "cityscapes": ("split", "labels"), "nthu": ("split", "city")}
    allowed["folder"] = ("split", "description")
    options = {"split": split, "city": city, "labels": labels, "description": description}
    for name, value in options.items():
        if value is not None and name not in allowed.get(dataset, ()):
            raise ConfigError(f"{name} must not be given for {dataset}, got {str(value)!r}")
    if sample is not None and sample < 1:
        raise ConfigError(f"sample must be 1 or more, got {sample}")
    found = _Examination(Path(root))
    if dataset == "gta5":
        _open_gta5(found)
    elif dataset == "synthia":
        _open_synthia(found, labels or "raw")
    elif dataset == "cityscapes":
        _open_cityscapes(found, split, labels or "labelIds", only_listed=list is not None)
    elif dataset == "nthu":
        _open_nthu(found, split, city)
    else:
        _open_folder(found, split, description)
    if list is not None:
        _keep_listed(found, list)
    elif dataset != "folder":
        _check_counts(found, dataset)
    for part in found.parts:
        part.count = len(part.images)
        _check_files(found, part, progress)
    return _check_pixels(found, dataset, sample, progress)


# --- what lies where ----------------------------------------------------------------------------------------------


def _has_folders(found: _Examination, *needed: str, fix: str) -> bool:
    """Check that the folders are below the root; where they are one level further down, say so."""
    root = found.root
    if not root.is_dir():
        found.add("error", "the data root is no folder", root, "give the folder that the archives were unpacked into")
        return False
    missing = [name for name in needed if not (root / name).is_dir()]
    if missing:
        inside = [child for child in sorted(root.iterdir()) if all((child / name).is_dir() for name in needed)]
        if inside:
            found.add("error", f"the data are one folder further down, in {inside[0].name}", root, f"use {inside[0]}")
        else:
            found.add("error", f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not there", root, fix)
    return not missing


def _archives_left(root: Path) -> str:
    """Name the archives that lie in a root: what is missing may still be inside them."""
    names = sorted(path.name for path in root.iterdir() if path.suffix.lower() in _ARCHIVES) if root.is_dir() else []
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f" (still packed there: {', '.join(names[:_SHOWN])}{more})" if names else ""


def _pngs(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.png") if not path.name.startswith("."))


def _paired(
    found: _Examination,
    images: Sequence[Path],
    label_of: Callable[[Path], Path],
    label_files: Iterable[Path],
    mend: _Mend,
) -> list[Path]:
    """Report labels without image and images without label; give the images that have both."""
    existing = set(label_files)
    expected = {label_of(image): image for image in images}
    without = [label for label in expected if label not in existing]
    found.add_files("error", "label", without, "{are} missing", mend)
    stray = sorted(existing - set(expected))
    found.add_files("error", "label", stray, "{have} no image", "unpack the images again")
    return [image for image in images if label_of(image) in existing]


def _gta5_mender(root: Path, kind: str) -> _Mend:
    def mend(paths: Sequence[Path]) -> str:
        numbers = [int(path.stem) for path in paths if path.stem.isascii() and path.stem.isdigit()]
        archives = sorted({(number - 1) // _GTA5_PER_ARCHIVE + 1 for number in numbers if number in _GTA5})
        if 0 < len(archives) <= 2:
            return "; ".join(f"unzip -o {archive:02}_{kind}.zip -d {root}" for archive in archives)
        return f"unzip -o '*_{kind}.zip' -d {root}"

    return mend


def _open_gta5(found: _Examination) -> None:
    root = found.root
    found.label_space = CITYSCAPES_19
    mend_image, mend_label = _gta5_mender(root, "images"), _gta5_mender(root, "labels")
    if not _has_folders(found, "images", "labels", fix=f"{mend_image([])}; {mend_label([])}"):
        return
    images, label_files = _pngs(root / "images"), _pngs(root / "labels")
    pairs = _paired(found, images, lambda path: root / "labels" / path.name, label_files, mend_label)
    part = LabelledImageSet(
        [p.stem for p in pairs], pairs, [root / "labels" / p.name for p in pairs], CITYSCAPES_19, "cityscapes"
    )
    resize = f"python tools/prepare_gta5.py {root} --out {root}-1052x1914"
    found.parts.append(
        _Part("", part, _SIZES["gta5"], _GTA5_HEIGHTS, mend_image=mend_image, mend_label=mend_label, mend_size=resize)
    )


def _open_synthia(found: _Examination, labels: str) -> None:
    root = found.root
    found.label_space = SYNTHIA_16
    if labels not in synthia.LABEL_FILES:
        raise ConfigError(f"labels must be one of {', '.join(synthia.LABEL_FILES)} for synthia, got {labels!r}")
    unpack = "unrar x -o+ SYNTHIA_RAND_CITYSCAPES.rar (the data root is RAND_CITYSCAPES inside)"
    if not _has_folders(found, "RGB", "GT/LABELS", fix=unpack):
        return
    make = f"python tools/prepare_synthia.py {root}"
    mend = make if labels == "trainIds" else unpack
    label_folder = synthia.label_folder(root, labels, SYNTHIA_16)
    images = _pngs(root / "RGB")
    pairs = _paired(found, images, lambda p: label_folder / p.name, _pngs(label_folder), lambda paths: mend)
    read = synthia.read_class_ids if labels == "raw" else read_label
    convention = synthia.LABEL_FILES[labels]
    part = LabelledImageSet(
        [p.stem for p in pairs], pairs, [label_folder / p.name for p in pairs], SYNTHIA_16, convention, read
    )
    raw_kinds, id_kinds = (("rgb", 16), ("rgba", 16)), (("palette", 8), ("grey", 8), ("grey", 16))
    found.parts.append(
        _Part(
            "",
            part,
            _SIZES["synthia"],
            range(0),
            raw_kinds if labels == "raw" else id_kinds,
            lambda paths: unpack,
            # What the tool finds there it does not make again.
            lambda paths: f"delete {'it' if len(paths) == 1 else 'them'}, then {make}" if mend == make else unpack,
            "unpack the originals",
        )
    )


def _open_cityscapes(found: _Examination, split: str | None, labels: str, *, only_listed: bool) -> None:
    root = found.root
    found.label_space = CITYSCAPES_19
    if labels not in cityscapes.LABEL_FILES:
        raise ConfigError(f"labels must be one of {', '.join(cityscapes.LABEL_FILES)} for cityscapes, got {labels!r}")
    if split is not None and split not in _CITYSCAPES:
        raise ConfigError(f"split must be one of {', '.join(_CITYSCAPES)} for cityscapes, got {split!r}")
    unpack_images = f"unzip -o leftImg8bit_trainvaltest.zip -d {root}"
    unpack_labels = f"unzip -o gtFine_trainvaltest.zip -d {root}"
    made = labels == "labelTrainIds"
    make = f"python tools/prepare_cityscapes.py {root}" if made else unpack_labels
    if not _has_folders(found, "leftImg8bit", fix=unpack_images):
        return
    if split is not None:
        splits = [split]
    elif only_listed:
        splits = ["train"]  # the released list is one of the training images
    else:
        splits = ["train", "val"] + (["test"] if (root / "leftImg8bit" / "test").is_dir() else [])
    for name in splits:
        try:
            images = cityscapes.open_images(root, name)
        except DataError as error:
            found.add("error", str(error), root / "leftImg8bit" / name, unpack_images)
            continue
        if name == "test":
            found.parts.append(_Part(name, images, _SIZES["cityscapes"], mend_image=lambda paths: unpack_images))
            continue
        truth = root / "gtFine" / name

        def label_of(image: Path, truth: Path = truth) -> Path:
            stem = image.name[: -len("_leftImg8bit.png")]
            return truth / image.parent.name / f"{stem}_gtFine_{labels}.png"

        label_files = [p for p in truth.glob(f"*/*_gtFine_{labels}.png") if not p.name.startswith(".")]
        if not label_files and not made and any(truth.glob("*/*_gtFine_labelTrainIds.png")):
            found.add(
                "error",
                f"the labelIds of {name} are missing, there are labelTrainIds alone",
                truth,
                f"{unpack_labels}; or use labels: labelTrainIds (19 classes only)",
            )
            found.parts.append(_Part(name, images, _SIZES["cityscapes"], mend_image=lambda paths: unpack_images))
            continue
        pairs = _paired(found, images.image_paths, label_of, label_files, lambda paths: make)
        names = {path: image_name for path, image_name in zip(images.image_paths, images.names)}
        part = LabelledImageSet(
            [names[p] for p in pairs],
            pairs,
            [label_of(p) for p in pairs],
            CITYSCAPES_19,
            cityscapes.LABEL_FILES[labels],
        )
        found.parts.append(
            _Part(
                name,
                part,
                _SIZES["cityscapes"],
                mend_image=lambda paths: unpack_images,
                mend_label=lambda paths: f"delete {'it' if len(paths) == 1 else 'them'}, then {make}" if made else make,
                mend_size="use the images as downloaded: Cityscapes is not resized on the disk",
            )
        )


def _open_nthu(found: _Examination, split: str | None, city: str | None) -> None:
    found.label_space = NTHU_13
    if city is not None and city not in nthu.CITIES:
        raise ConfigError(f"city must be one of {', '.join(nthu.CITIES)}, got {city!r}")
    if split not in (None, "train", "test"):
        raise ConfigError(f"split must be one of train, test for nthu, got {split!r}")
    itself = found.root.name if found.root.name in nthu.CITIES and (found.root / "Images").is_dir() else None
    cities = [city or itself] if city or itself else [*nthu.CITIES]
    unpack = "unpack the download of NTHU Cross-City again"
    one = f"{unpack}; or check one city with --city"
    if not itself and not _has_folders(found, *[str(name) for name in cities], fix=unpack if city else one):
        return
    for name in (str(name) for name in cities):
        base = found.root if itself == name else found.root / name
        try:
            _open_city(found, name, base, split, unpack)
        except DataError as error:  # x.jpg beside x.png
            found.add("error", str(error), base / "Images", "delete the one that the archive does not have")


def _open_city(found: _Examination, name: str, base: Path, split: str | None, unpack: str) -> None:
    def mend(paths: Sequence[Path]) -> str:
        return unpack

    train, test = (nthu.list_images(base / "Images" / part) for part in ("Train", "Test"))
    for part, images in (("Train", train), ("Test", test)):
        if split in (None, part.lower()) and not images:
            found.add("error", f"{name} has no image in Images/{part}", base, unpack + _archives_left(found.root))
    if split != "test" and train:
        found.parts.append(_Part(f"{name} train", ImageSet([p.stem for p in train], train), mend_image=mend))
        shared = {p.stem for p in test} & {p.stem for p in train}
        if shared:
            text = (
                f"of the unlabelled images of {name}, {len(shared)} with the name of a labelled one: "
                "split 'train' leaves them out"
            )
            found.add("note", text, base / "Images" / "Train" / min(shared))
    if split != "train" and test:
        truth = base / "Labels" / "Test"

        def label_of(image: Path) -> Path:
            return truth / nthu.label_name(image)

        label_files = [path for path in nthu.list_images(truth) if path.name.endswith("_eval.png")]
        pairs = _paired(found, test, label_of, label_files, mend)
        labelled = LabelledImageSet([p.stem for p in pairs], pairs, [label_of(p) for p in pairs], NTHU_13, "cityscapes")
        size_fix = "use the images as downloaded"
        found.parts.append(
            _Part(f"{name} test", labelled, _SIZES["nthu"], range(0), _Part.label_kinds, mend, mend, size_fix)
        )


def _open_folder(found: _Examination, split: str | None, description: PathLike | None) -> None:
    if description is None:
        raise ConfigError("description must be given for folder")
    described = folder.read_description(description)
    found.label_space = folder.label_space(described)
    if split is not None and split not in described.splits:
        raise ConfigError(f"split must be one of {', '.join(described.splits)}, got {split!r}")
    for name in described.splits if split is None else [split]:
        mend = f"correct the split {name!r} in {description}, or put the files where it says"
        images: ImageSet
        try:
            images = folder.open_images(described, found.root, name)
            if described.splits[name].labels is not None:
                images = folder.open_labelled(described, found.root, name)
        except DataError as error:
            found.add("error", str(error), found.root, mend)
            continue
        part = _Part(name, images)
        part.label_kinds = tuple((colour, bits) for colour in ("palette", "grey") for bits in (1, 2, 4, 8, 16))
        part.mend_image = part.mend_label = lambda paths: "replace the files"
        part.mend_size = "give each label the size of its image"
        found.parts.append(part)


# --- which images -------------------------------------------------------------------------------------------------


def _keep_listed(found: _Examination, list: PathLike) -> None:
    """Leave only the images that a list names."""
    if len(found.parts) > 1:
        names = ", ".join(part.name for part in found.parts)
        raise ConfigError(f"a list chooses among the images of one part, got {names}: give split or city as well")
    for part in found.parts:
        path = list_path(list, found.root)
        try:
            part.images = part.images.subset(find_listed(part.images.names, read_list(path), str(path)))
        except DataError as error:
            found.add("error", str(error), path, "correct the list, or unpack the images that it names")


def _check_counts(found: _Examination, dataset: str) -> None:
    """Compare the number of images with the publisher's."""
    root, packed = found.root, _archives_left(found.root)
    for part in found.parts:
        if dataset == "gta5":
            _check_numbers(found, "image", root / "images", [f"{n:05}" for n in _GTA5], part.mend_image)
            # Labels that an image lacks have been reported as that.
            with_image = {path.name for path in _pngs(root / "images")}
            wanted = [f"{n:05}" for n in _GTA5 if f"{n:05}.png" not in with_image]
            _check_numbers(found, "label", root / "labels", wanted, part.mend_label)
        elif dataset == "synthia":
            _check_numbers(found, "image", root / "RGB", [f"{n:07}" for n in _SYNTHIA], part.mend_image)
        elif dataset == "cityscapes":
            where, want = root / "leftImg8bit" / part.name, _CITYSCAPES[part.name]
            cities = Counter(path.parent.name for path in cityscapes.open_images(root, part.name).image_paths)
            few = [f"{city} {cities[city]} of {n}" for city, n in want.items() if cities[city] < n]
            if few:
                missing = sum(max(0, n - cities[city]) for city, n in want.items())
                shown = ", ".join(few[:_SHOWN]) + (f" and {len(few) - _SHOWN} more cities" if len(few) > _SHOWN else "")
                text = f"{missing:,} of {sum(want.values()):,} images of {part.name} are missing: {shown}"
                found.add("error", text, where, part.mend_image([]) + packed)
            many = sorted(city for city in cities if cities[city] > want.get(city, 0))
            if many:
                found.add("warning", f"{part.name} has more images than published: {', '.join(many[:_SHOWN])}", where)
        else:
            city, split = part.name.split()
            base = root if root.name == city else root / city
            where, published = base / "Images" / split.capitalize(), _NTHU[split.capitalize()]
            count = len(nthu.list_images(where))
            text = f"{part.name} has {count:,} images, the publisher's {published:,}"
            if count < published:
                found.add("error", text, where, part.mend_image([]) + packed)
            elif count > published:
                found.add("warning", text, where)


def _check_numbers(found: _Examination, noun: str, where: Path, wanted: Sequence[str], mend: _Mend) -> None:
    """Compare the files of a folder with the numbers they should have."""
    present = {path.stem for path in _pngs(where)}
    missing = [name for name in wanted if name not in present]
    if missing:
        text = f"{len(missing):,} {noun}{' is' if len(missing) == 1 else 's are'} missing: {_runs(missing)}"
        fix = mend([where / f"{name}.png" for name in missing])
        found.add("error", text, where, fix + _archives_left(found.root))
    if noun == "image":
        extra = [where / f"{name}.png" for name in sorted(present - set(wanted))]
        found.add_files("warning", noun, extra, "{are} not the publisher's", "")


def _runs(names: Sequence[str]) -> str:
    """Write numbers compactly, such as "00001-02500, 24966"."""
    groups = itertools.groupby(enumerate(names), key=lambda item: int(item[1]) - item[0])
    runs = [[name for _, name in group] for _, group in groups]
    shown = [run[0] if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs[:_SHOWN]]
    return ", ".join(shown) + (f" and {len(runs) - _SHOWN} more gaps" if len(runs) > _SHOWN else "")


# --- files --------------------------------------------------------------------------------------------------------


def _check_files(found: _Examination, part: _Part, progress: Progress) -> None:
    """Look at the first and last bytes of every file."""
    title = f"files of {part.name}" if part.name else "files"
    total = len(part.images) + len(part.labels)
    headers: dict[Path, Header] = {}
    broken: set[Path] = set()
    for noun, paths, mend, step in (
        ("image", part.images.image_paths, part.mend_image, 0),
        ("label", part.labels, part.mend_label, len(part.images)),
    ):
        empty, unreadable, cut = [], [], []
        for index, path in enumerate(paths):
            try:
                if not path.stat().st_size:
                    empty.append(path)
                else:
                    headers[path] = read_header(path)
                    if not headers[path].whole:
                        cut.append(path)
            except (DataError, OSError):
                unreadable.append(path)
            progress(title, step + index + 1, total)
        for paths_found, what in (
            (empty, "{are} empty (0 bytes)"),
            (cut, "{are} truncated"),
            (unreadable, "{are} no image that can be read"),
        ):
            broken.update(paths_found)
            found.add_files("error", noun, paths_found, what, mend)
    _check_image_kinds(found, part, headers)
    wrong = _check_label_kinds(found, part, headers)
    _check_sizes(found, part, headers)
    broken.update(wrong)
    # What is known to be broken is not read again.
    labels = part.labels or (None,) * len(part.images)
    good = [i for i, pair in enumerate(zip(part.images.image_paths, labels)) if not broken.intersection(pair)]
    part.images = part.images.subset(good)


def _check_image_kinds(found: _Examination, part: _Part, headers: Mapping[Path, Header]) -> None:
    present = [path for path in part.images.image_paths if path in headers]
    deep = [path for path in present if headers[path].bits > 8]
    found.add_files("error", "image", deep, "{have} more than 8 bits per channel", "unpack the originals again")
    grey = [path for path in present if headers[path].colour not in ("rgb", "rgba") and headers[path].bits <= 8]
    label_like = [path for path in grey if headers[path].colour == "palette"]
    found.add_files("error", "image", label_like, "{have} a palette: labels in the images' place?", "unpack them again")
    others = [path for path in grey if headers[path].colour != "palette"]
    found.add_files("warning", "image", others, "{are} not RGB", "unpack the originals, unless they are grey indeed")


def _check_label_kinds(found: _Examination, part: _Part, headers: Mapping[Path, Header]) -> list[Path]:
    """Report labels of another form than the publisher's; give those that cannot be used."""
    assert not part.labels or isinstance(part.images, LabelledImageSet)
    groups: dict[tuple[str, int], list[Path]] = {}
    for path in part.labels:
        if path in headers and (headers[path].colour, headers[path].bits) not in part.label_kinds:
            groups.setdefault((headers[path].colour, headers[path].bits), []).append(path)
    jpegs = [path for path in part.labels if path in headers and headers[path].format == "JPEG"]
    found.add_files("error", "label", jpegs, "{are} JPEG, whose ids are not reliable", "use the original PNG")
    wrong = [*jpegs]
    expects_raw = part.label_kinds[0] == ("rgb", 16)
    for (colour, bits), paths in groups.items():
        paths = [path for path in paths if path not in jpegs]
        if not paths:
            continue
        mend = part.mend_label
        wrong += paths
        if colour in ("rgb", "rgba"):
            if expects_raw:
                what = "{have} 8 bits per channel instead of 16: " + _truncated_to(paths)
            else:
                what = "{hold} colours instead of class ids" + (" (16 bits)" if bits == 16 else "")
            found.add_files("error", "label", paths, what, mend)
        elif expects_raw and bits in (8, 16):
            what, advice = _converted_to(paths)
            found.add_files("error", "label", paths, f"{{have}} one channel instead of three: {what}", advice or mend)
        else:
            found.add_files("error", "label", paths, f"{{are}} {bits}-bit {colour}, not as published", mend)
    return wrong


def _peek(paths: Sequence[Path], read: Callable[[Path], np.ndarray]) -> set[int]:
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


def _check_sizes(found: _Examination, part: _Part, headers: Mapping[Path, Header]) -> None:
    def size(path: Path) -> tuple[int, int]:
        return headers[path].height, headers[path].width

    differing = [
        label
        for image, label in zip(part.images.image_paths, part.labels)
        if image in headers and label in headers and size(image) != size(label)
    ]
    found.add_files("error", "label", differing, "{do} not have the size of the image", part.mend_size)
    if part.size is None:
        return
    height, width = part.size
    others = Counter(size(path) for path in part.images.image_paths if path in headers and size(path) != part.size)
    for (other_height, other_width), count in others.most_common(_SHOWN):
        near = other_width == width and other_height in part.near
        first = next(p for p in part.images.image_paths if p in headers and size(p) == (other_height, other_width))
        text = f"{count:,} image{'s are' if count > 1 else ' is'} {other_height} x {other_width}"
        text += f" as published, most are {height} x {width}" if near else f", not {height} x {width}"
        fix = f"{part.mend_size}, where one size is wanted" if near else part.mend_size
        found.add("note" if near else "warning", text, first, fix)


# --- pixels -------------------------------------------------------------------------------------------------------


def _check_pixels(found: _Examination, dataset: str, sample: int | None, progress: Progress) -> Report:
    """Read a sample of the images and labels, check the values and count the classes."""
    space = found.label_space
    assert space is not None
    pixels = np.zeros(256, dtype=np.int64)  # by trainId
    presence = np.zeros(256, dtype=np.int64)
    examined = labels_read = 0
    for part in found.parts:
        count = len(part.images)
        chosen = range(count) if sample is None or sample >= count else np.linspace(0, count - 1, sample).astype(int)
        title = f"pixels of {part.name}" if part.name else "pixels"
        bad_images: list[Path] = []
        bad_labels: list[Path] = []
        with_unknown: list[Path] = []
        void: list[Path] = []
        seen: set[int] = set()
        unknown: set[int] = set()
        for done, index in enumerate(int(i) for i in chosen):
            examined += 1
            try:
                part.images.image(index)
            except DataError:
                bad_images.append(part.images.image_paths[index])
            if isinstance(part.images, LabelledImageSet):
                counts = _count_label(part.images, index, bad_labels, with_unknown, seen, unknown)
                if counts is not None:
                    labels_read += 1
                    pixels += counts
                    presence += counts > 0
                    if not counts[: space.num_classes].any():
                        void.append(part.labels[index])
            progress(title, done + 1, len(chosen))
        found.add_files("error", "image", bad_images, "{are} damaged", part.mend_image)
        found.add_files("error", "label", bad_labels, "{are} damaged", part.mend_label)
        shown = ", ".join(str(value) for value in sorted(unknown)[:_SHOWN]) + (" ..." if len(unknown) > _SHOWN else "")
        found.add_files("error", "label", with_unknown, f"{{have}} unknown ids ({shown})", part.mend_label)
        if isinstance(part.images, LabelledImageSet) and part.images.convention == "cityscapes" and not unknown:
            # Vegetation, sky and cars have ids above 18 and are in any street scene.
            if seen - {0, IGNORE} and max(seen - {IGNORE}) < CITYSCAPES_19.num_classes:
                text = f"the labels{' of ' + part.name if part.name else ''} look like trainIds: no id is above 18"
                found.add("error", text, part.labels[0], part.mend_label(part.labels))
        if dataset == "synthia" and void and len(void) == labels_read:
            # what is left of 16-bit labels that a program has cut to 8 bits, or whose channels it has exchanged
            found.add_files("error", "label", void, "{hold} no class: the class ids are lost", part.mend_label)
        else:
            found.add_files("warning", "label", void, "{hold} no evaluated class at all", "look at the files")
    valid, total = int(pixels[: space.num_classes].sum()), int(pixels.sum())
    return Report(
        dataset=dataset,
        root=str(found.root),
        findings=tuple(found.findings),
        images={part.name or "images": part.count for part in found.parts},
        examined=examined,
        labels_read=labels_read,
        frequencies={name: float(pixels[i] / valid) for i, name in enumerate(space.names)} if valid else {},
        presence={name: int(presence[i]) for i, name in enumerate(space.names)} if valid else {},
        ignored=float(pixels[IGNORE] / total) if total else 0.0,
    )


def _count_label(
    images: LabelledImageSet, index: int, bad: list[Path], with_unknown: list[Path], seen: set[int], unknown: set[int]
) -> np.ndarray | None:
    """Count the pixels of each trainId in one label; note in the lists and sets what is wrong with it."""
    path = images.label_paths[index]
    try:
        raw = images.read(path)
    except DataError:
        bad.append(path)
        return None
    ids = set(np.unique(raw).tolist())
    seen |= ids
    strange = ids - set(images.label_space.raw_ids[images.convention])
    if strange:
        unknown |= strange
        with_unknown.append(path)
        return None
    train_ids = images.label_space.encode(raw, images.convention, str(path))
    return np.bincount(train_ids.ravel(), minlength=256)
