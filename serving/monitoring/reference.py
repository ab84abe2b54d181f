"""The reference of all metrics, for people."""

from __future__ import annotations

from collections.abc import Iterable

from ...handlers.observability.catalogue import METRICS, MODEL_LABELS, Metric
from .names import TORCHSERVE_METRICS


def metrics_reference() -> str:
    """Return the page docs/metrics.md, in Markdown."""
    labels = ", ".join(f"`{label}`" for label in MODEL_LABELS)
    return f"""# Metrics

Written by `ts-ensemble metrics --markdown`. [Operations](operations.md#metrics-logs-and-traces)
says how they are collected, what they cost, and where the dashboard and the alerts are.

Every metric has the labels {labels} and TorchServe's `Hostname`. The
counters of all workers of a version add up. A histogram `NAME` has the series `NAME_bucket` with
the label `le`, `NAME_sum` and `NAME_count`.

{_table(METRICS)}

These metrics of TorchServe itself are in the dashboard and the alerts, too. They appear with their
first event.

{_table(TORCHSERVE_METRICS)}
"""


def _table(metrics: Iterable[Metric]) -> str:
    rows = ["| name | kind | unit | labels | meaning |", "| --- | --- | --- | --- | --- |"]
    for metric in metrics:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        help_text = metric.help
        if metric.buckets:
            help_text += f" Buckets: {', '.join(f'{bound:g}' for bound in metric.buckets)}."
        rows.append(f"| `{metric.name}` | {metric.kind} | {metric.unit} | {labels} | {help_text} |")
    return "\n".join(rows)


def metrics_list() -> str:
    """Return one line for each metric: its name with labels, its kind and its meaning."""
    lines = []
    for metric in METRICS:
        labels = f"{{{','.join(metric.labels)}}}" if metric.labels else ""
        lines.append(f"{metric.name}{labels}  {metric.kind}, {metric.unit}: {metric.help}\n")
    return "".join(lines)
