"""Intervals of proportions, without the libraries that other metrics need."""

from __future__ import annotations

import math

Z95 = 1.959964
"""Two-sided 95 % quantile of the normal distribution."""


def wilson(hits: int, trials: int) -> tuple[float, float]:
    """Compute the 95 % interval of a proportion (Wilson 1927)."""
    if trials == 0:
        return (0.0, 1.0)
    share, square = hits / trials, Z95 * Z95
    centre = (share + square / (2 * trials)) / (1 + square / trials)
    spread = math.sqrt(share * (1 - share) / trials + square / (4 * trials * trials))
    half = Z95 / (1 + square / trials) * spread
    return (max(0.0, centre - half), min(1.0, centre + half))
