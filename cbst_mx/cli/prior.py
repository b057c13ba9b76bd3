"""Commands on spatial priors: ``prior build``, ``prior show`` and ``prior import``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cbst_mx.cli.base import FILE, FOLDER, FORMAT, Bars, Terminal, choice, echo
from cbst_mx.messages import counted

if TYPE_CHECKING:
    from cbst_mx.data import LabelledImageSet

__all__ = ["COMMANDS"]

_OUT = click.option("--out", required=True, type=FILE, help="The .npz file to write.")
_GRID = click.option("--grid", nargs=2, type=click.IntRange(1), metavar="H W", help="Rows and columns of the maps.")


@click.group()
def prior() -> None:
    """Build, look at and import spatial priors: how frequent each class is at each pixel (CBST-SP)."""


@prior.command()
@click.option("--experiment", type=FILE, help="Take source, classes and settings from this experiment file.")
@click.option("--source", "format_", type=FORMAT, help="Layout of the source.")
@click.option("--root", type=FOLDER, help="Data root of the source.")
@click.option("--split", help="Split (cityscapes, nthu, folder).")
@click.option("--city", help="City (nthu).")
@click.option("--labels", help="Which label files: labelIds, labelTrainIds (cityscapes), raw, ids, trainIds (synthia).")
@click.option("--description", type=FILE, help="YAML description (folder).")
@click.option("--list", "list_", type=FILE, help="A text file that names the images to use, one per line.")
@click.option("--label-space", "space_name", help="The classes. Default: those of the source's layout.")
@_GRID
@click.option("--kernel", type=float, help="Size of the Gaussian in pixels at 1024 x 2048. Default: 70.")
@click.option("--sigma", type=float, help="Its standard deviation in those pixels. Default: a sixth of its size.")
@click.option(
    "--normalisation",
    type=choice(["sum", "maximum", "frequency"]),
    help="Divide each class map by its mean (sum: a distribution over the pixels) or its largest value, or all by the "
    "number of images. Default: sum.",
)
@_OUT
def build(
    experiment: Path | None,
    format_: str | None,
    root: Path | None,
    list_: Path | None,
    space_name: str | None,
    grid: tuple[int, int] | None,
    kernel: float | None,
    sigma: float | None,
    normalisation: str | None,
    out: Path,
    **options: Any,
) -> None:
    """Count the classes at every pixel of the source labels and smooth the counts.

    Give the source by --source and --root, or --experiment. Reads the labels; writes --out with the array `prior`
    (float32, classes x rows x columns) and metadata. The grid is 256 x 512 where neither --grid nor the experiment says
    otherwise; the prior is resized to each image when it is used.
    """
    from cbst_mx.selftrain import prior_files, spatial_prior

    if experiment is not None:
        from cbst_mx.config import load_experiment

        given = {"source": format_, "root": root, "list": list_, "label-space": space_name, **options}
        needless = next((name for name, value in given.items() if value), None)
        if needless:
            raise click.UsageError(f"--experiment says what the source is: leave out --{needless}")
        loaded = load_experiment(experiment)
        settings = loaded.self_training.spatial_prior
        grid = grid or (settings.grid[0], settings.grid[1])
        if settings.file is not None:
            raise click.UsageError(f"{experiment} takes its prior from the file {settings.file}: nothing is built")
        sigma = settings.sigma if sigma is None and kernel is None else sigma
        kernel = settings.kernel if kernel is None else kernel
        normalisation = normalisation or settings.normalisation
        labelled = loaded.open_source()
    elif format_ is None or root is None:
        raise click.UsageError("give the source by --source and --root, or by --experiment")
    else:
        labelled = _open_source(format_, root, list_, space_name, options)
    grid = grid or (256, 512)
    kernel = spatial_prior.KERNEL if kernel is None else kernel
    normalisation = normalisation or spatial_prior.NORMALISATIONS[0]
    with Bars(Terminal()) as bars:
        maps = spatial_prior.estimate(
            labelled,
            grid,
            kernel=kernel,
            sigma=sigma,
            normalisation=normalisation,
            progress=partial(bars, "spatial prior"),
        )
    names = labelled.label_space.names
    metadata = {
        "names": list(names),
        "kernel": kernel,
        "sigma": spatial_prior.standard_deviation(kernel, sigma),
        "normalisation": normalisation,
        "images": len(labelled),
    }
    prior_files.save(out, maps, metadata)
    absent = [name for name, plane in zip(names, maps) if not plane.any()]
    if absent:
        echo(f"never in the source labels, and so never chosen with this prior: {', '.join(absent)}")
    what = f"{counted(len(maps), 'class')} on {grid[0]} x {grid[1]} pixels from {counted(len(labelled), 'label map')}"
    echo(f"prior of {what} (normalisation {normalisation}) in {out}")


def _open_source(
    format_: str, root: Path, list_: Path | None, space_name: str | None, options: dict[str, Any]
) -> LabelledImageSet:
    """Open the labels in the label space asked for, else in that of the description or the format."""
    from cbst_mx.data import FORMATS, folder, open_labelled
    from cbst_mx.label_space import find

    if space_name is None and options["description"] is not None:
        space = folder.read_label_space(options["description"])
    else:
        space = find(space_name or FORMATS[format_].label_space, read=folder.read_label_space)
    # the reader's relative paths start at the data root
    return open_labelled(format_, root, label_space=space, list=list_ and list_.absolute(), **options)


@prior.command()
@click.argument("file", type=FILE)
@click.option("--label-space", "space_name", help="Names of the classes, for a file that has none.")
@click.option("--out", required=True, type=FILE, help="The PNG file to write.")
def show(file: Path, space_name: str | None, out: Path) -> None:
    """Draw the class maps of the spatial prior FILE as a sheet of heat maps.

    Every class has its own scale, from 0 to its largest value, which is written beside its name. Size, kernel and
    normalisation are printed and written below.
    """
    from cbst_mx.data.folder import read_label_space
    from cbst_mx.data.image_files import write_rgb_png
    from cbst_mx.label_space import find, numbered
    from cbst_mx.report.figures import heat_map_sheet
    from cbst_mx.selftrain import prior_files

    maps, metadata = prior_files.read(file)
    if space_name is not None:
        titles = find(space_name, len(maps), origin=str(file), read=read_label_space).names
    else:
        titles = metadata.get("names") or numbered(len(maps)).names
    caption = _caption(maps.shape, metadata)
    write_rgb_png(out, heat_map_sheet(maps, [str(title) for title in titles], caption))
    echo(f"{counted(len(maps), 'class map')} drawn in {out} ({caption})")


@prior.command("import")
@click.argument("file", type=FILE)
@_GRID
@click.option("--label-space", "space_name", help="Names of the classes. Default: cityscapes-19 for 19 classes.")
@_OUT
def import_(file: Path, grid: tuple[int, int] | None, space_name: str | None, out: Path) -> None:
    """Turn the authors' prior_array.mat (FILE) into a spatial prior of this program.

    Reads the array `prior_array`, classes x rows x columns, of a MATLAB file up to v7; writes --out. Small negative
    values become 0; nothing is normalised. With --grid the maps are shrunk.
    """
    from cbst_mx.data.folder import read_label_space
    from cbst_mx.label_space import find
    from cbst_mx.selftrain import prior_files
    from cbst_mx.selftrain.spatial_prior import check_not_zero

    maps, clamped, smallest = prior_files.read_matlab(file, grid=grid)
    check_not_zero(maps, str(file))
    if space_name is None and len(maps) == 19:
        space_name = "cityscapes-19"
    metadata: dict[str, Any] = {"imported": file.name, "normalisation": "as imported", "clamped": clamped}
    if space_name is not None:
        metadata["names"] = list(find(space_name, len(maps), origin=str(file), read=read_label_space).names)
    prior_files.save(out, maps, metadata)
    if clamped:
        echo(f"{counted(clamped, 'negative value')}, the smallest {smallest:.3g}, became 0")
    else:
        echo("no negative values")
    classes = f"{counted(len(maps), 'class')} ({space_name or 'without names: give --label-space to name them'})"
    echo(f"prior of {classes} on {maps.shape[1]} x {maps.shape[2]} pixels in {out}")


def _caption(shape: tuple[int, ...], metadata: dict[str, Any]) -> str:
    parts = [f"{shape[1]} x {shape[2]} pixels"]
    for key, text in (
        ("images", "{:.6g} label maps"),
        ("kernel", "kernel {:.6g} pixels"),
        ("sigma", "sigma {:.4g} pixels (at 1024 x 2048)"),
    ):
        if isinstance(metadata.get(key), (int, float)):
            parts.append(text.format(metadata[key]))
    parts.append(f"normalisation: {metadata.get('normalisation', 'not recorded')}")
    return ", ".join(parts)


COMMANDS = (prior,)
