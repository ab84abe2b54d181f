"""The metrics of TorchServe itself that the dashboard and the alerts use, and checks of names."""

from __future__ import annotations

import re

from ...handlers.observability.catalogue import METRICS, Kind, Metric

TORCHSERVE_REQUESTS = Metric(
    "ts_inference_requests_total",
    Kind.COUNTER,
    "requests",
    "Requests that a version answered, counted by TorchServe's frontend.",
)
TORCHSERVE_LATENCY = Metric(
    "ts_inference_latency_microseconds",
    Kind.COUNTER,
    "microseconds",
    "Time from the arrival of requests at the frontend until they were answered, added up.",
)
TORCHSERVE_QUEUE = Metric(
    "ts_queue_latency_microseconds",
    Kind.COUNTER,
    "microseconds",
    "Time that requests waited in the queue, added up.",
)
TORCHSERVE_5XX = Metric(
    "Requests5XX",
    Kind.COUNTER,
    "requests",
    "Requests of any kind that TorchServe answered with 5xx, also those that no worker saw. It has "
    "the labels Level and Hostname only.",
)

TORCHSERVE_METRICS = (TORCHSERVE_REQUESTS, TORCHSERVE_LATENCY, TORCHSERVE_QUEUE, TORCHSERVE_5XX)
"""Metrics that TorchServe itself gives, and that the dashboard or the alerts use.

They appear at the endpoint with their first event.
"""

_NAME = re.compile(r"\b(?:ensemble_|ts_|Requests\d)\w+")


def series_names() -> frozenset[str]:
    """Return the names of all series that may be used."""
    metrics = (*METRICS, *TORCHSERVE_METRICS)
    return frozenset(name for metric in metrics for name in metric.series_names)


def names_in(expression: str) -> set[str]:
    """Return the names of the metrics in an expression of Prometheus."""
    return set(_NAME.findall(expression))
