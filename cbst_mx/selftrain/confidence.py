"""Confidence: the network's class probabilities p_n(c | w, I) at every pixel of an image.

B images, C classes, H x W pixels.
"""

from __future__ import annotations

from typing import Iterator, List, Sequence, Tuple

import numpy as np

from cbst_mx.data.datasets import ImageSet
from cbst_mx.data.transforms import normalise, resize_image
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
) -> mx.nd.NDArray:
    """Return the softmax probabilities of images of one size.

    Parameters
    ----------
    network : HybridBlock
        Maps (B, 3, h, w) to logits (B, C, h, w) or, at network stride s, (B, C, h/s, w/s).
    images : sequence of ndarray of shape (H, W, 3), uint8
        RGB images of equal size.
    mean, std : sequence of 3 float
        Normalisation, RGB in [0, 1].
    ctx : mx.Context
        The network's context.
    flip : bool
        Average with the probabilities of the mirrored images.
    scales : sequence of float
        Average over the images resized by these factors.

    Returns
    -------
    NDArray of shape (B, C, H, W), float32
        On `ctx`; bilinearly upsampled where the network's output is smaller than the image.
    """
    height, width = images[0].shape[:2]
    total = 0
    for scale in scales:
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        batch = np.stack([normalise(resize_image(image, size), mean, std) for image in images])
        for mirrored in (False, True)[: 1 + flip]:
            inputs = mx.nd.array(batch[..., ::-1] if mirrored else batch, ctx=ctx)
            maps = mx.nd.softmax(network(inputs), axis=1)  # (B, C, h, w)
            if mirrored:
                maps = maps.flip(axis=3)
            if maps.shape[2:] != (height, width):
                maps = mx.nd.contrib.BilinearResize2D(maps, height=height, width=width, align_corners=False)
            total = maps + total
    return total / (len(scales) * (1 + flip))


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
