"""Write the labels of SYNTHIA-RAND-CITYSCAPES as 8-bit trainId PNGs beside the originals.

    python tools/prepare_synthia.py ROOT

ROOT holds RGB and GT/LABELS; the results go to ROOT/GT/LABELS_synthia-16 under the same file names. They take a
hundredth of the originals' space and are quicker to read: use them with ``labels: trainIds``. The originals stay as
they are. A run that was stopped continues where it was.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
from rich.console import Console

from cbst_mx.cli.base import FOLDER, Bars
from cbst_mx.data import synthia
from cbst_mx.data.prepare import write_train_ids
from cbst_mx.errors import CBSTError
from cbst_mx.label_space import SYNTHIA_16


@click.command(help=__doc__)
@click.argument("root", type=FOLDER)
@click.option("--labels", type=click.Choice(["raw", "ids"]), default="raw", help="What GT/LABELS holds.")
@click.option("--workers", type=click.IntRange(1), default=min(4, os.cpu_count() or 1), help="Number of threads.")
def main(root: Path, labels: str, workers: int) -> None:
    images = synthia.open_labelled(root, SYNTHIA_16, labels=labels)
    folder = synthia.label_folder(root, "trainIds", SYNTHIA_16)
    outputs = [folder / path.name for path in images.label_paths]
    with Bars(Console()) as bars:
        written = write_train_ids(images, outputs, workers=workers, progress=lambda *done: bars("labels", *done))
    click.echo(f"{written:,} of {len(images):,} labels written, the others were there: {folder}")


if __name__ == "__main__":
    try:
        main()
    except CBSTError as error:
        sys.exit(f"Error: {error}")
