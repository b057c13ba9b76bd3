"""Commands that use a trained network: ``evaluate`` and ``predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Optional, Tuple

import click
from rich.console import Console

from cbst_mx.cli.base import FILE, FOLDER, Bars
from cbst_mx.errors import CBSTError

__all__ = ["COMMANDS"]


def _device(function: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--parameters", required=True, type=FILE, help="A parameters.params file written by cbst-mx."),
        click.option("--ctx", default="cpu", show_default=True, help="Device: cpu, cpu:N, gpu:N."),
        click.option("--flip/--no-flip", default=True, show_default=True, help="Average with the mirrored image."),
    ):
        function = option(function)
    return function


@click.command()
@_device
@click.option(
    "--format",
    "format_",
    required=True,
    type=click.Choice(["gta5", "cityscapes", "folder"]),
    help="Layout of the images.",
)
@click.option("--root", required=True, type=FOLDER, help="Data root.")
@click.option("--split", help="Split (cityscapes, folder).")
@click.option("--labels", type=click.Choice(["labelIds", "labelTrainIds"]), help="Which label files (cityscapes).")
@click.option("--description", type=FILE, help="YAML description (folder).")
@click.option("--out", type=FILE, help="Write the result as JSON here as well.")
def evaluate(
    parameters: Path,
    ctx: str,
    flip: bool,
    format_: str,
    root: Path,
    split: Optional[str],
    labels: Optional[str],
    description: Optional[Path],
    out: Optional[Path],
) -> None:
    """Evaluate parameters on labelled images and print IoU per class and mIoU.

    Reads the parameter file, its sidecar and the images; writes nothing, or with --out a JSON file.
    """
    from cbst_mx.checkpoints import load_network
    from cbst_mx.data import folder, open_labelled
    from cbst_mx.evaluation.confusion import summary
    from cbst_mx.files import write_json
    from cbst_mx.label_space import LABEL_SPACES
    from cbst_mx.networks import parse_context
    from cbst_mx.report.tables import iou_table
    from cbst_mx.rounds import evaluate_network

    network, spec, space = load_network(parameters, parse_context(ctx))
    if description is not None:
        described = folder.label_space(folder.read_description(description))
        if described.names != space.names:
            raise CBSTError(f"{parameters} was trained for the classes of {space.name}, not for those of {description}")
        space = described
    else:
        space = LABEL_SPACES.get(space.name, space)
    images = open_labelled(format_, root, label_space=space, split=split, labels=labels, description=description)
    with Bars(Console()) as bars:
        matrices = evaluate_network(
            network,
            images,
            mean=spec.mean,
            std=spec.std,
            ctx=parse_context(ctx),
            flip=flip,
            batch_size=8,
            progress=lambda done, total: bars("evaluation", done, total),
        )
    result = summary(matrices.sum(axis=0), space)
    Console().print(iou_table({parameters.parent.name: result}, space))
    if out:
        write_json(out, result)


@click.command()
@_device
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=FOLDER, help="Folder for the results; created when it is not there.")
def predict(parameters: Path, ctx: str, flip: bool, images: Tuple[Path, ...], out: Path) -> None:
    """Segment IMAGES (files or folders) with the network of --parameters.

    Reads PNG or JPEG images; writes OUT/NAME_label.png (trainIds with the classes' palette) and OUT/NAME_overlay.png
    (the image under the class colours). An existing result is not overwritten.
    """
    from cbst_mx.checkpoints import load_network
    from cbst_mx.data.images import write_label_png, write_rgb_png
    from cbst_mx.networks import parse_context
    from cbst_mx.report.figures import overlay
    from cbst_mx.selftrain.confidence import probability_maps

    chosen = _image_set(images)
    for name in chosen.names:
        for result in (out / f"{name}_label.png", out / f"{name}_overlay.png"):
            if result.exists():
                raise CBSTError(f"{result} exists already: give another folder with --out")
    network, spec, space = load_network(parameters, parse_context(ctx))
    out.mkdir(parents=True, exist_ok=True)
    with Bars(Console()) as bars:
        maps = probability_maps(network, chosen, mean=spec.mean, std=spec.std, ctx=parse_context(ctx), flip=flip)
        for index, probability in maps:
            label = probability.argmax(axis=0).asnumpy().astype("uint8")
            write_label_png(out / f"{chosen.names[index]}_label.png", label, space)
            write_rgb_png(out / f"{chosen.names[index]}_overlay.png", overlay(chosen.image(index), label, space))
            bars("prediction", index + 1, len(chosen))
    click.echo(f"{len(chosen)} images segmented into {out}")


def _image_set(paths: Tuple[Path, ...]) -> Any:
    from cbst_mx.data import ImageSet
    from cbst_mx.errors import DataError

    files = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg"))
            if not inside:
                raise DataError(f"folder {path} holds no .png, .jpg or .jpeg image")
            files.extend(inside)
        elif path.is_file():
            files.append(path)
        else:
            raise DataError(f"image {path} does not exist")
    return ImageSet([path.stem for path in files], files)


COMMANDS = (evaluate, predict)
