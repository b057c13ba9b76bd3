"""Commands on run folders: ``status``, ``verify``, ``diff`` and ``branch``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cbst_mx.cli.base import FOLDER, Bars, Terminal, echo, print_table
from cbst_mx.messages import counted

__all__ = ["COMMANDS"]


@click.command()
@click.argument("run", type=FOLDER)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def status(run: Path, as_json: bool) -> None:
    """Say what RUN has done, how its networks look without labels, and what comes next.

    Reads experiment.yaml, ledger.jsonl and the records of the steps; no network and no image is needed, nothing is
    written, and the run may be going on. Large files count as unaltered when their size and time are as recorded: see
    verify.
    """
    from cbst_mx.evaluation.run_results import RunResults
    from cbst_mx.evaluation.run_status import next_steps, read_status, without_line
    from cbst_mx.report.tables import status_table
    from cbst_mx.run_dir.ledger import Ledger

    opened = RunResults(run)
    states = read_status(opened)
    following = next_steps(opened, states)
    lacking = without_line(opened, Ledger(opened.folder))
    if as_json:
        record = {"run": str(run), "name": opened.settings.name, "rounds": opened.rounds, "next": following}
        record["not_in_ledger"] = lacking
        echo(json.dumps({**record, "steps": [one._asdict() for one in states]}, indent=2))
        return
    echo(f"{opened.settings.name}, {counted(opened.rounds, 'round')} of {opened.settings.self_training.method}")
    print_table(status_table(states))
    for one in states:
        for sentence in one.problems:
            echo(f"altered: {sentence}")
        for sentence in one.warnings:
            echo(f"warning: {one.title}, {sentence}")
    if lacking:
        steps = counted(len(lacking), "finished step")
        echo(f"ledger.jsonl has no line for {steps}: the next command takes what it finds")
    echo(f"next: {following}")


@click.command()
@click.argument("run", type=FOLDER)
@click.option(
    "--images/--no-images",
    "images",
    default=None,
    help="Read every image and label in full, or look at none. Default: read those whose size or time has changed.",
)
def verify(run: Path, images: bool | None) -> None:
    """Check every file of RUN that its ledger names, and its images; a line for each that was altered.

    Reads ledger.jsonl and the files in full, and inputs.json, which has the digests of the images and labels that the
    run used: those that changed, are missing or were added are named. Writes nothing. The exit code is 1 where
    something is wrong.
    """
    from cbst_mx.evaluation.run_results import RunResults
    from cbst_mx.evaluation.run_status import verify as verify_folder

    opened = RunResults(run)
    problems, steps = verify_folder(opened.folder)
    remark, advice = "", ""
    if images is not False:
        from cbst_mx.rounds.verification import verify_images  # imports mxnet

        with Bars(Terminal()) as bars:
            found = verify_images(opened, full=bool(images), progress=bars)
        problems += found.problems
        how = "read in full" if images else "by size and time, --images reads them in full"
        remark = found.remark or ("" if found.problems else f"{counted(found.looked_at, 'image')} as recorded ({how})")
        if found.problems:
            advice = (
                "images: put back what changed or is missing, and remove what was added; or go on with them as they "
                f"are: cbst-mx branch {run} --from round-1 --out NEW"
            )
    for problem in problems:
        echo(problem)
    if problems:
        echo(f"{run}: {counted(len(problems), 'problem')} in {counted(steps, 'step')}")
    for text in filter(None, (remark, advice)):
        echo(text)
    if problems:
        raise click.exceptions.Exit(1)
    echo(f"{run}: {counted(steps, 'step')}, nothing altered")


@click.command()
@click.argument("run_a", type=FOLDER)
@click.argument("run_b", type=FOLDER)
def diff(run_a: Path, run_b: Path) -> None:
    """Name the first step and number at which RUN_A and RUN_B part, and what differs in how it was made.

    Reads the ledgers of both, and the records of the step. The exit code is 1 where they part.
    """
    from cbst_mx.evaluation.run_results import RunResults
    from cbst_mx.evaluation.run_status import find_parting

    parting = find_parting(RunResults(run_a), RunResults(run_b))
    if parting is None:
        echo("no difference: every step of both has the same results")
        return
    echo(f"they part at {parting.step}")
    for text in parting.results:
        echo(f"  {text}")
    for text in parting.reasons:
        echo(f"  made from: {text}")
    raise click.exceptions.Exit(1)


@click.command()
@click.argument("run", type=FOLDER)
@click.option(
    "--from", "begin", required=True, metavar="STEP", help="First step to do anew: round-N, or round-N/retraining."
)
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a key of the experiment.")
@click.option("--out", required=True, type=FOLDER, help="The new run folder.")
def branch(run: Path, begin: str, changes: tuple[str, ...], out: Path) -> None:
    """Make a run folder that shares the steps of RUN before STEP and goes on otherwise.

    Reads RUN and links its files (copies them where the file system has no links). Writes OUT, in which `run
    OUT/experiment.yaml --out OUT` goes on; images may have changed as well.
    """
    from cbst_mx.rounds.branching import branch as make_branch  # imports mxnet

    _, without_effect = make_branch(run, begin, out, changes)
    for text in without_effect:
        echo(f"without effect, since its step is shared: {text}")
    echo(f"go on with: cbst-mx run {out / 'experiment.yaml'} --out {out}")


COMMANDS = (status, verify, diff, branch)
