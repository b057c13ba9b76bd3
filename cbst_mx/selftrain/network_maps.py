"""Confidence: the network's class probabilities p_n(c | w, I) at every pixel of an image.

B images, C classes, H x W pixels.
"""

from __future__ import annotations

from typing import Iterator, Sequence

import numpy as np

from cbst_mx.data.datasets import ImageSet
from cbst_mx.data.transforms import normalise, resize_image, scale_for_long_side
from symbols.backend import gluon, mx

__all__ = ["cells", "full_size", "probabilities", "probability_maps"]


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
    long_side: int | None = None,
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
    size = images[0].shape[:2]
    results = []
    for scale in scales:
        maps, part = cells(network, images, mean=mean, std=std, ctx=ctx, flip=flip, scale=scale, long_side=long_side)
        results.append(full_size(maps, network.stride, part, size))
    if combine == "max":
        return mx.nd.stack(*results).max(axis=0)
    return sum(results[1:], results[0]) / len(results)


def cells(
    network: gluon.HybridBlock,
    images: Sequence[np.ndarray],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    ctx: mx.Context,
    flip: bool = False,
    scale: float = 1.0,
    long_side: int | None = None,
) -> tuple[mx.nd.NDArray, tuple[int, int]]:
    """Return the network's own output for images of one size: probabilities at its stride.

    A network at stride s has ceil(h / s) rows. Its input is filled up below and on the right with zeros, the mean
    colour, so that the last row of cells is whole, the mirrored image's cells lie on the image's, and the input is not
    too small for the network.

    Parameters
    ----------
    network, images, mean, std, ctx, flip, long_side
        As for :func:`probabilities`.
    scale : float
        Of the images.

    Returns
    -------
    maps : NDArray of shape (B, C, h, w), float32
        Averaged with those of the mirrored images.
    size : tuple of int
        Rows and columns of the network's input that are the image: it covers size / s cells.
    """
    height, width = images[0].shape[:2]
    base = scale * (scale_for_long_side(height, width, long_side) if long_side else 1.0)
    rows, columns = max(1, round(height * base)), max(1, round(width * base))
    batch = np.stack([normalise(resize_image(image, (rows, columns)), mean, std) for image in images])
    below, beside = (
        -max(size, network.smallest) % network.stride + max(size, network.smallest) - size for size in (rows, columns)
    )
    if below or beside:
        batch = np.pad(batch, ((0, 0), (0, 0), (0, below), (0, beside)))
    maps = mx.nd.softmax(network(mx.nd.array(batch, ctx=ctx)), axis=1)
    if flip:
        mirrored = mx.nd.softmax(network(mx.nd.array(batch[..., ::-1], ctx=ctx)), axis=1)
        maps = (maps + mirrored.flip(axis=3)) / 2
    return maps, (rows, columns)


def full_size(maps: mx.nd.NDArray, stride: int, part: tuple[int, int], size: tuple[int, int]) -> mx.nd.NDArray:
    """Return what :func:`cells` gave at the images' size.

    Parameters
    ----------
    maps : NDArray of shape (B, C, h, w), float32
        At the network's stride.
    stride : int
        Of the network.
    part : tuple of int
        Rows and columns of the input that are the image.
    size : tuple of int
        H and W of the images.

    Returns
    -------
    NDArray of shape (B, C, H, W), float32
        Bilinearly upsampled.
    """
    whole = _upsampled(maps, (stride * maps.shape[2], stride * maps.shape[3]))
    return _upsampled(whole[:, :, : part[0], : part[1]], size)


def _upsampled(maps: mx.nd.NDArray, size: tuple[int, ...]) -> mx.nd.NDArray:
    if maps.shape[2:] == tuple(size):
        return maps
    return mx.nd.contrib.BilinearResize2D(maps, height=size[0], width=size[1], align_corners=False)


def probability_maps(
    network: gluon.HybridBlock, images: ImageSet, *, batch_size: int = 8, **options
) -> Iterator[tuple[int, mx.nd.NDArray]]:
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
    batch: list[np.ndarray] = []
    start = 0
    for index in range(len(images)):
        image = images.image(index)
        if batch and (len(batch) == batch_size or batch[0].shape != image.shape):
            yield from enumerate(probabilities(network, batch, **options), start)
            batch, start = [], index
        batch.append(image)
    if batch:
        yield from enumerate(probabilities(network, batch, **options), start)
