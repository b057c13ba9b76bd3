"""Mutated inputs against a reader: it must read them or refuse them with an error of ours, at a bounded cost.

A target is a test that calls `fuzz` with a kind of file, a function that reads bytes, and good inputs::

    def test_lists(tmp_path):
        path = tmp_path / "list.txt"

        def read(content: bytes) -> None:
            path.write_bytes(content)
            read_list(path)

        fuzz("lists", read, [b"a.png\\nb.png\\n"])

Seeds are fixed: the same inputs each time. The number of inputs of each target is 40 (1,344 in all), or CBST_FUZZ
(``make fuzz``), in which case every run takes seeds of its own from CBST_FUZZ_SEED. Time and memory of every input are
compared with the bounds of `tests.fuzz.limits`; a table at the end says what was seen.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import resource
import signal
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

import numpy as np

from cbst_mx.errors import CBSTError
from tests.fuzz.limits import BOUNDS, SECONDS

__all__ = ["COUNT", "LONG", "SEED", "SEEN", "Seen", "fuzz", "limited", "mutated"]

LONG = "CBST_FUZZ" in os.environ  # make fuzz
COUNT = int(os.environ.get("CBST_FUZZ", 40))  # inputs of each target
SEED = int(os.environ.get("CBST_FUZZ_SEED", 0))
_MOST_CHANGES = 4
_ODD_BYTES = (0x00, 0x01, 0x0A, 0x0D, 0x20, 0x22, 0x27, 0x7F, 0x80, 0xC3, 0xFE, 0xFF)
_LONGEST_REPEAT = 64
_LONGEST_MESSAGE = 10_000  # characters
_ADDRESS_SPACE = 6 << 30  # bytes more than at the start: who asks for all memory gets a MemoryError


class Hang(BaseException):
    """An input takes more than its time; no `except Exception` of a reader takes it away."""


@dataclass
class Seen:
    """What the inputs of one kind have cost."""

    inputs: int = 0
    refused: int = 0
    seconds: float = 0.0  # of processor time
    slowest: float = 0.0
    memory: int = 0  # bytes that the process grew by during the worst input


SEEN: dict[str, Seen] = {}  # by kind of file, for the table at the end


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


def _stop(*_: object) -> None:
    raise Hang


def _reset_peak() -> bool:
    """Let the kernel's record of the largest size of this process begin anew (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        return True
    return False


def _status(*keys: str) -> list[int]:
    """Return sizes in bytes from the kernel's record of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {line.partition(":")[0]: int(line.split()[1]) << 10 for line in lines if line.endswith(" kB")}
    return [found[key] for key in keys]


def _peak() -> int:
    return _status("VmHWM")[0] if _CAN_RESET else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


_CAN_RESET = _reset_peak()


@contextlib.contextmanager
def limited(kind: str, size: int, pixels: int = 0, seconds: float = SECONDS) -> Iterator[Seen]:
    """Run the block as one input of a kind of file, and compare what it takes with the bounds of `tests.fuzz.limits`.

    Raises
    ------
    AssertionError
        If it takes more time or memory.
    """
    seen = SEEN.setdefault(kind, Seen())
    before = (_reset_peak(), _status("VmRSS"))[1][0] if _CAN_RESET else _peak()
    handlers = {number: signal.signal(number, _stop) for number in (signal.SIGPROF, signal.SIGALRM)}
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize")[0] + _ADDRESS_SPACE, hard))
    faulthandler.dump_traceback_later(60 * seconds, exit=True)  # what hangs outside Python hears no signal
    signal.setitimer(signal.ITIMER_PROF, seconds)  # of the processor: others may be at work as well
    signal.setitimer(signal.ITIMER_REAL, 12 * seconds)  # for what waits
    start = time.process_time()
    try:
        yield seen
    except Hang:
        raise AssertionError(f"it takes more than {seconds:g} s") from None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        taken, grown = time.process_time() - start, _peak() - before
        seen.inputs += 1
        seen.seconds += taken
        seen.slowest = max(seen.slowest, taken)
        seen.memory = max(seen.memory, grown)
    bound = BOUNDS[kind].of(size, pixels)
    assert grown <= bound, f"{kind}: {size:,} bytes take {grown / 1e6:.0f} MB, {bound / 1e6:.0f} MB are allowed"


def fuzz(
    kind: str,
    read: Callable[[bytes], object],
    good: Sequence[bytes],
    words: Sequence[bytes] = (),
    *,
    count: int = COUNT,
    seed: int = SEED,
    pixels: Callable[[bytes], int] = lambda content: 0,
) -> None:
    """Call a reader with good inputs and with `count` mutations of them.

    Parameters
    ----------
    kind : str
        Kind of file, a key of `tests.fuzz.limits.BOUNDS`.
    read : callable
        Takes the bytes of a file; may raise `CBSTError`, whose message must not be longer than 10,000 characters.
    good : sequence of bytes
        Inputs that must be read.
    words : sequence of bytes
        Pieces that mean something to the reader.
    count, seed : int
        Number of mutations and what they follow from.
    pixels : callable
        Returns how many pixels an input states.

    Raises
    ------
    AssertionError
        If anything but a `CBSTError` is raised, or an input takes more time or memory than its bound; it shows the
        input.
    """
    for content in good:
        read(content)
    rng = np.random.default_rng([seed, 11])
    for number in range(count):
        content = mutated(good[number % len(good)], rng, words)
        stated, message = pixels(content), ""
        what = f"input {number} of seed {seed}"
        try:
            with limited(kind, len(content), stated) as seen:
                try:
                    read(content)
                except CBSTError as error:
                    message = str(error)
                    seen.refused += 1
        except AssertionError as error:
            raise AssertionError(f"{what}: {content!r}\n{error}") from error
        except BaseException as error:
            where = "".join(traceback.format_exception(type(error), error, error.__traceback__)[-4:])
            raise AssertionError(f"{what}: {content!r}\n{where}") from error
        assert len(message) < _LONGEST_MESSAGE, f"{what} has an endless message: {content!r}"


def table() -> list[str]:
    """Return the lines of a table of what was seen, for the end of a test run."""
    lines = [f"{'reader':28} {'inputs':>8} {'refused':>8} {'seconds':>8} {'slowest':>8} {'memory':>9} {'bound':>24}"]
    rows: list[tuple[str, Any]] = sorted(SEEN.items())
    for kind, seen in rows:
        plus, times, per_pixel = BOUNDS[kind]
        bound = f"{plus >> 20} MB + {times:,} x size" + (f" + {per_pixel}/px" if per_pixel else "")
        lines.append(
            f"{kind:28} {seen.inputs:8,} {seen.refused:8,} {seen.seconds:8.1f} {seen.slowest:7.2f}s "
            f"{seen.memory / 1e6:6.1f} MB {bound:>24}"
        )
    lines.append(f"{'all':28} {sum(s.inputs for s in SEEN.values()):8,} {sum(s.refused for s in SEEN.values()):8,}")
    return lines
