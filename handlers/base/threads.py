"""A few threads, each with torch for itself: decoding, resizing, members side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


class ThreadPool:
    """Maps a function over things, on as many threads as the worker has cores.

    Pillow and torch let go of Python's lock while they work. Each thread of the pool
    keeps torch's own parallelism to itself, else every one would start as many threads again.
    """

    def __init__(self, threads: int = 1) -> None:
        """Start the threads.

        Args:
            threads: 1: none, the caller does the work.
        """
        self.threads = threads
        self._executor: ThreadPoolExecutor | None = None
        if threads < 2:
            return
        outside = torch.get_num_threads()
        everyone = Barrier(threads)

        def alone() -> None:
            # torch takes the process's number the first time that a thread asks, and would later.
            torch.get_num_threads()
            torch.set_num_threads(1)
            everyone.wait()

        self._executor = ThreadPoolExecutor(threads, "ensemble", initializer=alone)
        # A thread starts with a task that finds none idle; the barrier keeps all busy till then.
        for started in [self._executor.submit(int) for _ in range(threads)]:
            started.result()
        # Part of what a thread sets holds for the process (MKL).
        torch.set_num_threads(outside)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Results in order; the first error of an item is raised.

        A single item is left to the pool too: torch's own threads, which the caller would use,
        spin for a while after their work and take the core from what runs next.
        """
        if self._executor is None:
            return [function(item) for item in items]
        return list(self._executor.map(function, items))

    def run(self, function: Callable[[], Result]) -> Result:
        """What one thread of the pool gives."""
        return function() if self._executor is None else self._executor.submit(function).result()


SERIAL = ThreadPool()
"""Without threads."""
