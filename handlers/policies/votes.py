"""Policies that count the members' votes.

For presence and multilabel, a member votes for every label whose score reaches the member's
threshold. For classification, it votes for its best label only.

`any`, `all`, `at_least` and `majority` choose each label that has at least k votes, and the
combined score of a label is the k-th largest of its members' scores. If all members have the same
threshold, this score reaches the threshold exactly where the label is chosen.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ..base.errors import PolicyError
from ..base.tasks import Task
from .ballot import LABEL_TASKS, Ballot, Outcome, kth_largest, one_hot
from .registry import AtMostMembers, policy

# Shares of the votes that differ by less are a tie: sums of voting weights that should be equal,
# such as 0.1 + 0.2 and 0.3, differ in their last bits.
_TIE_TOLERANCE = 1e-6

# Weights and scores are added as integers, in multiples of 1 / _UNITS_PER_ONE. The rounding of a
# sum of floats depends on the order of the members, so that their order would decide a tie. An
# int64 has room for the sum of 1,000 values between 0 and 1.
_UNITS_PER_ONE = 2.0**52


@policy("any", tasks=LABEL_TASKS, counts_votes=True)
def any_member(ballot: Ballot) -> Outcome:
    """OR: a label is chosen if any member votes for it; its score is the highest."""
    return _from_k_votes(ballot, 1)


@policy("all", tasks=LABEL_TASKS, counts_votes=True)
def all_members(ballot: Ballot) -> Outcome:
    """AND: a label is chosen if every member votes for it; its score is the lowest."""
    return _from_k_votes(ballot, len(ballot.scores))


@policy("at_least", tasks=LABEL_TASKS, counts_votes=True)
def at_least(
    ballot: Ballot,
    *,
    k: Annotated[
        int, Field(ge=1, description="Number of votes that a label needs"), AtMostMembers()
    ],
) -> Outcome:
    """A label is chosen if at least k members vote for it; its score is the k-th highest."""
    return _from_k_votes(ballot, k)


@policy("majority", tasks=LABEL_TASKS, counts_votes=True)
def majority(ballot: Ballot) -> Outcome:
    """A label is chosen if more than half of the members vote for it; score as in `at_least`."""
    return _from_k_votes(ballot, votes_for_majority(len(ballot.scores)))


@policy("plurality", tasks=LABEL_TASKS, counts_votes=True)
def plurality(ballot: Ballot) -> Outcome:
    """The most votes win, the mean score breaks ties; the score is the share of the votes."""
    return _by_share(ballot, torch.ones_like(ballot.weights))


@policy("weighted_vote", tasks=LABEL_TASKS, counts_votes=True)
def weighted_vote(ballot: Ballot) -> Outcome:
    """As `plurality`, but each vote counts as much as its member's voting weight."""
    return _by_share(ballot, positive_weights(ballot))


@policy("unanimous", tasks=LABEL_TASKS, counts_votes=True)
def unanimous(ballot: Ballot) -> Outcome:
    """Abstains unless all members cast equal votes; the score of a label is the mean score."""
    agreed = (ballot.votes == ballot.votes[:1]).all(dim=-1).all(dim=0)
    return Outcome(
        scores=ballot.scores.double().mean(dim=0).float(),
        decisions=ballot.votes[0] & agreed.unsqueeze(-1),
        abstained=~agreed,
    )


def votes_for_majority(members: int) -> int:
    """Return the smallest number of votes that is more than half of the members."""
    return members // 2 + 1


def positive_weights(ballot: Ballot) -> Tensor:
    """Return the voting weights (M,) after a check that a weighted mean exists.

    Raises:
        PolicyError: all weights are 0. This happens when the members with a positive weight gave no
            scores, or when the client chose only members of weight 0.
    """
    if not bool((ballot.weights > 0).any()):
        raise PolicyError(
            f"the voting weights of {', '.join(ballot.member_names)} are all 0; choose a policy "
            "without weights, or members of which one has a weight above 0"
        )
    return ballot.weights


def _from_k_votes(ballot: Ballot, k: int) -> Outcome:
    """Choose each label that has at least k votes."""
    (scores,) = kth_largest(ballot.scores, k)
    if k == 1:
        return Outcome(scores, decisions=ballot.votes.any(dim=0))
    if k == len(ballot.votes):
        return Outcome(scores, decisions=ballot.votes.all(dim=0))
    return Outcome(scores, decisions=ballot.votes.sum(dim=0) >= k)


def _by_share(ballot: Ballot, weights: Tensor) -> Outcome:
    """Choose by the share of the voting weight that each label gets.

    For classification, the label with the largest share is chosen. A tie goes to the label with the
    higher weighted mean score, and then to the label of lowest index. For presence and multilabel,
    each label with more than half of the weight is chosen. A tie, which is exactly half of the
    weight, chooses the label if its weighted mean score reaches the threshold.

    Args:
        ballot: the members' scores and votes.
        weights: (M,) weight of each member's vote, at least one of them above 0.
    """
    # Division by the largest weight turns equal weights into 1, whose sums are exact counts.
    relative = weights.double() / weights.double().max()
    weight_units = (relative * _UNITS_PER_ONE).round().long().tolist()
    total_units = sum(weight_units)
    counts = torch.zeros(ballot.votes.shape[1:], dtype=torch.long, device=relative.device)
    for votes, units in zip(ballot.votes, weight_units, strict=True):
        counts += votes * units
    shares = counts.double() / total_units
    if ballot.task is Task.CLASSIFICATION:
        tied = shares >= shares.amax(dim=-1, keepdim=True) - _TIE_TOLERANCE
    else:
        tied = (shares - 0.5).abs() <= _TIE_TOLERANCE
    weighted_scores = relative.unsqueeze(1) * ballot.scores[:, tied].double()
    total_weight = total_units / _UNITS_PER_ONE
    means = (_order_independent_sum(weighted_scores) / total_weight).float()
    if ballot.task is Task.CLASSIFICATION:
        not_tied = torch.full(shares.shape, -torch.inf, device=means.device)
        decisions = one_hot(not_tied.masked_scatter(tied, means))
    else:
        reached = means >= ballot.thresholds.expand(shares.shape)[tied]
        decisions = (shares > 0.5).masked_scatter(tied, reached)
    return Outcome(shares.float(), decisions)


def _order_independent_sum(values: Tensor) -> Tensor:
    """Sum over the first dimension such that the order of the values cannot change the result.

    Args:
        values: (M, K) float64, not negative.

    Returns:
        (K,) float64.
    """
    largest = values.amax(dim=0).clamp(min=torch.finfo(torch.float64).tiny)
    # Scaling by a power of 2 is exact. The scaled values lie between 0 and 1, and only those far
    # smaller than the largest value lose digits when they become integers.
    power = largest / largest.frexp().mantissa
    units = (values / power * _UNITS_PER_ONE).round().long()
    return units.sum(dim=0).double() / _UNITS_PER_ONE * power
