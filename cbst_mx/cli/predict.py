"""The command ``predict``: images and videos in, label maps, colours, confidence and overlays out."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterator

import click

from cbst_mx.cli.base import FOLDER, Bars, Terminal, choice, echo
from cbst_mx.cli.cluster import cluster_options, opened
from cbst_mx.cli.networks import network_options, read_factors, say_agreement, scale_options
from cbst_mx.errors import CBSTError, ConfigError, DataError, StoppedError
from cbst_mx.messages import counted

if TYPE_CHECKING:
    from cbst_mx.cli.predict_pictures import Painter
    from cbst_mx.cli.predict_shares import Seen
    from cbst_mx.data.datasets import ImageSet
    from cbst_mx.data.photographs import Photographs
    from cbst_mx.evaluation.prediction_folder import PredictionFolder
    from cbst_mx.evaluation.predictor import Predictor

__all__ = ["COMMANDS"]

_ANY = click.Path(path_type=Path)


@click.command()
@network_options
@scale_options
@click.option(
    "--parameters",
    required=True,
    type=_ANY,
    help="The network: a run folder (its last round) or a round's folder, used as the run evaluates; a .params file; "
    "an .onnx file of export.",
)
@click.argument("images", nargs=-1, required=True, type=_ANY)
@click.option("--out", required=True, type=FOLDER, help="Folder for the results; created when it is not there.")
@click.option(
    "--output",
    "outputs",
    multiple=True,
    type=choice(["label", "colour", "confidence", "overlay"]),
    help="What to write; can be repeated. Default: label and overlay, of videos overlay alone.",
)
@click.option("--opacity", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="Of colours in overlays.")
@click.option("--legend", is_flag=True, help="Put names and colours of the classes below overlays.")
@click.option(
    "--ids",
    default="trainId",
    show_default=True,
    metavar="CODE",
    help="Numbers in label files: trainId, cityscapes, or a YAML description, whose own are written.",
)
@click.option("--overwrite", is_flag=True, help="Make everything anew, in the place of results that are in --out.")
@cluster_options
def predict(
    parameters: Path,
    images: tuple[Path, ...],
    out: Path,
    outputs: tuple[str, ...],
    overwrite: bool,
    where: Any,
    **options: Any,
) -> None:
    """Segment IMAGES (files, folders, globs, videos) with the network of --parameters.

    Reads PNG, JPEG, TIFF, BMP, WebP, GIF, PPM and JPEG 2000 images, those in sub-folders too, and turns them as their
    rotation marks (EXIF) say; and videos that are named (mp4, avi, mov, mkv, webm, ...), frame by frame. Writes for
    each image OUT/NAME_label.png (trainIds with the classes' palette), NAME_overlay.png (the image under the class
    colours), NAME_colour.png, NAME_confidence.png (grey: 255 is a probability of 1 for the predicted class, 0 of 0).
    Of a video NAME_overlay.mp4 and so on, of as many frames at the same rate, and labels as NAME_label/000000.png, one
    a frame.
    Images of equal size pass the network together: at most 8, with no more pixels than one of 512 x 1024; on a GPU
    one; or as many as inference_batch of the run's experiment says. So do the frames of a video.
    OUT/predict.json says what they were made with: the same command goes on after a stop, with more images it makes the
    new ones, and results of other parameters or settings are refused without --overwrite. What cannot be read is named
    at the end, and the exit code is 1; the others are done. With --cluster the workers share the images, and each
    video is one worker's.
    """
    from cbst_mx.cli.predict_pictures import Painter
    from cbst_mx.cli.predict_shares import Network, predict_shared, videos_shared
    from cbst_mx.data.datasets import ImageSet
    from cbst_mx.data.listing import names_below
    from cbst_mx.data.photographs import files_of, find_photographs
    from cbst_mx.data.videos import is_video
    from cbst_mx.evaluation.prediction_folder import PredictionFolder, refusal
    from cbst_mx.evaluation.trained import trained_network

    network, which = trained_network(parameters)
    if which:
        echo(which)
    options.update(_as_evaluated(parameters, click.get_current_context()))
    files = [one for path in images for one in files_of(path)]
    moving = [path for path in dict.fromkeys(files) if is_video(path) and not path.is_dir()]
    refused: dict[str, str] = {}
    chosen, left_out = find_photographs([path for path in files if path not in moving], out, refused)
    if left_out:
        echo(left_out)
    videos = ImageSet(names_below(moving, [path.absolute().parent.name for path in moving]), moving)
    total = len(chosen) + len(refused)
    wanted = outputs or (("label", "overlay") if total else ("overlay",))
    painter = Painter.of_options(wanted, options)
    with _locked(out) as behind, opened(where, threads=0) as cluster:
        settings = {**_settings(options), **painter.settings(bool(outputs))}
        folder = PredictionFolder(out, network, settings, chosen, outputs=wanted, overwrite=overwrite, videos=videos)
        _say_turned(chosen)
        predictor = _load(network, chosen, options)
        painter.check(predictor.label_space)
        if len(folder.left) < len(chosen):
            echo(f"{len(chosen) - len(folder.left)} of {len(chosen)} images are done already")
        with Bars(Terminal()) as bars:
            try:
                if cluster is None:
                    _images(predictor, chosen, folder, refused, painter, bars)
                    found = _videos(predictor, videos, folder, painter, bars)
                else:
                    behind.callback(folder.clean)
                    given = Network.of(network, options["ctx"], _loading(chosen, options))
                    tell, tell_videos = (partial(bars, what) for what in ("prediction", "prediction of videos"))
                    predict_shared(cluster, given, chosen, folder, refused, painter, tell)
                    found = videos_shared(cluster, given, videos, folder, painter, tell_videos)
                _say_videos(found, refused)
            except StoppedError as error:
                error.keep("all")
                raise
        folder.begin()
        _say_done(total, len(moving), refused, out)
        if refused:
            raise DataError(refusal(refused, total + len(moving), "file" if moving else "image"))


def _say_done(images: int, videos: int, refused: dict[str, str], out: Path) -> None:
    videos_refused = sum(name.startswith("video ") for name in refused)
    if images:
        echo(f"{counted(images - len(refused) + videos_refused, 'image')} segmented into {out}")
    if videos:
        echo(f"{counted(videos - videos_refused, 'video')} segmented into {out}")


def _say_turned(images: Photographs) -> None:
    turned = sum(turn != 1 for turn in images.turns)
    if turned:
        echo(f"turned upright as their EXIF marks say: {turned} of {len(images)} images, and their labels with them")


def _as_evaluated(run: Path, context: click.Context) -> dict[str, Any]:
    """Return how the networks of a run folder, or of a round in it, are evaluated, where no option says otherwise.

    And how many images pass at once, None where their sizes decide.
    """
    from cbst_mx.config import load_experiment

    file = next((one for one in (run / "experiment.yaml", run.parent / "experiment.yaml") if one.is_file()), None)
    if not run.is_dir() or file is None:
        return {"batch_size": None}
    experiment = load_experiment(file)
    evaluation = experiment.evaluation
    found: dict[str, Any] = {
        "flip": evaluation.flip,
        "scales": ",".join(f"{factor:g}" for factor in evaluation.scales),
        "combine": evaluation.combine,
        "long_side": evaluation.long_side,
        "upsampling": evaluation.upsampling,
        "resampling": experiment.resampling,
    }
    default = click.core.ParameterSource.DEFAULT
    taken = {key: value for key, value in found.items() if context.get_parameter_source(key) is default}
    unusual = [
        f"--{key.replace('_', '-')} {taken[key]}"
        for key in ("long_side", "scales")
        if taken.get(key) not in (None, "1")
    ]
    if unusual:
        echo(f"as in the run's evaluation: {', '.join(unusual)}")
    return {**taken, "batch_size": experiment.inference_batch}


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[contextlib.ExitStack]:
    """Keep other processes out of the output folder; take it away again where nothing came into it.

    Yields what takes calls that are made behind everything else.
    """
    from cbst_mx.files import remove_empty_folder
    from cbst_mx.run_dir.lock import lock_folder

    new = not out.exists()
    lock = lock_folder(out, "output folder")
    try:
        with contextlib.ExitStack() as behind:
            yield behind
    finally:
        lock.release()
        if new and out.is_dir() and not any(out.iterdir()):
            with contextlib.suppress(CBSTError):
                remove_empty_folder(out)


def _settings(options: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that can change a prediction; those that came later only where they are not the default."""
    calibrated = options["calibration_images"] if options["inference"] == "int8" else 0
    settings = {key: options[key] for key in ("flip", "upsampling", "resampling")}
    settings["int8"] = calibrated
    factors = read_factors(options["scales"])
    if factors != [1.0]:
        settings.update(scales=factors, combine=options["combine"])
    if options["long_side"] is not None:
        settings["long_side"] = options["long_side"]
    return settings


