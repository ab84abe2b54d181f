"""Tests laws that hold for all policies, or for some, on every ballot."""

from __future__ import annotations

import pytest
import torch
from ballots import GRID, ballots, combine, label_tasks, make_ballot, texts, without_deadline
from hypothesis import given
from hypothesis import strategies as st

from torchserve_ensemble.handlers.base.tasks import Task
from torchserve_ensemble.handlers.policies import Ballot
from torchserve_ensemble.handlers.policies.ballot import LABEL_TASKS, THRESHOLD_TASKS
from torchserve_ensemble.handlers.policies.uncertainty import uncertainty

thresholded = st.sampled_from(sorted(THRESHOLD_TASKS))


def decisions(text: str, ballot: Ballot) -> torch.Tensor:
    """Apply a policy, and return its decisions (N, C) bool."""
    outcome = combine(text, ballot)
    assert outcome.decisions is not None
    return outcome.decisions


@without_deadline
@given(ballot=ballots(label_tasks), data=st.data())
def test_the_order_of_the_members_does_not_matter(ballot: Ballot, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(ballot.scores))))
    shuffled = ballot.select(order)
    # Buckets hold neighbouring members, and a cascade runs members in their order.
    ordered = ("average_of_maximum", "maximum_of_average", "cascade")
    for text in texts(ballot.task):
        if not text.startswith(ordered):
            left, right = combine(text, ballot), combine(text, shuffled)
            torch.testing.assert_close(left.scores, right.scores, atol=1e-6, rtol=0)
            # Logarithms are rounded, so that an exact tie may be decided either way.
            if text not in ("geometric_mean", "product", "logit_mean"):
                assert torch.equal(decisions(text, ballot), decisions(text, shuffled)), text


@without_deadline
@given(ballot=ballots(label_tasks))
def test_combined_probabilities_stay_probabilities(ballot: Ballot) -> None:
    for text in texts(ballot.task):
        scores = combine(text, ballot).scores
        assert ((scores >= 0) & (scores <= 1)).all(), text


@without_deadline
@given(ballot=ballots(label_tasks))
def test_a_larger_k_never_chooses_more_labels(ballot: Ballot) -> None:
    members = len(ballot.scores)
    assert torch.equal(decisions("any", ballot), decisions("at_least(k=1)", ballot))
    assert torch.equal(decisions("all", ballot), decisions(f"at_least(k={members})", ballot))
    assert torch.equal(
        decisions("majority", ballot), decisions(f"at_least(k={members // 2 + 1})", ballot)
    )
    for k in range(1, members):
        more, fewer = (
            decisions(f"at_least(k={k})", ballot),
            decisions(f"at_least(k={k + 1})", ballot),
        )
        assert (more | ~fewer).all()


@without_deadline
@given(ballot=ballots(thresholded))
def test_any_is_not_all_of_the_complements(ballot: Ballot) -> None:
    complement = make_ballot(
        ballot.task,
        1 - ballot.scores,
        # 1 - s must reach its threshold exactly if s is below t. Scores are multiples of the grid,
        # so a threshold half a step above 1 - t does that.
        member_thresholds=1 - ballot.member_thresholds + 0.5 / GRID,
    )
    assert torch.equal(decisions("any", ballot), ~decisions("all", complement))


@without_deadline
@given(ballot=ballots(thresholded))
def test_with_one_threshold_votes_and_scores_agree(ballot: Ballot) -> None:
    same = make_ballot(
        ballot.task,
        ballot.scores,
        member_thresholds=ballot.thresholds.expand(len(ballot.scores), -1),
        thresholds=ballot.thresholds,
    )
    for text, by_score in (("any", "max"), ("all", "min")):
        assert torch.equal(decisions(text, same), decisions(by_score, same))
    outcome = combine("majority", same)
    assert torch.equal(decisions("majority", same), outcome.scores >= same.thresholds)


