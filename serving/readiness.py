"""Finds out whether a model can really answer now.

TorchServe's /ping says Healthy while every worker is dead. Its management API says READY of a
worker that hangs, until the response timeout. So two things are asked for: the state of the
workers, which tells at once which of them are missing, and an answer of a worker within a deadline.
That answer is a description (``?customized=true``): it waits in the same queue and is given by the
same process as a prediction, but it needs no image, and so it works for every model.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from ..handlers.base.errors import ServerError
from .addresses import is_loopback
from .draining import process_state
from .management import ManagementClient, ModelVersion

_SECONDS_BEYOND_RESPONSE_TIMEOUT = 10
"""TorchServe ends a hung worker after the response timeout, and only then answers the probe."""


@dataclass(frozen=True)
class Readiness:
    """Whether a model can answer.

    Attributes:
        ready: whether it can.
        model: name and version, as far as they are known.
        reason: why it is ready or not, for people.
        workers: number of READY workers that are not stopped.
        wanted_workers: number of workers that are needed; 0 if it is not known.
    """

    ready: bool
    model: str
    reason: str
    workers: int = 0
    wanted_workers: int = 0

    def __str__(self) -> str:
        return f"{self.model} is {'ready' if self.ready else 'not ready'}: {self.reason}"


class _Probe:
    """A description on its way through a version's queue.

    Attributes:
        workers: version and processes that are asked. TorchServe never answers a probe that a
            worker took while it died, so another worker is sent another probe.
        sent: when it was sent, in ``time.monotonic`` seconds.
        answered: set when it was answered or has failed.
        error: why it has failed; empty if a worker has answered.
        seconds: how long the answer took.
    """

    def __init__(self, client: ManagementClient, version: ModelVersion) -> None:
        self.workers = _workers(version)
        self.sent = time.monotonic()
        self.answered = threading.Event()
        self.error = ""
        self.seconds = 0.0
        # A daemon thread does not keep the process alive: a hung worker may never answer.
        threading.Thread(target=self._send, args=(client, version), daemon=True).start()

    def _send(self, client: ManagementClient, version: ModelVersion) -> None:
        try:
            with client:
                client.describe(version.name, version.version, customized=True)
        except ServerError as error:
            self.error = error.message
        except Exception as error:
            # Whatever happens, whoever waits for the answer must see that there will be none.
            self.error = f"unexpected: {error!r}"
        self.seconds = time.monotonic() - self.sent
        self.answered.set()


def _workers(version: ModelVersion) -> tuple[object, ...]:
    """Return a version and its workers' processes, to compare them with those of another time."""
    return (version.version, *(worker.pid for worker in version.workers))


