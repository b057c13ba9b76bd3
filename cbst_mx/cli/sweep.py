"""The command ``sweep``: many experiments with several seeds, here or on a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cbst_mx.cli.base import FILE, FOLDER, Bars, Terminal, echo, print_table
from cbst_mx.cli.cluster import cluster_options, opened
from cbst_mx.errors import RunError
from cbst_mx.messages import counted, listed

if TYPE_CHECKING:
    from cbst_mx.rounds.sweep import Row

__all__ = ["COMMANDS"]


@click.command()
@click.argument("experiments", nargs=-1, required=True, type=FILE)
@click.option("--seeds", default="0", show_default=True, help="Comma-separated seeds; each is a whole repetition.")
@click.option("--out", required=True, type=FOLDER, help="Folder of all run folders; the same command goes on in it.")
@click.option("--ctx", help="Device of every run. Default: each experiment's.")
@click.option("--smoke", is_flag=True, help="Tiny networks, one iteration a phase: only shows that every step runs.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a key of every experiment.")
@cluster_options
def sweep(
    experiments: tuple[Path, ...],
    seeds: str,
    out: Path,
    ctx: str | None,
    smoke: bool,
    changes: tuple[str, ...],
    where: Any,
) -> None:
    """Run every one of EXPERIMENTS with every seed, and tell mean and spread.

    A run is a task of its own in OUT/NAME/seed-S (and fold-F, where the images are in folds), one at a time, or with
    --cluster one on each worker. What an experiment starts from is run before it, with the same seed. What is done is
    not run again, a run that was stopped goes on, and one that fails does not stop the others. Writes OUT/results.json
    and OUT/report.html.
    """
    from cbst_mx.cluster.commands import run_command
    from cbst_mx.rounds.sweep import plan, sweep

    changes += (*([f"ctx={ctx}"] if ctx else []), *(["smoke=true"] if smoke else []))
    runs = plan([path.absolute() for path in experiments], _numbers(seeds), out.absolute(), changes=changes)
    echo(f"{counted(len(runs), 'run')} of {counted(len({run.name for run in runs}), 'experiment')}")
    with Bars(Terminal()) as bars, opened(where, threads=0) as cluster:
        result = sweep(runs, out, run_command, cluster=cluster, progress=bars)
    _print(result.rows)
    echo(f"results in {out / 'results.json'}")
    _report([run.folder for run in runs], out)
    if result.failed:
        told = [f"{title}: {said}" for title, said in result.failed.items()]
        raise RunError(
            f"{len(told):,} of {counted(len(runs), 'run')} failed, the same command tries them again: "
            f"{listed(told, 10, 'run')}"
        )


def _numbers(seeds: str) -> list[int]:
    try:
        return [int(text) for text in seeds.split(",")]
    except ValueError:
        raise click.BadParameter(
            f"must be integers with commas between them, got {seeds!r}", param_hint="--seeds"
        ) from None


def _print(rows: list[Row]) -> None:
    from cbst_mx.report.tables import plain_table

    def percent(value: float | None) -> str:
        return "" if value is None else f"{100 * value:.1f}"

    table = plain_table("experiment", "seeds", "mIoU in %", "mean", "std", "paper", words=["mIoU in %"])
    for row in rows:
        own = ", ".join(percent(value) for value in row.miou.values())
        table.add_row(row.name, str(len(row.miou)), own, percent(row.mean), percent(row.spread), percent(row.expected))
    print_table(table)


def _report(folders: list[Path], out: Path) -> None:
    """Write the report of all runs that have begun."""
    from cbst_mx.report.page import write_report

    begun = [folder for folder in folders if (folder / "manifest.json").is_file()]
    if begun:
        write_report(begun, out / "report.html")
        echo(f"report in {out / 'report.html'}")


COMMANDS = (sweep,)
