"""FCN8s on VGG-16 (Long, Shelhamer and Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015).

B images, C classes, h x w pixels. The published Caffe network pads its first convolution by 100 pixels and crops the
result; here every convolution keeps its size ("same" padding) and every pooling rounds up, which gives the same layers
and an aligned output for any input size.
"""

from __future__ import annotations

import contextlib
from typing import Any, Iterator

import numpy as np

from symbols.backend import gluon, mx
from symbols.bilinear import BilinearUpsampling, bilinear_kernel
from symbols.blocks import (
    BATCH_NORM,
    Dropout,
    check_choice,
    check_factors,
    check_hidden,
    check_kernel,
    check_rate,
    check_width,
    conv_unit,
    scaled,
)
from symbols.vgg16 import VGG16

nn = gluon.nn

__all__ = ["FCN8s"]

UPSAMPLING = ("frozen", "learned")
_LAST = 8  # factor of the last upsampling


class FCN8s(gluon.HybridBlock):
    """FCN8s-VGG16 with skip connections from pool3 and pool4.

    Parameters
    ----------
    num_classes : int
        Number of classes C.
    width : float
        Multiplier of all channel counts, in (0, 8]; 1 is the published network (fc6 7 x 7 x 4096, fc7 1 x 1 x 4096).
    hidden : int, optional
        Channels of fc6 and fc7, for weights without them; by default 4096 times `width`.
    kernel : int
        Odd size of fc6's kernel in pixels; published: 7.
    batch_norm : {"none", "batch", "frozen"}
        Batch norm for runs from scratch; the published network has none.
    dropout : float
        Dropout rate behind fc6 and fc7, in [0, 1).
    skip_scale : tuple of float
        Factors before the scores of pool3 and pool4. 1 lets every branch learn where their maps are as large as those
        of fc7; (1e-4, 1e-2) is published for Caffe's weights and inputs, where they are said to be far larger.
    upsampling : {"frozen", "learned"}
        Whether the bilinear upsampling is trained; the published network keeps it.

    Inputs:
        - **x**: images, float32 (B, 3, h, w), any h and w of at least 17.

    Outputs:
        - **logits**: float32 (B, C, h, w).
    """

    stride = 1  # pixels of the input per logit
    smallest = 17  # rows and columns of the input: less than that, and a pooling has one row left

    def __init__(
        self,
        num_classes: int,
        *,
        width: float = 1.0,
        hidden: int | None = None,
        kernel: int = 7,
        batch_norm: str = "none",
        dropout: float = 0.5,
        skip_scale: tuple[float, float] = (1.0, 1.0),
        upsampling: str = "frozen",
        **kwargs: Any,
    ):
        check_choice("batch_norm", batch_norm, list(BATCH_NORM))
        check_width(width)
        check_hidden(hidden)
        check_kernel(kernel)
        check_rate(dropout)
        check_factors(skip_scale)
        check_choice("upsampling", upsampling, UPSAMPLING)
        super().__init__(**kwargs)
        self.skip_scale = tuple(skip_scale)
        channels = scaled(4096, width) if hidden is None else hidden
        with self.name_scope():
            self.trunk = VGG16(width=width, batch_norm=batch_norm)
            self.fc6 = conv_unit(channels, kernel, batch_norm)
            self.fc7 = conv_unit(channels, 1, batch_norm)
            self.drop = Dropout(dropout)
            self.score_fr = nn.Conv2D(num_classes, 1, weight_initializer=mx.init.Normal(0.01))
            self.score_pool4 = nn.Conv2D(num_classes, 1, weight_initializer=mx.init.Normal(0.01))
            self.score_pool3 = nn.Conv2D(num_classes, 1, weight_initializer=mx.init.Normal(0.01))
            self.upscore2 = _Upsampling(num_classes, 2, upsampling)
            self.upscore_pool4 = _Upsampling(num_classes, 2, upsampling)
            self.upscore8 = _Upsampling(num_classes, _LAST, upsampling)
        self._forms: list[bool] = []  # of the upsampling, when the network was hybridised
        self._fits = True  # whether all images so far were multiples of the last upsampling: its result needs no cut

    def forward(self, x: Any, *args: Any) -> Any:
        """Compute as every block does; what was hybridised for other weights of the upsampling, or sizes, is made anew.

        A block that contains this one, or its segments, must be hybridised again itself where such weights change.
        """
        if not isinstance(x, mx.nd.NDArray):  # a symbol is for images of any size
            before = self._fits, self.upscore8.is_left
            self._fits, self.upscore8.is_left = False, False
            try:
                return super().forward(x, *args)
            finally:
                self._fits, self.upscore8.is_left = before
        fits = self._fits and all(side % _LAST == 0 for side in x.shape[2:])
        forms = [block.is_bilinear() for block in (self.upscore2, self.upscore_pool4, self.upscore8)]
        forms.append(self.upscore8.is_left)
        if (forms, fits) != (self._forms, self._fits):
            self._forms, self._fits = forms, fits
            self._clear_cached_op()
        return super().forward(x, *args)

    @contextlib.contextmanager
    def without_last_upsampling(self) -> Iterator[int]:
        """Let calls inside the block, those of the segments made in it too, give scores before the last upsampling.

        The caller interpolates a part of an image at a time, in the processor's cache: the loss, both ways, and the
        softmax (:mod:`symbols.softmax`). Two threads must not do so with one network.

        Yields
        ------
        int
            Factor of the bilinear upsampling that is left to do, with a result cut to the size of the images. 1 where
            the network does it as ever: on GPUs, and with weights that are trained or not bilinear.
        """
        before, self.upscore8.is_left = self.upscore8.is_left, self.upscore8.is_bilinear()
        try:
            yield _LAST if self.upscore8.is_left else 1
        finally:
            self.upscore8.is_left = before

    def segments(self) -> list[gluon.HybridBlock]:
        """Return blocks whose composition is the network, for gradient checkpointing.

        What a later one needs (the images for their size, pool3, pool4) is passed on, so they give and take several
        maps. They share the network's blocks, but are made anew by every call. Recomputing saves little memory here
        (about 15 % were measured), because the first stage with its maps of full size takes most of it alone.
        """
        trunk = self.trunk
        top = nn.HybridSequential(prefix="")
        top.add(self.fc6, self.drop, self.fc7, self.drop, self.score_fr)
        size = 0 if self.upscore8.is_left else 1  # maps that are kept for the size of the result: the images
        stages = zip((trunk.stage1, trunk.stage2, trunk.stage3, trunk.stage4, trunk.stage5, top), (0, 0, 0, 1, 2, 2))
        kept = [(stage, size + skips) for stage, skips in stages]
        return [*(_Passing(block, count) for block, count in kept), _Skips(self)]

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        pool3, pool4, pool5 = self.trunk(x)
        score = self.score_fr(self.drop(self.fc7(self.drop(self.fc6(pool5)))))
        return self._add_skips(F, x, pool3, pool4, score, fits=self._fits)

    def _add_skips(self, F: Any, x: Any, pool3: Any, pool4: Any, score: Any, *, fits: bool = False) -> Any:
        scale3, scale4 = self.skip_scale
        score = self.upscore2(score)  # (B, C, >= h/16, >= w/16)
        skip4 = self.score_pool4(pool4 if scale4 == 1 else pool4 * scale4)
        score = self.upscore_pool4(F.slice_like(score, skip4, axes=(2, 3)) + skip4)  # (B, C, >= h/8, >= w/8)
        skip3 = self.score_pool3(pool3 if scale3 == 1 else pool3 * scale3)
        score = self.upscore8(F.slice_like(score, skip3, axes=(2, 3)) + skip3)  # (B, C, >= h, >= w)
        return score if fits or self.upscore8.is_left else F.slice_like(score, x, axes=(2, 3))


