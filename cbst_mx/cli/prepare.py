"""The command ``prepare``: make files from a data set's own, once."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from cbst_mx.cli.base import FOLDER, Bars, Terminal, choice, echo
from cbst_mx.messages import cores, counted

__all__ = ["COMMANDS"]

_WORKERS = click.option("--workers", type=click.IntRange(1), default=min(4, cores()), help="Number of threads.")


@click.group()
def prepare() -> None:
    """Make labels of trainIds, or images of one size, from the files of a data set.

    The originals stay as they are, what is there already is not made again, and a run that was stopped continues where
    it was.
    """


@prepare.command()
@click.argument("root", type=FOLDER)
@click.option("--out", required=True, type=FOLDER, help="Folder of the copy; made when it is not there.")
@click.option(
    "--size", type=(int, int), metavar="H W", help="Height and width in pixels. Default: the published 1052 1914."
)
@_WORKERS
def gta5(root: Path, out: Path, size: tuple[int, int] | None, workers: int) -> None:
    """Make a copy of GTA5 whose images and labels are all 1052 x 1914, as the released program wants them.

    ROOT holds images and labels; OUT/images and OUT/labels get the results under the same file names. Most files have
    the size already: those are linked (hard links, which take no space; copies on another disk), so do not change them
    in place. Other images are resized bilinearly, their labels by the nearest pixel.
    """
    from cbst_mx.data import gta5 as reader
    from cbst_mx.data.prepare import resize_pairs
    from cbst_mx.data.published import SIZES
    from cbst_mx.label_space import CITYSCAPES_19

    images = reader.open_labelled(root, CITYSCAPES_19)
    with Bars(Terminal()) as bars:
        written = resize_pairs(
            images,
            out / "images",
            out / "labels",
            size or SIZES["gta5"],
            workers=workers,
            progress=partial(bars, "files"),
        )
    echo(f"{_made(written, 2 * len(images), 'file', 'made')}: {out}")


@prepare.command()
@click.argument("root", type=FOLDER)
@click.option("--labels", type=choice(["raw", "ids"]), default="raw", show_default=True, help="What GT/LABELS holds.")
@_WORKERS
def synthia(root: Path, labels: str, workers: int) -> None:
    """Write the labels of SYNTHIA-RAND-CITYSCAPES as 8-bit trainId PNGs beside the originals.

    ROOT holds RGB and GT/LABELS; the results go to ROOT/GT/LABELS_synthia-16 under the same file names. They take a
    hundredth of the originals' space and are quicker to read: use them with `labels: trainIds`.
    """
    from cbst_mx.data import synthia as reader
    from cbst_mx.data.prepare import write_train_ids
    from cbst_mx.label_space import SYNTHIA_16

    images = reader.open_labelled(root, SYNTHIA_16, labels=labels)
    folder = reader.label_folder(root, "trainIds", SYNTHIA_16)
    outputs = [folder / path.name for path in images.label_paths]
    with Bars(Terminal()) as bars:
        written = write_train_ids(images, outputs, workers=workers, progress=partial(bars, "labels"))
    echo(f"{_made(written, len(images), 'label', 'written')}: {folder}")


@prepare.command()
@click.argument("root", type=FOLDER)
@click.option("--split", "splits", multiple=True, default=("train", "val"), help="Which splits; may be repeated.")
@_WORKERS
def cityscapes(root: Path, splits: tuple[str, ...], workers: int) -> None:
    """Write the labels of Cityscapes as trainId PNGs (*_gtFine_labelTrainIds.png) beside the originals.

    ROOT holds leftImg8bit and gtFine. The trainIds are those of the 19 classes: use them with `labels: labelTrainIds`,
    which the 16 and 13 class settings do not accept. Nothing here needs them, labelIds are read as they are. Files that
    are there already, such as those of the data set's own scripts, stay.
    """
    from cbst_mx.data import cityscapes as reader
    from cbst_mx.data.prepare import write_train_ids
    from cbst_mx.label_space import CITYSCAPES_19

    for split in splits:
        images = reader.open_labelled(root, split, CITYSCAPES_19)
        outputs = [path.with_name(path.name.replace("_labelIds", "_labelTrainIds")) for path in images.label_paths]
        with Bars(Terminal()) as bars:
            written = write_train_ids(images, outputs, workers=workers, progress=partial(bars, split))
        echo(f"{split}: {_made(written, len(images), 'label', 'written')}")


def _made(number: int, total: int, noun: str, verb: str) -> str:
    """Return how many of all files were made, and how many were there before."""
    if number == total:
        return f"{counted(total, noun)} {verb}"
    return f"{number:,} of {counted(total, noun)} {verb}, {total - number:,} there before"


COMMANDS = (prepare,)
