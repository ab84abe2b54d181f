"""Measures what clients notice while a server is changed: lost, wrong and late answers.

Eight clients each send one request after another, and compare every answer with that of an idle
server. Meanwhile versions are replaced, workers are added and removed, and processes are killed.
``python -m benchmarks.swaps --help`` lists the options. The result is the table of
docs/operations.md.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import requests

from examples.data import load
from examples.presence.train import train
from torchserve_ensemble.archiver.build import build_archive
from torchserve_ensemble.cli import main as ts_ensemble
from torchserve_ensemble.handlers.base.errors import EnsembleError
from torchserve_ensemble.serving.client import InferenceClient
from torchserve_ensemble.serving.load import LoadClient, LoadTarget, encode
from torchserve_ensemble.serving.server import Server
from torchserve_ensemble.serving.settings import ServerSettings, throw_away

NAME = "presence"
VERSIONS = ("1.0", "1.1")
NUM_CLIENTS = 8
NUM_QUESTIONS = 8

_SETTLE_SECONDS = 3.0
"""Time for which clients run before the first action.

The longest wait without an action is taken from the second half of this time.
"""

_PAUSE_SECONDS = 0.5
"""Pause after each action."""

Images = list[tuple[str, bytes]]
"""Name and content of each image file."""

Ask = Callable[[Images], list[Any]]
"""Function that sends images to a server and returns the predictions."""

Question = tuple[Images, list[Any]]
"""Images, and the predictions of an idle server for them."""


@dataclass
class Requests:
    """The outcomes of the requests of all clients.

    Attributes:
        waits: for each answered request the time at which it was sent, and the seconds until its
            answer.
        lost: for each request without an answer the reason.
        wrong: number of answers that differ from those of an idle server.
    """

    waits: list[tuple[float, float]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    wrong: int = 0

    def longest(self, since: float, until: float) -> float:
        """Find the longest wait, in seconds, among requests that were waiting during a time span.

        Args:
            since: begin of the time span, in seconds of ``time.monotonic``.
            until: end of the time span.
        """
        within = (wait for sent, wait in self.waits if sent <= until and sent + wait >= since)
        return max(within, default=0.0)


@contextlib.contextmanager
def checked_clients(clients: Sequence[Ask], questions: Sequence[Question]) -> Iterator[Requests]:
    """Run clients that each send one request after another, until the context ends.

    Args:
        clients: each sends its requests from a thread of its own.
        questions: what the clients send in turn, and the right answers.

    Yields:
        The outcomes of the requests; more are added while the context lasts.
    """
    outcomes = Requests()
    ending = threading.Event()
    lock = threading.Lock()

    def run(number: int) -> None:
        position = number
        while not ending.is_set():
            images, right = questions[position % len(questions)]
            position += 1
            sent = time.monotonic()
            try:
                predictions = clients[number](images)
            except (OSError, http.client.HTTPException, EnsembleError) as error:
                with lock:
                    outcomes.lost.append(f"{type(error).__name__}: {error}"[:200])
                # While the server is away, requests fail at once; the pause keeps the cores free.
                time.sleep(0.05)
                continue
            with lock:
                outcomes.waits.append((sent, time.monotonic() - sent))
                outcomes.wrong += _labels(predictions) != _labels(right)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(clients))]
    for thread in threads:
        thread.start()
    try:
        yield outcomes
    finally:
        ending.set()
        for thread in threads:
            thread.join()


def _labels(predictions: list[Any]) -> list[Any]:
    """Select the labels of an answer; scores may differ in their last digits between batches."""
    return [
        (each["label"], [member["label"] for member in each["members"].values()])
        for each in predictions
    ]


def plain_client(address: str) -> Ask:
    """Make a client that sends each request once, and gives up after 30 s."""
    target = LoadTarget(address, (f"/predictions/{NAME}",))
    client = LoadClient(target)

    def ask(images: Images) -> list[Any]:
        (body,) = client.ask(encode(target, [data for _, data in images]))
        predictions: list[Any] = json.loads(body)["predictions"]
        return predictions

    return ask


def repeating_client(address: str) -> Ask:
    """Make a client of this project whose requests outlast a restart of the server."""
    client = InferenceClient(address, timeout=90, retries=60, attempt_timeout=10)
    return lambda images: client.predict(NAME, images)["predictions"]


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        what: name of the actions.
        actions: number of actions.
        answered: number of requests that were answered.
        lost: reason -> number of requests that were lost for it.
        wrong: number of wrong answers.
        normal: longest wait shortly before the first action, in seconds.
        longest: longest wait during the actions, in seconds.
        seconds: mean duration of an action.
        failed: messages of the actions that failed.
        phases: name of a call -> longest wait during that call, in seconds.
    """

    what: str
    actions: int
    answered: int
    lost: dict[str, int]
    wrong: int
    normal: float
    longest: float
    seconds: float
    failed: tuple[str, ...]
    phases: dict[str, float]

    def text(self) -> str:
        """Write the row in Markdown."""
        phases = ", ".join(f"{name} {wait:.2f}" for name, wait in self.phases.items())
        return (
            f"| {self.what} | {self.actions} | {self.answered:,} | {sum(self.lost.values())} "
            f"| {self.wrong} | {self.normal:.2f} | {self.longest:.2f} | {phases} "
            f"| {self.seconds:.1f} |"
        )


