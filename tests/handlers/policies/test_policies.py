"""Compares policies with results that were computed by hand, and tests their edge cases."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
import torch
from ballots import bound, chosen, combine, make_ballot, texts
from pydantic import Field

from torchserve_ensemble.handlers.base.errors import PolicyError
from torchserve_ensemble.handlers.base.tasks import Task
from torchserve_ensemble.handlers.policies import Ballot, Outcome, definitions, policy, registry

# Three members and four samples: no member, one, two, and all of them vote yes.
PRESENCE = [
    [[0.1], [0.9], [0.8], [0.7]],
    [[0.2], [0.4], [0.6], [0.9]],
    [[0.3], [0.2], [0.4], [0.8]],
]
# Three members, three labels and three samples: all agree, two against one, all differ.
CLASSIFICATION = [
    [[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.6, 0.3, 0.1]],
    [[0.6, 0.3, 0.1], [0.4, 0.5, 0.1], [0.3, 0.5, 0.2]],
    [[0.8, 0.1, 0.1], [0.0, 0.9, 0.1], [0.1, 0.1, 0.8]],
]


def from_odds(odds: float) -> float:
    """Compute the probability p that has the odds p / (1 - p)."""
    return odds / (1 + odds)


@pytest.mark.parametrize(
    ("text", "scores", "decisions"),
    [
        ("any", [0.3, 0.9, 0.8, 0.9], [0, 1, 1, 1]),
        ("all", [0.1, 0.2, 0.4, 0.7], [0, 0, 0, 1]),
        ("at_least(k=2)", [0.2, 0.4, 0.6, 0.8], [0, 0, 1, 1]),
        ("majority", [0.2, 0.4, 0.6, 0.8], [0, 0, 1, 1]),
        ("plurality", [0.0, 1 / 3, 2 / 3, 1.0], [0, 0, 1, 1]),
        ("weighted_vote", [0.0, 0.6, 0.9, 1.0], [0, 1, 1, 1]),
        ("mean", [0.2, 0.5, 0.6, 0.8], [0, 1, 1, 1]),
        ("weighted_mean", [0.15, 0.68, 0.7, 0.77], [0, 1, 1, 1]),
        ("median", [0.2, 0.4, 0.6, 0.8], [0, 0, 1, 1]),
        ("trimmed_mean(fraction=0.34)", [0.2, 0.4, 0.6, 0.8], [0, 0, 1, 1]),
        ("trimmed_mean(fraction=0.3)", [0.2, 0.5, 0.6, 0.8], [0, 1, 1, 1]),
        ("max", [0.3, 0.9, 0.8, 0.9], [0, 1, 1, 1]),
        ("min", [0.1, 0.2, 0.4, 0.7], [0, 0, 0, 1]),
        ("geometric_mean", [0.181712, 0.416017, 0.576900, 0.795811], [0, 0, 1, 1]),
        ("product", [6 / 510, 0.6, 0.8, 504 / 510], [0, 1, 1, 1]),
        (
            "logit_mean",
            [
                from_odds((6 / 504) ** (1 / 3)),
                from_odds(1.5 ** (1 / 3)),
                from_odds(4 ** (1 / 3)),
                from_odds(84 ** (1 / 3)),
            ],
            [0, 1, 1, 1],
        ),
        ("average_of_maximum(buckets=2)", [0.25, 0.55, 0.6, 0.85], [0, 1, 1, 1]),
        ("maximum_of_average(buckets=2)", [0.3, 0.65, 0.7, 0.8], [0, 1, 1, 1]),
        ("unanimous", [0.2, 0.5, 0.6, 0.8], [0, 0, 0, 1]),
    ],
)
def test_presence_by_hand(text: str, scores: list[float], decisions: list[int]) -> None:
    outcome = combine(text, make_ballot(Task.PRESENCE, PRESENCE, weights=[0.6, 0.3, 0.1]))
    assert outcome.scores.flatten().tolist() == pytest.approx(scores, abs=1e-5)
    assert outcome.decisions is not None
    assert outcome.decisions.flatten().long().tolist() == decisions


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("any", [[0], [0, 1], [0, 1, 2]]),
        ("all", [[0], [], []]),
        ("at_least(k=2)", [[0], [1], []]),
        ("majority", [[0], [1], []]),
        # In the last sample all votes differ, and the mean scores 1.0 / 3, 0.9 / 3, 1.1 / 3 decide.
        ("plurality", [[0], [1], [2]]),
        ("weighted_vote", [[0], [0], [0]]),
        ("unanimous", [[0], [], []]),
        ("mean", [[0], [1], [2]]),
        ("max", [[0], [1], [2]]),
        ("min", [[0], [1], [0]]),
        ("median", [[0], [1], [0]]),
        ("borda", [[0], [1], [0]]),
        # In the last sample the products are 0.018, 0.015 and 0.016.
        ("product", [[0], [1], [0]]),
    ],
)
def test_classification_by_hand(text: str, labels: list[list[int]]) -> None:
    outcome = combine(
        text, make_ballot(Task.CLASSIFICATION, CLASSIFICATION, weights=[0.6, 0.3, 0.1])
    )
    assert chosen(outcome) == labels


def test_combined_probabilities_of_a_classification() -> None:
    ballot = make_ballot(Task.CLASSIFICATION, [[[0.8, 0.2]], [[0.4, 0.6]]])
    product = combine("product", ballot).scores[0].tolist()
    assert product == pytest.approx([0.32 / 0.44, 0.12 / 0.44])
    roots = (0.32**0.5, 0.12**0.5)
    pooled = combine("geometric_mean", ballot).scores[0].tolist()
    assert pooled == pytest.approx([root / sum(roots) for root in roots])


def test_plurality_breaks_a_tie_by_the_mean_score_then_by_the_label() -> None:
    by_score = [[[0.6, 0.4, 0.0]], [[0.1, 0.9, 0.0]]]
    equal = [[[0.3, 0.7, 0.0]], [[0.3, 0.0, 0.7]]]
    assert chosen(combine("plurality", make_ballot(Task.CLASSIFICATION, by_score))) == [[1]]
    # No member votes for label 0; labels 1 and 2 have equal votes and equal mean scores.
    assert chosen(combine("plurality", make_ballot(Task.CLASSIFICATION, equal))) == [[1]]


@pytest.mark.parametrize(
    ("scores", "label"), [([0.9, 0.4], [0]), ([0.6, 0.1], []), ([0.75, 0.25], [0])]
)
def test_plurality_of_a_yes_or_no_tie_follows_the_mean(scores: list[float], label: Any) -> None:
    ballot = make_ballot(Task.PRESENCE, [[[score]] for score in scores])
    assert chosen(combine("plurality", ballot)) == [label]
    assert chosen(combine("majority", ballot)) == [[]]


def test_weights_that_add_up_to_a_tie_are_a_tie() -> None:
    ballot = make_ballot(
        Task.CLASSIFICATION,
        [[[0.9, 0.1]], [[0.9, 0.1]], [[0.4, 0.6]]],
        weights=[0.1, 0.7, 0.8],
    )
    # In float32 0.1 + 0.7 is less than 0.8. It is a tie all the same, which the weighted mean
    # breaks.
    assert chosen(combine("weighted_vote", ballot)) == [[0]]


def test_borda_counts_ranks_and_halves_ties() -> None:
    ballot = make_ballot(Task.CLASSIFICATION, [[[0.5, 0.3, 0.2]], [[0.2, 0.4, 0.4]]])
    scores = combine("borda", ballot).scores[0].tolist()
    assert scores == pytest.approx([(2 + 0) / 4, (1 + 1.5) / 4, (0 + 1.5) / 4])


def test_unanimous_marks_where_it_abstains() -> None:
    outcome = combine("unanimous", make_ballot(Task.PRESENCE, PRESENCE))
    assert outcome.abstained is not None
    assert outcome.abstained.tolist() == [False, True, True, False]


def test_regression_gives_values_and_their_spread() -> None:
    ballot = make_ballot(Task.REGRESSION, [[[1.0]], [[2.0]], [[6.0]]], weights=[1.0, 0.0, 1.0])
    assert combine("mean", ballot).scores.item() == pytest.approx(3)
    assert combine("weighted_mean", ballot).scores.item() == pytest.approx(3.5)
    assert combine("median", ballot).scores.item() == 2
    assert combine("max", ballot).scores.item() == 6
    outcome = combine("min", ballot)
    assert outcome.scores.item() == 1
    assert outcome.decisions is None
    spread = {name: values.item() for name, values in outcome.spread.items()}
    assert spread == pytest.approx(
        {"standard_deviation": (14 / 3) ** 0.5, "quantile_05": 1.1, "quantile_95": 5.6}
    )


def test_a_threshold_moves_votes_and_combined_scores() -> None:
    ballot = make_ballot(Task.PRESENCE, PRESENCE, thresholds=[0.9])
    assert chosen(combine("mean", ballot)) == [[], [], [], []]
    assert chosen(combine("mean(threshold=0.2)", ballot)) == [[0], [0], [0], [0]]
    assert chosen(combine("all", ballot, threshold="0.4")) == [[], [], [0], [0]]
    assert chosen(combine("any(threshold=0.95)", ballot)) == [[], [], [], []]


def test_abstaining_below_a_confidence() -> None:
    outcome = combine("mean", make_ballot(Task.PRESENCE, PRESENCE), min_confidence=0.7)
    assert outcome.abstained is not None
    # The decisions are no, yes, yes and yes, with confidences 0.8, 0.5, 0.6 and 0.8.
    assert outcome.abstained.tolist() == [False, True, True, False]
    assert chosen(outcome) == [[], [], [], [0]]


def test_confidence_in_several_labels_is_the_lowest() -> None:
    ballot = make_ballot(Task.MULTILABEL, [[[0.9, 0.2], [0.9, 0.45]]])
    outcome = combine("mean(min_confidence=0.6)", ballot)
    assert outcome.abstained is not None
    assert outcome.abstained.tolist() == [False, True]
    assert chosen(outcome) == [[0], []]


def test_a_policy_does_not_abstain_at_the_limit_itself() -> None:
    sure = make_ballot(Task.PRESENCE, [[[0.75]], [[0.75]]])
    assert chosen(combine("mean(min_confidence=0.75)", sure)) == [[0]]
    split = make_ballot(Task.PRESENCE, [[[1.0]], [[0.25]]])
    assert chosen(combine("mean(max_disagreement=1)", split)) == [[0]]
    assert chosen(combine("mean(max_disagreement=0.99)", split)) == [[]]


def test_reasons_to_abstain_add_up() -> None:
    ballot = make_ballot(Task.PRESENCE, PRESENCE)
    outcome = combine("unanimous(min_confidence=0.85)", ballot)
    assert outcome.abstained is not None
    assert outcome.abstained.tolist() == [True, True, True, True]
    outcome = combine("unanimous(min_confidence=0)", ballot)
    assert outcome.abstained is not None
    assert outcome.abstained.tolist() == [False, True, True, False]


def test_without_a_label_the_confidence_is_zero() -> None:
    outcome = combine("all(min_confidence=0.01)", make_ballot(Task.CLASSIFICATION, CLASSIFICATION))
    assert outcome.abstained is not None
    assert outcome.abstained.tolist() == [False, True, True]


def test_abstaining_above_a_disagreement() -> None:
    ballot = make_ballot(Task.CLASSIFICATION, CLASSIFICATION)
    outcome = combine("mean(max_disagreement=0.7)", ballot)
    assert outcome.abstained is not None
    # The shares of pairs of members with different votes are none, two of three, and all.
    assert outcome.abstained.tolist() == [False, False, True]


@pytest.mark.parametrize("task", list(Task))
@pytest.mark.parametrize("num_samples", [0, 1, 3])
def test_outcomes_of_every_policy_have_the_right_shapes(task: Task, num_samples: int) -> None:
    labels = 1 if task is Task.PRESENCE else 4
    for num_members in (1, 2, 5):
        scores = torch.rand(num_members, num_samples, labels)
        if task is Task.CLASSIFICATION:
            scores = scores.softmax(dim=-1)
        for text in texts(task):
            outcome = combine(text, make_ballot(task, scores))
            assert outcome.scores.shape == (num_samples, labels), text
            assert outcome.scores.dtype == torch.float32, text
            if task is Task.REGRESSION:
                assert outcome.decisions is None, text
                shapes = {values.shape for values in outcome.spread.values()}
                assert shapes == {(num_samples, labels)}, text
            else:
                assert outcome.decisions is not None, text
                assert outcome.decisions.shape == (num_samples, labels), text
                assert outcome.decisions.dtype == torch.bool, text
            if outcome.abstained is not None:
                assert outcome.abstained.shape == (num_samples,), text


@pytest.mark.parametrize("text", ["weighted_mean", "weighted_vote"])
def test_weights_that_are_all_zero_are_refused(text: str) -> None:
    ballot = make_ballot(Task.PRESENCE, PRESENCE, weights=[0.0, 0.0, 1.0])
    with pytest.raises(PolicyError, match="voting weights of m0, m1 are all 0"):
        combine(text, ballot.select([0, 1]))


@pytest.mark.parametrize("text", ["at_least(k=3)", "average_of_maximum(buckets=3)"])
def test_fewer_scores_than_the_policy_needs_are_refused(text: str) -> None:
    ballot = make_ballot(Task.PRESENCE, PRESENCE)
    with pytest.raises(PolicyError, match="only 2 gave scores"):
        bound(text, ballot).combine(ballot.select([0, 1]))


@pytest.mark.parametrize("text", ["geometric_mean", "product", "logit_mean"])
@pytest.mark.parametrize("task", [Task.CLASSIFICATION, Task.PRESENCE])
def test_certain_members_that_contradict_each_other_give_finite_scores(
    text: str, task: Task
) -> None:
    certain = [[[0.0, 1.0]], [[1.0, 0.0]]] if task is Task.CLASSIFICATION else [[[0.0]], [[1.0]]]
    scores = combine(text, make_ballot(task, certain)).scores
    expected = 0.0 if (text, task) == ("geometric_mean", Task.PRESENCE) else 0.5
    assert scores.flatten().tolist() == pytest.approx([expected] * scores.numel(), abs=0)


def test_a_logit_counts_where_its_probability_is_rounded_away() -> None:
    logits = torch.tensor([[[200.0]], [[-100.0]]])
    ballot = make_ballot(Task.PRESENCE, logits.sigmoid(), logits=logits)
    assert combine("logit_mean", ballot).scores.item() == 1
    assert combine("logit_mean", make_ballot(Task.PRESENCE, logits.sigmoid())).scores.item() < 0.6


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match="there is a policy 'mean' already"):

        @policy("mean", tasks=frozenset(Task))
        def second(ballot: Ballot) -> Outcome:
            """A second mean."""
            return Outcome(ballot.scores[0], None)


def test_options_are_not_redefined() -> None:
    with pytest.raises(ValueError, match="every policy has threshold already"):

        @policy("own_threshold", tasks=frozenset(Task))
        def own(ballot: Ballot, *, threshold: float = 0.5) -> Outcome:
            """A threshold of its own."""
            return Outcome(ballot.scores[0], ballot.scores[0] >= threshold)


def test_the_registry_describes_itself() -> None:
    by_name = {registered.name: registered for registered in definitions()}
    assert {"any", "all", "at_least", "majority", "mean", "stacking", "cascade"} <= by_name.keys()
    assert all(registered.summary.endswith(".") for registered in by_name.values())
    described = by_name["at_least"].as_json(Task.PRESENCE)
    assert described["required"] == ["k"]
    assert described["parameters"]["k"]["minimum"] == 1
    assert "threshold" in described["parameters"]
    assert "threshold" not in by_name["mean"].as_json(Task.CLASSIFICATION)["parameters"]
    assert by_name["mean"].as_json(Task.REGRESSION)["parameters"] == {}


def test_a_policy_of_ones_own() -> None:
    @policy("nth", tasks=frozenset({Task.PRESENCE}))
    def nth(ballot: Ballot, *, n: Annotated[int, Field(ge=0)] = 0) -> Outcome:
        """The n-th member alone."""
        return Outcome(ballot.scores[n], ballot.votes[n])

    try:
        assert chosen(combine("nth", make_ballot(Task.PRESENCE, PRESENCE), n="1"))[2:] == [[0], [0]]
    finally:
        del registry._REGISTRY["nth"]
