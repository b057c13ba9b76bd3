"""Measure time and peak memory of FCN8s-VGG16 and ResNet-38 on this CPU, beside the same networks in PyTorch.

Inference, a training step and large images; MXNet and PyTorch are measured in the same run and alternate.

    python tools/bench/networks.py --torch-python PATH        # a Python that has torch
    python tools/bench/networks.py --install-torch            # makes a virtual environment with torch first
    python tools/bench/networks.py --quick                    # small widths and sizes: does everything run?

Every measurement is a process of its own: first a step that is not counted (memory is allocated, kernels are chosen),
then the counted ones. Seconds are the median over the counted steps of all repeats; memory is the largest resident size
of the process, parameters and the framework itself included. Prints Markdown; `--out docs/benchmarks.md` also puts it
between that file's two markers. At the published widths the whole takes over an hour on two cores; nothing else should
run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from pathlib import Path
from typing import Any, Callable

from measuring import add_torch, find_torch, given, machine, packages, put, versions

ROOT = Path(__file__).resolve().parents[2]
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

    network, loss_of, rng = mxnet_network(spec), BatchLoss(), np.random.default_rng(0)
    settings = {"learning_rate": 1e-4, "momentum": 0.9, "wd": 5e-4}
    trainer = new_trainer(network.collect_params(), settings)
    images = mx.nd.random.normal(shape=(1, 3, *spec["size"]))
    labels = rng.integers(0, CLASSES, (1, *spec["size"])).astype(np.float32)
    labels[:, :8] = IGNORE

    def step() -> None:
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


def measure(make: Callable[[dict[str, Any]], Callable[[], None]], spec: dict[str, Any]) -> dict[str, Any]:
    """Run one uncounted and ``spec["steps"]`` counted steps."""
    step = make(spec)
    step()
    seconds = []
    for _ in range(spec["steps"]):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


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


def run(pythons: dict[str, str], spec: dict[str, Any]) -> dict[str, Any] | None:
    """Do what `spec` says in a new process of its framework's Python; None when that process fails."""
    script, work = str(Path(__file__).resolve()), json.dumps([spec])
    command = [pythons[spec["framework"]], "-W", "ignore", script, "--worker", work]
    environment = {**os.environ, "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
    done = subprocess.run(command, cwd=str(ROOT), env=environment, capture_output=True, text=True)
    if done.returncode:
        print(f"failed: {spec}\n{done.stderr[-2000:]}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


# -------------------------------------------------------------------------------------------------------- the table


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows of one task as Markdown; ratios are against PyTorch's fastest of the same precision."""
    lines = [
        "| network | framework, form | seconds | peak memory, GB | speed against PyTorch |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        precision = row["form"].replace(",", "").split()[0]
        peers = [
            r["median"] for r in rows
            if r["framework"] == "torch" and r["network"] == row["network"] and r["form"].startswith(precision)
            and r["seconds"]
        ]  # fmt: skip
        ratio = f"{min(peers) / row['median']:.2f}" if peers and row["framework"] == "mxnet" else ""
        framework = {"mxnet": "MXNet", "torch": "PyTorch"}[row["framework"]]
        cells = (
            row["network"],
            f"{framework} {row['form']}",
            f"{row['median']:.2f}" if row["seconds"] else "failed",
            f"{row['peak'] / 1e9:.2f}",
            ratio,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_torch(parser)
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS, help="what to measure")
    parser.add_argument("--networks", nargs="+", default=["fcn8s", "resnet38"], choices=["fcn8s", "resnet38"])
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--inference-size", type=int, nargs=2, default=[512, 1024], metavar=("H", "W"))
    parser.add_argument("--training-size", type=int, nargs=2, default=[504, 504], metavar=("H", "W"))
    parser.add_argument("--large-size", type=int, nargs=2, default=[1024, 2048], metavar=("H", "W"))
    parser.add_argument("--repeats", type=int, default=2, help="processes per form, alternating")
    parser.add_argument("--steps", type=int, default=3, help="counted steps per process")
    parser.add_argument("--quick", action="store_true", help="width 0.125, small sizes, one step")
    parser.add_argument("--out", type=Path, help="put the tables between the markers of this file too")
    sys.path.insert(0, str(ROOT))
    options = given(parser, worker)
    if options is None:
        return
    if options.quick:
        options.width, options.repeats, options.steps = 0.125, 1, 1
        options.inference_size, options.training_size, options.large_size = [128, 256], [104, 104], [256, 512]
    pythons = {"mxnet": sys.executable}
    torch_python = find_torch(options)
    if torch_python:
        pythons["torch"] = torch_python

    differences = []
    if "torch" in pythons:
        for network in options.networks:
            with tempfile.NamedTemporaryFile() as file:
                spec = {"network": network, "form": "float32", "width": 0.125, "size": [64, 96], "file": file.name}
                written = run(pythons, {**spec, "framework": "mxnet", "task": "reference"}) or {}
                found = run(pythons, {**spec, **written, "framework": "torch", "task": "difference"}) or {}
            if not found.get("difference", 1.0) < 1e-4:
                raise SystemExit(f"{network}: PyTorch's network is another one: {found}")
            differences.append(f"{network} {found['difference']:.1g}")

    bfloat16 = "avx512_bf16" in Path("/proc/cpuinfo").read_text()
    parts = []
    works = {
        "inference": ("inference", options.inference_size, INFERENCE, options.steps),
        "training": ("training step", options.training_size, TRAINING, options.steps),
        "large": ("inference", options.large_size, LARGE, 1),
    }
    for task, size, forms, steps in (works[name] for name in TASKS if name in options.tasks):
        rows = []
        for network in options.networks:
            chosen = [
                {"framework": framework, "form": form, "network": network, "task": task, "size": size,
                 "width": options.width, "steps": steps, "seconds": [], "peak": 0}
                for framework, form in forms
                if framework in pythons and (bfloat16 or not form.startswith("bfloat16"))
            ]  # fmt: skip
            for _ in range(options.repeats):
                for row in chosen:
                    result = run(pythons, row)
                    if result is None:
                        continue
                    row["seconds"] += result["seconds"]
                    row["peak"] = max(row["peak"], result["peak"])
                    line = " ".join(f"{seconds:.2f}" for seconds in result["seconds"])
                    print(f"{task} {size} {network} {row['framework']} {row['form']}: {line}", file=sys.stderr)
            for row in chosen:
                row["median"] = statistics.median(row["seconds"] or [float("nan")])
            rows += chosen
        parts.append(f"### {task.capitalize()}, one image of {size[0]} x {size[1]}\n\n{table(rows)}\n")
    peer = f"; {packages(torch_python, 'torch')}" if torch_python else ""
    head = (
        f"Width {options.width:g}, {CLASSES} classes, {machine()}, {versions('mxnet')}{peer}; "
        f"median of {options.repeats} x {options.steps} steps ({options.repeats} x 1 for the large image), "
        f"{time.strftime('%Y-%m-%d')}."
    )
    if differences:
        head += f" With equal parameters PyTorch's logits differ by at most {', '.join(differences)} of the largest."
    text = "\n".join([head, "", *parts])
    print(text)
    if options.out:
        put(options.out, "networks", text)


if __name__ == "__main__":
    main()
