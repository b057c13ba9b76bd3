"""Slow literal transcriptions of the paper, as oracles."""