def _loading(chosen: Photographs, options: dict[str, Any]) -> dict[str, Any]:
    """Return keyword arguments of `load_network`."""
    return {
        **{key: options[key] for key in ("flip", "combine", "long_side", "upsampling", "resampling")},
        "scales": read_factors(options["scales"]),
        "inference": options["inference"],
        "tile": options["tile"],
        "batch_size": 1 if options["tile"] else options["batch_size"],
        "calibration": chosen.subset(range(min(options["calibration_images"], len(chosen)))),
    }


def _load(parameters: Path, chosen: Photographs, options: dict[str, Any]) -> Predictor:
    from cbst_mx import load_network

    if options["inference"] == "int8" and not len(chosen):
        raise ConfigError("inference int8 must be calibrated on images, got videos alone")
    predictor = load_network(parameters, options["ctx"], **_loading(chosen, options))
    say_agreement(predictor.agreement)
    return predictor


def _images(
    predictor: Predictor,
    images: Photographs,
    folder: PredictionFolder,
    refused: dict[str, str],
    painter: Painter,
    bars: Bars,
) -> None:
    """Predict what is left, into the folder; name and reason of what cannot be read go into `refused`."""
    from cbst_mx.cli.predict_shares import paint

    for place, pictures in paint(predictor, images.subset(folder.left), painter, refused):
        if pictures is not None:
            folder.write(folder.left[place], pictures)
        bars("prediction", place + 1, len(folder.left))


def _videos(
    predictor: Predictor, videos: ImageSet, folder: PredictionFolder, painter: Painter, bars: Bars
) -> Iterator[tuple[str, Seen]]:
    """Predict the videos that are left; yield the name of each and what was found."""
    from cbst_mx.cli.predict_shares import paint_video

    for index in folder.videos_left:
        name, files = videos.names[index], folder.video_files(index)
        progress = partial(bars, f"prediction of {name}")
        yield name, paint_video(predictor, videos.image_paths[index], files, painter, progress)


def _say_videos(found: Iterator[tuple[str, Seen]], refused: dict[str, str]) -> None:
    """Say what there was in each video; name and reason of what cannot be read go into `refused`."""
    for name, seen in found:
        if seen.refused:
            refused[f"video {name}"] = seen.refused
        else:
            echo(f"{name}: {seen.frames:,} frames at {seen.rate:g} a second")


COMMANDS = (predict,)
