"""Which thread computes what: members side by side, or each with all threads in turn.

Several members are independent of each other, so a thread for each needs no waiting for others
within a layer, which threads that share one member do at its every operation: on two quiet cores
the members of the benchmark take 0.7 to 0.9 of the time, and where another process wants the cores
too, when such waiting becomes the rule, far less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapreplace
from itertools import pairwise

# Shares of the time of one sample: that samples of a batch have in common, and of the threads'
# number by which one member becomes faster with all of them. Measured (benchmarks/results).
_COMMON = 0.35
_SHARED_GAIN = 0.75

_CALL = 1e-3
"""Seconds below which a member's time is mostly Python's, where threads only get in the way."""

_PIECE_BYTES = 8 * 3 * 224 * 224 * 4
"""Of input computed at once: beyond it activations leave the cache and a sample takes longer."""


@dataclass(frozen=True)
class Work:
    """What one member is to do.

    Attributes:
        samples: how many.
        seconds: that one sample takes on one thread.
        piece: most samples at once.
        concurrent: whether several threads may run the member at the same time.
    """

    samples: int
    seconds: float
    piece: int
    concurrent: bool = False

    def time(self, samples: int) -> float:
        """Estimated seconds on one thread."""
        return self.seconds * (_COMMON + (1 - _COMMON) * samples)


@dataclass(frozen=True)
class Task:
    """For one thread: samples of one member, piece by piece."""

    work: int
    pieces: tuple[slice, ...]


def piece_of(shape: Sequence[int]) -> int:
    """Most samples of this shape (channels, height, width) that are computed at once."""
    return max(8, _PIECE_BYTES // (4 * math.prod(shape)))


def plan(works: Sequence[Work], threads: int) -> list[Task] | None:
    """Tasks for threads that compute alone, the longest first.

    Returns:
        None where it is faster if every member in turn has all threads.
    """
    if threads < 2 or all(work.seconds < _CALL for work in works):
        return None
    whole = in_turn(works)
    best = sum(_seconds(works, task) for task in whole) / (threads * _SHARED_GAIN)
    chosen = None
    for tasks in (whole, _cut(works, threads)):
        ordered = sorted(tasks, key=lambda task: _seconds(works, task), reverse=True)
        last = _last(works, ordered, threads)
        if last < best:
            chosen, best = ordered, last
    return chosen


def in_turn(works: Sequence[Work]) -> list[Task]:
    """One task for each member."""
    return [Task(i, _pieces(work.samples, work.piece)) for i, work in enumerate(works)]


def _cut(works: Sequence[Work], threads: int) -> list[Task]:
    """The members that several threads may run are divided among them."""
    tasks = []
    for i, work in enumerate(works):
        if not work.concurrent:
            tasks.append(Task(i, _pieces(work.samples, work.piece)))
            continue
        piece = min(work.piece, math.ceil(work.samples / threads))
        tasks += [Task(i, (each,)) for each in _pieces(work.samples, piece)]
    return tasks


def _pieces(samples: int, most: int) -> tuple[slice, ...]:
    """Slices of nearly equal lengths."""
    count = math.ceil(samples / most)
    bounds = [samples * i // count for i in range(count + 1)]
    return tuple(slice(*each) for each in pairwise(bounds))


def _seconds(works: Sequence[Work], task: Task) -> float:
    return sum(works[task.work].time(each.stop - each.start) for each in task.pieces)


def _last(works: Sequence[Work], tasks: Sequence[Task], threads: int) -> float:
    """When the last is done, if each thread takes the next task as soon as it is free."""
    free = [0.0] * threads
    for task in tasks:
        heapreplace(free, free[0] + _seconds(works, task))
    return max(free)
