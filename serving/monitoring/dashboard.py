"""The dashboard for Grafana."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ...handlers.observability import catalogue
from . import names

_SELECTOR = '{model_name=~"$model"}'
_BY = "model_name, model_version"
_COLUMNS, _WIDTH, _HEIGHT = 3, 8, 8


@dataclass(frozen=True)
class Panel:
    """One picture of the dashboard.

    Attributes:
        title: what it shows, with the unit where Grafana does not write it.
        unit: Grafana's name of the unit.
        queries: expression of Prometheus -> how its lines are named, in Grafana's notation.
    """

    title: str
    unit: str
    queries: dict[str, str]


def _rate(metric: catalogue.Metric, by: str = _BY) -> str:
    return f"sum by ({by}) (rate({metric.name}{_SELECTOR}[$__rate_interval]))"


def _quantile(share: float, metric: catalogue.Metric) -> str:
    buckets = f"rate({metric.name}_bucket{_SELECTOR}[$__rate_interval])"
    return f"histogram_quantile({share}, sum by ({catalogue.BUCKET_LABEL}) ({buckets}))"


def _mean(metric: catalogue.Metric) -> str:
    total = f"rate({metric.name}_sum{_SELECTOR}[$__rate_interval])"
    count = f"rate({metric.name}_count{_SELECTOR}[$__rate_interval])"
    return f"sum by ({_BY}) ({total}) / sum by ({_BY}) ({count})"


_VERSION = "{{model_name}} {{model_version}}"

PANELS = (
    Panel(
        "Requests per second",
        "reqps",
        {_rate(catalogue.REQUESTS, f"{_BY}, status"): f"{_VERSION}: {{{{status}}}}"},
    ),
    Panel("Samples per second", "short", {_rate(catalogue.SAMPLES): _VERSION}),
    Panel(
        "Refused requests per second, by error",
        "reqps",
        {
            _rate(catalogue.ERRORS, f"{_BY}, kind"): "{{kind}}",
            _rate(catalogue.SAMPLE_ERRORS, f"{_BY}, kind"): "single samples: {{kind}}",
            f"sum(rate({names.TORCHSERVE_5XX.name}[$__rate_interval]))": "5xx of TorchServe",
        },
    ),
    Panel(
        "Time of a batch in the worker",
        "s",
        {
            _quantile(0.5, catalogue.BATCH_SECONDS): "p50",
            _quantile(0.99, catalogue.BATCH_SECONDS): "p99",
        },
    ),
    Panel(
        "Mean time of a request: in the queue, and in all",
        "s",
        {
            f"{_rate(names.TORCHSERVE_QUEUE)} / {_rate(names.TORCHSERVE_REQUESTS)} / 1e6": "queue",
            f"{_rate(names.TORCHSERVE_LATENCY)} / {_rate(names.TORCHSERVE_REQUESTS)} / 1e6": "all",
        },
    ),
    Panel(
        "Share of a worker's time in each stage",
        "percentunit",
        {_rate(catalogue.STAGE_SECONDS, "stage"): "{{stage}}"},
    ),
    Panel(
        "Seconds per sample of each member",
        "s",
        {
            f"{_rate(catalogue.MEMBER_SECONDS, 'member')} / "
            f"{_rate(catalogue.MEMBER_SAMPLES, 'member')}": "{{member}}"
        },
    ),
    Panel(
        "Samples that members did not answer, per second",
        "short",
        {_rate(catalogue.MEMBER_FAILURES, "member, kind"): "{{member}}: {{kind}}"},
    ),
    Panel(
        "Mean size of a batch",
        "short",
        {
            _mean(catalogue.BATCH_REQUESTS): "requests",
            _mean(catalogue.BATCH_SAMPLES): "samples",
        },
    ),
    Panel(
        "Share of samples",
        "percentunit",
        {
            f"{_rate(catalogue.DISAGREEMENTS)} / {_rate(catalogue.COMPARED)}": "members disagree",
            f"{_rate(catalogue.ABSTENTIONS)} / {_rate(catalogue.SAMPLES)}": "policy abstains",
        },
    ),
    Panel(
        "Predictions per second, by label",
        "short",
        {f"topk(20, {_rate(catalogue.PREDICTIONS, 'label')})": "{{label}}"},
    ),
    Panel(
        "Score cache: share of hits",
        "percentunit",
        {
            f"{_rate(catalogue.CACHE_HITS)} / "
            f"({_rate(catalogue.CACHE_HITS)} + {_rate(catalogue.CACHE_MISSES)})": _VERSION
        },
    ),
    Panel(
        "Memory of each worker",
        "bytes",
        {
            f"{catalogue.MEMORY_BYTES.name}{_SELECTOR}": "process {{worker}}",
            f"{catalogue.GPU_MEMORY_BYTES.name}{_SELECTOR}": "GPU {{worker}}",
            f"{catalogue.CACHE_BYTES.name}{_SELECTOR}": "score cache {{worker}}",
        },
    ),
    Panel(
        "Loads of workers in 15 minutes",
        "short",
        {f"sum by ({_BY}) (increase({catalogue.LOADS.name}{_SELECTOR}[15m]))": _VERSION},
    ),
)
"""All panels, row by row."""


def dashboard() -> str:
    """Return the dashboard, in JSON that Grafana imports."""
    content = {
        "title": "torchserve-ensemble",
        "uid": "torchserve-ensemble",
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {"name": "source", "label": "Source", "type": "datasource", "query": "prometheus"},
                {
                    "name": "model",
                    "label": "Model",
                    "type": "query",
                    "datasource": _SOURCE,
                    "query": f"label_values({catalogue.REQUESTS.name}, model_name)",
                    "includeAll": True,
                    "allValue": ".*",
                    "multi": True,
                    "refresh": 2,
                },
            ]
        },
        "panels": [_panel(position, panel) for position, panel in enumerate(PANELS)],
    }
    return json.dumps(content, indent=2) + "\n"


_SOURCE = {"type": "prometheus", "uid": "${source}"}


def _panel(position: int, panel: Panel) -> dict[str, Any]:
    """Write one panel at its place in the grid."""
    row, column = divmod(position, _COLUMNS)
    return {
        "id": position + 1,
        "type": "timeseries",
        "title": panel.title,
        "datasource": _SOURCE,
        "gridPos": {"x": column * _WIDTH, "y": row * _HEIGHT, "w": _WIDTH, "h": _HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + number), "expr": expression, "legendFormat": legend}
            for number, (expression, legend) in enumerate(panel.queries.items())
        ],
    }
