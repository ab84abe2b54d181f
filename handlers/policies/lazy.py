"""Lazy evaluation: run no more members than a decision needs.

`combine_lazily` runs one member after another, and each member only on the samples that are not yet
decided. Its decisions equal those of running all members. Its scores come from the members that
were run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from ..base.errors import PolicyError
from ..base.tasks import Task
from .averages import decide
from .ballot import LABEL_TASKS, Ballot, Outcome, Panel, joined, kth_largest, rows_of
from .registry import BoundPolicy, apply_threshold, definition, policy
from .selective import Probability, confidence
from .votes import votes_for_majority

RunMember = Callable[[int, Tensor], Tensor]
"""Runs one member on some samples.

Takes the member's position on the panel and the positions (n,) int64 of the samples. Returns the
member's scores (n, C) float32.
"""

_CASCADE = "cascade"

# The number of votes that chooses a label, as a function of the number of members and the policy's
# parameters.
_VOTES_NEEDED: Mapping[str, Callable[[int, Mapping[str, Any]], int]] = {
    "any": lambda members, parameters: 1,
    "all": lambda members, parameters: members,
    "at_least": lambda members, parameters: int(parameters["k"]),
    "majority": lambda members, parameters: votes_for_majority(members),
}

# Policies for which `settled` can tell from votes alone that a decision is final.
_SETTLED_BY_VOTES = frozenset({*_VOTES_NEEDED, "plurality", "unanimous"})


@policy(_CASCADE, tasks=LABEL_TASKS)
def cascade(
    ballot: Ballot,
    *,
    confidence: Annotated[
        Probability,
        Field(description="Confidence in the decision at which no further member is run"),
    ],
) -> Outcome:
    """The mean of the first members in the spec's order, as many as make it confident enough."""
    num_members, num_samples, _ = ballot.scores.shape
    counts = torch.arange(1, num_members + 1, device=ballot.scores.device, dtype=torch.float64)
    running_means = (ballot.scores.double().cumsum(dim=0) / counts.view(-1, 1, 1)).float()
    can_stop = torch.stack([_is_confident(ballot, means, confidence) for means in running_means])
    can_stop[-1] = True
    last_member = can_stop.long().argmax(dim=0)
    combined = running_means[last_member, torch.arange(num_samples, device=last_member.device)]
    return replace(decide(ballot, combined), members_used=last_member + 1)


def can_stop_early(policy: BoundPolicy) -> bool:
    """Tell whether `combine_lazily` can compute the policy.

    It can compute `any`, `all`, `at_least`, `majority`, `plurality`, `unanimous` and `cascade`,
    unless they have `min_confidence` or `max_disagreement`, which need the scores of all members.
    """
    needs_all = {"min_confidence", "max_disagreement"} & policy.parameters.keys()
    return policy.name in (_SETTLED_BY_VOTES | {_CASCADE}) and not needs_all


def settled(votes: Tensor, remaining: int, policy: BoundPolicy, task: Task) -> Tensor:
    """Find the samples whose decision can no longer change, whatever the remaining members vote.

    The result is exact: where it is false, some votes of the remaining members would change the
    decision. For a possible tie of `plurality`, it takes votes together with scores to change it.

    Args:
        votes: (m, N, C) bool votes of the m >= 1 members that were run so far.
        remaining: number of members that were not run.
        policy: `any`, `all`, `at_least`, `majority`, `plurality` or `unanimous`.
        task: any task except regression.

    Returns:
        (N,) bool, true where the decision is settled.

    Raises:
        ValueError: votes alone do not settle the decisions of this policy.
    """
    if policy.name not in _SETTLED_BY_VOTES:
        names = ", ".join(sorted(_SETTLED_BY_VOTES))
        raise ValueError(f"policy '{policy.name}' does not settle by votes; only {names} do")
    if remaining == 0:
        return votes.new_ones(votes.shape[1])
    counts = votes.sum(dim=0)
    num_run = len(votes)
    if policy.name in _VOTES_NEEDED:
        needed = _VOTES_NEEDED[policy.name](num_run + remaining, policy.parameters)
        return ((counts >= needed) | (counts + remaining < needed)).all(dim=-1)
    if policy.name == "unanimous":
        return ~(votes == votes[:1]).all(dim=-1).all(dim=0)
    if task is not Task.CLASSIFICATION:
        return ((2 * counts - num_run).abs() > remaining).all(dim=-1)
    first_two = counts.topk(min(2, counts.shape[-1]), dim=-1).values
    second = first_two[:, 1] if first_two.shape[-1] == 2 else torch.zeros_like(first_two[:, 0])
    return first_two[:, 0] > second + remaining


