"""A candidate's process that hangs, ends or never starts is noticed and started again."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from torchserve_ensemble.handlers.rollout.candidate_process import (
    CandidateProcess,
    NotRunningError,
)

ECHO = """
import os, socket, sys, time
from torchserve_ensemble.handlers.rollout.candidate_messages import receive, send
connection = socket.socket(fileno=int(sys.argv[-1]))
send(connection, "ready")
while True:
    message = receive(connection)
    if message == "hang":
        while True:
            pass
    if message == "end":
        os._exit(3)
    if message == "late":
        time.sleep(0.5)
    send(connection, message)
"""


@contextmanager
def process(code: str = ECHO) -> Iterator[CandidateProcess]:
    candidate = CandidateProcess([sys.executable, "-c", code], startup_seconds=60)
    try:
        yield candidate
    finally:
        candidate.end()


def test_answers_come_back_and_a_late_one_is_thrown_away() -> None:
    with process() as candidate:
        candidate.ensure_running()
        assert candidate.ask({"number": 1}, 20) == {"number": 1}
        large = bytes(20_000_000)
        assert candidate.ask(large, 20) == large
        with pytest.raises(TimeoutError):
            candidate.ask("late", 0.05)
        candidate.recover(20)
        assert candidate.ask("next", 20) == "next"


def test_the_process_yields_to_all_others() -> None:
    with process() as candidate:
        candidate.ensure_running()
        assert candidate.pid is not None
        assert os.sched_getscheduler(candidate.pid) == os.SCHED_IDLE or (
            psutil.Process(candidate.pid).nice() == 19
        )


def test_a_process_that_hangs_is_ended_and_started_again() -> None:
    with process() as candidate:
        candidate.ensure_running()
        first = candidate.pid
        assert first is not None
        with pytest.raises(TimeoutError):
            candidate.ask("hang", 0.05)
        with pytest.raises(NotRunningError, match="did not answer"):
            candidate.recover(0.05)
        assert not psutil.pid_exists(first)
        with pytest.raises(NotRunningError, match="waits"):
            candidate.ensure_running()
        candidate._may_start_at = 0
        candidate.ensure_running()
        assert candidate.ask("next", 20) == "next"


def test_a_stopped_process_does_not_count_as_hung_and_goes_on() -> None:
    with process() as candidate:
        candidate.ensure_running()
        assert candidate.ask("first", 20) == "first"
        candidate.pause()
        # It receives the message although the worker computes, and is stopped then.
        with pytest.raises(TimeoutError):
            candidate.ask("late", 0.3)
        assert candidate.pid is not None
        assert psutil.Process(candidate.pid).status() == psutil.STATUS_STOPPED
        resuming = threading.Timer(1.0, candidate.resume)
        resuming.start()
        # It sleeps for half a second, and is stopped for longer than it may take.
        candidate.recover(0.9)
        resuming.join()
        assert candidate.ask("next", 20) == "next"


def test_a_process_that_ends_is_noticed() -> None:
    with process() as candidate:
        candidate.ensure_running()
        with pytest.raises(NotRunningError):
            candidate.ask("end", 20)
        assert candidate.pid is None


def test_a_process_that_cannot_start_is_tried_ever_more_seldom(tmp_path: Path) -> None:
    with process("raise SystemExit(1)") as candidate:
        pauses = []
        for _ in range(3):
            candidate._may_start_at = 0
            pauses.append(candidate._pause_seconds)
            with pytest.raises(NotRunningError, match="could not be started"):
                candidate.ensure_running()
        assert pauses == [1, 2, 4]
