"""Uncertainty of an ensemble about each sample, from its members' probabilities and votes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..base.tasks import Task


@dataclass(frozen=True)
class Uncertainty:
    """Measures of the uncertainty about N samples, each (N,) float32.

    Attributes:
        predictive_entropy: entropy of the members' mean prediction, in nats: the total uncertainty.
        mutual_information: predictive entropy minus the members' mean entropy, in nats: the part of
            the uncertainty that comes from disagreement between the members ("epistemic").
        disagreement: share of the pairs of members whose votes differ, in [0, 1].
    """

    predictive_entropy: Tensor
    mutual_information: Tensor
    disagreement: Tensor


def uncertainty(scores: Tensor, votes: Tensor, task: Task) -> Uncertainty:
    """Compute the uncertainty about each sample.

    The predictive entropy is ``H(mean_m p_m)``. The mutual information between the prediction and
    the choice of the member is ``H(mean_m p_m) - mean_m H(p_m)`` (Houlsby et al. 2011; for
    ensembles, Lakshminarayanan et al. 2017). The labels of presence and multilabel are independent
    yes-or-no questions, so that the entropies of the labels add up.

    Args:
        scores: (M, N, C) float32 probabilities.
        votes: (M, N, C) bool, see `Ballot.votes`.
        task: any task except regression.

    Raises:
        ValueError: the task is regression, whose scores are no probabilities.
    """
    if task is Task.REGRESSION:
        raise ValueError("uncertainty needs probabilities; for regression see the spread")
    total = _entropy(scores.mean(dim=0, dtype=torch.float64), task)
    # One member at a time, to avoid a float64 copy of the scores of all members.
    expected = torch.stack([_entropy(each.double(), task) for each in scores]).mean(dim=0)
    return Uncertainty(
        predictive_entropy=total.float(),
        mutual_information=(total - expected).clamp(min=0).float(),
        disagreement=disagreement(votes),
    )


def disagreement(votes: Tensor) -> Tensor:
    """Compute the share of the pairs of members whose votes differ in any label.

    This is the disagreement measure of Kuncheva & Whitaker (2003). A single member has no pair, and
    its disagreement is 0.

    Args:
        votes: (M, N, C) bool.

    Returns:
        (N,) float32 in [0, 1].
    """
    # Eight labels are packed into a byte, and members are compared with those before them, one at a
    # time. All pairs at once take 640 MB for 50 members, 256 samples and 1,000 labels.
    packed = torch.from_numpy(np.packbits(votes.numpy(force=True), axis=-1)).to(votes.device)
    differ = torch.zeros(votes.shape[1], dtype=torch.long, device=votes.device)
    for member in range(1, len(votes)):
        differ += (packed[:member] != packed[member]).any(dim=-1).sum(dim=0)
    num_pairs = max(len(votes) * (len(votes) - 1) // 2, 1)
    return differ.div(num_pairs).float()


def _entropy(probabilities: Tensor, task: Task) -> Tensor:
    """Compute the entropy over the labels, in nats, with 0 log 0 = 0.

    Args:
        probabilities: (..., C) float64.
        task: any task except regression.

    Returns:
        (...) float64.
    """
    if task is not Task.CLASSIFICATION:
        probabilities = torch.cat([probabilities, 1 - probabilities], dim=-1)
    terms: Tensor = torch.special.entr(probabilities.clamp(0, 1))
    return terms.sum(dim=-1)
