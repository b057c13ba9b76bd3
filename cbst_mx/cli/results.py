"""Commands on results: ``results``, and ``export-server`` and ``validate-server`` for the Cityscapes server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from cbst_mx.cli.base import FILE, FOLDER, Bars

__all__ = ["COMMANDS"]

_SPLIT = click.option(
    "--split", type=click.Choice(["test", "val"]), default="test", show_default=True, help="1,525 or 500 images."
)


@click.command()
@click.argument("run", type=FOLDER)
@click.option("--round", "index", type=click.IntRange(0), help="Which round, 0 is the source. Default: the last done.")
@click.option("--set", "name", help="Which validation set. Default: all.")
@click.option("--samples", default=1000, show_default=True, type=click.IntRange(1), help="Bootstrap samples.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the bootstrap.")
@click.option("--worst", default=10, show_default=True, type=click.IntRange(0), help="How many of the worst images.")
@click.option("--out", type=FILE, help="Write the results as JSON here as well.")
def results(
    run: Path, index: int | None, name: str | None, samples: int, seed: int, worst: int, out: Path | None
) -> None:
    """Score a round of RUN by every protocol, with an interval over images, and list the worst images.

    Reads confusion.npz and evaluation.json of the round; no network and no image is needed. Each protocol names the
    table of the paper it belongs to: numbers of different protocols cannot be compared. The interval is where the mean
    falls for 95 % of bootstrap samples of the images; it says nothing of another training run.
    """
    from cbst_mx.errors import ConfigError, RunError
    from cbst_mx.evaluation import protocols
    from cbst_mx.evaluation.paper_numbers import TABLES, is_of_table
    from cbst_mx.files import read_json, write_json
    from cbst_mx.report.tables import protocol_table, worst_images_table
    from cbst_mx.run_dir import RunDir
    from cbst_mx.strict_yaml import read_yaml

    folder = RunDir(run)
    settings = read_yaml(folder.experiment)
    rounds = settings["self_training"]["rounds"]
    done = [number for number in range(rounds + 1) if folder.stage(number).evaluation.is_file()]
    if not done:
        raise RunError(f"{run} has no results yet: no stage has been evaluated")
    chosen = done[-1] if index is None else index
    sets = protocols.read_matrices(folder.stage(chosen))
    if name is not None and name not in sets:
        raise ConfigError(f"set must be one of {', '.join(sets)}, got {name!r}")
    images = read_json(folder.manifest).get("inputs", {}).get("images", {})
    console = Console()
    record: list[Any] = []
    for title in [name] if name else sets:
        matrices = sets[title]
        scored, refused = protocols.evaluate(matrices, samples=samples, seed=seed)
        bad = protocols.worst_images(matrices, worst)
        stage = "source" if chosen == 0 else f"round {chosen} of {rounds}"
        click.echo(f"{stage}, {title}, {len(matrices.images)} images; {samples} bootstrap samples, seed {seed}")
        console.print(protocol_table(scored))
        for protocol, reason in refused.items():
            click.echo(f"{protocol} cannot be computed: {reason}")
        data = settings["validation"].get(title, {})
        tables = [number for number in TABLES if is_of_table(number, data, images.get(f"validation {title}", 0))]
        if not tables or settings.get("smoke"):
            click.echo("These are not the images of the paper's tables, or a smoke test: compare no number with them.")
        if bad:
            console.print(worst_images_table(bad))
        record.append(
            {
                "round": chosen,
                "set": title,
                "images": len(matrices.images),
                "bootstrap": {"samples": samples, "seed": seed, "level": 0.95},
                "protocols": [result.to_json() for result in scored],
                "not_computed": refused,
                "tables": tables,
                "worst_images": [vars(image) for image in bad],
            }
        )
    if out:
        write_json(out, record)
        click.echo(f"results in {out}")


@click.command("export-server")
@click.argument("predictions", type=FOLDER)
@click.option("--out", required=True, type=FILE, help="The .zip file to write.")
@click.option(
    "--label-space",
    "space_name",
    default="cityscapes-19",
    show_default=True,
    type=click.Choice(["cityscapes-19", "synthia-16", "nthu-13"]),
    help="What the trainIds mean.",
)
@_SPLIT
def export_server(predictions: Path, out: Path, space_name: str, split: str) -> None:
    """Pack PREDICTIONS, a folder of trainId PNGs, for the Cityscapes evaluation server, and check the result.

    Reads every <city>_<sequence>_<frame>*.png, such as those that predict writes (overlays are left out), and writes
    one archive of label ids. The exit code is 1 where the archive is not what the server takes.
    """
    from cbst_mx.evaluation.server_export import export, find_predictions
    from cbst_mx.label_space import get_label_space

    found = find_predictions(predictions)
    with Bars(Console()) as bars:
        export(
            found, out, label_space=get_label_space(space_name), progress=lambda done, total: bars("pack", done, total)
        )
    click.echo(f"{len(found)} images in {out}")
    _check(out, split)


@click.command("validate-server")
@click.argument("archive", type=FILE)
@_SPLIT
def validate_server(archive: Path, split: str) -> None:
    """Check ARCHIVE, a zip file for the Cityscapes evaluation server; a line for each problem.

    Looks at names, number of images, size, colour type and values. The exit code is 1 where something is wrong.
    """
    _check(archive, split)


def _check(archive: Path, split: str) -> None:
    from cbst_mx.evaluation.server_export import problems

    with Bars(Console()) as bars:
        found = problems(archive, split=split, progress=lambda done, total: bars("check", done, total))
    for problem in found:
        click.echo(problem)
    if found:
        click.echo(f"{archive}: {len(found)} problem{'s' if len(found) > 1 else ''}")
        raise click.exceptions.Exit(1)
    click.echo(f"{archive}: nothing wrong")


COMMANDS = (results, export_server, validate_server)
