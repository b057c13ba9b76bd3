"""Commands on run folders: ``status``, ``verify``, ``diff`` and ``branch``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cbst_mx.cli.base import FOLDER, print_table

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
        click.echo(json.dumps({**record, "steps": [one._asdict() for one in states]}, indent=2))
        return
    click.echo(f"{opened.settings.name}, {opened.rounds} rounds of {opened.settings.self_training.method}")
    print_table(status_table(states))
    for one in states:
        for sentence in one.problems:
            click.echo(f"altered: {sentence}")
        for sentence in one.warnings:
            click.echo(f"warning: {one.title}, {sentence}")
    if lacking:
        click.echo(f"ledger.jsonl has no line for {len(lacking)} finished steps: the next command takes them as found")
    click.echo(f"next: {following}")


@click.command()
@click.argument("run", type=FOLDER)
def verify(run: Path) -> None:
    """Check every file of RUN that its ledger names; a line for each that was altered.

    Reads ledger.jsonl and the files in full, and writes nothing. The exit code is 1 where something is wrong.
    """
    from cbst_mx.evaluation.run_status import verify as verify_folder
    from cbst_mx.run_dir import RunDir

    problems, steps = verify_folder(RunDir(run))
    for problem in problems:
        click.echo(problem)
    if problems:
        click.echo(f"{run}: {len(problems)} problem{'s' if len(problems) > 1 else ''} in {steps} steps")
        raise click.exceptions.Exit(1)
    click.echo(f"{run}: {steps} steps, nothing altered")


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
        click.echo("no difference: every step of both has the same results")
        return
    click.echo(f"they part at {parting.step}")
    for text in parting.results:
        click.echo(f"  {text}")
    for text in parting.reasons:
        click.echo(f"  made from: {text}")
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
        click.echo(f"without effect, since its step is shared: {text}")
    click.echo(f"go on with: cbst-mx run {out / 'experiment.yaml'} --out {out}")


COMMANDS = (status, verify, diff, branch)
