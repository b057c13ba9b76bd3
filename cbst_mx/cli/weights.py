"""The command ``import-weights``: start a network from weights of other programs."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, Sequence

import click
from rich.table import Table
from rich.text import Text

from cbst_mx.cli.base import FILE, Terminal, choice, echo
from cbst_mx.messages import counted

if TYPE_CHECKING:
    from cbst_mx.networks.inputs import InputForm, Told
    from cbst_mx.networks.matching import Comparison, Row

__all__ = ["COMMANDS"]

_STYLES = {"matched": "", "missing": "yellow", "shape mismatch": "red", "unexpected": "dim"}


@click.command("import-weights")
@click.argument("file")
@click.option("--network", "name", required=True, type=choice(["fcn8s", "resnet38"]), help="The network to fill.")
@click.option("--num-classes", required=True, type=click.IntRange(2), metavar="C", help="Its number of classes.")
@click.option("--out", required=True, type=FILE, help="Parameter file to write; replaced if it exists.")
@click.option(
    "--label-space",
    help="Meaning of the classes: a known name, a number of classes, or the YAML description of a data folder. "
    "Default: by number, 19 cityscapes-19, 16 synthia-16, 13 nthu-13, others numbered.",
)
@click.option(
    "--classes-of",
    metavar="LABEL_SPACE",
    help="Classes of FILE, where the network has only some of them: their scores are kept, by name.",
)
@click.option("--width", type=float, help="Multiplier of the network's channels. Default: 1, or the file's own.")
@click.option("--batch-norm", type=choice(["none", "frozen", "batch"]), help="Default: the network's, or the file's.")
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    help="Another option of the network, e.g. --option hidden=1024 --option kernel=3 for fc6 and fc7 of FCN8s. May be "
    "repeated.",
)
@click.option(
    "--channels",
    type=choice(["rgb", "bgr"]),
    help="Order of the colours that FILE was trained with; Caffe's networks take bgr. Default: rgb.",
)
@click.option(
    "--range",
    "scale",
    type=choice(["normalised", "caffe"]),
    help="Values that FILE was trained with: normalised, in [0, 1] minus mean divided by std; caffe, 0 to 255 minus "
    "mean. Default: normalised.",
)
@click.option(
    "--mean",
    metavar="R,G,B",
    help="In units of the range, red first whatever --channels says. Default: ImageNet's; for caffe "
    "123.68,116.779,103.939.",
)
@click.option("--std", metavar="R,G,B", help="In units of the range. Default: ImageNet's; for caffe 1,1,1.")
@click.option(
    "--allow-missing",
    multiple=True,
    metavar="PATTERN",
    help="Tensors of the network, e.g. 'linear19_*', that may stay as initialised where the file has none of that name "
    "and shape. May be repeated.",
)
def import_weights(
    file: str,
    name: str,
    num_classes: int,
    out: Path,
    label_space: str | None,
    classes_of: str | None,
    width: float | None,
    batch_norm: str | None,
    options: tuple[str, ...],
    channels: str | None,
    scale: str | None,
    mean: str | None,
    std: str | None,
    allow_missing: tuple[str, ...],
) -> None:
    """Turn FILE into parameters of a network that experiments and the other commands can use.

    FILE is a released MXNet ResNet-38, VGG-16 of Gluon's model zoo (.params) or of torchvision (.pth), or a file of
    this program; zoo:vgg16 is the model zoo's file where MXNet keeps its downloads (nothing is downloaded). The reduced
    VGG-16 of gluon-cv's detectors (vgg16_atrous, tensors stages.i.j.*) is another network and is not read. No code in
    FILE is run.

    --classes-of cityscapes-19 --label-space nthu-13 keeps, of a network of Cityscapes' 19 classes, the scores of the 13
    that NTHU has.

    --option form=classifier keeps a ResNet-38 the classifier of whole images that an ImageNet file is: of any number of
    classes, without label space, and of use only as FILE of another import (--option form=segmentation).

    Names and shapes do not tell which images FILE was trained on: say it with --channels and --range where it is not
    RGB in [0, 1] normalised by the ImageNet mean and std. OUT takes RGB (a first layer for BGR is turned, which is
    exact), OUT.json says mean and std, and every command follows it. Where the weights look trained on other images
    than was said, a warning gives the figures.

    Prints one line per tensor. Writes OUT and OUT.json, unless tensors stay as initialised that --allow-missing does
    not name. A classifier of whole images (ImageNet) cannot have the network's last layers: these need not be named.
    """
    from cbst_mx.data.folder import read_label_space
    from cbst_mx.label_space import find
    from cbst_mx.networks.inputs import InputForm, contradictions, told_text
    from cbst_mx.networks.weights import import_weights as write
    from cbst_mx.networks.weights import keep_classes, read_weights

    space = None if label_space is None else find(label_space, read=read_label_space)
    given = _options(options, width, batch_norm)
    form = _input(channels, scale, mean, std)
    source = read_weights(file)
    if classes_of is not None:
        wanted = space or find(None, num_classes)
        wanted.check_classes(num_classes, "the network")
        source = keep_classes(source, find(classes_of, read=read_label_space), wanted)

    def look(told: Told) -> None:
        sentences = contradictions(told, form or InputForm())
        for sentence in sentences:
            echo(f"warning: {sentence}", err=True)
        if not sentences:
            echo(told_text(told))

    spec, space = write(
        source,
        name,
        num_classes,
        out,
        label_space=space,
        options=given,
        allow_missing=allow_missing,
        form=form,
        show=functools.partial(_show, source.format),
        look=look,
        warn=lambda sentence: echo(f"warning: {sentence}", err=True),
    )
    meaning = "of whole images" if space is None else f"({space.name})"
    turned = f" ({Path(file).name} took BGR: its first layer was turned)" if channels == "bgr" else ""
    echo(
        f"{out}: {name} with {counted(num_classes, 'class')} {meaning}, for {spec.input_text()}{turned}; "
        f"{out.name}.json belongs to it"
    )


def _show(form: str, comparison: Comparison) -> None:
    """Print a line per tensor of a file of the format `form`, and how many are what."""
    from cbst_mx.networks.weights import SEED

    console = Terminal(soft_wrap=True)
    if not console.is_terminal:
        console.width = 120  # for the longest names; rich takes 80 where it cannot ask
    console.print(_table(comparison.rows))
    counts = [f"{comparison.count(status)} {status}" for status in _STYLES]
    console.print(f"{form}: {', '.join(counts)}; {len(comparison.initialised)} left as initialised", markup=False)
    if comparison.classifier:
        console.print(f"{comparison.classifier} (seed {SEED})", markup=False, highlight=False)


def _options(pairs: tuple[str, ...], width: float | None, batch_norm: str | None) -> dict[str, Any]:
    from cbst_mx.errors import ConfigError
    from cbst_mx.strict_yaml import parse_value

    options: dict[str, Any] = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign or not key:
            raise ConfigError(f"option must have the form KEY=VALUE, got {pair!r}")
        options[key] = parse_value(value)
    options.update({key: value for key, value in (("width", width), ("batch_norm", batch_norm)) if value is not None})
    return options


def _input(channels: str | None, scale: str | None, mean: str | None, std: str | None) -> InputForm | None:
    from cbst_mx.networks.inputs import InputForm

    given = {"channels": channels, "range": scale, "mean": _colours("mean", mean), "std": _colours("std", std)}
    given = {key: value for key, value in given.items() if value is not None}
    return InputForm(**given) if given else None  # type: ignore[arg-type]


def _colours(name: str, text: str | None) -> tuple[float, ...] | None:
    from cbst_mx.errors import ConfigError

    try:
        return None if text is None else tuple(map(float, text.split(",")))
    except ValueError as error:
        raise ConfigError(f"{name} must be three numbers R,G,B, got {text!r}") from error


def _table(rows: Sequence[Row]) -> Table:
    from cbst_mx.networks.matching import shown
    from cbst_mx.report.tables import plain_table

    titles = ("status", "tensor", "shape", "in the file", "shape there, if other")
    table = plain_table(*titles, words=titles)
    for row in rows:
        # the file's names may hold anything: as Text they are no markup
        there = "" if row.source_shape == row.shape else _shape(row.source_shape)
        table.add_row(
            row.status, row.name, _shape(row.shape), Text(shown(row.source)), there, style=_STYLES[row.status]
        )
    return table


def _shape(shape: tuple[int, ...] | None) -> str:
    return "" if shape is None else "x".join(map(str, shape)) or "scalar"


COMMANDS = (import_weights,)
