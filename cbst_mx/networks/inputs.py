"""What a file of weights was trained to see: order of the channels and range of the values, stated and checked.

Networks here take RGB images in [0, 1], then ``(value - mean) / std``; mean and std stand in the network's description
(:class:`.spec.NetworkSpec`), which every reader of a parameter file feeds the network by. Both differences to other
programs come down to that, exactly:

* BGR: the first convolution is turned to RGB once, when the file is imported. A convolution sums over its channels, so
  turned weights give the same result for the turned image, at the border as well (zeros are zeros in any order).
* Values of 0 to 255 minus a mean, as Caffe's networks have them: mean / 255, and 1 / 255 as std. This is not put into
  the first convolution, because a mean there is not exact where the convolution sees the zeros around the image.

What a file can tell of itself:

* The order, by the first layer's answer to each colour: the root mean square of its weights. In photographs red is the
  stronger colour for a network: its weights are larger than those of blue by factors of 1.15 (HED's VGG-16, from
  Caffe's), 1.35 (CRAFT's VGG-16 with batch norm, from torchvision's), 1.22 (EfficientNet-Lite0), 1.31, 1.42 and 2.15
  (the three networks of MTCNN): all real networks that were measured. Chance moves the ratio of n independent weights
  by 1 / sqrt(n); a ratio within three of these tells nothing.
* The range, with batch norm: running variances are those of the first layer's results in training. Against its results
  for images of unit spread CRAFT's VGG-16 gives 1.1; 0 to 255 would give 57.
* The range, without: a trained network answers its images and not its biases. In HED's VGG-16 an image moves the last
  pooling 1.8 times as much as the biases alone fill it at 0 to 255, and 0.2 times at unit spread; the same network made
  for normalised values has 120 and 1.8. The size of its first layer's weights says nothing: 0.18, as in CRAFT's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Sequence

import numpy as np

from cbst_mx.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from cbst_mx.errors import ConfigError, check_choice
from cbst_mx.networks.forms import network_graph
from symbols.backend import gluon, mx

__all__ = [
    "CAFFE_MEAN",
    "CHANNELS",
    "RANGES",
    "InputForm",
    "Told",
    "branch_sizes",
    "contradictions",
    "first_convolution",
    "slow_branches",
    "tell_input",
    "tell_order",
    "told_text",
    "turn_to_rgb",
]

CHANNELS = ("rgb", "bgr")
RANGES = ("normalised", "caffe")
#: Mean of the published Caffe networks (Simonyan and Zisserman), R, G, B of 0 to 255.
CAFFE_MEAN = (123.68, 116.779, 103.939)
_SPREAD = 57.0  # standard deviation of photographs in 0 to 255: 0.225 of 255
_SLOWEST = 100  # of the sizes of two branches: learning goes with the square
_SIZE = (96, 128)  # of the images that the range is looked at with


@dataclass(frozen=True)
class InputForm:
    """Input that a file of weights was trained with.

    Attributes
    ----------
    channels : {"rgb", "bgr"}
        Order of the channels.
    range : {"normalised", "caffe"}
        Values in [0, 1], then minus mean and divided by std; or of 0 to 255 minus mean.
    mean, std : tuple of 3 float, optional
        For R, G, B, whatever `channels` says, in units of the range; by default ImageNet's, and for "caffe"
        `CAFFE_MEAN` and 1.
    """

    channels: Literal["rgb", "bgr"] = "rgb"
    range: Literal["normalised", "caffe"] = "normalised"
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        check_choice("channels", self.channels, CHANNELS)
        check_choice("range", self.range, RANGES)
        top = 1 if self.range == "normalised" else 255
        for name, values, lowest in (("mean", self.mean, 0.0), ("std", self.std, 1e-6 * top)):
            if values is not None and (len(values) != 3 or not all(lowest <= value <= top for value in values)):
                allowed = f"numbers from {lowest:g} to {top} for range {self.range}"
                raise ConfigError(f"{name} must hold three {allowed} (R, G, B), got {list(values)}")

    def normalisation(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Return mean and std of the network's description: RGB in [0, 1]."""
        if self.range == "normalised":
            return self.mean or IMAGENET_MEAN, self.std or IMAGENET_STD
        mean, std = self.mean or CAFFE_MEAN, self.std or (1.0, 1.0, 1.0)
        return tuple(value / 255 for value in mean), tuple(value / 255 for value in std)  # type: ignore[return-value]

    def to_json(self) -> dict[str, Any]:
        """Return order and range as plain JSON values, for the sidecar."""
        return {"channels": self.channels, "range": self.range}


class Told(NamedTuple):
    """What a network with a file's weights tells of its input.

    Attributes
    ----------
    channels : {"rgb", "bgr"} or None
        Order of the channels that the weights look trained on; None where they cannot tell.
    range : {"normalised", "caffe"} or None
        The same for the range.
    figures : dict of str to str
        By "channels" and "range", what was measured, in words.
    """

    channels: str | None
    range: str | None
    figures: dict[str, str]


