"""The paper's three methods, by the names that people type and read."""

from __future__ import annotations

__all__ = ["RULES"]

#: Method -> rule of its thresholds: one for all classes (Algorithm 1) or one per class (Algorithm 2). CBST-SP is CBST
#: on probabilities that are multiplied by a spatial prior.
RULES = {"st": "global", "cbst": "class-balanced", "cbst-sp": "class-balanced"}
