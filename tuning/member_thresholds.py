"""Let each member of a presence ensemble vote with a threshold of its own.

A single parameter, ``share``, sets all thresholds: the share of the images without the label whose
score stays below the threshold. A member whose scores are high in general thus gets a higher
threshold than one whose scores are low. Tuning then has one parameter to choose instead of one for
each member, for which few images would not suffice.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from .fitting import Outputs
from .threshold_sweep import ThresholdCurve, detection_curve

SHARES = 100
"""The parameter takes the values 0, 1 / SHARES, ... 1."""


def per_member_thresholds(negative_quantiles: Tensor, share: float) -> list[float]:
    """Look up each member's threshold, rounded as it is written into the spec.

    Args:
        negative_quantiles: (M, SHARES + 1), see `FittedParameters`.
        share: from 0 to 1 in steps of ``1 / SHARES``.
    """
    column: list[float] = negative_quantiles[:, round(share * SHARES)].tolist()
    # Down, so that a score that equals the threshold still reaches it.
    return [max(0.0, float(f"{value - 5e-7:.6f}")) for value in column]


def per_member_text(names: Sequence[str], thresholds: Sequence[float], votes: int) -> str:
    """Write the expression that is true if at least `votes` members reach their thresholds."""
    parts = [
        f'member("{name}") >= {value:g}' for name, value in zip(names, thresholds, strict=True)
    ]
    if votes == 1:
        return " or ".join(parts)
    if votes == len(parts):
        return " and ".join(parts)
    combinations = itertools.combinations(parts, votes)
    return " or ".join(f"({' and '.join(each)})" for each in combinations)


def per_member_curve(outputs: Outputs, negative_quantiles: Tensor, votes: int) -> ThresholdCurve:
    """Compute the metrics at each value of ``share``.

    Args:
        outputs: calibrated scores of a presence ensemble.
        negative_quantiles: (M, SHARES + 1), see `FittedParameters`.
        votes: the number of members that have to reach their thresholds.
    """
    shares = [step / SHARES for step in range(SHARES + 1)]
    thresholds = torch.tensor([per_member_thresholds(negative_quantiles, each) for each in shares])
    is_reached = outputs.scores[:, :, 0].unsqueeze(0) >= thresholds.unsqueeze(2)
    return detection_curve(shares, is_reached.sum(dim=1) >= votes, outputs.targets[:, 0])
