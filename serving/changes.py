"""Changes to a running server that hold up no client and lose no request.

They are TorchServe's own management calls, in an order and with waits that TorchServe leaves to its
caller: asynchronous, polled until the workers are READY, and only of workers that compute nothing.
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
_DEATH_SECONDS = 5


@dataclass(frozen=True)
class Changes:
    """Registers, scales and unregisters.

    Attributes:
        management: the server.
        log: its log, where it is at hand: a worker that dies is then shown with its traceback.
        drain_timeout: seconds to wait for requests that workers compute before they are ended.
        force: end them then all the same, instead of refusing.
    """

    management: ManagementClient
    log: WorkerLog | None = None
    drain_timeout: float = DRAIN_SECONDS
    force: bool = False

    def register(self, archive: str, submit: Callable[[], object]) -> ModelVersion:
        """Register an archive, wait for its workers, and take it back if one dies.

        Args:
            archive: as the server will name it.
            submit: asks the server to register it, without waiting for its workers.

        Raises:
            WorkerDiedError: with the worker's own traceback.
            ServerError: what TorchServe answers, with a remedy.
        """
        self._forget_deaths()
        before = {(each.name, each.version) for each in self.management.all_versions()}
        submit()
        # An asynchronous call is answered without the name and version of what it registered.
        new = (v for v in self.management.all_versions() if (v.name, v.version) not in before)
        version = next((each for each in new if each.archive == archive), None)
        if version is None:
            raise ServerError(
                f"{archive} was accepted but is not registered: another call unregistered it"
            )
        try:
            return self._wait_for_workers(version, version.min_workers)
        except BaseException:
            with contextlib.suppress(ServerError):
                self.management.unregister(version.name, version.version)
            raise

    def scale(self, name: str, workers: int, version: str | None = None) -> ModelVersion:
        """Change the number of workers; a new one that dies takes the change back.

        Raises:
            WorkerDiedError: with the new worker's own traceback.
            ServerError: workers that are to be ended still compute; what TorchServe answers.
        """
        self._forget_deaths()
        (before,) = self.management.describe(name, version)
        if workers >= len(before.workers):
            self.management.scale(before.name, workers, version=before.version)
            try:
                return self._wait_for_workers(
                    before, workers, known={worker.id for worker in before.workers}
                )
            except BaseException:
                with contextlib.suppress(ServerError):
                    # The new workers are the last ones, and those that TorchServe ends.
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
                        f"{before.name} {before.version} still has {len(now.workers)} workers"
                    )
                time.sleep(_POLL_SECONDS)

    def set_default(self, name: str, version: str) -> str:
        """Make a version the default one.

        Raises:
            ServerError: none of its workers is ready, so that its requests would wait or fail.
        """
        (chosen,) = self.management.describe(name, version)
        if not self.force and not any(worker.ready for worker in chosen.workers):
            raise ServerError(
                f"no worker of {name} {version} is READY: scale it up first, or use --force"
            )
        return self.management.set_default(name, version)

    def unregister(self, name: str, version: str | None = None) -> str:
        """Remove a version once it has answered all of its requests.

        Raises:
            ServerError: it still computes, or requests for it still arrive, or it is the default
                of several.
        """
        versions = self.management.versions(name)
        chosen = next(
            (v for v in versions if (v.default if version is None else v.version == version)), None
        )
        if chosen is None or (chosen.default and len(versions) > 1):
            # TorchServe refuses both, and says why.
            return self.management.unregister(name, version)
        with self._drained(chosen, chosen.workers):
            return self.management.unregister(name, chosen.version)

    def _drained(
        self, version: ModelVersion, workers: Sequence[Worker]
    ) -> contextlib.AbstractContextManager[None]:
        return drained(
            self.management,
            [Retirement(version, workers)],
            timeout=self.drain_timeout,
            force=self.force,
        )

    def _forget_deaths(self) -> None:
        if self.log is not None:
            self.log.dead_workers()

    def _wait_for_workers(
        self, version: ModelVersion, count: int, known: Collection[str] = ()
    ) -> ModelVersion:
        """Poll until so many workers are READY; the death of one that is not `known` ends it."""
        deadline = time.monotonic() + version.startup_timeout
        processes: dict[str, int] = {}
        while True:
            (now,) = self.management.describe(version.name, version.version)
            if sum(worker.ready for worker in now.workers) >= count:
                return now
            new = [worker for worker in now.workers if worker.id not in known]
            # Identifiers are never used twice; a name and a version may be.
            self._raise_if_dead({worker.id for worker in new})
            for worker in new:
                # TorchServe starts a worker that died anew, under the same identifier.
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
        """A worker is gone; its last lines may still be on their way to the log."""
        deadline = time.monotonic() + _DEATH_SECONDS
        while self.log is not None and time.monotonic() < deadline:
            self._raise_if_dead({worker})
            time.sleep(_POLL_SECONDS)
        raise ServerError(
            f"a worker of {version.name} {version.version} died while it loaded; the server's log "
            "has its traceback"
        )
