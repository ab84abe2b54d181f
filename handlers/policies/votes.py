"""Policies that count the members' votes.

For presence and multilabel a member votes for a label when its score reaches the member's
threshold; for classification it votes for its best label. `any`, `all`, `at_least` and `majority`
choose a label from k votes on and give its k-th largest score: with equal thresholds that score
reaches the threshold exactly where the label is chosen.
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

# Shares this close are a tie: voting weights such as 0.1 + 0.2 and 0.3 differ in their last bits.
_TIE = 1e-6

# Weights and scores are added as integers, in multiples of 1 / _UNITS: a sum of floats is rounded
# otherwise in another order, so that a tie would fall the other way. int64 holds 1,000 of them.
_UNITS = 2.0**52


@policy("any", tasks=LABEL_TASKS, counts_votes=True)
def any_member(ballot: Ballot) -> Outcome:
    """OR: a label is chosen when any member votes for it; score: the largest. Most sensitive."""
    return _from_k_votes(ballot, 1)


@policy("all", tasks=LABEL_TASKS, counts_votes=True)
def all_members(ballot: Ballot) -> Outcome:
    """AND: a label is chosen when every member votes for it; score: the least. Most specific."""
    return _from_k_votes(ballot, len(ballot.scores))


@policy("at_least", tasks=LABEL_TASKS, counts_votes=True)
def at_least(
    ballot: Ballot,
    *,
    k: Annotated[int, Field(ge=1, description="Votes needed"), AtMostMembers()],
) -> Outcome:
    """A label is chosen when at least k members vote for it; score: the k-th largest."""
    return _from_k_votes(ballot, k)


@policy("majority", tasks=LABEL_TASKS, counts_votes=True)
def majority(ballot: Ballot) -> Outcome:
    """A label is chosen when more than half of the members vote for it; score: as `at_least`."""
    return _from_k_votes(ballot, votes_for_majority(len(ballot.scores)))


@policy("plurality", tasks=LABEL_TASKS, counts_votes=True)
def plurality(ballot: Ballot) -> Outcome:
    """Most votes win, a tie goes to the higher mean score; score: share of the votes."""
    return _by_share(ballot, torch.ones_like(ballot.weights))


@policy("weighted_vote", tasks=LABEL_TASKS, counts_votes=True)
def weighted_vote(ballot: Ballot) -> Outcome:
    """As plurality, each vote counted with its member's voting weight."""
    return _by_share(ballot, positive_weights(ballot))


@policy("unanimous", tasks=LABEL_TASKS, counts_votes=True)
def unanimous(ballot: Ballot) -> Outcome:
    """Decides where all members cast equal votes, else abstains; score: the mean score."""
    agreed = (ballot.votes == ballot.votes[:1]).all(dim=-1).all(dim=0)
    return Outcome(
        scores=ballot.scores.double().mean(dim=0).float(),
        decisions=ballot.votes[0] & agreed.unsqueeze(-1),
        abstained=~agreed,
    )


def votes_for_majority(members: int) -> int:
    """More than half of the members."""
    return members // 2 + 1


def positive_weights(ballot: Ballot) -> Tensor:
    """The voting weights, (M,).

    Raises:
        PolicyError: they are all 0, as may happen to a selection of the members.
    """
    if not bool((ballot.weights > 0).any()):
        raise PolicyError(
            f"the voting weights of {', '.join(ballot.member_names)} are all 0; choose a policy "
            "that does not weigh, or members of which one has a weight above 0"
        )
    return ballot.weights


def _from_k_votes(ballot: Ballot, k: int) -> Outcome:
    (scores,) = kth_largest(ballot.scores, k)
    if k == 1:
        return Outcome(scores, decisions=ballot.votes.any(dim=0))
    if k == len(ballot.votes):
        return Outcome(scores, decisions=ballot.votes.all(dim=0))
    return Outcome(scores, decisions=ballot.votes.sum(dim=0) >= k)


def _by_share(ballot: Ballot, weights: Tensor) -> Outcome:
    """Share of the weight that votes for each label; for a yes-or-no label more than half is yes.

    A tie goes to the higher mean score (weighted alike), for classification then to the lowest
    label, for a yes-or-no label to yes where the mean score reaches the threshold.
    """
    # Relative to the largest: weights that are all equal become 1, and their sums exact counts.
    relative = weights.double() / weights.double().max()
    whole = (relative * _UNITS).round().long().tolist()
    counts = torch.zeros(ballot.votes.shape[1:], dtype=torch.long, device=relative.device)
    for votes, weight in zip(ballot.votes, whole, strict=True):
        counts += votes * weight
    shares = counts.double() / sum(whole)
    if ballot.task is Task.CLASSIFICATION:
        tied = shares >= shares.amax(dim=-1, keepdim=True) - _TIE
    else:
        tied = (shares - 0.5).abs() <= _TIE
    weighted_scores = relative.unsqueeze(1) * ballot.scores[:, tied].double()
    means = (_sum_in_any_order(weighted_scores) / (sum(whole) / _UNITS)).float()
    if ballot.task is Task.CLASSIFICATION:
        lowest = torch.full(shares.shape, -torch.inf, device=means.device)
        decisions = one_hot(lowest.masked_scatter(tied, means))
    else:
        reached = means >= ballot.thresholds.expand(shares.shape)[tied]
        decisions = (shares > 0.5).masked_scatter(tied, reached)
    return Outcome(shares.float(), decisions)


def _sum_in_any_order(values: Tensor) -> Tensor:
    """The sums over the first dimension, which the order of the values does not change.

    Args:
        values: (M, K) float64, none below 0.
    """
    largest = values.amax(dim=0).clamp(min=torch.finfo(torch.float64).tiny)
    # The power of 2 above the largest value, so that nothing is rounded but far smaller values.
    power = largest / largest.frexp().mantissa
    whole = (values / power * _UNITS).round().long()
    return whole.sum(dim=0).double() / _UNITS * power
