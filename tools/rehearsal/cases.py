"""What is rehearsed: commands, the card they find, and how they must end."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any, Iterator, Mapping, NamedTuple

from tools.rehearsal.build import DRIVER, PYTHON, ROOT

__all__ = ["CASES", "Case", "rehearse", "start"]

# Settings of fake/settings.h, by short names.
_SETTINGS = {
    "gpus": "FAKE_CUDA_GPUS",
    "memory": "FAKE_CUDA_MEMORY_MB",
    "context": "FAKE_CUDA_CONTEXT_MB",
    "taken": "FAKE_CUDA_TAKEN_MB",
    "capability": "FAKE_CUDA_CAPABILITY",
    "driver": "FAKE_CUDA_DRIVER",
    "launch": "FAKE_CUDA_LAUNCH_ERROR",
    "load": "FAKE_CUDA_LOAD_ERROR",
    "cudnn": "FAKE_CUDNN_STATUS",
    "version": "FAKE_CUDNN_VERSION",
    "workspace": "FAKE_CUDNN_WORKSPACE_MB",
}
_MINUTES = 15  # after which a command is ended

# What makes an experiment small: what is left has every operator of the whole one.
_SMALL = (
    "augmentation.crop=[64,96]",
    "source_training.iterations=3",
    "source_training.batch_size=4",
    "source_training.checkpoint_every=2",
    "self_training.retraining.iterations=3",
    "self_training.retraining.batch_size=4",
    "self_training.target_per_batch=2",
    "self_training.rounds=2",
)
_FROZEN = ("network.options.batch_norm=frozen", "network.options.dropout=0.5")
_RESNET = ("network.name=resnet38", "network.options={width: 0.0625, batch_norm: frozen}")
_DONE = r"took .*; results in .*summary\.json"
_FULL = "the GPU has not enough memory: lower images_per_pass"
# What leaves of an experiment of the paper its network, crops, batches and sizes, on the larger scenes.
_PAPER = (
    *("source.root=large/gta5", "target.root=large/cityscapes", "validation.target.root=large/cityscapes"),
    *("pretrained=null", "self_training.rounds=1"),
    *("source_training.epochs=null", "source_training.iterations=2"),
    *("self_training.retraining.epochs=null", "self_training.retraining.iterations=2"),
)


class Case(NamedTuple):
    """A command, the card that it finds, and its end: exit code, and patterns that its output must have."""

    name: str
    command: str
    says: tuple[str, ...] = ()
    card: Mapping[str, int] = {}
    code: int = 0
    environment: Mapping[str, str] = {}
    driver: bool = True
    makes_nothing: str = ""  # a folder that must not be there afterwards
    on_gpu: bool = True  # kernels must have been started


def _run(
    name: str,
    *changes: str,
    ctx: str = "gpu:0",
    experiment: str = "demo",
    small: tuple[str, ...] = _SMALL,
    more: str = "",
) -> str:
    plain = " ".join(f"--set {shlex.quote(change)}" for change in (*small, *changes))
    sets = plain.replace("{", "{{").replace("}", "}}")
    return f"run experiments/{experiment}.yaml --out {{folder}}/{name} --ctx {ctx} --quiet {sets} {more}"


def _runs() -> Iterator[Case]:
    for method in ("st", "cbst", "cbst-sp"):
        yield Case(f"run of {method}", _run(method, f"self_training.method={method}"), (_DONE,))
    for capability in (50, 60, 61, 70, 75, 80, 89):
        where = f"sm-{capability}"
        name = "run on compute capability {}.{}".format(*str(capability))
        yield Case(name, _run(where, "self_training.rounds=1"), (_DONE,), {"capability": capability})
    yield Case("run with fusion, compiled by NVRTC", _run("fused"), (_DONE,), environment={"MXNET_USE_FUSION": "1"})
    yield Case("run on two GPUs", _run("two", ctx="gpu:0,1"), (_DONE, r"at most \d+, \d\d+ MiB"), {"gpus": 2})
    yield Case("run in float16", _run("half", *_FROZEN, more="--amp float16"), (_DONE,))
    both = _run("half-two", *_FROZEN, ctx="gpu:0,1", more="--amp float16")
    yield Case("run in float16 on two GPUs", both, (_DONE,), {"gpus": 2})
    yield Case("run of ResNet-38", _run("resnet", *_RESNET), (_DONE,))
    less = _run("less", *_RESNET, "images_per_pass=1", "gradient_checkpointing=true")
    yield Case("run in passes, with gradient checkpointing", less, (_DONE,))
    yield Case(
        "run with a warm-up", _run("warm", "warm_up.optimiser.iterations=3", experiment="demo-adversarial"), (_DONE,)
    )
    yield Case("run by the released rules", _run("released", "self_training.fidelity=released"), (_DONE,))
    scales = ("self_training.scales=[0.5,1]", "evaluation.scales=[0.75,1]", "evaluation.combine=max")
    yield Case("run with several scales", _run("scales", *scales), (_DONE,))
    sides = ("self_training.long_side=128", "self_training.upsampling=bicubic")
    yield Case("run with bicubic maps of another size", _run("sides", *sides), (_DONE,))
    yield Case("the same run again", _run("cbst", "self_training.method=cbst"), (_DONE,), on_gpu=False)
    yield Case("a run without labels", _run("bare", "validation={}"), (_DONE,))


def _demos() -> Iterator[Case]:
    demo = "demo --experiment tools/rehearsal/demo.yaml --out {folder}/demo --ctx gpu:0"
    says = ("CBST-SP", "seed 0, mIoU", r"took .*; results in .*results\.json", r"picture: .*comparison\.png")
    yield Case("demo", demo, says, {"memory": 8192})


def _small_cards() -> Iterator[Case]:
    """Yield the paper's crop, batch and sizes on a card of 8 GB: what `plan` chooses runs, more does not fit."""
    card = {"memory": 8192}
    chosen = ("4 crops at once do not fit into the GPU's memory, 2 do: --set images_per_pass=2", "GPU memory: about 5")
    yield Case("plan of gta5-cbst, 8 GB", "plan experiments/gta5-cbst.yaml --ctx gpu:0 --seconds 30", chosen, card)
    fits = _run("paper", "images_per_pass=2", experiment="gta5-cbst", small=_PAPER)
    yield Case("run of gta5-cbst as planned, 8 GB", fits, (_DONE, r"at most [4-7]\d\d\d MiB"), card)
    for name, changes in (("16", ()), ("4", ("images_per_pass=4",))):
        larger = _run(f"paper-{name}", *changes, experiment="gta5-cbst", small=_PAPER)
        title = f"run of gta5-cbst with {name} crops at once, 8 GB"
        yield Case(title, larger, (f"Error: {_FULL}",), card, code=1, on_gpu=False)


