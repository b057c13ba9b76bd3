"""Network to probabilities: p_n(c | w, I) at every pixel of an image, or at the network's stride.

B images, C classes, H x W pixels. A thread reads the images of the next batch. Where only the network's own output is
kept, the network computes a batch while the results of the one before are looked at.
"""

from __future__ import annotations

import functools
from typing import Any, Callable, Iterable, Iterator, Sequence, Union

import numpy as np

from cbst_mx.data.ahead import one_step_later, read_ahead
from cbst_mx.data.datasets import ImageSet
from cbst_mx.data.image_files import Draft
from cbst_mx.data.transforms import normalise, resize_image, scale_for_long_side
from cbst_mx.selftrain import on_device
from cbst_mx.selftrain.class_maps import ClassMaps
from cbst_mx.selftrain.views import HostMap
from symbols.backend import gluon, mx
from symbols.bilinear import ending_early
from symbols.softmax import is_fast, shared, softmax, upsampled_softmax

__all__ = [
    "Images",
    "at_image_size",
    "confidences",
    "fitting_batch",
    "predictions",
    "probabilities",
    "probability_maps",
    "stride_probabilities",
]

#: Images of a set, or RGB images (H, W, 3), uint8, as they come, such as the frames of a video.
Images = Union[ImageSet, Iterable[np.ndarray]]

_AT_ONCE = 512 * 1024  # pixels of the images that pass a network together, where one has no more
_MOST = 8  # images


