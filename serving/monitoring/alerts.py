"""The alert rules for Prometheus."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from ...handlers.observability import catalogue
from . import names

_BY = "model_name, model_version"
_HEADER = (
    "# Alert rules for Prometheus, written by `ts-ensemble metrics --alerts`.\n"
    "# The bounds suit a first deployment; change them for yours.\n"
)


@dataclass(frozen=True)
class Alert:
    """One alert rule.

    Attributes:
        name: name of the alert.
        expression: the alert is raised while this has a result.
        minutes: for how long that must have been so.
        severity: ``page`` if somebody must act now, else ``ticket``.
        summary: what has happened, with labels in Prometheus' notation.
        remedy: what to do first.
    """

    name: str
    expression: str
    minutes: int
    severity: str
    summary: str
    remedy: str


def _rate(metric: catalogue.Metric, *more_labels: str, matcher: str = "", over: str = "5m") -> str:
    """Write the sum of the increases per second of each version."""
    selector = f"{{{matcher}}}" if matcher else ""
    return f"sum by ({', '.join((_BY, *more_labels))}) (rate({metric.name}{selector}[{over}]))"


def _share(part: str, whole: str, *, per_model: bool = False) -> str:
    """Divide two rates where the second one is not 0.

    Args:
        part: a rate.
        whole: a rate for each version.
        per_model: whether `part` has further labels.
    """
    matching = f" on({_BY}) group_left()" if per_model else ""
    return f"{part} /{matching} ({whole} > 0)"


_FAILED = _rate(catalogue.MEMBER_FAILURES, "member", matcher='kind="failed"')
_LATE = _rate(catalogue.MEMBER_FAILURES, "member", matcher='kind="late"')
_SERVER_ERRORS = _rate(catalogue.REQUESTS, matcher='status=~"5.."')
_DISAGREEMENT = _share(_rate(catalogue.DISAGREEMENTS), _rate(catalogue.COMPARED))
_DISAGREEMENT_OF_DAY = _share(
    _rate(catalogue.DISAGREEMENTS, over="1d"), _rate(catalogue.COMPARED, over="1d")
)
_MODEL = "{{ $labels.model_name }} {{ $labels.model_version }}"

ALERTS = (
    Alert(
        "EnsembleServerErrors",
        f"{_share(_SERVER_ERRORS, _rate(catalogue.REQUESTS))} > 0.01",
        5,
        "page",
        f"{_MODEL}: more than 1 % of the requests are answered with 5xx",
        "`ensemble_errors_total` and `ensemble_member_failures_total` tell which error and member",
    ),
    Alert(
        "EnsembleFrontendErrors",
        f"sum by (instance) (rate({names.TORCHSERVE_5XX.name}[5m])) > 0.1",
        5,
        "page",
        "{{ $labels.instance }}: TorchServe answers requests with 5xx",
        "the queue is full, or no worker is ready: `ts-ensemble status`",
    ),
    Alert(
        "EnsembleMemberFails",
        f"{_FAILED} > 0",
        5,
        "ticket",
        f"{_MODEL}: member {{{{ $labels.member }}}} fails on samples",
        "the worker's log has its traceback: logs/server.log",
    ),
    Alert(
        "EnsembleMemberLate",
        f"{_share(_LATE, _rate(catalogue.SAMPLES), per_model=True)} > 0.05",
        10,
        "ticket",
        f"{_MODEL}: member {{{{ $labels.member }}}} is late for more than 5 % of the samples",
        "allow more time (deadline_ms), or add workers",
    ),
    Alert(
        "EnsembleWorkersRestart",
        f"sum by ({_BY}) (increase({catalogue.LOADS.name}[15m])) > 5",
        0,
        "page",
        f"{_MODEL}: workers die and are loaded again",
        "`ts-ensemble status`, and logs/server.log for the reason",
    ),
    Alert(
        "EnsembleQueueSlow",
        f"{_share(_rate(names.TORCHSERVE_QUEUE), _rate(names.TORCHSERVE_REQUESTS))} > 1e6",
        5,
        "ticket",
        f"{_MODEL}: requests wait longer than a second in the queue",
        "add workers (`ts-ensemble scale`), or let clients send less at once",
    ),
    Alert(
        "EnsembleBatchesSlow",
        f"histogram_quantile(0.99, sum by ({_BY}, {catalogue.BUCKET_LABEL}) "
        f"(rate({catalogue.BATCH_SECONDS.name}_bucket[5m]))) > 10",
        10,
        "ticket",
        f"{_MODEL}: one of a hundred batches takes longer than 10 s",
        "see the stages in the dashboard; lower serving.batch_size",
    ),
    Alert(
        "EnsembleDisagrees",
        f"{_DISAGREEMENT} > 2 * ({_DISAGREEMENT_OF_DAY}) + 0.05",
        30,
        "ticket",
        f"{_MODEL}: members disagree more than twice as often as in the last day",
        "the inputs may have changed: look at some of them, and at the predictions by label",
    ),
    Alert(
        "EnsembleAbstains",
        f"{_share(_rate(catalogue.ABSTENTIONS), _rate(catalogue.SAMPLES))} > 0.5",
        30,
        "ticket",
        f"{_MODEL}: the policy abstains on more than half of the samples",
        "the inputs may have changed, or the policy's threshold is too strict",
    ),
)
"""All alert rules."""


def alert_rules() -> str:
    """Return the file of rules, in YAML."""
    rules: list[dict[str, Any]] = [
        {
            "alert": alert.name,
            "expr": alert.expression,
            "for": f"{alert.minutes}m",
            "labels": {"severity": alert.severity},
            "annotations": {"summary": alert.summary, "description": f"{alert.remedy}."},
        }
        for alert in ALERTS
    ]
    content = {"groups": [{"name": "torchserve-ensemble", "rules": rules}]}
    return _HEADER + yaml.safe_dump(content, sort_keys=False, width=100)
