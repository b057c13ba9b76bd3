"""A trained network as a function from images to class probabilities, in plain NumPy arrays.

C classes, H x W pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

import numpy as np

from cbst_mx.data.datasets import ImageSet
from cbst_mx.data.transforms import RESAMPLINGS
from cbst_mx.errors import ConfigError, DataError, check_choice
from cbst_mx.label_space import LabelSpace
from cbst_mx.networks.devices import parse_context
from cbst_mx.networks.forms import check_form, exact_form
from cbst_mx.networks.int8 import Agreement, quantised
from cbst_mx.networks.onnx_files import load_onnx
from cbst_mx.networks.parameters import load_network as load_plain
from cbst_mx.networks.spec import NetworkSpec
from cbst_mx.selftrain.interpolation import INTERPOLATIONS
from cbst_mx.selftrain.network_maps import Images, confidences, predictions, probabilities, probability_maps, reader
from symbols.backend import gluon, mx

__all__ = ["Predictor", "check_resizing", "choose_form", "load_network"]


@dataclass(frozen=True, eq=False)
class Predictor:
    """A trained network that is called with images; made by :func:`load_network`.

    Attributes
    ----------
    label_space : LabelSpace
        Names and palette of the classes; class c of the probabilities is ``label_space.names[c]``.
    spec : NetworkSpec
        Description from which the network was rebuilt.
    agreement : Agreement or None
        How near an int8 network comes to the original; None for the forms that compute the same.
    """

    network: Callable[[mx.nd.NDArray], mx.nd.NDArray]
    spec: NetworkSpec
    label_space: LabelSpace
    ctx: mx.Context
    options: dict[str, Any]
    batch_size: int | None
    agreement: Agreement | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return self.spec.num_classes

    def predict(self, images: np.ndarray | Sequence[np.ndarray]) -> Any:
        """Return the class probabilities of every pixel.

        Parameters
        ----------
        images : ndarray of shape (H, W, 3), uint8, or sequence of them
            RGB images; those of a sequence may have different sizes.

        Returns
        -------
        ndarray of shape (C, H, W), float32, or list of them
            One per image, in the form in which the images came. ``argmax(axis=0)`` gives trainIds. They sum to 1 over
            the classes, but with ``combine="max"``.

        Raises
        ------
        DataError
            If an image is no uint8 array of shape (H, W, 3) with at least one pixel.
        """
        if isinstance(images, np.ndarray) and images.ndim != 4:
            return self.predict([images])[0]
        if not isinstance(images, (list, tuple, np.ndarray)):
            raise DataError(f"images must be an array of shape (H, W, 3) or a list of them, got {_kind(images)}")
        return list(self.stream(_ArraySet(list(images))))

    def stream(self, images: ImageSet) -> Iterator[np.ndarray]:
        """Yield the class probabilities of every image of a set, in order, with one batch in memory.

        Parameters
        ----------
        images : ImageSet
            Images of any sizes; neighbours of equal size share a batch.

        Yields
        ------
        ndarray of shape (C, H, W), float32
        """
        for _, maps in probability_maps(self.network, images, **self._options()):
            yield maps.asnumpy()

    def labels(self, images: Images) -> Iterator[np.ndarray]:
        """Yield the most probable class of every pixel of every image of a set, in order.

        Takes less time and memory than the maps of :meth:`stream`, which are not made at full size where that can be
        avoided.

        Parameters
        ----------
        images : ImageSet or iterable of ndarray of shape (H, W, 3), uint8
            Images of any sizes, which a thread reads a little ahead.

        Yields
        ------
        ndarray of shape (H, W), uint8
            TrainIds.
        """
        for _, label in predictions(self.network, images, **self._options()):
            yield label

    def confidences(self, images: Images) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the most probable class of every pixel and its probability, of every image of a set, in order.

        Parameters
        ----------
        images : ImageSet or iterable of ndarray of shape (H, W, 3), uint8
            Images of any sizes, which a thread reads a little ahead.

        Yields
        ------
        label : ndarray of shape (H, W), uint8
            TrainIds.
        confidence : ndarray of shape (H, W), float32
            Probability of that class, in [0, 1].
        """
        for _, confidence, label in confidences(self.network, images, **self._options()):
            yield label, confidence

    def _options(self) -> dict[str, Any]:
        looks = {"mean": self.spec.mean, "std": self.spec.std, "ctx": self.ctx}
        return {**looks, **self.options, "batch_size": self.batch_size}


