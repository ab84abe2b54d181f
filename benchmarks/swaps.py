"""What clients notice while a server is changed: lost, wrong and late answers.

Eight clients, each with its next request on its way as soon as it has an answer, compare every
answer with the one of an idle server, while versions are swapped, workers are added and removed,
and processes are killed. ``python -m benchmarks.swaps --help`` lists the options; the result is a
table for docs/operations.md.
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
CLIENTS = 8
_SETTLE_SECONDS = 3.0
_PAUSE_SECONDS = 0.5

Images = list[tuple[str, bytes]]
Ask = Callable[[Images], list[Any]]
"""Sends images, and returns the predictions."""


@dataclass
class Requests:
    """What became of the requests of all clients.

    Attributes:
        waits: when each answered request was sent, and how many seconds it took.
        lost: why requests have no answer.
        wrong: answers that differ from those of an idle server.
    """

    waits: list[tuple[float, float]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    wrong: int = 0

    def longest(self, since: float, until: float) -> float:
        """The longest wait of requests on their way within a time."""
        within = (wait for sent, wait in self.waits if sent <= until and sent + wait >= since)
        return max(within, default=0.0)


@contextlib.contextmanager
def checked_clients(
    asks: Sequence[Ask], questions: Sequence[tuple[Images, list[Any]]]
) -> Iterator[Requests]:
    """Clients in closed loop, one for each of `asks`, until the context ends.

    Args:
        asks: how each client sends images.
        questions: images and the predictions that are right.
    """
    found = Requests()
    ending = threading.Event()
    lock = threading.Lock()

    def run(number: int) -> None:
        position = number
        while not ending.is_set():
            images, right = questions[position % len(questions)]
            position += 1
            sent = time.monotonic()
            try:
                predictions = asks[number](images)
            except (OSError, http.client.HTTPException, EnsembleError) as error:
                with lock:
                    found.lost.append(f"{type(error).__name__}: {error}"[:200])
                # A server that is away is not asked again without a pause.
                time.sleep(0.05)
                continue
            with lock:
                found.waits.append((sent, time.monotonic() - sent))
                found.wrong += _labels(predictions) != _labels(right)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(asks))]
    for thread in threads:
        thread.start()
    try:
        yield found
    finally:
        ending.set()
        for thread in threads:
            thread.join()


def _labels(predictions: list[Any]) -> list[Any]:
    """The labels of an answer; scores may differ in their last digits between batches."""
    return [
        (each["label"], [member["label"] for member in each["members"].values()])
        for each in predictions
    ]


def plain_client(address: str) -> Ask:
    """A client that sends everything once, and gives up after 30 s."""
    target = LoadTarget(address, (f"/predictions/{NAME}",))
    client = LoadClient(target)

    def ask(images: Images) -> list[Any]:
        (body,) = client.ask(encode(target, [data for _, data in images]))
        predictions: list[Any] = json.loads(body)["predictions"]
        return predictions

    return ask


def repeating_client(address: str) -> Ask:
    """The project's client, told to outlive a restart of the server."""
    client = InferenceClient(address, timeout=90, retries=60, attempt_timeout=10)
    return lambda images: client.predict(NAME, images)["predictions"]


@dataclass(frozen=True)
class Row:
    """One line of the table."""

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
        """As markdown."""
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
    asks: Sequence[Ask],
    questions: Sequence[tuple[Images, list[Any]]],
    phases: list[tuple[str, float, float]],
) -> Row:
    """Run actions one after the other under checked clients.

    Args:
        what: name of the row.
        actions: what is done.
        asks: the clients.
        questions: what they ask, and the right answers.
        phases: to which an action adds the name, begin and end of each of its calls.
    """
    phases.clear()
    failed = []
    with checked_clients(asks, questions) as found:
        time.sleep(_SETTLE_SECONDS)
        begin = time.monotonic()
        normal = found.longest(begin - _SETTLE_SECONDS / 2, begin)
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
    for reason in found.lost:
        short = re.sub(r"\s+", " ", reason)[:120]
        reasons[short] = reasons.get(short, 0) + 1
    return Row(
        what,
        len(actions),
        len(found.waits),
        reasons,
        found.wrong,
        normal,
        found.longest(begin, end),
        took / max(1, len(actions)),
        tuple(failed),
        {
            name: max(found.longest(a, b) for each, a, b in phases if each == name)
            for name in dict.fromkeys(name for name, _, _ in phases)
        },
    )


def _show(row: Row) -> None:
    print(row.text(), flush=True)
    for reason, count in row.lost.items():
        print(f"  lost {count}: {reason}", file=sys.stderr, flush=True)
    for reason in row.failed:
        print(f"  failed: {reason}", file=sys.stderr, flush=True)


