"""The public names of the package: each is there, each is documented, importing the package needs none of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import cbst_mx

ROOT = Path(__file__).resolve().parents[1]


def test_all_names_are_public_and_no_others():
    names = cbst_mx.__all__
    assert sorted(names) == names
    assert len(set(names)) == len(names)
    for name in names:
        assert getattr(cbst_mx, name).__doc__.strip()
    namespace = {}
    exec("from cbst_mx import *", namespace)
    assert set(namespace) - {"__builtins__"} == set(names)
    with pytest.raises(AttributeError, match="module 'cbst_mx' has no attribute 'run_everything'"):
        cbst_mx.run_everything  # noqa: B018


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, cbst_mx; print(sorted({'mxnet', 'numpy', 'cv2', 'pydantic'} & set(sys.modules)), dir(cbst_mx))"
    done = subprocess.run([sys.executable, "-c", code], cwd=str(ROOT), capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("[] "), done.stderr
    assert all(f"'{name}'" in done.stdout for name in cbst_mx.__all__)


def test_a_selftrain_module_is_the_door_to_arrays():
    from cbst_mx import selftrain

    assert cbst_mx.selftrain is selftrain
    assert {"thresholds", "pseudo_labels", "confidence", "Thresholds"} <= set(selftrain.__all__)
    assert all(callable(getattr(selftrain, name)) for name in selftrain.__all__)
