"""Take workers out of service so that ending them loses no request.

TorchServe ends workers with ``kill -9``: what they were computing is answered 500, and what was
queued for an unregistered version is never answered. A description (``?customized=true``) waits in
the same queue as predictions and goes to a worker alone. So a worker that answers one has finished
all that it took before, and the handler keeps a worker there for as long as it is asked to
(``handlers/holding.py``): it then computes nothing, and takes nothing more from the queue.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from ..handlers.base.errors import ServerError
from ..handlers.frontend.holding import hold_seconds
from .management import ManagementClient, ModelVersion, Worker

DRAIN_SECONDS = 60.0
"""How long the verbs wait for requests that are being computed, unless told otherwise."""

_POLL_SECONDS = 0.02
_SAFE_SHARE = 0.75


@dataclass(frozen=True)
class Retirement:
    """Workers of one version that are to end.

    Attributes:
        version: as it was described just before.
        workers: of it; those that are not READY have no request and are left alone.
    """

    version: ModelVersion
    workers: Sequence[Worker]

    @property
    def wanted(self) -> list[Worker]:
        """The workers that must be held."""
        return [worker for worker in self.workers if worker.ready]

    @property
    def whole(self) -> bool:
        """Whether nobody is left to answer what waits in the queue."""
        return len(self.wanted) == sum(worker.ready for worker in self.version.workers)

    def __str__(self) -> str:
        return f"{self.version.name} {self.version.version}"


@contextlib.contextmanager
def drained(
    management: ManagementClient,
    retirements: Sequence[Retirement],
    *,
    timeout: float = DRAIN_SECONDS,
    force: bool = False,
    until_queues_are_empty: bool = True,
) -> Iterator[None]:
    """Within this context some workers compute nothing and take no request.

    Where these are all workers of a version, its queue is empty as well.

    Args:
        management: the server that they belong to.
        retirements: the workers.
        timeout: seconds to wait for what they are computing.
        force: go on when the time is over.
        until_queues_are_empty: False where later requests are refused anyway, as the server stops.

    Raises:
        ServerError: the time is over, or the workers cannot be held from here.
    """
    held = [each for each in retirements if each.wanted]
    whole = [each for each in held if each.whole and until_queues_are_empty]
    deadline = time.monotonic() + timeout
    busy: list[str] = []
    with contextlib.ExitStack() as stack:
        try:
            while held:
                stack.enter_context(_held(management, held, deadline))
                waiting = [(each, _pending(management, each)) for each in whole]
                busy = [f"{each} ({pending})" for each, pending in waiting if pending]
                if not busy:
                    break
                # They came for this very version, or just before the default was switched.
                stack.close()
                time.sleep(_POLL_SECONDS)
        except ServerError as error:
            if not force and busy:
                raise ServerError(
                    f"requests still arrive after {timeout:g} s and wait in the queue of "
                    f"{', '.join(busy)}: switch the default version first, and have clients no "
                    "longer ask for this version; or use --force, which loses them"
                ) from error
            if not force:
                raise
        yield


def _pending(management: ManagementClient, retirement: Retirement) -> int:
    version = retirement.version
    (now,) = management.describe(version.name, version.version)
    return now.pending_requests


@dataclass(frozen=True)
class _Holder:
    """The files by which one worker is held; `handlers/holding.py` is the other side."""

    asked: Path
    held: Path
    seconds: float

    @classmethod
    def of(cls, worker: Worker, seconds: float) -> _Holder:
        """Find the temporary folder of a worker of this machine."""
        try:
            process = psutil.Process(worker.pid)
            command = " ".join(process.cmdline())
            folder = Path(process.environ().get("TMPDIR", "/tmp"))
        except psutil.Error as error:
            raise ServerError(
                f"worker {worker.id} (pid {worker.pid}) cannot be reached from here: {error}"
            ) from error
        if "model_service_worker.py" not in command or worker.id not in command:
            raise ServerError(f"pid {worker.pid} is not worker {worker.id} on this machine")
        return cls(
            folder / f"ts-ensemble-hold-{worker.pid}",
            folder / f"ts-ensemble-held-{worker.pid}",
            seconds,
        )

    def is_held(self) -> bool:
        """Whether the worker is held, and will be for some time."""
        try:
            return time.time() - self.held.stat().st_ctime < _SAFE_SHARE * self.seconds
        except FileNotFoundError:
            return False

    def ask(self) -> None:
        """Ask for it, again where a hold has expired or will soon."""
        if not self.is_held():
            self.held.unlink(missing_ok=True)
        if not self.asked.exists() and not self.held.exists():
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self.asked, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))

    def release(self) -> None:
        """Let the worker go on."""
        self.asked.unlink(missing_ok=True)
        self.held.unlink(missing_ok=True)


@contextlib.contextmanager
def _held(
    management: ManagementClient, retirements: Sequence[Retirement], deadline: float
) -> Iterator[None]:
    """Hold workers as soon as each has finished its batch; release them at the end."""
    parts = [_Part.of(management, each) for each in retirements]
    try:
        while not all(part.ready() for part in parts):
            if time.monotonic() > deadline:
                busy = [state for part in parts for state in part.busy()]
                raise ServerError(
                    f"{', '.join(busy)} still computes: wait, raise --drain-timeout, or use "
                    "--force, which loses its requests"
                )
            for part in parts:
                part.go_on()
            time.sleep(_POLL_SECONDS)
        yield
    finally:
        for part in parts:
            for holder in part.holders.values():
                holder.release()


@dataclass
class _Part:
    """One version's workers on their way to be held.

    Attributes:
        holders: by pid; none where a lone worker is out of reach.
        alone: whether it is the version's only worker, and is to end.
    """

    retirement: Retirement
    probes: _Probes
    holders: dict[int, _Holder]
    alone: bool

    @classmethod
    def of(cls, management: ManagementClient, retirement: Retirement) -> _Part:
        """Find out how to hold them."""
        workers = retirement.wanted
        alone = retirement.whole and len(workers) == 1
        holders = {}
        seconds = hold_seconds(retirement.version.response_timeout)
        try:
            holders = {worker.pid: _Holder.of(worker, seconds) for worker in workers}
        except ServerError as error:
            if not alone:
                raise ServerError(
                    f"{error.message}; drain {retirement} on the server's own machine and as its "
                    "user, or use --force"
                ) from error
        return cls(retirement, _Probes(management, retirement.version), holders, alone)

    def ready(self) -> bool:
        """Whether all are held."""
        if self.holders and all(holder.is_held() for holder in self.holders.values()):
            return True
        # A lone worker that answers without having stopped cannot be held, being of another
        # archive; but it has answered all that came before.
        return self.alone and self.probes.answered > 0

    def go_on(self) -> None:
        """Ask those that are not held yet."""
        for holder in self.holders.values():
            holder.ask()
        # A description left in the queue of a version that is gone would never be answered: where
        # all workers are to be held there are never more descriptions than workers.
        count = len(self.retirement.wanted)
        self.probes.keep(count if self.retirement.whole else 2 * count)

    def busy(self) -> list[str]:
        """Who is not held, for people."""
        pids = [pid for pid, holder in self.holders.items() if not holder.is_held()]
        if not self.holders:
            pids = [worker.pid for worker in self.retirement.wanted if not self.ready()]
        return [f"{self.retirement}, {_state(pid)}," for pid in pids]


class _Probes:
    """Descriptions on their way through a version's queue."""

    def __init__(self, management: ManagementClient, version: ModelVersion) -> None:
        self._management = management
        self._version = version
        self._threads: list[threading.Thread] = []
        self.answered = 0

    def keep(self, count: int) -> None:
        """Send as many as are missing."""
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        while len(self._threads) < count:
            # Daemons: the answer of a hung worker never comes, and nobody needs it.
            thread = threading.Thread(target=self._send, daemon=True)
            thread.start()
            self._threads.append(thread)

    def _send(self) -> None:
        try:
            with self._management.another() as own:
                own.describe(self._version.name, self._version.version, customized=True)
        except ServerError:
            # The queue is full, or the worker has just been ended; the caller looks at the files.
            time.sleep(_POLL_SECONDS)
        else:
            self.answered += 1


def process_state(pid: int) -> str:
    """What hinders a process of this machine: ``stopped`` (SIGSTOP), or empty."""
    try:
        return "stopped" if psutil.Process(pid).status() == psutil.STATUS_STOPPED else ""
    except (psutil.Error, ValueError):
        return ""


def _state(pid: int) -> str:
    stopped = process_state(pid)
    return f"worker pid {pid}" + (f" ({stopped}: kill -CONT {pid})" if stopped else "")
