"""The verb ``feedback``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .options import run_folder_option

if TYPE_CHECKING:
    from ..tuning.feedback import Feedback

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_SHOWN = 20
"""Evidence from which on a difference is shown at 95 % confidence."""


def add_command(subparsers: Subparsers) -> None:
    """Add ``feedback``."""
    feedback = subparsers.add_parser(
        "feedback",
        help="compare a shadow with the current ensemble on labels that came in later",
        description="Read the decisions that workers logged (TS_ENSEMBLE_DECISION_LOG=json), and "
        "say how often each side was right. The evidence may be looked at as often as you like. "
        "Needs the run folder, and no running server.",
        parents=[run_folder_option()],
    )
    feedback.add_argument("name", metavar="NAME", help="name of the model")
    feedback.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="FILE",
        help="CSV file with the columns request_id (the header x-request-id of the answer) and "
        "label, and sample if requests have several samples",
    )
    feedback.add_argument(
        "--log",
        type=Path,
        action="append",
        metavar="FILE",
        help="log of decisions, instead of those in the run folder; the oldest first",
    )
    feedback.add_argument("--json", action="store_true", help="print everything as JSON")
    feedback.set_defaults(run=_feedback)


def _feedback(arguments: argparse.Namespace) -> int:
    from ..serving.run_folder import server_log
    from ..tuning.feedback import (
        compare_with_labels,
        decision_logs,
        read_decisions,
        read_labels,
    )

    labels = read_labels(arguments.data)
    logs = arguments.log or decision_logs(server_log(arguments.run_folder).parent)
    version, decisions = read_decisions(logs, arguments.name)
    feedback = compare_with_labels(decisions, labels)
    if arguments.json:
        print(json.dumps({"version": version, **feedback.as_json()}, indent=2))
        return 0
    print(f"{arguments.name} {version}")
    for line in _lines(feedback):
        print(line)
    return 0


def _lines(feedback: Feedback) -> Iterator[str]:
    from ..tuning.proportions import wilson

    total = feedback.num_labelled
    unknown = f"; {feedback.num_unknown:,} labels are of others" if feedback.num_unknown else ""
    yield f"labelled    {total:,} samples that both sides decided{unknown}"
    if not total:
        return
    for side, right in (
        ("current", feedback.num_current),
        ("candidate", feedback.num_candidate),
    ):
        low, high = wilson(right, total)
        yield f"{side:<12}{right / total:.1%} right (95 % interval: {low:.1%} to {high:.1%})"
    evidence = feedback.evidence
    yield (
        f"one right   {evidence.num_second:,} times only the candidate, {evidence.num_first:,} "
        "times only the current ensemble"
    )
    low, high = evidence.interval()
    verdict = "a difference is not shown"
    if evidence.evidence >= _SHOWN:
        better = "candidate" if evidence.num_second > evidence.num_first else "current ensemble"
        verdict = f"the {better} is right more often"
    yield (
        f"evidence    {evidence.evidence:,.2g} to 1 (from {_SHOWN} to 1 on it is shown at 95 % "
        f"confidence, whenever you look): {verdict}"
    )
    yield (
        f"            the candidate has {low:.1%} to {high:.1%} of the samples on which exactly "
        "one is right"
    )