class _Upsampling(gluon.nn.Conv2DTranspose):
    """Upsampling by a transposed convolution; on processors in a fraction of its time where it is bilinear and frozen.

    Bilinear interpolation takes the classes one by one, and rows before columns. Which weights are there decides, not
    the setting: a network for inference is frozen with the weights that a training learned. GPUs, on which this was
    not measured, keep the transposed convolution.
    """

    def __init__(self, channels: int, factor: int, upsampling: str):
        super().__init__(
            channels,
            2 * factor,
            strides=factor,
            padding=factor // 2,
            use_bias=False,
            in_channels=channels,
            weight_initializer=BilinearUpsampling(),
        )
        self._channels, self._factor = channels, factor
        self._bilinear = bilinear_kernel(channels, factor)
        self.is_left = False  # to the loss or the softmax
        if upsampling == "frozen":
            self.weight.grad_req = "null"

    def is_bilinear(self) -> bool:
        """Return whether the weights that are there can give nothing but bilinear interpolation, on a processor."""
        weight = self.weight
        if weight.grad_req != "null" or weight._data is None:
            return False
        if any(context.device_type != "cpu" for context in weight.list_ctx()):
            return False
        values = weight.data(weight.list_ctx()[0]).asnumpy()
        return np.array_equal(values, self._bilinear)

    def hybrid_forward(self, F: Any, x: Any, weight: Any) -> Any:
        if self.is_left:  # Gluon warns of parameters that nothing uses
            return F.broadcast_add(x, 0 * F.sum(weight, keepdims=True))
        if not self.is_bilinear():
            return super().hybrid_forward(F, x, weight)
        channels, factor = self._channels, self._factor
        one = F.slice(weight, begin=(0, 0, 0, 0), end=(1, 1, 2 * factor, 2 * factor))
        # a weight of its own for each pass: with one that was the other reshaped, and shared its memory, one run in
        # ten ended in oneDNN's error that a reorder primitive cannot be made
        rows, columns = (
            F.tile(F.sum(one, axis=axis, keepdims=True) / factor, reps=(channels, 1, 1, 1)) for axis in (3, 2)
        )
        each = {"num_filter": channels, "num_group": channels, "no_bias": True}
        down = {"kernel": (2 * factor, 1), "stride": (factor, 1), "pad": (factor // 2, 0)}
        across = {key: pair[::-1] for key, pair in down.items()}
        return F.Deconvolution(F.Deconvolution(x, rows, **down, **each), columns, **across, **each)


class _Passing(gluon.HybridBlock):
    """Apply `block` to the last of several maps, and pass the first `count` of them on before its result."""

    def __init__(self, block: gluon.HybridBlock, count: int):
        super().__init__(prefix="")
        self.block = block
        self._count = count

    def hybrid_forward(self, F: Any, *maps: Any) -> Any:
        return (*(F.identity(x) for x in maps[: self._count]), self.block(maps[-1]))


class _Skips(gluon.HybridBlock):
    """The end of `network`: images (where their size is needed), pool3, pool4 and scores of the top layer to logits."""

    def __init__(self, network: FCN8s):
        super().__init__(prefix="")
        for name in ("score_pool3", "score_pool4", "upscore2", "upscore_pool4", "upscore8"):
            self.register_child(getattr(network, name), name)
        self._add_skips = network._add_skips

    def hybrid_forward(self, F: Any, *maps: Any) -> Any:
        *x, pool3, pool4, score = maps
        return self._add_skips(F, x[0] if x else None, pool3, pool4, score)
