"""The harness finds what it is for."""

from __future__ import annotations

import re
import time
from pathlib import Path

import numpy as np
import pytest

from cbst_mx.errors import DataError
from tests.fuzz import harness
from tests.fuzz.harness import COUNT, LONG, fuzz, limited, mutated
from tests.fuzz.limits import BOUNDS


@pytest.fixture(autouse=True)
def own_record(monkeypatch):
    """Keep these inputs out of the table of what readers have cost."""
    monkeypatch.setattr(harness, "SEEN", {})


def test_mutations_are_many_and_repeat():
    def inputs(seed):
        rng = np.random.default_rng(seed)
        return [mutated(b"a: [1, 2, 3]\n", rng, [b"!!int"]) for _ in range(200)]

    assert inputs(0) == inputs(0) != inputs(1)
    assert len(set(inputs(0))) > 150
    assert any(b"!!int" in content for content in inputs(0))


def test_own_errors_are_accepted():
    def read(content):
        if content != b"good":
            raise DataError("not good")

    fuzz("lists", read, [b"good"], count=50)


@pytest.mark.parametrize("error", [ValueError, KeyError, MemoryError, RecursionError, SystemExit, KeyboardInterrupt])
def test_others_are_not_and_the_input_is_shown(error):
    def read(content):
        if content != b"good":
            raise error("odd")

    with pytest.raises(AssertionError, match=r"input 0 of seed 0: b'"):
        fuzz("lists", read, [b"good"], count=50, seed=0)


def test_a_good_input_must_be_read():
    def read(content):
        raise DataError("never")

    with pytest.raises(DataError, match="never"):
        fuzz("lists", read, [b"good"], count=1)


def test_what_takes_too_much_memory_is_found():
    def read(content):
        if content != b"good":
            np.ones(400 << 20, np.uint8)

    with pytest.raises(AssertionError, match=r"lists: \d+ bytes take 4\d\d MB, \d+ MB are allowed"):
        fuzz("lists", read, [b"good"], count=5)


def test_what_does_not_end_is_found():
    def endless():
        with limited("lists", 0, seconds=0.2):
            while True:
                try:
                    time.sleep(10)
                except Exception:  # as readers have it
                    continue

    with pytest.raises(AssertionError, match="it takes more than 0.2 s"):
        endless()


def test_the_number_of_inputs_is_what_is_promised():
    if not LONG:
        assert COUNT == 40
    folder = Path(__file__).parent
    targets = sum(len(re.findall(r"^    +fuzz\w*\(", path.read_text(), re.M)) for path in folder.glob("test_[!h]*.py"))
    assert COUNT * targets >= 1000


def test_every_kind_has_a_target():
    text = "".join(path.read_text() for path in Path(__file__).parent.glob("test_[!h]*.py"))
    assert [kind for kind in BOUNDS if f'"{kind}"' not in text] == []
