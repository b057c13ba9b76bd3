"""Commands on the classes predicted on a target set: ``class-statistics`` and ``select-images``."""

from __future__ import annotations

import csv
import functools
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, Sequence

import click

from cbst_mx.cli.base import FILE, Bars, Terminal, choice, echo
from cbst_mx.cli.cluster import cluster_options, opened
from cbst_mx.messages import counted

if TYPE_CHECKING:
    import numpy as np

    from cbst_mx.selftrain.class_statistics import ImageStatistics, Selection

__all__ = ["COMMANDS"]

_SPACE = click.option("--label-space", "space_name", help="Names of the classes, for a file that has none.")


@click.command("class-statistics")
@click.argument("file", type=click.Path(path_type=Path))
@_SPACE
@click.option("--worst", default=5, show_default=True, type=click.IntRange(1), help="How many worst classes.")
@click.option("--priority", default=0.001, show_default=True, help="Portion below which a class has priority.")
@click.option("--out", type=FILE, help="Write the result as JSON here as well.")
@cluster_options
def class_statistics(
    file: Path, space_name: str | None, worst: int, priority: float, out: Path | None, where: Any
) -> None:
    """Print the predicted portion of every class, the worst classes and those with priority.

    FILE is an image_statistics.npz, or the kc.json or thresholds.json of a labelling pass; or a folder of label maps
    (.png of trainIds, 255 = none), whose pixels are counted, for the classes of --label-space. The worst classes are
    the least predicted ones; a class that is never predicted is among them and has priority.
    """
    from cbst_mx.files import write_json
    from cbst_mx.report.tables import plain_table
    from cbst_mx.selftrain.class_statistics import summary

    if file.is_dir():
        counts, stored = _count_folder(file, space_name, where)
    else:
        if where is not None:
            raise click.UsageError("--cluster needs a folder of label maps to count, a file holds the counts")
        counts, stored = _read_counts(file)
    names = _class_names(stored, space_name, len(counts), file)
    result = summary(counts, names, worst=worst, priority=priority)
    table = plain_table("class", "pixels", "portion in %", "mined", words=["mined"])
    for index, (name, count, portion) in enumerate(zip(names, result["count"], result["portion"])):
        marks = [f"worst {result['worst'].index(index) + 1}"] if index in result["worst"] else []
        marks += ["priority"] if index in result["priority"] else []
        table.add_row(name, f"{count:,}", f"{100 * portion:.3f}", ", ".join(marks))
    Terminal().print(table)
    if out:
        write_json(out, result)
        echo(f"result in {out}")


@click.command("select-images")
@click.option("--statistics", "file", required=True, type=FILE, help="The image_statistics.npz of a labelling pass.")
@click.option("--keep", required=True, type=click.IntRange(1), help="How many images.")
@click.option(
    "--method",
    type=choice(["class-balanced", "confidence"]),
    default="class-balanced",
    show_default=True,
    help="Score: mean over an image's predicted classes of the mean confidence of each; or mean over its pixels.",
)
@click.option("--out", required=True, type=FILE, help="The list to write, one name per line.")
@click.option("--table", "scores", type=FILE, help="Write the score of every image as CSV here as well.")
@_SPACE
def select_images(file: Path, keep: int, method: str, out: Path, scores: Path | None, space_name: str | None) -> None:
    """Choose the images whose predictions are the most confident.

    With the class-balanced score and --keep 505 this is how the authors chose 505 of the 2,975 Cityscapes training
    images, as far as they have said. Of equal scores the names that come first are kept. Writes the names to --out, a
    list that an experiment's target takes (`list: ...`), and beside it OUT.json with the score threshold and the
    predicted portions before and after.
    """
    from cbst_mx.data.lists import write_list
    from cbst_mx.files import write_json, write_text
    from cbst_mx.report.tables import plain_table
    from cbst_mx.selftrain import class_statistics as stats

    statistics = stats.ImageStatistics.load(file)
    names = _class_names(statistics.class_names, space_name, statistics.num_classes, file)
    selection = stats.select_images(statistics, keep, method)
    before, after = statistics.total(), selection.counts
    portions = stats.portions(before), stats.portions(after)
    if scores:
        write_text(scores, _csv(statistics, selection))
    record = {
        "method": method,
        "images": len(statistics),
        "keep": keep,
        "threshold": selection.threshold,
        "names": names,
        "portion_before": portions[0].tolist(),
        "portion_after": portions[1].tolist(),
    }
    write_json(out.with_name(f"{out.name}.json"), record)
    write_list(out, selection.names, among=statistics.names)

    table = plain_table("class", "predicted in all, %", "in those kept, %")
    for name, *values in zip(names, *portions):
        table.add_row(name, *(f"{100 * value:.3f}" for value in values))
    Terminal().print(table)
    images = counted(len(statistics), "image")
    echo(f"{keep:,} of {images} kept, those with a {method} score of {selection.threshold:.6f} up")
    lost = [name for name, old, new in zip(names, before, after) if old and not new]
    covered = f"{(after > 0).sum()} of the {counted(int((before > 0).sum()), 'predicted class')} covered"
    echo(covered + (f", without {', '.join(lost)}" if lost else ""))
    echo(f"names in {out}, threshold in {out}.json")


