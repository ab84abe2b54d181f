"""Smoothing of scores and decisions over the frames of one request.

The worker keeps no state between requests, so that the first frame of a request has no past.
"""

from __future__ import annotations

import torch
from torch import Tensor


def moving_average(scores: Tensor, alpha: float) -> Tensor:
    """Smooth scores by the exponential moving average.

    ``s_0 = x_0`` and ``s_t = alpha x_t + (1 - alpha) s_{t-1}``.

    Source: Roberts (1959), Control Chart Tests Based on Geometric Moving Averages.

    Args:
        scores: (N, C) float32, in frame order.
        alpha: weight of the current frame, in (0, 1]; 1 leaves the scores as they are.
    """
    smoothed = scores.clone()
    for frame in range(1, len(scores)):
        smoothed[frame] = alpha * scores[frame] + (1 - alpha) * smoothed[frame - 1]
    return smoothed


def window_share(decisions: Tensor, window: int) -> Tensor:
    """For each frame and label, compute how many of the last frames have the label, as a share.

    The window ends with the current frame. At the start of the request, where fewer frames exist,
    the window is shorter. A label has the majority if its share is above one half.

    Args:
        decisions: (N, C) bool, in frame order.
        window: number of frames, at least 1.

    Returns:
        (N, C) float32.
    """
    counts = torch.cat([torch.zeros_like(decisions[:1], dtype=torch.long), decisions.long()])
    counts = counts.cumsum(dim=0)
    end = torch.arange(1, len(decisions) + 1)
    start = (end - window).clamp(min=0)
    return (counts[end] - counts[start]) / (end - start).unsqueeze(1)
