"""Templates of the files that `cbst-mx init` writes."""

from __future__ import annotations
