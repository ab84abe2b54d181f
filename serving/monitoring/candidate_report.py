"""Reads what a candidate did from TorchServe's metrics endpoint, where all workers add up."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import requests

from ...handlers.base.errors import ServerError
from ...handlers.observability import catalogue
from ...handlers.observability.catalogue import BUCKET_LABEL, Metric
from ..sessions import open_session

_SERIES = re.compile(r"^(\w+)\{(.*)\} (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Latency:
    """Seconds of the batches that a histogram has counted.

    Attributes:
        count: number of batches.
        total: sum of their seconds.
        buckets: largest seconds of a bucket -> number of batches that took at most so long.
    """

    count: int
    total: float
    buckets: Mapping[float, int]

    def quantile(self, share: float) -> float:
        """Estimate a quantile in seconds, as Prometheus does: linearly within a bucket.

        Beyond the last bucket, its bound is returned; NaN without any batch.
        """
        rank, lower, below = share * self.count, 0.0, 0
        for bound, number in sorted(self.buckets.items()):
            if number >= rank and number > below:
                if math.isinf(bound):
                    return lower
                return lower + (bound - lower) * (rank - below) / (number - below)
            lower, below = bound, number
        return math.nan

    def as_json(self) -> dict[str, Any]:
        """Return the number of batches, and their mean, median and 99th percentile in seconds."""
        seconds = {
            "mean": self.total / self.count if self.count else math.nan,
            "p50": self.quantile(0.5),
            "p99": self.quantile(0.99),
        }
        return {"batches": self.count} | {
            name: None if math.isnan(value) else value for name, value in seconds.items()
        }


@dataclass(frozen=True)
class CandidateReport:
    """What the workers of one version counted since the server started.

    Attributes:
        version: the version.
        outcomes: `agreed` and `disagreed` -> number of samples that a shadow decided.
        confusion: (current label, candidate's label) -> number of samples.
        num_failed: samples that the shadow could not decide.
        dropped: reason -> number of samples that the shadow did not compare.
        sides: side of a canary -> number of requests that it answered.
        current_seconds: time of batches in the worker, until their answers were written.
        candidate_seconds: time in which the shadow decided batches.
    """

    version: str
    outcomes: Mapping[str, int]
    confusion: Mapping[tuple[str, str], int]
    num_failed: int
    dropped: Mapping[str, int]
    sides: Mapping[str, int]
    current_seconds: Latency
    candidate_seconds: Latency

    @property
    def num_compared(self) -> int:
        """Number of samples that both the answer and the candidate decided."""
        return sum(self.outcomes.values())

    @property
    def is_empty(self) -> bool:
        """Whether no request took part."""
        return not (self.num_compared or self.num_failed or any(self.dropped.values())) and not any(
            self.sides.values()
        )


@dataclass
class _Version:
    """The series of one version: (name, values of its own labels) -> value."""

    values: defaultdict[tuple[str, tuple[str, ...]], float] = field(
        default_factory=lambda: defaultdict(float)
    )

    def by_labels(self, metric: Metric) -> dict[tuple[str, ...], int]:
        """Return the values of a counter by its labels, those above 0."""
        return {
            labels: int(value)
            for (name, labels), value in self.values.items()
            if name == metric.name and value
        }

    def by_label(self, metric: Metric) -> dict[str, int]:
        """Return the values of a counter with one label, those above 0."""
        return {label: count for (label,), count in self.by_labels(metric).items()}

    def latency(self, metric: Metric) -> Latency:
        """Return a histogram."""
        bucket, total, count = metric.series_names
        return Latency(
            int(self.values[count, ()]),
            self.values[total, ()],
            {
                float(bound): int(value)
                for (name, labels), value in self.values.items()
                for bound in labels
                if name == bucket
            },
        )


def read_report(address: str, name: str, version: str | None = None) -> CandidateReport:
    """Read the report of a model's version.

    Args:
        address: URL of the metrics API.
        name: name of the model.
        version: the version; None if the model has only one at the endpoint.

    Raises:
        ServerError: the endpoint does not answer, or does not know the model or the version, or
            the model has several versions and none is named.
    """
    versions = _read_versions(address, name)
    if not versions:
        raise ServerError(
            f"no worker of a model '{name}' reports metrics at {address}: `ts-ensemble status` "
            "lists the models"
        )
    if version is None and len(versions) > 1:
        raise ServerError(f"{name} has the versions {', '.join(sorted(versions))}: name one")
    chosen = version or next(iter(versions))
    if chosen not in versions:
        raise ServerError(
            f"{name} {chosen} reports no metrics at {address}; {', '.join(sorted(versions))} does"
        )
    series = versions[chosen]
    return CandidateReport(
        version=chosen,
        outcomes=series.by_label(catalogue.CANDIDATE_SAMPLES),
        confusion={
            (current, candidate): count
            for (current, candidate), count in series.by_labels(
                catalogue.CANDIDATE_CONFUSION
            ).items()
        },
        num_failed=int(series.values[catalogue.CANDIDATE_FAILURES.name, ()]),
        dropped=series.by_label(catalogue.CANDIDATE_DROPPED),
        sides=series.by_label(catalogue.ROLLOUT_REQUESTS),
        current_seconds=series.latency(catalogue.BATCH_SECONDS),
        candidate_seconds=series.latency(catalogue.CANDIDATE_SECONDS),
    )


def _read_versions(address: str, name: str) -> dict[str, _Version]:
    """Read the series of each version of a model that reports the metrics of this project."""
    url = f"{address}/metrics"
    try:
        with open_session(address, None) as session:
            answer = session.get(url, timeout=30)
            answer.raise_for_status()
    except requests.RequestException as error:
        raise ServerError(f"{url} does not answer: {error}") from error
    metrics = {series: each for each in catalogue.METRICS for series in each.series_names}
    versions: dict[str, _Version] = defaultdict(_Version)
    for series, labels_text, value in _SERIES.findall(answer.text):
        labels = {key: re.sub(r"\\(.)", r"\1", text) for key, text in _LABEL.findall(labels_text)}
        metric = metrics.get(series)
        if metric is None or labels.get("model_name") != name:
            continue
        own = (*metric.labels, *((BUCKET_LABEL,) if series.endswith("_bucket") else ()))
        key = tuple(labels.get(label, "") for label in own)
        versions[labels["model_version"]].values[series, key] += float(value)
    return versions
