"""Threads: results stay in order, errors arrive, and torch keeps its own number of threads."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchserve_ensemble.handlers.base.threads import SERIAL, ThreadPool
from torchserve_ensemble.handlers.engine.schedule import Task, Work, in_turn, piece_of, plan


@pytest.fixture(scope="module")
def pool() -> ThreadPool:
    return ThreadPool(3)


def test_results_stand_in_order(pool: ThreadPool) -> None:
    assert pool.map(lambda n: n * n, range(50)) == [n * n for n in range(50)]
    assert SERIAL.map(str, [1, 2]) == ["1", "2"]


def test_the_first_error_arrives(pool: ThreadPool) -> None:
    with pytest.raises(ZeroDivisionError):
        pool.map(lambda n: 1 // n, [1, 0, 2])


def test_things_are_done_at_the_same_time(pool: ThreadPool) -> None:
    """Each waits for the two others; in turn they would wait for ever."""
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


works = st.builds(
    Work,
    samples=st.integers(1, 70),
    seconds=st.floats(1e-4, 1.0),
    piece=st.integers(1, 70),
    concurrent=st.booleans(),
)


@given(st.lists(works, min_size=1, max_size=8), st.integers(1, 16))
def test_every_sample_is_computed_once(several: list[Work], threads: int) -> None:
    for tasks in (plan(several, threads), in_turn(several)):
        if tasks is not None:
            check_complete(several, tasks)


def check_complete(several: list[Work], tasks: list[Task]) -> None:
    found: dict[int, list[int]] = {i: [] for i in range(len(several))}
    for task in tasks:
        for piece in task.pieces:
            rows = range(piece.start, piece.stop)
            assert 1 <= len(rows) <= several[task.work].piece
            found[task.work] += rows
    assert {i: sorted(rows) for i, rows in found.items()} == {
        i: list(range(work.samples)) for i, work in enumerate(several)
    }
    alone = [task.work for task in tasks if not several[task.work].concurrent]
    assert len(alone) == len(set(alone))


def test_members_run_side_by_side_where_that_ends_sooner() -> None:
    balanced = [Work(1, 0.02, 8), Work(1, 0.02, 8)]
    assert plan(balanced, 2) == [Task(0, (slice(0, 1),)), Task(1, (slice(0, 1),))]
    one_big = [Work(8, 0.1, 8), Work(8, 0.001, 8)]
    assert plan(one_big, 2) is None
    assert plan([Work(8, 0.1, 8, concurrent=True)], 2) == [
        Task(0, (slice(0, 4),)),
        Task(0, (slice(4, 8),)),
    ]
    assert plan(balanced, 1) is None


def test_a_piece_is_eight_photographs_or_many_digits() -> None:
    assert piece_of((3, 224, 224)) == 8
    assert piece_of((3, 1024, 1024)) == 8
    assert piece_of((1, 8, 8)) > 10_000


def test_a_file_that_is_no_library_is_an_error(tmp_path: Path) -> None:
    from torchserve_ensemble.handlers.members.aot_library import AotLibrary

    (tmp_path / "a.so").write_bytes(b"nothing")
    with pytest.raises(OSError, match="a.so"):
        AotLibrary(tmp_path / "a.so", (3,), 1)
