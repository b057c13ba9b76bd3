"""The command ``gpu-check``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Iterator

import click

from cbst_mx import __version__
from cbst_mx.cli.base import FILE, Bars, Terminal, choice, echo, leave, seconds_option
from cbst_mx.errors import CBSTError

if TYPE_CHECKING:
    from cbst_mx.config import Experiment
    from cbst_mx.planning.agreement import Finding

__all__ = ["COMMANDS"]

_FAILED = 3  # exit code
_VERDICTS = {True: "ok", False: "BAD", None: ""}


@click.command("gpu-check")
@click.argument("experiments", nargs=-1, type=FILE, metavar="[EXPERIMENT]...")
@click.option("--ctx", default="gpu:0", show_default=True, help="Device: gpu:N, several as gpu:0,1; cpu for a trial.")
@click.option("--amp", type=choice(["none", "float16"]), default="none", help="Plan EXPERIMENT with it.")
@seconds_option("About how long to measure each EXPERIMENT.")
@click.option("--out", type=FILE, help="Write the text here as well.")
def gpu_check(experiments: tuple[Path, ...], ctx: str, amp: str, seconds: float, out: Path | None) -> None:
    """Look whether a GPU can be used, computes what the processor does, and how long each EXPERIMENT takes.

    Prints one text: driver, GPU, versions and libraries; every kind of work of a run beside the same on the processor;
    and for each EXPERIMENT times, the batch that fits, memory and hours, as `plan` does. Reads no images that are not
    there, and writes nothing but the text with --out. Ends with exit code 3 where something is not as it should be.
    """
    from cbst_mx.files import write_text

    lines = [f"cbst-mx {__version__} gpu-check --ctx {ctx}"]
    echo(lines[0])
    bad, ended = 0, False
    for finding in _findings(experiments, ctx, amp, seconds):
        bad, ended = bad + (finding.good is False), finding.last
        lines.append(f"{finding.name:<24}{_VERDICTS[finding.good]:<4}{finding.text}")
        echo(lines[-1])
    lines.append(f"{bad} of these are not as they should be" if bad else "all is as it should be")
    echo(lines[-1])
    if out is not None:
        write_text(out, "\n".join([*lines, ""]))
    if ended:
        leave(_FAILED)
    if bad:
        raise click.exceptions.Exit(_FAILED)


def _findings(experiments: tuple[Path, ...], ctx: str, amp: str, seconds: float) -> Iterator[Finding]:
    """Yield what is found, in the order in which it matters; the last of it where the device cannot be used."""
    from cbst_mx.config import load_experiment
    from cbst_mx.networks.devices import parse_contexts
    from cbst_mx.planning.agreement import Finding, compare, in_float16
    from cbst_mx.planning.card import describe_devices, describe_software
    from cbst_mx.run_dir import versions

    yield from describe_software(versions()["processor"])
    try:
        contexts = parse_contexts(ctx)
    except CBSTError as error:
        yield Finding("device", False, str(error))
        return
    yield from describe_devices(contexts)
    for finding in compare(contexts):
        yield finding
        if finding.last:
            return
    for path in experiments:
        loaded = load_experiment(path, (f"ctx={ctx}", f"amp={amp}"))
        yield from _costs(loaded, seconds)
    if contexts[0].device_type == "gpu" and amp == "none":
        yield in_float16(contexts)  # last: the process computes in float16 from there on


def _costs(experiment: Experiment, seconds: float) -> Iterator[Finding]:
    """Yield what an experiment costs on the device."""
    from cbst_mx.planning import make_plan
    from cbst_mx.planning.agreement import Finding
    from cbst_mx.report.tables import planned_time

    try:
        with Bars(Terminal(stderr=True), quiet=True) as bars:
            plan = make_plan(experiment, seconds=seconds, progress=bars)
    except CBSTError as error:
        yield Finding(experiment.name, False, str(error))
        return
    yield Finding(experiment.name, None, f"{planned_time(plan)}; memory about {plan.memory / 1e9:.1f} GB")
    for sentence in (*plan.notes, *plan.warnings):
        yield Finding("", None, sentence)


COMMANDS = (gpu_check,)