class _ArraySet(ImageSet):
    """Images in memory, checked."""

    __slots__ = ("_arrays",)

    _arrays: list[np.ndarray]

    def __init__(self, images: Sequence[np.ndarray]) -> None:
        for index, image in enumerate(images):
            if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise DataError(f"images must be uint8 arrays of shape (H, W, 3), got {_kind(image)} for image {index}")
            if image.size == 0:
                raise DataError(f"images must have at least one pixel, got {image.shape} for image {index}")
        names = [f"image {index}" for index in range(len(images))]
        super().__init__(names, names)
        self._arrays = list(images)

    def image(self, index: int) -> np.ndarray:
        return self._arrays[index]


def _kind(value: object) -> str:
    return f"{value.dtype} of shape {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__


def load_network(
    parameters: str | Path,
    ctx: str = "cpu",
    *,
    flip: bool = True,
    scales: Sequence[float] = (1.0,),
    combine: str = "mean",
    long_side: int | None = None,
    upsampling: str = "bilinear",
    resampling: str = "program",
    batch_size: int | None = None,
    inference: str = "plain",
    tile: int | None = None,
    calibration: ImageSet | Sequence[np.ndarray] = (),
) -> Predictor:
    """Load a trained network for prediction.

    Parameters
    ----------
    parameters : path
        A ``.params`` file of a run, of ``cbst-mx import-weights`` or of :func:`.parameters.save_parameters`; its
        sidecar describes the network. Or an ``.onnx`` file of ``cbst-mx export``, which onnxruntime computes.
    ctx : str
        Device: ``"cpu"`` or ``"gpu:N"``.
    flip : bool
        Average with the probabilities of the mirrored images.
    scales : sequence of float
        Combine the results of the images resized by these factors, each above 0.
    combine : {"mean", "max"}
        How: the mean over the scales, or the largest value of each class, which does not sum to 1.
    long_side : int, optional
        Longer side of the network's input at scale 1, in pixels; by default that of the image.
    upsampling : {"bilinear", "bicubic", "pillow"}
        How the network's output becomes the image's size; "pillow" as in the authors' released program.
    resampling : {"linear", "program", "draft"}
        How images are resized for the network; "program" as in the authors' released program; "draft" the same, but
        JPEGs of an image set are decoded at a part of their size where the input is that small.
    batch_size : int, optional
        Images of equal size per forward pass at most; by default at most 8, and as many as have together no more pixels
        than one of 512 x 1024, and one on a GPU.
    inference : {"plain", "fused", "int8"}
        "fused" lets oneDNN run operators together, with the same result up to rounding; "int8" is fastest and
        approximate. Both on the CPU only.
    tile : int, optional
        Save memory on large images: compute large maps in bands of this many image rows, with the same result up to
        rounding.
    calibration : ImageSet or sequence of ndarray of shape (H, W, 3), uint8
        Images that give the value ranges of int8, and say how much can be in int8.

    Returns
    -------
    Predictor
        With the method ``predict`` and the attributes ``label_space``, ``spec`` and ``num_classes``.

    Raises
    ------
    CheckpointError
        If the file or its sidecar is missing, damaged or altered, or is of no network that labels pixels.
    ConfigError
        If an option is out of its range or the device is not there.
    DataError
        If an image of `calibration` is none.

    Examples
    --------
    A network of random parameters stands for a trained one.

    >>> import tempfile, numpy as np, cbst_mx
    >>> from cbst_mx.label_space import CITYSCAPES_19
    >>> from cbst_mx.networks import build, devices, parameters, spec
    >>> tiny = spec.NetworkSpec("resnet38", 19, {"width": 1 / 32})
    >>> network = build.build_network(tiny, devices.parse_context("cpu"), seed=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     parameters.save_parameters(f"{folder}/tiny.params", network, tiny, CITYSCAPES_19)
    ...     predictor = cbst_mx.load_network(f"{folder}/tiny.params")
    >>> probability = predictor.predict(np.zeros((32, 48, 3), np.uint8))
    >>> probability.shape, predictor.label_space.names[probability[:, 5, 7].argmax()] in CITYSCAPES_19.names
    ((19, 32, 48), True)
    """
    _check_options(scales, combine, long_side, batch_size)
    device = parse_context(ctx)
    check_form(inference, device, tile)
    options: dict[str, Any] = {"flip": flip, "scales": tuple(scales), "combine": combine, "long_side": long_side}
    options.update(check_resizing(upsampling, resampling))
    if Path(parameters).suffix.lower() == ".onnx":
        if inference != "plain" or tile is not None or device.device_type != "cpu":
            raise ConfigError(
                "an ONNX file is computed by onnxruntime on the CPU: inference, tile and ctx do not apply"
            )
        return Predictor(*load_onnx(Path(parameters)), device, options, batch_size)
    network, spec, label_space = load_plain(Path(parameters), device)
    images = calibration if isinstance(calibration, ImageSet) else _ArraySet(calibration)
    formed, agreement = choose_form(network, spec, images, ctx=device, inference=inference, tile=tile, **options)
    return Predictor(formed, spec, label_space, device, options, batch_size, agreement)


