"""How sure an ensemble is of each sample, from its members' probabilities and votes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..base.tasks import Task


@dataclass(frozen=True)
class Uncertainty:
    """One number for each of N samples, float32, in nats where it is an entropy.

    Attributes:
        predictive_entropy: (N,) entropy of the mean prediction: total uncertainty.
        mutual_information: (N,) predictive entropy less the members' mean entropy: the part that
            comes from the members' disagreement ("epistemic").
        disagreement: (N,) share of member pairs whose votes differ, in [0, 1].
    """

    predictive_entropy: Tensor
    mutual_information: Tensor
    disagreement: Tensor


def uncertainty(scores: Tensor, votes: Tensor, task: Task) -> Uncertainty:
    """Entropy, mutual information and disagreement.

    Predictive entropy is ``H(mean_m p_m)``; mutual information between prediction and member is
    ``H(mean_m p_m) - mean_m H(p_m)`` (Houlsby et al. 2011; Lakshminarayanan et al. 2017 for
    ensembles). The labels of presence and multilabel are independent yes-or-no questions, so their
    entropies add up. Disagreement is the mean over pairs of members of "the votes differ in any
    label" (Kuncheva & Whitaker 2003); 0 for one member.

    Args:
        scores: (M, N, C) float32 probabilities.
        votes: (M, N, C) bool.
        task: any but regression.

    Raises:
        ValueError: the task is regression, whose scores are no probabilities.
    """
    if task is Task.REGRESSION:
        raise ValueError("uncertainty needs probabilities; for regression see the spread")
    total = _entropy(scores.mean(dim=0, dtype=torch.float64), task)
    # One member at a time: float64 copies of all their scores would be large.
    expected = torch.stack([_entropy(each.double(), task) for each in scores]).mean(dim=0)
    return Uncertainty(
        predictive_entropy=total.float(),
        mutual_information=(total - expected).clamp(min=0).float(),
        disagreement=disagreement(votes),
    )


def disagreement(votes: Tensor) -> Tensor:
    """The share of member pairs whose votes differ in any label (N,), float32.

    Args:
        votes: (M, N, C) bool.
    """
    # Eight labels in a byte: all pairs of 50 members that vote on 1,000 labels would be large.
    packed = torch.from_numpy(np.packbits(votes.numpy(force=True), axis=-1)).to(votes.device)
    differ = torch.zeros(votes.shape[1], dtype=torch.long, device=votes.device)
    for member in range(1, len(votes)):
        differ += (packed[:member] != packed[member]).any(dim=-1).sum(dim=0)
    pairs = max(len(votes) * (len(votes) - 1) // 2, 1)
    return differ.div(pairs).float()


def _entropy(probabilities: Tensor, task: Task) -> Tensor:
    """Entropy over the last dimension, in nats; 0 log 0 is 0."""
    if task is not Task.CLASSIFICATION:
        probabilities = torch.cat([probabilities, 1 - probabilities], dim=-1)
    terms: Tensor = torch.special.entr(probabilities.clamp(0, 1))
    return terms.sum(dim=-1)