HEADER = (
    "| action | times | answered | lost | wrong | longest wait before (s) | longest wait (s) "
    "| by call | seconds each |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)


def observe(
    what: str,
    actions: Sequence[Callable[[], object]],
    clients: Sequence[Ask],
    questions: Sequence[Question],
    phases: list[tuple[str, float, float]],
) -> Row:
    """Run actions one after another while clients send requests, and measure the clients' waits.

    Args:
        what: name of the row.
        actions: the actions.
        clients: the clients.
        questions: what the clients send, and the right answers.
        phases: a list to which the actions append name, begin and end of each of their calls.
    """
    phases.clear()
    failed = []
    with checked_clients(clients, questions) as outcomes:
        time.sleep(_SETTLE_SECONDS)
        begin = time.monotonic()
        normal = outcomes.longest(begin - _SETTLE_SECONDS / 2, begin)
        took = 0.0
        for action in actions:
            started = time.monotonic()
            try:
                action()
            except (EnsembleError, RuntimeError, requests.RequestException) as error:
                failed.append(str(error)[:300])
            took += time.monotonic() - started
            time.sleep(_PAUSE_SECONDS)
        end = time.monotonic()
    reasons: dict[str, int] = {}
    for reason in outcomes.lost:
        short = re.sub(r"\s+", " ", reason)[:120]
        reasons[short] = reasons.get(short, 0) + 1
    return Row(
        what=what,
        actions=len(actions),
        answered=len(outcomes.waits),
        lost=reasons,
        wrong=outcomes.wrong,
        normal=normal,
        longest=outcomes.longest(begin, end),
        seconds=took / max(1, len(actions)),
        failed=tuple(failed),
        phases={
            name: max(outcomes.longest(a, b) for each, a, b in phases if each == name)
            for name in dict.fromkeys(name for name, _, _ in phases)
        },
    )


def _show(row: Row) -> None:
    """Print a row of the table, and on standard error what went wrong."""
    print(row.text(), flush=True)
    for reason, count in row.lost.items():
        print(f"  lost {count}: {reason}", file=sys.stderr, flush=True)
    for reason in row.failed:
        print(f"  failed: {reason}", file=sys.stderr, flush=True)


class Running:
    """A server with the presence ensemble, and the actions that change it.

    Attributes:
        phases: name, begin and end of each call to the server.
        served: the version that answers by default.
    """

    def __init__(self, folder: Path) -> None:
        self.store = folder / "store"
        self.run_folder = folder / "run"
        self._settings = ServerSettings(self.store, (archive(VERSIONS[0]),), overrides=throw_away())
        self.phases: list[tuple[str, float, float]] = []
        self.server = self.start()

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """Record begin and end of a call to the server."""
        begin = time.monotonic()
        yield
        self.phases.append((name, begin, time.monotonic()))

    def start(self) -> Server:
        """Start the server; every start uses the same addresses."""
        self.served = VERSIONS[0]
        self.server = Server.start(self._settings, self.run_folder)
        self.server.wait_ready()
        return self.server

    def verb(self, *arguments: str) -> None:
        """Run a verb of ``ts-ensemble`` without its output."""
        with contextlib.redirect_stdout(io.StringIO()) as output, self._phase(arguments[0]):
            status = ts_ensemble([*arguments, "--run-folder", str(self.run_folder)])
        if status:
            raise RuntimeError(f"ts-ensemble {' '.join(arguments)}: {output.getvalue()}")

    def swap_by_verbs(self) -> None:
        """Replace the served version by the other one, with the verbs of ``ts-ensemble``."""
        old, new = self._swap_versions()
        self.verb("register", archive(new))
        self.verb("set-default", NAME, new)
        self.verb("unregister", NAME, old)

    def swap_by_raw_calls(self) -> None:
        """Replace the served version by the calls and waits that docs/operations.md describes."""
        old, new = self._swap_versions()
        models = f"{self.server.management_address}/models"
        query = {"url": archive(new), "initial_workers": "1", "synchronous": "false"}
        with self._phase("register"):
            _good(requests.post(models, params=query, timeout=60))
            while not all(
                worker["status"] == "READY"
                for worker in _good(requests.get(f"{models}/{NAME}/{new}", timeout=60))[0][
                    "workers"
                ]
            ):
                time.sleep(0.5)
        with self._phase("set-default"):
            _good(requests.put(f"{models}/{NAME}/{new}/set-default", timeout=60))
        with self._phase("drain and unregister"):
            described = f"{models}/{NAME}/{old}"
            while True:
                _good(requests.get(described, params={"customized": "true"}, timeout=60))
                (now,) = _good(requests.get(described, timeout=60))
                if now["jobQueueStatus"]["pendingRequests"] == 0:
                    break
            _good(requests.delete(described, timeout=60))

    def _swap_versions(self) -> tuple[str, str]:
        """Record that the other version is served, and return the old and the new version."""
        old = self.served
        self.served = VERSIONS[1 - VERSIONS.index(old)]
        return old, self.served

    def scale(self, workers: int) -> None:
        """Change the number of workers."""
        self.verb("scale", NAME, str(workers))

    def kill_worker(self) -> None:
        """Kill a worker with ``kill -9``, and wait until TorchServe has started it anew."""
        with self.server.management() as management:
            (version,) = management.describe(NAME)
            os.kill(version.workers[0].pid, signal.SIGKILL)
            while True:
                (now,) = management.describe(NAME)
                if now.ready and now.workers[0].pid != version.workers[0].pid:
                    return
                time.sleep(0.1)

    def kill_java(self) -> None:
        """Kill Java with ``kill -9``, stop what is left, and start the server again."""
        family = psutil.Process(self.server.pid).children(recursive=True)
        next(process for process in family if process.name() == "java").kill()
        self.server.stop(drain_timeout=60, force=False)
        self.start()

    def kill_launcher(self) -> None:
        """Kill the launcher with ``kill -9``, stop what is left, and start the server again."""
        os.kill(self.server.pid, signal.SIGKILL)
        self.server.stop(drain_timeout=60, force=False)
        self.start()


def archive(version: str) -> str:
    """Name of the archive of a version."""
    return f"{NAME}-{version}.mar"


def build(folder: Path) -> None:
    """Train the presence example, and build two versions of it into ``folder/store``."""
    source = folder / "source"
    shutil.copytree(Path(__file__).parent.parent / "examples" / NAME, source)
    train(source, load()[0])
    spec = source / "ensemble.yaml"
    for version in VERSIONS:
        spec.write_text(
            re.sub(r'^version: ".*"', f'version: "{version}"', spec.read_text(), flags=re.M)
        )
        build_archive(spec, folder / "store")


def questions_of(size: int, client: InferenceClient) -> list[Question]:
    """Make requests of `size` images, and get the right answers from an idle server.

    Returns:
        `NUM_QUESTIONS` requests, each of which begins with another image, and their answers.
    """
    files = load()[1].files
    questions: list[Question] = []
    for start in range(0, 4 * NUM_QUESTIONS, 4):
        images = [(f"{i}.png", files[(start + i) % len(files)]) for i in range(size)]
        questions.append((images, client.predict(NAME, images)["predictions"]))
    return questions


def plan_of(
    running: Running,
    address: str,
    times: int,
    kills: int,
    small: list[Question],
    large: list[Question],
) -> Iterator[tuple[str, list[Callable[[], object]], list[Ask], list[Question]]]:
    """Plan every row of the table: its name, its actions, its clients and their questions.

    Args:
        running: the server.
        address: its inference address.
        times: number of actions for a row that replaces versions or scales.
        kills: number of processes that are killed in the last three rows together. One more row
            kills as many workers as the first of them, with clients that repeat nothing.
        small: questions of few images.
        large: questions of many images.
    """
    plain = [plain_client(address) for _ in range(NUM_CLIENTS)]
    repeating = [repeating_client(address) for _ in range(NUM_CLIENTS)]
    up_and_down = [partial(running.scale, 2 - number % 2) for number in range(times)]
    for size, questions in (("4 images", small), ("256 images", large)):
        verbs = [running.swap_by_verbs] * times
        yield f"replace a version by verbs, {size} a request", [*verbs], plain, questions
        raw = [running.swap_by_raw_calls] * times
        yield f"replace a version by raw calls, {size} a request", [*raw], plain, questions
        yield f"scale 1, 2, 1, {size} a request", [*up_and_down], plain, questions
    num_restarts = max(1, kills // 3)
    workers = [running.kill_worker] * (kills - 2 * num_restarts)
    yield "kill a worker, clients that repeat nothing", [*workers], plain, small
    yield "kill a worker, InferenceClient", [*workers], repeating, small
    java = [running.kill_java] * num_restarts
    yield "kill Java and serve again, InferenceClient", [*java], repeating, small
    launchers = [running.kill_launcher] * num_restarts
    yield "kill the launcher, stop, serve again, InferenceClient", [*launchers], repeating, small


def _good(answer: requests.Response) -> Any:
    """Return the JSON of an answer, or raise an error if it is a refusal."""
    answer.raise_for_status()
    return answer.json()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.swaps", description=__doc__)
    parser.add_argument(
        "--times", type=int, default=20, help="how often versions are replaced and workers scaled"
    )
    parser.add_argument(
        "--kills",
        type=int,
        default=10,
        help="processes to kill while InferenceClient sends requests: workers, Java, launchers",
    )
    parser.add_argument(
        "--only", default="", metavar="PATTERN", help="measure only rows whose name matches"
    )
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="swaps-"))
    running: Running | None = None
    try:
        build(folder)
        running = Running(folder)
        address = running.server.inference_address
        with running.server.client() as client:
            small, large = questions_of(4, client), questions_of(256, client)
        plan = plan_of(running, address, options.times, options.kills, small, large)
        print(HEADER, flush=True)
        for what, actions, clients, questions in plan:
            if re.search(options.only, what):
                _show(observe(what, actions, clients, questions, running.phases))
    finally:
        if running is not None:
            running.server.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
