"""Bounds of an expected error: against formulas, other implementations, and simulated draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from torchserve_ensemble.tuning.risk_bounds import (
    Method,
    losses_of_labels,
    losses_of_units,
    max_errors,
    min_trials,
    num_passed,
    p_value,
    upper_bound,
)

SHARES = (Method.BINOMIAL, Method.HOEFFDING_BENTKUS)


@pytest.mark.parametrize(
    ("max_loss", "confidence", "needed"),
    [
        (0.05, 0.95, 59),
        (0.01, 0.95, 299),
        (0.001, 0.95, 2995),
        (0.1, 0.95, 29),
        (0.05, 0.99, 90),
        (0.0, 0.95, None),
        (1.0, 0.95, 1),
    ],
)
def test_how_many_trials_without_an_error_it_takes(
    max_loss: float, confidence: float, needed: int | None
) -> None:
    assert min_trials(max_loss, confidence) == needed
    if needed is None or max_loss == 1:
        return
    for method in SHARES:
        assert p_value(np.zeros(needed), max_loss, method) <= 1 - confidence
        assert p_value(np.zeros(needed - 1), max_loss, method) > 1 - confidence
    assert max_errors(needed, max_loss, confidence) == 0
    assert max_errors(needed - 1, max_loss, confidence) == -1


@given(st.integers(1, 300), st.data())
def test_the_binomial_bound_is_that_of_clopper_and_pearson(
    trials: int, data: st.DataObject
) -> None:
    errors = data.draw(st.integers(0, trials))
    losses = np.r_[np.ones(errors), np.zeros(trials - errors)]
    reference = binomtest(errors, trials, alternative="less").proportion_ci(0.95, method="exact")
    assert upper_bound(losses, 0.95, Method.BINOMIAL) == pytest.approx(reference.high)


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=80),
    st.sampled_from([0.8, 0.95, 0.99]),
    st.sampled_from([0.02, 0.1, 0.4]),
)
def test_a_test_passes_exactly_if_the_bound_does(
    losses: list[float], confidence: float, max_loss: float
) -> None:
    values = np.array(losses)
    bound = upper_bound(values, confidence, Method.HOEFFDING_BENTKUS)
    assert values.mean() - 1e-12 <= bound <= 1
    if abs(bound - max_loss) > 1e-6:
        passes = p_value(values, max_loss, Method.HOEFFDING_BENTKUS) <= 1 - confidence
        assert passes == (bound < max_loss)


def test_the_largest_number_of_errors_that_passes() -> None:
    for trials in (60, 200, 1000):
        errors = max_errors(trials, 0.05, 0.95)
        assert binom.cdf(errors, trials, 0.05) <= 0.05 < binom.cdf(errors + 1, trials, 0.05)


def test_a_bounded_loss_takes_more_than_a_share_with_the_same_mean() -> None:
    losses = np.r_[np.ones(4), np.zeros(196)]
    binomial, bounded = (p_value(losses, 0.05, method) for method in SHARES)
    assert binomial == pytest.approx(binom.cdf(4, 200, 0.05))
    divergence = 0.02 * math.log(0.02 / 0.05) + 0.98 * math.log(0.98 / 0.95)
    hoeffding, bentkus = math.exp(-200 * divergence), math.e * binom.cdf(4, 200, 0.05)
    assert bounded == pytest.approx(min(hoeffding, bentkus))
    assert binomial < bounded


@pytest.mark.parametrize("method", SHARES)
def test_bounds_cover_the_expected_loss(method: Method) -> None:
    """Of 2,000 bounds with 95 % confidence at most 5 % may lie below the truth, but for noise."""
    generator = np.random.default_rng(0)
    missed = 0
    for _ in range(2000):
        if method is Method.BINOMIAL:
            losses = (generator.random(80) < 0.1).astype(float)
        else:
            losses = generator.beta(0.1, 0.9, size=80)
        missed += upper_bound(losses, 0.95, method) < 0.1
    assert missed <= binom.ppf(0.999, 2000, 0.05)


def test_no_trials_show_nothing() -> None:
    for method in SHARES:
        assert p_value(np.zeros(0), 0.1, method) == 1
        assert upper_bound(np.zeros(0), 0.95, method) == 1


def test_a_sequence_ends_at_the_first_failure() -> None:
    assert num_passed([0.01, 0.05, 0.2, 0.001], 0.95) == 2
    assert num_passed([0.2, 0.0], 0.95) == 0
    assert num_passed([], 0.95) == 0


def test_each_group_is_one_loss() -> None:
    counted = torch.tensor([True, True, True, False, True, False])
    wrong = torch.tensor([True, False, False, True, True, True])
    assert losses_of_units(counted, wrong, None).tolist() == [1, 0, 0, 1]
    groups = torch.tensor([7, 7, 7, 3, 2, 3])
    assert losses_of_units(counted, wrong, groups).tolist() == [1, pytest.approx(1 / 3)]
    several = torch.tensor([[True, True], [False, False], [True, False]])
    wrong_labels = torch.tensor([[True, False], [True, True], [False, True]])
    assert losses_of_units(several, wrong_labels, None).tolist() == [0.5, 0]


def test_each_label_has_as_many_losses_as_the_rarest_has_images() -> None:
    labels = torch.zeros(14, 2).bool()
    labels[:4, 0] = labels[4:, 1] = True
    wrong = torch.zeros(14).bool()
    wrong[[0, 4, 5]] = True
    losses = losses_of_labels(labels, wrong)
    assert len(losses) == 8
    assert losses[:4].tolist() == [1, 0, 0, 0]
    assert losses[4:].tolist() == [1, 0, 0, 0]
    assert len(losses_of_labels(labels[:4], wrong[:4])) == 0
