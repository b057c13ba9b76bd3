"""Commands on generated street scenes: ``demo-data`` and ``demo``."""

from __future__ import annotations

import functools
from pathlib import Path

import click

from cbst_mx.cli.base import FILE, FOLDER, Bars, Terminal, echo

__all__ = ["COMMANDS"]


_SHIFT = click.option(
    "--shift", default=0.7, show_default=True, help="Strength of the target's change in appearance; 0 = none."
)
_SHIFT_SEED = click.option("--shift-seed", default=0, show_default=True, help="Seed of the random part of that change.")


@click.command("demo-data")
@click.argument("out", type=FOLDER)
@click.option("--source", "source_count", default=400, show_default=True, help="Labelled source images.")
@click.option("--source-val", "source_val_count", default=50, show_default=True, help="Held-out source images.")
@click.option("--target", "target_count", default=150, show_default=True, help="Target training images.")
@click.option("--target-val", "target_val_count", default=50, show_default=True, help="Target validation images.")
@click.option(
    "--size",
    nargs=2,
    type=int,
    default=(128, 256),
    show_default=True,
    metavar="H W",
    help="Height and width in pixels.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of the scenes.")
@_SHIFT
@_SHIFT_SEED
def demo_data(out: Path, size: tuple[int, int], seed: int, shift: float, shift_seed: int, **counts: int) -> None:
    """Write generated street scenes of two domains to OUT.

    Writes OUT/gta5 and OUT/gta5_val in the format of GTA5 (images/00001.png, labels/00001.png) and OUT/cityscapes in
    the format of Cityscapes (leftImg8bit and gtFine with train and val). OUT must be new or empty.
    """
    from cbst_mx.data.street_scenes import Shift, write_demo_data

    with Bars(Terminal()) as bars:
        write_demo_data(
            out,
            size=size,
            seed=seed,
            shift=Shift(strength=shift, seed=shift_seed),
            progress=functools.partial(bars, "street scenes"),
            **counts,
        )
    echo(f"street scenes in {out}")


@click.command()
@click.option("--out", required=True, type=FOLDER, help="Folder for data, runs, tables and the picture.")
@click.option("--seeds", default="0", show_default=True, help="Comma-separated seeds; each is a whole repetition.")
@_SHIFT
@_SHIFT_SEED
@click.option("--experiment", type=FILE, help="Another experiment to repeat. Default: the demo's own.")
@click.option("--ctx", help="Devices: cpu, gpu:0, or several as gpu:0,1. Default: the experiment's.")
def demo(out: Path, seeds: str, shift: float, shift_seed: int, experiment: Path | None, ctx: str | None) -> None:
    """Do the whole job on generated street scenes: source-only, ST, CBST and CBST-SP, a table and a picture.

    Runs from any folder. Writes OUT/seed-N/ with the scenes (data/) and one run folder per method, OUT/results.json and
    OUT/results.md (the table), OUT/comparison.png and OUT/report.html. Goes on where an earlier call was stopped.
    """
    from cbst_mx.demo import METHODS, find_experiment, run_demo  # imports mxnet
    from cbst_mx.report.tables import iou_table, mean_std_table

    try:
        numbers = [int(text) for text in seeds.split(",")]
    except ValueError:
        raise click.BadParameter(
            f"must be integers with commas between them, got {seeds!r}", param_hint="--seeds"
        ) from None
    console = Terminal()
    with Bars(console) as bars:
        result = run_demo(
            experiment or find_experiment(),
            out,
            numbers,
            shift_strength=shift,
            shift_seed=shift_seed,
            ctx=ctx,
            progress=bars,
            follow=bars.follow,
        )
    first = result.rows[numbers[0]]
    console.print(iou_table({METHODS[name]: first[name] for name in first}, result.label_space))
    if len(numbers) > 1:
        console.print(
            mean_std_table({METHODS[m]: [result.rows[n][m] for n in numbers] for m in METHODS}, result.label_space)
        )
    for number in numbers:
        source = ", ".join(f"{METHODS[m]} {100 * result.source_rows[number][m]['miou']:.1f}" for m in METHODS)
        echo(f"seed {number}, mIoU on held-out source images: {source}")
    echo(f"took {bars.taken()}; results in {result.results}")
    echo(f"picture: {result.picture}")
    if result.report is not None:
        echo(f"report: {result.report}")


COMMANDS = (demo_data, demo)
