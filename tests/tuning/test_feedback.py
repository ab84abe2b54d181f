"""Labels that come in later are joined with the logged decisions."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from torchserve_ensemble.handlers.base.errors import SpecError
from torchserve_ensemble.tuning.feedback import (
    compare_with_labels,
    decision_logs,
    read_decisions,
    read_labels,
)


def line(request_id: str, *decisions: tuple[str, str, str], version: str = "1.0") -> str:
    """Write the line of one request: (sample, current label, candidate's label) for each sample."""
    samples = [
        {"sample": sample, "current": current.split(), "candidate": candidate.split()}
        for sample, current, candidate in decisions
    ]
    model = {"name": "trees", "version": version, "archive": None}
    content = {"decision_log": 1, "request_id": request_id, "model": model, "decisions": samples}
    return json.dumps(content) + "\n"


def test_labels_find_their_decisions(tmp_path: Path) -> None:
    log = tmp_path / "decisions.jsonl"
    log.write_text(
        line("r1", ("body", "oak", "oak"))
        + line("r2", ("file[0]", "oak", "elm"), ("file[1]", "", "elm oak"))
        + '{"decision_log": 1, "request'
    )
    labels = tmp_path / "labels.csv"
    labels.write_text(
        "request_id,sample,label\nr1,,oak\nr2,file[0],elm\nr2,file[1],oak;elm\nr2,,oak\nr9,,oak\n"
    )
    version, decisions = read_decisions([log], "trees")
    feedback = compare_with_labels(decisions, read_labels(labels))
    assert version == "1.0"
    # A request of two samples has none without a name.
    assert (feedback.num_labelled, feedback.num_unknown) == (3, 2)
    assert (feedback.num_current, feedback.num_candidate) == (1, 3)
    assert (feedback.evidence.num_first, feedback.evidence.num_second) == (0, 2)


def test_rolled_logs_come_first_and_a_new_version_begins_anew(tmp_path: Path) -> None:
    for number, request_id in ((2, "r2"), (10, "r10")):
        with gzip.open(tmp_path / f"decisions.{number}.jsonl.gz", "wt") as file:
            file.write(line(request_id, ("body", "oak", "elm"), version=f"{number}.0"))
    (tmp_path / "decisions.jsonl").write_text(line("r11", ("body", "oak", "elm"), version="10.0"))
    logs = decision_logs(tmp_path)
    assert [path.name.split(".")[1] for path in logs] == ["2", "10", "jsonl"]
    version, decisions = read_decisions(logs, "trees")
    assert version == "10.0"
    assert {request_id for request_id, _ in decisions} == {"r10", "r11"}


def test_mistakes_have_a_message(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="TS_ENSEMBLE_DECISION_LOG=json"):
        read_decisions(decision_logs(tmp_path), "trees")
    labels = tmp_path / "labels.csv"
    labels.write_text("file,label\na.png,oak\n")
    with pytest.raises(SpecError, match="no column request_id"):
        read_labels(labels)
    with pytest.raises(SpecError, match="cannot be read"):
        read_labels(tmp_path / "none.csv")
