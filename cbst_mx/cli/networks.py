"""Commands that use a trained network: ``evaluate`` and ``predict``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

import click

from cbst_mx.cli.base import FILE, FOLDER, FORMAT, Bars, Terminal, choice, echo
from cbst_mx.errors import DataError, StoppedError
from cbst_mx.messages import counted

if TYPE_CHECKING:
    from cbst_mx.data.photographs import Photographs
    from cbst_mx.evaluation.prediction_folder import PredictionFolder
    from cbst_mx.evaluation.predictor import Predictor
    from cbst_mx.networks.forms import Agreement

__all__ = ["COMMANDS"]


def _device(function: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option(
            "--calibration-images",
            default=8,
            show_default=True,
            type=click.IntRange(1),
            help="How many of the images, from the first, give the value ranges of int8.",
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
            help="fused: oneDNN runs operators together, same result; int8: fastest, approximate. Both CPU only.",
        ),
        click.option(
            "--resampling",
            default="program",
            show_default=True,
            type=choice(["linear", "program"]),
            help="How images are resized for the network; program: Lanczos and cubic, as the authors' program does.",
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
        click.option("--parameters", required=True, type=FILE, help="A parameters.params file written by cbst-mx."),
    ):
        function = option(function)
    return function


def _say_agreement(near: Agreement | None) -> None:
    if near is not None:
        echo(
            f"int8 against float32, images calibrated on ({near.images}): same class at {100 * near.same_class:.2f} % "
            f"of the positions, relative error of the logits {100 * near.relative_error:.2f} %"
        )


@click.command()
@_device
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
@click.option("--scales", help="Multi-scale testing: comma-separated factors, for example 0.5,0.75,1.")
@click.option(
    "--combine", type=choice(["mean", "max"]), default="mean", show_default=True, help="How scales are combined."
)
@click.option("--long-side", type=click.IntRange(32), help="Longer side of the network's input; default: the image's.")
@click.option("--out", type=FILE, help="Write the result as JSON here as well.")
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
    **data: Any,
) -> None:
    """Evaluate parameters on labelled images and print IoU per class and mIoU.

    Reads the parameter file, its sidecar and the images; writes nothing, or with --out a JSON file.
    """
    from cbst_mx.evaluation.evaluate import evaluate_parameters
    from cbst_mx.files import write_json
    from cbst_mx.report.tables import iou_table

    factors = _factors(scales)
    with Bars(Terminal()) as bars:
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
            progress=partial(bars, "evaluation"),
        )
    _say_agreement(evaluation.agreement)
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


def _factors(scales: str | None) -> list[float]:
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


@click.command()
@_device
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=FOLDER, help="Folder for the results; created when it is not there.")
@click.option("--overwrite", is_flag=True, help="Make everything anew, in the place of results that are in --out.")
def predict(
    parameters: Path,
    ctx: str,
    flip: bool,
    upsampling: str,
    resampling: str,
    inference: str,
    tile: int | None,
    calibration_images: int,
    images: tuple[Path, ...],
    out: Path,
    overwrite: bool,
) -> None:
    """Segment IMAGES (files or folders) with the network of --parameters.

    Reads PNG, JPEG, TIFF, BMP, WebP, GIF, PPM and JPEG 2000 images, those in sub-folders too, and turns them as their
    rotation marks (EXIF) say. Writes OUT/NAME_label.png (trainIds with the classes' palette) and OUT/NAME_overlay.png
    (the image under the class colours); OUT/predict.json until all are there. After a stop the same command goes on.
    What is there already is not overwritten without --overwrite. Images that cannot be read are named at the end, and
    the exit code is 1; the others are done.
    """
    from cbst_mx import load_network
    from cbst_mx.data.photographs import find_photographs
    from cbst_mx.evaluation.prediction_folder import PredictionFolder, refusal

    refused: dict[str, str] = {}
    chosen, left_out = find_photographs(images, out, refused)
    total = len(chosen) + len(refused)
    calibrated = calibration_images if inference == "int8" else 0
    settings = {"flip": flip, "upsampling": upsampling, "resampling": resampling, "int8": calibrated}
    folder = PredictionFolder(out, parameters, settings, chosen, overwrite=overwrite)
    if left_out:
        echo(left_out)
    turned = sum(turn != 1 for turn in chosen.turns)
    if turned:
        found = f"{turned:,} of {counted(len(chosen), 'image')}"
        echo(f"turned upright as their EXIF marks say: {found}, with their labels")
    predictor = load_network(
        parameters,
        ctx,
        flip=flip,
        upsampling=upsampling,
        resampling=resampling,
        inference=inference,
        tile=tile,
        batch_size=1 if tile else 8,
        calibration=chosen.subset(range(min(calibration_images, len(chosen)))),
    )
    _say_agreement(predictor.agreement)
    if len(folder.left) < len(chosen):
        echo(f"{len(chosen) - len(folder.left)} of {len(chosen)} images are done already")
    _predict(predictor, chosen, folder, refused)
    echo(f"{counted(total - len(refused), 'image')} segmented into {out}")
    if refused:
        raise DataError(refusal(refused, total))
    folder.close()


def _predict(predictor: Predictor, images: Photographs, folder: PredictionFolder, refused: dict[str, str]) -> None:
    """Predict what is left, into the folder; name and reason of what cannot be read go into `refused`."""
    from cbst_mx.data.photographs import ReadOnce
    from cbst_mx.report.figures import overlay

    pictures = ReadOnce(images.subset(folder.left), refused)
    with Bars(Terminal()) as bars:
        try:
            for place, label in enumerate(predictor.labels(pictures)):
                if pictures.names[place] not in refused:
                    shown = overlay(pictures.take(place), label, predictor.label_space)
                    folder.write(folder.left[place], label, shown, predictor.label_space)
                bars("prediction", place + 1, len(pictures))
        except StoppedError as error:
            error.keep("all")
            raise


COMMANDS = (evaluate, predict)
