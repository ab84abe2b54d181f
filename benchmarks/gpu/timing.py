"""Times calls on any device: each measurement ends when the device has computed the result."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from torchserve_ensemble.handlers.members.timing import seconds_of

from .rows import Step

_MIN_RUNS = 3


def median_seconds(step: Step, call: Callable[[], object]) -> float:
    """Call a function again and again, and return the median of its seconds.

    The first two calls are not counted, since they make kernels and take memory.
    """
    limit = 2.0 if step.on_gpu else 0.05
    with torch.inference_mode():
        for _ in range(2):
            call()
        seconds: list[float] = []
        end = time.perf_counter() + limit
        while len(seconds) < _MIN_RUNS or time.perf_counter() < end:
            seconds.append(seconds_of(call, step.device))
    return statistics.median(seconds)
