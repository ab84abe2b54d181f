"""The recorder's counts are those of the answers."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from probe_ensemble import form, image, probes

from torchserve_ensemble.handlers.observability import catalogue
from torchserve_ensemble.handlers.policies import Outcome
from torchserve_ensemble.handlers.recording import Recorder
from torchserve_ensemble.handlers.service import EnsembleService


def counts(service: EnsembleService) -> dict[tuple[str, ...], float]:
    """Return name and label values -> value of everything that was counted."""
    service.recorder.collect()
    values: dict[tuple[str, ...], float] = defaultdict(float)
    for change in service.recorder.meter.take():
        values[change.name, *change.labels.values()] += change.value
    return values


def started(folder: Path, **settings: Any) -> EnsembleService:
    service = probes(folder, **settings)
    service.recorder.start("9000")
    counts(service)
    return service


@pytest.mark.parametrize("task", ["classification", "presence", "multilabel", "regression"])
def test_counts_are_those_of_the_answers(tmp_path: Path, task: str) -> None:
    service = started(tmp_path, task=task)
    levels = [0.1, 0.3, 0.6, 0.9]
    responses = service.answer(
        [form(*map(image, levels)), form(image(0.9)), form(b"no image"), form(image(0), policy="x")]
    )
    found = counts(service)
    assert [response.status for response in responses] == [200, 200, 400, 400]
    assert found["ensemble_requests_total", "200"] == 2
    assert found["ensemble_requests_total", "400"] == 2
    assert found["ensemble_errors_total", "SampleError"] == 1
    assert found["ensemble_errors_total", "PolicyError"] == 1
    assert found["ensemble_samples_total",] == 5
    assert found["ensemble_batch_requests_sum",] == 4
    assert found["ensemble_batch_samples_sum",] == 5
    for member in "abc":
        assert found["ensemble_member_samples_total", member] == 5
        assert found["ensemble_member_seconds_total", member] > 0
    stages = sum(value for key, value in found.items() if key[0] == "ensemble_stage_seconds_total")
    assert 0 < stages <= found["ensemble_batch_seconds_sum",]
    if task == "regression":
        assert found["ensemble_compared_samples_total",] == 0
        return
    # Bounds of the members are 0.25, 0.5 and 0.75: they agree on 0.1 and 0.9 alone.
    assert found["ensemble_compared_samples_total",] == 5
    assert found["ensemble_disagreements_total",] == 2
    labels: dict[str, float] = defaultdict(float)
    for response in responses[:2]:
        for prediction in json.loads(response.body)["predictions"]:
            for label in prediction.get("labels", [prediction.get("label")]):
                labels[label] += 1
    for label in ("dark", "bright"):
        assert found["ensemble_predictions_total", label] == labels[label], (task, label)


def test_failed_and_late_members_are_counted(tmp_path: Path) -> None:
    service = started(
        tmp_path,
        arguments={"a": {"raises_above": 0.8}},
        failures={"on_failure": "drop", "min_members": 1},
    )
    service.answer([form(image(0.9), image(0.1))])
    found = counts(service)
    assert found["ensemble_member_failures_total", "a", "failed"] == 1
    assert found["ensemble_samples_total",] == 2
    service.answer([form(image(0.1), deadline_ms="0.001")])
    found = counts(service)
    assert found["ensemble_member_failures_total", "b", "late"] == 1
    assert found["ensemble_errors_total", "LateError"] == 1


def test_skipped_samples_and_abstentions_are_counted(tmp_path: Path) -> None:
    service = started(tmp_path)
    options = {"on_error": "skip", "policy": "mean(min_confidence=0.99)"}
    (response,) = service.answer([form(image(0.55), b"no image", **options)])
    assert response.status == 200, response.body
    found = counts(service)
    assert found["ensemble_sample_errors_total", "SampleError"] == 1
    assert found["ensemble_abstentions_total",] == 1
    assert found["ensemble_predictions_total", "dark"] == 0


def test_lazy_requests_and_the_cache_are_counted(tmp_path: Path) -> None:
    service = started(tmp_path, task="presence", runtime={"score_cache_mb": 1})
    service.answer([form(image(0.9), policy="any", lazy="true")])
    found = counts(service)
    assert sum(found["ensemble_member_samples_total", member] for member in "abc") == 1
    assert found["ensemble_predictions_total", "bright"] == 1
    for _ in range(2):
        service.answer([form(image(0.4))])
    found = counts(service)
    assert found["ensemble_score_cache_hits_total",] == 1
    assert found["ensemble_score_cache_misses_total",] == 1
    assert found["ensemble_score_cache_bytes", "9000"] > 0
    assert found["ensemble_worker_memory_bytes", "9000"] > 1e6


def test_labels_beyond_the_bound_are_counted_together(tmp_path: Path) -> None:
    labels = tuple(f"label{number}" for number in range(10_000))
    service = probes(tmp_path)
    spec = replace(service.spec, labels=labels)
    recorder = Recorder(spec, None, torch.device("cpu"))
    recorder.start("9000")
    recorder.collect()
    changes = recorder.meter.take()
    # docs/operations.md promises this bound.
    assert len(changes) <= 220 + 4 * len(spec.members) + 3
    series = [change for change in changes if "label" in change.labels]
    assert len(series) == catalogue.MAX_LABELS + 1
    decisions = torch.zeros((3, 10_000), dtype=torch.bool)
    decisions[0, 5] = decisions[1, 500] = decisions[2, 9_999] = True
    outcome = Outcome(scores=decisions.float(), decisions=decisions)
    recorder._count_decisions([outcome])
    found = {each.labels["label"]: each.value for each in recorder.meter.take()}
    assert found == {"label5": 1, catalogue.OTHER_LABELS: 2}


def test_nothing_is_kept_before_recording_starts(tmp_path: Path) -> None:
    service = probes(tmp_path)
    service.answer([form(image(0.5))])
    assert not service.recorder._batches
    assert not service.recorder.meter.take()
