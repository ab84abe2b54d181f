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

from ..handlers.errors import ServerError
from .management import ManagementClient, ModelVersion, Worker

DRAIN_SECONDS = 60.0
"""How long the verbs wait for requests that are being computed, unless told otherwise."""

_POLL_SECONDS = 0.02
_REMEDY = "wait, raise --drain-timeout, or use --force, which loses their requests"


@contextlib.contextmanager
def drained(
    management: ManagementClient,
    version: ModelVersion,
    workers: Sequence[Worker],
    *,
    timeout: float = DRAIN_SECONDS,
    force: bool = False,
    until_queue_is_empty: bool = True,
) -> Iterator[None]:
    """Within this context some workers of a version compute nothing and take no request.

    Where these are all workers of the version, its queue is empty as well.

    Args:
        management: the server that they belong to.
        version: as it was described just before.
        workers: to be held; those that are not READY have no request and are left alone.
        timeout: seconds to wait for what they are computing.
        force: go on when the time is over.
        until_queue_is_empty: False where later requests are refused anyway, as the server stops.

    Raises:
        ServerError: the time is over, or the workers cannot be held from here.
    """
    ready = [worker for worker in version.workers if worker.ready]
    wanted = [worker for worker in ready if worker in workers]
    whole = len(wanted) == len(ready)
    deadline = time.monotonic() + timeout
    with contextlib.ExitStack() as stack:
        try:
            while wanted:
                stack.enter_context(_held(management, version, wanted, whole, deadline))
                if not whole or not until_queue_is_empty:
                    break
                (now,) = management.describe(version.name, version.version)
                if now.pending_requests == 0:
                    break
                # They came for this very version, or just before the default was switched.
                stack.close()
                if time.monotonic() > deadline:
                    raise ServerError(
                        f"requests for {version.name} {version.version} still arrive after "
                        f"{timeout:g} s ({now.pending_requests} wait in its queue): switch the "
                        "default version first, and have clients no longer ask for this version; "
                        "or use --force, which loses them"
                    )
                time.sleep(_POLL_SECONDS)
        except ServerError:
            if not force:
                raise
        yield


@dataclass(frozen=True)
class _Holder:
    """The files by which one worker is held; `handlers/holding.py` is the other side."""

    asked: Path
    held: Path

    @classmethod
    def of(cls, worker: Worker) -> _Holder:
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
            folder / f"ts-ensemble-hold-{worker.pid}", folder / f"ts-ensemble-held-{worker.pid}"
        )

    def ask(self) -> None:
        """Ask for it, again where a hold has expired."""
        if not self.asked.exists() and not self.held.exists():
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self.asked, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))

    def release(self) -> None:
        """Let the worker go on."""
        self.asked.unlink(missing_ok=True)
        self.held.unlink(missing_ok=True)


@contextlib.contextmanager
def _held(
    management: ManagementClient,
    version: ModelVersion,
    workers: Sequence[Worker],
    whole: bool,
    deadline: float,
) -> Iterator[None]:
    """Hold workers as soon as each has finished its batch; release them at the end."""
    alone = whole and len(workers) == 1
    try:
        holders = {worker.pid: _Holder.of(worker) for worker in workers}
    except ServerError as error:
        if not alone:
            raise ServerError(
                f"{error.message}; drain {version.name} {version.version} on the server's own "
                "machine and as its user, or use --force"
            ) from error
        holders = {}
    probes = _Probes(management, version)
    try:
        while True:
            for holder in holders.values():
                holder.ask()
            waiting = [pid for pid, holder in holders.items() if not holder.held.exists()]
            if holders and not waiting:
                break
            # A lone worker that answers without having stopped cannot be held, being of another
            # archive; but it has answered all that came before.
            if alone and probes.answered:
                break
            if time.monotonic() > deadline:
                raise ServerError(
                    f"{version.name} {version.version} still computes: "
                    f"{', '.join(_state(pid) for pid in waiting) or 'its worker'}; {_REMEDY}"
                )
            # A description left in the queue of a version that is gone would never be answered:
            # where all workers are held there are never more descriptions than workers.
            probes.keep(len(workers) if whole else 2 * len(workers))
            time.sleep(_POLL_SECONDS)
        yield
    finally:
        for holder in holders.values():
            holder.release()


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
