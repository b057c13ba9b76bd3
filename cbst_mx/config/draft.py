"""Numbers of a first experiment: crop, batch, iterations and rates for some images, a machine and a start.

What is chosen is a beginning that ends in minutes (from random parameters) or within the hour (from pretrained ones),
not the best there is; each choice has its reason in words. Sizes are (height, width) in pixels, times CPU seconds.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any, Mapping

from cbst_mx.networks.spec import NetworkSpec

__all__ = ["Choices", "Machine", "choose"]

# Of FCN8s, measured on two cores with AVX-512 (1/8 width with batch norm, and full width): CPU seconds and bytes of a
# training step for one pixel of one crop, at full width; time grows with the width, not with its square, as the first
# layers, which see the most pixels, are bound by memory.
_SECONDS_PER_PIXEL = 26e-6
_BYTES_PER_PIXEL = 9000
_READ_PER_PIXEL = 29e-9  # CPU seconds to decode a pixel of a JPEG with its label and make a crop of them
_FORWARD = 0.35  # of a training step's time takes a network that only looks

_SMALL_WIDTH = 0.125
_RATE, _PRETRAINED_RATE = 0.05, 0.01  # of the source training, as docs/evidence.md has them
_ROUNDS_RATE = 1 / 16  # of the source training's: docs/evidence.md says why
_SECONDS, _PRETRAINED_SECONDS = 270, 1800  # of the source training
_ROUND_SECONDS = 240  # of all rounds, beyond which there are 3 in place of 7
_SMALLEST_CROP, _STEP = 32, 16  # pixels
_GPU_AS_CORES = 200


@dataclass(frozen=True)
class Machine:
    """What there is to compute with. ``memory`` is in bytes; ``bfloat16`` is the CPU's."""

    cores: int
    memory: int
    gpus: int = 0
    bfloat16: bool = False


@dataclass(frozen=True)
class Choices:
    """Settings of an experiment, as its keys have them; ``reasons`` has a sentence for some of them."""

    network: Mapping[str, Any]
    crop: tuple[int, int]
    scale: tuple[float, float]
    long_side: int | None
    batch: int
    iterations: int
    rate: float
    rounds: int
    round_iterations: int
    round_rate: float
    target_per_batch: int
    inference_batch: int
    workers: int
    ctx: str
    amp: str
    minutes: float  # of the whole run, about
    reasons: Mapping[str, str]


