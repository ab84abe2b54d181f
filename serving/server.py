"""The life cycle of one TorchServe process: start, wait until it can answer, stop."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import psutil
from filelock import FileLock, Timeout
from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from ..handlers.base.errors import ServerError
from . import archive_check
from .changes import Changes
from .client import InferenceClient
from .draining import Retirement, drained
from .extraction import why_not_extracted
from .java import JavaRuntime, find_java
from .management import (
    DAMAGED_OR_FULL,
    NOT_EXTRACTED,
    REMEDIES,
    ManagementClient,
    ModelVersion,
)
from .settings import (
    ServerSettings,
    check_ports,
    effective,
    is_on,
    read_properties,
    write_properties,
)
from .tokens import TOKEN_VARIABLE, read_token
from .transports import NoConnectionError
from .worker_log import WorkerLog, trouble

DEFAULT_RUN_FOLDER = Path(".ts-ensemble")
_STATE = "server.json"
_LOCK = "lock"
_CONFIG = "config.properties"
_KEY_FILE = "key_file.json"
_CONFIG_MARK = "# Written by ts-ensemble at each start: change the file of --config instead."
_TEMPORARY_PREFIX = "ts-ensemble-"
_TEMPORARY_OWNER = "run-folder"
"""In a temporary folder: the run folder whose server extracts its archives there."""
_LAUNCHER = "ts.model_server"
_JAVA = "org.pytorch.serve.ModelServer"
_WORKER = "model_service_worker.py"
_POLL_SECONDS = 0.1
_STOP_SECONDS = 30
_EXTRACTION_SECONDS = 600
_LOGGING = Path(__file__).parent / "log4j2.xml"


@dataclass(frozen=True, config=ConfigDict(strict=True))
class _State:
    """What another process needs to find a server.

    A cloned repository or a copied folder may carry such a file, so nothing that it names is
    signalled or deleted before `Server._process` and `_own_temporary` have checked it.
    """

    pid: Annotated[int, Field(gt=0, lt=2**31)]
    created: float
    inference_address: str
    management_address: str
    metrics_address: str
    grpc_address: str
    temporary: str
    tokens: bool


_STATES = TypeAdapter(_State)


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
        check_archives: bool = True,
    ) -> Server:
        """Start TorchServe and wait until its management API answers; models may still load.

        Args:
            settings: what to serve, and how.
            run_folder: made if missing.
            timeout: seconds until the management API must answer.
            check_archives: before TorchServe extracts them; False serves archives of others.

        Raises:
            ArchiveError: an archive was altered, or `ts-ensemble build` did not write it.
            ServerError: no Java; one runs there already; it ended, with its own last words.
        """
        try:
            state = cls._start(settings, run_folder, check_archives=check_archives)
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
    def _start(cls, settings: ServerSettings, run_folder: Path, *, check_archives: bool) -> _State:
        properties = settings.properties()
        held = effective(properties)
        if check_archives:
            archive_check.check_models(settings.models, held)
        java = find_java()
        _make_run_folder(run_folder)
        with _locked(run_folder, timeout=0):
            running = cls.attach(run_folder)
            if running is not None:
                raise ServerError(
                    f"a server runs there already: {running.inference_address} (pid "
                    f"{running.pid}); stop it with `ts-ensemble stop`"
                )
            unknown = _find_java_in(run_folder)
            if unknown is not None:
                raise ServerError(
                    f"a TorchServe works in {run_folder} (pid {unknown.pid}) that {_STATE} does "
                    "not know; end it, or use another --run-folder"
                )
            check_ports(held)
            _remove_remains(run_folder)
            _check_replaceable(run_folder)
            _write(run_folder / _CONFIG, f"{_CONFIG_MARK}\n{write_properties(properties)}")
            (run_folder / _KEY_FILE).unlink(missing_ok=True)
            if server_log(run_folder).exists():
                server_log(run_folder).replace(server_log(run_folder).with_suffix(".previous.log"))
            # Worker sockets lie in the temporary folder, and their paths may be 108 bytes at most.
            temporary = tempfile.mkdtemp(prefix=_TEMPORARY_PREFIX)
            _write(Path(temporary) / _TEMPORARY_OWNER, str(run_folder.resolve()))
            launcher = _launch(settings, held, run_folder, java, temporary)
            try:
                state = _State(
                    pid=launcher.pid,
                    created=launcher.create_time(),
                    inference_address=held["inference_address"],
                    management_address=held["management_address"],
                    metrics_address=held["metrics_address"],
                    grpc_address=f"{held['grpc_inference_address']}:{held['grpc_inference_port']}",
                    temporary=temporary,
                    tokens=not is_on(held, "disable_token_authorization"),
                )
                _write(run_folder / _STATE, json.dumps(asdict(state), indent=2))
            except BaseException:
                # Without its state no verb would find the server again.
                _kill(launcher)
                shutil.rmtree(temporary, ignore_errors=True)
                raise
            return state

    @classmethod
    def attach(cls, run_folder: Path = DEFAULT_RUN_FOLDER) -> Server | None:
        """The server of a run folder, if it runs: its launcher lives, or Java alone does.

        What a dead server left behind stays until `start` or `remove_remains`, so that other
        verbs can say that it is dead.

        Raises:
            ServerError: the state file is damaged, or of another user.
        """
        state = _read_state(run_folder)
        server = None if state is None else cls(run_folder, state)
        return server if server is not None and server.running else None

    @classmethod
    def remove_remains(cls, run_folder: Path = DEFAULT_RUN_FOLDER) -> bool:
        """Remove the state and the temporary folder of a server that is dead.

        Returns:
            Whether there was one.
        """
        if _read_state(run_folder) is None:
            return False
        with _locked(run_folder, timeout=_STOP_SECONDS):
            return cls.attach(run_folder) is None and _remove_remains(run_folder)

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
        return read_token(self.run_folder / _KEY_FILE, kind, self.management_address)

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
                return management.reason_for_refusal(name, version)

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
            models: (name, version) pairs, None for the default version; None: every version of
                every model.
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
                versions = (
                    management.all_versions()
                    if models is None
                    else [found for name, v in models for found in management.describe(name, v)]
                )
                if versions and all(version.ready for version in versions):
                    return versions
                if not versions:
                    return []
                self._raise_if_dead({f"{version.name}_{version.version}" for version in versions})
                if time.monotonic() > deadline:
                    late = [f"{v.name} {v.version}" for v in versions if not v.ready]
                    raise ServerError(
                        f"the workers of {', '.join(late)} are not ready after {timeout:g} s; see "
                        f"{server_log(self.run_folder)}, or wait longer (serve --timeout SECONDS)"
                    )
                time.sleep(_POLL_SECONDS)

    def register(
        self,
        archive: str,
        *,
        workers: int = 1,
        check_archive: bool = True,
        timeout: float = _EXTRACTION_SECONDS,
    ) -> ModelVersion:
        """Register an archive and wait until its workers are ready.

        The clients of other versions do not wait: the archive is extracted by a gRPC call, off
        the event loops that serve them, and the workers are polled for.

        Args:
            archive: file name in the model store, or an URL that the server may load.
            workers: for archives that do not say themselves.
            check_archive: before TorchServe extracts it; False registers archives of others.
            timeout: seconds that TorchServe has to extract the archive.

        Raises:
            ArchiveError: it was altered, or `ts-ensemble build` did not write it.
            WorkerDiedError: with the worker's own traceback; the version is taken back.
            ServerError: what TorchServe answers, with the reason and a remedy.
        """
        from .grpc_management import register_model

        if check_archive:
            archive_check.check_archive(archive, Path(self._settings()["model_store"]))

        def submit() -> None:
            try:
                register_model(
                    self._grpc_management_address(),
                    archive,
                    workers=workers,
                    token=self.token("management"),
                    timeout=timeout,
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

    def _settings(self) -> dict[str, str]:
        """What the server runs with."""
        return effective(read_properties(self.run_folder / _CONFIG))

    def _grpc_management_address(self) -> str:
        settings = self._settings()
        return f"{settings['grpc_management_address']}:{settings['grpc_management_port']}"

    def _why_not_extracted(self, archive: str) -> str:
        path = Path(self._settings()["model_store"]) / archive
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
        session = self._session()
        family = _family(session)
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
        alive = _family(session)
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

    def processes(self) -> list[psutil.Process]:
        """The launcher, Java and the workers, whichever of them live."""
        return _family(self._session())

    def _session(self) -> int | None:
        """The session that the launcher began; Java and the workers belong to it even without it.

        It is that of a process that was checked, not what the state file says.
        """
        known = self._process()
        return None if known is None else os.getsid(known.pid)

    def _process(self) -> psutil.Process | None:
        """The launcher, or Java where only that is left (it and its workers outlive a launcher).

        The state file is not believed: a process is this server only if it is of this user, works
        in the run folder, and is TorchServe by its command line.
        """
        with contextlib.suppress(psutil.Error):
            launcher = psutil.Process(self._state.pid)
            same = abs(launcher.create_time() - self._state.created) < 1
            if same and _works_in(self.run_folder, launcher, _LAUNCHER):
                return launcher
        # model_server.py gives Java the launcher's TEMP, which is of this server alone.
        temporary = f"-Djava.io.tmpdir={self._state.temporary}"
        return _find_java_in(self.run_folder, temporary)

    def _clean(self) -> None:
        """Remove the state and the temporary folder, unless another start has replaced them."""
        with _locked(self.run_folder, timeout=_STOP_SECONDS):
            if _read_state(self.run_folder) == self._state and not self.running:
                _remove_remains(self.run_folder)

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


def _launch(
    settings: ServerSettings,
    properties: Mapping[str, str],
    run_folder: Path,
    java: JavaRuntime,
    temporary: str,
) -> psutil.Process:
    environment = os.environ | {"JAVA_HOME": str(java.home), "TEMP": temporary}
    environment |= {"TMPDIR": temporary, "LOG_LOCATION": "logs", "METRICS_LOCATION": "logs"}
    # Workers import `handlers` from the archive; an inherited path would come first.
    environment.pop("PYTHONPATH", None)
    environment.pop("TS_CONFIG_FILE", None)
    # A client's secret is no business of the code in an archive.
    environment.pop(TOKEN_VARIABLE, None)
    command = [sys.executable, "-m", _LAUNCHER, "--start", "--foreground", "--ncs"]
    command += ["--model-store", properties["model_store"], "--ts-config", _CONFIG]
    command += ["--log-config", str(_LOGGING)]
    if settings.models:
        command += ["--models", *settings.models]
    _write(_console(run_folder), "")
    with _console(run_folder).open("wb") as console:
        launcher = subprocess.Popen(
            command,
            cwd=run_folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # Java writes the tokens and the logs: for this user alone.
            umask=0o077,
        )
    process = psutil.Process(launcher.pid)
    with contextlib.suppress(psutil.Error):
        # The system shows a command line, by which the launcher is known, shortly after the start.
        while process.status() != psutil.STATUS_ZOMBIE and not process.cmdline():
            time.sleep(0.001)
    return process


def _kill(launcher: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        launcher.suspend()  # so that it starts no Java meanwhile
        for process in (*launcher.children(recursive=True), launcher):
            process.kill()


def _find_java_in(run_folder: Path, *words: str) -> psutil.Process | None:
    """The TorchServe of this user that works in a folder and has these words in its command."""
    for process in psutil.process_iter():
        if _works_in(run_folder, process, _JAVA, *words):
            return process
    return None


def _family(session: int | None) -> list[psutil.Process]:
    """The launcher, Java and the workers of a session, whichever of them live."""
    family = []
    for process in psutil.process_iter() if session is not None else ():
        with contextlib.suppress(psutil.Error, OSError):
            if (
                os.getsid(process.pid) == session
                and process.uids().real == os.getuid()
                and process.status() != psutil.STATUS_ZOMBIE
                and any(
                    word in (_LAUNCHER, _JAVA) or word.endswith(_WORKER)
                    for word in process.cmdline()
                )
            ):
                family.append(process)
    return family


def _works_in(run_folder: Path, process: psutil.Process, *words: str) -> bool:
    try:
        return (
            process.uids().real == os.getuid()
            and process.status() != psutil.STATUS_ZOMBIE
            and set(words) <= set(process.cmdline())
            and run_folder.samefile(process.cwd())
        )
    except (psutil.Error, OSError):
        return False


def _make_run_folder(run_folder: Path) -> None:
    """Make the folder, or check that nobody else can change what lies in it.

    Raises:
        ServerError: it is of another user, others may write to it, or its logs are links.
    """
    logs = run_folder / "logs"
    run_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    logs.mkdir(mode=0o700, exist_ok=True)
    for folder in (run_folder, logs):
        status = folder.stat()
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            raise ServerError(
                f"{folder}: other users may change what lies there; name a folder of your own "
                f"with --run-folder, or `chmod go-w {folder}` if it is yours"
            )
    # A cloned repository may carry links, through which logs would overwrite other files.
    for path in (run_folder, logs, *logs.iterdir()):
        if path.is_symlink():
            raise ServerError(f"{path} is a link, and a server writes there; name the real folder")


@contextlib.contextmanager
def _locked(run_folder: Path, *, timeout: float) -> Iterator[None]:
    """Let one process at a time start or clean up; the system frees the lock of a killed one."""
    lock = FileLock(run_folder / _LOCK, timeout=timeout, mode=0o600)
    try:
        lock.acquire()
    except Timeout:
        raise ServerError(
            f"another process starts or stops a server in {run_folder} just now; wait for it, or "
            "use another --run-folder"
        ) from None
    except OSError as error:
        raise ServerError(f"{run_folder / _LOCK} cannot be locked: {error}") from error
    try:
        yield
    finally:
        lock.release()


def _write(path: Path, text: str) -> None:
    """Replace a file by one that only this user can read, at once, and never through a link."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".", delete=False) as file:
        file.write(text)
    Path(file.name).replace(path)


