"""Tests that the schedule computes every sample once, and side by side if that ends sooner."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from torchserve_ensemble.handlers.engine.schedule import (
    Task,
    Work,
    in_turn,
    max_batch_size_for,
    plan,
)

works = st.builds(
    Work,
    num_samples=st.integers(1, 70),
    seconds_per_sample=st.floats(1e-4, 1.0),
    max_batch_size=st.integers(1, 70),
    concurrent=st.booleans(),
)


@given(st.lists(works, min_size=1, max_size=8), st.integers(1, 16))
def test_every_sample_is_computed_once(several: list[Work], threads: int) -> None:
    for tasks in (plan(several, threads), in_turn(several)):
        if tasks is not None:
            check_complete(several, tasks)


def check_complete(several: list[Work], tasks: list[Task]) -> None:
    """Check that tasks compute each sample once.

    An executable that is not concurrent must be called by one task only.
    """
    computed: dict[int, list[int]] = {i: [] for i in range(len(several))}
    for task in tasks:
        for call in task.calls:
            rows = range(call.start, call.stop)
            assert 1 <= len(rows) <= several[task.work].max_batch_size
            computed[task.work] += rows
    assert {i: sorted(rows) for i, rows in computed.items()} == {
        i: list(range(work.num_samples)) for i, work in enumerate(several)
    }
    alone = [task.work for task in tasks if not several[task.work].concurrent]
    assert len(alone) == len(set(alone))


def test_members_run_side_by_side_if_that_ends_sooner() -> None:
    balanced = [Work(1, 0.02, 8), Work(1, 0.02, 8)]
    assert plan(balanced, 2) == [Task(0, (slice(0, 1),)), Task(1, (slice(0, 1),))]
    one_big = [Work(8, 0.1, 8), Work(8, 0.001, 8)]
    assert plan(one_big, 2) is None
    assert plan([Work(8, 0.1, 8, concurrent=True)], 2) == [
        Task(0, (slice(0, 4),)),
        Task(0, (slice(4, 8),)),
    ]
    assert plan(balanced, 1) is None


def test_one_call_takes_eight_photographs_or_many_digits() -> None:
    assert max_batch_size_for((3, 224, 224)) == 8
    assert max_batch_size_for((3, 1024, 1024)) == 8
    assert max_batch_size_for((1, 8, 8)) > 10_000