def choose(
    source: Counter[tuple[int, int]],
    target: Counter[tuple[int, int]],
    machine: Machine,
    pretrained: NetworkSpec | None = None,
) -> Choices:
    """Choose the numbers of a first experiment.

    Parameters
    ----------
    source, target : Counter of (int, int)
        How many images have each height and width.
    machine : Machine
        Where it will run.
    pretrained : NetworkSpec, optional
        The network whose parameters the source training starts from.
    """
    reasons: dict[str, str] = {}
    network = _network(pretrained)
    width = float(network["options"].get("width", 1.0))
    power = machine.cores * 0.9 if not machine.gpus else _GPU_AS_CORES
    roomy = machine.gpus > 0 or machine.cores >= 8
    long_side, factor = _look(source, target, (1024 if machine.gpus else 768 if roomy else 480), reasons)
    area = (256 * 320) if machine.gpus else (192 * 240) if roomy else (160 * 208) if pretrained else (128 * 160)
    crop = _crop(source, target, factor, area, reasons)
    pixels = crop[0] * crop[1]
    batch = 4 if pretrained is not None and not roomy else 8
    images, adapted = sum(source.values()), sum(target.values())
    while batch > 2 and (batch > images or batch * pixels * _BYTES_PER_PIXEL * width > machine.memory / 3):
        batch //= 2
    stored = sum(count * height * width_ for (height, width_), count in source.items()) / images
    step = batch * (pixels * _SECONDS_PER_PIXEL * width + stored * _READ_PER_PIXEL)
    budget, usual = (_PRETRAINED_SECONDS, 800) if pretrained is not None else (_SECONDS, 1000)
    iterations = _rounded(min(max(budget * power / step, 0.4 * usual), 4 * usual))
    reasons["iterations"] = (
        f"about {iterations * batch / images:.0f} passes over {images:,} images; more is better where there is time"
    )
    round_iterations = min(max(30, math.ceil(4 * adapted / batch)), 500)
    mean = sum(count * height * width_ for (height, width_), count in target.items()) / adapted * factor**2
    look = adapted * mean * _SECONDS_PER_PIXEL * width * _FORWARD * 2  # mirrored as well
    one_round = round_iterations * step + 3 * look
    rounds = 7 if 7 * one_round / power <= _ROUND_SECONDS or machine.gpus else 3
    reasons["rounds"] = "as in the paper" if rounds == 7 else "the paper has 7; 3 show whether the direction is right"
    rate = _PRETRAINED_RATE if pretrained is not None else _RATE
    smaller = 8
    while smaller > 1 and smaller * mean * _BYTES_PER_PIXEL * width * _FORWARD > machine.memory / 4:
        smaller //= 2
    return Choices(
        network=network,
        crop=crop,
        scale=(max(0.05, round(0.7 * factor, 3)), max(0.06, round(1.3 * factor, 3))),
        long_side=long_side,
        batch=batch,
        iterations=iterations,
        rate=rate,
        rounds=rounds,
        round_iterations=round_iterations,
        round_rate=rate * _ROUNDS_RATE,
        target_per_batch=max(1, batch // 2),
        inference_batch=smaller,
        workers=min(4, max(1, machine.cores)),
        ctx="gpu:0" if machine.gpus else "cpu",
        amp="bfloat16" if machine.bfloat16 and pretrained is not None and not machine.gpus else "none",
        minutes=(iterations * step + rounds * one_round) / power / 60,
        reasons=reasons,
    )


def _network(pretrained: NetworkSpec | None) -> dict[str, Any]:
    if pretrained is None:
        options = {"width": _SMALL_WIDTH, "batch_norm": "batch", "dropout": 0.1, "upsampling": "learned"}
        return {"name": "fcn8s", "options": options}
    spec: dict[str, Any] = {"name": pretrained.name, "options": dict(pretrained.options)}
    return {**spec, "mean": [*pretrained.mean], "std": [*pretrained.std]}


def _look(
    source: Counter[tuple[int, int]], target: Counter[tuple[int, int]], limit: int, reasons: dict[str, str]
) -> tuple[int | None, float]:
    """Return the longer side at which the network sees images, None for their own, and the factor that gives it."""
    sides = sorted(max(size) for sizes in (source, target) for size in sizes.elements())
    usual = sides[len(sides) // 2]
    if usual <= limit * 1.1:
        return None, 1.0
    reasons["long_side"] = f"images of {usual} pixels are seen at {limit}; labels and predictions keep the images' size"
    return limit, limit / usual


def _crop(
    source: Counter[tuple[int, int]],
    target: Counter[tuple[int, int]],
    factor: float,
    area: int,
    reasons: dict[str, str],
) -> tuple[int, int]:
    """Return a crop of about `area` pixels, shaped like most images, that nearly all images hold."""
    sizes = sorted([*source.elements(), *target.elements()])
    # one image of twenty may be smaller: crops are filled up with pixels that count nowhere
    least = [sorted(size[axis] for size in sizes)[len(sizes) // 20] * factor for axis in (0, 1)]
    usual = Counter(sizes).most_common(1)[0][0]
    ratio = min(max(usual[0] / usual[1], 0.5), 2.0)
    wanted = (math.sqrt(area * ratio), math.sqrt(area / ratio))
    height, width = (
        max(_SMALLEST_CROP, min(round(side / _STEP), int(most / _STEP)) * _STEP) for side, most in zip(wanted, least)
    )
    if len(Counter(sizes)) > 1:
        reasons["crop"] = f"{len(Counter(sizes))} sizes of images: fits in nearly all of them"
    return height, width


def _rounded(count: float) -> int:
    """Return a count of iterations with two digits that count."""
    digits = 10 ** max(0, int(math.log10(max(count, 1))) - 1)
    return max(1, int(round(count / digits)) * digits)
