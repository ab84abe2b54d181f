"""Takes workers out of service so that ending them loses no request.

TorchServe ends workers with ``kill -9``. What they were computing is answered 500, and what was
queued for an unregistered version is never answered. So a worker must be idle when it is ended.

A description (``?customized=true``) waits in the same queue as predictions and goes to a worker
alone. A worker that takes one has therefore answered everything that it took before. The handler
keeps the worker there while a file asks for it (`worker_holds`): the worker then computes nothing
and takes nothing more from the queue.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import psutil

from ..handlers.base.errors import ServerError
from ..handlers.frontend.holding import hold_seconds
from .management import ManagementClient, ModelVersion, Worker
from .worker_holds import WorkerHold

DRAIN_SECONDS = 60.0
"""Default of --drain-timeout: how long the verbs wait for requests that are being computed."""

_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Retirement:
    """Workers of one version that are to be ended.

    Attributes:
        version: description of the version, made just before.
        workers: the workers to end, all of them workers of this version.
    """

    version: ModelVersion
    workers: Sequence[Worker]

    @property
    def ready_workers(self) -> list[Worker]:
        """The workers that must be held; one that is not READY has no request to lose."""
        return [worker for worker in self.workers if worker.ready]

    @property
    def ends_service(self) -> bool:
        """Whether no READY worker would be left to answer what waits in the version's queue."""
        return len(self.ready_workers) == sum(worker.ready for worker in self.version.workers)

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
    """Hold workers for the duration of this context: they compute nothing and take no request.

    The queue of a version that keeps no READY worker is empty as well.

    Args:
        management: client of the server to which the workers belong.
        retirements: the workers to hold.
        timeout: seconds to wait for the requests that the workers compute.
        force: enter the context after `timeout` even if workers still compute.
        until_queues_are_empty: False if later requests are refused anyway, since the server stops.

    Raises:
        ServerError: the time is over, or the workers cannot be held from here.
    """
    serving = [each for each in retirements if each.ready_workers]
    must_have_empty_queue = [
        each for each in serving if each.ends_service and until_queues_are_empty
    ]
    deadline = time.monotonic() + timeout
    queues: list[str] = []
    with contextlib.ExitStack() as stack:
        try:
            while serving:
                stack.enter_context(_all_held(management, serving, deadline))
                num_waiting = [
                    (each, _num_waiting_requests(management, each))
                    for each in must_have_empty_queue
                ]
                queues = [f"{each} ({number})" for each, number in num_waiting if number]
                if not queues:
                    break
                # These requests named this very version, or arrived just before the default
                # version was switched. The workers are released to answer them.
                stack.close()
                time.sleep(_POLL_SECONDS)
        except ServerError as error:
            if not force and queues:
                raise ServerError(
                    f"requests still arrive after {timeout:g} s and wait in the queue of "
                    f"{', '.join(queues)}: switch the default version first, and have clients no "
                    "longer ask for this version; or use --force, which loses them"
                ) from error
            if not force:
                raise
        yield


def process_state(pid: int) -> str:
    """Return ``stopped`` if a process of this machine was stopped by SIGSTOP, else an empty text.

    A stopped worker never finishes its batch, so a drain would wait for it in vain.
    """
    try:
        return "stopped" if psutil.Process(pid).status() == psutil.STATUS_STOPPED else ""
    except (psutil.Error, ValueError):
        return ""


def _num_waiting_requests(management: ManagementClient, retirement: Retirement) -> int:
    """Number of requests that wait in the queue of a version just now."""
    version = retirement.version
    (now,) = management.describe(version.name, version.version)
    return now.pending_requests


@contextlib.contextmanager
def _all_held(
    management: ManagementClient, retirements: Sequence[Retirement], deadline: float
) -> Iterator[None]:
    """Hold each worker as soon as it has finished its batch; release all of them at the end.

    Raises:
        ServerError: a worker still computes at the deadline, or cannot be held from here.
    """
    drains = [_VersionDrain.of_retirement(management, each) for each in retirements]
    try:
        while not all(drain.is_complete() for drain in drains):
            if time.monotonic() > deadline:
                busy = [worker for drain in drains for worker in drain.busy_workers()]
                raise ServerError(
                    f"{', '.join(busy)} still computes: wait, raise --drain-timeout, or use "
                    "--force, which loses its requests"
                )
            for drain in drains:
                drain.advance()
            time.sleep(_POLL_SECONDS)
        yield
    finally:
        for drain in drains:
            for hold in drain.holds.values():
                hold.release()


