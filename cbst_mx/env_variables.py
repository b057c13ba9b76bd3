"""Environment variables that libraries read while they work."""

from __future__ import annotations

import contextlib
import os
from typing import Iterator

__all__ = ["environment_variable"]


@contextlib.contextmanager
def environment_variable(name: str, value: str) -> Iterator[None]:
    """Set an environment variable of this process while the block runs, and restore what was there before."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before
