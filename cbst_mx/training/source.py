"""Labelled source images as training samples."""

from __future__ import annotations

from typing import Callable

import numpy as np

from cbst_mx.data.datasets import LabelledImageSet
from cbst_mx.data.loader import Sample

__all__ = ["labelled_samples", "named"]


def named(read: Callable[[], tuple[np.ndarray, np.ndarray]], name: str) -> Sample:
    """Return `read` with a name for messages."""
    read.name = name  # type: ignore[attr-defined]
    return read


def labelled_samples(images: LabelledImageSet) -> list[Sample]:
    """Return one sample per image of a labelled set."""
    return [named(lambda index=index: images.pair(index), images.names[index]) for index in range(len(images))]
