"""Running no more members than a decision needs.

`combine_lazily` runs one member after the other, each on the samples that are still open only. Its
decisions are those of running all members; its scores come from the members that were run.
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
"""From a member's index and sample indices (n,) int64 to the member's scores (n, C) float32."""

_CASCADE = "cascade"

# Votes that choose a label, from the number of all members and the policy's parameters.
_NEEDED: Mapping[str, Callable[[int, Mapping[str, Any]], int]] = {
    "any": lambda members, parameters: 1,
    "all": lambda members, parameters: members,
    "at_least": lambda members, parameters: int(parameters["k"]),
    "majority": lambda members, parameters: votes_for_majority(members),
}
_EXACT = frozenset({*_NEEDED, "plurality", "unanimous"})


@policy(_CASCADE, tasks=LABEL_TASKS)
def cascade(
    ballot: Ballot,
    *,
    confidence: Annotated[
        Probability, Field(description="Enough support for the decision to ask no further member")
    ],
) -> Outcome:
    """The mean of the first members, in the spec's order, as soon as it is confident enough."""
    members, samples, _ = ballot.scores.shape
    counts = torch.arange(1, members + 1, device=ballot.scores.device, dtype=torch.float64)
    running = (ballot.scores.double().cumsum(dim=0) / counts.view(-1, 1, 1)).float()
    enough = torch.stack([_confident(ballot, scores, confidence) for scores in running])
    enough[-1] = True
    last = enough.long().argmax(dim=0)
    chosen = running[last, torch.arange(samples, device=last.device)]
    return replace(decide(ballot, chosen), members_used=last + 1)


def can_stop_early(policy: BoundPolicy) -> bool:
    """Whether `combine_lazily` takes the policy.

    True for `any`, `all`, `at_least`, `majority`, `plurality`, `unanimous` and `cascade`, unless
    they may abstain by `min_confidence` or `max_disagreement`, which look at all members.
    """
    abstains = {"min_confidence", "max_disagreement"} & policy.parameters.keys()
    return policy.name in (_EXACT | {_CASCADE}) and not abstains


def settled(votes: Tensor, remaining: int, policy: BoundPolicy, task: Task) -> Tensor:
    """Where a vote's decision can no longer change, whatever the remaining members vote.

    Exact: where it is False, some votes of the remaining members change the decision (for a tie of
    `plurality`: votes together with scores).

    Args:
        votes: (m, N, C) bool of the m >= 1 members run so far.
        remaining: how many members have not been run.
        policy: `any`, `all`, `at_least`, `majority`, `plurality` or `unanimous`.
        task: any but regression.

    Returns:
        (N,) bool.

    Raises:
        ValueError: another policy.
    """
    if policy.name not in _EXACT:
        raise ValueError(f"policy '{policy.name}' does not settle by votes: {sorted(_EXACT)} do")
    if remaining == 0:
        return votes.new_ones(votes.shape[1])
    counts = votes.sum(dim=0)
    run = len(votes)
    if policy.name in _NEEDED:
        needed = _NEEDED[policy.name](run + remaining, policy.parameters)
        return ((counts >= needed) | (counts + remaining < needed)).all(dim=-1)
    if policy.name == "unanimous":
        return ~(votes == votes[:1]).all(dim=-1).all(dim=0)
    if task is not Task.CLASSIFICATION:
        return ((2 * counts - run).abs() > remaining).all(dim=-1)
    first_two = counts.topk(min(2, counts.shape[-1]), dim=-1).values
    second = first_two[:, 1] if first_two.shape[-1] == 2 else torch.zeros_like(first_two[:, 0])
    return first_two[:, 0] > second + remaining


