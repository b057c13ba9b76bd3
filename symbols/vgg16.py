"""VGG-16's convolution stages, as the trunk of FCN8s.

Configuration D of Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR
2015.

B images, h x w pixels. Every stage ends in a 2 x 2 max pooling that rounds sizes up, so that stage i has
ceil(h / 2^i) rows for any input size. The ReLU of its last convolution follows the pooling, which gives the same
numbers and gradients in less time; :func:`cbst_mx.networks.forms.network_graph` puts it next to its convolution again.
"""

from __future__ import annotations

from typing import Any

from symbols.backend import gluon
from symbols.blocks import conv_unit, scaled

nn = gluon.nn

__all__ = ["STAGES", "VGG16"]

# (number of 3 x 3 convolutions, channels) of each stage at width 1
STAGES: tuple[tuple[int, int], ...] = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))


class VGG16(gluon.HybridBlock):
    """The five convolution stages of VGG-16.

    Parameters
    ----------
    width : float
        Multiplier of all channel counts; 1 is the published network.
    batch_norm : {"none", "batch", "frozen"}
        See :func:`.blocks.conv_unit`; the published network has none.

    Inputs:
        - **x**: images, float32 (B, 3, h, w).

    Outputs:
        - **pool3**: (B, 256 * width, ceil(h/8), ceil(w/8)).
        - **pool4**: (B, 512 * width, ceil(h/16), ceil(w/16)).
        - **pool5**: (B, 512 * width, ceil(h/32), ceil(w/32)).
    """

    def __init__(self, *, width: float = 1.0, batch_norm: str = "none", **kwargs: Any):
        super().__init__(**kwargs)
        with self.name_scope():
            for index, (count, channels) in enumerate(STAGES, start=1):
                stage = nn.HybridSequential()
                with stage.name_scope():
                    for number in range(count):
                        stage.add(conv_unit(scaled(channels, width), 3, batch_norm, relu=number < count - 1))
                    stage.add(nn.MaxPool2D(pool_size=2, strides=2, ceil_mode=True), nn.Activation("relu"))
                setattr(self, f"stage{index}", stage)

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        pool3 = self.stage3(self.stage2(self.stage1(x)))
        pool4 = self.stage4(pool3)
        return pool3, pool4, self.stage5(pool4)
