"""The command ``cbst-mx``: the only place that prints and exits.

Exit codes: 0 done, 1 something given cannot be used (one sentence says what), 2 wrong usage.
"""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Tuple

import click
from rich.console import Console
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

import cbst_mx
from cbst_mx.errors import CBSTError

__all__ = ["main"]

_EXPERIMENT = click.Path(dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)
_FILE = click.Path(dir_okay=False, path_type=Path)


class _Rate(TextColumn):
    """Steps per second."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Any) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "", style="progress.data.speed")


class _Bars:
    """One progress bar per stage while it runs, and a line for what the library logs; ``bars(what, done, total)``."""

    def __init__(self, console: Console):
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=console, transient=not console.is_terminal)
        self._tasks: Dict[str, Any] = {}
        self._messages = RichHandler(console=console, show_level=False, show_path=False, highlighter=NullHighlighter())

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self._tasks:
            self._progress.start()  # not before there is something to show: errors come without a blank line
            self._tasks[what] = self._progress.add_task(what, total=total)
        self._progress.update(self._tasks[what], completed=done, total=total)
        if done == total:
            self._progress.remove_task(self._tasks.pop(what))

    def __enter__(self) -> _Bars:
        logging.getLogger("cbst_mx").addHandler(self._messages)
        return self

    def __exit__(self, *exception: Any) -> None:
        logging.getLogger("cbst_mx").removeHandler(self._messages)
        if self._progress.live.is_started:
            self._progress.stop()


class _OneSentence(click.Group):
    """A group that turns errors a user can mend into one sentence and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CBSTError as error:
            _fail(str(error))
        except ImportError as error:
            if type(error).__name__ != "MXNetUnavailableError":
                raise
            _fail(str(error))
        except OSError as error:
            # what has no better sentence of its own: a disk full in the log file, a folder without permission
            _fail(f"{error.filename or 'a file'} cannot be used: {error.strerror or error}")


def _fail(sentence: str) -> None:
    click.echo(f"Error: {sentence}", err=True)
    raise click.exceptions.Exit(1)