def combine_lazily(
    policy: BoundPolicy,
    panel: Panel,
    run_member: RunMember,
    *,
    samples: int,
    order: Sequence[int] | None = None,
) -> Outcome:
    """Run members one by one until every sample is decided.

    The decisions, and for `unanimous` the abstentions, equal those of `policy.combine` on all
    members (for `cascade`: in the given order). The scores are over the members that were run: for
    `any`, `all`, `at_least` and `majority` the score of a chosen label is a lower bound of the full
    score and that of a label not chosen an upper bound, on the decision's side of the threshold.

    Args:
        policy: one that `can_stop_early`.
        panel: the members.
        run_member: runs one member on some samples.
        samples: N.
        order: the members' indices in the order to run them, each once; default the panel's. Fast
            and decisive members first.

    Raises:
        ValueError: the policy needs all members, or `order` is not one of all members.
        PolicyError, MemberError: as from `policy.combine` and `Ballot`.
    """
    members = len(panel.member_names)
    order = list(range(members)) if order is None else list(order)
    if not can_stop_early(policy):
        raise ValueError(f"policy '{policy.text}' needs all members; use its combine")
    if sorted(order) != list(range(members)):
        raise ValueError(f"order must have each of {members} members once, not {order}")
    if policy.name == "at_least" and policy.parameters["k"] > members:
        raise PolicyError(f"policy '{policy.text}' needs more than the {members} members there are")
    open_samples = torch.arange(samples, device=panel.weights.device)
    columns: list[Tensor] = []
    finished: list[tuple[Tensor, Outcome]] = []
    for position, member in enumerate(order):
        columns.append(run_member(member, open_samples))
        run = position + 1
        ballot = _partial(panel, order[:run], torch.stack(columns), policy)
        done = _done(policy, ballot, members - run)
        finished.append((open_samples[done], _outcome(policy, _rows(ballot, done), members)))
        open_samples = open_samples[~done]
        columns = [column[~done] for column in columns]
        if len(open_samples) == 0:
            break
    return _assembled(finished)


def _partial(panel: Panel, members: Sequence[int], scores: Tensor, policy: BoundPolicy) -> Ballot:
    chosen = list(members)
    ballot = replace(
        panel,
        member_names=tuple(panel.member_names[member] for member in chosen),
        weights=panel.weights[chosen],
        member_thresholds=panel.member_thresholds[chosen],
    ).ballot(scores)
    known = definition(policy.name)
    assert known is not None
    return apply_threshold(known, ballot, policy.parameters.get("threshold"))


def _rows(ballot: Ballot, rows: Tensor) -> Ballot:
    return replace(ballot, scores=ballot.scores[:, rows])


def _done(policy: BoundPolicy, ballot: Ballot, remaining: int) -> Tensor:
    if policy.name != _CASCADE:
        return settled(ballot.votes, remaining, policy, ballot.task)
    if remaining == 0:
        return ballot.votes.new_ones(ballot.scores.shape[1])
    return _confident(ballot, _running_mean(ballot), policy.parameters["confidence"])


def _outcome(policy: BoundPolicy, ballot: Ballot, members: int) -> Outcome:
    """The outcome of samples that are done."""
    run, samples, _ = ballot.scores.shape
    if policy.name == _CASCADE:
        outcome = decide(ballot, _running_mean(ballot))
    elif policy.name in _NEEDED:
        outcome = _by_count(ballot, _NEEDED[policy.name](members, policy.parameters), members)
    else:
        known = definition(policy.name)
        assert known is not None
        outcome = known.function(ballot)
    used = torch.full((samples,), run, device=ballot.scores.device)
    return replace(outcome, members_used=used)


def _by_count(ballot: Ballot, needed: int, members: int) -> Outcome:
    """k votes of M members, seen from the m members run.

    A chosen label has k votes, so m >= k and the k-th largest score is there; one not chosen has
    M - k + 1 votes against it, so that as many scores are there, and the largest of the least
    M - k + 1 is what the full k-th largest cannot exceed.
    """
    decisions = ballot.votes.sum(dim=0) >= needed
    run = len(ballot.scores)
    lower_bound, upper_bound = kth_largest(
        ballot.scores, min(needed, run), max(run - (members - needed), 1)
    )
    return Outcome(torch.where(decisions, lower_bound, upper_bound), decisions)


def _running_mean(ballot: Ballot) -> Tensor:
    # By cumsum, as `cascade` does: equal sums in equal order give equal floats.
    total = ballot.scores.double().cumsum(dim=0)[-1]
    return (total / len(ballot.scores)).float()


def _confident(ballot: Ballot, scores: Tensor, enough: float) -> Tensor:
    decisions = decide(ballot, scores).decisions
    assert decisions is not None
    return confidence(scores, decisions, ballot.task) >= enough


def _assembled(finished: Sequence[tuple[Tensor, Outcome]]) -> Outcome:
    """One outcome in the order of the samples, from those of the steps."""
    order = torch.cat([rows for rows, _ in finished]).argsort()
    return rows_of(joined([outcome for _, outcome in finished]), order)
