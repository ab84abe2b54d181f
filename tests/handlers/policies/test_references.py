"""Compares policies with independent implementations: scikit-learn, SciPy and plain NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ballots import combine, make_ballot
from scipy import stats
from sklearn.datasets import load_digits, load_iris
from sklearn.ensemble import VotingClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.tree import DecisionTreeClassifier

from torchserve_ensemble.handlers.base.tasks import Task
from torchserve_ensemble.handlers.policies import Ballot, DawidSkeneModel, StackingModel

WEIGHTS = [1.0, 2.5, 0.7]


@pytest.fixture(scope="module")
def classifiers() -> tuple[Any, np.ndarray]:
    """A scikit-learn voting of three fitted classifiers, and samples to which it was not fitted."""
    features, labels = load_iris(return_X_y=True)
    # A weak tree and noise, so that the members often disagree.
    noisy = features + np.random.default_rng(0).normal(0, 0.7, features.shape)
    voting = VotingClassifier(
        [
            ("bayes", GaussianNB()),
            ("tree", DecisionTreeClassifier(max_depth=2, random_state=0)),
            ("linear", LogisticRegression(max_iter=500)),
        ],
        voting="soft",
        weights=WEIGHTS,
    )
    return voting.fit(noisy[::2], labels[::2]), noisy[1::2]


def probabilities(voting: Any, samples: np.ndarray) -> np.ndarray:
    """Compute the probabilities (M, N, C) of all classifiers."""
    return np.stack([member.predict_proba(samples) for member in voting.estimators_])


def labels_of(text: str, ballot: Ballot) -> np.ndarray:
    """Apply a policy that chooses exactly one label, and return the label (N,) of each sample."""
    decisions = combine(text, ballot).decisions
    assert decisions is not None
    assert (decisions.sum(dim=-1) == 1).all()
    return decisions.long().argmax(dim=-1).numpy()


def test_weighted_mean_is_soft_voting(classifiers: tuple[Any, np.ndarray]) -> None:
    voting, samples = classifiers
    ballot = make_ballot(Task.CLASSIFICATION, probabilities(voting, samples), weights=WEIGHTS)
    np.testing.assert_allclose(
        combine("weighted_mean", ballot).scores.numpy(), voting.predict_proba(samples), atol=1e-6
    )
    np.testing.assert_array_equal(labels_of("weighted_mean", ballot), voting.predict(samples))


@pytest.mark.parametrize(("text", "weights"), [("plurality", None), ("weighted_vote", WEIGHTS)])
def test_plurality_is_hard_voting_but_for_ties(
    classifiers: tuple[Any, np.ndarray], text: str, weights: list[float] | None
) -> None:
    voting, samples = classifiers
    ballot = make_ballot(Task.CLASSIFICATION, probabilities(voting, samples), weights=weights)
    hard = VotingClassifier(voting.estimators, voting="hard", weights=weights)
    hard.estimators_, hard.le_, hard.classes_ = voting.estimators_, voting.le_, voting.classes_
    shares = combine(text, ballot).scores.sort(dim=-1, descending=True).values
    decided = (shares[:, 0] > shares[:, 1] + 1e-6).numpy()
    assert not ballot.votes.eq(ballot.votes[:1]).all(), "members that always agree test nothing"
    assert decided.sum() > 50
    ours, theirs = labels_of(text, ballot), hard.predict(samples)
    np.testing.assert_array_equal(ours[decided], theirs[decided])


@pytest.fixture(scope="module")
def scores() -> np.ndarray:
    """Random scores (7, 50, 3) of seven members."""
    return np.random.default_rng(1).random((7, 50, 3)).astype(np.float32)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.2, 0.3, 0.45])
def test_trimmed_mean_is_scipys(scores: np.ndarray, fraction: float) -> None:
    ours = combine("trimmed_mean", make_ballot(Task.MULTILABEL, scores), fraction=fraction).scores
    np.testing.assert_allclose(ours.numpy(), stats.trim_mean(scores, fraction, axis=0), atol=1e-6)


@pytest.mark.parametrize("members", [1, 4, 7])
def test_statistics_are_numpys(scores: np.ndarray, members: int) -> None:
    values = scores[:members]
    ballot = make_ballot(Task.REGRESSION, values)
    outcome = combine("median", ballot)
    expected = {
        "standard_deviation": values.std(axis=0),
        "quantile_05": np.quantile(values, 0.05, axis=0),
        "quantile_95": np.quantile(values, 0.95, axis=0),
    }
    np.testing.assert_allclose(outcome.scores.numpy(), np.median(values, axis=0), atol=1e-6)
    for name, reference in expected.items():
        np.testing.assert_allclose(outcome.spread[name].numpy(), reference, atol=1e-6)
    pooled = combine("geometric_mean", make_ballot(Task.MULTILABEL, values)).scores
    np.testing.assert_allclose(pooled.numpy(), stats.gmean(values, axis=0), atol=1e-6)


@pytest.mark.parametrize("buckets", [1, 2, 3, 7])
def test_buckets_are_neighbours_of_nearly_equal_number(scores: np.ndarray, buckets: int) -> None:
    ballot = make_ballot(Task.MULTILABEL, scores)
    parts = np.array_split(scores, buckets)
    np.testing.assert_allclose(
        combine("average_of_maximum", ballot, buckets=buckets).scores.numpy(),
        np.mean([part.max(axis=0) for part in parts], axis=0),
        atol=1e-6,
    )
    np.testing.assert_allclose(
        combine("maximum_of_average", ballot, buckets=buckets).scores.numpy(),
        np.max([part.mean(axis=0) for part in parts], axis=0),
        atol=1e-6,
    )


def test_borda_is_scipys_average_rank(scores: np.ndarray) -> None:
    coarse = np.round(scores * 4) / 4  # ties
    ranks = np.stack([stats.rankdata(member, axis=1) - 1 for member in coarse]) / 2
    ours = combine("borda", make_ballot(Task.CLASSIFICATION, coarse)).scores
    np.testing.assert_allclose(ours.numpy(), ranks.mean(axis=0), atol=1e-6)


def test_dawid_skene_is_bayes_rule_sample_by_sample() -> None:
    generator = np.random.default_rng(2)
    members, samples, labels = 5, 40, 3
    confusions = generator.dirichlet(np.ones(labels), (members, labels))
    prior = generator.dirichlet(np.ones(labels))
    votes = generator.integers(0, labels, (members, samples))
    expected = np.empty((samples, labels))
    for sample in range(samples):
        for label in range(labels):
            likelihood = prior[label]
            for member in range(members):
                likelihood *= confusions[member, label, votes[member, sample]]
            expected[sample, label] = likelihood
    expected /= expected.sum(axis=1, keepdims=True)
    ballot = make_ballot(Task.CLASSIFICATION, np.eye(labels)[votes])
    model = DawidSkeneModel(
        ballot.member_names, torch.from_numpy(confusions), torch.from_numpy(prior)
    )
    ours = combine("dawid_skene", ballot, {"raters": model}).scores
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-6)


def flat(member_scores: np.ndarray) -> np.ndarray:
    """Reshape scores (M, N, C) to features (N, M * C): the first member's labels come first."""
    return np.concatenate(list(member_scores), axis=1)