def _check_options(scales: Sequence[float], combine: str, long_side: int | None, batch_size: int | None) -> None:
    if not scales or not all(isinstance(factor, (int, float)) and 0 < factor < math.inf for factor in scales):
        raise ConfigError(f"scales must hold at least one factor, each above 0, got {scales!r}")
    if combine not in ("mean", "max"):
        raise ConfigError(f"combine must be mean or max, got {combine!r}")
    for name, value in (("long_side", long_side), ("batch_size", batch_size)):
        if value is None:
            continue
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{name} must be a whole number of at least 1, got {value!r}")


def check_resizing(upsampling: str, resampling: str) -> dict[str, Any]:
    """Return how maps and images are resized as keyword arguments of :func:`~.network_maps.probabilities`.

    Raises
    ------
    ConfigError
        If `upsampling` or `resampling` is unknown.
    """
    check_choice("upsampling", upsampling, INTERPOLATIONS)
    check_choice("resampling", resampling, RESAMPLINGS)
    return {"interpolation": upsampling, "resampling": resampling}


def choose_form(
    network: gluon.HybridBlock,
    spec: NetworkSpec,
    calibration: ImageSet,
    *,
    ctx: mx.Context,
    inference: str,
    tile: int | None,
    **options: Any,
) -> tuple[Callable[[mx.nd.NDArray], mx.nd.NDArray], Agreement | None]:
    """Return a trained network in a form for inference, and how near it comes to the original where it is int8.

    Parameters
    ----------
    network : HybridBlock
        With its parameters, from whose gradients the memory is given back.
    spec : NetworkSpec
        Description of the network.
    calibration : ImageSet
        Images that give the value ranges of int8, and say how much can be in int8; else not read.
    ctx, inference, tile
        As for :func:`.forms.exact_form`, and "int8".
    **options
        Keyword arguments of :func:`~.network_maps.probabilities` with which the network will be run.

    Raises
    ------
    ConfigError
        If the form is not possible on `ctx` or for this network, or int8 gets no images.
    """
    network.collect_params().setattr("grad_req", "null")
    if inference != "int8":
        return exact_form(network, ctx=ctx, form=inference, band_rows=tile), None

    def run(net: Any, image: Any) -> Any:
        return probabilities(net, [image], mean=spec.mean, std=spec.std, ctx=ctx, **options)

    how = {key: options[key] for key in ("resampling", "scales", "long_side") if key in options}
    images = [*map(reader(calibration, **how), range(len(calibration)))]
    return quantised(network, images, mean=spec.mean, std=spec.std, ctx=ctx, run=run)
