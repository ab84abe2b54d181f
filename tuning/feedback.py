"""Compares a shadow with the current ensemble on samples whose labels came in later."""

from __future__ import annotations

import csv
import gzip
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..handlers.base.errors import SpecError
from .proportions import wilson
from .sequential import PairedEvidence

_COLUMNS = ("request_id", "label")
"""Columns that a file of labels must have; requests of several samples need `sample` too."""

SampleId = tuple[str, str]
"""Identifier of a request, and name of a sample in it; an empty name stands for its only sample."""


@dataclass(frozen=True)
class Decisions:
    """What both sides decided about one sample.

    Attributes:
        current: the labels of the answer.
        candidate: the labels that the shadow chose.
    """

    current: frozenset[str]
    candidate: frozenset[str]


@dataclass(frozen=True)
class Feedback:
    """How often both sides were right.

    Attributes:
        num_labelled: samples with a label and decisions.
        num_unknown: labels of samples that the log has no decisions for.
        num_current: samples on which the current ensemble was right.
        num_candidate: samples on which the candidate was right.
        evidence: what the samples on which exactly one was right say; the candidate is the second.
    """

    num_labelled: int
    num_unknown: int
    num_current: int
    num_candidate: int
    evidence: PairedEvidence

    def as_json(self) -> dict[str, object]:
        """Return counts, accuracies with 95 % intervals, and the evidence."""
        sides = {"current": self.num_current, "candidate": self.num_candidate}
        return {
            "labelled": self.num_labelled,
            "unknown": self.num_unknown,
            **{
                side: {
                    "right": right,
                    "accuracy": right / self.num_labelled if self.num_labelled else None,
                    "interval": wilson(right, self.num_labelled),
                }
                for side, right in sides.items()
            },
            "only_current_right": self.evidence.num_first,
            "only_candidate_right": self.evidence.num_second,
            "evidence": self.evidence.evidence,
            "candidate_share_interval": self.evidence.interval(),
        }


def compare_with_labels(
    decisions: Mapping[SampleId, Decisions], labels: Mapping[SampleId, frozenset[str]]
) -> Feedback:
    """Count how often each side chose exactly the labels that came in.

    Args:
        decisions: what both sides decided.
        labels: what is right.
    """
    pairs = [
        (decisions[sample].current == right, decisions[sample].candidate == right)
        for sample, right in labels.items()
        if sample in decisions
    ]
    return Feedback(
        num_labelled=len(pairs),
        num_unknown=len(labels) - len(pairs),
        num_current=sum(current for current, _ in pairs),
        num_candidate=sum(candidate for _, candidate in pairs),
        evidence=PairedEvidence(
            sum(current and not candidate for current, candidate in pairs),
            sum(candidate and not current for current, candidate in pairs),
        ),
    )


def read_labels(path: Path) -> dict[SampleId, frozenset[str]]:
    """Read a CSV file with the columns request_id and label, and perhaps sample.

    Several labels of a multilabel task are separated by ``;``. The last row of a sample counts.

    Raises:
        SpecError: the file cannot be read, or lacks a column.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            missing = [name for name in _COLUMNS if name not in (rows.fieldnames or ())]
            if missing:
                raise SpecError(
                    f"{path}: no column {', '.join(missing)}; it needs request_id (the header "
                    "x-request-id of the answer), label, and sample if requests have several"
                )
            return {
                (row["request_id"] or "", row.get("sample") or ""): frozenset(
                    part.strip() for part in (row["label"] or "").split(";") if part.strip()
                )
                for row in rows
            }
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SpecError(f"{path}: cannot be read: {error}") from error


def read_decisions(logs: Iterable[Path], name: str) -> tuple[str, dict[SampleId, Decisions]]:
    """Read the decisions of the version that was logged last.

    Args:
        logs: logs of decisions, the oldest first.
        name: name of the model.

    Returns:
        The version, and the decisions about each of its samples. The only sample of a request has
        the empty name too.

    Raises:
        SpecError: the logs have no decisions of the model.
    """
    version, decisions = "", defaultdict[str, dict[SampleId, Decisions]](dict)
    for line in _lines(logs):
        if line["model"]["name"] != name:
            continue
        version = line["model"]["version"]
        samples = {
            each["sample"]: Decisions(frozenset(each["current"]), frozenset(each["candidate"]))
            for each in line["decisions"]
        }
        if len(samples) == 1:
            samples |= {"": next(iter(samples.values()))}
        decisions[version] |= {
            (line["request_id"], sample): each for sample, each in samples.items()
        }
    if not version:
        raise SpecError(
            f"there are no logged decisions of {name}: start the server with "
            "TS_ENSEMBLE_DECISION_LOG=json, and a spec with rollout.mode: shadow"
        )
    return version, decisions[version]


def _lines(logs: Iterable[Path]) -> Iterator[dict[str, Any]]:
    for path in logs:
        opened = gzip.open if path.suffix == ".gz" else Path.open
        with opened(path, "rb") as file:
            for text in file:
                # The last line may be written just now.
                if text.endswith(b"\n"):
                    yield json.loads(text)


def decision_logs(folder: Path) -> list[Path]:
    """Return the logs of decisions in a folder of logs, the oldest first."""
    # Of the files that log4j has closed, the newest has the highest number.
    older = sorted(
        folder.glob("decisions.*.jsonl.gz"), key=lambda path: int(path.name.split(".")[1])
    )
    newest = folder / "decisions.jsonl"
    return [*older, *([newest] if newest.is_file() else [])]
