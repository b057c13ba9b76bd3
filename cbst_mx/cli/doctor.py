"""The command ``doctor``: check a data root before a long run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cbst_mx.cli.base import FILE, FOLDER, FORMAT, Bars, Terminal, echo
from cbst_mx.messages import counted

__all__ = ["COMMANDS"]

_STYLES = {"error": "red", "warning": "yellow", "note": "cyan"}


@click.command()
@click.argument("dataset", type=FORMAT)
@click.argument("root", type=FOLDER)
@click.option(
    "--sample", type=click.IntRange(1), default=50, show_default=True, help="Images of each part to read in full."
)
@click.option("--all", "everything", is_flag=True, help="Read all images in full.")
@click.option("--list", "list_file", type=FILE, help="Check only the images that this text file names.")
@click.option("--split", help="Check only this split (cityscapes, nthu, folder).")
@click.option("--city", help="Check only this city (nthu).")
@click.option("--labels", help="Which label files (cityscapes: labelIds, labelTrainIds; synthia: raw, ids, trainIds).")
@click.option("--description", type=FILE, help="YAML description (folder).")
@click.option("--json", "json_file", type=FILE, help="Write the report as JSON here as well.")
def doctor(
    dataset: str,
    root: Path,
    sample: int,
    everything: bool,
    list_file: Path | None,
    split: str | None,
    city: str | None,
    labels: str | None,
    description: Path | None,
    json_file: Path | None,
) -> None:
    """Check the data of DATASET in ROOT and say what is wrong and what mends it.

    Looks at the number, pairs, sizes, colour types and ends of all files, and reads a sample of them in full: damage,
    ids, class frequencies. Writes nothing, or with --json a report. The exit code is 1 where something is wrong;
    warnings and notes do not count.
    """
    from cbst_mx.data.doctor import examine
    from cbst_mx.files import write_json

    console = Terminal()
    with Bars(console) as bars:
        report = examine(
            dataset,
            root,
            sample=None if everything else sample,
            # A path that exists from here is meant as it stands; any other starts at the root.
            list=list_file.absolute() if list_file is not None and list_file.is_file() else list_file,
            split=split,
            city=city,
            labels=labels,
            description=description,
            progress=bars,
        )
    if json_file is not None:
        write_json(json_file, report.to_json())
    _show(console, report)
    if not report.ok:
        raise click.exceptions.Exit(1)


def _show(console: Terminal, report: Any) -> None:
    from cbst_mx.report.tables import plain_table

    if report.frequencies:
        title = f"classes in {counted(report.labels_read, 'label')}"
        table = plain_table("class", "pixels %", "labels with it", title=title)
        for name, share in report.frequencies.items():
            table.add_row(name, f"{100 * share:.2f}", f"{report.presence[name]:,}")
        console.print(table)
        echo(f"{100 * report.ignored:.1f} % of all pixels are ignored; the classes' shares are of the others")
    for part, count in report.images.items():
        echo(counted(count, "image") if part == "images" else f"{part}: {counted(count, 'image')}")
    echo(f"{report.examined:,} of {counted(sum(report.images.values()), 'image')} read in full")
    for finding in report.findings:
        click.secho(f"{finding.severity}: ", fg=_STYLES[finding.severity], nl=False)
        echo(f"{finding.what} ({finding.where})" + (f"; fix: {finding.fix}" if finding.fix else ""))
    errors = sum(finding.severity == "error" for finding in report.findings)
    warnings = sum(finding.severity == "warning" for finding in report.findings)
    verdict = "fine" if report.ok else "not fine"
    echo(f"{report.dataset} in {report.root}: {verdict}, {counted(errors, 'error')}, {counted(warnings, 'warning')}")


COMMANDS = (doctor,)
