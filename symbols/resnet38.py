"""ResNet-38 as the paper uses it.

Model A1 of Wu, Shen and van den Hengel, "Wider or Deeper: Revisiting the ResNet Model for Visual Recognition", 2016.

B images, C classes, h x w pixels. Units are pre-activated: batch norm and ReLU come before every convolution, and
where the shape changes the shortcut is a convolution of the activated input. Parameter names are those of the released
files (``bn2a_branch2a_gamma``, ``res2a_branch1_weight``, ...), but for Gluon's ``running`` in place of ``moving``.
"""

from __future__ import annotations

from typing import Any

from symbols.backend import gluon
from symbols.blocks import BATCH_NORM, Dropout, check_choice, check_rates, check_width, scaled

nn = gluon.nn

__all__ = ["LEVELS", "ResNet38"]

# One row per level: (name, units, (kernel, channels) of a unit's convolutions at width 1,
#                     (stride, dilation) as ImageNet classifier, (stride, dilation) for segmentation at stride 8)
LEVELS = (
    ("2", 3, ((3, 128), (3, 128)), (2, 1), (2, 1)),
    ("3", 3, ((3, 256), (3, 256)), (2, 1), (2, 1)),
    ("4", 6, ((3, 512), (3, 512)), (2, 1), (2, 1)),
    ("5", 3, ((3, 512), (3, 1024)), (2, 1), (1, 2)),
    ("6", 1, ((1, 512), (3, 1024), (1, 2048)), (2, 1), (1, 4)),
    ("7", 1, ((1, 1024), (3, 2048), (1, 4096)), (1, 1), (1, 4)),
)
FORMS = ("segmentation", "classifier")
_EPSILON = 1e-5


def _batch_norm(name: str, channels: int, batch_norm: str) -> gluon.nn.BatchNorm:
    frozen = BATCH_NORM[batch_norm]
    return nn.BatchNorm(epsilon=_EPSILON, use_global_stats=frozen, in_channels=channels, prefix=f"bn{name}_")


