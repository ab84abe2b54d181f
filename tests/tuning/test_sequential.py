"""The evidence of paired decisions is right at every look."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchserve_ensemble.tuning.sequential import PairedEvidence

COUNTS = st.integers(0, 500)


def test_evidence_is_that_of_the_formula() -> None:
    assert PairedEvidence(0, 0).evidence == pytest.approx(1)
    # 2^n B(a + 1, b + 1) for a = 0, b = 7: 128 / 8.
    assert PairedEvidence(0, 7).evidence == pytest.approx(16)
    assert PairedEvidence(3, 2).evidence == pytest.approx(
        2**5 * math.factorial(3) * math.factorial(2) / math.factorial(6)
    )


@given(COUNTS, COUNTS)
def test_the_next_sample_is_a_fair_bet_if_there_is_no_difference(first: int, second: int) -> None:
    now = PairedEvidence(first, second).log_evidence
    next_ones = [
        PairedEvidence(first + 1, second).log_evidence,
        PairedEvidence(first, second + 1).log_evidence,
    ]
    assert math.log(sum(math.exp(each - now) for each in next_ones) / 2) == pytest.approx(
        0, abs=1e-9
    )


@given(COUNTS, COUNTS)
def test_the_interval_has_what_was_seen_and_fits_the_evidence(first: int, second: int) -> None:
    paired = PairedEvidence(first, second)
    low, high = paired.interval()
    assert 0 <= low < high <= 1
    if first + second:
        assert low <= second / (first + second) <= high
    assert (low <= 0.5 <= high) is (paired.evidence < 20)
    mirrored = PairedEvidence(second, first).interval()
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-9)


def test_looking_after_every_sample_misleads_in_at_most_five_percent() -> None:
    generator = np.random.default_rng(0)
    num_runs, num_samples = 500, 300
    steps = generator.random((num_runs, num_samples)) < 0.5
    seconds = steps.cumsum(axis=1)
    misled = 0
    for run in seconds:
        misled += any(
            PairedEvidence(look - int(second), int(second)).evidence >= 20
            for look, second in enumerate(run, start=1)
        )
    assert misled / num_runs <= 0.05
