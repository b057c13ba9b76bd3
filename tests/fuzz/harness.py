"""Mutated inputs against a reader: it must read them or refuse them with an error of ours.

A target is a test that calls `fuzz` with good inputs and a function that reads bytes::

    def test_lists(tmp_path):
        path = tmp_path / "list.txt"

        def read(content: bytes) -> None:
            path.write_bytes(content)
            read_list(path)

        fuzz(read, [b"a.png\\nb.png\\n"])

Seeds are fixed: the same inputs each time. The number of inputs of each target is 1,000, or CBST_FUZZ (``make fuzz``),
in which case every run takes seeds of its own from CBST_FUZZ_SEED.
"""

from __future__ import annotations

import os
import time
import traceback
from typing import Callable, Sequence

import numpy as np

from cbst_mx.errors import CBSTError

__all__ = ["COUNT", "fuzz", "mutated"]

COUNT = int(os.environ.get("CBST_FUZZ", 1000))  # inputs of each target
SEED = int(os.environ.get("CBST_FUZZ_SEED", 0))
SLOWEST = 10.0  # seconds of one input: ten times what the largest that is allowed takes
_MOST_CHANGES = 4
_ODD_BYTES = (0x00, 0x01, 0x0A, 0x0D, 0x20, 0x22, 0x27, 0x7F, 0x80, 0xC3, 0xFE, 0xFF)
_LONGEST_REPEAT = 64
_LONGEST_MESSAGE = 10_000  # characters


def mutated(content: bytes, rng: np.random.Generator, words: Sequence[bytes] = ()) -> bytes:
    """Return `content` after one to four random changes.

    Parameters
    ----------
    content : bytes
        Input that is read without an error.
    rng : Generator
        Source of the changes.
    words : sequence of bytes
        Pieces that mean something to the reader, put in now and then.
    """
    data = bytearray(content)
    for _ in range(int(rng.integers(1, _MOST_CHANGES + 1))):
        start = int(rng.integers(0, len(data) + 1))
        end = min(len(data), start + int(rng.geometric(0.1)))
        kind = int(rng.integers(0, 8 if words else 7))
        if kind == 0 and start < len(data):
            data[start] ^= 1 << int(rng.integers(0, 8))  # a bit
        elif kind == 1 and start < len(data):
            data[start] = int(rng.choice(_ODD_BYTES))
        elif kind == 2:
            del data[start:end]
        elif kind == 3:
            data[start:start] = data[start:end] * int(rng.integers(1, _LONGEST_REPEAT))
        elif kind == 4:
            data[start:start] = rng.integers(0, 256, size=int(rng.geometric(0.2)), dtype=np.uint8).tobytes()
        elif kind == 5:
            del data[start:]  # cut off
        elif kind == 6:
            other = int(rng.integers(0, len(data) + 1))
            data[start:end] = data[other : other + end - start]
        elif kind == 7:
            data[start : start if rng.random() < 0.5 else end] = words[int(rng.integers(0, len(words)))]
    return bytes(data)


def fuzz(
    read: Callable[[bytes], object],
    good: Sequence[bytes],
    words: Sequence[bytes] = (),
    *,
    count: int = COUNT,
    seed: int = SEED,
) -> None:
    """Call a reader with good inputs and with `count` mutations of them.

    Parameters
    ----------
    read : callable
        Takes the bytes of a file; may raise `CBSTError`, whose message must not be longer than 10,000 characters.
    good : sequence of bytes
        Inputs that must be read.
    words : sequence of bytes
        Pieces that mean something to the reader.
    count, seed : int
        Number of mutations and what they follow from.

    Raises
    ------
    AssertionError
        If anything but a `CBSTError` is raised, or an input takes more than `SLOWEST` seconds; it shows the input.
    """
    for content in good:
        read(content)
    rng = np.random.default_rng([seed, 11])
    for number in range(count):
        content = mutated(good[number % len(good)], rng, words)
        start, message = time.perf_counter(), ""
        try:
            read(content)
        except CBSTError as error:
            message = str(error)
        except BaseException as error:
            where = "".join(traceback.format_exception(type(error), error, error.__traceback__)[-4:])
            raise AssertionError(f"input {number} of seed {seed}: {content!r}\n{where}") from error
        assert len(message) < _LONGEST_MESSAGE, f"input {number} of seed {seed} has an endless message: {content!r}"
        seconds = time.perf_counter() - start
        assert seconds < SLOWEST, f"input {number} of seed {seed} takes {seconds:.0f} s: {content!r}"
