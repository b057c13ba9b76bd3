"""Where the files of each format should lie, which of them belong together, and how many there should be."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterable, Sequence

from cbst_mx.data import FORMATS, cityscapes, folder, nthu, published, synthia
from cbst_mx.data.colour_masks import ColourMasks
from cbst_mx.data.datasets import ImageSet, LabelledImageSet
from cbst_mx.data.doctor.findings import ARE, HAVE, Examination, Mend, Part, Remedy, counted, fix_text
from cbst_mx.data.image_files import PathLike, read_label
from cbst_mx.data.label_files import files_below
from cbst_mx.data.listing import images_beside, matching_images
from cbst_mx.data.lists import list_path
from cbst_mx.errors import ConfigError, DataError, check_choice
from cbst_mx.label_space import CITYSCAPES_19, NTHU_13, SYNTHIA_16, get_label_space
from cbst_mx.messages import listed, ranges

__all__ = ["LAYOUTS", "Layout", "open_any"]

_ARCHIVES = (".zip", ".rar", ".tar", ".gz", ".tgz", ".7z", ".part", ".crdownload")
_AS_DOWNLOADED = "use the images as downloaded"


@dataclass(frozen=True)
class Layout:
    """How the doctor finds the parts of a format, and checks how many images each has.

    ``open(found, **options)`` adds parts and findings; ``check_count(found, part)`` adds findings. ``marks`` are globs
    that all fit something where a folder is such a data root, and hardly ever elsewhere.
    """

    open: Callable[..., None]
    check_count: Callable[[Examination, Part], None] | None = None
    marks: tuple[str, ...] = ()


# --- what lies where ----------------------------------------------------------------------------------------------


def _has_folders(found: Examination, *needed: str, fix: str) -> bool:
    """Check that the folders are below the root; if they are one level further down, say so."""
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
            found.add("error", f"{' and '.join(missing)} {ARE[len(missing) > 1]} not there", root, fix)
    return not missing


def _archives_left(root: Path) -> str:
    """Name the archives that lie in a root: what is missing may still be inside them."""
    names = sorted(path.name for path in root.iterdir() if path.suffix.lower() in _ARCHIVES) if root.is_dir() else []
    return f" (still packed there: {listed(names)})" if names else ""


def _pngs(directory: Path) -> list[Path]:
    return [*matching_images(directory, "*.png").files] if directory.is_dir() else []


def _paired(
    found: Examination,
    images: Sequence[Path],
    label_of: Callable[[Path], Path],
    label_files: Iterable[Path],
    mend: Mend,
) -> tuple[list[Path], list[Path]]:
    """Report labels without image and images without label; return the images that have both, and their labels."""
    existing, expected = set(label_files), [label_of(image) for image in images]
    try:
        labels = files_below(found.root, [label.relative_to(found.root).as_posix() for label in expected])
    except DataError as error:  # two files that differ in the case of their endings
        found.add("error", str(error), found.root, "delete the one that the archive does not have")
        labels = [label if label in existing else None for label in expected]
    found.add_files(
        "error", "label", [path for path, label in zip(expected, labels) if not label], ARE, "missing", mend
    )
    stray = sorted(existing.difference(label for label in labels if label))
    found.add_files("error", "label", stray, HAVE, "no image", "unpack the images again")
    pairs = [(image, label) for image, label in zip(images, labels) if label]
    return [image for image, _ in pairs], [label for _, label in pairs]


def _delete_and(make: str) -> Remedy:
    """Return the remedy for files that `cbst-mx prepare` made: it does not make again what is there."""
    return Remedy(f"delete it, then {make}", f"delete them, then {make}")


def _check_numbers(found: Examination, noun: str, where: Path, numbers: Iterable[int], width: int, mend: Mend) -> None:
    """Compare the files of a folder with the numbers, of `width` digits, that they should have."""
    present, wanted = {path.stem for path in _pngs(where)}, {f"{number:0{width}}": number for number in numbers}
    missing = [name for name in wanted if name not in present]
    if missing:
        gaps = listed(ranges((wanted[name] for name in missing), width), what="gap")
        fix = fix_text(mend, [where / f"{name}.png" for name in missing])
        text = f"{counted(len(missing), noun)} {ARE[len(missing) > 1]} missing: {gaps}"
        found.add("error", text, where, fix + _archives_left(found.root))
    if noun == "image":
        extra = [where / f"{name}.png" for name in sorted(present - set(wanted))]
        found.add_files("warning", noun, extra, ARE, "not the publisher's", "")


# --- gta5 ---------------------------------------------------------------------------------------------------------


def _gta5_archives(root: Path, kind: str) -> Callable[[Sequence[Path]], str]:
    """Return what says which archives hold some files: at most two by name, else all."""

    def mend(paths: Sequence[Path]) -> str:
        numbers = [int(path.stem) for path in paths if path.stem.isascii() and path.stem.isdigit()]
        archives = sorted(
            {(number - 1) // published.GTA5_PER_ARCHIVE + 1 for number in numbers if number in published.GTA5}
        )
        if 0 < len(archives) <= 2:
            return "; ".join(f"unzip -o {archive:02}_{kind}.zip -d {root}" for archive in archives)
        return f"unzip -o '*_{kind}.zip' -d {root}"

    return mend


def _open_gta5(found: Examination) -> None:
    root = found.root
    found.label_space = CITYSCAPES_19
    mend_image, mend_label = _gta5_archives(root, "images"), _gta5_archives(root, "labels")
    if not _has_folders(found, "images", "labels", fix=f"{mend_image([])}; {mend_label([])}"):
        return
    images, label_files = _pngs(root / "images"), _pngs(root / "labels")
    pairs, labels = _paired(found, images, lambda path: root / "labels" / path.name, label_files, mend_label)
    height, width = published.SIZES["gta5"]
    part = Part(
        "",
        LabelledImageSet([path.stem for path in pairs], pairs, labels, CITYSCAPES_19, "cityscapes"),
        size=(height, width),
        near=published.GTA5_HEIGHTS,
        mend_image=mend_image,
        mend_label=mend_label,
        mend_size=f"cbst-mx prepare gta5 {root} --out {root}-{height}x{width}",
    )
    found.parts.append(part)


def _count_gta5(found: Examination, part: Part) -> None:
    images, labels = found.root / "images", found.root / "labels"
    _check_numbers(found, "image", images, published.GTA5, 5, _gta5_archives(found.root, "images"))
    # Labels that an image lacks have been reported as that.
    with_image = {path.name for path in _pngs(images)}
    wanted = (number for number in published.GTA5 if f"{number:05}.png" not in with_image)
    _check_numbers(found, "label", labels, wanted, 5, _gta5_archives(found.root, "labels"))


# --- synthia ------------------------------------------------------------------------------------------------------


_UNPACK_SYNTHIA = f"unrar x -o+ {published.SYNTHIA_ARCHIVE} (the data root is RAND_CITYSCAPES inside)"


def _open_synthia(found: Examination, labels: str = "raw") -> None:
    root = found.root
    found.label_space = SYNTHIA_16
    check_choice("labels", labels, synthia.LABEL_FILES, of="synthia")
    if not _has_folders(found, "RGB", "GT/LABELS", fix=_UNPACK_SYNTHIA):
        return
    make, made = f"cbst-mx prepare synthia {root}", labels == "trainIds"
    directory = synthia.label_folder(root, labels, SYNTHIA_16)
    images = _pngs(root / "RGB")
    missing = make if made else _UNPACK_SYNTHIA
    pairs, label_paths = _paired(found, images, lambda path: directory / path.name, _pngs(directory), missing)
    part = Part(
        "",
        LabelledImageSet(
            [path.stem for path in pairs],
            pairs,
            label_paths,
            SYNTHIA_16,
            synthia.LABEL_FILES[labels],
            synthia.read_class_ids if labels == "raw" else read_label,
        ),
        size=published.SIZES["synthia"],
        label_kinds=((("rgb", 16), ("rgba", 16)) if labels == "raw" else (("palette", 8), ("grey", 8), ("grey", 16))),
        mend_image=_UNPACK_SYNTHIA,
        mend_label=_delete_and(make) if made else _UNPACK_SYNTHIA,
        mend_size="unpack the originals",
    )
    found.parts.append(part)


def _count_synthia(found: Examination, part: Part) -> None:
    _check_numbers(found, "image", found.root / "RGB", published.SYNTHIA, 7, _UNPACK_SYNTHIA)


# --- cityscapes ---------------------------------------------------------------------------------------------------


def _unpack_cityscapes(root: Path, kind: str) -> str:
    return f"unzip -o {published.CITYSCAPES_ARCHIVES[kind]} -d {root}"


def _open_cityscapes(found: Examination, split: str | None = None, labels: str = "labelIds") -> None:
    root, known = found.root, published.CITYSCAPES
    found.label_space = CITYSCAPES_19
    check_choice("labels", labels, cityscapes.LABEL_FILES, of="cityscapes")
    if split is not None and split not in known:
        raise ConfigError(f"split must be one of {', '.join(known)} for cityscapes, got {split!r}")
    unpack = _unpack_cityscapes(root, "images")
    if not _has_folders(found, "leftImg8bit", fix=unpack):
        return
    if split is not None:
        splits = [split]
    elif found.listed:
        splits = ["train"]  # the released list is one of the training images
    else:
        splits = ["train", "val"] + (["test"] if (root / "leftImg8bit" / "test").is_dir() else [])
    for name in splits:
        try:
            images = cityscapes.open_images(root, name)
        except DataError as error:
            found.add("error", str(error), root / "leftImg8bit" / name, unpack)
            continue
        found.parts.append(_cityscapes_part(found, name, images, labels))


def _cityscapes_part(found: Examination, name: str, images: ImageSet, labels: str) -> Part:
    """Return a split with the labels it has; those of "test" are not public."""
    truth, made = found.root / "gtFine" / name, labels == "labelTrainIds"
    unpack = _unpack_cityscapes(found.root, "labels")
    make = f"cbst-mx prepare cityscapes {found.root}" if made else unpack
    part = Part(name, images, published.SIZES["cityscapes"], mend_image=_unpack_cityscapes(found.root, "images"))
    if name == "test":
        return part

    def label_of(image: Path) -> Path:
        stem = image.name[: -len("_leftImg8bit.png")]
        return truth / image.parent.name / f"{stem}_gtFine_{labels}.png"

    label_files = matching_images(truth, f"*/*_gtFine_{labels}.png").files if truth.is_dir() else ()
    if not label_files and not made and any(truth.glob("*/*_gtFine_labelTrainIds.png")):
        what = f"the labelIds of {name} are missing, there are labelTrainIds alone"
        found.add("error", what, truth, f"{unpack}; or use labels: labelTrainIds (19 classes only)")
        return part
    pairs, label_paths = _paired(found, images.image_paths, label_of, label_files, make)
    names = dict(zip(images.image_paths, images.names))
    part.images = LabelledImageSet(
        [names[path] for path in pairs],
        pairs,
        label_paths,
        CITYSCAPES_19,
        cityscapes.LABEL_FILES[labels],
    )
    part.mend_label = _delete_and(make) if made else make
    part.mend_size = f"{_AS_DOWNLOADED}: Cityscapes is not resized on the disk"
    return part


def _count_cityscapes(found: Examination, part: Part) -> None:
    where, want = found.root / "leftImg8bit" / part.name, published.CITYSCAPES[part.name]
    cities = Counter(path.parent.name for path in cityscapes.open_images(found.root, part.name).image_paths)
    few = [f"{city} {cities[city]} of {number}" for city, number in want.items() if cities[city] < number]
    if few:
        missing = sum(max(0, number - cities[city]) for city, number in want.items())
        images = counted(sum(want.values()), "image")
        text = f"{missing:,} of {images} of {part.name} missing: {listed(few, what='city')}"
        found.add("error", text, where, _unpack_cityscapes(found.root, "images") + _archives_left(found.root))
    many = sorted(city for city in cities if cities[city] > want.get(city, 0))
    if many:
        found.add("warning", f"{part.name} has more images than published: {listed(many)}", where)


# --- nthu ---------------------------------------------------------------------------------------------------------


_UNPACK_NTHU = "unpack the download of NTHU Cross-City again"


def _open_nthu(found: Examination, split: str | None = None, city: str | None = None) -> None:
    found.label_space = NTHU_13
    if city is not None and city not in nthu.CITIES:
        raise ConfigError(f"city must be one of {', '.join(nthu.CITIES)}, got {city!r}")
    if split not in (None, "train", "test"):
        raise ConfigError(f"split must be one of train, test for nthu, got {split!r}")
    itself = found.root.name if found.root.name in nthu.CITIES and (found.root / "Images").is_dir() else None
    only = city or itself
    cities = [only] if only else [*nthu.CITIES]
    fix = _UNPACK_NTHU if city else f"{_UNPACK_NTHU}; or check one city with --city"
    if not itself and not _has_folders(found, *cities, fix=fix):
        return
    for name in cities:
        base = found.root if itself == name else found.root / name
        try:
            _open_city(found, name, base, split)
        except DataError as error:  # x.jpg beside x.png
            found.add("error", str(error), base / "Images", "delete the one that the archive does not have")


def _open_city(found: Examination, name: str, base: Path, split: str | None) -> None:
    train, test = (nthu.list_images(base / "Images" / part) for part in ("Train", "Test"))
    for directory, images in (("Train", train), ("Test", test)):
        if split in (None, directory.lower()) and not images:
            fix = _UNPACK_NTHU + _archives_left(found.root)
            found.add("error", f"{name} has no image in Images/{directory}", base, fix)
    if split != "test" and train:
        images_alone = ImageSet([path.stem for path in train], train)
        found.parts.append(Part(f"{name} train", images_alone, mend_image=_UNPACK_NTHU))
        shared = {path.stem for path in test} & {path.stem for path in train}
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

        label_files = [path for path in nthu.list_images(truth) if path.name.lower().endswith("_eval.png")]
        pairs, labels = _paired(found, test, label_of, label_files, _UNPACK_NTHU)
        part = Part(
            f"{name} test",
            LabelledImageSet([path.stem for path in pairs], pairs, labels, NTHU_13, "cityscapes"),
            size=published.SIZES["nthu"],
            mend_image=_UNPACK_NTHU,
            mend_label=_UNPACK_NTHU,
            mend_size=_AS_DOWNLOADED,
        )
        found.parts.append(part)


def _count_nthu(found: Examination, part: Part) -> None:
    city, split = part.name.split()
    base = found.root if found.root.name == city else found.root / city
    where, want = base / "Images" / split.capitalize(), published.NTHU[split.capitalize()]
    count = len(nthu.list_images(where))
    text = f"{part.name} has {counted(count, 'image')}, the publisher's {want:,}"
    if count < want:
        found.add("error", text, where, _UNPACK_NTHU + _archives_left(found.root))
    elif count > want:
        found.add("warning", text, where)


# --- one's own ----------------------------------------------------------------------------------------------------


def _open_folder(
    found: Examination,
    split: str | None = None,
    description: PathLike | None = None,
    list: PathLike | None = None,
) -> None:
    if description is None:
        raise ConfigError("description must be given for folder")
    described = folder.read_description(description)
    found.label_space = folder.label_space(described)
    if split is not None and split not in described.splits:
        raise ConfigError(f"split must be one of {', '.join(described.splits)}, got {split!r}")
    names = [*described.splits] if split is None else [split]
    if list is not None and len(names) > 1:
        raise ConfigError(f"a list chooses among the images of one part, got {', '.join(names)}: give split as well")
    known: set[Path] = set()  # images and labels of all splits
    for name in names:
        mend = f"correct the split {name!r} in {description}, or put the files where it says"
        if list is not None:
            mend = f"correct the list {list_path(list, found.root)}; or {mend}"
        images: ImageSet
        try:
            images = folder.open_images(described, found.root, name, list)
            if described.splits[name].labels is not None:
                images = folder.open_labelled(described, found.root, name, list)
        except DataError as error:
            found.add("error", str(error), found.root, mend)
            continue
        if isinstance(images, LabelledImageSet) and images.left_out:
            text = f"{counted(images.left_out, 'image')} of {name} without a label: left out (unlabelled: skip)"
            found.add("note", text, found.root)
        files = folder.find_images(described, found.root, name)
        if list is None and files.remark():
            found.add("note", f"files of {name}: {files.remark()}", found.root)
        known.update(files.files, images.label_paths if isinstance(images, LabelledImageSet) else ())
        found.parts.append(_own_part(name, images))
    whole = len(found.parts) == len(described.splits) and not any(one.list for one in described.splits.values())
    if whole and list is None:
        beside = images_beside([path for part in found.parts for path in part.images.image_paths], known)
        what = "beside those of the splits, and in none of them"
        found.add_files("note", "image", beside, ARE, what, "")


def _own_part(name: str, images: ImageSet) -> Part:
    ids = tuple((colour, bits) for colour in ("palette", "grey") for bits in (1, 2, 4, 8, 16))
    colours = (("rgb", 8), ("rgba", 8), *(("palette", bits) for bits in (1, 2, 4, 8)))
    in_colours = isinstance(images, LabelledImageSet) and isinstance(images.read, ColourMasks)
    return Part(
        name,
        images,
        label_kinds=colours if in_colours else ids,
        mend_image="replace the files",
        mend_label="replace the files",
        mend_size="give each label the size of its image",
    )


def open_any(found: Examination, dataset: str, **options: Any) -> None:
    """Open data of a format that has no layout here, as its reader does, with labels.

    Parameters
    ----------
    found : Examination
        Gets the one part, or what is wrong.
    dataset : str
        Name of the format.
    **options
        Options of its reader.
    """
    for name in FORMATS[dataset].needed:
        if name not in options:
            raise ConfigError(f"{name} must be given for {dataset}")
    found.label_space = get_label_space(FORMATS[dataset].label_space)
    try:
        images = FORMATS[dataset].open_labelled(found.root, label_space=found.label_space, **options)
    except DataError as error:
        found.add("error", str(error), found.root, "unpack the data again, or give another folder")
    else:
        found.parts.append(_own_part("", images))


LAYOUTS = {
    "gta5": Layout(_open_gta5, _count_gta5, ("images/0[0-9][0-9][0-9][0-9].png", "labels/0[0-9][0-9][0-9][0-9].png")),
    "synthia": Layout(_open_synthia, _count_synthia, ("RGB/*.png", "GT/LABELS/*.png")),
    "cityscapes": Layout(_open_cityscapes, _count_cityscapes, ("leftImg8bit/*/*/*_leftImg8bit.png",)),
    "nthu": Layout(_open_nthu, _count_nthu, ("*/Images/Train/*", "*/Labels/Test/*_eval.png")),
    "folder": Layout(_open_folder),
}
