"""Tests that no request stops a worker: each bomb is refused quickly and with little memory.

The tests use a real server with its default limits, one worker, and members with different
preprocessings. Two good requests are sent together with each bomb, and TorchServe may put them into
the same batch.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from bombs import BOMBS, Bomb, Request
from probe_ensemble import image, probes

from torchserve_ensemble.archiver.build import build_archive
from torchserve_ensemble.handlers.base.errors import ServerError
from torchserve_ensemble.serving.grpc_transport import GrpcTransport
from torchserve_ensemble.serving.server import Server
from torchserve_ensemble.serving.settings import ServerSettings, throw_away

pytestmark = pytest.mark.e2e

CONFIG = Path(__file__).parents[2] / "config.properties"
MAX_CPU_SECONDS = 2.0
MAX_MEMORY_BYTES = 300 * 1024**2
MAX_ANSWER_BYTES = 100_000
MAX_REQUEST_BYTES = 35_000_000
# A worker that exceeds one of these is killed, so that a bomb cannot exhaust the machine.
_GIVE_UP_CPU_SECONDS = 3 * MAX_CPU_SECONDS
_GIVE_UP_MEMORY_BYTES = 4 * MAX_MEMORY_BYTES
_GIVE_UP_SECONDS = 60.0
_POLL_SECONDS = 0.01
_DARK, _BRIGHT = image(0.1), image(0.9)
_NEIGHBOURS = ((_DARK, "dark"), (_BRIGHT, "bright"))


@dataclass
class Answer:
    """The answer to a request.

    Attributes:
        status: HTTP status; 0 if there was no answer.
        body: body of the answer.
        problem: why there was no answer, or what went wrong while sending.
    """

    status: int = 0
    body: bytes = b""
    problem: str = ""


@dataclass
class Outcome:
    """What a bomb did to the worker and to the requests beside it.

    Attributes:
        answer: answer to the bomb.
        neighbours: answers to the good requests that were sent with it.
        cpu_seconds: CPU time that the worker used.
        memory_bytes: most memory that the worker had in addition to before.
        same_worker: whether the worker survived.
        killed: whether the test killed the worker because it exceeded a limit.
    """

    answer: Answer
    neighbours: list[Answer]
    cpu_seconds: float
    memory_bytes: int
    same_worker: bool
    killed: bool = field(default=False)


class Target:
    """A server to which bombs are sent, and its worker's process."""

    def __init__(
        self,
        server: Server,
        grpc_address: str,
        *,
        give_up: tuple[float, int] = (_GIVE_UP_CPU_SECONDS, _GIVE_UP_MEMORY_BYTES),
    ) -> None:
        self._server = server
        self._address = urlsplit(server.inference_address).netloc
        self._grpc_address = grpc_address
        self._give_up_cpu_seconds, self._give_up_memory_bytes = give_up
        self.worker = self._find_worker()

    def _find_worker(self) -> psutil.Process:
        self._server.wait_ready()
        (worker,) = [
            each
            for each in psutil.Process(self._server.pid).children(recursive=True)
            if "model_service_worker" in " ".join(each.cmdline())
        ]
        return worker

    def attack(self, request: Request) -> Outcome:
        """Send a request together with good ones, and measure what the worker needs."""
        if not self._lives():
            self._recover()
        worker = self.worker
        before, base = _cpu(worker), worker.memory_info().rss
        # This resets the kernel's record of the largest memory, so that it belongs to this request.
        Path(f"/proc/{worker.pid}/clear_refs").write_text("5")
        answer, neighbours = Answer(), [Answer() for _ in _NEIGHBOURS]
        bodies = [each for each, _ in _NEIGHBOURS]
        senders = [
            threading.Thread(target=self._post, args=(Request(body), into), daemon=True)
            for body, into in zip(bodies, neighbours, strict=True)
        ]
        senders.append(threading.Thread(target=self.send, args=(request, answer), daemon=True))
        for sender in senders:
            sender.start()
        killed = self._wait(senders, before, base)
        for sender in senders:
            sender.join(_GIVE_UP_SECONDS)
        lives = self._lives() and not killed
        return Outcome(
            answer,
            neighbours,
            cpu_seconds=_cpu(worker) - before if lives else float("nan"),
            memory_bytes=_peak_bytes(worker) - base if lives else -1,
            same_worker=lives and self._find_worker().pid == worker.pid,
            killed=killed,
        )

    def _wait(self, senders: list[threading.Thread], before: float, base: int) -> bool:
        """Wait until all requests are answered, and return whether the worker had to be killed."""
        deadline = time.monotonic() + _GIVE_UP_SECONDS
        while any(sender.is_alive() for sender in senders):
            time.sleep(_POLL_SECONDS)
            try:
                spent, memory = _cpu(self.worker) - before, self.worker.memory_info().rss - base
            except psutil.Error:
                continue
            late = time.monotonic() > deadline
            if late or spent > self._give_up_cpu_seconds or memory > self._give_up_memory_bytes:
                self.worker.kill()
                psutil.wait_procs([self.worker], timeout=_GIVE_UP_SECONDS)
                return True
        return False

    def _lives(self) -> bool:
        try:
            return self.worker.is_running() and self.worker.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def _recover(self) -> None:
        """Wait until TorchServe has started another worker."""
        deadline = time.monotonic() + _GIVE_UP_SECONDS
        old = self.worker.pid
        while True:
            try:
                self.worker = self._find_worker()
                if self.worker.pid != old:
                    return
            except (ServerError, ValueError, psutil.Error):
                if time.monotonic() > deadline:
                    raise
            time.sleep(_POLL_SECONDS)

    def send(self, request: Request, into: Answer) -> None:
        """Send a request over REST or gRPC, and write its answer into `into`."""
        if request.inputs is None:
            self._post(request, into)
            return
        transport = GrpcTransport(self._grpc_address, token=None)
        try:
            answer = transport.send(
                "probes", None, list(request.inputs.items()), {}, _GIVE_UP_SECONDS
            )
            into.status, into.body = answer.status, answer.body
        except Exception as error:
            into.problem = repr(error)
        finally:
            transport.close()

    def _post(self, request: Request, into: Answer) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=_GIVE_UP_SECONDS)
        try:
            connection.putrequest(
                "POST", request.path, skip_host=not request.host, skip_accept_encoding=True
            )
            for name, value in request.headers:
                connection.putheader(name, value.encode("utf-8"))
            connection.putheader("Content-Length", str(len(request.body)))
            try:
                connection.endheaders(request.body)
            except OSError as error:
                # The server may have refused the request before it had the whole body. Then its
                # answer can still be read.
                into.problem = repr(error)
            response = connection.getresponse()
            into.body, into.status = response.read(), response.status
        except Exception as error:
            into.problem = into.problem or repr(error)
        finally:
            connection.close()


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _peak_bytes(process: psutil.Process) -> int:
    """Largest resident memory of a process since its record was reset."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


def build_target_store(folder: Path, store: Path) -> None:
    """Build an archive of three members with different preprocessings."""
    probes(folder, task="presence", policies={"default": "majority"})
    spec = json.loads((folder / "ensemble.yaml").read_text())
    spec["preprocessing"] = {
        "cropped": {"resize": 256, "crop": 224},
        "gray": {"color": "grayscale", "resize": 32, "crop": 28},
        "small": {"resize": [2, 2]},
    }
    for member, preprocessing in zip(spec["members"], spec["preprocessing"], strict=True):
        member["preprocessing"] = preprocessing
    (folder / "ensemble.yaml").write_text(json.dumps(spec))
    build_archive(folder / "ensemble.yaml", store)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder, store = tmp_path_factory.mktemp("target"), tmp_path_factory.mktemp("target-store")
    build_target_store(folder, store)
    overrides = throw_away()
    settings = ServerSettings(store, ("probes-1.0.mar",), config=CONFIG, overrides=overrides)
    with Server.start(settings, tmp_path_factory.mktemp("target-run")) as server:
        server.wait_ready()
        target = Target(server, f"127.0.0.1:{overrides['grpc_inference_port']}")
        for body, _ in _NEIGHBOURS:
            target.attack(Request(body))
        yield target


def verdict(bomb: Bomb, outcome: Outcome) -> list[str]:
    """List everything that is wrong with the outcome of a bomb."""
    answer, problems = outcome.answer, []
    expected = answer.status == 200 and bomb.answerable
    refused = 400 <= answer.status < 500 or (bomb.refused_by_frontend and _by_frontend(answer))
    if not (expected or refused):
        problems.append(f"status {answer.status} {answer.problem}: {answer.body[:300]!r}")
    if len(answer.body) > MAX_ANSWER_BYTES:
        problems.append(f"an answer of {len(answer.body)} bytes")
    if outcome.killed:
        problems.append("the worker had to be killed")
    elif not outcome.same_worker:
        problems.append("the worker died")
    else:
        if outcome.cpu_seconds > MAX_CPU_SECONDS:
            problems.append(f"{outcome.cpu_seconds:.1f} s of CPU")
        if outcome.memory_bytes > MAX_MEMORY_BYTES:
            problems.append(f"{outcome.memory_bytes / 1024**2:.0f} MiB more memory")
    for (_, label), neighbour in zip(_NEIGHBOURS, outcome.neighbours, strict=True):
        if neighbour.status != 200 or _label(neighbour) != label:
            problems.append(f"a neighbour got {neighbour.status}: {neighbour.body[:100]!r}")
    return problems


def _by_frontend(answer: Answer) -> bool:
    """Whether TorchServe's frontend refused the request before any worker saw it."""
    return answer.status == 0 or b"ErrorDataDecoderException" in answer.body


def _label(answer: Answer) -> str | None:
    (prediction,) = json.loads(answer.body)["predictions"]
    label: str | None = prediction["label"]
    return label


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: bomb.name)
def test_a_bomb_is_answered_quickly_and_with_little_memory(target: Target, bomb: Bomb) -> None:
    request = bomb.make()
    assert len(request.body) < MAX_REQUEST_BYTES
    outcome = target.attack(request)
    assert not verdict(bomb, outcome)


def test_the_workers_memory_does_not_grow_with_every_bomb(target: Target) -> None:
    """It would grow if profiles, names or policies were cached without a limit."""
    attack = next(bomb for bomb in BOMBS if bomb.name == "20-large-profiles:multipart")
    target.attack(attack.make())
    before = target.worker.memory_info().rss
    for _ in range(5):
        target.attack(attack.make())
    assert target.worker.memory_info().rss - before < 100 * 1024**2
