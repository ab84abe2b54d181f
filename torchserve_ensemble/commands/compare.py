"""The verb ``compare``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..handlers.base.errors import ServerError
from .options import run_folder_option
from .printing import standard_output

if TYPE_CHECKING:
    from rich.table import Table

    from ..serving.monitoring.candidate_report import CandidateReport

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_command(subparsers: Subparsers) -> None:
    """Add ``compare``."""
    compare = subparsers.add_parser(
        "compare",
        help="show how a candidate (rollout in the spec) differs from the current ensemble",
        description="GET /metrics on port 8082, where the counters of all workers of a version "
        "add up since the server started. A shadow has agreement, confusion matrix and latency; a "
        "canary has the number of requests that each side answered. The last second may be "
        "missing.",
        parents=[run_folder_option()],
    )
    compare.add_argument("name", metavar="NAME", help="name of the model")
    compare.add_argument(
        "model_version",
        metavar="VERSION",
        nargs="?",
        help="version with the candidate; needed if the model has several",
    )
    compare.add_argument(
        "--metrics",
        metavar="ADDRESS",
        help="metrics address of a server that `serve` did not start",
    )
    compare.add_argument("--json", action="store_true", help="print everything as JSON")
    compare.set_defaults(run=_compare)


def _compare(arguments: argparse.Namespace) -> int:
    from ..serving.finding import running_server
    from ..serving.monitoring.candidate_report import read_report
    from ..serving.settings import DEFAULTS

    address = arguments.metrics
    if address is None:
        server = running_server(arguments.run_folder)
        address = DEFAULTS["metrics_address"] if server is None else server.metrics_address
    report = read_report(address, arguments.name, arguments.model_version)
    if arguments.json:
        print(json.dumps(_as_json(report), indent=2, ensure_ascii=False))
        return 0
    if report.is_empty:
        raise ServerError(
            f"no request of {arguments.name} {report.version} took part in a rollout: its spec "
            "needs the key rollout, and requests must leave members and policy to the deployment"
        )
    _print(arguments.name, report)
    return 0


def _as_json(report: CandidateReport) -> dict[str, object]:
    from ..tuning.proportions import wilson

    agreed = report.outcomes.get("agreed", 0)
    compared = report.num_compared
    return {
        "version": report.version,
        "compared": compared,
        "agreed": agreed,
        "agreement": agreed / compared if compared else None,
        "agreement_interval": wilson(agreed, compared) if compared else None,
        "failed": report.num_failed,
        "dropped": report.dropped,
        "confusion": [
            {"current": current, "candidate": candidate, "samples": count}
            for (current, candidate), count in sorted(report.confusion.items())
        ],
        "sides": report.sides,
        "current_seconds": report.current_seconds.as_json(),
        "candidate_seconds": report.candidate_seconds.as_json(),
    }


def _print(name: str, report: CandidateReport) -> None:
    from rich.text import Text

    console = standard_output()
    console.print(Text(f"{name} {report.version}", "bold"))
    for line in _lines(report):
        console.print(Text(line))
    if report.confusion:
        console.print()
        console.print(_confusion(report))
        console.print()
        console.print(_latencies(report))


def _lines(report: CandidateReport) -> Iterator[str]:
    from ..tuning.proportions import wilson

    if any(report.sides.values()):
        total = sum(report.sides.values())
        shares = [f"{side} {count:,} ({count / total:.1%})" for side, count in report.sides.items()]
        yield f"answered by   {', '.join(shares)}"
    if report.num_compared:
        agreed, compared = report.outcomes.get("agreed", 0), report.num_compared
        low, high = wilson(agreed, compared)
        yield (
            f"agreement     {agreed / compared:.1%} of {compared:,} samples "
            f"(95 % interval: {low:.1%} to {high:.1%})"
        )
    if report.num_failed:
        yield f"failed        {report.num_failed:,} samples"
    if report.dropped:
        reasons = [f"{count:,} {reason}" for reason, count in sorted(report.dropped.items())]
        yield f"not compared  {', '.join(reasons)}"


def _confusion(report: CandidateReport) -> Table:
    """Make the matrix: a row for each label of the answers, a column for each of the candidate."""
    rows, columns = (sorted({pair[side] for pair in report.confusion}) for side in (0, 1))
    return _table(
        ("current \\ candidate", *columns),
        [
            (row, *(f"{report.confusion.get((row, column), 0):,}" for column in columns))
            for row in rows
        ],
    )


def _latencies(report: CandidateReport) -> Table:
    rows = []
    for side, latency in (
        ("current", report.current_seconds),
        ("candidate", report.candidate_seconds),
    ):
        values = latency.as_json()
        cells = [
            "" if values[key] is None else f"{1000 * values[key]:,.1f}"
            for key in ("mean", "p50", "p99")
        ]
        rows.append((side, f"{latency.count:,}", *cells))
    return _table(("milliseconds of a batch", "batches", "mean", "p50", "p99"), rows)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for position, column in enumerate(columns):
        table.add_column(Text(column), justify="right" if position else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
