"""Lets one process at a time bring a server to a desired state."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from ..handlers.base.errors import ServerError
from ..serving.run_folder import write_private_file

_LOCK_FILE = "changes.lock"
_HOLDER_FILE = "changes.json"


@contextlib.contextmanager
def change_lock(run_folder: Path, purpose: str, *, timeout: float = 0) -> Iterator[None]:
    """Hold the lock of a server's changes; the operating system frees that of a killed process.

    Args:
        run_folder: run folder of the server.
        purpose: what this process does, for the message to another one.
        timeout: seconds to wait for another process that holds the lock.

    Raises:
        ServerError: another process holds the lock; the message names it.
    """
    lock = FileLock(run_folder / _LOCK_FILE, timeout=timeout, mode=0o600)
    try:
        lock.acquire()
    except Timeout:
        raise ServerError(
            f"{_holder(run_folder)} changes the server of {run_folder} just now, and this would "
            "interleave with it; nothing was changed: try again when it has ended"
        ) from None
    except OSError as error:
        raise ServerError(f"{run_folder / _LOCK_FILE} cannot be locked: {error}") from error
    try:
        holder = {"pid": os.getpid(), "purpose": purpose, "since": time.strftime("%H:%M:%S")}
        write_private_file(run_folder / _HOLDER_FILE, json.dumps(holder))
        yield
    finally:
        (run_folder / _HOLDER_FILE).unlink(missing_ok=True)
        lock.release()


def _holder(run_folder: Path) -> str:
    """Name the process that holds the lock, for a message."""
    try:
        holder = json.loads((run_folder / _HOLDER_FILE).read_text())
        return f"`{holder['purpose']}` (pid {holder['pid']}, since {holder['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        # Its holder has just taken the lock, or has just ended.
        return "another process"
