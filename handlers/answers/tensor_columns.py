"""Scores and decisions of all samples of a request as tensors, in the request's order."""

from __future__ import annotations

import torch
from torch import Tensor

from ..base.tasks import Task
from ..decisions.result import Group, Result


def tensor_columns(result: Result) -> dict[str, Tensor]:
    """Scatter the rows of every group to the request's order.

    Returns:
        ``scores`` (N, C) float32 and ``member_scores`` (M, N, C) float32, NaN where there is no
        answer; ``answered`` (N,) bool; but for regression ``decisions`` (N, C) bool.
    """
    samples, labels = len(result.samples), len(result.score_labels)
    names = result.member_names
    scores = torch.full((samples, labels), float("nan"))
    member_scores = torch.full((len(names), samples, labels), float("nan"))
    decisions = torch.zeros((samples, labels), dtype=torch.bool)
    answered = torch.zeros(samples, dtype=torch.bool)
    for group in result.groups:
        rows = list(group.indices)
        scores[rows] = group.outcome.scores
        answered[rows] = True
        if group.outcome.decisions is not None:
            decisions[rows] = group.outcome.decisions
        _scatter_members(member_scores, names, group, rows)
    columns = {"scores": scores, "member_scores": member_scores, "answered": answered}
    return columns if result.task is Task.REGRESSION else columns | {"decisions": decisions}


def _scatter_members(
    member_scores: Tensor, names: tuple[str, ...], group: Group, rows: list[int]
) -> None:
    if group.ballot is not None:
        for position, name in enumerate(group.ballot.member_names):
            member_scores[names.index(name), rows] = group.ballot.scores[position]