def _stages() -> Iterator[Case]:
    """Yield the eight evaluated stages of the paper on a card of 12 GB, which they fill where their networks stay."""
    settings = ("images_per_pass=4", "self_training.rounds=7")
    again = (*settings, "evaluation.combine=max", "evaluation.scales=[0.5,1]")  # every stage's network is loaded
    for title, changes in (("run of gta5-cbst with seven rounds", settings), ("its stages evaluated again", again)):
        command = _run("stages", *changes, experiment="gta5-cbst", small=_PAPER)
        yield Case(f"{title}, 12 GB", command, (_DONE,), {"memory": 12288})


def _others() -> Iterator[Case]:
    parameters = "{folder}/cbst/round-2/parameters.params"
    images = "--format cityscapes --root {data}/cityscapes --split val"
    yield Case("evaluate", f"evaluate --parameters {parameters} {images} --ctx gpu:0", ("mIoU",))
    several = f"evaluate --parameters {parameters} {images} --ctx gpu:0 --scales 0.5,1 --upsampling bicubic --tile 32"
    yield Case("evaluate with scales, in tiles", several, ("mIoU",))
    photographs = "{data}/cityscapes/leftImg8bit/val"
    predict = f"predict {photographs} --parameters {parameters} --out {{folder}}/predicted --ctx gpu:0"
    yield Case("predict", predict, ("predict",))
    yield Case("plan", "plan experiments/demo.yaml --ctx gpu:0 --seconds 5", ("time: about", "GPU memory: about"))
    paper = "plan experiments/gta5-cbst.yaml --ctx gpu:0 --seconds 30"
    says = (r"\d+ crops at once do not fit into the GPU's memory, \d do: --set images_per_pass=\d", "GPU memory: about")
    yield Case("plan of gta5-cbst, 12 GB", paper, says, {"memory": 12288})
    yield Case("plan of gta5-cbst, 24 GB", paper, says, {"memory": 24576})
    # 27,154 MiB with 16 crops and 17,015 with 8 images, by the table in docs/performance.md
    room = tuple(f"the GPU has memory for 16 {things} at once, not for 32" for things in ("crops", "images"))
    yield Case("plan of gta5-cbst, 48 GB", paper, room, {"memory": 49152})
    held = ("other programs hold the rest",)
    yield Case(
        "plan beside other programs", "plan experiments/demo.yaml --ctx gpu:0 --seconds 5", held, {"taken": 8192}
    )
    check = (
        r"operators +BAD +relative difference",
        r"gpu:0 +ok +fake card of a rehearsal, compute capability 8\.6, 2\d\.\d of its 25\.8 GB",
    )
    yield Case("gpu-check sees that kernels do nothing", "gpu-check", (*check, "not as they should be"), code=3)