def _read_counts(file: Path) -> tuple[np.ndarray, Sequence[str] | None]:
    """Return the predicted pixels per class, int64 (C,), and the class names where the file has them."""
    import numpy as np

    from cbst_mx.errors import DataError
    from cbst_mx.files import read_json
    from cbst_mx.selftrain.class_statistics import ImageStatistics

    if file.suffix != ".json":
        statistics = ImageStatistics.load(file)
        return statistics.total(), statistics.class_names
    record = read_json(file)
    if not isinstance(record, dict):
        record = {}
    key = "predicted" if "predicted" in record else "count"
    if key == "count" and record.get("fidelity") == "released":
        raise DataError(
            f"{file} counts every 4th pixel only (rules of the released program): give "
            f"{file.with_name('image_statistics.npz')}, which counts all"
        )
    counts = record.get(key)
    if not isinstance(counts, list) or not counts or not all(type(count) is int and count >= 0 for count in counts):
        raise DataError(f"{file} must hold '{key}', a list of the pixels predicted as each class, got {counts!r}")
    names = record.get("names")
    if names is not None and (
        not isinstance(names, list) or len(names) != len(counts) or not all(isinstance(name, str) for name in names)
    ):
        raise DataError(f"{file} must hold 'names', a list of {len(counts)} texts, got {names!r}")
    return np.array(counts, dtype=np.int64), names


def _count_folder(folder: Path, space_name: str | None, where: Any) -> tuple[np.ndarray, Sequence[str] | None]:
    """Return the pixels of every class in a folder of label maps, int64 (C,), and the class names."""
    from cbst_mx.data.folder import read_label_space
    from cbst_mx.data.label_counts import count_labels
    from cbst_mx.label_space import find

    if space_name is None:
        raise click.UsageError("a folder of label maps needs --label-space, which names its classes")
    space = find(space_name, None, origin=str(folder), read=read_label_space)
    with Bars(Terminal(stderr=True)) as bars, opened(where) as cluster:
        counts = count_labels(folder, space.num_classes, cluster=cluster, progress=functools.partial(bars, "labels"))
    return counts, space.names


def _class_names(stored: Sequence[str] | None, space_name: str | None, count: int, file: Path) -> list[str]:
    """Return the names of the label space asked for, those the file has, or numbers."""
    from cbst_mx.data.folder import read_label_space
    from cbst_mx.label_space import find, numbered

    if space_name is not None:
        return list(find(space_name, count, origin=str(file), read=read_label_space).names)
    return list(stored if stored is not None else numbered(count).names)


def _csv(statistics: ImageStatistics, selection: Selection) -> str:
    """Return the scores of all images as CSV, the best first."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", "score", "kept", "predicted classes"])
    classes = dict(zip(statistics.names, (statistics.counts > 0).sum(axis=1)))
    scores, chosen = selection.scores, set(selection.names)
    for name in sorted(scores, key=lambda name: (-scores[name], name)):
        writer.writerow([name, repr(scores[name]), int(name in chosen), classes[name]])
    return text.getvalue()


COMMANDS = (class_statistics, select_images)