@click.group(cls=_OneSentence, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(cbst_mx.__version__, prog_name="cbst-mx")
def main() -> None:
    """Class-balanced self-training (CBST) for semantic segmentation on MXNet.

    Adapts a network trained on labelled source images to unlabelled target images by rounds of pseudo-labelling and
    retraining. `run` does everything an experiment file says; `source`, `pseudo-label`, `retrain` and `round` do
    single steps of it in the same run folder.
    """


# ---------------------------------------------------------------------------------------------------------- experiments


def _experiment_command(function: Callable[..., None]) -> Callable[..., None]:
    """Add what every command that works in a run folder takes; the function gets the open Run."""

    @click.argument("experiment", type=_EXPERIMENT)
    @click.option(
        "--out", required=True, type=_FOLDER, help="Run folder; created, or continued if it is this experiment's."
    )
    @click.option("--ctx", help="Device: cpu, cpu:N, gpu:N. Default: the experiment's.")
    @click.option(
        "--set",
        "changes",
        multiple=True,
        metavar="KEY=VALUE",
        help="Change a key of the experiment, e.g. --set self_training.rounds=2. May be repeated.",
    )
    @functools.wraps(function)
    def command(experiment: Path, out: Path, ctx: Optional[str], changes: Tuple[str, ...], **options: Any) -> None:
        from cbst_mx.config import load_experiment

        if ctx:
            changes = (*changes, f"ctx={ctx}")
        loaded = load_experiment(experiment, changes)
        from cbst_mx.rounds import Run  # imports mxnet

        with _Bars(Console()) as bars:
            run = Run(loaded, out, progress=bars)
            with run.logging():
                function(run, **options)

    return command


_ROUND = click.option("--round", "index", required=True, type=click.IntRange(1), help="Which round; 1 is the first.")


@main.command()
@_experiment_command
def run(run: Any) -> None:
    """Run EXPERIMENT: source training, all rounds, evaluation.

    Reads the experiment file and the images it names (relative data roots are below the folder in CBST_DATA). Writes
    the run folder: source/ and round-N/ with parameters, thresholds, pseudo-labels and evaluation, summary.json,
    log.txt. A finished step is not run again, so the same command continues a run that was stopped.
    """
    summary = run.run()
    _print_stages(summary, run.label_space)
    click.echo(f"results in {run.dir.summary}")


@main.command()
@_experiment_command
def source(run: Any) -> None:
    """Train the source network of EXPERIMENT and evaluate it.

    Reads the labelled source images; writes OUT/source/parameters.params with its sidecar, training.json, confusion.npz
    and evaluation.json. Takes over initial_parameters instead where the experiment gives them.
    """
    run.train_source()
    _print_evaluation(run, 0)


@main.command("pseudo-label")
@_ROUND
@_experiment_command
def pseudo_label(run: Any, index: int) -> None:
    """Step a) of one round: label the target images with the network of the round before.

    Reads OUT/source or OUT/round-(N-1); writes OUT/round-N/pseudo_labels/NAME.png (trainIds with palette, 255 = not
    selected) and OUT/round-N/thresholds.json.
    """
    run.pseudo_label(index)
    click.echo(
        f"pseudo-labels in {run.dir.stage(index).pseudo_labels}, thresholds in {run.dir.stage(index).thresholds}"
    )


@main.command()
@_ROUND
@_experiment_command
def retrain(run: Any, index: int) -> None:
    """Step b) of one round: retrain on source labels and pseudo-labels together.

    Reads OUT/round-N/pseudo_labels and the parameters of the round before; writes OUT/round-N/parameters.params with
    its sidecar and training.json.
    """
    run.retrain(index)
    click.echo(f"parameters in {run.dir.stage(index).parameters}")


@main.command("round")
@_ROUND
@_experiment_command
def round_(run: Any, index: int) -> None:
    """One round: pseudo-label, retrain, evaluate.

    Reads the parameters of the round before; writes OUT/round-N.
    """
    run.round(index)
    _print_evaluation(run, index)


def _print_evaluation(run: Any, index: int) -> None:
    from cbst_mx.report.tables import iou_table

    results = run.evaluate(index)
    run.write_summary()
    Console().print(iou_table(results, run.label_space))


def _print_stages(summary: Dict[str, Any], label_space: Any) -> None:
    from cbst_mx.report.tables import iou_table

    leading = summary["leading"]
    rows = {
        ("source" if stage["round"] == 0 else f"round {stage['round']}"): stage["evaluation"][leading]
        for stage in summary["stages"]
    }
    Console().print(iou_table(rows, label_space))


# ------------------------------------------------------------------------------------------------------------ networks


def _device(function: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--parameters", required=True, type=_FILE, help="A parameters.params file written by cbst-mx."),
        click.option("--ctx", default="cpu", show_default=True, help="Device: cpu, cpu:N, gpu:N."),
        click.option("--flip/--no-flip", default=True, show_default=True, help="Average with the mirrored image."),
    ):
        function = option(function)
    return function


@main.command()
@_device
@click.option(
    "--format",
    "format_",
    required=True,
    type=click.Choice(["gta5", "cityscapes", "folder"]),
    help="Layout of the images.",
)
@click.option("--root", required=True, type=_FOLDER, help="Data root.")
@click.option("--split", help="Split (cityscapes, folder).")
@click.option("--labels", type=click.Choice(["labelIds", "labelTrainIds"]), help="Which label files (cityscapes).")
@click.option("--description", type=_FILE, help="YAML description (folder).")
@click.option("--out", type=_FILE, help="Write the result as JSON here as well.")
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
    with _Bars(Console()) as bars:
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


@main.command()
@_device
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=_FOLDER, help="Folder for the results; created when it is not there.")
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
    with _Bars(Console()) as bars:
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


