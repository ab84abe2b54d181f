"""Compares measured settings of a server by throughput and latency."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from .load import LoadMetrics


@dataclass(frozen=True)
class ServingChoice:
    """Settings of a server that determine its throughput and latency.

    Attributes:
        workers: number of worker processes, each with a copy of all members.
        batch_size: largest number of requests in a batch.
        max_batch_delay_ms: longest time that TorchServe waits for a batch to fill.
        threads: number of threads of each worker; None for the number of cores divided by the
            number of workers.
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
class MeasuredChoice:
    """Settings of a server, and the metrics that were measured with them under one load."""

    choice: ServingChoice
    metrics: LoadMetrics


def frontier(measured: Sequence[MeasuredChoice]) -> list[MeasuredChoice]:
    """Return the measurements that no other one beats in both throughput and p99 latency.

    Returns:
        The measurements by increasing p99, and therefore by increasing throughput.
    """
    unbeaten: list[MeasuredChoice] = []
    for each in sorted(measured, key=lambda m: (m.metrics.p99_ms, -m.metrics.images_per_second)):
        if not unbeaten or each.metrics.images_per_second > unbeaten[-1].metrics.images_per_second:
            unbeaten.append(each)
    return unbeaten


def best(measured: Sequence[MeasuredChoice], latency_ms: float) -> MeasuredChoice | None:
    """Return the measurement with the highest throughput among those with a low enough latency.

    Args:
        measured: the measurements to choose from.
        latency_ms: the largest p99 latency that is acceptable.

    Returns:
        None if the p99 of every measurement is larger.
    """
    fast_enough = [each for each in measured if each.metrics.p99_ms <= latency_ms]
    return max(fast_enough, key=lambda each: each.metrics.images_per_second, default=None)
