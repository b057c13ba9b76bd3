"""The order in which test files begin when several run side by side."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

from tests.conftest import LONGEST, put_first


def test_files_that_take_long_are_there_and_begin_first():
    assert len(set(LONGEST)) == len(LONGEST)
    for name in LONGEST:
        assert (Path(__file__).parent / f"{name}.py").is_file(), name
    files = ["tests/test_architecture.py", f"tests/{LONGEST[1]}.py", "tests/test_kc.py", f"tests/{LONGEST[0]}.py"]
    queue = OrderedDict.fromkeys(files)
    put_first(queue)
    assert list(queue) == [files[3], files[1], files[0], files[2]]
