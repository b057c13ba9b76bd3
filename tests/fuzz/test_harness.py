"""The harness finds what it is for."""

from __future__ import annotations

import numpy as np
import pytest

from cbst_mx.errors import DataError
from tests.fuzz.harness import fuzz, mutated


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

    fuzz(read, [b"good"], count=50)


@pytest.mark.parametrize("error", [ValueError, KeyError, MemoryError, RecursionError, SystemExit, KeyboardInterrupt])
def test_others_are_not_and_the_input_is_shown(error):
    def read(content):
        if content != b"good":
            raise error("odd")

    with pytest.raises(AssertionError, match=r"input 0 of seed 0: b'"):
        fuzz(read, [b"good"], count=50, seed=0)


def test_a_good_input_must_be_read():
    def read(content):
        raise DataError("never")

    with pytest.raises(DataError, match="never"):
        fuzz(read, [b"good"], count=1)