def _errors() -> Iterator[Case]:
    def fails(name: str, says: str, **options: Any) -> Case:
        where = re.sub(r"\W+", "-", name)
        options["on_gpu"] = False  # such a process ends at once, and counts nothing
        return Case(name, _run(where, "self_training.rounds=1"), (f"Error: {says}",), code=1, **options)

    def refused(name: str, says: str, **options: Any) -> Case:
        return fails(name, says, makes_nothing=re.sub(r"\W+", "-", name), **options)

    unusable = "ctx gpu:0 cannot be used: GPU 0 has compute capability 9.0"
    yield refused("compute capability 9.0", unusable, card={"capability": 90})
    missing = "ctx gpu:0 is not available: this MXNet sees 0 GPUs: "
    yield refused("no GPU", f"{missing}none is visible", card={"gpus": 0})
    yield refused("driver too old", f"{missing}the driver supports CUDA 10.2, 11.2 is needed", card={"driver": 10020})
    absent = "mxnet-cu112 needs libcuda.so.1 of the NVIDIA driver, which is not on this machine"
    yield refused("no driver", absent, driver=False)
    held = r"ctx gpu:0 has 0\.0 of its 2\.1 GB of memory free"
    yield refused("memory held by others", held, card={"memory": 2048, "taken": 1597})
    yield fails("out of memory", _FULL, card={"memory": 490})
    yield fails("no kernel image", "mxnet-cu112 1.9.1 has no code for this GPU", card={"launch": 209})
    mixed = "ctx gpu:0 cannot be used: the parts of cuDNN that were loaded are of different versions"
    yield refused("parts of another cuDNN", mixed, card={"cudnn": 14})
    full = "ctx gpu:0 cannot be used: the GPU has not enough memory"
    yield refused("cuDNN without memory", full, card={"cudnn": 2})
    yield fails("wrong access to memory", "the GPU reported a wrong access", card={"launch": 700})
    yield fails("damaged memory", "the GPU's memory is damaged", card={"launch": 214})
    ptx = "the NVIDIA driver is older than the CUDA libraries: install driver 520"
    yield fails("fusion with a driver before 520", ptx, card={"load": 222}, environment={"MXNET_USE_FUSION": "1"})


CASES = (*_runs(), *_demos(), *_others(), *_small_cards(), *_stages(), *_errors())


def start(
    arguments: list[str], card: Mapping[str, int], *, data: Path, driver: bool = True, more: Mapping[str, str] = {}
) -> subprocess.CompletedProcess[str]:
    """Run ``python ARGUMENTS`` in the environment, with a card, and return what it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MXNET_", "FAKE_"))}
    environment.update({_SETTINGS[name]: str(value) for name, value in card.items()})
    environment.update(more, PYTHONPATH=str(ROOT), CBST_DATA=str(data), COLUMNS="400")
    environment["LD_LIBRARY_PATH"] = str(DRIVER) if driver else ""
    return subprocess.run(
        [str(PYTHON), *arguments],
        cwd=str(ROOT),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60 * _MINUTES,
    )


def rehearse(case: Case, *, data: Path, folder: Path) -> str | None:
    """Run a case; return what is wrong with how it ended, or None.

    Parameters
    ----------
    case : Case
        What to run.
    data : Path
        Generated street scenes.
    folder : Path
        Where runs go.
    """
    # without a driver there is no mxnet, for which anything could stand in
    program = ["-m", "tools.rehearsal.inside"] if case.driver else ["-c", "from cbst_mx.cli import main; main()"]
    arguments = shlex.split(case.command.format(data=data, folder=folder))
    done = start([*program, *arguments], case.card, data=data, driver=case.driver, more=case.environment)
    if "Traceback (most recent call last)" in done.stdout or done.returncode != case.code:
        return f"exit code {done.returncode} in place of {case.code}: {_tail(done.stdout)}"
    missing = [pattern for pattern in case.says if re.search(pattern, done.stdout) is None]
    if missing:
        return f"does not say {missing[0]!r}: {_tail(done.stdout)}"
    if case.on_gpu and re.search("rehearsal: [1-9][0-9]* kernels", done.stdout) is None:
        return f"started no kernel on the GPU: {_tail(done.stdout)}"
    if case.makes_nothing and (folder / case.makes_nothing).exists():
        return f"left {folder / case.makes_nothing}"
    return None


def _tail(text: str) -> str:
    return " / ".join(line.strip() for line in text.strip().splitlines()[-6:])
