"""Votes of members of which each has a threshold of its own, for presence.

One dial sets all of them: the share of the samples without the label whose score stays below. So a
member that scores high in general is asked for more than one that scores low, and as many
parameters as members do not have to be searched, which few samples would not bear.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from .fitting import Outputs
from .threshold_sweep import DialCurve, detection_curve

SHARES = 100


def own_thresholds(levels: Tensor, share: float) -> list[float]:
    """Each member's threshold, rounded as it is written.

    Args:
        levels: of `Learned`.
        share: the dial, from 0 to 1 in steps of 1 / `SHARES`.
    """
    column: list[float] = levels[:, round(share * SHARES)].tolist()
    # Down, so that a score at the value still counts.
    return [max(0.0, float(f"{value - 5e-7:.6f}")) for value in column]


def own_text(names: Sequence[str], thresholds: Sequence[float], votes: int) -> str:
    """The expression that is true where so many members reach their thresholds."""
    parts = [
        f'member("{name}") >= {value:g}' for name, value in zip(names, thresholds, strict=True)
    ]
    if votes == 1:
        return " or ".join(parts)
    if votes == len(parts):
        return " and ".join(parts)
    chosen = itertools.combinations(parts, votes)
    return " or ".join(f"({' and '.join(each)})" for each in chosen)


def own_curve(outputs: Outputs, levels: Tensor, votes: int) -> DialCurve:
    """Figures at each value of the dial.

    Args:
        outputs: calibrated, of presence.
        levels: of `Learned`.
        votes: how many members have to reach their thresholds.
    """
    shares = [step / SHARES for step in range(SHARES + 1)]
    thresholds = torch.tensor([own_thresholds(levels, share) for share in shares])
    reached = outputs.scores[:, :, 0].unsqueeze(0) >= thresholds.unsqueeze(2)
    return detection_curve(shares, reached.sum(dim=1) >= votes, outputs.targets[:, 0])