def _check_replaceable(run_folder: Path) -> None:
    """A start replaces the configuration and the tokens there; those of somebody else it must not.

    Raises:
        ServerError: they are there and `ts-ensemble serve` did not write them.
    """
    config = run_folder / _CONFIG
    if config.exists() and config.read_bytes().startswith(_CONFIG_MARK.encode()):
        return
    for path in (config, run_folder / _KEY_FILE):
        if path.exists():
            raise ServerError(
                f"{path} was not written by `ts-ensemble serve`, which would replace it; use "
                "another --run-folder, or remove the file"
            )


def _read_state(run_folder: Path) -> _State | None:
    path = run_folder / _STATE
    if path.is_symlink():
        raise ServerError(f"{path} is a link, which `serve` never makes: remove it")
    if not path.is_file():
        return None
    if path.stat().st_uid != os.getuid():
        raise ServerError(f"{path} is of another user; run this as that user")
    try:
        return _STATES.validate_json(path.read_bytes())
    except ValueError as error:
        raise ServerError(
            f"{path} is damaged or of another version: end that server by hand and remove the file"
        ) from error


def _remove_remains(run_folder: Path) -> bool:
    """Remove what a dead server left; the caller holds the lock and knows that none runs."""
    state = _read_state(run_folder)
    if state is None:
        return False
    if _is_own_temporary(Path(state.temporary), run_folder):
        shutil.rmtree(state.temporary, ignore_errors=True)
    (run_folder / _STATE).unlink(missing_ok=True)
    return True


def _is_own_temporary(temporary: Path, run_folder: Path) -> bool:
    """Whether a folder is the one that `Server.start` made for this run folder, and no other.

    Place and name, owner and mode as `tempfile.mkdtemp` makes them, and within it the run folder's
    own path: a state file alone can name anything.
    """
    try:
        status = temporary.lstat()
        return (
            temporary.parent == Path(tempfile.gettempdir())
            and temporary.name.startswith(_TEMPORARY_PREFIX)
            and stat.S_ISDIR(status.st_mode)
            and status.st_uid == os.getuid()
            and stat.S_IMODE(status.st_mode) == 0o700
            and (temporary / _TEMPORARY_OWNER).read_text() == str(run_folder.resolve())
        )
    except (OSError, ValueError):
        return False


def has_state(run_folder: Path) -> bool:
    """Whether a server was started there and has not been stopped: it runs, or died."""
    return (run_folder / _STATE).is_file()


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
