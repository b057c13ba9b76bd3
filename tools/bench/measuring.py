"""Run the benchmarks one after the other; and what they share: seconds, the machine in words, tables in pages.

python tools/bench/measuring.py [--only rounds images] [--full] [--write] [--torch-python PATH] [options of benchmarks]

It is what ``make bench`` calls. Before each benchmark it says about how many minutes that takes, at the end what each
took. PyTorch, the peer of some, is installed into an environment of its own, unless there is a Python that has it. A
benchmark that fails stops no other. ``--full`` takes the larger sizes and numbers of repeats of those that have such,
``--write`` puts tables into the pages of docs, that of networks with ``--full`` alone. All other options go to each
benchmark.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any, Callable, Iterable, NamedTuple, Sequence

import numpy as np

__all__ = [
    "TITLES",
    "add_full",
    "add_torch",
    "asked",
    "cpu_seconds",
    "find_torch",
    "given",
    "in_a_process",
    "in_turns",
    "instructions",
    "interleaved",
    "kernel",
    "machine",
    "packages",
    "peak_bytes",
    "photograph",
    "printed",
    "put",
    "stage_seconds",
    "table",
]

ROOT = Path(__file__).resolve().parents[2]
TITLES = {"fcn8s": "FCN8s", "resnet38": "ResNet-38"}
BEGIN, END = "<!-- {}: begin -->", "<!-- {}: end -->"
TORCH = {"torch": "2.14.1", "torchvision": "0.29.1"}  # the peers, one made for the other
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"  # without CUDA a tenth of the size; where it is not there, PyPI's


def cpu_seconds(work: Callable[[], Any], repeats: int = 1) -> float:
    """Return the median of the seconds that all processors together spend on `work`; children do not count."""
    spent = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        spent.append(time.process_time() - start)
    return statistics.median(spent)


def interleaved(works: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Return the median processor seconds of several works that take turns, so that a busy machine meets all alike."""
    spent: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            spent[name].append(cpu_seconds(work))
    return {name: statistics.median(times) for name, times in spent.items()}


def in_a_process(script: str, *arguments: object) -> dict[str, float]:
    """Return what a benchmark prints as JSON when it is run with ``--worker`` and a list of arguments."""
    return printed(sys.executable, script, "--worker", json.dumps([str(one) for one in arguments]))


