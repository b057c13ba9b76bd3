"""Write the labels of Cityscapes as trainId PNGs (*_gtFine_labelTrainIds.png) beside the originals.

    python tools/prepare_cityscapes.py ROOT

ROOT holds leftImg8bit and gtFine. The trainIds are those of the 19 classes: use them with ``labels: labelTrainIds``,
which the 16 and 13 class settings do not accept. Nothing here needs them, labelIds are read as they are. Files that
are there already, such as those of the data set's own scripts, stay as they are; so do the originals. A run that was
stopped continues where it was.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
from rich.console import Console

from cbst_mx.cli.base import FOLDER, Bars
from cbst_mx.data import cityscapes
from cbst_mx.data.prepare import write_train_ids
from cbst_mx.errors import CBSTError
from cbst_mx.label_space import CITYSCAPES_19


@click.command(help=__doc__)
@click.argument("root", type=FOLDER)
@click.option("--split", "splits", multiple=True, default=("train", "val"), help="Which splits; may be repeated.")
@click.option("--workers", type=click.IntRange(1), default=min(4, os.cpu_count() or 1), help="Number of threads.")
def main(root: Path, splits: tuple[str, ...], workers: int) -> None:
    for split in splits:
        images = cityscapes.open_labelled(root, split, CITYSCAPES_19)
        outputs = [path.with_name(path.name.replace("_labelIds", "_labelTrainIds")) for path in images.label_paths]
        with Bars(Console()) as bars:
            report = (lambda name: lambda *done: bars(name, *done))(split)
            written = write_train_ids(images, outputs, workers=workers, progress=report)
        click.echo(f"{split}: {written:,} of {len(images):,} labels written, the others were there")


if __name__ == "__main__":
    try:
        main()
    except CBSTError as error:
        sys.exit(f"Error: {error}")