class ReadinessCheck:
    """Checks one model, as often as it is asked to.

    As long as the same workers run, at most one probe is unanswered. Checks of a hung worker
    therefore do not fill its queue, and when it goes on, the next check sees that.

    Args:
        open_client: opens a client of the management API with a timeout in seconds.
        name: name of the model.
        version: its version; None: the default one.
        workers: number of READY workers that are needed; None: as many as the model is meant to
            have, and at least one.
        deadline: seconds for one check.
    """

    def __init__(
        self,
        open_client: Callable[[float], ManagementClient],
        name: str,
        *,
        version: str | None = None,
        workers: int | None = None,
        deadline: float = 3,
    ) -> None:
        self._open_client = open_client
        self._name = name
        self._version = version
        self._workers = workers
        self._deadline = deadline
        self._probe: _Probe | None = None

    def check(self) -> Readiness:
        """Ask for the state of the workers, and have one of them answer."""
        end = time.monotonic() + self._deadline
        model = self._name if self._version is None else f"{self._name} {self._version}"
        try:
            with self._open_client(self._deadline) as client:
                (version,) = client.describe(self._name, self._version)
                on_this_machine = is_loopback(client.address)
        except ServerError as error:
            return Readiness(ready=False, model=model, reason=error.message)
        stopped = [
            worker
            for worker in version.workers
            if worker.ready and on_this_machine and process_state(worker.pid)
        ]
        num_ready = sum(worker.ready for worker in version.workers) - len(stopped)
        wanted = max(1, version.min_workers) if self._workers is None else self._workers
        reason = f"{num_ready} of {wanted} workers READY"
        if stopped:
            names = ", ".join(f"pid {each.pid}: kill -CONT {each.pid}" for each in stopped)
            reason += f"; stopped: {names}"
        problem = reason if num_ready < wanted else ""
        if not problem:
            try:
                problem = self._problem_of_probe(version, end)
            except ServerError as error:
                problem = error.message
        if not problem and self._probe is not None:
            reason += f", one answered in {1000 * self._probe.seconds:.0f} ms"
            self._probe = None
        return Readiness(
            ready=not problem,
            model=f"{version.name} {version.version}",
            reason=problem or reason,
            workers=num_ready,
            wanted_workers=wanted,
        )

    def _problem_of_probe(self, version: ModelVersion, end: float) -> str:
        """Have a worker answer; return why none did, or an empty text.

        Args:
            version: the version to ask.
            end: until when to wait, in ``time.monotonic`` seconds.

        Raises:
            ServerError: no client can be opened.
        """
        probe = self._probe
        if probe is None or probe.workers != _workers(version):
            timeout = version.response_timeout + _SECONDS_BEYOND_RESPONSE_TIMEOUT
            probe = self._probe = _Probe(self._open_client(timeout), version)
        if not probe.answered.wait(max(0.0, end - time.monotonic())):
            waiting = time.monotonic() - probe.sent
            return (
                f"no worker has answered for {waiting:.1f} s, and {version.pending_requests} "
                "requests wait: a worker hangs, or they compute for longer than that"
            )
        if probe.error:
            self._probe = None
        return probe.error


class ReadinessServer(ThreadingHTTPServer):
    """Answers ``GET /ready`` with 200 or 503, from a check that runs in the background.

    A request therefore costs next to nothing and is answered at once, also while a worker hangs.
    """

    daemon_threads = True

    def __init__(
        self, check: ReadinessCheck, address: tuple[str, int], *, interval: float, deadline: float
    ) -> None:
        """Listen, and begin to check.

        Args:
            check: the check.
            address: where to listen.
            interval: seconds between two checks.
            deadline: seconds of one check.

        Raises:
            ServerError: nothing can listen there.
        """
        try:
            super().__init__(address, _ReadinessRequest)
        except OSError as error:
            raise ServerError(
                f"{address[0]}:{address[1]} cannot be listened on: {error.strerror}; choose "
                "another port (--http)"
            ) from error
        self._check = check
        self._interval = interval
        self._max_age = interval + 2 * deadline + 1
        self._checked_at = time.monotonic()
        self._latest = Readiness(ready=False, model="model", reason="it was not checked yet")
        threading.Thread(target=self._check_for_ever, daemon=True).start()

    def readiness(self) -> Readiness:
        """Return the latest result; a result that is too old counts as not ready."""
        age = time.monotonic() - self._checked_at
        if age > self._max_age:
            reason = f"the last check was {age:.0f} s ago"
            return Readiness(ready=False, model=self._latest.model, reason=reason)
        return self._latest

    def _check_for_ever(self) -> None:
        pause = threading.Event()
        while True:
            try:
                self._latest = self._check.check()
            except Exception as error:
                # The checks go on, and whoever asks learns why there is no result.
                self._latest = Readiness(ready=False, model="model", reason=repr(error))
            self._checked_at = time.monotonic()
            pause.wait(self._interval)


class _ReadinessRequest(BaseHTTPRequestHandler):
    """One request to a `ReadinessServer`."""

    server: ReadinessServer
    timeout = 10
    """A client that sends nothing is disconnected after so many seconds."""

    def do_GET(self) -> None:
        """Answer ``/ready``; there is nothing else."""
        if self.path.partition("?")[0] != "/ready":
            self.send_error(404, "there is only /ready")
            return
        readiness = self.server.readiness()
        body = json.dumps(asdict(readiness)).encode() + b"\n"
        self.send_response(200 if readiness.ready else 503)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Write no log: load balancers ask every few seconds."""
