"""The run folder of a server: the files in it, who may write them, and what may be believed.

A run folder may have come with a cloned repository. So its state file is only a hint: no process
that it names is signalled, and no folder that it names is deleted, before both have been checked.
Nothing is written through a link.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from filelock import FileLock, Timeout
from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from ..handlers.base.errors import ServerError

DEFAULT_RUN_FOLDER = Path(".ts-ensemble")
CONFIG_FILE = "config.properties"
KEY_FILE = "key_file.json"
STATE_FILE = "server.json"
TRUSTED_KEYS_FILE = "trusted-keys.pem"
"""In a run folder, the public keys of which one must have signed every archive of its server."""

_LOCK_FILE = "lock"
CHANGES_LOCK_FILE = "changes.lock"
"""File in a run folder that is locked while a verb of several steps changes the server."""

_CONFIG_HEADER = "# Written by ts-ensemble at each start: change the file of --config instead."
_TEMPORARY_PREFIX = "ts-ensemble-"
_OWNER_FILE = "run-folder"
"""In a server's temporary folder, this file holds the path of the server's run folder."""


@dataclass(frozen=True, config=ConfigDict(strict=True))
class ServerState:
    """The content of ``server.json``, by which another process finds a server.

    Attributes:
        pid: process id of the launcher.
        created: time at which the launcher started, in seconds since 1970.
        inference_address: URL of the REST inference API.
        management_address: URL of the REST management API.
        metrics_address: URL of the metrics API.
        grpc_address: ``host:port`` of the gRPC inference service.
        temporary: the folder in which TorchServe extracts archives and keeps worker sockets.
        tokens: whether the server asks for tokens.
        trusted_keys: whether the server loads only archives that a key of `TRUSTED_KEYS_FILE`
            signed.
    """

    pid: Annotated[int, Field(gt=0, lt=2**31)]
    created: float
    inference_address: str
    management_address: str
    metrics_address: str
    grpc_address: str
    temporary: str
    tokens: bool
    trusted_keys: bool = False


_STATE_ADAPTER = TypeAdapter(ServerState)


def server_log(run_folder: Path) -> Path:
    """The file to which TorchServe and its workers write their log."""
    return run_folder / "logs" / "server.log"


def console_log(run_folder: Path) -> Path:
    """The file that holds what Java prints before its log is set up."""
    return run_folder / "logs" / "console.log"


def has_state(run_folder: Path) -> bool:
    """Whether a server was started in this folder and not stopped since: it runs, or it died."""
    return (run_folder / STATE_FILE).is_file()


def read_state(run_folder: Path) -> ServerState | None:
    """Read the state file; None if the folder has none.

    Raises:
        ServerError: the file is a link, belongs to another user, or is damaged.
    """
    path = run_folder / STATE_FILE
    if path.is_symlink():
        raise ServerError(f"{path} is a link, which `serve` never makes: remove it")
    if not path.is_file():
        return None
    if path.stat().st_uid != os.getuid():
        raise ServerError(f"{path} belongs to another user; run this as that user")
    try:
        return _STATE_ADAPTER.validate_json(path.read_bytes())
    except ValueError as error:
        raise ServerError(
            f"{path} is damaged, or another version wrote it: end that server by hand and remove "
            "the file"
        ) from error


def write_state(run_folder: Path, state: ServerState) -> None:
    """Write the state file, by which other processes find the server."""
    write_private_file(run_folder / STATE_FILE, json.dumps(asdict(state), indent=2))


def make_run_folder(run_folder: Path) -> None:
    """Make the folder, or check that no other user can change what lies in it.

    Raises:
        ServerError: it belongs to another user, others may write to it, or its logs are links.
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
def run_folder_lock(run_folder: Path, *, timeout: float) -> Iterator[None]:
    """Let only one process at a time start a server in a folder, or clean up after one.

    Args:
        run_folder: the folder to lock.
        timeout: seconds to wait for another process that holds the lock.

    Raises:
        ServerError: another process still holds the lock, or the lock file cannot be opened.
    """

    def reason() -> str:
        return (
            f"another process starts or stops a server in {run_folder} just now; wait for it, or "
            "use another --run-folder"
        )

    with held_lock(run_folder / _LOCK_FILE, timeout, reason):
        yield


