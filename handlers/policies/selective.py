"""Selective prediction: abstain on samples that the ensemble is too uncertain about.

Source: Chow (1970), On optimum recognition error and reject tradeoff.
"""

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
    Field(description="Abstain if the confidence in the decision is lower"),
]
MaxDisagreement = Annotated[
    Probability | None,
    Field(description="Abstain if the votes differ in a larger share of the pairs of members"),
]


def confidence(scores: Tensor, decisions: Tensor, task: Task) -> Tensor:
    """Measure how strongly the combined scores support the decision on each sample.

    For classification, it is the lowest score among the chosen labels, or 0 if no label is chosen.
    For presence and multilabel, each label of score s supports its own decision by s if the label
    is chosen, and by 1 - s if not; the confidence is the lowest support of all labels.

    Args:
        scores: (N, C) float32 combined scores.
        decisions: (N, C) bool, true for each chosen label.
        task: any task except regression.

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
    """Withdraw the decisions on samples that are too uncertain.

    Such a sample then has no chosen label, and `Outcome.abstained` is true for it.

    Args:
        outcome: the policy's answers; an outcome without decisions is returned as it is.
        ballot: the ballot that the policy combined.
        min_confidence: abstain if the `confidence` is lower; None for no limit.
        max_disagreement: abstain if the `disagreement` of the members is higher; None for no limit.
    """
    if outcome.decisions is None or (min_confidence is None and max_disagreement is None):
        return outcome
    abstained = (
        outcome.decisions.new_zeros(len(outcome.decisions))
        if outcome.abstained is None
        else outcome.abstained
    )
    if min_confidence is not None:
        is_confident = confidence(outcome.scores, outcome.decisions, ballot.task) >= min_confidence
        abstained = abstained | ~is_confident
    if max_disagreement is not None:
        abstained = abstained | (disagreement(ballot.votes) > max_disagreement)
    return replace(
        outcome, decisions=outcome.decisions & ~abstained.unsqueeze(-1), abstained=abstained
    )
