"""Memory that this process may use."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

__all__ = ["memory"]

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def memory() -> int:
    """Return the bytes of memory, or what a container may take of it; 4 GB where the system does not say."""
    found = 4 << 30
    with contextlib.suppress(AttributeError, ValueError, OSError):
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # "max" is none
            found = min(found, int(Path(limit).read_text(encoding="ascii")))
    return found
