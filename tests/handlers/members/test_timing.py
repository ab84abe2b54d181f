"""Tests that timing waits for devices that compute while the caller goes on, such as GPUs."""

from __future__ import annotations

import pytest
import torch

from torchserve_ensemble.handlers.members import timing


def test_a_gpu_is_waited_for_before_and_after_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: events.append(str(device)))
    timing.seconds_of(lambda: events.append("call"), torch.device("cuda:1"))
    assert events == ["cuda:1", "call", "cuda:1"]


def test_a_cpu_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def unexpected(device: object) -> None:
        raise AssertionError

    monkeypatch.setattr(torch.cuda, "synchronize", unexpected)
    assert timing.seconds_of(lambda: None, torch.device("cpu")) >= 0


def test_the_fastest_of_several_runs_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([0.0, 5.0, 5.0, 5.01, 6.0, 6.03, *[7.0] * 40])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(seconds))
    assert timing.fastest_seconds_of(lambda: None, torch.device("cpu")) == pytest.approx(0.01)
