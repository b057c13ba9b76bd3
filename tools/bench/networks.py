"""Measure time and peak memory of FCN8s-VGG16 and ResNet-38 on this CPU, beside the same networks in PyTorch.

Inference, a training step and large images; MXNet and PyTorch are measured in the same run and alternate.

    python tools/bench/networks.py --torch-python PATH | --install-torch [--quick] [--full] [--out docs/benchmarks.md]

Every measurement is a process of its own, in turns: first a step that is not counted (memory is allocated, kernels are
chosen), then the counted ones, without `--full` a single one where it takes over 10 s. Seconds are by the clock, the
median of the counted steps, and of the repeats; memory is the largest resident size of the process, parameters and the
framework itself included. Prints Markdown; `--out` also puts it between the page's two markers. Let nothing else run.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from pathlib import Path
from typing import Any, Callable

from measuring import (
    ROOT,
    TITLES,
    add_full,
    add_torch,
    asked,
    find_torch,
    given,
    in_turns,
    machine,
    packages,
    peak_bytes,
    printed,
    put,
    table,
)

CLASSES = 19
IGNORE = 255

# Forms of one task: (framework, form). Speed is compared among the forms of one precision.
INFERENCE = (
    ("mxnet", "float32"),
    ("mxnet", "float32 fused"),
    ("torch", "float32"),
    ("torch", "float32 channels last"),
    ("mxnet", "bfloat16"),
    ("mxnet", "bfloat16 fused"),
    ("torch", "bfloat16"),
    ("torch", "bfloat16 channels last"),
    ("mxnet", "int8"),
    ("mxnet", "float32, 24 classes"),
)
TRAINING = (
    ("mxnet", "float32"),
    ("torch", "float32"),
    ("torch", "float32 channels last"),
    ("mxnet", "bfloat16"),
    ("torch", "bfloat16"),
    ("torch", "bfloat16 channels last"),
)
FRAMEWORKS = {"mxnet": "MXNet", "torch": "PyTorch"}
TASKS = ("inference", "training", "large")
LARGE = (
    ("mxnet", "float32"),
    ("mxnet", "float32, bands of 512 rows"),
    ("mxnet", "float32, bands of 256 rows"),
    ("torch", "float32"),
)

# ------------------------------------------------------------------------------------------- one measurement, MXNet


def mxnet_network(spec: dict[str, Any]) -> Any:
    """Return the network of `spec` with random parameters."""
    from symbols import get_network
    from symbols.backend import enable_amp, mx

    if spec["form"].startswith("bfloat16"):
        enable_amp("bfloat16")  # before the network is built
    mx.random.seed(0)
    network = get_network(spec["network"], 24 if "24 classes" in spec["form"] else CLASSES, width=spec["width"])
    if spec["task"] == "inference":
        network.collect_params().setattr("grad_req", "null")  # else each parameter comes with a gradient in memory
    network.initialize(mx.init.Xavier(rnd_type="gaussian", factor_type="in", magnitude=2))
    network(mx.nd.zeros((1, 3, 32, 32)))
    network.hybridize(static_alloc=True, static_shape=True)
    return network


def mxnet_inference(spec: dict[str, Any]) -> Callable[[], None]:
    """Return one forward pass."""
    import numpy as np

    from cbst_mx.networks.forms import exact_form
    from cbst_mx.networks.int8 import quantised
    from symbols.backend import mx

    network, form = mxnet_network(spec), spec["form"]
    if form == "int8":
        image = np.random.default_rng(0).integers(0, 256, (*spec["size"], 3)).astype(np.uint8)
        # random parameters give classes that are hardly apart: none must be kept
        looks = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
        network, _ = quantised(network, [image], ctx=mx.cpu(), same_class=0, **looks)
    else:
        rows = int(form.split("bands of ")[1].split()[0]) if "bands" in form else None
        kind = "fused" if "fused" in form else "plain"
        network = exact_form(network, ctx=mx.cpu(), form=kind, band_rows=rows)
    images = mx.nd.random.normal(shape=(1, 3, *spec["size"]))
    return lambda: network(images).wait_to_read()


def mxnet_training(spec: dict[str, Any]) -> Callable[[], None]:
    """Return one step of SGD with momentum."""
    import numpy as np

    from cbst_mx.training.losses import BatchLoss
    from cbst_mx.training.optimiser import new_trainer
    from cbst_mx.training.steps import plain_step
    from symbols.backend import mx

    network, rng = mxnet_network(spec), np.random.default_rng(0)
    settings = {"learning_rate": 1e-4, "momentum": 0.9, "wd": 5e-4}
    trainer = new_trainer(network.collect_params(), settings)
    images = mx.nd.random.normal(shape=(1, 3, *spec["size"]))
    labels = rng.integers(0, CLASSES, (1, *spec["size"])).astype(np.float32)
    labels[:, :8] = IGNORE

    def step() -> None:
        with BatchLoss.of(network) as loss_of:
            plain_step(network, [images], labels, loss_of, rng=rng)
        trainer.step(1)
        mx.nd.waitall()

    return step


def mxnet_reference(spec: dict[str, Any]) -> dict[str, Any]:
    """Write all parameters, one input and its logits as float32 to a file; return the numbers of each."""
    from symbols.backend import mx

    network = mxnet_network(spec)
    images = mx.nd.random.normal(shape=(1, 3, *spec["size"]))
    arrays = [*(p.data() for p in network.collect_params().values()), images, network(images)]
    with open(spec["file"], "wb") as stream:
        for values in arrays:
            array("f", values.asnumpy().ravel()).tofile(stream)
    return {"sizes": [values.size for values in arrays]}


# ------------------------------------------------------------------------------------------- one measurement, PyTorch


def torch_fcn8s(torch: Any, width: float) -> Any:
    """Return FCN8s-VGG16 with the layers of ``symbols.fcn8s``, in the same order."""
    nn = torch.nn

    def channels(count: int) -> int:
        return max(1, round(count * width))

    def convolutions(before: int, counts: tuple[int, ...]) -> list[Any]:
        layers: list[Any] = []
        for count in counts:
            layers += [nn.Conv2d(before, count, 3, padding=1), nn.ReLU(inplace=True)]
            before = count
        return [*layers, nn.MaxPool2d(2, 2, ceil_mode=True)]

    def upsampling(factor: int) -> Any:
        layer = nn.ConvTranspose2d(CLASSES, CLASSES, 2 * factor, factor, factor // 2, bias=False)
        layer.weight.requires_grad_(False)
        return layer

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            c = [channels(count) for count in (64, 128, 256, 512)]
            self.to_pool3 = nn.Sequential(
                *convolutions(3, (c[0],) * 2), *convolutions(c[0], (c[1],) * 2), *convolutions(c[1], (c[2],) * 3)
            )
            self.to_pool4 = nn.Sequential(*convolutions(c[2], (c[3],) * 3))
            self.to_pool5 = nn.Sequential(*convolutions(c[3], (c[3],) * 3))
            hidden = channels(4096)
            self.top = nn.Sequential(
                nn.Conv2d(c[3], hidden, 7, padding=3),
                nn.ReLU(inplace=True),
                nn.Dropout(0.5),
                nn.Conv2d(hidden, hidden, 1),
                nn.ReLU(inplace=True),
                nn.Dropout(0.5),
                nn.Conv2d(hidden, CLASSES, 1),
            )
            self.score_pool4 = nn.Conv2d(c[3], CLASSES, 1)
            self.score_pool3 = nn.Conv2d(c[2], CLASSES, 1)
            self.upscore2, self.upscore_pool4, self.upscore8 = upsampling(2), upsampling(2), upsampling(8)

        def forward(self, x: Any) -> Any:
            def like(score: Any, other: Any) -> Any:
                return score[:, :, : other.shape[2], : other.shape[3]]

            pool3 = self.to_pool3(x)
            pool4 = self.to_pool4(pool3)
            score = self.upscore2(self.top(self.to_pool5(pool4)))
            skip4, skip3 = self.score_pool4(pool4), self.score_pool3(pool3)
            score = self.upscore_pool4(like(score, skip4) + skip4)
            return like(self.upscore8(like(score, skip3) + skip3), x)

    return Network()


def torch_resnet38(torch: Any, width: float) -> Any:
    """Return ResNet-38 (A1, stride 8) with the layers of ``symbols.resnet38``, in the same order."""
    nn = torch.nn

    def channels(count: int) -> int:
        return max(1, round(count * width))

    class Unit(nn.Module):
        def __init__(self, before: int, sizes: Any, stride: int, dilations: Any, rate: float) -> None:
            super().__init__()
            self.entry = nn.Sequential(nn.BatchNorm2d(before), nn.ReLU())
            after = sizes[-1][1]
            self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False) if stride > 1 or before != after else None
            layers: list[Any] = []
            for index, (kernel, count) in enumerate(sizes):
                if index:
                    layers += [nn.BatchNorm2d(before), nn.ReLU(inplace=True)]
                if rate and index == len(sizes) - 1:
                    layers.append(nn.Dropout(rate))
                spread = dilations[min(index, 1)] if kernel > 1 else 1
                step = stride if index == 0 else 1
                layers.append(nn.Conv2d(before, count, kernel, step, spread * (kernel // 2), spread, bias=False))
                before = count
            self.branch = nn.Sequential(*layers)

        def forward(self, x: Any) -> Any:
            active = self.entry(x)
            return self.branch(active) + (x if self.shortcut is None else self.shortcut(active))

    def units(count: int, before: int, sizes: Any, stride: int, dilations: Any, rate: float = 0.0) -> list[Any]:
        scaled = tuple((kernel, channels(size)) for kernel, size in sizes)
        first = Unit(before, scaled, stride, dilations, rate)
        return [first, *(Unit(scaled[-1][1], scaled, 1, dilations[1:] * 2, rate) for _ in range(count - 1))]

    c = {count: channels(count) for count in (64, 128, 256, 512, 1024, 2048, 4096)}
    return nn.Sequential(
        nn.Conv2d(3, c[64], 3, padding=1, bias=False),
        *units(3, c[64], ((3, 128), (3, 128)), 2, (1, 1)),
        *units(3, c[128], ((3, 256), (3, 256)), 2, (1, 1)),
        *units(6, c[256], ((3, 512), (3, 512)), 2, (1, 1)),
        *units(3, c[512], ((3, 512), (3, 1024)), 1, (1, 2)),
        *units(1, c[1024], ((1, 512), (3, 1024), (1, 2048)), 1, (2, 4), 0.3),
        *units(1, c[2048], ((1, 1024), (3, 2048), (1, 4096)), 1, (4, 4), 0.5),
        nn.BatchNorm2d(c[4096]),
        nn.ReLU(inplace=True),
        nn.Conv2d(c[4096], c[512], 3, padding=12, dilation=12),
        nn.ReLU(inplace=True),
        nn.Conv2d(c[512], CLASSES, 3, padding=12, dilation=12),
    )


def torch_network(spec: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """Return torch, the network of `spec` with random parameters, and where its input goes."""
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(0)
    network = {"fcn8s": torch_fcn8s, "resnet38": torch_resnet38}[spec["network"]](torch, spec["width"])
    layout = {"memory_format": torch.channels_last} if "channels last" in spec["form"] else {}
    return torch, network.to(**layout) if layout else network, layout


def torch_inference(spec: dict[str, Any]) -> Callable[[], None]:
    """Return one forward pass; in bfloat16 with parameters in bfloat16 too, which saves casting them."""
    torch, network, layout = torch_network(spec)
    dtype = torch.bfloat16 if spec["form"].startswith("bfloat16") else torch.float32
    network = network.eval().to(dtype)
    images = torch.randn(1, 3, *spec["size"]).to(dtype=dtype, **layout)

    def step() -> None:
        with torch.inference_mode():
            network(images)

    return step


def torch_training(spec: dict[str, Any]) -> Callable[[], None]:
    """Return one step of SGD with momentum, batch-norm statistics frozen as in MXNet."""
    torch, network, layout = torch_network(spec)
    network.train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=1e-4, momentum=0.9, weight_decay=5e-4)
    images = torch.randn(1, 3, *spec["size"]).to(**layout) if layout else torch.randn(1, 3, *spec["size"])
    labels = torch.randint(0, CLASSES, (1, *spec["size"]))
    labels[:, :8] = IGNORE
    mixed = spec["form"].startswith("bfloat16")

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            logits = network(images)
        stride = labels.shape[1] // logits.shape[2]
        wanted = labels[:, stride // 2 :: stride, stride // 2 :: stride]
        torch.nn.functional.cross_entropy(logits.float(), wanted, ignore_index=IGNORE).backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def torch_difference(spec: dict[str, Any]) -> dict[str, Any]:
    """Return how far the logits are from MXNet's with MXNet's parameters, as a share of the largest."""
    torch, network, _ = torch_network(spec)
    content = array("f", Path(spec["file"]).read_bytes())
    arrays = torch.tensor(content).split(spec["sizes"])
    own = [v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")]
    if [value.numel() for value in own] != spec["sizes"][:-2]:
        return {"difference": float("inf")}
    for value, flat in zip(own, arrays):
        value.copy_(flat.reshape(value.shape))
    with torch.inference_mode():
        logits = network.eval()(arrays[-2].reshape(1, 3, *spec["size"])).flatten()
    return {"difference": float((logits - arrays[-1]).abs().max() / arrays[-1].abs().max())}


# ------------------------------------------------------------------------------------------------------- in a process


def measure(make: Callable[[dict[str, Any]], Callable[[], None]], spec: dict[str, Any]) -> dict[str, float]:
    """Run one uncounted and ``spec["steps"]`` counted steps, but no further one behind ``spec["enough"]`` seconds."""
    step = make(spec)
    step()
    seconds: list[float] = []
    while len(seconds) < spec["steps"] and sum(seconds) <= spec["enough"]:
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds), "peak": peak_bytes()}


def worker(spec: dict[str, Any]) -> dict[str, Any]:
    """Do in this process what `spec` says."""
    steps = {
        ("mxnet", "inference"): mxnet_inference,
        ("mxnet", "training step"): mxnet_training,
        ("torch", "inference"): torch_inference,
        ("torch", "training step"): torch_training,
    }
    others = {("mxnet", "reference"): mxnet_reference, ("torch", "difference"): torch_difference}
    key = (spec["framework"], spec["task"])
    return others[key](spec) if key in others else measure(steps[key], spec)


def run(pythons: dict[str, str], spec: dict[str, Any]) -> dict[str, Any]:
    """Do what `spec` says in a new process of its framework's Python; what fails there costs no other."""
    environment = {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))), "PYTHONPATH": str(ROOT)}
    try:
        return printed(pythons[spec["framework"]], __file__, "--worker", json.dumps([spec]), **environment)
    except subprocess.CalledProcessError:
        return {"seconds": math.nan, "peak": math.nan, "difference": math.nan}


