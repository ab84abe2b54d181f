"""Keeps a server at the newest archives of a folder or a registry."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..handlers.base.errors import (
    ArchiveError,
    EnsembleError,
    ServerError,
    SpecError,
    WorkerDiedError,
)
from ..serving.draining import DRAIN_SECONDS
from ..serving.server import Server
from .change_lock import change_lock
from .deployment_file import VersionSettings
from .desired import ArchiveFinder
from .listings import ListedArchive, Listing, newest
from .plan import Action, DesiredModel, DesiredState, DesiredVersion, Verb
from .reconciling import Reconciliation


class _StopRequestedError(Exception):
    """The process shall end, and no action is under way."""


@dataclass
class Watch:
    """Looks for archives again and again, and brings the server to the ones that it chooses.

    An archive that cannot be served (a worker of it dies, or TorchServe refuses it) is reported
    once and left out from then on, and the version that was served before stays.

    Attributes:
        run_folder: run folder of the server, which may be stopped and started meanwhile.
        listing: lists the archives.
        finder_of: makes a finder of archives for a server.
        latest: number of versions of each model to keep, if `versions` is empty.
        versions: the versions to keep.
        report: called with each action and each problem; a problem that lasts is reported once.
        stopping: set when the process shall end; an action that has begun is finished.
        drain_timeout: seconds that workers have to answer their requests before they are ended.
    """

    run_folder: Path
    listing: Listing
    finder_of: Callable[[Server], ArchiveFinder]
    latest: int = 1
    versions: Sequence[str] = ()
    report: Callable[[str], object] = print
    stopping: threading.Event = field(default_factory=threading.Event)
    drain_timeout: float = DRAIN_SECONDS
    _bad: set[str] = field(default_factory=set)
    _last_problem: str = ""
    _chosen: list[ListedArchive] = field(default_factory=list)
    _desired: DesiredState | None = None
    _action: Action | None = None

    def run(self, interval: float) -> None:
        """Poll until `stopping` is set.

        Args:
            interval: seconds between two polls.
        """
        while not self.stopping.is_set():
            try:
                self.poll()
            except _StopRequestedError:
                return
            self.stopping.wait(interval)

    def poll(self) -> None:
        """Look once, and do what is to be done."""
        try:
            chosen = self._choose()
            if chosen:
                self._bring_to(chosen)
            self._last_problem = ""
        except EnsembleError as error:
            if error.message != self._last_problem:
                self.report(error.message)
            self._last_problem = error.message

    def _choose(self) -> list[ListedArchive]:
        archives = [each for each in self.listing.poll() if each.key not in self._bad]
        models = newest(archives, self.latest, self.versions)
        return [each for model in models.values() for each in model]

    def _bring_to(self, chosen: list[ListedArchive]) -> None:
        server = Server.attach(self.run_folder)
        if server is None:
            raise ServerError(
                f"no server runs in {self.run_folder}: this waits until `ts-ensemble serve` "
                "starts one"
            )
        if chosen != self._chosen or self._desired is None:
            self._desired = self._desire(chosen, self.finder_of(server))
            self._chosen = chosen
        reconciliation = Reconciliation(
            server, self.drain_timeout, report=self._begin, after_action=self._end
        )
        self._action = None
        if not reconciliation.is_needed(self._desired):
            return
        try:
            with change_lock(self.run_folder, "ts-ensemble watch"):
                reconciliation.run(self._desired)
        except EnsembleError as error:
            if not self._is_fault_of_archive(error):
                raise
            assert self._action is not None
            bad = {
                each.key
                for each in chosen
                if (each.name, each.version) == (self._action.name, self._action.version)
            }
            self._bad |= bad
            self.report(f"skipped: {self._action.name} {self._action.version}: {error.message}")

    def _desire(self, chosen: list[ListedArchive], finder: ArchiveFinder) -> DesiredState:
        """Make the desired state of the chosen archives, of which the first of a model is newest.

        Raises:
            ArchiveError: an archive cannot be served; it is left out from now on.
            SpecError: likewise.
            RegistryError: an archive cannot be fetched now.
        """
        models: dict[str, list[DesiredVersion]] = {}
        for each in chosen:
            try:
                _, version = finder.version(VersionSettings(archive=each.archive))
            except (ArchiveError, SpecError):
                self._bad.add(each.key)
                raise
            models.setdefault(each.name, []).append(version)
        return DesiredState(
            {
                name: DesiredModel(tuple(versions), versions[0].version)
                for name, versions in models.items()
            }
        )

    def _is_fault_of_archive(self, error: EnsembleError) -> bool:
        """Whether an archive is to blame, and not the server or another process."""
        if self._action is None or self._action.verb not in (Verb.REGISTER, Verb.WAIT):
            return False
        if isinstance(error, WorkerDiedError):
            return True
        server = Server.attach(self.run_folder)
        return server is not None and error.status in (400, 409, 500) and self._can_answer(server)

    @staticmethod
    def _can_answer(server: Server) -> bool:
        try:
            with server.management(timeout=5) as management:
                management.models()
        except ServerError:
            return False
        return True

    def _begin(self, action: Action) -> None:
        self._action = action
        self.report(str(action))

    def _end(self, _: Action) -> None:
        if self.stopping.is_set():
            raise _StopRequestedError
