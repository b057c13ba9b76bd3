"""Commands on an experiment before it runs: ``plan`` and ``check-inputs``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cbst_mx.cli.base import FILE, Bars, Terminal, echo, print_table, seconds_option
from cbst_mx.cli.experiments import experiment_options
from cbst_mx.messages import counted

if TYPE_CHECKING:
    from cbst_mx.config import Experiment

__all__ = ["COMMANDS"]


@click.command()
@experiment_options
@seconds_option("About how long to measure.")
@click.option(
    "--train-workers",
    "trainers",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="Plan a run with --train-workers on a --cluster of as many workers, each on a machine like this one.",
)
@click.option(
    "--network-mbit",
    "mbit",
    type=click.FloatRange(0, min_open=True),
    help="Speed of the network between them in Mbit/s; without it the exchange of gradients is not counted.",
)
@click.option("--out", type=FILE, help="Write the plan as JSON here as well.")
def plan(experiment: Experiment, seconds: float, trainers: int, mbit: float | None, out: Path | None) -> None:
    """Say what EXPERIMENT costs before it starts: images, iterations, time, memory and disk.

    Measures the network with random parameters on the chosen device. Reads the experiment file and looks at the image
    folders; where those of the paper's data sets are not there, the publishers' numbers of images are used. Writes
    nothing, or with --out the plan.
    """
    from cbst_mx.files import write_json
    from cbst_mx.planning import Sharing, make_plan  # imports mxnet
    from cbst_mx.report.tables import duration, plan_table, planned_time

    if mbit and trainers == 1:
        raise click.UsageError("--network-mbit needs --train-workers of 2 or more")
    with Bars(Terminal()) as bars:
        made = make_plan(experiment, seconds=seconds, sharing=Sharing(trainers, mbit or 0.0), progress=bars)
    for sentence in made.warnings:
        echo(f"warning: {sentence}", err=True)
    print_table(plan_table(made.stages))
    echo(f"time: {planned_time(made)}")
    if made.busy >= 1.5:
        slower = f"up to {made.busy:.1f} times slower, so {duration(made.seconds * made.busy)} if they go on"
        echo(f"other programs made this measurement {slower}")
    echo(f"disk: up to {made.disk / 1e9:.1f} GB in the run folder")
    kind = "GPU memory" if made.device.startswith("gpu") else "memory of the process, on this CPU (GPU: not measured)"
    echo(f"{kind}: about {made.memory / 1e9:.1f} GB")
    for note in made.notes:
        echo(note)
    if out:
        write_json(out, made.to_json())
        echo(f"plan in {out}")


@click.command("check-inputs")
@experiment_options
def check_inputs(experiment: Experiment) -> None:
    """Look whether what EXPERIMENT names is there: images, labels, lists, prior, parameters.

    make does so before it trains the source network that an experiment starts from. Reads names, and a file of the
    spatial prior; writes nothing. `doctor` looks at the images themselves.
    """
    from cbst_mx.rounds.first_look import look  # imports mxnet

    for name, number in look(experiment).items():
        echo(f"{name}: {counted(number, 'image')}")


COMMANDS = (plan, check_inputs)
