"""``predict --cluster``: a worker loads the network, and writes the results of some images, or a video, by itself."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterable, Iterator, Mapping, NamedTuple, Sequence

from cbst_mx.cli.predict_pictures import Painter, VideoOutputs
from cbst_mx.data import ImageSet
from cbst_mx.data.photographs import Photographs, ReadOnce
from cbst_mx.data.videos import Video
from cbst_mx.errors import DataError
from cbst_mx.evaluation.prediction_folder import PredictionFolder, write_pictures
from cbst_mx.files import file_digest
from cbst_mx.messages import Counter, Share, Shares, shares_of, silent

if TYPE_CHECKING:
    from cbst_mx.evaluation.predictor import Images, Predictor

__all__ = ["Network", "Seen", "paint", "paint_video", "predict_shared", "videos_shared"]


class Network(NamedTuple):
    """A network as a worker loads it.

    Attributes
    ----------
    parameters : Path
        The file.
    sha256 : str
        Of its content.
    ctx : str
        Device.
    options : dict
        Keyword arguments of :func:`cbst_mx.load_network`.
    """

    parameters: Path
    sha256: str
    ctx: str
    options: dict[str, Any]

    @classmethod
    def of(cls, parameters: Path, ctx: str, options: Mapping[str, Any]) -> Network:
        """Return the network of a file that is there, as it travels to workers."""
        given = {**options, "calibration": options["calibration"].absolute()}
        return cls(parameters.absolute(), file_digest(parameters), ctx, given)

    def load(self) -> Predictor:
        """Return the network; the one that was loaded last is kept.

        Raises
        ------
        CheckpointError
            If the file is not the one that was meant.
        """
        from cbst_mx import load_network
        from cbst_mx.evaluation.shared import loaded_once

        def load() -> Predictor:
            return load_network(self.parameters, self.ctx, **self.options)

        return loaded_once(self, self.parameters, self.sha256, load)


class Seen(NamedTuple):
    """What was found in a video."""

    frames: int
    rate: float  # frames a second
    refused: str = ""  # why it cannot be read to its end, where it cannot


def predict_shared(
    cluster: Shares,
    network: Network,
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
    network : Network
        The network.
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
    places = folder.left
    left = images.subset(places).absolute()
    parts = cut(left, workers=cluster.size, on_cpu=not network.ctx.startswith("gpu"), **network.options)

    def share(part: Sequence[int]) -> Share:
        files = [
            {output: path.absolute() for output, path in folder.image_files(places[index]).items()} for index in part
        ]
        names = [left.names[index] for index in part]
        return Share((network, left.subset(part), files, painter), names, left.image_paths[part[0]], stays=True)

    shares, done = shares_of(share, parts), 0

    def tell() -> None:
        progress(done, len(left))

    for index, missing in cluster.each(_predict, shares, waiting_for=tell):
        refused.update(missing)
        done += len(shares[index].names)
        tell()


def _predict(
    network: Network, images: Photographs, files: Sequence[Mapping[str, Path]], painter: Painter
) -> dict[str, str]:
    """Predict some images and write their results; return those that cannot be read; on a worker."""
    refused: dict[str, str] = {}
    for place, pictures in paint(network.load(), images, painter, refused):
        if pictures is not None:
            write_pictures(files[place], pictures)
    return refused


def paint(
    predictor: Predictor, images: Photographs, painter: Painter, refused: dict[str, str]
) -> Iterator[tuple[int, Any]]:
    """Yield the place of every image and its pictures; None for one that cannot be read, which `refused` then names."""
    pictures = ReadOnce(images, refused)
    for place, (label, confidence) in enumerate(_classes_of(predictor, pictures, painter)):
        if pictures.names[place] in refused:
            yield place, None
        else:
            yield place, painter.pictures(pictures.take(place), label, confidence, predictor.label_space)


def videos_shared(
    cluster: Shares, network: Network, videos: ImageSet, folder: PredictionFolder, painter: Painter, progress: Counter
) -> Iterator[tuple[str, Seen]]:
    """Let the workers of a cluster predict the videos that are left, each by one worker; yield name and what was found.

    Parameters
    ----------
    cluster, network, folder, painter
        As for :func:`predict_shared`.
    videos : ImageSet
        All videos.
    progress : callable
        Called with (videos done, videos in all).
    """
    left = folder.videos_left
    shares = []
    for index in left:
        files = {output: path.absolute() for output, path in folder.video_files(index).items()}
        path = videos.image_paths[index].absolute()
        shares.append(Share((network, path, files, painter), [f"video {videos.names[index]}"], path, stays=True))
    done = 0

    def tell() -> None:
        progress(done, len(left))

    for place, seen in cluster.each(_predict_video, shares, waiting_for=tell, ahead=1):
        done += 1
        tell()
        yield videos.names[left[place]], seen


def _predict_video(network: Network, path: Path, files: Mapping[str, Path], painter: Painter) -> Seen:
    """Predict a video; on a worker."""
    return paint_video(network.load(), path, files, painter)


def paint_video(
    predictor: Predictor, path: Path, files: Mapping[str, Path], painter: Painter, progress: Counter = silent
) -> Seen:
    """Write the results of a video, all of them or, where it cannot be read to its end, none.

    Parameters
    ----------
    predictor : Predictor
        The network.
    path : Path
        The video.
    files : mapping of str to Path
        As for :class:`.VideoOutputs`.
    painter : Painter
        Makes the pictures.
    progress : callable
        Called with (frames done, frames in all).
    """
    done, rate = 0, 0.0
    try:
        video = Video(path)
        rate, total = video.rate, max(1, video.frames)
        frames: deque[Any] = deque()  # read, and not yet written
        with VideoOutputs(files, rate) as outputs:
            for label, confidence in _classes_of(predictor, _noted(video, frames), painter):
                outputs.write(painter.pictures(frames.popleft(), label, confidence, predictor.label_space))
                done += 1
                progress(min(done, total - 1), total)
        progress(total, total)
    except DataError as error:
        return Seen(done, rate, str(error))
    return Seen(done, rate)


def _noted(items: Iterable[Any], noted: deque[Any]) -> Iterator[Any]:
    """Yield items, and append each to `noted`."""
    for item in items:
        noted.append(item)
        yield item


def _classes_of(predictor: Predictor, images: Images, painter: Painter) -> Iterator[Any]:
    """Yield the label of each image, and its confidence where that is asked for."""
    if painter.needs_confidence:
        yield from predictor.confidences(images)
    else:
        for label in predictor.labels(images):
            yield label, None
