"""What a file may cost its reader: the bounds that tests/fuzz holds every reader to.

A reader takes at most ``plus + times * (bytes of the file) + per_pixel * (pixels that an image states)`` bytes of
memory more than it had, and at most `SECONDS`, whatever the bytes; images state at most 178,956,970 pixels, or are
refused.
Most of ``plus`` is what memory allocators keep for later.

Deflate turns one byte into 1,032 at most, so files with compressed parts may take that; larger promises are refused.
Records in JSON and YAML take many small objects for a few characters.
"""

from __future__ import annotations

from typing import Mapping, NamedTuple

__all__ = ["BOUNDS", "SECONDS", "Bound"]

SECONDS = 10.0  # of processor time, for one file of some kB; the slowest that was seen took a tenth

_MB = 1 << 20


class Bound(NamedTuple):
    """Memory that the reader of one kind of file may take, in bytes."""

    plus: int  # whatever the file
    times: int  # for each of its bytes
    per_pixel: int = 0  # for each pixel that its header states

    def of(self, size: int, pixels: int = 0) -> int:
        """Return the bound for a file of `size` bytes that states so many pixels."""
        return self.plus + self.times * size + self.per_pixel * pixels


#: By kind of file.
BOUNDS: Mapping[str, Bound] = {
    "images": Bound(32 * _MB, 8, per_pixel=16),
    "experiments": Bound(32 * _MB, 1000),
    "changes of experiments": Bound(32 * _MB, 1000),
    "descriptions": Bound(32 * _MB, 1000),
    "lists": Bound(32 * _MB, 100),
    "network parameters": Bound(32 * _MB, 8),
    "sidecars": Bound(64 * _MB, 1000),
    "PyTorch files": Bound(32 * _MB, 100),
    "checkpoints": Bound(32 * _MB, 100),
    "maps (.npy)": Bound(32 * _MB, 16),
    "maps (.npz)": Bound(32 * _MB, 16 * 1032),
    "maps (.pt)": Bound(32 * _MB, 100),
    "states": Bound(64 * _MB, 16 * 1032),
    "statistics": Bound(32 * _MB, 16 * 1032),
    "priors (.npz)": Bound(32 * _MB, 16 * 1032),
    "priors (.mat)": Bound(32 * _MB, 16 * 1032),
    "records of labelling jobs": Bound(32 * _MB, 1000),
    "archives for the server": Bound(64 * _MB, 1032),
    "run folders": Bound(96 * _MB, 1000),
}
