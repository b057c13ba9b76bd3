"""One named random generator for every (seed, round, epoch, index, purpose).

Nothing in this package draws from a global random state: a function that needs chance receives a generator, and the
generator depends only on what it is for. The same sample is therefore cut and flipped in the same way in whatever
order, process or thread it is prepared, and two purposes never share a stream.
"""

from __future__ import annotations

import operator
import zlib

import numpy as np

from cbst_mx.errors import ConfigError

__all__ = ["generator"]

_WORD = 2**32


def generator(seed: int, *, round: int = 0, epoch: int = 0, index: int = 0, purpose: str) -> np.random.Generator:
    """Return the random generator of one purpose at one place of a run.

    Different arguments give independent streams, equal arguments give equal streams on every machine. The bits come
    from PCG64, whose stream NumPy keeps stable between versions; it makes no such promise for every distribution
    drawn from them.

    Parameters
    ----------
    seed : int
        Seed of the whole run, in [0, 2^64).
    round, epoch, index : int
        Place inside the run, each in [0, 2^32).
    purpose : str
        Purpose of the numbers, for example ``"transform"``; told apart by its CRC-32.

    Raises
    ------
    ConfigError
        If a number is not an integer in its range or `purpose` is empty.
    """
    seed = _checked("seed", seed, _WORD * _WORD)
    if not isinstance(purpose, str) or not purpose:
        raise ConfigError(f"purpose must be a text that is not empty, got {purpose!r}")
    # A fixed layout of 32-bit words, so that no two argument lists can give the same entropy.
    words = [
        zlib.crc32(purpose.encode("utf-8")),
        seed % _WORD,
        seed // _WORD,
        _checked("round", round, _WORD),
        _checked("epoch", epoch, _WORD),
        _checked("index", index, _WORD),
    ]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))


def _checked(name: str, value: int, limit: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if isinstance(value, bool) or not 0 <= number < limit:
        raise ConfigError(f"{name} must be an integer in [0, 2^{limit.bit_length() - 1}), got {value!r}")
    return number
