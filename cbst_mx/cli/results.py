"""Commands on results: ``results``, and ``export-server`` and ``validate-server`` for the Cityscapes server."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cbst_mx.cli.base import FILE, FOLDER, Bars, Terminal, choice, echo
from cbst_mx.errors import ConfigError, DataError, RunError, check_choice
from cbst_mx.messages import counted, stage_title

if TYPE_CHECKING:
    from cbst_mx.evaluation.protocols import ImageMatrices
    from cbst_mx.evaluation.run_results import RunResults

__all__ = ["COMMANDS"]

_SPLIT = click.option(
    "--split", type=choice(["test", "val"]), default="test", show_default=True, help="1,525 or 500 images."
)


@click.command()
@click.argument("run", type=FOLDER)
@click.option("--round", "index", type=click.IntRange(0), help="Which round, 0 is the source. Default: the last done.")
@click.option("--set", "name", help="Which validation set. Default: all.")
@click.option("--samples", default=1000, show_default=True, type=click.IntRange(1), help="Bootstrap samples.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the bootstrap.")
@click.option("--worst", default=10, show_default=True, type=click.IntRange(0), help="How many of the worst images.")
@click.option("--snapshots", is_flag=True, help="The epochs at which the source network was kept, side by side.")
@click.option("--out", type=FILE, help="Write the results as JSON here as well.")
def results(
    run: Path,
    index: int | None,
    name: str | None,
    samples: int,
    seed: int,
    worst: int,
    snapshots: bool,
    out: Path | None,
) -> None:
    """Score a round of RUN by every protocol, with an interval over images, and list the worst images.

    Reads experiment.yaml, manifest.json, and confusion.npz and evaluation.json of the round; no network and no image is
    needed, and the run may still be going. Each protocol names the table of the paper it belongs to: numbers of
    different protocols cannot be compared. The interval is where the mean falls for 95 % of bootstrap samples of the
    images; it says nothing of another training run.
    """
    from cbst_mx.evaluation.paper_check import find_best_round
    from cbst_mx.evaluation.run_results import BEST, RunResults
    from cbst_mx.files import write_json

    opened = RunResults(run)
    if not opened.evaluated:
        raise RunError(f"{run} has no results yet: no stage has been evaluated")
    if snapshots:
        _show_snapshots(opened, out)
        return
    chosen = opened.evaluated[-1] if index is None else index
    if opened.leading is None:
        if name is not None:
            raise ConfigError(f"set must be left out: {run} has no validation set, got {name!r}")
        _show_label_free(opened, out, None if index is None else [index])
        return
    sets = opened.matrices(chosen)
    if name is not None:
        check_choice("set", name, sets)
    record = [
        _show_set(opened, chosen, title, sets[title], samples=samples, seed=seed, worst=worst)
        for title in ([name] if name else sets)
    ]
    echo(opened.adaptation)
    best = find_best_round(opened)
    if best is not None:
        echo(f"{BEST} on {opened.leading}: {best.text}")
        for one in record:
            if one["set"] == opened.leading:
                one["best_round"] = {**vars(best), "chosen": BEST}
    _show_choice(opened)
    if out:
        write_json(out, record)
        echo(f"results in {out}")


def _show_choice(run: RunResults) -> None:
    """Print the round that the label-free score would choose, where all rounds have one."""
    from cbst_mx.evaluation.run_results import UNLABELLED

    choice = run.label_free_choice()
    if choice is not None:
        miou = "" if run.leading is None else f", mIoU {100 * run.miou(choice.stage):.1f}"
        echo(f"{UNLABELLED}: round {choice.stage}, {choice.score:.3f}{miou}")


def _show_snapshots(run: RunResults, out: Path | None) -> None:
    """Print the snapshots of the source training and which one each rule takes, and write them where asked."""
    from cbst_mx.evaluation.snapshots import RULES, as_json, choose, read_snapshots
    from cbst_mx.files import write_json
    from cbst_mx.report.tables import snapshot_table

    found = read_snapshots(run)
    chosen = choose(found)
    echo(f"source network after {', '.join(str(one.epoch) for one in found)} epochs")
    Terminal().print(snapshot_table(found, chosen))
    for rule in chosen:
        echo(RULES[rule])
    if out:
        write_json(out, as_json(found))
        echo(f"results in {out}")


def _show_label_free(run: RunResults, out: Path | None, stages: list[int] | None) -> None:
    """Print what the stages of a run without a validation set predict, and write it where asked."""
    from cbst_mx.files import write_json
    from cbst_mx.report.tables import label_free_table

    record = [
        {"round": stage, "target": run.adaptation, **run.label_free(stage)}
        for stage in (run.evaluated if stages is None else stages)
    ]
    titles = [stage_title(one["round"]) for one in record]
    echo(f"no validation set: predictions on the target's {counted(record[0]['images'], 'image')}, without labels")
    Terminal().print(label_free_table(dict(zip(titles, record))))
    echo(run.adaptation)
    _show_choice(run)
    if out:
        write_json(out, record)
        echo(f"results in {out}")


def _show_set(
    run: RunResults, index: int, name: str, matrices: ImageMatrices, *, samples: int, seed: int, worst: int
) -> dict[str, Any]:
    """Print the scores of one validation set and return them as JSON values."""
    from cbst_mx.evaluation import protocols
    from cbst_mx.evaluation.paper_tables import TABLES, matches_table
    from cbst_mx.report.tables import class_table, protocol_table, worst_images_table

    console = Terminal()
    try:
        scored, refused = protocols.evaluate(matrices, samples=samples, seed=seed)
    except DataError as error:
        raise DataError(f"{run.folder.stage(index).confusion}, {name}: {error}") from error
    bad = protocols.worst_images(matrices, worst)
    stage = stage_title(index) + (f" of {run.rounds}" if index else "")
    drawn = counted(samples, "bootstrap sample")
    echo(f"{stage}, {name}, {counted(len(matrices.images), 'image')}; {drawn}, seed {seed}")
    console.print(protocol_table(scored))
    for protocol, reason in refused.items():
        echo(f"{protocol} cannot be computed: {reason}")
    data, images = run.validation(name), run.images(name)
    described = {} if data is None else data.model_dump()
    tables = [number for number in TABLES if matches_table(number, described, images)]
    if not tables or run.settings.smoke:
        echo("These are not the images of the paper's tables, or a smoke test: compare no number with them.")
    console.print(class_table(matrices))
    if bad:
        console.print(worst_images_table(bad))
    return {
        "round": index,
        "set": name,
        "target": run.adaptation,
        "images": len(matrices.images),
        "bootstrap": {"samples": samples, "seed": seed, "level": protocols.LEVEL},
        "protocols": [result.to_json() for result in scored],
        "not_computed": refused,
        "tables": tables,
        "worst_images": [vars(image) for image in bad],
    }


@click.command()
@click.argument("base", type=FOLDER)
@click.argument("runs", type=FOLDER, nargs=-1, required=True)
@click.option("--set", "name", help="Which validation set. Default: the one that the first run names first.")
@click.option("--samples", default=1000, show_default=True, type=click.IntRange(1), help="Bootstrap samples.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the bootstrap.")
@click.option("--out", type=FILE, help="Write the comparison as JSON here as well.")
def compare(base: Path, runs: tuple[Path, ...], name: str | None, samples: int, seed: int, out: Path | None) -> None:
    """Compare RUNS with BASE on the same images: mIoU over the seeds, gain, and its interval.

    Each is a run folder, or a folder of runs that differ in their seeds and are compared seed by seed. The last
    evaluated stage of a run counts. The interval is where the mean gain falls for 95 % of bootstrap samples of the
    images, drawn once for both runs of every pair; it says nothing of other seeds.
    """
    from cbst_mx.evaluation.comparison import compare as compare_runs
    from cbst_mx.evaluation.comparison import differ_in_target
    from cbst_mx.files import write_json
    from cbst_mx.report.tables import comparison_table

    rows = compare_runs([base, *runs], name=name, samples=samples, seed=seed)
    Terminal().print(comparison_table(rows))
    for target in dict.fromkeys(row.target for row in rows):
        echo(f"{', '.join(row.name for row in rows if row.target == target)}: {target}")
    if differ_in_target(rows):
        echo("adapted on different images: a gain is not of the method alone")
    echo(f"seeds {', '.join(map(str, rows[0].seeds))}; {samples} bootstrap samples of the images, seed {seed}")
    if out:
        write_json(out, [row.to_json() for row in rows])
        echo(f"comparison in {out}")


@click.command("export-server")
@click.argument("predictions", type=FOLDER)
@click.option("--out", required=True, type=FILE, help="The .zip file to write.")
@click.option(
    "--label-space",
    "space_name",
    default="cityscapes-19",
    show_default=True,
    type=choice(["cityscapes-19", "synthia-16", "nthu-13"]),
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
    with Bars(Terminal()) as bars:
        export(found, out, label_space=get_label_space(space_name), progress=functools.partial(bars, "pack"))
    echo(f"{counted(len(found), 'image')} in {out}")
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

    with Bars(Terminal()) as bars:
        found = problems(archive, split=split, progress=functools.partial(bars, "check"))
    for problem in found:
        echo(problem)
    if found:
        echo(f"{archive}: {len(found)} problem{'s' if len(found) > 1 else ''}")
        raise click.exceptions.Exit(1)
    echo(f"{archive}: nothing wrong")


COMMANDS = (results, compare, export_server, validate_server)