def unmeasured(task: str, found: dict[tuple[str, str, str], dict[str, Any]]) -> list[str]:
    """Return the names of the forms without seconds."""
    return [f"{task} of {title(*key)}" for key, one in found.items() if math.isnan(one["seconds"])]


def title(network: str, framework: str, form: str) -> str:
    """Return the name of a row."""
    return f"{TITLES[network]}, {FRAMEWORKS[framework]} {form}"


def rows(found: dict[tuple[str, str, str], dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return the rows of one task; ratios are against PyTorch's fastest of the same precision."""
    lines = []
    for (network, framework, form), one in found.items():
        precision = form.replace(",", "").split()[0]
        peers = [
            peer["seconds"] for key, peer in found.items()
            if key[:2] == (network, "torch") and key[2].startswith(precision) and peer["seconds"] > 0
        ]  # fmt: skip
        ratio = f"{min(peers) / one['seconds']:.2f}" if peers and framework == "mxnet" else ""
        lines.append((title(network, framework, form), f"{one['seconds']:.2f}", f"{one['peak'] / 1e9:.2f}", ratio))
    return lines


def differences(pythons: dict[str, str], networks: list[str]) -> str:
    """Say how far PyTorch's logits are from MXNet's with equal parameters.

    Raises
    ------
    SystemExit
        If they are so far that the network must be another one.
    """
    said = []
    for network in networks:
        with tempfile.NamedTemporaryFile() as file:
            spec = {"network": network, "form": "float32", "width": 0.125, "size": [64, 96], "file": file.name}
            written = run(pythons, {**spec, "framework": "mxnet", "task": "reference"})
            found = run(pythons, {**spec, **written, "framework": "torch", "task": "difference"})
        if not found["difference"] < 1e-4:
            raise SystemExit(f"{network}: PyTorch's network is another one: {found}")
        said.append(f"{TITLES[network]} {found['difference']:.1g}")
    return f" With equal parameters PyTorch's logits differ by at most {', '.join(said)} of the largest."


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_torch(parser)
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS, help="what to measure")
    parser.add_argument("--networks", nargs="+", default=list(TITLES), choices=list(TITLES))
    parser.add_argument("--large", nargs="*", default=["fcn8s"], choices=list(TITLES), help="those of the large image")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--inference-size", type=int, nargs=2, default=[512, 1024], metavar=("H", "W"))
    parser.add_argument("--training-size", type=int, nargs=2, default=[504, 504], metavar=("H", "W"))
    parser.add_argument("--large-size", type=int, nargs=2, default=[1024, 2048], metavar=("H", "W"))
    parser.add_argument("--repeats", type=int, default=1, help="processes per form, alternating")
    parser.add_argument("--steps", type=int, default=2, help="counted steps per process, but of the large image 1")
    parser.add_argument("--enough", type=float, default=10, help="seconds behind which no other step follows")
    parser.add_argument("--quick", action="store_true", help="width 0.125, small sizes, one step")
    parser.add_argument("--out", type=Path, help="put the tables between the markers of this file too")
    add_full(parser, enough=60, large=list(TITLES))
    options = given(parser, worker)
    if options is None:
        return
    if options.quick:
        options.width, options.repeats, options.steps = 0.125, 1, 1
        options.inference_size, options.training_size, options.large_size = [128, 256], [104, 104], [256, 512]
    pythons = {"mxnet": sys.executable}
    peer = find_torch(options)
    if peer:
        pythons["torch"] = peer
    bfloat16 = "bf16" in machine()
    head = ("", "seconds", "peak memory, GB", "speed against PyTorch")
    parts = [
        f"Width {options.width:g}, {CLASSES} classes, {machine('mxnet')}"
        f"{'; ' + packages(peer, 'torch') if peer else ''}; median of {options.repeats} processes with {options.steps} "
        f"steps (no other behind {options.enough:g} s, 1 of the large image); {asked()}."
        + (differences(pythons, options.networks) if peer else "")
    ]
    works = {
        "inference": ("inference", options.inference_size, INFERENCE, options.networks),
        "training": ("training step", options.training_size, TRAINING, options.networks),
        "large": ("inference", options.large_size, LARGE, [name for name in options.networks if name in options.large]),
    }
    failed: list[str] = []
    for task, size, forms, networks in (works[name] for name in TASKS if name in options.tasks):
        spec = {"task": task, "size": size, "width": options.width, "steps": options.steps}
        spec["enough"] = 0 if forms is LARGE else options.enough
        found = in_turns(
            {
                (network, framework, form): functools.partial(
                    run, pythons, {**spec, "framework": framework, "form": form, "network": network}
                )
                for network in networks
                for framework, form in forms
                if framework in pythons and (bfloat16 or not form.startswith("bfloat16"))
            },
            options.repeats,
        )
        failed += unmeasured(task, found)
        parts += [f"### {task.capitalize()}, one image of {size[0]} x {size[1]}", table(head, rows(found))]
    text = "\n\n".join(parts)
    print(text)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")
    if options.out:
        put(options.out, "networks", text)


if __name__ == "__main__":
    main()
