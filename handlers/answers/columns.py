"""Puts the numbers of a result into tensors, for the response formats that consist of tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from ..base.tasks import Task
from ..decisions.result import Group, Result


def result_columns(result: Result) -> dict[str, Tensor]:
    """Put the scores of all groups into tensors in the order of the request.

    Returns:
        ``scores`` (N, C) float32, ``member_scores`` (M, N, C) float32, ``answered`` (N,) bool, and
        except for regression ``decisions`` (N, C) bool. Where a sample or a member has no answer,
        they hold NaN or False.
    """
    num_samples, num_labels = len(result.samples), len(result.score_labels)
    names = result.member_names
    scores = torch.full((num_samples, num_labels), float("nan"))
    member_scores = torch.full((len(names), num_samples, num_labels), float("nan"))
    decisions = torch.zeros((num_samples, num_labels), dtype=torch.bool)
    answered = torch.zeros(num_samples, dtype=torch.bool)
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
    """Write the member scores of a group into the rows of its samples."""
    if group.ballot is not None:
        for position, name in enumerate(group.ballot.member_names):
            member_scores[names.index(name), rows] = group.ballot.scores[position]
