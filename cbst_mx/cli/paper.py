"""Commands on the paper's numbers: ``paper table`` and ``check-paper``."""

from __future__ import annotations

from pathlib import Path

import click

from cbst_mx.cli.base import FOLDER, Terminal, choice, echo

__all__ = ["COMMANDS"]

_TABLE = click.IntRange(1, 3)


@click.group()
def paper() -> None:
    """Print the published numbers."""


@paper.command()
@click.argument("number", type=_TABLE)
@click.option("--all", "everything", is_flag=True, help="Also the methods the authors compare with.")
def table(number: int, everything: bool) -> None:
    """Print table NUMBER: 1 (NTHU cities), 2 (SYNTHIA) or 3 (GTA5), by network, IoU in %.

    Says below where each row was copied from and which means its cells do not give.
    """
    from cbst_mx.evaluation.paper_tables import EVIDENCE, TABLES, PaperRow, rows
    from cbst_mx.report.tables import paper_table

    groups: dict[tuple[str, str, bool], list[PaperRow]] = {}
    chosen = rows(number, own=not everything)
    for row in chosen:
        groups.setdefault((row.city, row.network, row.own), []).append(row)
    console = Terminal()
    echo(TABLES[number].title)
    for (city, network, own), members in groups.items():
        title = ", ".join(filter(None, (city, network, "" if own else "compared methods")))
        console.print()
        console.print(paper_table(members, title=title))
    console.print()
    for row in chosen:
        for note in row.notes:
            where = f"{row.city}, " if row.city else ""
            echo(f"? {where}{row.network}, {row.method}: {note}")
    codes = "; ".join(f"{code} {meaning}" for code, meaning in EVIDENCE.items())
    echo(f"evidence, with the number of the table: {codes}")


@click.command("check-paper")
@click.argument("runs", nargs=-1, required=True, type=FOLDER)
@click.option("--table", "number", type=_TABLE, help="Table of the paper. Default: the experiment's.")
@click.option("--row", help='Row as printed, such as "CBST-SP". Default: the experiment\'s.')
@click.option("--network", type=choice(["resnet38", "fcn8s"]), help="Network of the row. Default: the run's.")
@click.option(
    "--tolerance",
    type=click.FloatRange(0, min_open=True),
    help="Allowed difference of means in points, up and down; classes get it times the square root of their number.",
)
def check_paper(
    runs: tuple[Path, ...],
    number: int | None,
    row: str | None,
    network: str | None,
    tolerance: float | None,
) -> None:
    """Compare RUNS with a row of the paper's tables, class by class; exit code 3 where a number is off.

    One run folder, or the runs of all folds of an NTHU city (or the folder they are in), whose mean counts. Reads
    summary.json, experiment.yaml and manifest.json. The result of a run is its last round, of a row without
    self-training its source network. A missing number counts as off. Where a row's cells do not give the mean it
    states, only means are judged. Smoke tests are not judged. Two more lines compare the round that target labels would
    choose, and the one that a score without labels would, which are not the run's result and change nothing of the exit
    code.
    """
    from cbst_mx.evaluation.paper_check import TOLERANCE, check, class_tolerance, find_run_row
    from cbst_mx.evaluation.run_experiment import find_runs
    from cbst_mx.evaluation.run_results import BEST, UNLABELLED
    from cbst_mx.report.tables import check_table

    folders = [folder for path in runs for folder in find_runs(path)]
    wanted = find_run_row(folders[0], table=number, row=row, network=network)
    result = check(wanted, folders, tolerance=TOLERANCE if tolerance is None else tolerance)
    name = ", ".join(filter(None, (f"table {wanted.table}", wanted.city, wanted.network, wanted.method)))
    echo(f"{name}: {', '.join(str(folder) for folder in folders)}, {result.stage}")
    Terminal().print(check_table(result))
    for note in result.notes:
        echo(f"note: {note}")
    allowed = TOLERANCE if tolerance is None else tolerance
    classes = class_tolerance(allowed, len(wanted.iou))
    echo(
        f"tolerance: {allowed:g} points up or down for means, {classes:.1f} for classes"
        + ("; our choice: the published numbers are of one run each, without a spread" if tolerance is None else "")
    )
    if result.best is not None:
        echo(f"{BEST}: round {result.best.round}, mIoU {result.best.miou:.1f}: {result.best.verdict}")
    if result.chosen is not None:
        echo(f"{UNLABELLED}: round {result.chosen.round}, mIoU {result.chosen.miou:.1f}: {result.chosen.verdict}")
    echo(f"verdict: {result.verdict}")
    if result.missed:
        raise click.exceptions.Exit(3)


COMMANDS = (paper, check_paper)
