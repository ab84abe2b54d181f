"""The steps of a rollout, each by itself, and the way back from all of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from ...handlers.archive.mar_file import read_file, spec_of
from ...handlers.archive.self_test import SelfTest
from ...handlers.base.archive_layout import SELF_TEST
from ...handlers.base.errors import ArchiveError, ServerError
from ..changes import Changes
from ..client import InferenceClient
from ..draining import DRAIN_SECONDS
from ..management import ManagementClient, ModelVersion
from ..run_folder import server_log
from ..self_test import repeat_self_test, self_test_of_server
from ..server import Server
from ..worker_log import WorkerLog
from .comparison import Bounds, compare
from .memory import estimate

_NOT_REGISTERED = 404
"""Status with which TorchServe refuses to remove a version that another client has removed."""

_VERSION_EXISTS = 409
"""Status with which TorchServe refuses to register a version that it has already."""


_RETIRING = 1
"""By so much maxWorkers of a version that shall be removed is above its minWorkers.

Both are equal in archives of this project, and after `ts-ensemble scale`.
"""


class Step(StrEnum):
    """The steps of a rollout, in their order; the value says what is done."""

    VERIFY = "verify the archive"
    MEMORY = "estimate the memory"
    REGISTER = "register it and wait for its workers"
    SCALE = "give it as many workers as the old version has"
    SELF_TEST = "repeat its self-test"
    COMPARE = "compare it with the old version"
    SWITCH = "make it the default version"
    DRAIN = "drain and remove the old version"


@dataclass(frozen=True)
class RolloutSettings:
    """How a version is replaced.

    Attributes:
        bounds: what the comparison of both versions must show.
        images: file name and contents of images for that comparison; empty: the archive's probes.
        keep_old: whether the old version stays registered, with its workers.
        ignore_memory: whether to start workers although there seems to be too little memory.
        drain_timeout: seconds that workers have to answer their requests before they are ended.
        force: whether workers that still compute after that time are ended all the same.
        report: called with a sentence about each step that is done.
        before_step: called before each step.
    """

    bounds: Bounds = field(default_factory=Bounds)
    images: Sequence[tuple[str, bytes]] = ()
    keep_old: bool = False
    ignore_memory: bool = False
    drain_timeout: float = DRAIN_SECONDS
    force: bool = False
    report: Callable[[str], None] = lambda sentence: None
    before_step: Callable[[Step], None] = lambda step: None


@dataclass(frozen=True)
class Target:
    """The version that is to serve.

    Attributes:
        version: its number.
        archive: file name of its archive in the model store; None if the server has the version
            already, and its archive is not needed.
        path: the archive; None as above.
        digest: digest of the archive; None as above.
        self_test: its probes; None as above, or if the archive has none.
    """

    version: str
    archive: str | None = None
    path: Path | None = None
    digest: str | None = None
    self_test: SelfTest | None = None


@dataclass(frozen=True)
class Steps:
    """Changes the versions of one model of one server, one step at a time.

    Attributes:
        server: the server.
        name: name of the model.
        settings: how a version is replaced.
        management: client of the server's management API.
        client: client of the server's inference API.
        changes: registers, scales and removes versions of the server.
    """

    server: Server
    name: str
    settings: RolloutSettings
    management: ManagementClient
    client: InferenceClient
    changes: Changes

    @classmethod
    @contextlib.contextmanager
    def opened(cls, server: Server, name: str, settings: RolloutSettings) -> Iterator[Steps]:
        """Open the clients that the steps need."""
        log = WorkerLog(server_log(server.run_folder))
        with server.management() as management, server.client() as client:
            changes = Changes(management, log, settings.drain_timeout, settings.force)
            yield cls(server, name, settings, management, client, changes)

    def verify(self, archive: str, version: str | None = None) -> Target:
        """Verify an archive of the model store, and read what it is.

        Args:
            archive: its file name.
            version: the version that it must have; None: any.

        Raises:
            ArchiveError: it is missing, was altered, or holds another model or version.
        """
        self.settings.before_step(Step.VERIFY)
        record = self.server.check_archive(archive)
        path = self.server.model_store / archive
        if record is None or not path.exists():
            raise ArchiveError(
                f"{archive}: a rollout needs a file of the model store {self.server.model_store}"
            )
        spec = spec_of(path)
        if spec.name != self.name or version not in (None, spec.version):
            expected = self.name if version is None else f"{self.name} {version}"
            raise ArchiveError(f"{archive} holds {spec.name} {spec.version}, not {expected}")
        self_test = (
            SelfTest.from_text(read_file(path, SELF_TEST), source=archive)
            if SELF_TEST in record.files
            else None
        )
        self.settings.report(f"verified {archive}: {self.name} {spec.version}, {record.digest}")
        return Target(spec.version, archive, path, record.digest, self_test)

    @contextlib.contextmanager
    def undone_on_failure(
        self, old: ModelVersion, target: Target, *, remove: bool = True
    ) -> Iterator[None]:
        """Make the old version the default one again if a step fails, and remove the new one.

        If this process is killed nothing is undone, and the next rollout continues.

        Args:
            old: the version that served before.
            target: the version that was to serve.
            remove: whether the failed version is removed, too.
        """
        try:
            yield
        except (Exception, KeyboardInterrupt):
            self._undo(old, target, remove=remove)
            raise

    def _undo(self, old: ModelVersion, target: Target, *, remove: bool) -> None:
        try:
            versions = self.management.versions(self.name)
            if default_of(versions).version != old.version:
                # Even if its workers have died: TorchServe starts them anew, and it served before.
                self.management.set_default(self.name, old.version)
            self._set_retiring(old.version, retiring=False)
            removed = ""
            if remove and find(versions, target.version) is not None:
                # A version that failed may hang, and shall not stay for that.
                replace(self.changes, force=True).unregister(self.name, target.version)
                removed = f"; {target.version} was removed"
        except ServerError as error:
            self.settings.report(
                f"the rollout failed and could not be undone: {error}. `ts-ensemble versions "
                f"{self.name}` shows what is registered"
            )
        else:
            self.settings.report(f"the rollout failed; {self.name} {old.version} serves{removed}")

    def prepare(self, target: Target, old: ModelVersion, registered: ModelVersion | None) -> None:
        """Take a version to the point at which it could serve.

        Args:
            target: the version.
            old: the version that serves; the new one gets as many workers.
            registered: the version as the server has it already; None if it has it not.
        """
        num_workers = max(1, len(old.workers))
        running = 0 if registered is None else len(registered.workers)
        self._check_memory(target, old, num_workers - running)
        self.settings.before_step(Step.REGISTER)
        if registered is None:
            self._register(target, num_workers)
        ready = self.changes.wait_until_ready(self.name, target.version)
        self.settings.before_step(Step.SCALE)
        if len(ready.workers) != num_workers or is_retiring(ready):
            ready = self.changes.scale(self.name, num_workers, target.version)
        self.settings.report(f"{self.name} {target.version} has {len(ready.workers)} workers READY")
        self._repeat_self_test(target)

    def compare(self, target: Target, old: ModelVersion) -> None:
        """Compare the new version with the old one."""
        self.settings.before_step(Step.COMPARE)
        probes = target.self_test.contents() if target.self_test is not None else {}
        images = self.settings.images or list(probes.items())
        if not images:
            self.settings.report("nothing is compared: the archive has no probes (--smoke FOLDER)")
            return
        comparison = compare(self.client, self.name, old.version, target.version, images)
        comparison.check(self.settings.bounds)
        self.settings.report(f"{old.version} -> {target.version}: {comparison}")

    def switch(self, old: ModelVersion, target: Target, *, keep_old: bool) -> None:
        """Make a version the default one.

        Raises:
            ServerError: no worker of the new version is READY, or TorchServe refuses.
        """
        self.settings.before_step(Step.SWITCH)
        # Whoever continues after the switch must know whether the old version is to be removed.
        self._set_retiring(old.version, retiring=not keep_old)
        self.changes.set_default(self.name, target.version)
        self.settings.report(f"{self.name} {target.version} is the default version")

    def remove(self, version: str) -> None:
        """Remove a version once it has answered all of its requests.

        Raises:
            ServerError: it still computes, or requests for it still arrive, after the drain
                timeout; or TorchServe refuses.
        """
        self.settings.before_step(Step.DRAIN)
        try:
            self.changes.unregister(self.name, version)
        except ServerError as error:
            # Another client may have removed it.
            if error.status != _NOT_REGISTERED:
                raise
        self.settings.report(f"{self.name} {version} has answered its requests and is removed")

    def finish(self, target: Target, versions: Sequence[ModelVersion]) -> None:
        """Do what is left to do after the switch.

        Raises:
            ServerError: the version serves from another archive, or another one cannot be drained.
        """
        self._repeat_self_test(target)
        self.settings.report(f"{self.name} {target.version} is the default version already")
        for each in versions:
            if is_retiring(each):
                self.remove(each.version)

    def _set_retiring(self, version: str, *, retiring: bool) -> None:
        """Note at the server that a version shall be removed after the switch, or that it stays.

        TorchServe keeps nothing else for its clients. It never starts more workers than
        minWorkers by itself, so a larger maxWorkers changes nothing.
        """
        # Another client may have scaled the version since the rollout began.
        (now,) = self.management.describe(self.name, version)
        max_workers = now.min_workers + (_RETIRING if retiring else 0)
        if now.max_workers != max_workers:
            self.management.scale(
                self.name, now.min_workers, version=version, max_workers=max_workers
            )

    def _check_memory(self, target: Target, old: ModelVersion, num_workers: int) -> None:
        self.settings.before_step(Step.MEMORY)
        if num_workers <= 0:
            return
        old_archive = self.server.model_store / old.archive
        estimated = estimate(old.workers, num_workers, target.path, old_archive)
        if not self.settings.ignore_memory:
            estimated.check()
        self.settings.report(f"memory: {estimated}")

    def _register(self, target: Target, num_workers: int) -> None:
        assert target.archive is not None
        try:
            self.server.register(target.archive, workers=num_workers, check_archive=False)
        except ServerError as error:
            # A rollout that was killed during its registration may have been faster.
            is_registered = find(self.management.versions(self.name), target.version) is not None
            if error.status != _VERSION_EXISTS or not is_registered:
                raise

    def _repeat_self_test(self, target: Target) -> None:
        """Repeat the self-test, and check that the version serves from the expected archive.

        Raises:
            MemberError: an answer is not the one at build.
            ServerError: the version answers from another archive.
        """
        self.settings.before_step(Step.SELF_TEST)
        self_test = target.self_test
        if target.archive is None:
            with contextlib.suppress(ArchiveError):
                self_test = self_test_of_server(self.management, self.name, target.version)
        if self_test is None or not self_test.contents():
            self.settings.report(f"{self.name} {target.version} has no self-test to repeat")
            return
        passed = repeat_self_test(self.client, self.name, self_test, version=target.version)
        if target.digest is not None and passed.archive != target.digest:
            raise ServerError(
                f"{self.name} {target.version} is registered from another archive "
                f"({passed.archive}) of the same version: raise the version in the spec"
            )
        self.settings.report(
            f"{self.name} {target.version} answers {passed.num_probes} probes as at build"
        )


def default_of(versions: Sequence[ModelVersion]) -> ModelVersion:
    """Return the version that answers requests which name no version."""
    return next(each for each in versions if each.default)


def is_retiring(version: ModelVersion) -> bool:
    """Whether a rollout was to remove a version, and was killed after the switch."""
    return not version.default and version.max_workers == version.min_workers + _RETIRING


def find(versions: Sequence[ModelVersion], number: str) -> ModelVersion | None:
    """Return the version of a number; None if it is not registered."""
    return next((each for each in versions if each.version == number), None)