class Unit(gluon.HybridBlock):
    """One residual unit.

    Parameters
    ----------
    name : str
        Place in the network, as in the parameter names: ``"2a"``, ``"4b5"``.
    convolutions : sequence of (int, int)
        Kernel size and channels of each convolution.
    in_channels : int
        Channels of the input.
    stride : int
        Stride of the first convolution.
    dilations : (int, int)
        Dilations of the first convolution and of the later ones: where a stride was replaced by dilation, the
        convolution that had it still sees undilated input.
    batch_norm : {"frozen", "batch"}
        See :class:`ResNet38`.
    dropout : float, optional
        Rate before the last convolution. A rate of 0 changes nothing but keeps the names of what follows; None is a
        unit without dropout.

    Inputs:
        - **x**: (B, in_channels, h, w).

    Outputs:
        - **out**: (B, channels of the last convolution, ceil(h / stride), ceil(w / stride)).
    """

    def __init__(
        self,
        name: str,
        convolutions: tuple[tuple[int, int], ...],
        in_channels: int,
        stride: int,
        dilations: tuple[int, int],
        *,
        batch_norm: str,
        dropout: float | None = None,
    ):
        super().__init__(prefix="")
        out_channels = convolutions[-1][1]
        self.entry = _batch_norm(f"{name}_branch2a", in_channels, batch_norm)
        self.shortcut = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2D(
                out_channels, 1, stride, use_bias=False, in_channels=in_channels, prefix=f"res{name}_branch1_"
            )
        self.branch = nn.HybridSequential(prefix="")
        channels_before = in_channels
        for index, (kernel, channels) in enumerate(convolutions):
            branch = "branch2a" if index == 0 else f"branch2b{index}"
            dilation = dilations[min(index, 1)]
            if index:
                self.branch.add(
                    _batch_norm(f"{name}_{branch}", channels_before, batch_norm), nn.Activation("relu", prefix="")
                )
            if dropout is not None and index == len(convolutions) - 1:
                self.branch.add(Dropout(dropout, prefix=""))
            self.branch.add(
                nn.Conv2D(
                    channels,
                    kernel,
                    strides=stride if index == 0 else 1,
                    padding=dilation * (kernel // 2),
                    dilation=dilation if kernel > 1 else 1,
                    use_bias=False,
                    in_channels=channels_before,
                    prefix=f"res{name}_{branch}_",
                )
            )
            channels_before = channels

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        active = F.Activation(self.entry(x), act_type="relu")  # oneDNN has no F.relu, which copies maps for itself
        return self.branch(active) + (x if self.shortcut is None else self.shortcut(active))


class ResNet38(gluon.HybridBlock):
    """ResNet-38 (A1).

    Parameters
    ----------
    num_classes : int
        Number of classes C.
    width : float
        Multiplier of all channel counts, in (0, 8]; 1 is the published network.
    dropout : tuple of float
        Rates in the last two units, in [0, 1).
    batch_norm : {"frozen", "batch"}
        "frozen" uses the stored statistics while training too (gamma and beta train), as the released program does;
        "batch" uses batch statistics, for runs from scratch.
    form : {"segmentation", "classifier"}
        Stride 8 with dilated convolutions and the classifier of two 3 x 3 convolutions of dilation 12; or the ImageNet
        network with stride 32, global pooling and one linear layer.

    Inputs:
        - **x**: images, float32 (B, 3, h, w), any h and w.

    Outputs:
        - **logits**: float32 (B, C, ceil(h/8), ceil(w/8)); of the classifier (B, C).
    """

    stride: int | None = 8  # pixels of the input per logit; None for the classifier, which gives no map
    smallest = 1  # rows and columns of the input

    def __init__(
        self,
        num_classes: int,
        *,
        width: float = 1.0,
        dropout: tuple[float, float] = (0.3, 0.5),
        batch_norm: str = "frozen",
        form: str = "segmentation",
    ):
        check_choice("batch_norm", batch_norm, ("frozen", "batch"))
        check_width(width)
        check_choice("form", form, FORMS)
        check_rates(dropout)
        super().__init__(prefix="")
        if form == "classifier":
            self.stride = None
        channels = scaled(64, width)
        self.stem = nn.Conv2D(channels, 3, padding=1, use_bias=False, in_channels=3, prefix="conv1a_")
        self.units = nn.HybridSequential(prefix="")
        rates = {"6a": dropout[0], "7a": dropout[1]}
        entered = 1  # dilation of the level before
        for level, count, convolutions, *placement in LEVELS:
            stride, dilation = placement[1 if form == "segmentation" else 0]
            sizes = tuple((kernel, scaled(size, width)) for kernel, size in convolutions)
            for index in range(count):
                name = level + ("a" if index == 0 else f"b{index}")
                self.units.add(
                    Unit(
                        name,
                        sizes,
                        channels,
                        stride if index == 0 else 1,
                        (entered, dilation),
                        batch_norm=batch_norm,
                        dropout=rates.get(name),
                    )
                )
                channels, entered = sizes[-1][1], dilation
        self.head = nn.HybridSequential(prefix="")
        self.head.add(_batch_norm("7", channels, batch_norm), nn.Activation("relu", prefix=""))
        linear = f"linear{num_classes}_"
        if form == "segmentation":
            hidden = scaled(512, width)
            self.head.add(
                self._classifier_convolution(channels, hidden, "conv6a_"),
                nn.Activation("relu", prefix=""),
                self._classifier_convolution(hidden, num_classes, linear),
            )
        else:
            self.head.add(nn.GlobalAvgPool2D(prefix=""), nn.Dense(num_classes, in_units=channels, prefix=linear))

    @staticmethod
    def _classifier_convolution(in_channels: int, channels: int, prefix: str) -> gluon.nn.Conv2D:
        return nn.Conv2D(
            channels,
            3,
            padding=12,
            dilation=12,
            in_channels=in_channels,
            prefix=prefix,
        )

    def segments(self) -> list[gluon.HybridBlock]:
        """Return the blocks whose composition is the network, for gradient checkpointing."""
        return [self.stem, *self.units, self.head]

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        return self.head(self.units(self.stem(x)))
