"""Votes of members with per-member thresholds, for presence.

A single parameter sets all of them: the share of the samples without the label whose score stays
below the threshold. A member whose scores are high in general thus gets a higher threshold than one
whose scores are low. Tuning then need not search one parameter for each member, for which few
samples would not suffice.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from .fitting import Outputs
from .threshold_sweep import ThresholdCurve, detection_curve

SHARES = 100


def per_member_thresholds(levels: Tensor, share: float) -> list[float]:
    """Each member's threshold, rounded as it is written.

    Args:
        levels: of `Learned`.
        share: from 0 to 1 in steps of 1 / `SHARES`.
    """
    column: list[float] = levels[:, round(share * SHARES)].tolist()
    # Down, so that a score at the value still counts.
    return [max(0.0, float(f"{value - 5e-7:.6f}")) for value in column]


def per_member_text(names: Sequence[str], thresholds: Sequence[float], votes: int) -> str:
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


def per_member_curve(outputs: Outputs, levels: Tensor, votes: int) -> ThresholdCurve:
    """Metrics at each share.

    Args:
        outputs: calibrated, of presence.
        levels: of `Learned`.
        votes: how many members have to reach their thresholds.
    """
    shares = [step / SHARES for step in range(SHARES + 1)]
    thresholds = torch.tensor([per_member_thresholds(levels, share) for share in shares])
    reached = outputs.scores[:, :, 0].unsqueeze(0) >= thresholds.unsqueeze(2)
    return detection_curve(shares, reached.sum(dim=1) >= votes, outputs.targets[:, 0])