@contextlib.contextmanager
def rollout_lock(run_folder: Path) -> Iterator[None]:
    """Let no other process change the server while this one replaces a version.

    It is the lock that `apply`, `watch` and `autoscale` hold, too.

    Raises:
        ServerError: another process holds the lock, or the lock file cannot be opened.
    """

    def reason() -> str:
        return (
            f"another process replaces a version in the server of {run_folder} just now: wait for "
            "it, and run this again"
        )

    with held_lock(run_folder / CHANGES_LOCK_FILE, 0, reason):
        yield


@contextlib.contextmanager
def held_lock(file: Path, timeout: float, reason: Callable[[], str]) -> Iterator[None]:
    """Hold a lock; the operating system frees that of a process that was killed.

    Args:
        file: the file to lock.
        timeout: seconds to wait for another process that holds the lock.
        reason: returns the message for the case that the other process still holds it.

    Raises:
        ServerError: another process holds the lock, or the file cannot be opened.
    """
    lock = FileLock(file, timeout=timeout, mode=0o600)
    try:
        lock.acquire()
    except Timeout:
        raise ServerError(reason()) from None
    except OSError as error:
        raise ServerError(f"{file} cannot be locked: {error}") from error
    try:
        yield
    finally:
        lock.release()


def prepare_files(run_folder: Path, properties_text: str, trusted_keys: bytes | None) -> None:
    """Write the files of a new start, remove the old tokens and set the old log aside.

    Args:
        run_folder: locked by the caller, who has checked that no server runs there.
        properties_text: the content of ``config.properties``.
        trusted_keys: the content of `TRUSTED_KEYS_FILE`; None if the server trusts every archive.

    Raises:
        ServerError: a configuration or tokens are there that `ts-ensemble serve` did not write.
    """
    _check_own_config(run_folder)
    write_private_file(run_folder / CONFIG_FILE, f"{_CONFIG_HEADER}\n{properties_text}")
    (run_folder / KEY_FILE).unlink(missing_ok=True)
    if trusted_keys is not None:
        write_private_file(run_folder / TRUSTED_KEYS_FILE, trusted_keys.decode())
    log = server_log(run_folder)
    if log.exists():
        log.replace(log.with_suffix(".previous.log"))


def make_temporary_folder(run_folder: Path) -> str:
    """Make the folder in which the server of a run folder extracts its archives.

    It lies in the system's temporary folder and not in the run folder, because the paths of the
    worker sockets in it may have 108 bytes at most.
    """
    temporary = tempfile.mkdtemp(prefix=_TEMPORARY_PREFIX)
    write_private_file(Path(temporary) / _OWNER_FILE, str(run_folder.resolve()))
    return temporary


def remove_files_of_dead_server(run_folder: Path) -> bool:
    """Remove the state file and the temporary folder that a dead server left behind.

    Args:
        run_folder: locked by the caller, who has checked that no server runs there.

    Returns:
        Whether there was a state file.
    """
    state = read_state(run_folder)
    if state is None:
        return False
    if _is_own_temporary_folder(Path(state.temporary), run_folder):
        shutil.rmtree(state.temporary, ignore_errors=True)
    (run_folder / STATE_FILE).unlink(missing_ok=True)
    return True


def write_private_file(path: Path, text: str) -> None:
    """Write a file that only this user can read; an existing file or link is replaced at once."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".", delete=False) as file:
        file.write(text)
    Path(file.name).replace(path)


def _check_own_config(run_folder: Path) -> None:
    """Check that a start would replace no configuration and no tokens of somebody else.

    Raises:
        ServerError: `ts-ensemble serve` did not write the files that are there.
    """
    config = run_folder / CONFIG_FILE
    if config.exists() and config.read_bytes().startswith(_CONFIG_HEADER.encode()):
        return
    for path in (config, run_folder / KEY_FILE):
        if path.exists():
            raise ServerError(
                f"{path} was not written by `ts-ensemble serve`, which would replace it; use "
                "another --run-folder, or remove the file"
            )


def _is_own_temporary_folder(temporary: Path, run_folder: Path) -> bool:
    """Whether `make_temporary_folder` made this folder for this run folder.

    The path comes from a state file, which may name any folder. So the folder's place, name, owner
    and mode must be those that `tempfile.mkdtemp` gives, and it must hold the run folder's path.
    """
    try:
        status = temporary.lstat()
        return (
            temporary.parent == Path(tempfile.gettempdir())
            and temporary.name.startswith(_TEMPORARY_PREFIX)
            and stat.S_ISDIR(status.st_mode)
            and status.st_uid == os.getuid()
            and stat.S_IMODE(status.st_mode) == 0o700
            and (temporary / _OWNER_FILE).read_text() == str(run_folder.resolve())
        )
    except (OSError, ValueError):
        return False