def combine_lazily(
    policy: BoundPolicy,
    panel: Panel,
    run_member: RunMember,
    *,
    num_samples: int,
    order: Sequence[int] | None = None,
) -> Outcome:
    """Run members one by one until every sample is decided, and combine their scores.

    The decisions, and for `unanimous` the abstentions, equal those of `policy.combine` on a ballot
    of all members. For `cascade`, they equal those on a ballot of all members in the given order.

    The scores are computed from the members that were run. For `any`, `all`, `at_least` and
    `majority`, the score of a chosen label is a lower bound of its score over all members, and the
    score of a label that is not chosen is an upper bound. Where all members share a label's
    threshold (presence, multilabel), the bound lies on the same side of that threshold as the score
    over all members. Scores of the other policies are not bounds.

    Args:
        policy: a policy for which `can_stop_early` is true.
        panel: all members that may be run.
        run_member: runs one member on some of the samples.
        num_samples: number of samples, N.
        order: positions of all members on the panel, in the order to run them. By default, members
            run in the order of the panel. Members that are fast and decisive should come first.

    Raises:
        ValueError: the policy needs all members, or `order` does not name each member once.
        PolicyError, MemberError: see `BoundPolicy.combine` and `Ballot`.
    """
    num_members = len(panel.member_names)
    order = list(range(num_members)) if order is None else list(order)
    if not can_stop_early(policy):
        raise ValueError(f"policy '{policy.text}' needs all members; use its combine")
    if sorted(order) != list(range(num_members)):
        raise ValueError(f"order must have each of {num_members} members once, not {order}")
    if policy.name == "at_least" and policy.parameters["k"] > num_members:
        raise PolicyError(
            f"policy '{policy.text}' needs more than the {num_members} members that it is given"
        )
    undecided = torch.arange(num_samples, device=panel.weights.device)
    # For each member that was run its scores (n, C) for the n undecided samples.
    scores: list[Tensor] = []
    # For each step the positions of the samples that it decided, and their outcome.
    steps: list[tuple[Tensor, Outcome]] = []
    for num_run, member in enumerate(order, start=1):
        scores.append(run_member(member, undecided))
        ballot = _ballot_so_far(panel, order[:num_run], torch.stack(scores), policy)
        decided = _decided(policy, ballot, num_members - num_run)
        ballot_of_decided = replace(ballot, scores=ballot.scores[:, decided])
        steps.append((undecided[decided], _outcome(policy, ballot_of_decided, num_members)))
        undecided = undecided[~decided]
        scores = [each[~decided] for each in scores]
        if len(undecided) == 0:
            break
    return _in_sample_order(steps)


def _ballot_so_far(
    panel: Panel, members: Sequence[int], scores: Tensor, policy: BoundPolicy
) -> Ballot:
    """Make the ballot of the members that were run, with the policy's threshold applied."""
    indices = list(members)
    ballot = replace(
        panel,
        member_names=tuple(panel.member_names[index] for index in indices),
        weights=panel.weights[indices],
        member_thresholds=panel.member_thresholds[indices],
    ).ballot(scores)
    registered = definition(policy.name)
    assert registered is not None
    return apply_threshold(registered, ballot, policy.parameters.get("threshold"))


def _decided(policy: BoundPolicy, ballot: Ballot, remaining: int) -> Tensor:
    """Find the samples (N,) bool for which no further member has to be run."""
    if policy.name != _CASCADE:
        return settled(ballot.votes, remaining, policy, ballot.task)
    if remaining == 0:
        return ballot.votes.new_ones(ballot.scores.shape[1])
    return _is_confident(ballot, _running_mean(ballot), policy.parameters["confidence"])


def _outcome(policy: BoundPolicy, ballot: Ballot, num_members: int) -> Outcome:
    """Compute the outcome of decided samples from the members that were run.

    Args:
        policy: the policy.
        ballot: scores of the members that were run, for decided samples only.
        num_members: number of all members, including those that were not run.
    """
    num_run, num_samples, _ = ballot.scores.shape
    if policy.name == _CASCADE:
        outcome = decide(ballot, _running_mean(ballot))
    elif policy.name in _VOTES_NEEDED:
        needed = _VOTES_NEEDED[policy.name](num_members, policy.parameters)
        outcome = _outcome_of_counted_votes(ballot, needed, num_members)
    else:
        registered = definition(policy.name)
        assert registered is not None
        outcome = registered.function(ballot)
    members_used = torch.full((num_samples,), num_run, device=ballot.scores.device)
    return replace(outcome, members_used=members_used)


def _outcome_of_counted_votes(ballot: Ballot, needed: int, num_members: int) -> Outcome:
    """Compute decisions and bounds of the scores of a policy that needs k votes of M members.

    The full score of a label is the k-th largest of the scores of all M members. A chosen label has
    k votes, so that at least k members were run; the k-th largest of their scores is a lower bound
    of the full score, because more members can only raise it. A label that is not chosen has at
    least M - k + 1 votes against it, so that at least so many members were run. The full score is
    the (M - k + 1)-th smallest of all scores, and more members can only lower that; therefore the
    (M - k + 1)-th smallest score of the members that were run is an upper bound.

    Args:
        ballot: scores of the m members that were run, for decided samples only.
        needed: k.
        num_members: M.
    """
    decisions = ballot.votes.sum(dim=0) >= needed
    num_run = len(ballot.scores)
    lower_bound, upper_bound = kth_largest(
        ballot.scores, min(needed, num_run), max(num_run - (num_members - needed), 1)
    )
    return Outcome(torch.where(decisions, lower_bound, upper_bound), decisions)


def _running_mean(ballot: Ballot) -> Tensor:
    """Compute the mean (N, C) float32 of the members that were run."""
    # `cascade` computes the means of all members by `cumsum`, too. The same sum in the same order
    # gives the same float, so that a lazy cascade equals a full one.
    total = ballot.scores.double().cumsum(dim=0)[-1]
    return (total / len(ballot.scores)).float()


def _is_confident(ballot: Ballot, scores: Tensor, min_confidence: float) -> Tensor:
    """Find the samples (N,) bool whose combined scores give a decision that is confident enough."""
    decisions = decide(ballot, scores).decisions
    assert decisions is not None
    return confidence(scores, decisions, ballot.task) >= min_confidence


def _in_sample_order(steps: Sequence[tuple[Tensor, Outcome]]) -> Outcome:
    """Join the outcomes of all steps, and bring their samples back into the original order.

    Args:
        steps: for each step the positions of the samples that it decided, and their outcome.
    """
    order = torch.cat([positions for positions, _ in steps]).argsort()
    return rows_of(joined([outcome for _, outcome in steps]), order)
