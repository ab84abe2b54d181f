"""The worker's pool of threads, which decodes and resizes images and runs members side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


class ThreadPool:
    """A fixed number of threads that apply a function to many items at once.

    This saves time because Pillow and torch release Python's global lock while they compute. Torch
    uses one thread for work on the pool; otherwise each thread of the pool would start further
    threads of torch, more than there are cores.

    Attributes:
        threads: number of threads in the pool; 1 if the caller's thread does the work.
    """

    def __init__(self, threads: int = 1) -> None:
        """Start the threads.

        Args:
            threads: number of threads. With 1 no thread is started, and the thread that calls
                `map` or `run` does the work.
        """
        self.threads = threads
        self._executor: ThreadPoolExecutor | None = None
        if threads < 2:
            return
        num_torch_threads = torch.get_num_threads()
        all_started = Barrier(threads)

        def use_one_torch_thread() -> None:
            # The first call of get_num_threads in a thread sets that thread's number to the number
            # of the process. It is called here so that this does not happen after set_num_threads.
            torch.get_num_threads()
            torch.set_num_threads(1)
            all_started.wait()

        self._executor = ThreadPoolExecutor(threads, "ensemble", initializer=use_one_torch_thread)
        # The executor starts a thread only if a task finds no idle thread. The barrier keeps each
        # thread busy until all have started.
        for started in [self._executor.submit(int) for _ in range(threads)]:
            started.result()
        # In MKL the number that one thread sets holds for the whole process; this restores it.
        torch.set_num_threads(num_torch_threads)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Apply a function to each item, and return the results in the order of the items.

        If the function raises, the error of the first such item is raised here. A single item goes
        to the pool too. On the caller's thread torch would use threads of its own, which spin for
        a while after their work and so keep the cores from the work that follows.
        """
        if self._executor is None:
            return [function(item) for item in items]
        return list(self._executor.map(function, items))

    def run(self, function: Callable[[], Result]) -> Result:
        """Call a function on a thread of the pool, and return its result."""
        return function() if self._executor is None else self._executor.submit(function).result()


SERIAL = ThreadPool()
"""A pool without threads: the thread that calls it does the work."""