# ------------------------------------------------------------------------------------------------------------ demo


@main.command("demo-data")
@click.argument("out", type=_FOLDER)
@click.option("--source", "source_count", default=400, show_default=True, help="Labelled source images.")
@click.option("--source-val", "source_val_count", default=50, show_default=True, help="Held-out source images.")
@click.option("--target", "target_count", default=150, show_default=True, help="Target training images.")
@click.option("--target-val", "target_val_count", default=50, show_default=True, help="Target validation images.")
@click.option(
    "--size",
    nargs=2,
    type=int,
    default=(128, 256),
    show_default=True,
    metavar="H W",
    help="Height and width in pixels.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of the scenes.")
@click.option(
    "--shift", default=0.8, show_default=True, help="Strength of the target's change in appearance; 0 = none."
)
@click.option("--shift-seed", default=0, show_default=True, help="Seed of the random part of that change.")
def demo_data(out: Path, size: Tuple[int, int], seed: int, shift: float, shift_seed: int, **counts: int) -> None:
    """Write generated street scenes of two domains to OUT.

    Writes OUT/gta5 and OUT/gta5_val in the format of GTA5 (images/00001.png, labels/00001.png) and OUT/cityscapes in
    the format of Cityscapes (leftImg8bit and gtFine with train and val). OUT must be new or empty.
    """
    from cbst_mx.data.street_scenes import Shift, write_demo_data

    with _Bars(Console()) as bars:
        write_demo_data(
            out,
            size=size,
            seed=seed,
            shift=Shift(strength=shift, seed=shift_seed),
            progress=lambda done, total: bars("street scenes", done, total),
            **counts,
        )
    click.echo(f"street scenes in {out}")


@main.command()
@click.option("--out", required=True, type=_FOLDER, help="Folder for data, runs, tables and the picture.")
@click.option("--seeds", default="0", show_default=True, help="Comma-separated seeds; each is a whole repetition.")
@click.option("--shift", default=0.8, show_default=True, help="Strength of the target's change in appearance.")
@click.option("--shift-seed", default=0, show_default=True, help="Seed of the random part of that change.")
@click.option(
    "--experiment",
    type=_EXPERIMENT,
    default=Path("experiments/demo.yaml"),
    show_default=True,
    help="The experiment repeated.",
)
def demo(out: Path, seeds: str, shift: float, shift_seed: int, experiment: Path) -> None:
    """The whole job on generated street scenes: source-only, ST, CBST and CBST-SP, a table and a picture.

    Reads the experiment file. Writes OUT/seed-N/ with the scenes (data/) and one run folder per method,
    OUT/results.json and OUT/comparison.png. Goes on where an earlier call was stopped.
    """
    from cbst_mx.demo import METHODS, run_demo  # imports mxnet
    from cbst_mx.report.tables import iou_table, mean_std_table

    try:
        numbers = [int(text) for text in seeds.split(",")]
    except ValueError:
        raise click.BadParameter(
            f"must be integers with commas between them, got {seeds!r}", param_hint="--seeds"
        ) from None
    console = Console()
    with _Bars(console) as bars:
        result = run_demo(experiment, out, numbers, shift_strength=shift, shift_seed=shift_seed, progress=bars)
    first = result.rows[numbers[0]]
    console.print(iou_table({METHODS[name]: first[name] for name in first}, result.label_space))
    if len(numbers) > 1:
        console.print(
            mean_std_table({METHODS[m]: [result.rows[n][m] for n in numbers] for m in METHODS}, result.label_space)
        )
    for number in numbers:
        source = ", ".join(f"{METHODS[m]} {100 * result.source_rows[number][m]['miou']:.1f}" for m in METHODS)
        click.echo(f"seed {number}, mIoU on held-out source images: {source}")
    click.echo(f"results in {result.results}")
    click.echo(f"picture: {result.picture}")