class Running:
    """A server with the presence ensemble, and what is done to it."""

    def __init__(self, folder: Path) -> None:
        self.store = folder / "store"
        self.run_folder = folder / "run"
        self._settings = ServerSettings(self.store, (archive(VERSIONS[0]),), overrides=throw_away())
        self.phases: list[tuple[str, float, float]] = []
        self.server = self.start()

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        begin = time.monotonic()
        yield
        self.phases.append((name, begin, time.monotonic()))

    def start(self) -> Server:
        """Start it, always at the same addresses."""
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
        """Register the other version, make it the default one, unregister this one."""
        old, new = self._turn()
        self.verb("register", archive(new))
        self.verb("set-default", NAME, new)
        self.verb("unregister", NAME, old)

    def swap_by_raw_calls(self) -> None:
        """The same in the order and with the waits that docs/operations.md gives."""
        old, new = self._turn()
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

    def _turn(self) -> tuple[str, str]:
        old = self.served
        self.served = VERSIONS[1 - VERSIONS.index(old)]
        return old, self.served

    def scale(self, workers: int) -> None:
        """Change the number of workers."""
        self.verb("scale", NAME, str(workers))

    def kill_worker(self) -> None:
        """``kill -9`` a worker, and wait until TorchServe has started it anew."""
        with self.server.management() as management:
            (version,) = management.describe(NAME)
            os.kill(version.workers[0].pid, signal.SIGKILL)
            while True:
                (now,) = management.describe(NAME)
                if now.ready and now.workers[0].pid != version.workers[0].pid:
                    return
                time.sleep(0.1)

    def kill_java(self) -> None:
        """``kill -9`` Java, stop what is left, and start the server again."""
        family = psutil.Process(self.server.pid).children(recursive=True)
        next(process for process in family if process.name() == "java").kill()
        self.server.stop(drain_timeout=60, force=False)
        self.start()

    def kill_launcher(self) -> None:
        """``kill -9`` the launcher, stop what is left, and start the server again."""
        os.kill(self.server.pid, signal.SIGKILL)
        self.server.stop(drain_timeout=60, force=False)
        self.start()


def archive(version: str) -> str:
    """The file of a version."""
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


def questions_of(size: int, client: InferenceClient) -> list[tuple[Images, list[Any]]]:
    """Requests of so many images, and how an idle server answers them."""
    files = load()[1].files
    found = []
    for start in range(0, 8 * 4, 4):
        images = [(f"{i}.png", files[(start + i) % len(files)]) for i in range(size)]
        found.append((images, client.predict(NAME, images)["predictions"]))
    return found


def plan_of(
    running: Running,
    address: str,
    times: int,
    kills: int,
    small: list[tuple[Images, list[Any]]],
    large: list[tuple[Images, list[Any]]],
) -> Iterator[tuple[str, list[Callable[[], object]], list[Ask], list[tuple[Images, list[Any]]]]]:
    """Every row of the table: its name, what is done, the clients and what they ask."""
    plain = [plain_client(address) for _ in range(CLIENTS)]
    repeating = [repeating_client(address) for _ in range(CLIENTS)]
    up_and_down = [partial(running.scale, 2 - number % 2) for number in range(times)]
    for size, questions in (("4 images", small), ("256 images", large)):
        yield f"swap by verbs, {size} a request", [running.swap_by_verbs] * times, plain, questions
        raw = [running.swap_by_raw_calls] * times
        yield f"swap by raw calls, {size} a request", [*raw], plain, questions
        yield f"scale 1, 2, 1, {size} a request", [*up_and_down], plain, questions
    few = max(1, kills // 3)
    many = [running.kill_worker] * (kills - 2 * few)
    yield "kill a worker, clients that repeat nothing", [*many], plain, small
    yield "kill a worker, InferenceClient", [*many], repeating, small
    yield "kill Java and serve again, InferenceClient", [running.kill_java] * few, repeating, small
    launchers = [running.kill_launcher] * few
    yield "kill the launcher, stop, serve again, InferenceClient", [*launchers], repeating, small


def _good(answer: requests.Response) -> Any:
    answer.raise_for_status()
    return answer.json()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.swaps", description=__doc__)
    parser.add_argument("--times", type=int, default=20, help="swaps and scalings of each kind")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--only", default="", metavar="PATTERN", help="rows whose name matches")
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
        for what, actions, asks, questions in plan:
            if re.search(options.only, what):
                _show(observe(what, actions, asks, questions, running.phases))
    finally:
        if running is not None:
            running.server.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
