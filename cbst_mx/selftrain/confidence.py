"""Confidence: the network's class probabilities p_n(c | w, I) at every pixel of an image.

B images, C classes, H x W pixels.
"""

from __future__ import annotations

from typing import Iterator, List, Optional, Sequence, Tuple

import numpy as np

from cbst_mx.data.datasets import ImageSet
from cbst_mx.data.transforms import normalise, resize_image, scale_for_long_side
from symbols.backend import gluon, mx

__all__ = ["probabilities", "probability_maps"]


def probabilities(
    network: gluon.HybridBlock,
    images: Sequence[np.ndarray],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    ctx: mx.Context,
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
    combine: str = "mean",
    long_side: Optional[int] = None,
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

    Returns
    -------
    NDArray of shape (B, C, H, W), float32
        On `ctx`; bilinearly upsampled where the network's output is smaller than the image.
    """
    height, width = images[0].shape[:2]
    base = scale_for_long_side(height, width, long_side) if long_side else 1.0
    results = []
    for scale in scales:
        size = (max(1, round(height * base * scale)), max(1, round(width * base * scale)))
        batch = np.stack([normalise(resize_image(image, size), mean, std) for image in images])
        maps = _softmax(network, mx.nd.array(batch, ctx=ctx))
        if flip:
            maps = (maps + _softmax(network, mx.nd.array(batch[..., ::-1], ctx=ctx)).flip(axis=3)) / 2
        results.append(_upsampled(maps, (height, width)))
    if combine == "max":
        return mx.nd.stack(*results).max(axis=0)
    return sum(results[1:], results[0]) / len(results)


def _softmax(network: gluon.HybridBlock, inputs: mx.nd.NDArray) -> mx.nd.NDArray:
    """Return the probabilities (B, C, h, w) of inputs (B, 3, h, w), from whole cells of the network's stride.

    A network at stride s has ceil(h / s) rows. The input is filled up with zeros, the mean colour, so that the last row
    of cells is whole (and the image not too small for the network), the map is upsampled by s, and what lies beyond the
    image is cut off again.
    """
    height, width = inputs.shape[2:]
    stride, smallest = network.stride, network.smallest
    below, beside = (-max(size, smallest) % stride + max(size, smallest) - size for size in (height, width))
    if below or beside:
        inputs = mx.nd.pad(inputs, mode="constant", pad_width=(0, 0, 0, 0, 0, below, 0, beside), constant_value=0)
    maps = mx.nd.softmax(network(inputs), axis=1)
    return _upsampled(maps, (height + below, width + beside))[:, :, :height, :width]


def _upsampled(maps: mx.nd.NDArray, size: Tuple[int, int]) -> mx.nd.NDArray:
    if maps.shape[2:] == size:
        return maps
    return mx.nd.contrib.BilinearResize2D(maps, height=size[0], width=size[1], align_corners=False)


def probability_maps(
    network: gluon.HybridBlock, images: ImageSet, *, batch_size: int = 8, **options
) -> Iterator[Tuple[int, mx.nd.NDArray]]:
    """Yield the index and the probability map of every image, in order.

    Parameters
    ----------
    network : HybridBlock
        As for :func:`probabilities`.
    images : ImageSet
        Images of any sizes; neighbours of equal size share a batch.
    batch_size : int
        Images per forward pass at most.
    **options
        Keyword arguments of :func:`probabilities`.

    Yields
    ------
    index : int
    probability : NDArray of shape (C, H, W), float32
    """
    batch: List[np.ndarray] = []
    start = 0
    for index in range(len(images)):
        image = images.image(index)
        if batch and (len(batch) == batch_size or batch[0].shape != image.shape):
            yield from enumerate(probabilities(network, batch, **options), start)
            batch, start = [], index
        batch.append(image)
    if batch:
        yield from enumerate(probabilities(network, batch, **options), start)
