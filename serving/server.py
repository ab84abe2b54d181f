"""The life cycle of one TorchServe process: start, wait until it can answer, stop."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import psutil

from ..handlers.errors import ServerError
from .changes import Changes
from .client import InferenceClient
from .draining import Retirement, drained
from .extraction import why_not_extracted
from .java import find_java
from .management import (
    DAMAGED_OR_FULL,
    NOT_EXTRACTED,
    REMEDIES,
    ManagementClient,
    ModelVersion,
)
from .settings import ServerSettings, check_ports, is_on, read_properties
from .tokens import read_token
from .transports import NoConnectionError
from .worker_log import WorkerLog, trouble

DEFAULT_RUN_FOLDER = Path(".ts-ensemble")
_STATE = "server.json"
_POLL_SECONDS = 0.1
_STOP_SECONDS = 30
_EXTRACTION_SECONDS = 600
_LOGGING = Path(__file__).parent / "log4j2.xml"


@dataclass(frozen=True)
class _State:
    """What another process needs to find a server; `created` guards against a reused pid."""

    pid: int
    created: float
    inference_address: str
    management_address: str
    metrics_address: str
    grpc_address: str
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
        self._log = WorkerLog(server_log(run_folder))

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
        check_ports(properties)
        java = find_java()
        (run_folder / "logs").mkdir(parents=True, exist_ok=True)
        (run_folder / "key_file.json").unlink(missing_ok=True)
        if server_log(run_folder).exists():
            server_log(run_folder).replace(server_log(run_folder).with_suffix(".previous.log"))
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
        command += ["--log-config", str(_LOGGING)]
        if settings.models:
            command += ["--models", *settings.models]
        with _console(run_folder).open("wb") as console:
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
            grpc_address=f"{properties.get('grpc_inference_address', '127.0.0.1')}:"
            f"{properties['grpc_inference_port']}",
            temporary=temporary,
            tokens=not is_on(properties, "disable_token_authorization"),
        )
        (run_folder / _STATE).write_text(json.dumps(asdict(state), indent=2))
        server = cls(run_folder, state)
        try:
            server._wait_for_api(timeout)
        except BaseException:
            server.stop(drain_timeout=0)
            raise
        return server

    @classmethod
    def attach(cls, run_folder: Path = DEFAULT_RUN_FOLDER) -> Server | None:
        """The server of a run folder, if it runs; what a dead one left behind is removed."""
        path = run_folder / _STATE
        if not path.is_file():
            return None
        try:
            server = cls(run_folder, _State(**json.loads(path.read_text())))
        except (ValueError, TypeError) as error:
            raise ServerError(
                f"{path} is damaged or of another version: end that server by hand and remove the "
                f"file ({error})"
            ) from error
        if server.running:
            return server
        server._clean()
        return None

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.stop(drain_timeout=10 if kind is None else 0)

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
        """A valid token: ``management`` or ``inference``; None where they are off.

        Raises:
            ServerError: the file is missing, or the server does not renew the token.
        """
        if not self._state.tokens:
            return None
        return read_token(self.run_folder / "key_file.json", kind, self.management_address)

    def management(self, timeout: float = 60) -> ManagementClient:
        """A client of the management API, with the token."""
        return ManagementClient(
            self.management_address, token=self.token("management"), timeout=timeout
        )

    def client(
        self, timeout: float = 60, *, transport: Literal["rest", "grpc"] = "rest"
    ) -> InferenceClient:
        """A client of the inference API, with the token."""
        address = self._state.grpc_address if transport == "grpc" else self.inference_address
        token = self.token("inference")

        def diagnose(name: str, version: str | None) -> str:
            with self.management() as management:
                return management.describe(name, version)[0].why_not_taken()

        return InferenceClient(
            address, transport=transport, token=token, timeout=timeout, diagnose=diagnose
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
            ServerError: an archive could not be read, the server ended, or the time ran out.
        """
        for archive, reason in self._log.not_loaded().items():
            remedy = self._why_not_extracted(archive) or "build it again"
            raise ServerError(f"TorchServe cannot load {archive}: {reason}; {remedy}")
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
                        f"{server_log(self.run_folder)}"
                    )
                time.sleep(_POLL_SECONDS)

    def register(self, archive: str, *, workers: int = 1) -> ModelVersion:
        """Register an archive and wait until its workers are ready.

        The clients of other versions do not wait: the archive is extracted by a gRPC call, off
        the event loops that serve them, and the workers are polled for.

        Args:
            archive: file name in the model store, or an URL that the server may load.
            workers: for archives that do not say themselves.

        Raises:
            WorkerDiedError: with the worker's own traceback; the version is taken back.
            ServerError: what TorchServe answers, with the reason and a remedy.
        """
        from .grpc_management import register_model

        def submit() -> None:
            try:
                register_model(
                    self._grpc_management_address(),
                    archive,
                    workers=workers,
                    token=self.token("management"),
                    timeout=_EXTRACTION_SECONDS,
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

    def _grpc_management_address(self) -> str:
        properties = read_properties(self.run_folder / "config.properties")
        host = properties.get("grpc_management_address", "127.0.0.1")
        return f"{host}:{properties['grpc_management_port']}"

    def _why_not_extracted(self, archive: str) -> str:
        properties = read_properties(self.run_folder / "config.properties")
        path = Path(properties["model_store"]) / archive
        # TorchServe's own folder within its temporary one.
        return why_not_extracted(path, Path(self._state.temporary) / "models")

    def stop(self, *, drain_timeout: float = 10, force: bool = True) -> None:
        """Answer the requests that have arrived, end the server and its workers, and clean up.

        Requests that arrive while it stops find their connection closed.

        Args:
            drain_timeout: seconds to wait for requests that workers compute; 0 does not wait.
            force: stop when that time is over, instead of refusing.

        Raises:
            ServerError: workers still compute, and `force` is not set.
        """
        family = self._family()
        with contextlib.ExitStack() as stack:
            if drain_timeout > 0 and any("java" in _name(each) for each in family):
                try:
                    self._drain(stack, drain_timeout)
                except NoConnectionError:
                    # It still starts, or ends already: it has taken no request.
                    pass
                except ServerError:
                    if not force:
                        raise
            # Java ends its workers itself, and its launcher ends with it.
            for each in [each for each in family if "java" in _name(each)] or family:
                _terminate(each)
            psutil.wait_procs(family, timeout=_STOP_SECONDS)
        # With workers that Java started anew in the meantime.
        alive = self._family()
        for each in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(alive, timeout=_STOP_SECONDS)
        self._clean()

    def _drain(self, stack: contextlib.ExitStack, timeout: float) -> None:
        """Hold all workers until the stack closes, each once it has answered what came before."""
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

    def _family(self) -> list[psutil.Process]:
        """The launcher, Java and the workers, whichever of them live.

        The launcher began a session of its own, to which all of them belong even without it.
        """
        family = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if (
                    os.getsid(process.pid) == self._state.pid
                    and process.create_time() > self._state.created - 1
                    and process.status() != psutil.STATUS_ZOMBIE
                ):
                    family.append(process)
        return family

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
                    f"{self._last_words()}\n(all of it: {server_log(self.run_folder).parent})"
                )
            try:
                with self.management(timeout=5) as management:
                    management.models()
                # gRPC comes up after REST, its inference service first.
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

    def _raise_if_dead(self, models: set[str]) -> None:
        for dead in self._log.dead_workers():
            if dead.model in models:
                raise dead.error()
        if not self.running:
            raise ServerError(f"TorchServe ended; it said:\n{self._last_words()}")

    def _last_words(self) -> str:
        """What went wrong: from the log, or from what Java itself printed beside it."""
        printed = _console(self.run_folder).read_text(errors="replace").strip()
        return self._log.cause() or trouble(printed) or printed[-2000:]


def server_log(run_folder: Path) -> Path:
    """What TorchServe and its workers say."""
    return run_folder / "logs" / "server.log"


def _console(run_folder: Path) -> Path:
    """What Java prints before its log is set up."""
    return run_folder / "logs" / "console.log"


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
