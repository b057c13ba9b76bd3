"""``predict --cluster``: a worker loads the network, and writes the results of some images by itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterator, Mapping, Sequence

from cbst_mx.cli.predict_pictures import Painter
from cbst_mx.data.photographs import Photographs, ReadOnce
from cbst_mx.errors import CheckpointError
from cbst_mx.evaluation.prediction_folder import PredictionFolder, write_pictures
from cbst_mx.files import file_digest
from cbst_mx.messages import Counter, Share, Shares

if TYPE_CHECKING:
    from cbst_mx.evaluation.predictor import Images, Predictor

__all__ = ["classes_of", "paint", "predict_shared"]

_loaded: dict[str, Predictor] = {}


def predict_shared(
    cluster: Shares,
    network: tuple[Path, str, Mapping[str, Any]],
    images: Photographs,
    folder: PredictionFolder,
    refused: dict[str, str],
    painter: Painter,
    progress: Counter,
) -> None:
    """Let the workers of a cluster predict what is left of `images`, into the folder.

    Parameters
    ----------
    cluster : Shares
        The cluster.
    network : (Path, str, mapping)
        Parameters, device, and keyword arguments of :func:`cbst_mx.load_network`.
    images : Photographs
        All images.
    folder : PredictionFolder
        Knows which are left.
    refused : dict of str to str
        Takes name and reason of those that cannot be read.
    painter : Painter
        Makes the pictures.
    progress : callable
        Called with (images done, images in all).
    """
    from cbst_mx.evaluation.shared import cut

    folder.begin()
    left = images.subset(folder.left).absolute()
    parameters, ctx, options = network
    calibration = options["calibration"].absolute()
    given = (parameters.absolute(), file_digest(parameters), ctx, {**options, "calibration": calibration})
    parts = cut(left, workers=cluster.size, on_cpu=not ctx.startswith("gpu"), **options)
    shares = []
    for part in parts:
        files = [
            {output: path.absolute() for output, path in folder.image_files(folder.left[index]).items()}
            for index in part
        ]
        names = [left.names[index] for index in part]
        shares.append(Share((*given, left.subset(part), files, painter), names, left.image_paths[part[0]]))
    done = 0

    def tell() -> None:
        progress(done, len(left))

    for index, missing in cluster.each(_predict, shares, waiting_for=tell):
        refused.update(missing)
        done += len(parts[index])
        tell()


def _predict(
    parameters: Path,
    sha256: str,
    ctx: str,
    options: dict[str, Any],
    images: Photographs,
    files: Sequence[Mapping[str, Path]],
    painter: Painter,
) -> dict[str, str]:
    """Predict some images and write their results; return those that cannot be read; on a worker."""
    from cbst_mx import load_network
    from cbst_mx.evaluation.shared import described

    key = described((parameters, sha256, ctx, options))
    if key not in _loaded:
        if file_digest(parameters) != sha256:
            raise CheckpointError(f"{parameters} is another file than the one of the command that asked for this")
        _loaded.clear()
        _loaded[key] = load_network(parameters, ctx, **options)
    refused: dict[str, str] = {}
    for place, pictures in paint(_loaded[key], images, painter, refused):
        if pictures is not None:
            write_pictures(files[place], pictures)
    return refused


def paint(
    predictor: Predictor, images: Photographs, painter: Painter, refused: dict[str, str]
) -> Iterator[tuple[int, Any]]:
    """Yield the place of every image and its pictures; None for one that cannot be read, which `refused` then names."""
    pictures = ReadOnce(images, refused)
    for place, (label, confidence) in enumerate(classes_of(predictor, pictures, painter)):
        if pictures.names[place] in refused:
            yield place, None
        else:
            yield place, painter.pictures(pictures.take(place), label, confidence, predictor.label_space)


def classes_of(predictor: Predictor, images: Images, painter: Painter) -> Iterator[Any]:
    """Yield the label of each image, and its confidence where that is asked for."""
    if painter.needs_confidence:
        yield from predictor.confidences(images)
    else:
        for label in predictor.labels(images):
            yield label, None
