"""Smooths the decisions of a request whose samples are the frames of a sequence."""

from __future__ import annotations

import torch
from torch import Tensor

from ..base.errors import RequestError
from ..base.tasks import Task
from ..policies import one_hot
from ..policies.smoothing import moving_average, window_share
from ..requests.options import Smoothing
from ..requests.parsing import ParsedRequest
from .result import Result, Smoothed


def smooth(result: Result, thresholds: Tensor) -> Smoothed:
    """Smooth the decisions of the answered samples, in the order of their frames.

    Args:
        result: must have the option ``smooth`` and at least one answer.
        thresholds: (C,) float32 decision thresholds; used for presence and multilabel.
    """
    options = result.options
    order = options.frame_order or tuple(range(len(result.samples)))
    indices = torch.tensor([index for group in result.groups for index in group.indices])
    time = torch.tensor([order[index] for index in indices.tolist()], dtype=torch.float64)
    sequence = time.argsort(stable=True)
    scores = torch.cat([group.outcome.scores for group in result.groups])[sequence]
    decisions_of_groups = [group.outcome.decisions for group in result.groups]
    flags = [each for each in decisions_of_groups if each is not None]
    decisions: Tensor | None = None
    if options.smooth is Smoothing.MAJORITY:
        scores = window_share(torch.cat(flags)[sequence], options.smooth_window)
        decisions = scores > 0.5
    else:
        scores = moving_average(scores, options.smooth_alpha)
        if flags:
            has_one_label = result.task is Task.CLASSIFICATION
            decisions = one_hot(scores) if has_one_label else scores >= thresholds
    return Smoothed(indices=tuple(indices[sequence].tolist()), scores=scores, decisions=decisions)


def check_frame_order(request: ParsedRequest) -> None:
    """Check that the option ``frame_order`` has one number for each sample.

    Raises:
        RequestError: the option has more or fewer numbers than the request has samples.
    """
    order = request.options.frame_order
    if order is not None and len(order) != len(request.samples):
        raise RequestError(
            f"option frame_order has {len(order)} numbers for {len(request.samples)} samples; "
            "give each sample one"
        )