def fitting_batch(
    size: tuple[int, int], *, on_cpu: bool, scales: Sequence[float] = (1.0,), long_side: int | None = None
) -> int:
    """Return how many images of one size pass through a network at once: in the memory of one of 512 x 1024.

    That is at most 8, and as many as have no more pixels together, both the images and what the network sees of them;
    one, whatever its size. On a GPU one is as fast as several.

    Parameters
    ----------
    size : (int, int)
        H and W of the images.
    on_cpu : bool
        Whether the network computes on the processor.
    scales, long_side
        As for :func:`probabilities`.

    Examples
    --------
    >>> [fitting_batch(size, on_cpu=True) for size in ((256, 512), (512, 1024), (1024, 2048))]
    [4, 1, 1]
    """
    if not on_cpu:
        return 1
    factor = max(scales) * (scale_for_long_side(*size, long_side) if long_side else 1.0)
    return max(1, min(_MOST, int(_AT_ONCE // (size[0] * size[1] * max(1.0, factor) ** 2))))


def probabilities(
    network: gluon.HybridBlock,
    images: Sequence[np.ndarray | Draft],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    ctx: mx.Context,
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
    combine: str = "mean",
    long_side: int | None = None,
    interpolation: str = "bilinear",
    resampling: str = "linear",
) -> mx.nd.NDArray:
    """Return the softmax probabilities of images of one size.

    Parameters
    ----------
    network : HybridBlock
        Maps (B, 3, h, w) to logits (B, C, ceil(h/s), ceil(w/s)), where s is its attribute ``stride``.
    images : sequence of ndarray of shape (H, W, 3), uint8
        RGB images of equal size.
    mean, std : sequence of 3 float
        Normalisation, RGB in [0, 1].
    ctx : mx.Context
        The network's context.
    flip : bool
        Average with the probabilities of the mirrored images.
    scales : sequence of float
        Combine the results of the images resized by these factors.
    combine : {"mean", "max"}
        How: the mean over the scales, or the largest value of each class, which does not sum to 1.
    long_side : int, optional
        The longer side of the network's input at scale 1, in pixels; by default that of the images.
    interpolation : {"bilinear", "bicubic", "pillow"}
        How the network's output becomes the image's size, see :func:`at_image_size`.
    resampling : {"linear", "program", "draft"}
        How the image becomes the network's input, see :func:`.transforms.resize_image`.

    Returns
    -------
    NDArray of shape (B, C, H, W), float32
        On `ctx`.
    """
    size = (images[0].shape[0], images[0].shape[1])
    results = []
    for scale in scales:
        maps, part = stride_probabilities(
            network,
            images,
            mean=mean,
            std=std,
            ctx=ctx,
            flip=flip,
            scale=scale,
            long_side=long_side,
            resampling=resampling,
        )
        results.append(at_image_size(maps, network.stride, part, size, interpolation))
    if combine == "max":
        return mx.nd.stack(*results).max(axis=0)
    return sum(results[1:], results[0]) / len(results)


def stride_probabilities(
    network: gluon.HybridBlock,
    images: Sequence[np.ndarray | Draft],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    ctx: mx.Context,
    flip: bool = False,
    scale: float = 1.0,
    long_side: int | None = None,
    resampling: str = "linear",
) -> tuple[mx.nd.NDArray, tuple[int, int]]:
    """Return the network's own output for images of one size: probabilities at its stride.

    A network at stride s has ceil(h / s) rows. Its input is filled up below and on the right with zeros, the mean
    colour, so that the last row of cells is whole, the mirrored image's cells lie on the image's, and the input is not
    too small for the network.

    Parameters
    ----------
    network, images, mean, std, ctx, flip, long_side, resampling
        As for :func:`probabilities`.
    scale : float
        Factor of the images' sides.

    Returns
    -------
    maps : NDArray of shape (B, C, h, w), float32
        Averaged with those of the mirrored images.
    size : tuple of int
        Rows and columns of the network's input that are the image: it covers size / s cells.
    """
    rows, columns = input_size(images[0].shape[0], images[0].shape[1], scale=scale, long_side=long_side)
    batch = np.stack([normalise(resize_image(image, (rows, columns), resampling), mean, std) for image in images])
    below, beside = (
        -max(size, network.smallest) % network.stride + max(size, network.smallest) - size for size in (rows, columns)
    )
    if below or beside:
        batch = np.pad(batch, ((0, 0), (0, 0), (0, below), (0, beside)))
    inputs = mx.nd.array(batch, ctx=ctx)

    def mirrored() -> mx.nd.NDArray:
        # MXNet mirrors fast on a GPU, where it saves a second copy of the images, and slowly on the processor
        return network(mx.nd.array(batch[..., ::-1], ctx=ctx) if ctx.device_type == "cpu" else inputs.flip(axis=3))

    with ending_early(network) as factor:
        logits = network(inputs)
        if factor > 1:  # both passes are asked for before one is waited for
            looks = [logits, mirrored()] if flip else [logits]
            scores = [look.astype("float32", copy=False) for look in looks]
            return shared(upsampled_softmax(scores, factor, batch.shape[2:]), ctx), (rows, columns)
    if network.stride > 1 or not is_fast(logits):  # of small maps a device that goes on meanwhile is faster
        maps = mx.nd.softmax(logits, axis=1)
        if flip:
            maps = (maps + mx.nd.softmax(mirrored(), axis=1).flip(axis=3)) / 2
        return maps, (rows, columns)
    found = softmax(logits)
    if flip:
        found += softmax(mirrored())[..., ::-1]
        found /= 2
    return shared(found, ctx), (rows, columns)


def input_size(height: int, width: int, *, scale: float = 1.0, long_side: int | None = None) -> tuple[int, int]:
    """Return rows and columns of a network's input that are the image, of an image of a size in pixels."""
    base = scale * (scale_for_long_side(height, width, long_side) if long_side else 1.0)
    return max(1, round(height * base)), max(1, round(width * base))


def reader(
    images: ImageSet, *, resampling: str = "linear", scales: Sequence[float] = (1.0,), long_side: int | None = None
) -> Callable[[int], np.ndarray | Draft]:
    """Return the function that reads an image of a set, by its index, for :func:`probabilities`.

    Parameters
    ----------
    images : ImageSet
    resampling, scales, long_side
        As for :func:`probabilities`; with "draft", JPEGs are read as large as the largest scale needs them.
    """
    if resampling != "draft":
        return images.image
    return functools.partial(images.draft, wanted=functools.partial(input_size, scale=max(scales), long_side=long_side))


def at_image_size(
    maps: mx.nd.NDArray, stride: int, part: tuple[int, int], size: tuple[int, int], interpolation: str = "bilinear"
) -> mx.nd.NDArray:
    """Return what :func:`stride_probabilities` gave at the images' size, in one go.

    Parameters
    ----------
    maps : NDArray of shape (B, C, h, w), float32
        Probabilities at the network's stride.
    stride : int
        Stride of the network.
    part : tuple of int
        Rows and columns of the input that are the image.
    size : tuple of int
        H and W of the images.
    interpolation : {"bilinear", "bicubic", "pillow"}

    Returns
    -------
    NDArray of shape (B, C, H, W), float32
        On the context of `maps`; the same numbers on every device, those of :class:`.class_maps.ClassMaps`.
    """
    extent = (part[0] / stride, part[1] / stride)
    if maps.context.device_type != "cpu":
        return on_device.full_size(maps, size, extent=extent, interpolation=interpolation, stride=stride)
    seen = (
        ClassMaps(cells, size, interpolation=interpolation, extent=extent, stride=stride) for cells in maps.asnumpy()
    )
    # MXNet's own operators on the processor take ten times as long
    return mx.nd.array(np.stack([view.rows(0, size[0]) for view in seen]), ctx=maps.context)


def probability_maps(
    network: gluon.HybridBlock, images: Images, *, batch_size: int | None = None, **options: Any
) -> Iterator[tuple[int, mx.nd.NDArray]]:
    """Yield the index and the probability map of every image, in order.

    Parameters
    ----------
    network : HybridBlock
        As for :func:`probabilities`.
    images : ImageSet or iterable of ndarray of shape (H, W, 3), uint8
        Images of any sizes; neighbours of equal size share a batch. A thread reads them.
    batch_size : int, optional
        Images per forward pass at most; by default as :func:`fitting_batch` says.
    **options
        Keyword arguments of :func:`probabilities`.

    Yields
    ------
    index : int
    probability : NDArray of shape (C, H, W), float32
    """
    for start, batch in _batches(images, batch_size, **options):
        yield from enumerate(probabilities(network, batch, **options), start)


def predictions(
    network: gluon.HybridBlock, images: Images, *, batch_size: int | None = None, **options: Any
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the index and the predicted class of every pixel of every image, in order.

    Parameters
    ----------
    network, images, batch_size, **options
        As for :func:`probability_maps`.

    Yields
    ------
    index : int
    predicted : ndarray of shape (H, W), uint8
        argmax_c p_n(c); the first class where several are equal.

    Raises
    ------
    DataError
        If a probability is not finite, naming the image.
    """
    for index, seen in _seen(network, images, batch_size, **options):
        yield index, seen.confidence[1] if isinstance(seen, HostMap) else _classes(seen)


def confidences(
    network: gluon.HybridBlock, images: Images, *, batch_size: int | None = None, **options: Any
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield the index, and the confidence and predicted class of every pixel of every image, in order.

    Parameters
    ----------
    network, images, batch_size, **options
        As for :func:`probability_maps`.

    Yields
    ------
    index : int
    confidence : ndarray of shape (H, W), float32
        max_c p_n(c).
    predicted : ndarray of shape (H, W), uint8
        argmax_c p_n(c); the first class where several are equal.

    Raises
    ------
    DataError
        If a probability is not finite, naming the image.
    """
    for index, seen in _seen(network, images, batch_size, **options):
        if isinstance(seen, HostMap):
            yield (index, *seen.confidence)
        else:
            yield index, seen.max(axis=0).asnumpy(), _classes(seen)


def _classes(probability: mx.nd.NDArray) -> np.ndarray:
    """Return the predicted classes of probabilities (C, H, W), uint8 (H, W)."""
    return probability.argmax(axis=0).asnumpy().astype(np.uint8)


def _seen(
    network: gluon.HybridBlock, images: Images, batch_size: int | None, **options: Any
) -> Iterator[tuple[int, mx.nd.NDArray | HostMap]]:
    """Yield the index and the probabilities of every image, in order.

    On the processor the full-size probabilities of one scale are never made, but a view of the network's own output,
    see ``class_maps``.
    """
    several = len(options.get("scales", (1.0,))) > 1
    if several or options["ctx"].device_type != "cpu":
        yield from probability_maps(network, images, batch_size=batch_size, **options)
        return
    batches = _batches(images, batch_size, **options)
    scales, interpolation = options.pop("scales", (1.0,)), options.pop("interpolation", "bilinear")
    options.pop("combine", None)  # of one scale there is nothing to combine
    found = (
        (start, batch[0].shape[:2], *stride_probabilities(network, batch, scale=scales[0], **options))
        for start, batch in batches
    )
    for start, size, maps, part in one_step_later(found):
        extent = (part[0] / network.stride, part[1] / network.stride)
        for index, cells in enumerate(maps.asnumpy(), start):
            whole = ClassMaps(
                cells, (size[0], size[1]), interpolation=interpolation, extent=extent, stride=network.stride
            )
            name = images.names[index] if isinstance(images, ImageSet) else f"image {index}"
            yield index, HostMap(whole, origin=name)


def _batches(
    images: Images,
    batch_size: int | None,
    *,
    ctx: mx.Context,
    scales: Sequence[float] = (1.0,),
    long_side: int | None = None,
    resampling: str = "linear",
    **_: Any,
) -> Iterator[tuple[int, list[np.ndarray | Draft]]]:
    """Yield the index of the first and the pixels of neighbours of equal size; what else is done with them is given."""
    batch: list[np.ndarray | Draft] = []
    start, most = 0, batch_size or 1
    pixels: Iterable[np.ndarray | Draft] = images  # type: ignore[assignment]
    if isinstance(images, ImageSet):
        read = reader(images, resampling=resampling, scales=scales, long_side=long_side)
        pixels = map(read, range(len(images)))
    for index, image in enumerate(read_ahead(pixels, batch_size or _MOST)):
        if batch and batch[0].shape != image.shape:
            yield start, batch
            batch = []
        if not batch:
            start = index
            size, on_cpu = (image.shape[0], image.shape[1]), ctx.device_type == "cpu"
            most = batch_size or fitting_batch(size, on_cpu=on_cpu, scales=scales, long_side=long_side)
        batch.append(image)
        if len(batch) == most:
            yield start, batch
            batch = []
    if batch:
        yield start, batch