@without_deadline
@given(ballot=ballots(label_tasks))
def test_equal_members_decide_as_one_of_them_does(ballot: Ballot) -> None:
    alone = ballot.select([0])
    weighted = torch.ones(3)
    copies = make_ballot(
        ballot.task,
        alone.scores.expand(3, -1, -1),
        weights=weighted.tolist(),
        member_thresholds=alone.member_thresholds.expand(3, -1),
        thresholds=alone.thresholds,
    )
    one = make_ballot(
        ballot.task,
        alone.scores,
        member_thresholds=alone.member_thresholds,
        thresholds=alone.thresholds,
    )
    for text in texts(ballot.task):
        if text != "product":  # The product takes each copy as new evidence.
            torch.testing.assert_close(
                combine(text, copies).scores, combine(text, one).scores, atol=1e-6, rtol=0
            )
    for text in ("any", "all", "majority", "plurality", "weighted_vote", "unanimous", "mean"):
        assert torch.equal(decisions(text, copies), decisions(text, one)), text


@without_deadline
@given(ballot=ballots(thresholded), data=st.data())
def test_a_higher_score_takes_no_label_away(ballot: Ballot, data: st.DataObject) -> None:
    member = data.draw(st.integers(0, len(ballot.scores) - 1))
    raised = ballot.scores.clone()
    raised[member] = (raised[member] + data.draw(st.integers(1, GRID)) / GRID).clamp(max=1)
    higher = make_ballot(
        ballot.task,
        raised,
        weights=ballot.weights.tolist(),
        member_thresholds=ballot.member_thresholds,
        thresholds=ballot.thresholds,
    )
    for text in texts(ballot.task):
        # A cascade may stop at a confident no, and `unanimous` abstains if members disagree.
        if text != "unanimous" and not text.startswith("cascade"):
            assert (combine(text, higher).scores >= combine(text, ballot).scores - 1e-6).all(), text
            if text not in ("geometric_mean", "product", "logit_mean"):
                assert (decisions(text, higher) | ~decisions(text, ballot)).all(), text


@without_deadline
@given(ballot=ballots(st.just(Task.CLASSIFICATION)))
def test_policies_of_scores_choose_exactly_the_best_label(ballot: Ballot) -> None:
    several = ("any", "all", "at_least", "majority", "unanimous")
    for text in texts(Task.CLASSIFICATION):
        if not text.startswith(several):
            assert (decisions(text, ballot).sum(dim=-1) == 1).all(), text
    best = combine("mean", ballot).scores.argmax(dim=-1)
    assert torch.equal(decisions("mean", ballot).long().argmax(dim=-1), best)


@without_deadline
@given(ballot=ballots(label_tasks), limit=st.integers(0, GRID))
def test_abstaining_only_ever_takes_decisions_away(ballot: Ballot, limit: int) -> None:
    share = limit / GRID
    outcome = combine("mean", ballot, min_confidence=share, max_disagreement=share)
    without_limits = decisions("mean", ballot)
    assert outcome.abstained is not None
    assert outcome.decisions is not None
    answered = ~outcome.abstained
    assert torch.equal(outcome.decisions[answered], without_limits[answered])
    assert not outcome.decisions[outcome.abstained].any()
    measured = uncertainty(ballot.scores, ballot.votes, ballot.task).disagreement
    assert (measured[answered] <= share).all()


@without_deadline
@given(ballot=ballots(st.just(Task.CLASSIFICATION)))
def test_a_geometric_mean_is_the_mean_of_the_logits(ballot: Ballot) -> None:
    probabilities = (ballot.scores * 5).softmax(dim=-1)
    from_logits = make_ballot(Task.CLASSIFICATION, probabilities, logits=ballot.scores * 5 + 7)
    torch.testing.assert_close(
        combine("logit_mean", from_logits).scores,
        combine("geometric_mean", from_logits).scores,
        atol=1e-6,
        rtol=0,
    )


@pytest.mark.parametrize("task", sorted(LABEL_TASKS))
def test_samples_do_not_see_each_other(task: Task) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = 1 if task is Task.PRESENCE else 3
    scores = torch.rand(4, 20, labels, generator=generator)
    for text in texts(task):
        together = combine(text, make_ballot(task, scores))
        alone = [combine(text, make_ballot(task, scores[:, [row]])) for row in range(20)]
        assert torch.equal(together.scores, torch.cat([one.scores for one in alone])), text
