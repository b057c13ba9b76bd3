"""Commands that show runs: ``report``, a page that opens anywhere, and ``serve``, the same while a run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cbst_mx.cli.base import FILE, FOLDER, Bars, Terminal, echo
from cbst_mx.errors import RunError
from cbst_mx.messages import listed

__all__ = ["COMMANDS"]

_RUNS = click.argument("runs", type=FOLDER, nargs=-1, required=True)
_SET = click.option("--set", "name", help="Which validation set. Default: the one that the first run names first.")
_IMAGES = click.option(
    "--images", default=12, show_default=True, type=click.IntRange(0, 20), help="How many images in pictures."
)
_DATA = click.option(
    "--data", "data_root", type=FOLDER, help="Folder of the data sets, for pictures. Default: CBST_DATA."
)


@click.command()
@_RUNS
@click.option("--out", type=FILE, default=Path("report.html"), show_default=True, help="The page to write.")
@_SET
@_IMAGES
@_DATA
@click.option("--csv", "csv", type=FOLDER, help="Write every table as CSV into this folder as well.")
@click.option("--tensorboard", type=FOLDER, help="Write the runs as TensorBoard events into this folder as well.")
@click.option("--predict", is_flag=True, help="Predict the pictured images of runs that have kept no predictions.")
@click.option("--ctx", default="cpu", show_default=True, help="Device of --predict.")
def report(
    runs: tuple[Path, ...],
    out: Path,
    name: str | None,
    images: int,
    data_root: Path | None,
    csv: Path | None,
    tensorboard: Path | None,
    predict: bool,
    ctx: str,
) -> None:
    """Write a page that tells of RUNS: whether adaptation helped, where, and what happened in the rounds.

    Each is a run folder, or a folder below which runs are; runs that differ in their seeds only are one method. The
    page is one file that opens offline. Pictures need the images (--data, or CBST_DATA); a run that is still going is
    told as far as it has come.
    """
    from cbst_mx.report.page import write_report

    shown: dict[Path, Any] = {}
    if predict:
        from cbst_mx.rounds.evaluations import predict_shown

        with Bars(Terminal(stderr=True)) as bars:
            shown = predict_shown(runs, ctx=ctx, data_root=data_root, progress=bars)
    page = write_report(runs, out, name=name, images=images, data_root=data_root, shown=shown)
    for sentence in page.answers:
        echo(sentence)
    for sentence in page.missing:
        echo(sentence, err=True)
    echo(f"report in {out}")
    if csv is not None:
        from cbst_mx.report.csv_files import write_tables

        written = write_tables(runs, csv, name=name, data_root=data_root)
        echo(f"{listed([path.name for path in written], shown=10) or 'nothing to write yet'} in {csv}")
    if tensorboard is not None:
        from cbst_mx.report.tensorboard import write_events

        write_events(runs, tensorboard, name=name, data_root=data_root)
        echo(f"TensorBoard events in {tensorboard} (pip install tensorboard; tensorboard --logdir {tensorboard})")


@click.command()
@_RUNS
@_SET
@_IMAGES
@_DATA
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", default=8765, show_default=True, type=click.IntRange(0, 65535), help="Port; 0: a free one.")
def serve(runs: tuple[Path, ...], name: str | None, images: int, data_root: Path | None, host: str, port: int) -> None:
    """Show RUNS in a browser: a list of them, the report of each while it goes on, and several side by side.

    Each is a run folder, or a folder below which runs are. Nothing is written, no other file can be read; only this
    machine is answered unless --host names an address of it. Ctrl-C ends it.
    """
    from cbst_mx.report.server import open_server

    options = {"name": name, "images": images, "data_root": data_root}
    with open_server(runs, host=host, port=port, **options) as server:
        if not server.found():
            raise RunError(f"there is no run in {listed([str(run) for run in runs])}: a run folder has a manifest.json")
        echo(f"reports at {server.address} (Ctrl-C ends)")
        server.serve_forever()


COMMANDS = (report, serve)
