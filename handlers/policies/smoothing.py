"""Decisions smoothed over the frames of one request; the worker keeps no state between requests."""

from __future__ import annotations

import torch
from torch import Tensor


def moving_average(scores: Tensor, alpha: float) -> Tensor:
    """Exponential moving average ``s_t = alpha x_t + (1 - alpha) s_{t-1}``, ``s_0 = x_0``.

    Source: Roberts (1959), Control Chart Tests Based on Geometric Moving Averages.

    Args:
        scores: (N, C) float32, in frame order.
        alpha: weight of the newest frame, in (0, 1]; 1 leaves the scores as they are.
    """
    smoothed = scores.clone()
    for frame in range(1, len(scores)):
        smoothed[frame] = alpha * scores[frame] + (1 - alpha) * smoothed[frame - 1]
    return smoothed


def window_share(decisions: Tensor, window: int) -> Tensor:
    """The share of the last `window` frames, the current one included, that have each label.

    The first frames look at the fewer frames that there are. A label has the majority where its
    share is above one half.

    Args:
        decisions: (N, C) bool, in frame order.
        window: frames, at least 1.

    Returns:
        (N, C) float32.
    """
    counts = torch.cat([torch.zeros_like(decisions[:1], dtype=torch.long), decisions.long()])
    counts = counts.cumsum(dim=0)
    last = torch.arange(1, len(decisions) + 1)
    first = (last - window).clamp(min=0)
    return (counts[last] - counts[first]) / (last - first).unsqueeze(1)