@pytest.mark.parametrize("classes", [2, 3])
def test_stacking_is_scikit_learns_logistic_regression(classes: int) -> None:
    features, labels = load_digits(n_class=classes, return_X_y=True)
    members = [GaussianNB(var_smoothing=v).fit(features[:100], labels[:100]) for v in (0.01, 1.0)]
    outputs = np.stack([member.predict_proba(features) for member in members])
    meta = LogisticRegression().fit(flat(outputs), labels)
    ballot = make_ballot(Task.CLASSIFICATION, outputs)
    model = StackingModel(
        ballot.member_names, torch.from_numpy(meta.coef_), torch.from_numpy(meta.intercept_)
    )
    outcome = combine("stacking", ballot, {"meta": model})
    np.testing.assert_allclose(outcome.scores.numpy(), meta.predict_proba(flat(outputs)), atol=1e-5)


def test_stacking_is_scikit_learns_linear_regression(scores: np.ndarray) -> None:
    targets = scores.mean(axis=0)[:, :2] ** 2
    values = scores[:3, :, :2]
    meta = LinearRegression().fit(flat(values), targets)
    ballot = make_ballot(Task.REGRESSION, values)
    model = StackingModel(
        ballot.member_names, torch.from_numpy(meta.coef_), torch.from_numpy(meta.intercept_)
    )
    ours = combine("stacking", ballot, {"meta": model}).scores
    np.testing.assert_allclose(ours.numpy(), meta.predict(flat(values)), atol=1e-5)
