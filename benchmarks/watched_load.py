"""Clients that check every answer, and the account of what they noticed during each operation.

Some clients send one request after another (closed loop). Beside them requests arrive at a fixed
rate, whether or not others are answered (open loop). Every answer says which version gave it, and
is compared with what exactly that version answers when nothing else happens.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from torchserve_ensemble.handlers.base.errors import EnsembleError

Images = list[tuple[str, bytes]]
"""Name and content of each image file."""

Ask = Callable[[Images], Mapping[str, Any]]
"""Sends images to a server in one request, and returns its JSON answer."""

BEFORE = "nothing happens"
"""Name of the time before the first operation."""

_MAX_OPEN_REQUESTS = 128
_PAUSE_AFTER_FAILURE_SECONDS = 0.05
"""While the server is away requests fail at once; the pause keeps the cores free."""


@dataclass(frozen=True)
class Question:
    """Images, and what each version answers when nothing else happens.

    Attributes:
        images: the images of one request.
        answers: version -> its answer, as `essence` gives it.
    """

    images: Images
    answers: Mapping[str, str]


@dataclass(frozen=True)
class Outcome:
    """What became of one request.

    Attributes:
        end: when it was answered or had failed, in ``time.monotonic`` seconds.
        seconds: how long that took; in the open loop from the moment for which it was scheduled.
        lost: why it has no answer; empty if it has one.
        wrong: whether the answer is not that of the version which it names.
    """

    end: float
    seconds: float
    lost: str = ""
    wrong: bool = False


@dataclass(frozen=True)
class Operation:
    """A change of the server while clients send requests.

    Attributes:
        name: what is done; operations of one name share a row.
        act: does it.
        must_fail: whether an error is the expected result.
    """

    name: str
    act: Callable[[], object]
    must_fail: bool = False


@dataclass
class Row:
    """What clients noticed of all operations of one name.

    Attributes:
        name: the name.
        times: number of operations.
        seconds: how long all operations took together.
        requests: number of requests that ended during these operations, or until the next one.
        lost: reason -> number of requests that were lost for it.
        wrong: number of wrong answers.
        longest_seconds: longest wait for an answer.
        most_lost_at_once: largest number of requests that one operation lost.
        surprises: why operations failed that should not, or that they did not fail though they
            should.
    """

    name: str
    times: int = 0
    seconds: float = 0.0
    requests: int = 0
    lost: dict[str, int] = field(default_factory=dict)
    wrong: int = 0
    longest_seconds: float = 0.0
    most_lost_at_once: int = 0
    surprises: list[str] = field(default_factory=list)

    @property
    def num_lost(self) -> int:
        """Number of requests that were lost."""
        return sum(self.lost.values())


def essence(answer: Mapping[str, Any]) -> str:
    """Select what an answer decides; scores may differ in their last digits between batches."""
    decided = [
        (each["label"], [member["label"] for member in each["members"].values()])
        for each in answer["predictions"]
    ]
    return json.dumps([answer["policy"], decided])


def observe(
    operations: Sequence[Operation],
    ask: Ask,
    questions: Sequence[Question],
    *,
    num_clients: int = 16,
    rate: float = 5.0,
    settle_seconds: float = 3.0,
    pause_seconds: float = 0.5,
    rows: dict[str, Row] | None = None,
) -> list[Row]:
    """Run operations one after another while clients send requests.

    Args:
        operations: the operations.
        ask: sends a request; called from many threads.
        questions: what the clients send in turn.
        num_clients: number of closed-loop clients.
        rate: requests per second of the open loop.
        settle_seconds: time for which the clients run before the first operation.
        pause_seconds: time after each operation.
        rows: name -> row of earlier operations, to which these are added.

    Returns:
        A row for the time before the first operation, and one for each name of an operation.
    """
    rows = {} if rows is None else rows
    before = rows.setdefault(BEFORE, Row(BEFORE))
    before.times += 1
    before.seconds += settle_seconds
    begun: list[tuple[float, Row]] = []
    with _clients(ask, questions, num_clients, rate) as outcomes:
        begun.append((time.monotonic(), before))
        time.sleep(settle_seconds)
        for operation in operations:
            row = rows.setdefault(operation.name, Row(operation.name))
            begin = time.monotonic()
            begun.append((begin, row))
            problem = _problem(operation)
            if problem:
                row.surprises.append(problem)
            row.times += 1
            row.seconds += time.monotonic() - begin
            time.sleep(pause_seconds)
    for number, (begin, row) in enumerate(begun):
        end = begun[number + 1][0] if number + 1 < len(begun) else float("inf")
        first = float("-inf") if number == 0 else begin
        _count(row, [each for each in outcomes if first <= each.end < end])
    return list(rows.values())


def _problem(operation: Operation) -> str:
    """Do an operation; return in what way it did not go as it should, or an empty text."""
    try:
        operation.act()
    except (EnsembleError, RuntimeError, OSError) as error:
        return "" if operation.must_fail else str(error)[:300]
    return "it should have failed" if operation.must_fail else ""


def _count(row: Row, outcomes: Sequence[Outcome]) -> None:
    """Add the outcomes of one operation to its row."""
    lost = [each.lost for each in outcomes if each.lost]
    row.requests += len(outcomes)
    row.wrong += sum(each.wrong for each in outcomes)
    row.most_lost_at_once = max(row.most_lost_at_once, len(lost))
    answered = (each.seconds for each in outcomes if not each.lost)
    row.longest_seconds = max(row.longest_seconds, max(answered, default=0.0))
    for reason in lost:
        short = re.sub(r"\s+", " ", reason)[:200]
        row.lost[short] = row.lost.get(short, 0) + 1


@contextlib.contextmanager
def _clients(
    ask: Ask, questions: Sequence[Question], num_clients: int, rate: float
) -> Iterator[list[Outcome]]:
    """Run the clients until the context ends; the outcomes are complete after that."""
    outcomes: list[Outcome] = []
    ending = threading.Event()

    def send(number: int, since: float) -> Outcome:
        question = questions[number % len(questions)]
        try:
            answer = ask(question.images)
        except EnsembleError as error:
            lost = f"{type(error).__name__}: {error}"
            outcome = Outcome(time.monotonic(), time.monotonic() - since, lost)
        else:
            right = question.answers.get(answer["model"]["version"])
            end = time.monotonic()
            outcome = Outcome(end, end - since, wrong=essence(answer) != right)
        # Appending to a list is one step for all threads.
        outcomes.append(outcome)
        return outcome

    def closed_loop(number: int) -> None:
        while not ending.is_set():
            if send(number, time.monotonic()).lost:
                ending.wait(_PAUSE_AFTER_FAILURE_SECONDS)
            number += 1

    def open_loop(pool: ThreadPoolExecutor) -> None:
        begin = time.monotonic()
        number = 0
        while not ending.is_set():
            scheduled = begin + number / rate
            ending.wait(max(0.0, scheduled - time.monotonic()))
            pool.submit(send, number, scheduled)
            number += 1

    with ThreadPoolExecutor(_MAX_OPEN_REQUESTS) as pool:
        threads = [
            threading.Thread(target=closed_loop, args=(number,)) for number in range(num_clients)
        ]
        threads.append(threading.Thread(target=open_loop, args=(pool,)))
        for thread in threads:
            thread.start()
        try:
            yield outcomes
        finally:
            ending.set()
            for thread in threads:
                thread.join()