def first_convolution(network: gluon.HybridBlock) -> tuple[str, gluon.Parameter]:
    """Return structural name and weight, (filters, 3, h, w), of the convolution that sees the image."""
    parameters = network._collect_params_with_prefix()
    return next((key, p) for key, p in parameters.items() if len(p.shape) == 4 and p.shape[1] == 3)


def turn_to_rgb(network: gluon.HybridBlock) -> None:
    """Turn the first convolution of a network for BGR images, so that it computes the same from RGB ones."""
    _, weight = first_convolution(network)
    weight.set_data(mx.nd.array(np.ascontiguousarray(weight.data().asnumpy()[:, ::-1])))


def tell_input(network: gluon.HybridBlock) -> Told:
    """Return what the weights of an initialised network tell of the images that it was trained on.

    Parameters
    ----------
    network : HybridBlock
        On the CPU; "rgb" is the order in which it takes its channels now.
    """
    weight = first_convolution(network)[1].data().asnumpy()
    if not _is_trained(weight):
        return Told(None, None, {})
    channels, size = tell_order(weight), _sizes(weight)
    scale, figure = _tell_range(network)
    figures = {} if scale is None else {"range": figure}
    if channels is not None:
        shown = ", ".join(f"{value:.3g}" for value in size)
        figures["channels"] = f"root mean squares of the first layer's weights, as red, green and blue: {shown}"
    return Told(channels, scale, figures)


def branch_sizes(network: gluon.HybridBlock, std: Sequence[float]) -> tuple[float, float, float]:
    """Return the root mean squares of what FCN8s's scores of pool3, pool4 and fc7 see, factors of the skips included.

    A step of SGD moves a score in proportion to the square of what it sees, so a branch whose size is a hundredth of
    another's learns ten thousand times as slowly.

    Parameters
    ----------
    network : HybridBlock
        An initialised FCN8s on the CPU.
    std : sequence of 3 float
        Of its description: the images are given the spread of photographs, 0.225 in [0, 1].
    """
    images = mx.nd.array(_images() * (0.225 / np.reshape(std, (1, 3, 1, 1))))
    pool3, pool4, pool5 = network.trunk(images)
    scale3, scale4 = network.skip_scale
    maps = (pool3 * scale3, pool4 * scale4, network.fc7(network.fc6(pool5)))
    three, four, top = (float(np.sqrt((map_.asnumpy().astype(np.float64) ** 2).mean())) for map_ in maps)
    return three, four, top


def slow_branches(network: gluon.HybridBlock, std: Sequence[float]) -> list[str]:
    """Return a sentence where a branch of an FCN8s is so small beside another that it cannot learn; else nothing."""
    sizes = branch_sizes(network, std)
    if min(sizes) >= max(sizes) / _SLOWEST:
        return []
    shown = ", ".join(f"{size:.2g}" for size in sizes)
    factors = list(network.skip_scale)
    return [
        f"skip_scale {factors} leaves a branch that cannot learn: root mean squares of what the scores of pool3, pool4 "
        f"and fc7 see are {shown}, which should be within a factor of {_SLOWEST}"
    ]


def tell_order(weight: np.ndarray) -> str | None:
    """Return the order of the channels that weights of a first layer look trained on.

    Parameters
    ----------
    weight : ndarray of shape (filters, 3, h, w)
        Filters over three channels that are taken as R, G, B.

    Returns
    -------
    {"rgb", "bgr"} or None
        None where the first and last channel differ by no more than chance would make them.
    """
    if not _is_trained(weight):
        return None
    size = _sizes(weight)
    ratio = math.log(size[0] / size[2])
    return None if abs(ratio) < _chance(weight) else "rgb" if ratio > 0 else "bgr"


def _sizes(weight: np.ndarray) -> np.ndarray:
    """Return the root mean square of each of the three channels, shape (3,)."""
    return np.sqrt((weight.astype(np.float64) ** 2).mean(axis=(0, 2, 3)))


def _chance(weight: np.ndarray) -> float:
    """Return three standard deviations of a correlation, or of a log ratio of sizes, of two random channels."""
    return 3 / math.sqrt(weight[:, 0].size)


def _is_trained(weight: np.ndarray) -> bool:
    """Tell whether the channels of the filters go together as the colours of photographs do; untrained ones do not."""
    size = _sizes(weight)
    if not size.min() > 0:
        return False
    table = np.einsum("fahw,fbhw->ab", weight, weight, dtype=np.float64) / weight[:, 0].size / np.outer(size, size)
    return float(np.abs(table[np.triu_indices(3, 1)]).max()) > _chance(weight)


def _tell_range(network: gluon.HybridBlock) -> tuple[str | None, str]:
    """Return the range that the weights look trained on, or None, and what was measured."""
    recorded = _recorded_spread(network)
    if recorded is not None:
        scale = "caffe" if recorded > math.sqrt(_SPREAD) else "normalised"
        return scale, f"running variances of the first layer for an input spread of {recorded:.3g}"
    if not hasattr(network, "trunk"):
        return None, ""
    unit, large = _answers(network.trunk)
    figure = (
        f"the image moves the last pooling {unit:.3g} times as much as the biases fill it for normalised values, "
        f"{large:.3g} times for values of 0 to 255"
    )
    if unit < 0.5 and large >= 1:
        return "caffe", figure
    return ("normalised", figure) if 1 <= unit < math.inf else (None, "")


