"""Measures how long a call takes, on a CPU and on devices that compute behind the caller's back."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

_MIN_TIMING_RUNS = 2
_MAX_TIMING_RUNS = 10
_MAX_TIMING_SECONDS = 0.1
"""After `_MIN_TIMING_RUNS`, a call is repeated until one of the two limits is reached."""


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Measure the seconds from the beginning of a call until the device has computed its result.

    A GPU computes what is put into its queue while the call itself returns at once. The queue is
    therefore emptied before the clock starts, and again before the clock stops.
    """
    _wait_for(device)
    started = time.perf_counter()
    call()
    _wait_for(device)
    return time.perf_counter() - started


@torch.inference_mode()
def fastest_seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Measure a call several times, and return the seconds of the fastest run.

    The first run may still set things up, and others may be disturbed by other processes.
    """
    seconds: list[float] = []
    while len(seconds) < _MIN_TIMING_RUNS or (
        len(seconds) < _MAX_TIMING_RUNS and sum(seconds) < _MAX_TIMING_SECONDS
    ):
        seconds.append(seconds_of(call, device))
    return min(seconds)


def _wait_for(device: torch.device) -> None:
    """Wait until the device has computed everything in its queue; a CPU has none."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
