"""Which settings are worth having: the best images per second for each latency."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from .load import LoadMetrics


@dataclass(frozen=True)
class ServingChoice:
    """Settings of a server.

    Attributes:
        workers: processes, each with all members.
        batch_size: requests in a batch at most.
        max_batch_delay_ms: longest wait for it to fill.
        threads: of each worker; None: cores divided by workers.
    """

    workers: int
    batch_size: int
    max_batch_delay_ms: int
    threads: int | None = None

    def threads_of_a_worker(self) -> int:
        """The number of threads that each worker has on this machine."""
        return self.threads or max(1, (os.cpu_count() or 1) // self.workers)

    def __str__(self) -> str:
        threads = "" if self.threads is None else f", {self.threads} threads"
        return (
            f"{self.workers} worker(s), batch {self.batch_size}, "
            f"delay {self.max_batch_delay_ms} ms{threads}"
        )


@dataclass(frozen=True)
class Tried:
    """The metrics of some settings under one load."""

    choice: ServingChoice
    metrics: LoadMetrics


def frontier(tried: Sequence[Tried]) -> list[Tried]:
    """The measurements that no other beats in both throughput and p99, by increasing p99."""
    found: list[Tried] = []
    for each in sorted(tried, key=lambda t: (t.metrics.p99_ms, -t.metrics.images_per_second)):
        if not found or each.metrics.images_per_second > found[-1].metrics.images_per_second:
            found.append(each)
    return found


def best(tried: Sequence[Tried], latency_ms: float) -> Tried | None:
    """The measurement with the highest throughput whose p99 keeps to a bound; None if none does."""
    within = [each for each in tried if each.metrics.p99_ms <= latency_ms]
    return max(within, key=lambda each: each.metrics.images_per_second, default=None)
