"""A shadow compares what was answered, drops what it has no time for, and changes no answer."""

from __future__ import annotations

import sys
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from probe_ensemble import form, image, probes

from torchserve_ensemble.handlers.rollout.shadow import Shadow
from torchserve_ensemble.handlers.service import EnsembleService

LEVELS = (0.1, 0.3, 0.6, 0.9)
COMMAND = """
import sys
from pathlib import Path
from torchserve_ensemble.handlers.rollout.candidate_main import main
main(Path(sys.argv[1]), int(sys.argv[2]))
"""


@contextmanager
def started(
    folder: Path, rollout: Mapping[str, object], **settings: Any
) -> Iterator[tuple[EnsembleService, Shadow, threading.Semaphore]]:
    """Yield a service, its shadow, and what is released whenever a batch was compared."""
    service = probes(
        folder,
        task="presence",
        policies={"default": "majority"},
        rollout={"mode": "shadow", **rollout},
        **settings,
    )
    shadow, counted = service.shadow, threading.Semaphore(0)
    assert shadow is not None
    command = [sys.executable, "-c", COMMAND, str(folder / "ensemble.yaml")]
    shadow.start(service.recorder.meter, counted.release, command)
    try:
        yield service, shadow, counted
    finally:
        if shadow._process is not None:
            shadow._process.end()


def counts(service: EnsembleService) -> dict[tuple[str, ...], float]:
    values: dict[tuple[str, ...], float] = defaultdict(float)
    for change in service.recorder.meter.take():
        values[change.name, *change.labels.values()] += change.value
    return values


def test_another_policy_is_compared_on_the_same_scores(tmp_path: Path) -> None:
    with started(tmp_path, {"policy": "any"}) as (service, shadow, counted):
        (response,) = service.answer([form(*map(image, LEVELS))])
        assert b"rollout" not in response.body
        assert not counts(service), "nothing is compared before the answers were handed back"
        shadow.release()
        assert counted.acquire(timeout=20)
        found = counts(service)
    # The members' bounds are 0.25, 0.5 and 0.75: only on 0.3 do any and majority differ.
    assert found["ensemble_candidate_samples_total", "agreed"] == 3
    assert found["ensemble_candidate_samples_total", "disagreed"] == 1
    assert found["ensemble_candidate_confusion_total", "dark", "bright"] == 1
    assert found["ensemble_candidate_confusion_total", "dark", "dark"] == 1
    assert found["ensemble_candidate_confusion_total", "bright", "bright"] == 2
    assert found["ensemble_candidate_seconds_count",] == 1


def test_new_members_run_in_a_process_of_their_own(tmp_path: Path) -> None:
    rollout = {"new_members": ["d"], "members": ["a", "d"], "policy": "d", "deadline_ms": 20_000}
    bounds = (0.25, 0.5, 0.75, 0.05)
    arguments = {"d": {"raises_above": 0.8}}
    with started(tmp_path, rollout, bounds=bounds, arguments=arguments) as (
        service,
        shadow,
        counted,
    ):
        assert len(service.spec.members) == 3
        service.answer([form(*map(image, LEVELS)), form(image(0), policy="any")])
        shadow.release()
        assert counted.acquire(timeout=60)
        found = counts(service)
    assert found["ensemble_candidate_samples_total", "agreed"] == 1
    assert found["ensemble_candidate_samples_total", "disagreed"] == 2
    assert found["ensemble_candidate_failures_total",] == 1


def test_a_batch_is_dropped_while_another_waits(tmp_path: Path) -> None:
    with started(tmp_path, {"policy": "any"}) as (service, shadow, counted):
        for _ in range(3):
            service.answer([form(*map(image, LEVELS))])
        assert counts(service)["ensemble_candidate_dropped_samples_total", "busy"] == 8
        shadow.release()
        assert counted.acquire(timeout=20)
        assert shadow.is_idle
        service.answer([form(image(0.1))])
        shadow.release()
        assert counted.acquire(timeout=20)
        assert counts(service)["ensemble_candidate_samples_total", "agreed"] == 4


def test_samples_without_inputs_or_scores_are_not_compared(tmp_path: Path) -> None:
    runtime = {"score_cache_mb": 1}
    with started(tmp_path, {"policy": "any"}, runtime=runtime) as (service, shadow, counted):
        for options in ({}, {}, {"lazy": "true"}):
            service.answer([form(image(0.3), **options)])
            shadow.release()
            assert counted.acquire(timeout=20)
        found = counts(service)
    assert found["ensemble_candidate_samples_total", "disagreed"] == 1
    assert found["ensemble_candidate_dropped_samples_total", "incomplete"] == 2


def test_without_a_start_nothing_is_kept(tmp_path: Path) -> None:
    service = probes(tmp_path, rollout={"mode": "shadow", "policy": "any"})
    service.answer([form(image(0.1))])
    assert service.shadow is not None
    assert service.shadow.is_idle
