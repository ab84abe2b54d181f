"""Tests that lazy policies decide as if all members had run."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from ballots import (
    GRID,
    Members,
    ballots,
    bound,
    combine,
    label_tasks,
    lazily,
    make_ballot,
    panel_of,
    without_deadline,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from torchserve_ensemble.handlers.base.errors import PolicyError
from torchserve_ensemble.handlers.base.tasks import Task
from torchserve_ensemble.handlers.policies import (
    Ballot,
    can_stop_early,
    combine_lazily,
    settled,
)
from torchserve_ensemble.handlers.policies.ballot import LABEL_TASKS, THRESHOLD_TASKS

VOTES = ("any", "all", "majority", "plurality", "unanimous")


def same(left: Tensor | None, right: Tensor | None) -> bool:
    """Whether two tensors are equal, or both are None."""
    if left is None or right is None:
        return left is right
    return torch.equal(left, right)


@without_deadline
@given(ballot=ballots(label_tasks), data=st.data())
def test_lazy_decisions_are_the_full_ones(ballot: Ballot, data: st.DataObject) -> None:
    members = len(ballot.scores)
    order = list(data.draw(st.permutations(range(members))))
    texts = [*VOTES, f"at_least(k={data.draw(st.integers(1, members))})"]
    for text in texts:
        policy = bound(text, ballot)
        full, lazy = policy.combine(ballot), lazily(policy, ballot, order)
        assert same(lazy.decisions, full.decisions), text
        assert same(lazy.abstained, full.abstained), text


@without_deadline
@given(ballot=ballots(label_tasks), data=st.data())
def test_a_lazy_score_bounds_the_full_one(ballot: Ballot, data: st.DataObject) -> None:
    order = list(data.draw(st.permutations(range(len(ballot.scores)))))
    for text in ("any", "all", "majority"):
        policy = bound(text, ballot)
        full, lazy = policy.combine(ballot), lazily(policy, ballot, order)
        assert lazy.decisions is not None
        below = lazy.scores <= full.scores
        assert torch.where(lazy.decisions, below, lazy.scores >= full.scores).all(), text
        if ballot.task in THRESHOLD_TASKS:
            one = make_ballot(ballot.task, ballot.scores)
            outcome = lazily(bound(text, one), one, order)
            assert same(outcome.scores >= 0.5, outcome.decisions), text


@without_deadline
@given(ballot=ballots(label_tasks), limit=st.integers(0, GRID), data=st.data())
def test_a_lazy_cascade_is_the_full_one(ballot: Ballot, limit: int, data: st.DataObject) -> None:
    order = list(data.draw(st.permutations(range(len(ballot.scores)))))
    policy = bound("cascade", ballot, confidence=limit / GRID)
    full, lazy = policy.combine(ballot.select(order)), lazily(policy, ballot, order)
    assert same(lazy.scores, full.scores)
    assert same(lazy.decisions, full.decisions)
    assert same(lazy.members_used, full.members_used)


@pytest.mark.parametrize("text", [*VOTES, "at_least(k=2)"])
@pytest.mark.parametrize("task", sorted(LABEL_TASKS))
@pytest.mark.parametrize("members", [1, 2, 3, 4])
def test_settled_is_exact(text: str, task: Task, members: int) -> None:
    """A sample is settled if and only if no votes of the remaining members change its decision.

    The test tries all votes of all members.
    """
    labels = 1 if task is Task.PRESENCE else 2
    if text == "at_least(k=2)" and members < 2:
        return
    singles = [list(votes) for votes in product([0.0, 1.0], repeat=labels)]
    if task is Task.CLASSIFICATION:
        singles = torch.eye(3).tolist()
    for run in range(1, members + 1):
        for start in product(singles, repeat=run):
            ballots_after = [
                make_ballot(task, [[row] for row in (*start, *rest)])
                for rest in product(singles, repeat=members - run)
            ]
            policy = bound(text, ballots_after[0])
            answers = set()
            for ballot in ballots_after:
                outcome = policy.combine(ballot)
                assert outcome.decisions is not None
                abstained = outcome.abstained is not None and bool(outcome.abstained[0])
                answers.add((tuple(outcome.decisions[0].tolist()), abstained))
            votes = torch.tensor(start).unsqueeze(1) >= 0.5
            claimed = bool(settled(votes, members - run, policy, task)[0])
            if claimed:
                assert len(answers) == 1, (start, members)
            elif text != "plurality":  # Scores, not votes, break the ties of plurality.
                assert len(answers) > 1, (start, members)


def test_members_run_only_on_undecided_samples() -> None:
    ballot = make_ballot(Task.PRESENCE, [[[0.9], [0.1], [0.1]], [[0.0], [0.9], [0.1]], [[0.2]] * 3])
    members = Members(ballot)
    outcome = combine_lazily(bound("any", ballot), panel_of(ballot), members, num_samples=3)
    assert members.samples_run == [3, 2, 1]
    assert outcome.members_used is not None
    assert outcome.members_used.tolist() == [1, 2, 3]
    assert outcome.scores.flatten().tolist() == pytest.approx([0.9, 0.9, 0.2])


def test_a_cascade_stops_as_soon_as_it_is_confident() -> None:
    ballot = make_ballot(Task.PRESENCE, [[[0.95], [0.6]], [[0.1], [0.7]], [[0.1], [0.2]]])
    outcome = combine("cascade(confidence=0.9)", ballot)
    assert outcome.members_used is not None
    assert outcome.members_used.tolist() == [1, 3]
    assert outcome.scores.flatten().tolist() == pytest.approx([0.95, 0.5])


def test_no_samples() -> None:
    ballot = make_ballot(Task.MULTILABEL, torch.zeros(2, 0, 3))
    outcome = lazily(bound("majority", ballot), ballot)
    assert outcome.scores.shape == (0, 3)
    assert outcome.decisions is not None
    assert outcome.decisions.shape == (0, 3)


def test_a_threshold_of_the_request_counts() -> None:
    ballot = make_ballot(Task.PRESENCE, [[[0.4]], [[0.1]]])
    outcome = lazily(bound("any(threshold=0.3)", ballot), ballot)
    assert outcome.members_used is not None
    assert outcome.members_used.tolist() == [1]
    assert outcome.decisions is not None
    assert outcome.decisions.tolist() == [[True]]


@pytest.mark.parametrize("text", ["mean", "weighted_vote", "any(min_confidence=0.5)", "m0 or m1"])
def test_policies_that_need_all_members_are_refused(text: str) -> None:
    ballot = make_ballot(Task.PRESENCE, [[[0.5]], [[0.5]]])
    policy = bound(text, ballot)
    assert not can_stop_early(policy)
    with pytest.raises(ValueError, match="needs all members"):
        combine_lazily(policy, panel_of(ballot), Members(ballot), num_samples=1)


def test_wrong_orders_and_too_few_members_are_refused() -> None:
    ballot = make_ballot(Task.PRESENCE, [[[0.5]], [[0.5]]])
    policy = bound("at_least(k=2)", ballot)
    with pytest.raises(ValueError, match="each of 2 members once"):
        combine_lazily(policy, panel_of(ballot), Members(ballot), num_samples=1, order=[0, 0])
    alone = ballot.select([0])
    with pytest.raises(PolicyError, match="needs more than the 1 members"):
        combine_lazily(policy, panel_of(alone), Members(alone), num_samples=1)
    with pytest.raises(ValueError, match="does not settle by votes"):
        settled(ballot.votes, 1, bound("mean", ballot), ballot.task)
