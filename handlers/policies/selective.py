"""Abstaining: no label where the ensemble is not sure enough, or its members disagree too much."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ..base.tasks import Task
from .ballot import Ballot, Outcome
from .uncertainty import disagreement

Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]

MinConfidence = Annotated[
    Probability | None,
    Field(description="Abstain where the score of the decision is below"),
]
MaxDisagreement = Annotated[
    Probability | None,
    Field(description="Abstain where a larger share of the member pairs differ in their votes"),
]


def confidence(scores: Tensor, decisions: Tensor, task: Task) -> Tensor:
    """How much the combined scores support the decisions.

    Classification: the lowest score of the chosen labels, 0 where none is. Presence and multilabel:
    the lowest over the labels of s where the label is chosen and 1 - s where it is not.

    Args:
        scores: (N, C) float32 combined scores.
        decisions: (N, C) bool.
        task: any but regression.

    Returns:
        (N,) float32 in [0, 1] for scores in [0, 1].
    """
    if task is Task.CLASSIFICATION:
        lowest = scores.masked_fill(~decisions, torch.inf).amin(dim=-1)
        return torch.where(decisions.any(dim=-1), lowest, torch.zeros_like(lowest))
    return torch.where(decisions, scores, 1 - scores).amin(dim=-1)


def abstain(
    outcome: Outcome,
    ballot: Ballot,
    *,
    min_confidence: float | None = None,
    max_disagreement: float | None = None,
) -> Outcome:
    """Take the decision back where it is too uncertain.

    A sample without a decision has no label chosen and `Outcome.abstained` set.

    Args:
        outcome: of a policy that decides.
        ballot: what the policy saw.
        min_confidence: abstain where `confidence` is below.
        max_disagreement: abstain where `disagreement` is above.
    """
    if outcome.decisions is None or (min_confidence is None and max_disagreement is None):
        return outcome
    abstained = (
        outcome.decisions.new_zeros(len(outcome.decisions))
        if outcome.abstained is None
        else outcome.abstained
    )
    if min_confidence is not None:
        sure = confidence(outcome.scores, outcome.decisions, ballot.task) >= min_confidence
        abstained = abstained | ~sure
    if max_disagreement is not None:
        abstained = abstained | (disagreement(ballot.votes) > max_disagreement)
    return replace(
        outcome, decisions=outcome.decisions & ~abstained.unsqueeze(-1), abstained=abstained
    )
