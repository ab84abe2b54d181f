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
class Tried:
    """The metrics that were measured with some settings under one load."""

    choice: ServingChoice
    metrics: LoadMetrics


def frontier(tried: Sequence[Tried]) -> list[Tried]:
    """The measurements that no other one beats in both throughput and p99 latency.

    Returns:
        The measurements by increasing p99, and therefore by increasing throughput.
    """
    unbeaten: list[Tried] = []
    for each in sorted(tried, key=lambda t: (t.metrics.p99_ms, -t.metrics.images_per_second)):
        if not unbeaten or each.metrics.images_per_second > unbeaten[-1].metrics.images_per_second:
            unbeaten.append(each)
    return unbeaten


def best(tried: Sequence[Tried], latency_ms: float) -> Tried | None:
    """The measurement with the highest throughput among those whose p99 latency is low enough.

    Args:
        tried: the measurements to choose from.
        latency_ms: the largest p99 latency that is acceptable.

    Returns:
        None if the p99 of every measurement is larger.
    """
    within = [each for each in tried if each.metrics.p99_ms <= latency_ms]
    return max(within, key=lambda each: each.metrics.images_per_second, default=None)
