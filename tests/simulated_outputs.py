"""Outputs of simulated members, for the tests of tuning."""

from __future__ import annotations

import torch
from torch import Tensor

from torchserve_ensemble.handlers.base.tasks import Task
from torchserve_ensemble.handlers.policies.ballot import Panel
from torchserve_ensemble.tuning.fitting import Outputs


def scores_of(task: Task, logits: Tensor) -> Tensor:
    """Return the scores that logits (M, N, C) give."""
    return logits.softmax(dim=2) if task is Task.CLASSIFICATION else logits.sigmoid()


def outputs_of(
    task: Task, scores: Tensor, logits: Tensor, targets: Tensor, groups: Tensor | None = None
) -> Outputs:
    """Make the outputs of three members of equal weight, whose thresholds are all 0.5.

    Args:
        task: the kind of answer.
        scores: (3, N, C).
        logits: (3, N, C).
        targets: (N, C).
        groups: (N,) group of each sample; None: each is a group of its own.
    """
    labels = targets.shape[1]
    panel = Panel(
        task=task,
        member_names=("a", "b", "c"),
        weights=torch.ones(3),
        member_thresholds=torch.full((3, labels), 0.5),
        thresholds=torch.full((labels,), 0.5),
    )
    return Outputs(panel, scores, logits, targets, groups)
