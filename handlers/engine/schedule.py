"""Decides which thread computes what: members side by side, or one after another on all threads.

Members do not depend on each other. A thread that computes one member alone therefore never waits,
while threads that share one member wait for each other at every operation. On two quiet cores the
members of the benchmark take 0.7 to 0.9 of the time side by side. Where another process wants the
cores too, waiting becomes the rule, and the gain is far larger.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapreplace
from itertools import pairwise

_FIXED_COST_SHARE = 0.35
"""Share of a single-sample run that does not grow with the batch (benchmarks/results)."""

_PARALLEL_EFFICIENCY = 0.75
"""Speed-up of one member that uses all threads, divided by their number (benchmarks/results)."""

_MIN_SECONDS_TO_PARALLELISE = 1e-3
"""A call shorter than this is mostly Python, which runs on one thread at a time: if all calls are
that short, they run one after another."""

_MAX_INPUT_BYTES_PER_CALL = 8 * 3 * 224 * 224 * 4
"""Bytes of eight float32 images of 224 x 224 pixels. Larger inputs are split: their activations no
longer fit the cache, which makes each sample slower."""

_MIN_SAMPLES_PER_CALL = 8
"""Inputs are never split below this many samples, however large a sample is."""


@dataclass(frozen=True)
class Work:
    """The samples that one executable has to compute.

    Attributes:
        num_samples: samples to compute.
        seconds_per_sample: time of a run with a single sample, measured on one thread.
        max_batch_size: largest number of samples for one call.
        concurrent: whether several threads may call the executable at the same time.
    """

    num_samples: int
    seconds_per_sample: float
    max_batch_size: int
    concurrent: bool = False

    def seconds(self, num_samples: int) -> float:
        """Estimate the seconds that one thread needs for a call with this many samples."""
        growing = (1 - _FIXED_COST_SHARE) * num_samples
        return self.seconds_per_sample * (_FIXED_COST_SHARE + growing)


@dataclass(frozen=True)
class Task:
    """Calls of one executable that one thread makes, one after another.

    Attributes:
        work: position of the executable's `Work` in the list that was planned.
        calls: for each call the range of samples that it computes.
    """

    work: int
    calls: tuple[slice, ...]


def max_batch_size_for(sample_shape: Sequence[int]) -> int:
    """Return the largest number of samples for one call on a CPU.

    Args:
        sample_shape: (channels, height, width) of one float32 sample.
    """
    bytes_per_sample = 4 * math.prod(sample_shape)
    return max(_MIN_SAMPLES_PER_CALL, _MAX_INPUT_BYTES_PER_CALL // bytes_per_sample)


def plan(works: Sequence[Work], threads: int) -> list[Task] | None:
    """Divide the works among threads that each compute alone, if that is estimated to be faster.

    Args:
        works: the samples of each executable.
        threads: number of threads of the worker.

    Returns:
        Tasks for the threads, the longest first. None if it is faster to run one executable after
        another, each with all threads.
    """
    if threads < 2 or all(work.seconds_per_sample < _MIN_SECONDS_TO_PARALLELISE for work in works):
        return None
    undivided = in_turn(works)
    shortest = sum(_seconds(works, task) for task in undivided) / (threads * _PARALLEL_EFFICIENCY)
    best = None
    for tasks in (undivided, _divided(works, threads)):
        longest_first = sorted(tasks, key=lambda task: _seconds(works, task), reverse=True)
        makespan = _makespan(works, longest_first, threads)
        if makespan < shortest:
            best, shortest = longest_first, makespan
    return best


def in_turn(works: Sequence[Work]) -> list[Task]:
    """Make one task of each work, to be run one after another."""
    return [
        Task(position, _calls(work.num_samples, work.max_batch_size))
        for position, work in enumerate(works)
    ]


def _divided(works: Sequence[Work], threads: int) -> list[Task]:
    """Make one task of each work, but several tasks of a work that threads may share."""
    tasks = []
    for position, work in enumerate(works):
        if not work.concurrent:
            tasks.append(Task(position, _calls(work.num_samples, work.max_batch_size)))
            continue
        batch_size = min(work.max_batch_size, math.ceil(work.num_samples / threads))
        tasks += [Task(position, (samples,)) for samples in _calls(work.num_samples, batch_size)]
    return tasks


def _calls(num_samples: int, max_batch_size: int) -> tuple[slice, ...]:
    """Cut samples into ranges of nearly equal lengths, none longer than the largest batch."""
    num_calls = math.ceil(num_samples / max_batch_size)
    bounds = [num_samples * call // num_calls for call in range(num_calls + 1)]
    return tuple(slice(*pair) for pair in pairwise(bounds))


def _seconds(works: Sequence[Work], task: Task) -> float:
    """Estimate the seconds that one thread needs for a task."""
    return sum(works[task.work].seconds(call.stop - call.start) for call in task.calls)


def _makespan(works: Sequence[Work], tasks: Sequence[Task], threads: int) -> float:
    """Estimate the seconds until all tasks are done, if a free thread takes the next task."""
    free_at = [0.0] * threads
    for task in tasks:
        heapreplace(free_at, free_at[0] + _seconds(works, task))
    return max(free_at)
