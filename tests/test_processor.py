"""Kernels of NumPy's products on processors that are newer than NumPy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cbst_mx import choose_blas_kernels

AVX2 = "sse sse2 avx avx2 fma"
AVX512 = f"{AVX2} avx512f avx512bw avx512cd avx512dq avx512vl"
INTEL, AMD = "GenuineIntel", "AuthenticAMD"

# Loads the library that NumPy loads, and says which kernels it has chosen.
LIBRARY = """
import cbst_mx, numpy, ctypes, json, pathlib
found = [*pathlib.Path(numpy.__file__).parents[1].glob("numpy.libs/libopenblas64*")]
library = ctypes.CDLL(str(found[0])) if found else None
name = getattr(library, "openblas_get_corename64_", None)
if name is not None:
    name.restype = ctypes.c_char_p
print(json.dumps(None if name is None else name().decode()))
"""


def chosen(tmp_path, vendor, family, model, flags, **options):
    cores = "processor\t: {}\nvendor_id\t: %s\ncpu family\t: %d\nmodel\t\t: %d\nmodel name\t: A: B\nflags\t\t: %s\n\n"
    text = cores % (vendor, family, model, flags)
    (tmp_path / "cpuinfo").write_text(text.format(0) + text.format(1))
    environment = dict(options.pop("environment", {}))
    choose_blas_kernels(environment, **{"modules": {}, "cpuinfo": tmp_path / "cpuinfo", **options})
    return environment.get("OPENBLAS_CORETYPE")


@pytest.mark.parametrize(
    ("vendor", "family", "model", "flags", "expected"),
    [
        (INTEL, 6, 207, AVX512, "SKYLAKEX"),  # Emerald Rapids
        (INTEL, 6, 173, AVX512, "SKYLAKEX"),  # Granite Rapids
        (INTEL, 6, 183, AVX2, "HASWELL"),  # Raptor Lake
        (AMD, 26, 68, AVX512, "SKYLAKEX"),  # Zen 5
        (INTEL, 6, 85, AVX512, None),  # Skylake, of a server: known
        (INTEL, 6, 143, AVX512, None),  # Sapphire Rapids
        (INTEL, 6, 60, AVX2, None),  # Haswell
        (AMD, 25, 17, AVX512, None),  # Zen 4
        (INTEL, 6, 207, "sse sse2 avx", None),  # a virtual machine that hides them
        ("SomebodyElse", 6, 207, AVX512, None),
    ],
)
def test_kernels_are_named_for_processors_that_are_not_known(tmp_path, vendor, family, model, flags, expected):
    assert chosen(tmp_path, vendor, family, model, flags) == expected


def test_what_the_user_says_and_what_is_loaded_stay(tmp_path):
    new = (INTEL, 6, 207, AVX512)
    assert chosen(tmp_path, *new, environment={"OPENBLAS_CORETYPE": "Zen"}) == "Zen"
    assert chosen(tmp_path, *new, modules={"numpy": object()}) is None
    assert chosen(tmp_path, *new, cpuinfo=tmp_path / "none") is None  # another system
    (tmp_path / "arm").write_text("processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd\n")
    assert chosen(tmp_path, *new, cpuinfo=tmp_path / "arm") is None


@pytest.mark.skipif(not Path("/proc/cpuinfo").is_file(), reason="the processor is described by Linux only")
def test_numpy_computes_with_all_that_this_processor_has():
    environment = {key: value for key, value in os.environ.items() if key != "OPENBLAS_CORETYPE"}
    done = subprocess.run([sys.executable, "-c", LIBRARY], env=environment, capture_output=True, text=True, check=True)
    name = json.loads(done.stdout)
    if name is None:
        pytest.skip("this NumPy has not the OpenBLAS of its wheels")
    flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split()
    old = ("Prescott", "Core2", "Nehalem", "Barcelona", "Sandybridge")
    assert "avx2" not in flags or name not in old
