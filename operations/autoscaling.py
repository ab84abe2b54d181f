"""Decides how many workers a version needs, as a pure function of its load.

Two figures decide: the *utilisation*, which is the share of the time that a worker computes, and
the time that a request waits in the queue. A worker is added if the utilisation is above `high`, or
if requests wait for too long and the utilisation is at least `low`: where workers are idle,
requests wait for their batch to fill, and another worker would not help. A worker is removed only
if the remaining ones would be busy for less than `low` of the time.

So the number does not swing under a constant load. Workers that are busy for `b` worker-seconds a
second keep `n` workers if ``low <= b / (n - 1)`` and ``b / n <= high``. One that was added, because
``b / n >= low``, is not removed, since then the remaining ``n`` would be busy for ``b / n``. After
one was removed, because ``b / (n - 1) < low``, none is added, since ``low <= high``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Load:
    """How busy a version was in one interval.

    Attributes:
        workers: number of its workers.
        busy_workers: mean number of workers that computed.
        queue_seconds: mean time that a request waited in the queue.
        pending_requests: number of requests in the queue at the end.
        requests_per_second: requests that were answered.
    """

    workers: int
    busy_workers: float
    queue_seconds: float
    pending_requests: int = 0
    requests_per_second: float = 0.0

    @property
    def utilisation(self) -> float:
        """The share of the time that a worker computed, from 0 to 1."""
        return self.busy_workers / self.workers if self.workers else 0.0

    def __str__(self) -> str:
        return (
            f"utilisation {self.utilisation:.2f}, queue {1000 * self.queue_seconds:.0f} ms, "
            f"{self.pending_requests} waiting, {self.requests_per_second:.1f} requests/s"
        )


@dataclass(frozen=True)
class ScalingRules:
    """When workers are added and removed.

    Attributes:
        min_workers: smallest number of workers.
        max_workers: largest number of workers.
        max_queue_seconds: longest mean wait in the queue.
        high: utilisation above which a worker is added.
        low: utilisation of the remaining workers below which one is removed; at most `high`.
        readings_up: number of successive intervals that must ask for a worker more.
        readings_down: number of successive intervals that must ask for a worker less.
        cooldown_seconds: time after a change in which no worker is removed.
    """

    min_workers: int
    max_workers: int
    max_queue_seconds: float = 0.1
    high: float = 0.8
    low: float = 0.6
    readings_up: int = 2
    readings_down: int = 3
    cooldown_seconds: float = 60.0

    def __post_init__(self) -> None:
        if not 1 <= self.min_workers <= self.max_workers:
            raise ValueError("--min must be at least 1 and at most --max")
        if not 0 < self.low <= self.high <= 1:
            raise ValueError(
                "--low and --high must be above 0 and at most 1, --low not above --high"
            )


@dataclass(frozen=True)
class Decision:
    """How many workers a version is to have, and why."""

    workers: int
    reason: str


def decide(rules: ScalingRules, loads: Sequence[Load], seconds_since_change: float) -> Decision:
    """Decide on the number of workers.

    Args:
        rules: when workers are added and removed.
        loads: the load of each interval since the last change, the latest last; at least one.
        seconds_since_change: time since the last change; infinity if there was none.
    """
    now = loads[-1].workers
    if not rules.min_workers <= now <= rules.max_workers:
        bound = min(max(now, rules.min_workers), rules.max_workers)
        return Decision(bound, f"from {rules.min_workers} to {rules.max_workers} are allowed")
    too_few = [_asks_for_more(rules, load) for load in loads[-rules.readings_up :]]
    if all(too_few):
        if now == rules.max_workers:
            return Decision(now, f"{too_few[-1]}, but {now} is the largest number allowed")
        if len(too_few) < rules.readings_up:
            return Decision(now, f"{too_few[-1]}, for {len(too_few)} of {rules.readings_up} times")
        return Decision(now + 1, too_few[-1])
    too_many = [_asks_for_less(rules, load) for load in loads[-rules.readings_down :]]
    if now > rules.min_workers and all(too_many):
        if len(too_many) < rules.readings_down:
            times = f"{len(too_many)} of {rules.readings_down} times"
            return Decision(now, f"{too_many[-1]}, for {times}")
        if seconds_since_change < rules.cooldown_seconds:
            return Decision(
                now, f"{too_many[-1]}, but the last change was {seconds_since_change:.0f} s ago"
            )
        return Decision(now - 1, too_many[-1])
    return Decision(now, "enough")


def _asks_for_more(rules: ScalingRules, load: Load) -> str:
    """Return why an interval asks for a worker more; empty if it does not."""
    if load.utilisation > rules.high:
        return f"utilisation above {rules.high:g}"
    if load.queue_seconds > rules.max_queue_seconds and load.utilisation >= rules.low:
        return f"requests wait for more than {1000 * rules.max_queue_seconds:g} ms"
    return ""


def _asks_for_less(rules: ScalingRules, load: Load) -> str:
    """Return why an interval asks for a worker less; empty if it does not."""
    remaining = load.workers - 1
    if remaining < 1 or load.busy_workers / remaining >= rules.low:
        return ""
    return f"{remaining} would be busy for {load.busy_workers / remaining:.2f} of the time"
