"""Confusion matrices and intersection over union: what the results are measured with."""

from __future__ import annotations
