"""The command ``export``: networks as files for other programs."""

from __future__ import annotations

from pathlib import Path

import click

from cbst_mx.cli.base import FILE, FOLDER, echo

__all__ = ["COMMANDS"]


@click.command()
@click.option("--parameters", required=True, type=FILE, help="A parameters.params file written by cbst-mx.")
@click.option("--out", required=True, type=FOLDER, help="Folder for the files; must be new or empty.")
@click.option("--onnx", is_flag=True, help="Write an ONNX file too (needs the extra onnx).")
@click.option(
    "--size",
    nargs=2,
    type=int,
    metavar="H W",
    help="With --onnx: fix the file's input to one image of this size. Default: batch, height and width are free.",
)
@click.option(
    "--fold-batch-norm",
    is_flag=True,
    help="Put batch norms into the convolutions they follow; those of ResNet-38 that read a sum stay.",
)
def export(parameters: Path, out: Path, onnx: bool, size: tuple[int, int] | None, fold_batch_norm: bool) -> None:
    """Write the network of --parameters as MXNet symbol and parameters, and as ONNX.

    Reads the parameter file and its sidecar; writes OUT/NAME-symbol.json and OUT/NAME-0000.params (read by
    gluon.SymbolBlock.imports), OUT/NAME.json (input normalisation, classes) and with --onnx OUT/NAME.onnx, where NAME
    is the network's. Every operator of both networks has an ONNX form, for any input size. Each file is run on the same
    images as the network; one that gives other logits is not kept.
    """
    if size and not onnx:
        raise click.UsageError("--size is that of the ONNX file: give --onnx too")
    from cbst_mx.networks.export import ONNX, export_network
    from cbst_mx.networks.parameters import load_network
    from symbols.backend import mx

    network, spec, space = load_network(parameters, mx.cpu())
    result = export_network(network, out, spec, space, onnx=onnx, size=size, fold=fold_batch_norm)
    for file in result.files:
        echo(f"wrote {file}")
    if fold_batch_norm:
        echo(f"{result.folded} batch norms put into convolutions")
    echo(f"largest difference of a logit, symbol read back: {result.symbol_difference:.2g}")
    if result.onnx_difference is not None:
        echo(f"largest difference of a logit, onnxruntime: {result.onnx_difference:.2g}")
    elif onnx:
        echo(f"the ONNX file was not run: pip install {ONNX[1]!r} to compare it")


COMMANDS = (export,)