def _recorded_spread(network: gluon.HybridBlock) -> float | None:
    """Return the spread of the input at which the first layer gives the running variances of the batch norm behind it.

    None where no batch norm follows, or its statistics are the initial ones.
    """
    graph = network_graph(network)
    values = {name: p.data().asnumpy().astype(np.float64) for name, p in network.collect_params().items()}
    name = first_convolution(network)[1].name
    source = next(node.name for node in graph.nodes if any(graph.nodes[i].name == name for i, _ in node.inputs))
    for node in graph.nodes:
        if node.op == "BatchNorm" and graph.nodes[node.inputs[0][0]].name == source:
            mean, variance = (values[graph.nodes[place].name] for place, _ in node.inputs[3:5])
            if (mean == 0).all() and (variance == 1).all():
                return None
            weight = mx.nd.array(values[name])
            settings = {"num_filter": weight.shape[0], "kernel": weight.shape[2:], "no_bias": True}
            given = mx.nd.Convolution(mx.nd.array(_images()), weight, **settings).asnumpy()
            got = given.var(axis=(0, 2, 3), dtype=np.float64)
            alive = (got > 0) & (variance > 0)
            return float(np.sqrt(np.exp(np.log(variance[alive] / got[alive]).mean()))) if alive.any() else None
    return None


def _answers(trunk: gluon.HybridBlock) -> tuple[float, float]:
    """Return how much images move the last map of `trunk`, over what biases alone fill it, at unit and large spread."""
    images = _images()
    empty = trunk(mx.nd.zeros(images.shape))[-1].asnumpy().astype(np.float64)
    filled = math.sqrt(float((empty**2).mean()))
    moved = []
    for spread in (1.0, _SPREAD):
        map_ = trunk(mx.nd.array(images * spread))[-1].asnumpy()
        moved.append(math.sqrt(float(((map_ - empty) ** 2).mean())))
    return (moved[0] / filled, moved[1] / filled) if filled > 0 else (math.inf, math.inf)


def _images() -> np.ndarray:
    """Return two images with the spectrum of photographs (1 / f) and colours that go together; spread 1, mean 0.

    Returns
    -------
    ndarray of shape (2, 3, 96, 128), float32
        Seeded.
    """
    rng = np.random.default_rng(0)
    height, width = _SIZE
    frequency = np.hypot(_frequencies(height)[:, None], _frequencies(width)[None])
    frequency[0, 0] = 1 / width
    noise = np.fft.ifft2(np.fft.fft2(rng.normal(size=(2, 3, height, width))) / frequency).real
    noise -= noise.mean(axis=(2, 3), keepdims=True)
    noise /= noise.std(axis=(2, 3), keepdims=True)
    # brightness, then red against blue, then green against both: the axes along which photographs vary, in this order
    colours = np.array([[1, 0.35, 0.1], [1, 0, -0.2], [1, -0.35, 0.1]])
    images = np.einsum("ab,nbhw->nahw", colours, noise)
    return (images / images.std(axis=(2, 3), keepdims=True)).astype(np.float32)


def _frequencies(count: int) -> np.ndarray:
    """Return the frequencies of a Fourier transform of `count` samples, in cycles per sample."""
    return (np.arange(count) + count // 2) % count / count - (count // 2) / count


def contradictions(told: Told, form: InputForm) -> list[str]:
    """Return a sentence per statement of `form` that the weights contradict.

    Parameters
    ----------
    told : Told
        Result of :func:`tell_input` for the network that takes RGB now, after :func:`turn_to_rgb` where the file is of
        BGR.
    form : InputForm
        What the user says of the file.
    """
    sentences = []
    if told.channels == "bgr":
        other = CHANNELS[1 - CHANNELS.index(form.channels)]
        sentences.append(
            f"the file was said to take {form.channels.upper()} and looks trained on {other.upper()} "
            f"({told.figures['channels']}; in networks for photographs red is larger than blue): "
            f"--channels {other} reads it so"
        )
    if told.range not in (None, form.range):
        sentences.append(
            f"the file was said to take {_words(form.range)} and looks trained on {_words(str(told.range))} "
            f"({told.figures['range']}): --range {told.range} reads it so"
        )
    return sentences


def told_text(told: Told) -> str:
    """Return in a sentence what the weights tell, or that they do not."""
    known = []
    if told.channels is not None:
        known.append(f"{told.channels.upper()} ({told.figures['channels']})")
    if told.range is not None:
        known.append(f"{_words(told.range)} ({told.figures['range']})")
    unknown = [name for name, value in (("order", told.channels), ("range", told.range)) if value is None]
    texts = [f"the weights look trained on {' and '.join(known)}"] if known else []
    texts += [f"the weights do not tell the {' and '.join(unknown)} of their input"] if unknown else []
    return "; ".join(texts)


def _words(scale: str) -> str:
    return "normalised values" if scale == "normalised" else "values of 0 to 255"
