"""The life cycle of one TorchServe process: start, wait until it can answer, stop."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from ..handlers.errors import ServerError, WorkerDiedError
from .client import InferenceClient
from .java import find_java
from .management import ManagementClient, ModelVersion
from .settings import ServerSettings
from .worker_log import DeadWorker, WorkerLog

DEFAULT_RUN_FOLDER = Path(".ts-ensemble")
_STATE = "server.json"
_POLL_SECONDS = 0.1
_STOP_SECONDS = 30
_REGISTERED = re.compile(r'Model "(.+?)" Version: (\S+) registered')
_FAILED = re.compile(r"Failed to start workers for model (\S+) version: (\S+)")


@dataclass(frozen=True)
class _State:
    """What another process needs to find a server; `created` guards against a reused pid."""

    pid: int
    created: float
    inference_address: str
    management_address: str
    metrics_address: str
    temporary: str
    tokens: bool


class Server:
    """A stock TorchServe, started by its own command line, in a run folder of its own.

    The run folder holds its logs, its tokens (key_file.json), the configuration that it really
    runs with, and the state by which another process finds it.
    """

    def __init__(self, run_folder: Path, state: _State) -> None:
        self.run_folder = run_folder
        self._state = state
        self._log = WorkerLog(console_log(run_folder))

    @classmethod
    def start(
        cls,
        settings: ServerSettings,
        run_folder: Path = DEFAULT_RUN_FOLDER,
        *,
        timeout: float = 60,
    ) -> Server:
        """Start TorchServe and wait until its management API answers; models may still load.

        Args:
            settings: what to serve, and how.
            run_folder: made if missing.
            timeout: seconds until the management API must answer.

        Raises:
            ServerError: no Java; one runs there already; it ended, with its own last words.
        """
        running = cls.attach(run_folder)
        if running is not None:
            raise ServerError(
                f"a server runs there already: {running.inference_address} (pid {running.pid}); "
                "stop it with `ts-ensemble stop`"
            )
        properties = settings.properties()
        java = find_java()
        (run_folder / "logs").mkdir(parents=True, exist_ok=True)
        (run_folder / "key_file.json").unlink(missing_ok=True)
        config = run_folder / "config.properties"
        config.write_text("".join(f"{key}={value}\n" for key, value in properties.items()))
        # Worker sockets lie in the temporary folder, and their paths may be 108 bytes at most.
        temporary = tempfile.mkdtemp(prefix="ts-ensemble-")
        environment = os.environ | {"JAVA_HOME": str(java.home), "TEMP": temporary}
        environment |= {"TMPDIR": temporary, "LOG_LOCATION": "logs", "METRICS_LOCATION": "logs"}
        # Workers import `handlers` from the archive; an inherited path would come first.
        environment.pop("PYTHONPATH", None)
        environment.pop("TS_CONFIG_FILE", None)
        command = [sys.executable, "-m", "ts.model_server", "--start", "--foreground", "--ncs"]
        command += ["--model-store", properties["model_store"], "--ts-config", config.name]
        if settings.models:
            command += ["--models", *settings.models]
        with console_log(run_folder).open("wb") as console:
            launcher = subprocess.Popen(
                command,
                cwd=run_folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        state = _State(
            pid=launcher.pid,
            created=psutil.Process(launcher.pid).create_time(),
            inference_address=properties["inference_address"],
            management_address=properties["management_address"],
            metrics_address=properties["metrics_address"],
            temporary=temporary,
            tokens=properties.get("disable_token_authorization", "false") != "true",
        )
        (run_folder / _STATE).write_text(json.dumps(asdict(state), indent=2))
        server = cls(run_folder, state)
        try:
            server._wait_for_api(timeout)
        except BaseException:
            server.stop()
            raise
        return server

    @classmethod
    def attach(cls, run_folder: Path = DEFAULT_RUN_FOLDER) -> Server | None:
        """The server of a run folder, if it runs; what a dead one left behind is removed."""
        path = run_folder / _STATE
        if not path.is_file():
            return None
        server = cls(run_folder, _State(**json.loads(path.read_text())))
        if server.running:
            return server
        server._clean()
        return None

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process that was started; Java and the workers are below it."""
        return self._state.pid

    @property
    def inference_address(self) -> str:
        """E.g. ``http://127.0.0.1:8080``."""
        return self._state.inference_address

    @property
    def management_address(self) -> str:
        """E.g. ``http://127.0.0.1:8081``."""
        return self._state.management_address

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process() is not None

    def token(self, kind: str) -> str | None:
        """A token of key_file.json: ``management`` or ``inference``; None where they are off.

        Raises:
            ServerError: the file is missing.
        """
        if not self._state.tokens:
            return None
        path = self.run_folder / "key_file.json"
        try:
            return str(json.loads(path.read_text())[kind]["key"])
        except (OSError, ValueError, KeyError) as error:
            raise ServerError(f"{path}: no {kind} token can be read: {error}") from error

    def management(self, timeout: float = 60) -> ManagementClient:
        """A client of the management API, with the token."""
        return ManagementClient(
            self.management_address, token=self.token("management"), timeout=timeout
        )

    def client(self, timeout: float = 60) -> InferenceClient:
        """A client of the inference API, with the token."""
        return InferenceClient(
            self.inference_address, token=self.token("inference"), timeout=timeout
        )

    def wait_ready(
        self, models: Sequence[tuple[str, str | None]] | None = None, *, timeout: float = 180
    ) -> list[ModelVersion]:
        """Wait until every worker asked for has loaded its model.

        TorchServe retries a dying worker while its /ping says Healthy; this ends with the first
        death instead.

        Args:
            models: (name, version) pairs, None for the default version; None: every model.
            timeout: seconds.

        Raises:
            WorkerDiedError: with the worker's own traceback.
            ServerError: the server ended, or the time ran out.
        """
        deadline = time.monotonic() + timeout
        with self.management() as management:
            while True:
                asked = [(name, None) for name in management.models()] if models is None else models
                versions = [found for name, v in asked for found in management.describe(name, v)]
                if versions and all(version.ready for version in versions):
                    return versions
                if not versions:
                    return []
                self._raise_if_dead({f"{version.name}_{version.version}" for version in versions})
                if time.monotonic() > deadline:
                    late = [f"{v.name} {v.version}" for v in versions if not v.ready]
                    raise ServerError(
                        f"the workers of {', '.join(late)} are not ready after {timeout:g} s; see "
                        f"{console_log(self.run_folder)}"
                    )
                time.sleep(_POLL_SECONDS)

    def register(self, archive: str, *, workers: int = 1) -> ModelVersion:
        """Register an archive and wait until its workers are ready.

        TorchServe's own register call answers 500 when workers die, says no reason, and may leave
        the version registered without workers; this gives the reason and takes the version back.

        Args:
            archive: file name in the model store, or an URL that the server may load.
            workers: for archives that do not say themselves.

        Raises:
            WorkerDiedError: with the worker's own traceback.
            ServerError: what TorchServe answers, with a remedy.
        """
        self._log.dead_workers()
        with self.management(timeout=600) as management:
            try:
                status = management.register(archive, workers=workers)
            except ServerError as error:
                failed = _FAILED.search(error.message)
                if failed is None:
                    raise
                name, version = failed.groups()
                with contextlib.suppress(ServerError):
                    management.unregister(name, version)
                for dead in self._log.dead_workers():
                    if dead.model == f"{name}_{version}":
                        raise _died(dead) from error
                raise
            registered = _REGISTERED.search(status)
            if registered is None:
                raise ServerError(f"TorchServe's answer is not understood: {status}")
            name, version = registered.groups()
            return management.describe(name, version)[0]

    def stop(self) -> None:
        """End the server and its workers, wait until they are gone, and clean up."""
        process = self._process()
        if process is not None:
            family = [*process.children(recursive=True), process]
            # Java ends its workers itself, and its launcher ends with it.
            for each in [each for each in family if "java" in _name(each)] or family:
                _terminate(each)
            _, alive = psutil.wait_procs(family, timeout=_STOP_SECONDS)
            for each in alive:
                each.kill()
            psutil.wait_procs(alive, timeout=_STOP_SECONDS)
        self._clean()

    def _process(self) -> psutil.Process | None:
        try:
            process = psutil.Process(self._state.pid)
            same = abs(process.create_time() - self._state.created) < 1
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            return None

    def _clean(self) -> None:
        (self.run_folder / _STATE).unlink(missing_ok=True)
        shutil.rmtree(self._state.temporary, ignore_errors=True)

    def _wait_for_api(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while True:
            if not self.running:
                raise ServerError(
                    "TorchServe ended while it started; it said:\n"
                    f"{self._log.tail()}\n(all of it: {console_log(self.run_folder)})"
                )
            try:
                with self.management(timeout=5) as management:
                    management.models()
                return
            except ServerError as error:
                if time.monotonic() > deadline:
                    raise ServerError(
                        f"TorchServe does not answer after {timeout:g} s: {error.message}"
                    ) from error
            time.sleep(_POLL_SECONDS)

    def _raise_if_dead(self, models: set[str]) -> None:
        for dead in self._log.dead_workers():
            if dead.model in models:
                raise _died(dead)
        if not self.running:
            raise ServerError(f"TorchServe ended; it said:\n{self._log.tail()}")


def console_log(run_folder: Path) -> Path:
    """Everything that TorchServe and its workers print."""
    return run_folder / "logs" / "console.log"


def _died(dead: DeadWorker) -> WorkerDiedError:
    return WorkerDiedError(
        f"the worker of {dead.model} died while it loaded: {dead.reason}", dead.traceback
    )


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.Error:
        return ""


def _terminate(process: psutil.Process) -> None:
    try:
        process.terminate()
    except psutil.NoSuchProcess:
        return
