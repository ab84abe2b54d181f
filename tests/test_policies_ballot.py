"""Ballots: shapes, votes and selections. The other policy tests build theirs with `make_ballot`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from torchserve_ensemble.handlers.errors import MemberError, PolicyError
from torchserve_ensemble.handlers.policies import (
    Ballot,
    BoundPolicy,
    Catalogue,
    FittedModel,
    Outcome,
    one_hot,
    parse_policy,
)
from torchserve_ensemble.handlers.tasks import Task


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


def test_a_member_votes_from_its_threshold_on() -> None:
    ballot = make_ballot(
        Task.MULTILABEL,
        [[[0.3, 0.7]], [[0.3, 0.7]]],
        member_thresholds=[[0.3, 0.8], [0.4, 0.7]],
    )
    assert ballot.votes.tolist() == [[[True, False]], [[False, True]]]


def test_a_classification_vote_is_the_best_label_lowest_index_first() -> None:
    ballot = make_ballot(Task.CLASSIFICATION, [[[0.4, 0.4, 0.2], [0.1, 0.2, 0.7]]])
    assert ballot.votes.tolist() == [[[True, False, False], [False, False, True]]]
    assert one_hot(torch.zeros(0, 3)).shape == (0, 3)


def test_selection_takes_everything_of_a_member_along() -> None:
    scores = torch.rand(3, 2, 1)
    ballot = make_ballot(
        Task.PRESENCE,
        scores,
        weights=[1.0, 2.0, 3.0],
        member_thresholds=[[0.1], [0.2], [0.3]],
        logits=scores.logit(),
    ).select([2, 0])
    assert ballot.member_names == ("m2", "m0")
    assert ballot.weights.tolist() == [3.0, 1.0]
    assert ballot.member_thresholds.flatten().tolist() == pytest.approx([0.3, 0.1])
    assert torch.equal(ballot.scores, scores[[2, 0]])
    assert ballot.logits is not None
    assert torch.equal(ballot.logits, scores.logit()[[2, 0]])


def test_a_member_that_gave_no_scores_is_named() -> None:
    ballot = make_ballot(Task.PRESENCE, [[[0.5]], [[0.5]]])
    policy = bound("m0 or m1", ballot)
    with pytest.raises(PolicyError, match="needs member m1"):
        policy.combine(ballot.select([0]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_never_become_votes(bad: float) -> None:
    with pytest.raises(MemberError, match=r"scores of member m1 are not finite"):
        make_ballot(Task.PRESENCE, [[[0.5]], [[bad]]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": [1.0]}, r"weights must have the shape \(2,\)"),
        ({"weights": [1.0, -1.0]}, "not negative"),
        ({"weights": [1.0, float("nan")]}, "finite"),
        ({"member_thresholds": [[0.5]]}, r"member_thresholds must have the shape \(2, 1\)"),
        ({"thresholds": [0.5, 0.5]}, "shape"),
        ({"logits": torch.zeros(1, 1, 1)}, "logits must have the shape"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_ballot(Task.PRESENCE, [[[0.5]], [[0.5]]], **change)


def test_members_of_a_regression_do_not_vote() -> None:
    with pytest.raises(ValueError, match="do not vote"):
        _ = make_ballot(Task.REGRESSION, [[[1.0]]]).votes
