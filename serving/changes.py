"""Registers, scales and unregisters models so that no client waits and no request is lost.

Each change is made by TorchServe's own management calls. What TorchServe leaves to its caller is
done here: calls do not wait for workers, which are polled until they are READY, and a worker is
ended only when it computes nothing.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from ..handlers.base.errors import ServerError
from .draining import DRAIN_SECONDS, Retirement, drained
from .management import ManagementClient, ModelVersion, Worker
from .worker_log import WorkerLog

_POLL_SECONDS = 0.1

_LOG_DELAY_SECONDS = 5
"""How long the last lines of a worker that died may take until they stand in the server's log."""


@dataclass(frozen=True)
class Changes:
    """Changes which models a server has, and how many workers they have.

    Attributes:
        management: client of the server's management API.
        log: the server's log, from which a dead worker's traceback is read; None if it cannot be
            read from here.
        drain_timeout: seconds that workers have to answer their requests before they are ended.
        force: whether workers that still compute after that time are ended all the same; without
            it the change is refused.
    """

    management: ManagementClient
    log: WorkerLog | None = None
    drain_timeout: float = DRAIN_SECONDS
    force: bool = False

    def register(self, archive: str, submit: Callable[[], object]) -> ModelVersion:
        """Register an archive and wait for its workers; unregister it again if one of them dies.

        Args:
            archive: file name or URL of the archive.
            submit: asks the server to register the archive, without waiting for its workers.

        Raises:
            WorkerDiedError: a worker died; the error holds the worker's own traceback.
            ServerError: TorchServe refuses the archive; the message says why and what to do.
        """
        self._skip_earlier_deaths()
        before = {(each.name, each.version) for each in self.management.all_versions()}
        submit()
        # TorchServe's answer does not say which name and version it has registered.
        new = (v for v in self.management.all_versions() if (v.name, v.version) not in before)
        version = next((each for each in new if each.archive == archive), None)
        if version is None:
            raise ServerError(
                f"TorchServe accepted {archive}, which is not registered now: another client has "
                "unregistered it"
            )
        try:
            return self._wait_for_workers(version, version.min_workers)
        except BaseException:
            with contextlib.suppress(ServerError):
                self.management.unregister(version.name, version.version)
            raise

    def scale(self, name: str, workers: int, version: str | None = None) -> ModelVersion:
        """Change a version's number of workers, and change it back if a new worker dies.

        Args:
            name: name of the model.
            workers: number of workers that the version shall have.
            version: the version; None: the default version.

        Raises:
            WorkerDiedError: a new worker died; the error holds its own traceback.
            ServerError: there is no such version; workers that are to be ended still compute; or
                TorchServe refuses the change.
        """
        if workers < 0:
            raise ServerError(
                f"{name} cannot have {workers} workers: give the number that it shall have, from 0"
            )
        self._skip_earlier_deaths()
        (before,) = self.management.describe(name, version)
        if workers >= len(before.workers):
            self.management.scale(before.name, workers, version=before.version)
            try:
                return self._wait_for_workers(
                    before, workers, earlier_workers={worker.id for worker in before.workers}
                )
            except BaseException:
                with contextlib.suppress(ServerError):
                    # TorchServe ends the last workers, which are the new ones.
                    self.management.scale(before.name, len(before.workers), version=before.version)
                raise
        with self._drained(before, before.workers[workers:]):
            self.management.scale(before.name, workers, version=before.version)
            deadline = time.monotonic() + self.drain_timeout
            while True:
                (now,) = self.management.describe(before.name, before.version)
                if len(now.workers) <= workers:
                    return now
                if time.monotonic() > deadline:
                    raise ServerError(
                        f"{before.name} {before.version} still has {len(now.workers)} workers "
                        f"after {self.drain_timeout:g} s, not {workers}; `ts-ensemble status` "
                        "shows when they have ended"
                    )
                time.sleep(_POLL_SECONDS)

    def wait_until_ready(self, name: str, version: str) -> ModelVersion:
        """Wait for the workers of a version that was registered earlier, and may still load.

        Raises:
            WorkerDiedError: a worker died since the call; the error has the worker's own traceback.
            ServerError: there is no such version, or its workers are not READY in time.
        """
        self._skip_earlier_deaths()
        (described,) = self.management.describe(name, version)
        return self._wait_for_workers(described, described.min_workers)

    def set_default(self, name: str, version: str) -> str:
        """Make a version the one that answers requests which name no version.

        Raises:
            ServerError: there is no such version, or none of its workers is READY, so that
                requests would wait or fail.
        """
        (chosen,) = self.management.describe(name, version)
        if not self.force and not any(worker.ready for worker in chosen.workers):
            raise ServerError(
                f"no worker of {name} {version} is READY, so that it could not answer: start one "
                f"with `ts-ensemble scale {name} 1 --model-version {version}`, or use --force"
            )
        return self.management.set_default(name, version)

    def unregister(self, name: str, version: str | None = None) -> str:
        """Remove a version once it has answered all of its requests.

        Args:
            name: name of the model.
            version: the version; None: the default version.

        Raises:
            ServerError: there is no such version; it is the default one of several; it still
                computes; or requests for it still arrive.
        """
        versions = self.management.versions(name)
        chosen = next(
            (v for v in versions if (v.default if version is None else v.version == version)), None
        )
        if chosen is None or (chosen.default and len(versions) > 1):
            # TorchServe refuses to remove either, and its refusal is explained.
            return self.management.unregister(name, version)
        with self._drained(chosen, chosen.workers):
            answer = self.management.unregister(name, chosen.version)
        if len(versions) > 1:
            return answer
        return f"{answer}; it was the last version: /predictions/{name} is gone"

    def _drained(
        self, version: ModelVersion, workers: Sequence[Worker]
    ) -> contextlib.AbstractContextManager[None]:
        return drained(
            self.management,
            [Retirement(version, workers)],
            timeout=self.drain_timeout,
            force=self.force,
        )

    def _skip_earlier_deaths(self) -> None:
        """Read the log up to its end, so that only workers that die from now on are reported."""
        if self.log is not None:
            self.log.dead_workers()

    def _wait_for_workers(
        self, version: ModelVersion, count: int, earlier_workers: Collection[str] = ()
    ) -> ModelVersion:
        """Poll until a version has enough workers that are READY.

        Args:
            version: the version.
            count: number of workers that must be READY.
            earlier_workers: identifiers of workers that ran before the change. Only the death of
                another worker is an error.
        """
        deadline = time.monotonic() + version.startup_timeout
        processes: dict[str, int] = {}
        while True:
            (now,) = self.management.describe(version.name, version.version)
            if sum(worker.ready for worker in now.workers) >= count:
                return now
            new = [worker for worker in now.workers if worker.id not in earlier_workers]
            # The log names a worker by its identifier, which no other worker ever gets.
            self._raise_if_dead({worker.id for worker in new})
            for worker in new:
                # TorchServe restarts a dead worker under its old identifier, as another process.
                if worker.pid > 0 and processes.setdefault(worker.id, worker.pid) != worker.pid:
                    self._wait_for_death(version, worker.id)
            if time.monotonic() > deadline:
                raise ServerError(
                    f"the workers of {version.name} {version.version} are not ready after "
                    f"{version.startup_timeout} s, its startupTimeout; see the server's log"
                )
            time.sleep(_POLL_SECONDS)

    def _raise_if_dead(self, workers: Collection[str]) -> None:
        for dead in [] if self.log is None else self.log.dead_workers():
            if dead.worker in workers:
                raise dead.error()

    def _wait_for_death(self, version: ModelVersion, worker: str) -> None:
        """Raise the error for a worker that has died, as soon as the log shows its traceback."""
        deadline = time.monotonic() + _LOG_DELAY_SECONDS
        while self.log is not None and time.monotonic() < deadline:
            self._raise_if_dead({worker})
            time.sleep(_POLL_SECONDS)
        raise ServerError(
            f"a worker of {version.name} {version.version} died while it loaded; the server's log "
            "has its traceback"
        )
