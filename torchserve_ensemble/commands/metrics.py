"""The verb ``metrics``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(subparsers: Subparsers) -> None:
    """Add ``metrics``."""
    metrics = subparsers.add_parser(
        "metrics",
        help="list the workers' metrics, or print a dashboard or alert rules for them",
        description="List the metrics that workers of this project add to TorchServe's metrics "
        "endpoint (GET /metrics on port 8082).",
    )
    output = metrics.add_mutually_exclusive_group()
    output.add_argument(
        "--dashboard",
        action="store_true",
        help="print a dashboard that Grafana imports (deploy/grafana-dashboard.json)",
    )
    output.add_argument(
        "--alerts",
        action="store_true",
        help="print alert rules for Prometheus (deploy/prometheus-alerts.yml)",
    )
    output.add_argument(
        "--markdown", action="store_true", help="print the reference for people (docs/metrics.md)"
    )
    metrics.set_defaults(run=_metrics)


def _metrics(arguments: argparse.Namespace) -> int:
    from ..serving.monitoring.alerts import alert_rules
    from ..serving.monitoring.dashboard import dashboard
    from ..serving.monitoring.reference import metrics_list, metrics_reference

    if arguments.dashboard:
        print(dashboard(), end="")
    elif arguments.alerts:
        print(alert_rules(), end="")
    elif arguments.markdown:
        print(metrics_reference(), end="")
    else:
        print(metrics_list(), end="")
    return 0