@dataclass
class _VersionDrain:
    """The workers of one version, on their way to be held.

    Attributes:
        retirement: the workers to hold.
        probes: descriptions that are sent through the version's queue.
        holds: process id of each worker -> its hold; empty if a lone worker cannot be held from
            here.
        is_lone_worker: whether the worker to end is the only one of its version.
    """

    retirement: Retirement
    probes: _Probes
    holds: dict[int, WorkerHold]
    is_lone_worker: bool

    @classmethod
    def of_retirement(cls, management: ManagementClient, retirement: Retirement) -> _VersionDrain:
        """Find out how the workers can be held; this does not hold them yet.

        Raises:
            ServerError: several workers are to be held, and one belongs to another machine or user.
        """
        workers = retirement.ready_workers
        is_lone_worker = retirement.ends_service and len(workers) == 1
        holds = {}
        max_seconds = hold_seconds(retirement.version.response_timeout)
        try:
            holds = {worker.pid: WorkerHold.of_worker(worker, max_seconds) for worker in workers}
        except ServerError as error:
            if not is_lone_worker:
                raise ServerError(
                    f"{error.message}; drain {retirement} on the server's own machine and as its "
                    "user, or use --force"
                ) from error
        return cls(retirement, _Probes(management, retirement.version), holds, is_lone_worker)

    def is_complete(self) -> bool:
        """Whether no worker computes any more: all are held, or a lone one answered a probe."""
        if self.holds and all(hold.is_active() for hold in self.holds.values()):
            return True
        # A lone worker of another project's archive answers the probe but cannot be held. It has
        # then answered all requests that came before the probe.
        return self.is_lone_worker and self.probes.num_answered > 0

    def advance(self) -> None:
        """Ask every worker that is not held to stop, and send the probes at which it can."""
        for hold in self.holds.values():
            hold.request()
        # TorchServe would never answer a probe that is left in the queue of a version that is
        # gone. So if all workers are to be held, there are never more probes than workers.
        num_workers = len(self.retirement.ready_workers)
        self.probes.keep_sending(num_workers if self.retirement.ends_service else 2 * num_workers)

    def busy_workers(self) -> list[str]:
        """Name the workers that are not held, for an error message."""
        pids = [pid for pid, hold in self.holds.items() if not hold.is_active()]
        if not self.holds:
            workers = self.retirement.ready_workers
            pids = [worker.pid for worker in workers if not self.is_complete()]
        return [f"{self.retirement}, {_worker_with_state(pid)}," for pid in pids]


class _Probes:
    """Descriptions that are sent through a version's queue; each reaches one worker.

    Attributes:
        num_answered: number of descriptions that a worker has answered.
    """

    def __init__(self, management: ManagementClient, version: ModelVersion) -> None:
        self._management = management
        self._version = version
        self._threads: list[threading.Thread] = []
        self.num_answered = 0

    def keep_sending(self, count: int) -> None:
        """Send new descriptions until `count` of them are on their way."""
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        while len(self._threads) < count:
            # A daemon thread does not keep the process alive: a hung worker never answers.
            thread = threading.Thread(target=self._send, daemon=True)
            thread.start()
            self._threads.append(thread)

    def _send(self) -> None:
        try:
            with self._management.another() as client:
                client.describe(self._version.name, self._version.version, customized=True)
        except ServerError:
            # The queue is full, or the worker has just been ended. Whether the workers are held
            # is read from their files, so this is no error.
            time.sleep(_POLL_SECONDS)
        else:
            self.num_answered += 1


def _worker_with_state(pid: int) -> str:
    """Name a worker for an error message, and say how to continue it if it is stopped."""
    state = process_state(pid)
    return f"worker pid {pid}" + (f" ({state}: kill -CONT {pid})" if state else "")
