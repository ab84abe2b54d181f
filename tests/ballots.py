"""Helpers for the tests of policies: they make ballots and policies, and draw random ballots."""

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
    """Make a ballot of the members m0, m1 ... from nested lists of scores (M, N, C).

    The weights are 1 and the thresholds 0.5 unless they are given.
    """
    tensor = torch.as_tensor(scores, dtype=torch.float32)
    num_members, _, num_labels = tensor.shape
    return Ballot(
        task=task,
        scores=tensor,
        member_names=tuple(f"m{index}" for index in range(num_members)),
        weights=torch.tensor(weights if weights is not None else [1.0] * num_members),
        member_thresholds=torch.full((num_members, num_labels), 0.5)
        if member_thresholds is None
        else torch.as_tensor(member_thresholds),
        thresholds=torch.full((num_labels,), 0.5)
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
    """Parse the text of a policy for the members of a ballot."""
    catalogue = Catalogue(task=ballot.task, member_names=ballot.member_names, fitted=fitted or {})
    return parse_policy(text, parameters, catalogue)


def combine(
    text: str, ballot: Ballot, fitted: Mapping[str, FittedModel] | None = None, **parameters: Any
) -> Outcome:
    """Parse the text of a policy and apply the policy to a ballot."""
    return bound(text, ballot, fitted, **parameters).combine(ballot)


def chosen(outcome: Outcome) -> list[list[int]]:
    """Positions of the labels that were chosen for each sample."""
    assert outcome.decisions is not None
    return [row.nonzero().flatten().tolist() for row in outcome.decisions]


GRID = 16
"""Drawn scores are multiples of 1 / 16. Their sums are exact, and ties and scores that equal a
threshold are frequent."""

# On a busy machine the time of a single example says nothing.
without_deadline = settings(deadline=None)

label_tasks = st.sampled_from(sorted(LABEL_TASKS))
"""Draws a task whose answers are labels."""


@st.composite
def ballots(draw: st.DrawFn, tasks: st.SearchStrategy[Task], max_members: int = 6) -> Ballot:
    """Draw a ballot of one of the tasks, with up to four samples and four labels."""
    task = draw(tasks)
    num_members = draw(st.integers(1, max_members))
    num_samples = draw(st.integers(0, 4))
    num_labels = 1 if task is Task.PRESENCE else draw(st.integers(2, 4))

    def grid(*shape: int) -> torch.Tensor:
        size = int(torch.tensor(shape).prod())
        values = draw(st.lists(st.integers(0, GRID), min_size=size, max_size=size))
        return torch.tensor(values, dtype=torch.float32).reshape(shape) / GRID

    weights = draw(
        st.lists(st.integers(0, 3), min_size=num_members, max_size=num_members).filter(any)
    )
    return make_ballot(
        task,
        grid(num_members, num_samples, num_labels),
        weights=[float(weight) for weight in weights],
        member_thresholds=grid(num_members, num_labels),
        thresholds=grid(num_labels),
    )


_WITH_PARAMETERS = {
    "at_least": "at_least(k=1)",
    "average_of_maximum": "average_of_maximum(buckets=1)",
    "maximum_of_average": "maximum_of_average(buckets=1)",
    "cascade": "cascade(confidence=0.9)",
}


def texts(task: Task) -> list[str]:
    """Texts of all policies that fit a task and need no fitted model."""
    return [
        _WITH_PARAMETERS.get(registered.name, registered.name)
        for registered in definitions()
        if task in registered.tasks and registered.fitted is None
    ]


class Members:
    """Runs the members of a ballot, whose scores it already has, for `combine_lazily`.

    Attributes:
        samples_run: for each member the number of samples that it was run on.
    """

    def __init__(self, ballot: Ballot) -> None:
        self._ballot = ballot
        self.samples_run = [0] * len(ballot.scores)

    def __call__(self, member: int, samples: Tensor) -> Tensor:
        self.samples_run[member] += len(samples)
        return self._ballot.scores[member, samples]


def panel_of(ballot: Ballot) -> Panel:
    """Make the panel of a ballot: everything but the scores."""
    return Panel(
        task=ballot.task,
        member_names=ballot.member_names,
        weights=ballot.weights,
        member_thresholds=ballot.member_thresholds,
        thresholds=ballot.thresholds,
    )


def lazily(policy: BoundPolicy, ballot: Ballot, order: list[int] | None = None) -> Outcome:
    """Apply a policy lazily, and check that the outcome counts the runs of members correctly."""
    members = Members(ballot)
    num_samples = ballot.scores.shape[1]
    outcome = combine_lazily(
        policy, panel_of(ballot), members, num_samples=num_samples, order=order
    )
    assert outcome.members_used is not None
    assert sum(members.samples_run) == int(outcome.members_used.sum())
    return outcome
