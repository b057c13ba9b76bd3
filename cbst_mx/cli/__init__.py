"""The command ``cbst-mx``: the only place that prints and exits.

Exit codes: 0 done, 1 something given cannot be used (one sentence says what), 2 wrong usage, 3 a number is not the
paper's.
"""

from __future__ import annotations

import click

import cbst_mx
from cbst_mx.cli import (
    cluster,
    demo,
    doctor,
    experiments,
    export,
    folders,
    gpu_check,
    init,
    labelling,
    networks,
    paper,
    plan,
    predict,
    prepare,
    prior,
    report,
    results,
    schema,
    statistics,
    sweep,
    weights,
)
from cbst_mx.cli.base import OneSentence

__all__ = ["main"]


@click.group(cls=OneSentence, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(cbst_mx.__version__, prog_name="cbst-mx")
def main() -> None:
    """Class-balanced self-training (CBST) for semantic segmentation on MXNet.

    Adapts a network trained on labelled source images to unlabelled target images by rounds of pseudo-labelling and
    retraining. `run` does everything an experiment file says; `source`, `pseudo-label`, `retrain` and `round` do
    single steps of it in the same run folder.
    """


for group in (
    experiments,
    sweep,
    results,
    report,
    folders,
    gpu_check,
    init,
    paper,
    plan,
    networks,
    predict,
    weights,
    export,
    labelling,
    cluster,
    prior,
    statistics,
    doctor,
    schema,
    prepare,
    demo,
):
    for command in group.COMMANDS:
        main.add_command(command)
