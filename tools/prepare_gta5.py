"""Make a copy of GTA5 whose images and labels are all 1052 x 1914, as the released program wants them.

    python tools/prepare_gta5.py ROOT --out FOLDER

ROOT holds images and labels; FOLDER/images and FOLDER/labels get the results under the same file names. Most files
have the size already: those are linked (hard links, which take no space; copies on another disk), so do not change
them in place. Other images are resized bilinearly, their labels by the nearest pixel. The originals stay as they are.
A run that was stopped continues where it was.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
from rich.console import Console

from cbst_mx.cli.base import FOLDER, Bars
from cbst_mx.data import gta5
from cbst_mx.data.prepare import resize_pairs
from cbst_mx.errors import CBSTError
from cbst_mx.label_space import CITYSCAPES_19


@click.command(help=__doc__)
@click.argument("root", type=FOLDER)
@click.option("--out", required=True, type=FOLDER, help="Folder of the copy; made when it is not there.")
@click.option("--size", type=(int, int), default=(1052, 1914), show_default=True, help="Height and width in pixels.")
@click.option("--workers", type=click.IntRange(1), default=min(4, os.cpu_count() or 1), help="Number of threads.")
def main(root: Path, out: Path, size: tuple[int, int], workers: int) -> None:
    images = gta5.open_labelled(root, CITYSCAPES_19)
    with Bars(Console()) as bars:
        written = resize_pairs(
            images,
            out / "images",
            out / "labels",
            size,
            workers=workers,
            progress=lambda *done: bars("files", *done),
        )
    click.echo(f"{written:,} of {2 * len(images):,} files made, the others were there: {out}")


if __name__ == "__main__":
    try:
        main()
    except CBSTError as error:
        sys.exit(f"Error: {error}")
