"""Every kind of work of a run on a device beside the same on the processor, to see whether both give the same.

Small networks of random parameters, a few images; seconds on a GPU. What is said of a difference is the Euclidean norm
of the difference divided by that of what the processor gives. B images, C classes, H x W pixels.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple, Sequence

import numpy as np

from cbst_mx.errors import CBSTError, StoppedError, explain_device
from cbst_mx.messages import silent
from cbst_mx.networks.build import build_network
from cbst_mx.networks.spec import NetworkSpec
from cbst_mx.selftrain import on_device
from cbst_mx.selftrain.class_maps import ClassMaps
from cbst_mx.selftrain.counting import StreamingThresholds
from cbst_mx.selftrain.kc import ConfidencePool
from cbst_mx.selftrain.network_maps import probabilities
from cbst_mx.selftrain.selection import Collector
from cbst_mx.selftrain.target_maps import DeviceMap
from cbst_mx.selftrain.views import HostMap, View
from cbst_mx.training.adversarial import adapt_output_space
from cbst_mx.training.sgd import Schedule, place, train
from cbst_mx.training.steps import prepare_segments
from symbols.backend import autograd, enable_amp, gluon, mx

__all__ = ["STAGES", "Finding", "compare", "in_float16"]

CLASSES = 19
_SIZE = (64, 96)  # pixels of an image
_NETWORKS: dict[str, dict[str, Any]] = {
    "resnet38": {"width": 0.03125, "batch_norm": "frozen", "dropout": [0.0, 0.0]},
    "fcn8s": {"width": 0.03125, "dropout": 0.0},
}
_ITERATIONS = 2
# Sums in another order; the largest that was seen between 1 and 2 threads of a processor is 2e-6.
_ROUNDING = 1e-4
# TF32 has 10 bits in place of 23, one in 2000; some 40 layers, one after the other.
_TF32 = 3e-2
# The same in float16, whose loss is scaled; the loss of a batch is compared.
_FLOAT16 = 3e-2


class Finding(NamedTuple):
    """What was found of one thing: its name, whether it is as it should be (None: nothing to judge), and a sentence."""

    name: str
    good: bool | None
    text: str
    last: bool = False  # the device cannot go on


Stage = Callable[["list[mx.Context]", mx.Context], "tuple[bool, str]"]


def compare(contexts: Sequence[mx.Context]) -> Iterator[Finding]:
    """Yield what each of `STAGES` gives on a device beside the processor.

    Parameters
    ----------
    contexts : sequence of mx.Context
        The devices; training is compared on all of them, everything else on the first.

    Yields
    ------
    Finding
        The last one says why, where the device cannot go on.
    """
    devices = list(contexts)
    processor = mx.cpu(1) if devices[0] == mx.cpu(0) else mx.cpu(0)
    for name, stage in STAGES.items():
        try:
            good, text = stage(devices, processor)
        except CBSTError as error:  # what is not possible, as counts that do not add up
            good, text = False, str(error)
        except RuntimeError as error:  # MXNet's errors are RuntimeErrors; CUDA does not go on behind most of them
            yield Finding(name, False, explain_device(error) or _last_line(error), last=True)
            return
        yield Finding(name, good, text)


def in_float16(contexts: Sequence[mx.Context]) -> Finding:
    """Return whether a training step in float16 is that of float32; this process computes in float16 from then on."""
    name, device = "training in float16", contexts[0]
    try:
        exact = _train("fcn8s", [device], built=device)[1]
        enable_amp("float16")  # of which a processor can do nothing: the network is built where it is trained
        half = _train("fcn8s", [device], built=device, loss_scaling=True)[1]
    except (CBSTError, RuntimeError) as error:
        return Finding(name, False, explain_device(error) or _last_line(error), last=True)
    worst = max(abs(ours / theirs - 1) for ours, theirs in zip(half, exact))
    return Finding(name, worst <= _FLOAT16, f"loss differs from that of float32 by {worst:.1e}")


# ------------------------------------------------------------------------------------------------------ single work


def _kernel(devices: list[mx.Context], processor: mx.Context) -> tuple[bool, str]:
    found = (mx.nd.arange(5, ctx=devices[0]) * 2).asnumpy().tolist()
    return found == [0, 2, 4, 6, 8], f"2 * (0, 1, 2, 3, 4) = {', '.join(f'{value:g}' for value in found)}"


def _operators(devices: list[mx.Context], processor: mx.Context) -> tuple[bool, str]:
    """Compare the operators that cuDNN computes, with their gradients."""
    rng = np.random.default_rng(0)
    image, kernel = rng.standard_normal((2, 16, 63, 63)), rng.standard_normal((16, 16, 3, 3))
    learned, scale = rng.standard_normal((16, 1, 4, 4)), rng.uniform(0.5, 2, (4, 16))

    def run(ctx: mx.Context) -> list[mx.nd.NDArray]:
        x, weight, up, norm = (mx.nd.array(a, ctx=ctx) for a in (image, kernel, learned, scale))
        for variable in (x, weight, up):
            variable.attach_grad()
        with autograd.record():
            y = mx.nd.Convolution(x, weight, kernel=(3, 3), pad=(2, 2), dilate=(2, 2), num_filter=16, no_bias=True)
            y = mx.nd.BatchNorm(y, *norm, use_global_stats=True, fix_gamma=False)
            y = mx.nd.Activation(y, act_type="relu")
            y = mx.nd.Pooling(y, kernel=(2, 2), stride=(2, 2), pool_type="max", pooling_convention="full")
            y = mx.nd.Deconvolution(y, up, kernel=(4, 4), stride=(2, 2), pad=(1, 1), num_filter=16, num_group=16)
        y.backward()
        return [y, x.grad, weight.grad, up.grad]

    return _verdict(*map(_flat, (run(devices[0]), run(processor))))


def _networks(devices: list[mx.Context], processor: mx.Context) -> tuple[bool, str]:
    images, _ = _batch()
    found = []
    for name in _NETWORKS:
        network = _network(name)
        values = []
        for ctx in (processor, devices[0]):
            place(network, [ctx])
            values.append(network(mx.nd.array(images, ctx=ctx)).asnumpy())
        found.append(_difference(values[1], values[0]))
    return _judged(max(found))


# --------------------------------------------------------------------------------------------------------- training


def _training(devices: list[mx.Context], processor: mx.Context) -> tuple[bool, str]:
    """Compare how far the parameters have moved after some steps, of the whole batch and in passes."""
    found = []
    for name in _NETWORKS:
        begun = _parameters(_network(name))
        there = _train(name, [processor])[0] - begun
        ours = [_train(name, devices)[0], _train(name, devices, per_pass=len(devices))[0]]
        found += [_difference(one - begun, there) for one in ours]
    return _judged(max(found))


def _repetition(devices: list[mx.Context], processor: mx.Context) -> tuple[bool, str]:
    """Look whether a training gives the same bits again, and when it is stopped and goes on."""
    first, again = (_train("fcn8s", devices, dropout=0.5)[0] for _ in range(2))

    def stop(done: int, total: int) -> None:
        if done == _ITERATIONS - 1:
            raise StoppedError("training", done, total)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.params"
        with contextlib.suppress(StoppedError):
            _train("fcn8s", devices, dropout=0.5, checkpoint=path, progress=stop)
        continued = _train("fcn8s", devices, dropout=0.5, checkpoint=path)[0]
    same = {"again": np.array_equal(first, again), "stopped and continued": np.array_equal(first, continued)}
    if all(same.values()):
        return True, "the same bits again, and stopped and continued"
    return False, f"other bits: {', '.join(name for name, equal in same.items() if not equal)}"


def _dropout(devices: list[mx.Context], processor: mx.Context) -> tuple[bool, str]:
    """Look whether dropout follows its seed, as gradient checkpointing needs it."""
    masks = []
    for seed in (0, 0, 1):
        mx.random.seed(seed, ctx=devices[0])
        with autograd.train_mode():
            ones = mx.nd.ones((10_000,), ctx=devices[0])
            masks.append(mx.nd.Dropout(ones, p=0.5, cudnn_off=True).asnumpy())
    kept = float((masks[0] > 0).mean())
    if not np.array_equal(masks[0], masks[1]):
        return False, "other masks from the same seed"
    if np.array_equal(masks[0], masks[2]) or abs(kept - 0.5) > 0.05:  # five standard deviations are 0.025
        return False, f"the same masks from other seeds, or {100 * kept:.0f} % kept in place of 50"
    return True, "follows its seed"


def _checkpointing(devices: list[mx.Context], processor: mx.Context) -> tuple[bool, str]:
    prepare_segments(_network("fcn8s"), devices[:1])
    plain = _train("fcn8s", devices[:1])[0]
    less = _train("fcn8s", devices[:1], gradient_checkpointing=True)[0]
    begun = _parameters(_network("fcn8s"))
    return _judged(_difference(less - begun, plain - begun))


def _warm_up(devices: list[mx.Context], processor: mx.Context) -> tuple[bool, str]:
    losses = []
    for ctx in (processor, devices[0]):
        network = _network("fcn8s")
        options = {"num_classes": CLASSES, "ctx": ctx, "seed": 0, "discriminator_width": 4}
        record = adapt_output_space(network, _loader, _loader, Schedule(1e-4, _ITERATIONS), **options)  # type: ignore[arg-type]
        losses.append(np.array([record.segmentation[-1], record.adversarial[-1], record.discriminator[-1]]))
    return _judged(_difference(losses[1], losses[0]))


# ------------------------------------------------------------------------------------- pseudo-labels and evaluation


def _upsampling(devices: list[mx.Context], processor: mx.Context) -> tuple[bool, str]:
    small = _maps(0)
    for kind in ("bilinear", "bicubic", "pillow"):
        cells = mx.nd.array(small, ctx=devices[0]).expand_dims(0)
        ours = on_device.full_size(cells, _SIZE, interpolation=kind, stride=8)[0].asnumpy()
        theirs = ClassMaps(small, _SIZE, interpolation=kind, stride=8).rows(0, _SIZE[0])
        if not np.array_equal(ours, theirs):
            return False, f"{kind}: other bits, {np.abs(ours - theirs).max():.1e} at most"
    return True, "the same bits"


def _counting(devices: list[mx.Context], processor: mx.Context) -> tuple[bool, str]:
    """Compare counted thresholds, bit for bit."""
    ours, theirs = StreamingThresholds(CLASSES), StreamingThresholds(CLASSES)
    again = True
    while again:
        for name, (there, here) in _views(devices[0]).items():
            here.count_into(ours, name)
            there.count_into(theirs, name)
        again = theirs.refine(["class-balanced"], [0.2])
        if ours.refine(["class-balanced"], [0.2]) != again:
            return False, "other counts"
    return _same_thresholds(ours, theirs)


def _sorting(devices: list[mx.Context], processor: mx.Context) -> tuple[bool, str]:
    """Compare sorted thresholds, bit for bit."""
    ours, theirs = ConfidencePool(CLASSES), ConfidencePool(CLASSES)
    for there, here in _views(devices[0]).values():
        here.sort_into(ours)
        there.sort_into(theirs)
    return _same_thresholds(ours, theirs)


def _same_thresholds(ours: Collector, theirs: Collector) -> tuple[bool, str]:
    one, other = (collector.thresholds("class-balanced", 0.2).values for collector in (ours, theirs))
    same = np.array_equal(one, other)
    return same, "the same k_c" if same else "other k_c"


def _selection(devices: list[mx.Context], processor: mx.Context) -> tuple[bool, str]:
    views = _views(devices[0])
    pool = ConfidencePool(CLASSES)
    for there, _ in views.values():
        there.sort_into(pool)
    thresholds = [pool.thresholds(policy, 0.2) for policy in ("global", "class-balanced")]
    differ = total = 0
    for there, here in views.values():
        for one, other in zip(there.select(thresholds), here.select(thresholds)):
            differ, total = differ + int((one != other).sum()), total + one.size
    return not differ, f"{differ} of {total} labels differ" if differ else "the same labels"


def _evaluation(devices: list[mx.Context], processor: mx.Context) -> tuple[bool, str]:
    """Compare what is predicted, of several scales and with mirrored images."""
    images = [np.random.default_rng(0).integers(0, 256, (*_SIZE, 3)).astype(np.uint8)]
    options: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "flip": True, "scales": (0.5, 1.0)}
    network = _network("fcn8s")
    found = []
    for ctx in (processor, devices[0]):
        place(network, [ctx])
        found.append(probabilities(network, images, ctx=ctx, **options).asnumpy())
    return _judged(_difference(found[1], found[0]))


#: Name to a function of the devices and the processor, which says whether they agree, and a sentence.
STAGES: dict[str, Stage] = {
    "a kernel": _kernel,
    "operators": _operators,
    "networks": _networks,
    "training": _training,
    "the same bits": _repetition,
    "dropout": _dropout,
    "gradient checkpointing": _checkpointing,
    "warm-up": _warm_up,
    "upsampling": _upsampling,
    "counting": _counting,
    "sorting": _sorting,
    "selection": _selection,
    "evaluation": _evaluation,
}


# ------------------------------------------------------------------------------------------------- what they work on


def _network(name: str, built: mx.Context | None = None, **options: Any) -> gluon.HybridBlock:
    """Return a network with random parameters, the same ones every time, on the processor or where it is built."""
    return build_network(NetworkSpec(name, CLASSES, {**_NETWORKS[name], **options}), built or mx.cpu(), seed=0)


def _batch() -> tuple[np.ndarray, np.ndarray]:
    """Return images, float32 (B, 3, H, W), and labels, float32 (B, H, W)."""
    rng = np.random.default_rng(1)
    images = rng.standard_normal((2, 3, *_SIZE)).astype(np.float32)
    return images, rng.integers(0, CLASSES, (2, *_SIZE)).astype(np.float32)


def _loader(first: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for _ in range(first, _ITERATIONS):
        yield _batch()


def _train(
    name: str,
    contexts: list[mx.Context],
    *,
    dropout: float = 0.0,
    built: mx.Context | None = None,
    progress: Callable[..., None] = silent,
    **more: Any,
) -> tuple[np.ndarray, list[float]]:
    """Return all parameters behind some training steps in one row, and the last loss."""
    network = _network(name, built, **({"dropout": dropout} if dropout else {}))
    schedule = Schedule(1e-4, _ITERATIONS)
    record = train(network, _loader, schedule, ctx=contexts, seed=0, progress=progress, **more)  # type: ignore[arg-type]
    return _parameters(network), record.losses


def _parameters(network: gluon.HybridBlock) -> np.ndarray:
    parameters = network._collect_params_with_prefix()
    return _flat([parameters[key].list_data()[0] for key in sorted(parameters)])


def _maps(seed: int) -> np.ndarray:
    """Return class probabilities of one image at stride 8, float32 (C, H / 8, W / 8)."""
    logits = np.random.default_rng(seed).standard_normal((CLASSES, _SIZE[0] // 8, _SIZE[1] // 8))
    powers = np.exp(2 * logits)
    return (powers / powers.sum(axis=0)).astype(np.float32)


def _views(device: mx.Context) -> dict[str, tuple[View, View]]:
    """Return the views of some images, in the computer's memory and on a device, of the same maps."""
    found: dict[str, tuple[View, View]] = {}
    for index in range(3):
        whole = ClassMaps(_maps(index), _SIZE, stride=8)
        found[f"image {index}"] = HostMap(whole), DeviceMap(mx.nd.array(whole.rows(0, _SIZE[0]), ctx=device))
    return found


# ------------------------------------------------------------------------------------------------------ differences


def _flat(arrays: Sequence[mx.nd.NDArray]) -> np.ndarray:
    return np.concatenate([array.asnumpy().reshape(-1) for array in arrays]).astype(np.float64)


def _difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the norm of the difference, relative to that of `theirs`."""
    return float(np.linalg.norm(ours - theirs) / max(float(np.linalg.norm(theirs)), 1e-30))


def _verdict(ours: np.ndarray, theirs: np.ndarray) -> tuple[bool, str]:
    return _judged(_difference(ours, theirs))


def _judged(difference: float) -> tuple[bool, str]:
    """Return whether a difference is one of rounding, and a sentence."""
    said = f"relative difference {difference:.1e}"
    if difference <= _ROUNDING:
        return True, said
    if difference <= _TF32:
        return True, f"{said}: TF32, which NVIDIA_TF32_OVERRIDE=0 turns off"
    return False, f"{said}: more than rounding, also in TF32, explains"  # NaN comes here as well


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
