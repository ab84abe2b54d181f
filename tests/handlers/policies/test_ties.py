"""Tests that neither the order of members nor laziness decides a tie of votes."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from ballots import bound, chosen, combine, label_tasks, lazily, make_ballot, without_deadline
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from torchserve_ensemble.handlers.base.tasks import Task
from torchserve_ensemble.handlers.policies import Ballot
from torchserve_ensemble.handlers.policies.ballot import THRESHOLD_TASKS

WEIGHTS = st.sampled_from([0.0, 0.1, 0.2, 0.3, 1 / 3, 1.0, 3.0, 1e9])


@st.composite
def tied_ballots(draw: st.DrawFn, max_samples: int = 500) -> Ballot:
    """Draw a ballot in which every label has the same scores, but from different members.

    The scores are random numbers of torch, because hypothesis prefers round numbers, whose sums
    have no rounding errors.
    """
    task = draw(label_tasks)
    members = draw(st.integers(2, 12))
    samples = draw(st.integers(1, max_samples))
    labels = 1 if task is Task.PRESENCE else draw(st.integers(2, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    scale = 2.0 ** draw(st.sampled_from([0, 0, 0, -8, -30]))
    column = torch.rand(members, 1 if task in THRESHOLD_TASKS else samples, 1, generator=generator)
    column = scale * column.expand(members, samples, labels)
    shuffled = torch.rand(members, samples, labels, generator=generator).argsort(dim=0)
    scores = column.gather(0, shuffled)
    mean = column[:, 0].double().mean(dim=0).float()
    return make_ballot(
        task,
        scores,
        weights=draw(st.lists(WEIGHTS, min_size=members, max_size=members).filter(any)),
        # If the number of members is even, half of them vote for each label.
        member_thresholds=column[:, 0].sort(dim=0).values[members // 2].expand(members, -1),
        thresholds=torch.nextafter(mean, mean + draw(st.integers(-1, 1))),
    )


def decided(text: str, ballot: Ballot) -> Tensor:
    """Apply a policy, and return its decisions (N, C) bool."""
    decisions = combine(text, ballot).decisions
    assert decisions is not None
    return decisions


@without_deadline
@given(ballot=tied_ballots(), data=st.data())
def test_neither_order_nor_laziness_decides_a_tie(ballot: Ballot, data: st.DataObject) -> None:
    order = list(data.draw(st.permutations(range(len(ballot.scores)))))
    for text in ("plurality", "weighted_vote"):
        full, other = combine(text, ballot), combine(text, ballot.select(order))
        assert full.decisions is not None
        assert torch.equal(decided(text, ballot.select(order)), full.decisions), text
        assert torch.equal(other.scores, full.scores), text
    full, lazy = decided("plurality", ballot), lazily(bound("plurality", ballot), ballot, order)
    assert lazy.decisions is not None
    assert torch.equal(lazy.decisions, full)


def adversarial(task: Task, samples: int, seed: int) -> Ballot:
    """Make a ballot of twelve members that is a tie for every sample.

    In a classification six members vote for the one label and six for the other, and both labels
    have the same scores in different orders.
    """
    generator = torch.Generator().manual_seed(seed)
    high, low = (torch.rand(6, samples, generator=generator) / 2 + base for base in (0.5, 0.0))
    shuffled = torch.rand(6, samples, generator=generator).argsort(dim=0)
    first = torch.cat([high, low.gather(0, shuffled)])
    second = torch.cat([low, high.gather(0, shuffled)])
    if task is Task.CLASSIFICATION:
        return make_ballot(task, torch.stack([first, second], dim=-1))
    # All samples have the same scores in different orders, and the threshold is their mean.
    bounded = (
        first[:, :1]
        .expand(-1, samples)
        .gather(0, torch.rand(12, samples, generator=generator).argsort(dim=0))
    )
    mean = first[:, 0].double().mean(dim=0, keepdim=True).float()
    return make_ballot(task, bounded.unsqueeze(-1), thresholds=mean)


@pytest.mark.parametrize("seed", range(4))
def test_a_search_at_twelve_members_finds_no_tie_that_order_decides(seed: int) -> None:
    ballot = adversarial(Task.CLASSIFICATION, 20_000, seed)
    full = decided("plurality", ballot)
    assert full[:, 0].all(), "both labels have equal votes and scores, so the lowest index wins"
    generator = torch.Generator().manual_seed(seed)
    for _ in range(4):
        order = torch.randperm(12, generator=generator).tolist()
        for text in ("plurality", "weighted_vote"):
            assert torch.equal(decided(text, ballot.select(order)), full), text
        lazy = lazily(bound("plurality", ballot), ballot, order).decisions
        assert torch.equal(lazy, full)


@pytest.mark.parametrize("seed", range(20))
def test_a_search_for_yes_or_no_at_twelve_members_finds_none_either(seed: int) -> None:
    ballot = adversarial(Task.PRESENCE, 500, seed)
    full = decided("plurality", ballot)
    assert full.all() or not full.any(), "all samples have the same scores"
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed)).tolist()
    assert torch.equal(decided("plurality", ballot.select(order)), full)
    assert torch.equal(lazily(bound("plurality", ballot), ballot, order).decisions, full)


@without_deadline
@given(ballot=tied_ballots(max_samples=5))
def test_plurality_decides_as_with_exact_numbers(ballot: Ballot) -> None:
    decisions = chosen(combine("plurality", ballot))
    members, samples, labels = ballot.scores.shape
    for sample in range(samples):
        votes = ballot.votes[:, sample].sum(dim=0).tolist()
        sums = [sum(map(Fraction, column)) for column in ballot.scores[:, sample].T.tolist()]
        means = torch.tensor([float(each / members) for each in sums])
        if ballot.task in THRESHOLD_TASKS:
            by_mean = (means >= ballot.thresholds).tolist()
            expected = [
                label
                for label in range(labels)
                if 2 * votes[label] > members or (2 * votes[label] == members and by_mean[label])
            ]
        else:
            best = [label for label in range(labels) if votes[label] == max(votes)]
            expected = [max(best, key=lambda label: (float(means[label]), -label))]
        assert decisions[sample] == expected


@pytest.mark.parametrize("task", sorted(THRESHOLD_TASKS))
def test_tiny_and_huge_weights_count(task: Task) -> None:
    scores = [[[0.9]], [[0.1]], [[0.2]]]
    assert chosen(combine("weighted_vote", make_ballot(task, scores, weights=[1e9, 1e-9, 1.0])))[
        0
    ] == [0]
    assert chosen(combine("weighted_vote", make_ballot(task, scores, weights=[1e-9, 0, 0]))) == [
        [0]
    ]
