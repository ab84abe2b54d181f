"""Laws of the decision on the number of workers, with simulated loads."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchserve_ensemble.operations.autoscaling import Load, ScalingRules, decide
from torchserve_ensemble.operations.load_figures import Totals, totals_in
from torchserve_ensemble.serving.management import ModelVersion

rules = st.builds(
    lambda low, high, smallest, more: ScalingRules(
        smallest, smallest + more, low=min(low, high), high=max(low, high), cooldown_seconds=0
    ),
    st.floats(0.05, 1),
    st.floats(0.05, 1),
    st.integers(1, 3),
    st.integers(0, 6),
)


def numbers_of_workers(
    rules: ScalingRules, workers: int, demand: float, steps: int, queue_seconds: float = 0.0
) -> list[int]:
    """Simulate a load of so many worker-seconds a second, with an interval of 10 s."""
    loads: list[Load] = []
    numbers, since = [workers], math.inf
    for _ in range(steps):
        loads.append(Load(numbers[-1], min(demand, numbers[-1]), queue_seconds))
        wanted = decide(rules, loads, since).workers
        since += 10
        if wanted != numbers[-1]:
            loads, since = [], 0.0
        numbers.append(wanted)
    return numbers


@settings(max_examples=60, deadline=None)
@given(rules, st.integers(1, 9), st.floats(0, 12), st.sampled_from([0.0, 1.0]))
def test_the_number_does_not_swing_under_a_constant_load(
    rules: ScalingRules, workers: int, demand: float, queue_seconds: float
) -> None:
    numbers = numbers_of_workers(rules, workers, demand, 80, queue_seconds)
    inside = [n for n in numbers if rules.min_workers <= n <= rules.max_workers]
    steps = {b - a for a, b in pairwise(inside)}
    assert steps <= {0, 1} or steps <= {0, -1}, numbers
    assert len(set(numbers[-20:])) == 1, "it comes to rest"


@settings(max_examples=60, deadline=None)
@given(rules, st.lists(st.tuples(st.floats(0, 1), st.floats(0, 5)), min_size=1, max_size=60))
def test_the_bounds_are_kept_whatever_the_load(
    rules: ScalingRules, readings: list[tuple[float, float]]
) -> None:
    workers, loads = rules.min_workers, list[Load]()
    for utilisation, queue in readings:
        loads.append(Load(workers, utilisation * workers, queue))
        wanted = decide(rules, loads, math.inf).workers
        assert rules.min_workers <= wanted <= rules.max_workers
        assert abs(wanted - workers) <= 1
        if wanted != workers:
            workers, loads = wanted, []


def test_enough_workers_are_added_for_a_load_that_can_be_served() -> None:
    numbers = numbers_of_workers(ScalingRules(1, 8), 1, 3.0, 40)
    assert numbers[-1] == 4
    assert numbers_of_workers(ScalingRules(1, 8), numbers[-1], 0.1, 40)[-1] == 1


def test_a_worker_is_not_removed_within_the_cooldown() -> None:
    idle = [Load(2, 0.1, 0.0)] * 3
    rules = ScalingRules(1, 4)
    assert decide(rules, idle, 59).workers == 2
    assert "the last change was 59 s ago" in decide(rules, idle, 59).reason
    assert decide(rules, idle, 60).workers == 1
    assert decide(rules, idle[:2], 60).workers == 2


def test_a_queue_in_front_of_idle_workers_adds_none() -> None:
    waiting = [Load(2, 0.2, 5.0)] * 5
    assert decide(ScalingRules(1, 4), waiting, 10).workers == 2


@pytest.mark.parametrize("bounds", [(0, 1), (2, 1)])
def test_impossible_bounds_are_refused(bounds: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="--min must be"):
        ScalingRules(*bounds)


def test_the_totals_of_one_version_are_read_from_the_endpoint() -> None:
    labels = 'model_name="m",model_version="1.0"'
    text = f"""# TYPE ts_inference_requests_total counter
ts_inference_requests_total{{{labels},hostname="h",}} 10.0
ts_inference_requests_total{{model_name="m",model_version="2.0",hostname="h",}} 99.0
ts_inference_requests_total{{model_name="m",model_version="default",hostname="h",}} 5.0
ts_queue_latency_microseconds{{{labels},hostname="h",}} 2.5E6
ensemble_batch_seconds_sum{{{labels},Hostname="h",}} 4.0
"""
    version = ModelVersion("m", "1.0", "m.mar", 1, 1, 8, 3, default=False, workers=())
    assert totals_in(text, version, 7.0) == Totals(7.0, 10.0, 2.5, 4.0)
    assert totals_in("", version, 7.0) == Totals(7.0, 0.0, 0.0, 0.0)
    # Requests that name no version.
    assert totals_in(text, replace(version, default=True), 7.0).requests == 15.0
