"""Ballots and policies for the tests of policies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from torchserve_ensemble.handlers.base.tasks import Task
from torchserve_ensemble.handlers.policies import (
    Ballot,
    BoundPolicy,
    Catalogue,
    FittedModel,
    Outcome,
    Panel,
    combine_lazily,
    definitions,
    parse_policy,
)
from torchserve_ensemble.handlers.policies.ballot import LABEL_TASKS


def make_ballot(
    task: Task,
    scores: Any,
    *,
    weights: Sequence[float] | None = None,
    member_thresholds: Any = None,
    thresholds: Any = None,
    logits: Tensor | None = None,
) -> Ballot:
    """A ballot from nested lists (M, N, C), with weights 1 and thresholds 0.5 unless given."""
    tensor = torch.as_tensor(scores, dtype=torch.float32)
    members, _, labels = tensor.shape
    return Ballot(
        task=task,
        scores=tensor,
        member_names=tuple(f"m{index}" for index in range(members)),
        weights=torch.tensor(weights if weights is not None else [1.0] * members),
        member_thresholds=torch.full((members, labels), 0.5)
        if member_thresholds is None
        else torch.as_tensor(member_thresholds),
        thresholds=torch.full((labels,), 0.5)
        if thresholds is None
        else torch.as_tensor(thresholds),
        logits=logits,
    )


def bound(
    text: str,
    ballot: Ballot,
    fitted: Mapping[str, FittedModel] | None = None,
    **parameters: Any,
) -> BoundPolicy:
    """A policy for the members of a ballot."""
    offer = Catalogue(task=ballot.task, member_names=ballot.member_names, fitted=fitted or {})
    return parse_policy(text, parameters, offer)


def combine(
    text: str, ballot: Ballot, fitted: Mapping[str, FittedModel] | None = None, **parameters: Any
) -> Outcome:
    """The outcome of a policy on a ballot."""
    return bound(text, ballot, fitted, **parameters).combine(ballot)


def chosen(outcome: Outcome) -> list[list[int]]:
    """For each sample the labels chosen."""
    assert outcome.decisions is not None
    return [row.nonzero().flatten().tolist() for row in outcome.decisions]


GRID = 16


# Machines that run tests are often busy; how long one example takes says nothing.
without_deadline = settings(deadline=None)


deciding = st.sampled_from(sorted(LABEL_TASKS))


@st.composite
def ballots(draw: st.DrawFn, tasks: st.SearchStrategy[Task], max_members: int = 6) -> Ballot:
    """Any ballot of a deciding task."""
    task = draw(tasks)
    members = draw(st.integers(1, max_members))
    samples = draw(st.integers(0, 4))
    labels = 1 if task is Task.PRESENCE else draw(st.integers(2, 4))

    def grid(*shape: int) -> torch.Tensor:
        size = int(torch.tensor(shape).prod())
        values = draw(st.lists(st.integers(0, GRID), min_size=size, max_size=size))
        return torch.tensor(values, dtype=torch.float32).reshape(shape) / GRID

    weights = draw(st.lists(st.integers(0, 3), min_size=members, max_size=members).filter(any))
    return make_ballot(
        task,
        grid(members, samples, labels),
        weights=[float(weight) for weight in weights],
        member_thresholds=grid(members, labels),
        thresholds=grid(labels),
    )


WITH_PARAMETERS = {
    "at_least": "at_least(k=1)",
    "average_of_maximum": "average_of_maximum(buckets=1)",
    "maximum_of_average": "maximum_of_average(buckets=1)",
    "cascade": "cascade(confidence=0.9)",
}


def texts(task: Task) -> list[str]:
    """Every policy that fits a task and needs no fitted model."""
    return [
        WITH_PARAMETERS.get(known.name, known.name)
        for known in definitions()
        if task in known.tasks and known.fitted is None
    ]


class Members:
    """Answers for the members of a ballot, and counts the samples that each was run on."""

    def __init__(self, ballot: Ballot) -> None:
        self._ballot = ballot
        self.samples_run = [0] * len(ballot.scores)

    def __call__(self, member: int, samples: Tensor) -> Tensor:
        self.samples_run[member] += len(samples)
        return self._ballot.scores[member, samples]


def panel_of(ballot: Ballot) -> Panel:
    """The ballot without its scores."""
    return Panel(
        task=ballot.task,
        member_names=ballot.member_names,
        weights=ballot.weights,
        member_thresholds=ballot.member_thresholds,
        thresholds=ballot.thresholds,
    )


def lazily(policy: BoundPolicy, ballot: Ballot, order: list[int] | None = None) -> Outcome:
    """The outcome of running the members in order, with the number of runs checked."""
    members = Members(ballot)
    num_samples = ballot.scores.shape[1]
    outcome = combine_lazily(
        policy, panel_of(ballot), members, num_samples=num_samples, order=order
    )
    assert outcome.members_used is not None
    assert sum(members.samples_run) == int(outcome.members_used.sum())
    return outcome
