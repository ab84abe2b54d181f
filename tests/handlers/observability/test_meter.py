"""The meter loses nothing, whoever adds and takes at the same time."""

from __future__ import annotations

import threading
from bisect import bisect_left

from hypothesis import given
from hypothesis import strategies as st

from torchserve_ensemble.handlers.observability import catalogue
from torchserve_ensemble.handlers.observability.catalogue import Kind
from torchserve_ensemble.handlers.observability.meter import Meter


@given(st.lists(st.floats(0, 100)))
def test_a_histogram_counts_each_value_in_every_bucket_that_holds_it(values: list[float]) -> None:
    meter, metric = Meter(), catalogue.BATCH_SECONDS
    for value in values:
        meter.observe(metric, value)
    changes = {(each.name, each.labels.get("le")): each.value for each in meter.take()}
    for bound in metric.buckets:
        held = sum(value <= bound for value in values)
        assert changes.get((f"{metric.name}_bucket", f"{bound:g}"), 0) == held
    assert changes.get((f"{metric.name}_bucket", "+Inf"), 0) == len(values)
    assert changes.get((f"{metric.name}_count", None), 0) == len(values)
    assert changes.get((f"{metric.name}_sum", None), 0) == sum(values)
    assert not meter.take()


def test_what_threads_add_while_another_takes_is_all_reported() -> None:
    meter, taken = Meter(), []
    threads = [
        threading.Thread(
            target=lambda: [meter.add(catalogue.ERRORS, 1, "MemberError") for _ in range(5000)]
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        taken += meter.take()
    taken += meter.take()
    assert sum(change.value for change in taken) == 20_000
    assert {change.labels["kind"] for change in taken} == {"MemberError"}


def test_names_say_kind_and_unit() -> None:
    names = [metric.name for metric in catalogue.METRICS]
    assert len(set(names)) == len(names)
    for metric in catalogue.METRICS:
        assert metric.name.startswith("ensemble_"), metric.name
        assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER), metric.name
        assert bool(metric.buckets) == (metric.kind is Kind.HISTOGRAM), metric.name
        assert list(metric.buckets) == sorted(metric.buckets), metric.name
        if metric.unit in ("seconds", "bytes"):
            assert metric.unit in metric.name.split("_"), metric.name
        assert bisect_left(metric.buckets, 0.0) == 0
