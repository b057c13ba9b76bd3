"""The program over the fake libraries: ``python -m tools.rehearsal.inside COMMAND ...``, inside the environment.

Kernels do nothing, so what comes back from the card is what happened to be in its memory. Wherever the program looks at
it, something takes its place that a network could have given: every fraction is 0.5 and every whole number 0. All
operators run before that, and their errors are seen.

The last line that is written to standard error says how many kernels were started, and the largest memory of each card.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import itertools
import sys
from typing import Any

import numpy as np

from symbols.backend import mx

__all__ = ["Card", "stand_in"]


class Card:
    """What the fake runtime counted."""

    def __init__(self) -> None:
        # the library is loaded already, and stands in the process under its own name
        self._library = ctypes.CDLL("libcudart.so.11.0")
        for name in ("fake_used", "fake_peak"):
            getattr(self._library, name).restype = ctypes.c_size_t
        self._library.fake_launches.restype = ctypes.c_long

    def reset(self) -> None:
        """Begin anew to look for the largest memory."""
        self._library.fake_reset_peaks()

    def peak(self, device: int = 0) -> float:
        """Return the largest memory of a card, in MiB, of the work that has been waited for."""
        return self._library.fake_peak(device) / 2**20

    def used(self, device: int = 0) -> float:
        """Return the memory that a card has given, in MiB."""
        return self._library.fake_used(device) / 2**20

    def launches(self) -> int:
        """Return how many kernels were started."""
        return self._library.fake_launches()


def stand_in() -> None:
    """Let what the program reads from a card be numbers that a network could have given."""
    real = mx.nd.NDArray.asnumpy

    def asnumpy(self: mx.nd.NDArray) -> np.ndarray:
        array = real(self)
        if self.context.device_type == "gpu":
            array = np.full(array.shape, 0.5 if array.dtype.kind == "f" else 0, array.dtype)
        return array

    mx.nd.NDArray.asnumpy = asnumpy
    _stand_in_for_shapes()
    _stand_in_for_counts()


def _stand_in_for_shapes() -> None:
    """Let a mask choose a half of the pixels: how many it does choose is read from the card, and may be any number."""
    real = mx.nd.contrib.boolean_mask

    def boolean_mask(data: mx.nd.NDArray, index: mx.nd.NDArray, **options: Any) -> mx.nd.NDArray:
        with contextlib.suppress(mx.base.MXNetError):  # an impossible number
            real(data, index, **options)
        return data[: max(1, len(data) // 2)]

    mx.nd.contrib.boolean_mask = boolean_mask


def _stand_in_for_counts() -> None:
    """Let a histogram have all pixels in its first bin; the program checks that none is lost."""
    from cbst_mx.selftrain import on_device
    from cbst_mx.selftrain.counting import LOWER

    real, calls = on_device._histogram, itertools.count()

    def histogram(numbers: mx.nd.NDArray, end: int) -> np.ndarray:
        counts = real(numbers, end)
        # a second look at the one bin that has all pixels is counted in two parts, of which one has them
        if end > LOWER or next(calls) % 2 == 0:
            counts[:1] = numbers.size
        return counts

    on_device._histogram = histogram


def main() -> None:
    """Run the command line."""
    from cbst_mx.cli import main as command

    stand_in()
    gc.disable()  # Python looks for circles when it pleases, which hides networks that stay
    try:
        command(sys.argv[1:], prog_name="cbst-mx")
    finally:
        card = Card()
        peaks = ", ".join(f"{card.peak(device):.0f}" for device in range(mx.context.num_gpus()))
        print(f"rehearsal: {card.launches()} kernels, at most {peaks} MiB", file=sys.stderr)


if __name__ == "__main__":
    main()
