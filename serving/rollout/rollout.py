"""The order of the steps of a rollout and of a rollback, by what the server has registered."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from ...handlers.base.errors import ServerError
from ..management import ModelVersion
from ..run_folder import rollout_lock
from ..server import Server
from .steps import RolloutSettings, Steps, Target, default_of, find, is_retiring


class Strategy(StrEnum):
    """When the new version becomes the default one."""

    AT_ONCE = "at-once"
    BLUE_GREEN = "blue-green"


@dataclass(frozen=True)
class Rollout:
    """Replaces the default version of one model of one server.

    If it raises an error, the old version is the default one and serves, as before. Only
    `roll_back` does not return to the version that it came from, once the switch is made.

    Attributes:
        server: a server that runs on this machine.
        name: name of the model.
        settings: how the version is replaced.
    """

    server: Server
    name: str
    settings: RolloutSettings = field(default_factory=RolloutSettings)

    def roll_out(
        self, archive: str, strategy: Strategy = Strategy.AT_ONCE, *, promote: bool = False
    ) -> None:
        """Make the version in an archive the default one; continue if that was begun before.

        Args:
            archive: file name of the archive in the server's model store.
            strategy: whether to stop before the switch.
            promote: whether the version must be registered already, because an earlier call
                stopped before the switch.

        Raises:
            ArchiveError: the archive is missing, was altered, has another name, or none of the
                keys that the server trusts signed it.
            SpecError: the spec in the archive has a mistake.
            WorkerDiedError: a worker of the new version died; the error has its own traceback.
            MemberError: the new version's self-test failed.
            RequestError: the new version refuses an image of the comparison.
            ServerError: another rollout goes on; there is too little memory; a bound was not kept;
                or TorchServe refuses a step.
        """
        with self._locked() as steps:
            target = steps.verify(archive)
            versions = steps.management.versions(self.name)
            old = default_of(versions)
            if old.version == target.version:
                steps.finish(target, versions)
                return
            candidate = find(versions, target.version)
            if candidate is None and promote:
                raise ServerError(
                    f"{self.name} {target.version} is not registered, so that it cannot be "
                    "promoted: roll it out with --strategy blue-green first"
                )
            if candidate is not None and candidate.archive != archive:
                raise ServerError(
                    f"{self.name} {target.version} is registered from {candidate.archive}: raise "
                    "the version in the spec, or unregister that one"
                )
            with steps.undone_on_failure(old, target):
                steps.prepare(target, old, candidate)
                steps.compare(target, old)
                if strategy is Strategy.BLUE_GREEN and not promote:
                    self.settings.report(
                        f"{self.name} {target.version} is ready and waits; {old.version} still "
                        f"serves. Clients reach it as /predictions/{self.name}/{target.version}. "
                        f"`ts-ensemble rollout {self.name} {archive} --promote` makes it the "
                        "default version, and --abort removes it"
                    )
                    return
                steps.switch(old, target, keep_old=self.settings.keep_old)
                if not self.settings.keep_old:
                    steps.remove(old.version)

    def abort(self, archive: str) -> None:
        """Remove the version in an archive, which was rolled out but is not the default one.

        Raises:
            ArchiveError: as for `roll_out`.
            ServerError: another rollout goes on; the version is not registered, or is the default
                one; or TorchServe refuses.
        """
        with self._locked() as steps:
            target = steps.verify(archive)
            versions = steps.management.versions(self.name)
            if default_of(versions).version == target.version:
                raise ServerError(
                    f"{self.name} {target.version} is the default version already: "
                    f"`ts-ensemble rollback {self.name}` returns to the one before"
                )
            steps.changes.unregister(self.name, target.version)
            self.settings.report(
                f"{self.name} {target.version} is removed; {default_of(versions).version} serves"
            )

    def roll_back(self, version: str | None = None) -> None:
        """Make an earlier version the default one again, and remove the one that serves now.

        Args:
            version: the version to return to, which is registered or of which the model store has
                the archive NAME-VERSION.mar; None: the highest one below the version that serves,
                among the registered ones, or else in the model store.

        Raises:
            ArchiveError: there is no such archive, or it was altered.
            MemberError: the self-test of the earlier version failed.
            ServerError: there is no earlier version; it is not clear which one is meant; another
                rollout goes on; or TorchServe refuses a step. If the switch was made, the message
                says so.
        """
        with self._locked() as steps:
            versions = steps.management.versions(self.name)
            current = default_of(versions)
            chosen = version or self._version_to_return_to(versions)
            registered = find(versions, chosen)
            if registered is None:
                target = steps.verify(f"{self.name}-{chosen}.mar", chosen)
            else:
                target = Target(chosen)
            if chosen == current.version:
                steps.finish(target, versions)
                return
            with steps.undone_on_failure(current, target, remove=registered is None):
                steps.prepare(target, current, registered)
                steps.switch(current, target, keep_old=False)
            try:
                steps.remove(current.version)
            except ServerError as error:
                raise ServerError(
                    f"{self.name} {chosen} serves again, but {current.version} is still there: "
                    f"{error}; then `ts-ensemble rollback {self.name} {chosen}` removes it"
                ) from error

    def _version_to_return_to(self, versions: Sequence[ModelVersion]) -> str:
        """Find the version that `roll_back` returns to if none is named.

        Raises:
            ServerError: there is none, or it is not clear which one is meant.
        """
        current = default_of(versions).version
        higher = [each for each in versions if _order(each.version) > _order(current)]
        if any(is_retiring(each) for each in higher):
            # An earlier rollback was killed after the switch.
            return current
        if higher:
            raise ServerError(
                f"{self.name} {current} serves, and {higher[0].version} waits beside it: name the "
                f"version to return to (`ts-ensemble rollback {self.name} VERSION`), or remove "
                f"the other one (`ts-ensemble unregister {self.name} {higher[0].version}`)"
            )
        lower = [each.version for each in versions if each.version != current]
        return max(lower or self._archived_versions(current), key=_order)

    def _archived_versions(self, current: str) -> list[str]:
        """List the versions below the current one in the model store; at least one.

        Raises:
            ServerError: there is none.
        """
        store, prefix = self.server.model_store, f"{self.name}-"
        names = [path.name.removesuffix(".mar") for path in store.glob(f"{prefix}*.mar")]
        versions = [name.removeprefix(prefix) for name in names]
        # The archives of a model `trees-old` begin with the name of a model `trees`, too.
        lower = [
            version
            for version in versions
            if re.fullmatch(r"[0-9.]+", version) and _order(version) < _order(current)
        ]
        if not lower:
            raise ServerError(
                f"no version of {self.name} below {current} is registered, and {store} has no "
                f"archive {prefix}VERSION.mar of one: build or fetch one, and roll it out with "
                f"`ts-ensemble rollout {self.name} ARCHIVE`"
            )
        return lower

    @contextlib.contextmanager
    def _locked(self) -> Iterator[Steps]:
        """Open the steps, while no other rollout of this server goes on."""
        with (
            rollout_lock(self.server.run_folder),
            Steps.opened(self.server, self.name, self.settings) as steps,
        ):
            yield steps


def _order(version: str) -> tuple[int, ...]:
    """Return a key that sorts versions by their numbers, 1.9 before 1.10."""
    return tuple(int(number) for number in re.findall(r"\d+", version))
