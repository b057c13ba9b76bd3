"""The command ``evaluate``, and the options that it shares with ``predict``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

import click

from cbst_mx.cli.base import FILE, FOLDER, FORMAT, Bars, Terminal, choice, echo
from cbst_mx.cli.cluster import cluster_options, opened
from cbst_mx.messages import counted

if TYPE_CHECKING:
    from cbst_mx.networks.int8 import Agreement

__all__ = ["COMMANDS", "network_options", "read_factors", "say_agreement", "scale_options"]


def network_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say how a network computes."""
    for option in (
        click.option(
            "--calibration-images",
            default=8,
            show_default=True,
            type=click.IntRange(1),
            help="How many of the images, from the first, give the value ranges of int8, and say how much can "
            "be in int8.",
        ),
        click.option(
            "--tile",
            type=click.IntRange(1),
            metavar="ROWS",
            help="Save memory on large images: compute large maps in bands of this many image rows. Same result.",
        ),
        click.option(
            "--inference",
            default="plain",
            show_default=True,
            type=choice(["plain", "fused", "int8"]),
            help="fused: oneDNN runs operators together, same result; int8: fastest, approximate, not for reported "
            "results. Both CPU only.",
        ),
        click.option(
            "--resampling",
            default="program",
            show_default=True,
            type=choice(["linear", "program", "draft"]),
            help="How images are resized for the network; program: Lanczos and cubic, as the authors' program does; "
            "draft: the same, of JPEGs decoded at 1/2, 1/4 or 1/8 where that is enough, in evaluate alone.",
        ),
        click.option(
            "--upsampling",
            default="bilinear",
            show_default=True,
            type=choice(["bilinear", "bicubic", "pillow"]),
            help="How its output becomes the image's size; bicubic: OpenCV's, pillow: as the authors' program does.",
        ),
        click.option("--flip/--no-flip", default=True, show_default=True, help="Average with the mirrored image."),
        click.option("--ctx", default="cpu", show_default=True, help="Device: cpu, cpu:N, gpu:N."),
    ):
        function = option(function)
    return function


def scale_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options of multi-scale testing."""
    for option in (
        click.option(
            "--long-side", type=click.IntRange(32), help="Longer side of the network's input; default: the image's."
        ),
        click.option(
            "--combine",
            type=choice(["mean", "max"]),
            default="mean",
            show_default=True,
            help="How scales are combined.",
        ),
        click.option("--scales", help="Multi-scale testing: comma-separated factors, for example 0.5,0.75,1."),
    ):
        function = option(function)
    return function


def say_agreement(near: Agreement | None) -> None:
    """Say how near an int8 network comes to the original."""
    if near is not None:
        from cbst_mx.networks.int8 import SAME_CLASS  # imports mxnet

        echo(
            f"int8 against float32, images calibrated on ({near.images}): same class at {100 * near.same_class:.2f} % "
            f"of the positions, relative error of the logits {100 * near.relative_error:.2f} %; convolutions in int8: "
            f"{near.int8} of {near.convolutions}, as many as keep the class at {100 * SAME_CLASS:g} %"
        )
        echo(
            "warning: int8 is approximate; it moved the mIoU of the demo's networks by up to 0.12: report results of "
            "--inference plain"
        )


@click.command()
@network_options
@click.option("--parameters", required=True, type=FILE, help="A parameters.params file written by cbst-mx.")
@click.option(
    "--format",
    required=True,
    type=FORMAT,
    help="Layout of the images.",
)
@click.option("--root", required=True, type=FOLDER, help="Data root.")
@click.option("--split", help="Split (cityscapes, nthu, folder).")
@click.option("--labels", help="Which label files: labelIds, labelTrainIds (cityscapes), raw, ids, trainIds (synthia).")
@click.option("--description", type=FILE, help="YAML description (folder).")
@click.option("--list", help="A text file that names the images to use; below the root when relative.")
@click.option("--city", help="City (nthu).")
@click.option("--fold", type=click.IntRange(0), help="Which of the ten folds (nthu).")
@scale_options
@click.option("--out", type=FILE, help="Write the result as JSON here as well.")
@cluster_options
def evaluate(
    parameters: Path,
    ctx: str,
    flip: bool,
    upsampling: str,
    resampling: str,
    inference: str,
    tile: int | None,
    calibration_images: int,
    scales: str | None,
    combine: str,
    long_side: int | None,
    out: Path | None,
    where: Any,
    **data: Any,
) -> None:
    """Evaluate parameters on labelled images and print IoU per class and mIoU.

    Images of equal size pass the network together: at most 8, with no more pixels than one of 512 x 1024; on a GPU
    one.
    Reads the parameter file, its sidecar and the images; writes nothing, or with --out a JSON file.
    """
    from cbst_mx.evaluation.evaluate import evaluate_parameters
    from cbst_mx.files import write_json
    from cbst_mx.report.tables import iou_table

    factors = read_factors(scales)
    with Bars(Terminal()) as bars, opened(where, threads=0) as cluster:
        evaluation = evaluate_parameters(
            parameters,
            data,
            ctx=ctx,
            inference=inference,
            tile=tile,
            calibration_images=calibration_images,
            flip=flip,
            scales=factors,
            combine=combine,
            long_side=long_side,
            upsampling=upsampling,
            resampling=resampling,
            cluster=cluster,
            progress=partial(bars, "evaluation"),
        )
    say_agreement(evaluation.agreement)
    Terminal().print(iou_table({parameters.parent.name: evaluation.result}, evaluation.label_space))
    protocol = evaluation.protocol
    comparable = f"that of {protocol.table}" if protocol.table else "of no table of the paper"
    combined = f" combined by {combine}" if len(factors) > 1 else ""
    echo(
        f"{counted(evaluation.images, 'image')}; protocol {protocol.name}: {protocol.meaning}, {comparable}; "
        f"scales {', '.join(f'{factor:g}' for factor in factors)}{combined}, {'with' if flip else 'without'} flip"
    )
    if out:
        write_json(out, {**evaluation.to_json(), "parameters": str(parameters)})


def read_factors(scales: str | None) -> list[float]:
    """Return the factors that --scales names; 1 where it is not given."""
    from cbst_mx.config import SCALES

    low, high = SCALES
    try:
        factors = [float(text) for text in ("1" if scales is None else scales).split(",")]
    except ValueError:
        factors = []
    if not factors or not all(low <= factor <= high for factor in factors):
        raise click.BadParameter(
            f"must be numbers from {low:g} to {high:g} with commas between them, got {scales!r}", param_hint="--scales"
        )
    return factors


COMMANDS = (evaluate,)
