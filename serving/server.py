"""The life cycle of one TorchServe: start it, wait until it can answer, change it, stop it."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import psutil

from ..handlers.archive.record import ArchiveRecord
from ..handlers.archive.trusted_keys import TrustedKeys
from ..handlers.base.errors import ServerError
from . import archive_check
from .changes import Changes
from .client import InferenceClient
from .draining import Retirement, drained
from .extraction import why_not_extracted
from .management import (
    DAMAGED_OR_FULL,
    NOT_EXTRACTED,
    REMEDIES,
    ManagementClient,
    ModelVersion,
)
from .processes import find_server_process, is_java, server_processes, terminate
from .properties_file import read_properties
from .run_folder import (
    CONFIG_FILE,
    DEFAULT_RUN_FOLDER,
    KEY_FILE,
    TRUSTED_KEYS_FILE,
    ServerState,
    console_log,
    read_state,
    remove_files_of_dead_server,
    run_folder_lock,
    server_log,
)
from .settings import ServerSettings, effective
from .starting import launch_server
from .tokens import read_token
from .transports import NoConnectionError
from .worker_log import WorkerLog, from_first_error

_POLL_SECONDS = 0.1

_STOP_SECONDS = 30
"""Time for processes to end after a signal, and for another process to release the run folder."""

_EXTRACTION_SECONDS = 600
"""Time for TorchServe to extract an archive, which may have gigabytes on a slow disk."""

_MAX_SHOWN_CONSOLE_CHARACTERS = 2000


class Server:
    """A stock TorchServe, started by its own command line in a run folder of its own.

    The run folder holds the server's logs, its tokens (key_file.json), the configuration that it
    really runs with, and the state file by which another process finds the server.
    """

    def __init__(self, run_folder: Path, state: ServerState) -> None:
        self.run_folder = run_folder
        self._state = state
        self._log = WorkerLog(server_log(run_folder))

    @classmethod
    def start(
        cls,
        settings: ServerSettings,
        run_folder: Path = DEFAULT_RUN_FOLDER,
        *,
        timeout: float = 60,
        check_archives: bool = True,
    ) -> Server:
        """Start TorchServe and wait until its management API answers; models may still load.

        Args:
            settings: what to serve, and how.
            run_folder: working folder of the server; made if missing.
            timeout: seconds within which the management API must answer.
            check_archives: check every archive before TorchServe extracts it. Pass False to serve
                archives that this project did not build.

        Raises:
            ArchiveError: an archive was altered, `ts-ensemble build` did not write it, or none of
                the trusted keys signed it; or the keys cannot be read.
            SpecError: the spec in an archive has a mistake.
            ServerError: there is no Java, a server already runs in the folder, TorchServe ended
                (the message has the reason from its log), or it did not answer in time.
        """
        try:
            state = launch_server(settings, run_folder, check_archives=check_archives)
        except OSError as error:
            raise ServerError(f"no server can be started in {run_folder}: {error}") from error
        server = cls(run_folder, state)
        try:
            server._wait_for_api(timeout)
        except BaseException:
            server.stop(drain_timeout=0)
            raise
        return server

    @classmethod
    def attach(cls, run_folder: Path = DEFAULT_RUN_FOLDER) -> Server | None:
        """Find the server that runs in a folder; None if its launcher and its Java are dead.

        This removes nothing. What a dead server left behind stays until `start` or
        `remove_remains`, so that other verbs can report that the server has died.

        Raises:
            ServerError: the state file is damaged, or belongs to another user.
        """
        state = read_state(run_folder)
        server = None if state is None else cls(run_folder, state)
        return server if server is not None and server.running else None

    @classmethod
    def remove_remains(cls, run_folder: Path = DEFAULT_RUN_FOLDER) -> bool:
        """Remove the state file and the temporary folder of a dead server.

        Returns:
            Whether a dead server had left them.
        """
        if read_state(run_folder) is None:
            return False
        with run_folder_lock(run_folder, timeout=_STOP_SECONDS):
            return cls.attach(run_folder) is None and remove_files_of_dead_server(run_folder)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.stop(drain_timeout=10 if kind is None else 0)

    @property
    def pid(self) -> int:
        """Process id of the launcher; Java and the workers are below it."""
        return self._state.pid

    @property
    def inference_address(self) -> str:
        """URL of the inference API, e.g. ``http://127.0.0.1:8080``."""
        return self._state.inference_address

    @property
    def management_address(self) -> str:
        """URL of the management API, e.g. ``http://127.0.0.1:8081``."""
        return self._state.management_address

    @property
    def metrics_address(self) -> str:
        """URL of the metrics API, e.g. ``http://127.0.0.1:8082``."""
        return self._state.metrics_address

    @property
    def model_store(self) -> Path:
        """The folder of the server's archives."""
        return Path(self._settings()["model_store"])

    @property
    def running(self) -> bool:
        """Whether the launcher or Java lives."""
        return self._process() is not None

    def token(self, kind: str) -> str | None:
        """A valid ``management`` or ``inference`` token; None if the server asks for none.

        Raises:
            ServerError: the token file is missing, or the server does not renew the token.
        """
        if not self._state.tokens:
            return None
        return read_token(self.run_folder / KEY_FILE, kind, self.management_address)

    def management(self, timeout: float = 60) -> ManagementClient:
        """Make a client of the management API, with this server's token.

        Args:
            timeout: seconds for each call.

        Raises:
            ServerError: the server asks for a token that cannot be read or renewed.
        """
        return ManagementClient(
            self.management_address, token=self.token("management"), timeout=timeout
        )

    def client(
        self, timeout: float = 60, *, transport: Literal["rest", "grpc"] = "rest"
    ) -> InferenceClient:
        """Make a client of the inference API, with this server's token.

        Args:
            timeout: seconds for each request.
            transport: ``rest`` or ``grpc``.

        Raises:
            ServerError: the server asks for a token that cannot be read or renewed.
        """
        address = self._state.grpc_address if transport == "grpc" else self.inference_address
        token = self.token("inference")

        def diagnose(name: str, version: str | None) -> str:
            with self.management() as management:
                return management.reason_for_refusal(name, version)

        return InferenceClient(
            address, transport=transport, token=token, timeout=timeout, diagnose=diagnose
        )

    def wait_ready(
        self, models: Sequence[tuple[str, str | None]] | None = None, *, timeout: float = 180
    ) -> list[ModelVersion]:
        """Wait until every worker of the models has loaded its model.

        TorchServe starts a dying worker again and again while its /ping answers Healthy. This
        method raises an error at the first death instead.

        Args:
            models: (name, version) pairs, with None for the default version; without this argument
                every version of every model.
            timeout: seconds until all workers must be ready.

        Returns:
            A description of each version; empty if the server has no models.

        Raises:
            WorkerDiedError: a worker died; the error has the worker's own traceback.
            ServerError: an archive could not be read, the server ended, or the time ran out.
        """
        for archive, reason in self._log.failed_archives().items():
            remedy = self._why_not_extracted(archive) or "build it again"
            raise ServerError(f"TorchServe cannot load {archive}: {reason}; {remedy}")
        deadline = time.monotonic() + timeout
        with self.management() as management:
            while True:
                versions = (
                    management.all_versions()
                    if models is None
                    else [
                        described
                        for name, version in models
                        for described in management.describe(name, version)
                    ]
                )
                if versions and all(version.ready for version in versions):
                    return versions
                if not versions:
                    return []
                self._raise_if_ended({f"{version.name}_{version.version}" for version in versions})
                if time.monotonic() > deadline:
                    late = [f"{v.name} {v.version}" for v in versions if not v.ready]
                    raise ServerError(
                        f"the workers of {', '.join(late)} are not ready after {timeout:g} s; see "
                        f"{server_log(self.run_folder)}, or wait longer (serve --timeout SECONDS)"
                    )
                time.sleep(_POLL_SECONDS)

    def check_archive(self, archive: str) -> ArchiveRecord | None:
        """Check an archive before this server extracts it, also against the keys that it trusts.

        Args:
            archive: file name in the model store, or a URL from which the server may load.

        Returns:
            The archive's record; None if TorchServe itself downloads the archive.

        Raises:
            ArchiveError: the archive was altered, `ts-ensemble build` did not write it, or none of
                the keys that the server trusts signed it.
            SpecError: the spec in the archive has a mistake.
        """
        return archive_check.check_archive(archive, self.model_store, self.trusted_keys())

    def register(
        self,
        archive: str,
        *,
        workers: int = 1,
        check_archive: bool = True,
        timeout: float = _EXTRACTION_SECONDS,
        batch_size: int | None = None,
        max_batch_delay_ms: int | None = None,
    ) -> ModelVersion:
        """Register an archive and wait until its workers are ready.

        Clients of other versions do not wait meanwhile. A gRPC call extracts the archive outside
        the event loops that serve these clients, and the state of the workers is polled.

        Args:
            archive: file name in the model store, or a URL from which the server may load.
            workers: number of workers, for archives that do not specify it themselves.
            check_archive: check the archive before TorchServe extracts it. Pass False to register
                an archive that this project did not build.
            timeout: seconds that TorchServe has to extract the archive.
            batch_size: replaces the archive's batch size.
            max_batch_delay_ms: replaces the archive's delay.

        Returns:
            A description of the new version.

        Raises:
            ArchiveError: the archive was altered, `ts-ensemble build` did not write it, or none of
                the keys that the server trusts signed it.
            SpecError: the spec in the archive has a mistake.
            WorkerDiedError: a worker died while it loaded, with the worker's own traceback; the
                version is unregistered again.
            ServerError: TorchServe refused, with its reason and a remedy.
        """
        from .grpc_management import register_model

        if check_archive:
            self.check_archive(archive)

        def submit() -> None:
            try:
                register_model(
                    self._grpc_management_address(),
                    archive,
                    workers=workers,
                    token=self.token("management"),
                    timeout=timeout,
                    batch_size=batch_size,
                    max_batch_delay_ms=max_batch_delay_ms,
                )
            except ServerError as error:
                remedy = REMEDIES.get(error.status, "see the server's logs")
                if NOT_EXTRACTED in error.message:
                    remedy = self._why_not_extracted(archive) or DAMAGED_OR_FULL
                explained = ServerError(f"{error.message}: {remedy}")
                explained.status = error.status
                raise explained from error

        with self.management() as management:
            return Changes(management, self._log).register(archive, submit)

    def stop(self, *, drain_timeout: float = 10, force: bool = True) -> None:
        """Answer the requests that have arrived, end the server and its workers, and clean up.

        A request that arrives while the server stops finds its connection closed.

        Args:
            drain_timeout: seconds to wait for requests that workers compute; 0 does not wait.
            force: whether to stop after `drain_timeout` even if workers still compute.

        Raises:
            ServerError: workers still compute, and `force` is False.
        """
        session = self._session()
        processes = server_processes(session)
        with contextlib.ExitStack() as stack:
            if drain_timeout > 0 and any(is_java(each) for each in processes):
                try:
                    self._drain(stack, drain_timeout)
                except NoConnectionError:
                    # The server still starts or already ends, so it has taken no request.
                    pass
                except ServerError:
                    if not force:
                        raise
            # Java ends its workers itself, and then the launcher ends by itself.
            for process in [each for each in processes if is_java(each)] or processes:
                terminate(process)
            psutil.wait_procs(processes, timeout=_STOP_SECONDS)
        # Java may have started new workers in the meantime, so the session is searched again.
        remaining = server_processes(session)
        for process in remaining:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(remaining, timeout=_STOP_SECONDS)
        self._remove_files()

    def _drain(self, stack: contextlib.ExitStack, timeout: float) -> None:
        """Hold every worker once it has answered its requests; the stack's end releases them."""
        with self.management(timeout=timeout) as management:
            versions = management.all_versions()
            stack.enter_context(
                drained(
                    management,
                    [Retirement(version, version.workers) for version in versions],
                    timeout=timeout,
                    until_queues_are_empty=False,
                )
            )

    def processes(self) -> list[psutil.Process]:
        """The launcher, Java and the workers, as far as they live."""
        return server_processes(self._session())

    def _session(self) -> int | None:
        """Id of the session that the launcher began; Java and the workers are in it, too.

        It is read from a process that was checked, and not from the state file.
        """
        process = self._process()
        return None if process is None else os.getsid(process.pid)

    def _process(self) -> psutil.Process | None:
        """The launcher, or Java if the launcher was killed; None if the server is dead."""
        return find_server_process(self.run_folder, self._state)

    def _remove_files(self) -> None:
        """Remove the state file and the temporary folder, unless a new start has replaced them."""
        with run_folder_lock(self.run_folder, timeout=_STOP_SECONDS):
            if read_state(self.run_folder) == self._state and not self.running:
                remove_files_of_dead_server(self.run_folder)

    def _settings(self) -> dict[str, str]:
        """The settings with which the server runs."""
        return effective(read_properties(self.run_folder / CONFIG_FILE))

    def trusted_keys(self) -> TrustedKeys | None:
        """The keys of which one must have signed every archive; None if there is no such rule.

        Raises:
            ArchiveError: the run folder's file of keys is missing or damaged.
        """
        if not self._state.trusted_keys:
            return None
        return TrustedKeys.read(self.run_folder / TRUSTED_KEYS_FILE)

    def _grpc_management_address(self) -> str:
        """``host:port`` of the gRPC management service."""
        settings = self._settings()
        return f"{settings['grpc_management_address']}:{settings['grpc_management_port']}"

    def _why_not_extracted(self, archive: str) -> str:
        """Why TorchServe could not extract an archive of the model store; empty if unknown."""
        path = self.model_store / archive
        # TorchServe extracts into the folder `models` of its temporary folder.
        return why_not_extracted(path, Path(self._state.temporary) / "models")

    def _wait_for_api(self, timeout: float) -> None:
        """Wait until the management API answers and the gRPC management service listens.

        Raises:
            ServerError: TorchServe ended, or the time ran out.
        """
        deadline = time.monotonic() + timeout
        while True:
            if not self.running:
                raise ServerError(
                    "TorchServe ended while it started. Its log says:\n"
                    f"{self._why_ended()}\n(the whole log: {server_log(self.run_folder).parent})"
                )
            try:
                with self.management(timeout=5) as management:
                    management.models()
                # gRPC comes up after REST, and its management service after its inference service.
                address = self._grpc_management_address()
                host, _, port = address.rpartition(":")
                with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 5):
                    return
                problem = f"nothing listens on {address} (gRPC)"
            except ServerError as error:
                problem = error.message
            if time.monotonic() > deadline:
                raise ServerError(f"TorchServe does not answer after {timeout:g} s: {problem}")
            time.sleep(_POLL_SECONDS)

    def _raise_if_ended(self, models: set[str]) -> None:
        """Raise an error if a worker of these models has died, or the whole server has.

        Args:
            models: ``NAME_VERSION`` of each model, as TorchServe's log names them.

        Raises:
            WorkerDiedError: a worker died; the error has the worker's own traceback.
            ServerError: the server ended.
        """
        for dead in self._log.dead_workers():
            if dead.model in models:
                raise dead.error()
        if not self.running:
            raise ServerError(f"TorchServe ended. Its log says:\n{self._why_ended()}")

    def _why_ended(self) -> str:
        """The first error in the log, or in what Java printed before its log was set up."""
        printed = console_log(self.run_folder).read_text(errors="replace").strip()
        return (
            self._log.from_first_error()
            or from_first_error(printed)
            or printed[-_MAX_SHOWN_CONSOLE_CHARACTERS:]
        )
