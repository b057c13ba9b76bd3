"""The environment of the rehearsal, and the fake libraries in it.

Each library gets the symbols that libmxnet.so asks of it, with their versions: those that the C sources define, and for
all others a function that does nothing and returns 0, which is success in every one of these libraries.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Iterable, NamedTuple

__all__ = ["DRIVER", "HOME", "PYTHON", "ROOT", "BuildError", "build", "missing_tools", "site_packages"]

ROOT = Path(__file__).resolve().parents[2]
SOURCES = Path(__file__).parent / "fake"
HOME = ROOT / ".rehearsal"
PYTHON = HOME / "bin" / "python"
DRIVER = HOME / "driver"  # has libcuda.so.1, which a real driver puts on the loader's path
TOOLS = ("gcc", "nm")


class BuildError(Exception):
    """The environment or a library cannot be made; the message is one sentence."""


class Library(NamedTuple):
    """A library of CUDA: its file, the symbols that are its own, and the sources that define some of them."""

    file: str
    symbols: str  # pattern of their names
    sources: tuple[str, ...] = ()
    folder: str = ""  # below nvidia/ in site-packages, as NVIDIA's wheels have it


LIBRARIES = (
    Library("libcuda.so.1", "cu[A-Z]", ("driver.c",)),
    Library("libcudart.so.11.0", "cuda|__cuda", ("runtime.c",), "cuda_runtime"),
    Library("libcudnn.so.8", "cudnn", ("cudnn.c",), "cudnn"),
    Library("libcublas.so.11", "cublas", ("handles.c",), "cublas"),
    Library("libcurand.so.10", "curand", ("handles.c",), "curand"),
    Library("libcusolver.so.11", "cusolver", ("handles.c",), "cusolver"),
    Library("libcufft.so.10", "cufft", (), "cufft"),
    Library("libnccl.so.2", "nccl", (), "nccl"),
    Library("libnvToolsExt.so.1", "nvtx", (), "nvtx"),
)
# For the rehearsal itself and for the program, which asks the driver.
EXTRA = {
    "libcudart.so.11.0": ("fake_used", "fake_peak", "fake_reset_peaks", "fake_launches"),
    "libcuda.so.1": (
        *("cuInit", "cuDriverGetVersion", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName"),
        "cuDeviceGetAttribute",
    ),
}


def missing_tools() -> str | None:
    """Return a sentence that names what of the compiler is not here; None where all is."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if not missing:
        return None
    return f"the rehearsal compiles C and needs {' and '.join(missing)}: on Debian and Ubuntu apt-get install gcc"


def build() -> None:
    """Make the environment where it is not there yet, and all libraries.

    Raises
    ------
    BuildError
        If a tool or a symbol is missing, or pip or the compiler fails.
    """
    if (sentence := missing_tools()) is not None:
        raise BuildError(sentence)
    required, cuda = _pins()
    mxnet, nvrtc, headers = (_pin(cuda, name) for name in ("mxnet-cu112", "nvidia-cuda-nvrtc", "nvidia-cuda-runtime"))
    _make_environment([*required, mxnet, nvrtc], headers)
    asked = _symbols(site_packages() / "mxnet" / "libmxnet.so")
    folder = HOME / "objects"
    folder.mkdir(exist_ok=True)
    for library in LIBRARIES:
        target = site_packages() / "nvidia" / library.folder / "lib" if library.folder else DRIVER
        target.mkdir(parents=True, exist_ok=True)
        own = {name: version for name, version in asked.items() if re.match(library.symbols, name)}
        if not own:
            raise BuildError(f"libmxnet.so asks nothing of {library.file}: it is not the one of mxnet-cu112")
        _link(library, own, folder, target / library.file)


def site_packages() -> Path:
    """Return where the environment's packages are."""
    return next(HOME.glob("lib/python3.*/site-packages"))


def _pins() -> tuple[list[str], list[str]]:
    """Return what setup.py requires of every installation, and for GPUs."""
    tree = ast.parse((ROOT / "setup.py").read_text("utf-8"))
    values = {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    required, cuda = (ast.literal_eval(values[name]) for name in ("REQUIRED", "CU112"))
    return required, cuda


def _pin(pins: Iterable[str], name: str) -> str:
    return next(pin for pin in pins if pin.startswith(name))


def _make_environment(pins: list[str], headers: str) -> None:
    """Install `pins` into a new environment, and unpack CUDA's headers beside it, where that is not done."""
    stamp, made_of = HOME / "installed", hashlib.sha256("\n".join([sys.version, *pins, headers]).encode()).hexdigest()
    if stamp.is_file() and stamp.read_text() == made_of:
        return
    print("making .rehearsal: about 800 MB to download, 1.7 GB on the disk", flush=True)
    _run([sys.executable, "-m", "venv", "--clear", str(HOME)])
    _run([str(PYTHON), "-m", "pip", "install", "-q", "pip>=21.3"])
    _run([str(PYTHON), "-m", "pip", "install", "-q", *pins])
    _run([str(PYTHON), "tools/environment.py", "repair"])
    wheels = HOME / "wheels"
    _run([str(PYTHON), "-m", "pip", "download", "-q", "--no-deps", "-d", str(wheels), headers])
    for wheel in wheels.iterdir():
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(HOME / "headers", [name for name in archive.namelist() if "/include/" in name])
    shutil.rmtree(wheels)
    stamp.write_text(made_of)


def _symbols(library: Path) -> dict[str, str]:
    """Return the symbols that a library asks of others, each with the version that it asks for, or an empty one."""
    table = _run(["nm", "-D", "--undefined-only", str(library)])
    names = (line.split()[-1].partition("@") for line in table.splitlines())
    return {name: version.lstrip("@") for name, _, version in names}


def _link(library: Library, asked: dict[str, str], folder: Path, target: Path) -> None:
    """Compile and link one library with the symbols `asked` of it."""
    headers = HOME / "headers" / "nvidia" / "cuda_runtime" / "include"
    flags = ["-O1", "-Wall", "-Werror", "-fPIC", "-isystem", str(SOURCES), "-isystem", str(headers)]
    objects = []
    for source in library.sources:
        objects.append(folder / f"{library.file}.{source}.o")
        _run(["gcc", *flags, "-c", str(SOURCES / source), "-o", str(objects[-1])])
    table = _run(["nm", "--defined-only", "-g", *map(str, objects)]) if objects else ""
    defined = {line.split()[-1] for line in table.splitlines() if len(line.split()) == 3}
    exported = [*sorted(asked), *(name for name in EXTRA.get(library.file, ()) if name not in asked)]
    if absent := set(exported) - set(asked) - defined:
        raise BuildError(f"no source of {library.file} defines {', '.join(sorted(absent))}")
    nothing = folder / f"{library.file}.rest.c"
    nothing.write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in exported if name not in defined))
    versions = set(asked.values())
    script = folder / f"{library.file}.map"
    script.write_text(f"{max(versions)} {{ global: {'; '.join(exported)}; local: *; }};\n")
    linked = ["gcc", *flags, "-shared", f"-Wl,-soname,{library.file}", f"-Wl,--version-script={script}"]
    _run([*linked, *map(str, objects), str(nothing), "-o", str(target), "-lpthread"])


def _run(command: list[str]) -> str:
    """Run a command and return what it prints.

    Raises
    ------
    BuildError
        If it fails.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LD_LIBRARY_PATH": str(DRIVER)}
    done = subprocess.run(command, cwd=str(ROOT), env=environment, capture_output=True)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise BuildError(f"{' '.join(command[:4])} ... failed: {' '.join(said) or done.returncode}")
    return done.stdout.decode()
