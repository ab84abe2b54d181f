"""Carries out what brings a server to a desired state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..handlers.base.errors import ServerError
from ..serving.changes import Changes
from ..serving.draining import DRAIN_SECONDS
from ..serving.run_folder import server_log
from ..serving.server import Server
from ..serving.transports import NoConnectionError
from ..serving.worker_log import WorkerLog
from .plan import GENERATED, Action, ActualState, DesiredState, Verb, next_action
from .state import actual_state, described_versions

_ANSWER_SECONDS = 60.0
"""Time for a worker to answer between two batches."""

_CHANGE_SECONDS = 600.0
"""TorchServe answers a call that ends workers only after they have ended."""


@dataclass(frozen=True)
class Reconciliation:
    """Brings one server to a desired state, action by action.

    The caller holds `change_lock`.

    Attributes:
        server: the server.
        drain_timeout: seconds that workers have to answer their requests before they are ended.
        force: whether workers that still compute after that time are ended all the same.
        report: called with each action before it is carried out.
        after_action: called with each action that has succeeded.
    """

    server: Server
    drain_timeout: float = DRAIN_SECONDS
    force: bool = False
    report: Callable[[Action], object] = lambda _: None
    after_action: Callable[[Action], object] = lambda _: None

    def run(self, desired: DesiredState) -> int:
        """Carry out one action after the other until the server is as desired.

        Returns:
            Number of actions.

        Raises:
            WorkerDiedError: a new worker died; the error holds its own traceback.
            ServerError: an action failed, or the server has ended. What was done until then stays,
                and another run goes on from there.
        """
        previous: Action | None = None
        count = 0
        while True:
            doing = "its state was read"
            try:
                actual = self.state()
                action = next_action(desired, actual)
                if action is None:
                    self._remove_generated_files(desired, actual)
                    return count
                if action == previous:
                    raise ServerError(
                        f"`{action}` was carried out and has not lasted: another client changes "
                        "this server, or its worker died again; see `ts-ensemble status`"
                    )
                doing = f"`{action.verb} {action.name} {action.version}` was carried out"
                self.report(action)
                self._carry_out(action)
            except ServerError as error:
                if self._answers():
                    raise
                raise ServerError(
                    f"the server of {self.server.run_folder} ended while {doing}; start it again "
                    "with `ts-ensemble serve`, and repeat this command, which goes on from what "
                    "the server has then"
                ) from error
            self.after_action(action)
            previous = action
            count += 1

    def is_needed(self, desired: DesiredState) -> bool:
        """Whether there is anything to do; this needs no lock.

        Raises:
            ServerError: the server or READY workers do not answer.
        """
        return next_action(desired, self.state()) is not None

    def state(self) -> ActualState:
        """Ask the server for its state.

        Raises:
            ServerError: the server or READY workers do not answer.
        """
        with self.server.management(timeout=_ANSWER_SECONDS) as management:
            return actual_state(described_versions(management, must_answer=True))

    def _carry_out(self, action: Action) -> None:
        if action.verb is Verb.REGISTER:
            self._register(action)
            return
        with self.server.management(timeout=_CHANGE_SECONDS) as management:
            log = WorkerLog(server_log(self.server.run_folder))
            changes = Changes(management, log, self.drain_timeout, self.force)
            match action.verb:
                case Verb.WAIT:
                    changes.wait_until_ready(action.name, action.version)
                case Verb.SCALE:
                    assert action.workers is not None
                    changes.scale(action.name, action.workers, action.version)
                case Verb.SET_DEFAULT:
                    changes.set_default(action.name, action.version)
                case Verb.UNREGISTER:
                    changes.unregister(action.name, action.version)

    def _register(self, action: Action) -> None:
        assert action.source is not None
        assert action.source.source is not None
        contents, source = action.source.contents, action.source.source
        if action.version != source.version and self.server.trusted_keys() is not None:
            raise ServerError(
                f"{action.name} {source.version} must be registered anew, and nothing can answer "
                "meanwhile: this server loads only signed archives, and a stand-in is an unsigned "
                "copy; raise the version in the spec, build and sign it, and list that version"
            )
        source.place(self.server.model_store, contents.archive, action.version)
        self.server.register(
            contents.archive,
            workers=action.source.own_workers,
            batch_size=contents.batch_size,
            max_batch_delay_ms=contents.max_batch_delay_ms,
        )

    def _remove_generated_files(self, desired: DesiredState, actual: ActualState) -> None:
        """Remove files that an apply wrote and that no version is registered from any longer."""
        models = [each.versions for each in desired.models.values()]
        needed = {each.contents.archive for versions in models for each in versions}
        for model in actual.values():
            needed.update(each.contents.archive for each in model.versions.values())
        for path in self.server.model_store.glob(f"*{GENERATED}*.mar"):
            if path.name not in needed:
                path.unlink(missing_ok=True)

    def _answers(self) -> bool:
        """Whether the server can still be reached."""
        try:
            with self.server.management(timeout=5) as management:
                management.models()
        except NoConnectionError:
            return False
        except ServerError:
            # A server that refuses or is slow has not ended.
            return self.server.running
        return True
