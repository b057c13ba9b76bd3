"""Results for people: tables of IoU and pictures that compare methods."""

from __future__ import annotations
