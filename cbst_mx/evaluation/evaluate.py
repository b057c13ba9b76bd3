"""A network on labelled images: confusion matrices, and the whole evaluation of a parameter file.

N images, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np

from cbst_mx.data import LabelledImageSet, folder, open_labelled
from cbst_mx.data.ahead import read_ahead
from cbst_mx.data.image_headers import check_whole
from cbst_mx.errors import CheckpointError, DataError
from cbst_mx.evaluation import confusion, protocols
from cbst_mx.evaluation.predictor import check_resizing, choose_form
from cbst_mx.evaluation.shared import Apart, NetworkFile, SharedNetwork
from cbst_mx.evaluation.shown import Shown, Shows
from cbst_mx.label_space import IGNORE, LABEL_SPACES, LabelSpace
from cbst_mx.messages import Counter, Shares, silent
from cbst_mx.networks.devices import parse_context
from cbst_mx.networks.forms import check_form
from cbst_mx.networks.int8 import Agreement
from cbst_mx.networks.parameters import load_network
from cbst_mx.selftrain.network_maps import confidences
from symbols.backend import gluon, mx

__all__ = ["Evaluation", "check_labelled", "evaluate_network", "evaluate_parameters"]


def evaluate_network(
    network: gluon.HybridBlock | SharedNetwork,
    images: LabelledImageSet,
    *,
    classes: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    ctx: mx.Context,
    batch_size: int | None,
    progress: Counter = silent,
    shows: Shows | Apart | None = None,
    **options: Any,
) -> np.ndarray:
    """Return the confusion matrix of every image.

    Parameters
    ----------
    network : HybridBlock or SharedNetwork
        Maps images to logits, as for :func:`.network_maps.probabilities`.
    images : LabelledImageSet
        Images with labels.
    classes : sequence of str
        Names of the network's classes, all among those of the images' labels, which may be more.
    mean, std : sequence of 3 float
        Normalisation, RGB in [0, 1].
    ctx : mx.Context
        The network's context.
    batch_size : int or None
        Images per forward pass at most; None: as :func:`.network_maps.fitting_batch` says.
    progress : callable
        Called with (images done, images in all).
    shows : Shows, optional
        Gets confidences, predictions and truths.
    **options
        Keyword arguments of :func:`.network_maps.probabilities`.

    Returns
    -------
    ndarray of shape (N, C, C), int64
        Over the C classes of the labels: rows truth, columns prediction; pixels without truth are not counted.
    """
    truth = images.label_space.names
    matrices = np.zeros((len(images), len(truth), len(truth)), dtype=np.int64)
    if isinstance(network, SharedNetwork):
        given = {"classes": classes, "mean": mean, "std": std, **options}
        for indices, (part, shown) in network.run(_evaluate_part, images, batch_size, given, progress):
            matrices[indices] = part
            if isinstance(shows, Shows):
                shows.merge(shown)
        return matrices
    found = confidences(network, images, batch_size=batch_size, mean=mean, std=std, ctx=ctx, **options)
    labels = read_ahead(map(images.label, range(len(images))), 2)
    for (index, sure, predicted), label in zip(found, labels):
        widened = protocols.widen(predicted, classes, truth)
        matrices[index] = confusion.confusion_matrix(label, widened, len(truth))
        if shows is not None:
            shows.add(index, images.names[index], sure, widened, label)
        progress(index + 1, len(images))
    return matrices


def _evaluate_part(
    file: NetworkFile,
    images: LabelledImageSet,
    indices: Sequence[int],
    count: int,
    batch_size: int | None,
    options: dict[str, Any],
) -> tuple[np.ndarray, list[Shown]]:
    """Return the confusion matrices of some images, and what is shown of each; on a worker."""
    network, device = file.load()
    shows = Apart(indices, count)
    return evaluate_network(network, images, batch_size=batch_size, shows=shows, **device, **options), shows.found


def check_labelled(images: LabelledImageSet, name: str, use: str = "evaluated", *, every: bool = False) -> None:
    """Refuse an image set that no evaluation, or no training, can come of, before anything is computed.

    Labels are read until one has a labelled pixel, mostly one; sizes are compared by the files' headers.

    Parameters
    ----------
    images : LabelledImageSet
        Images with labels.
    name : str
        Name of the set, for errors.
    use : str
        What it is for, for errors.
    every : bool
        Read every label: one that cannot be used, for an unknown id or colours, is then found as well.

    Raises
    ------
    DataError
        If a label has not the size of its image, a file cannot be used, or no label has a labelled pixel.
    """
    for image, label in zip(images.image_paths, images.label_paths):
        first, second = check_whole(image), check_whole(label, "label")
        if (first.height, first.width) != (second.height, second.width):
            raise DataError(
                f"{name} cannot be {use}: label {label} must have the height and width of image {image}, "
                f"{first.height} x {first.width}, got {second.height} x {second.width}"
            )
    labelled = ((images.label(index) != IGNORE).any() for index in range(len(images)))
    if not any([*labelled] if every else labelled):
        raise DataError(
            f"{name} cannot be {use}: none of its {len(images)} labels has a labelled pixel, as those of a "
            "benchmark's test set"
        )


@dataclass(frozen=True)
class Evaluation:
    """Result of :func:`evaluate_parameters`.

    Attributes
    ----------
    result : dict
        See :func:`.confusion.summary`.
    label_space : LabelSpace
        The classes.
    protocol : Protocol
        The way of scoring that gives the result's mean.
    images : int
        Number of images.
    settings, data : dict
        How the network was run and on what, as JSON values.
    agreement : Agreement or None
        How near the network in int8 comes to the original; None for the other forms.
    """

    result: dict[str, Any]
    label_space: LabelSpace
    protocol: protocols.Protocol
    images: int
    settings: dict[str, Any]
    data: dict[str, Any]
    agreement: Agreement | None

    def to_json(self) -> dict[str, Any]:
        """Return result, protocol, settings and data as JSON values."""
        return {**self.result, "protocol": vars(self.protocol), "settings": self.settings, "data": self.data}


def evaluate_parameters(
    parameters: Path,
    data: Mapping[str, Any],
    *,
    ctx: str = "cpu",
    inference: str = "plain",
    tile: int | None = None,
    calibration_images: int = 8,
    flip: bool = True,
    scales: Sequence[float] = (1.0,),
    combine: str = "mean",
    long_side: int | None = None,
    upsampling: str = "bilinear",
    resampling: str = "program",
    cluster: Shares | None = None,
    progress: Counter = silent,
) -> Evaluation:
    """Evaluate a parameter file on labelled images.

    Parameters
    ----------
    parameters : Path
        The ``.params`` file.
    data : mapping
        Which images: ``format``, ``root`` and other keyword arguments of :func:`cbst_mx.data.open_labelled`, without
        the label space, which is the network's or that of ``description``.
    ctx, inference, tile, flip, scales, combine, long_side, upsampling, resampling
        As for :func:`cbst_mx.load_network`.
    calibration_images : int
        How many of the images, from the first, give the value ranges of int8, and say how much can be in int8.
    cluster : Shares, optional
        A :class:`cbst_mx.cluster.Cluster`, whose workers run the network; they must see the same files.
    progress : callable
        Called with (images done, images in all).

    Raises
    ------
    CheckpointError
        If the file or its sidecar cannot be used, or the network's classes are not those of ``description``.
    ConfigError
        If an option is wrong.
    DataError
        If the images or labels cannot be used.
    """
    device = parse_context(ctx)
    check_form(inference, device, tile)
    network, spec, space = load_network(parameters, device)
    space = _data_label_space(parameters, space, data.get("description"))
    images = open_labelled(**data, label_space=space)
    part = " ".join(f"{key} {data[key]}" for key in ("city", "split") if data.get(key) is not None)
    check_labelled(images, f"image set {data['root']}{f' ({part})' if part else ''}")
    options: dict[str, Any] = {"flip": flip, "scales": list(scales), "combine": combine, "long_side": long_side}
    resizing = check_resizing(upsampling, resampling)
    calibration = images.subset(range(min(calibration_images, len(images))))
    form = {"calibration": calibration, "inference": inference, "tile": tile, **options, **resizing}
    formed, agreement = choose_form(network, spec, ctx=device, **form)
    matrices = evaluate_network(
        formed
        if cluster is None
        else SharedNetwork(NetworkFile.of(parameters, ctx, form=form), cluster, network.stride),
        images,
        classes=space.names,
        mean=spec.mean,
        std=spec.std,
        ctx=device,
        batch_size=1 if tile else None,
        progress=progress,
        **options,
        **resizing,
    )
    if upsampling != "bilinear":
        options["upsampling"] = upsampling
    options["resampling"] = resampling
    named = {key: data.get(key) for key in ("format", "root", "split", "list", "city", "fold")}
    return Evaluation(
        result=confusion.summary(matrices.sum(axis=0), space),
        label_space=space,
        protocol=protocols.find_protocols(space.names)[0],
        images=len(images),
        settings={**options, "inference": inference},
        data={
            **{key: str(value) if isinstance(value, Path) else value for key, value in named.items()},
            "images": len(images),
        },
        agreement=agreement,
    )


def _data_label_space(parameters: Path, space: LabelSpace, description: Path | None) -> LabelSpace:
    """Return the network's label space with the raw ids that the data's labels hold."""
    if description is None:
        return LABEL_SPACES.get(space.name, space)
    described = folder.label_space(folder.read_description(description))
    if described.names != space.names:
        raise CheckpointError(
            f"{parameters} was trained for the classes of {space.name}, not for those of {description}"
        )
    return described
