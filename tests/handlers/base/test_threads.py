"""The pool keeps results in order, raises errors, and restores torch's number of threads."""

from __future__ import annotations

import threading

import pytest
import torch

from torchserve_ensemble.handlers.base.threads import SERIAL, ThreadPool


@pytest.fixture(scope="module")
def pool() -> ThreadPool:
    return ThreadPool(3)


def test_results_are_in_order(pool: ThreadPool) -> None:
    assert pool.map(lambda n: n * n, range(50)) == [n * n for n in range(50)]
    assert SERIAL.map(str, [1, 2]) == ["1", "2"]


def test_the_first_error_is_raised(pool: ThreadPool) -> None:
    with pytest.raises(ZeroDivisionError):
        pool.map(lambda n: 1 // n, [1, 0, 2])


def test_tasks_run_at_the_same_time(pool: ThreadPool) -> None:
    """Each task waits for the two others. One after the other they would wait for ever."""
    together = threading.Barrier(3)
    pool.map(lambda _: together.wait(timeout=30), range(3))


def test_threads_of_the_pool_use_one_thread_of_torch_and_the_caller_its_own() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        pool = ThreadPool(2)
        assert pool.run(torch.get_num_threads) == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
