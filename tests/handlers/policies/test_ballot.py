"""Tests of ballots: shapes, votes, and selections of members."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ballots import bound, make_ballot

from torchserve_ensemble.handlers.base.errors import MemberError, PolicyError
from torchserve_ensemble.handlers.base.tasks import Task
from torchserve_ensemble.handlers.policies import (
    one_hot,
)


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


def test_a_selection_keeps_everything_of_its_members() -> None:
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
def test_scores_that_are_not_finite_are_refused(bad: float) -> None:
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
