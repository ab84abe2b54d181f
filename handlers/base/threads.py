"""The worker's threads, which decode and resize images and run members side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


class ThreadPool:
    """Applies a function to many items at once, on as many threads as the worker has cores.

    That gains time because Pillow and torch release Python's lock while they work. In each thread
    of the pool torch computes on that thread alone; otherwise every thread would start as many
    threads again.
    """

    def __init__(self, threads: int = 1) -> None:
        """Start the threads.

        Args:
            threads: how many; with 1 no thread is started, and the caller does the work.
        """
        self.threads = threads
        self._executor: ThreadPoolExecutor | None = None
        if threads < 2:
            return
        outside = torch.get_num_threads()
        everyone = Barrier(threads)

        def alone() -> None:
            # torch copies the process's number of threads when a thread asks for it first. Asking
            # before setting keeps that from happening afterwards.
            torch.get_num_threads()
            torch.set_num_threads(1)
            everyone.wait()

        self._executor = ThreadPoolExecutor(threads, "ensemble", initializer=alone)
        # The executor starts a thread only for a task that finds no idle one. The barrier keeps
        # every thread busy until all have started.
        for started in [self._executor.submit(int) for _ in range(threads)]:
            started.result()
        # MKL takes the number that a thread sets for the whole process.
        torch.set_num_threads(outside)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Apply a function to each item, and return the results in the order of the items.

        The first error is raised. A single item goes to the pool too: torch's own threads, which
        the caller would use, spin for a while after their work and keep the core from what runs
        next.
        """
        if self._executor is None:
            return [function(item) for item in items]
        return list(self._executor.map(function, items))

    def run(self, function: Callable[[], Result]) -> Result:
        """Call a function on a thread of the pool, and return its result."""
        return function() if self._executor is None else self._executor.submit(function).result()


SERIAL = ThreadPool()
"""The pool without threads: the caller does the work."""
