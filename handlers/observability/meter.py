"""Adds up what a worker counts and measures, until it is reported."""

from __future__ import annotations

import threading
from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate

from .catalogue import BUCKET_LABEL, Kind, Metric


@dataclass(frozen=True)
class Increment:
    """A change of one series since the last report.

    Attributes:
        name: name of the series at the metrics endpoint.
        kind: COUNTER if `value` is to be added, GAUGE if it replaces the last value.
        unit: unit of the value.
        labels: name -> value of the labels beside those of the model.
        value: the change, or the new value.
    """

    name: str
    kind: Kind
    unit: str
    labels: dict[str, str]
    value: float


class _Histogram:
    """The observations of one histogram since the last report.

    Attributes:
        counts: number of observations in each bucket alone; the last bucket has no bound.
        total: sum of the observations.
    """

    def __init__(self, metric: Metric) -> None:
        self.counts = [0] * (len(metric.buckets) + 1)
        self.total = 0.0


class Meter:
    """Adds up counters and observations in memory; any thread may call it.

    A line of TorchServe's metrics takes the worker about 20 microseconds, and Java has to read it.
    So nothing is written when something happens; `take` is called once a second.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[tuple[Metric, tuple[str, ...]], float] = {}
        self._histograms: dict[Metric, _Histogram] = {}

    def add(self, metric: Metric, amount: float = 1, *labels: str) -> None:
        """Add to a counter.

        Args:
            metric: a counter.
            amount: what to add; 0 makes a series appear before anything has happened.
            labels: values of `metric.labels`.
        """
        key = metric, labels
        with self._lock:
            self._values[key] = self._values.get(key, 0) + amount

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """Set a gauge; arguments are those of `add`."""
        with self._lock:
            self._values[metric, labels] = value

    def observe(self, metric: Metric, value: float | None) -> None:
        """Add an observation to a histogram; None makes its series appear."""
        with self._lock:
            histogram = self._histograms.get(metric)
            if histogram is None:
                histogram = self._histograms[metric] = _Histogram(metric)
            if value is not None:
                histogram.counts[bisect_left(metric.buckets, value)] += 1
                histogram.total += value

    def take(self) -> list[Increment]:
        """Return all changes since the last call, and begin anew."""
        with self._lock:
            values, self._values = self._values, {}
            histograms, self._histograms = self._histograms, {}
        changes = [
            Increment(
                metric.name,
                metric.kind,
                metric.unit,
                dict(zip(metric.labels, labels, strict=True)),
                value,
            )
            for (metric, labels), value in values.items()
        ]
        for metric, histogram in histograms.items():
            changes += _histogram_increments(metric, histogram)
        return changes


def _histogram_increments(metric: Metric, histogram: _Histogram) -> list[Increment]:
    """Write a histogram as the counters of which Prometheus' histograms consist."""
    bucket, total, count = metric.series_names
    bounds = [*(f"{bound:g}" for bound in metric.buckets), "+Inf"]
    cumulative = list(accumulate(histogram.counts))
    changes = [
        Increment(bucket, Kind.COUNTER, metric.unit, {BUCKET_LABEL: bound}, number)
        for bound, number in zip(bounds, cumulative, strict=True)
        if number or not cumulative[-1]
    ]
    changes.append(Increment(total, Kind.COUNTER, metric.unit, {}, histogram.total))
    changes.append(Increment(count, Kind.COUNTER, metric.unit, {}, cumulative[-1]))
    return changes