def in_turns(works: dict[Any, Callable[[], dict[str, Any]]], repeats: int) -> dict[Any, dict[str, Any]]:
    """Return what processes that take turns find: medians of numbers, and what else they say as a set, "found"."""
    found: dict[Any, list[dict[str, Any]]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            found[name].append(work())
            print(name, found[name][-1], file=sys.stderr)
    merged: dict[Any, dict[str, Any]] = {}
    for name, several in found.items():
        merged[name] = {key: statistics.median(one[key] for one in several) for key in several[0] if key != "found"}
        merged[name]["found"] = {one.get("found") for one in several}
    return merged


def printed(python: str, script: str | Path, *arguments: object, **environment: str) -> Any:
    """Return what a script prints as JSON at its end, run by a Python with further variables of the environment."""
    command = [python, "-W", "ignore", str(script), *map(str, arguments)]
    done = subprocess.run(command, env=_environment(**environment), check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout.splitlines()[-1])


def _environment(**variables: str) -> dict[str, str]:
    """Return the environment of this process and more variables, with kernels of NumPy's products as the program has.

    Older commits and PyTorch's side get them as well.
    """
    from cbst_mx import choose_blas_kernels  # not where PyTorch is

    environment = {**os.environ, **variables}
    choose_blas_kernels(environment, modules={})
    return environment


def given(parser: argparse.ArgumentParser, worker: Callable[..., Any]) -> argparse.Namespace | None:
    """Return the options of a benchmark; None in a process of :func:`in_a_process`, behind what `worker` does."""
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is None:
        return options
    print(json.dumps(worker(*options.worker)))
    return None


def add_full(parser: argparse.ArgumentParser, **larger: Any) -> None:
    """Add ``--full``, with which options that are not given are those that are named here."""
    said = ", ".join(f"{name.replace('_', '-')} {value}" for name, value in larger.items())
    parser.add_argument("--full", action="store_true", help=f"the long way: {said}")
    if "--full" in sys.argv[1:]:
        parser.set_defaults(**larger)


def asked() -> str:
    """Return a table's command and its day: the options, but the page and PyTorch's place, and of paths their names."""
    words, rest = [Path(sys.argv[0]).name], iter(sys.argv[1:])
    for word in rest:
        if word in ("--out", "--torch-python"):
            next(rest)
        elif word != "--install-torch":
            words.append(Path(word).name)
    return f"`{' '.join(words)}`, {time.strftime('%Y-%m-%d')}"


def add_torch(parser: argparse.ArgumentParser) -> None:
    """Add the options for :func:`find_torch`."""
    parser.add_argument("--torch-python", metavar="PATH", help="a Python with torch, torchvision, numpy and Pillow")
    pinned = " and ".join(f"{name} {version}" for name, version in TORCH.items())
    parser.add_argument("--install-torch", action="store_true", help=f"make an environment with {pinned}, once")


def find_torch(options: argparse.Namespace) -> str | None:
    """Return the Python of the peers that the options of :func:`add_torch` say, None where they say none.

    Raises
    ------
    SystemExit
        If it has no torch, or cannot be made.
    """
    if options.torch_python:
        python = options.torch_python
    elif options.install_torch:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cbst_mx"
        folder = cache / f"torch-{TORCH['torch']}-python-{platform.python_version()}"
        python = str(folder / "bin" / "python")
        if not (folder / "made").exists():
            pins = [f"{name}=={version}" for name, version in TORCH.items()]
            pip = [python, "-m", "pip", "install", "-q", "--retries", "1", "--extra-index-url", CPU_WHEELS]
            try:
                subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
                subprocess.run([*pip, *pins, "numpy", "Pillow"], check=True)
            except subprocess.CalledProcessError as error:
                raise SystemExit(f"{' and '.join(pins)} cannot be installed: give --torch-python PATH") from error
            (folder / "made").touch()
    else:
        print("PyTorch is not measured: give --torch-python PATH or --install-torch", file=sys.stderr)
        return None
    print(f"{packages(python, 'torch')} in {python}", file=sys.stderr)
    return python


def packages(python: str, *names: str) -> str:
    """Return the versions of packages in another Python.

    Raises
    ------
    SystemExit
        If it has not got one.
    """
    code = "import sys; from importlib.metadata import version; print(*(f'{n} {version(n)}' for n in sys.argv[1:]), "
    done = subprocess.run([python, "-c", code + "sep=', ')", *names], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{python} must have {', '.join(names)}")
    return done.stdout.strip()


def stage_seconds(works: dict[str, Callable[[], dict[str, Any]]]) -> dict[str, Any]:
    """Do the stages of some work; return the seconds of each, by the clock and of the processor, and what they found.

    Seconds of the processor are those of this process and of its children that have ended.
    """

    def spent() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(one.ru_utime + one.ru_stime for one in used)

    result: dict[str, Any] = {"wall": {}, "cpu": {}}
    for name, work in works.items():
        wall, cpu = time.perf_counter(), spent()
        result.update(work())
        gc.collect()  # ends what a stage has left
        result["wall"][name], result["cpu"][name] = time.perf_counter() - wall, spent() - cpu
    return result


def kernel() -> None:
    """Do the fixed work whose time says how fast the machine is just now."""
    values = np.sin(np.arange(1 << 19, dtype=np.float32))
    np.sort(values)
    (values * np.cos(values)).sum()
    np.bincount((values * 100 + 100).astype(np.uint8), minlength=256)


def peak_bytes() -> int:
    """Return the largest resident size that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def instructions() -> str:
    """Name the kinds of vector instructions that decide how fast networks are on this processor."""
    text = Path("/proc/cpuinfo").read_text()
    flags = next((line.split(":")[1].split() for line in text.splitlines() if line.startswith("flags")), [])
    kinds = [
        name
        for flag, name in (("avx2", "AVX2"), ("avx512f", "AVX-512"), ("avx512_bf16", "bf16"), ("amx_tile", "AMX"))
        if flag in flags
    ]
    return ", ".join(kinds) or platform.machine()


def machine(*names: str) -> str:
    """Describe the processor in words, and with names Python's version and those of packages that are installed."""
    found = [f"Python {platform.python_version()}"]
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    processor = f"{len(os.sched_getaffinity(0))} cores, {instructions()}"
    return f"{processor}; {', '.join(found)}" if names else processor


def photograph(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Return a picture, uint8 (H, W, 3), whose PNG is as large as that of a photograph: smooth, with sensor noise."""
    import cv2

    rng = np.random.default_rng(seed)
    cells = rng.integers(0, 256, (-(-size[0] // 16), -(-size[1] // 16), 3)).astype(np.uint8)
    smooth = cv2.GaussianBlur(cells.repeat(16, axis=0).repeat(16, axis=1)[: size[0], : size[1]], (0, 0), 6)
    return np.clip(smooth + rng.normal(0, 1, smooth.shape), 0, 255).astype(np.uint8)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table whose columns but the first are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def put(page: Path, name: str, text: str) -> None:
    """Put text between the two markers of a page.

    Raises
    ------
    SystemExit
        If the page has no such markers.
    """
    begin, end = BEGIN.format(name), END.format(name)
    before, there, rest = page.read_text("utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not there or not closed:
        raise SystemExit(f"{page} must have the lines {begin} and {end}")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}", "utf-8")


# --------------------------------------------------------------------------------------------------------- all of them


class Bench(NamedTuple):
    """About how many minutes a benchmark takes on two cores, with --full too where it has that, and where it writes."""

    minutes: float
    full: float | None = None
    page: str = ""
    torch: bool = False  # beside PyTorch
    whole: bool = False  # writes with --full alone, since its page speaks of all sizes


# Scripts with options; the quick ones first.
BENCHES = {
    "street_scenes": Bench(0.2),
    "regressions": Bench(0.3),
    "resampling --drafts": Bench(0.5),
    "resampling": Bench(1),
    "cluster": Bench(1, 3),
    "cluster --training": Bench(1.5, 4),
    "growth": Bench(1, 2.5, page="docs/performance.md"),
    "pipeline": Bench(1.5, page="docs/performance.md"),
    "selection": Bench(3, page="docs/benchmarks-selection.md"),
    "images": Bench(3, page="docs/performance.md", torch=True),
    "inference": Bench(6, 23, page="docs/performance.md"),
    "rounds": Bench(5.5, 10, page="docs/performance.md", torch=True),
    "networks": Bench(15, 27, page="docs/benchmarks.md", torch=True, whole=True),
}


def order(name: str, options: argparse.Namespace, rest: Sequence[str]) -> list[str]:
    """Return the script of a benchmark and its options."""
    bench, (script, *given) = BENCHES[name], name.split()
    if bench.full and options.full:
        given.append("--full")
    if bench.torch:
        given += ["--torch-python", options.torch_python] if options.torch_python else ["--install-torch"]
    if bench.page and options.write and (options.full or not bench.whole):
        given += ["--out", bench.page]
    return [f"tools/bench/{script}.py", *given, *rest]


def minutes(name: str, options: argparse.Namespace) -> float:
    """Return how long a benchmark takes."""
    bench = BENCHES[name]
    return bench.full if bench.full and options.full else bench.minutes


def main() -> None:
    """Run them and say what they took.

    Raises
    ------
    SystemExit
        If one failed.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    scripts = sorted({name.split()[0] for name in BENCHES})
    parser.add_argument("--only", nargs="+", choices=scripts, default=scripts, help="which benchmarks")
    parser.add_argument("--full", action="store_true", help="the larger sizes and numbers of repeats")
    parser.add_argument("--write", action="store_true", help="put the tables into the pages of docs")
    parser.add_argument("--torch-python", metavar="PATH", help="a Python with torch, torchvision, numpy and Pillow")
    options, rest = parser.parse_known_args()
    chosen = [name for name in BENCHES if name.split()[0] in options.only]
    total = math.ceil(sum(minutes(name, options) for name in chosen))
    peer = any(BENCHES[name].torch for name in chosen) and not options.torch_python
    more = ", 1 more where PyTorch is installed first" if peer else ""
    print(f"about {total} minutes on 2 cores that do nothing else{more}")
    print(f"here: {machine()}; load {os.getloadavg()[0]:.1f}")
    lines, failed = [], []
    for name in chosen:
        command = order(name, options, rest)
        print(f"\n{' '.join(command)}: about {minutes(name, options):g} minutes", flush=True)
        begin = time.monotonic()
        code = subprocess.call([sys.executable, *command], cwd=str(ROOT), env=_environment())
        failed += [name] if code else []
        lines.append((name, f"{time.monotonic() - begin:.0f}", "failed" if code else "ok"))
    print(f"\n{table(('benchmark', 'seconds', ''), lines)}", flush=True)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
