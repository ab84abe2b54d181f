"""Lets one process at a time bring a server to a desired state."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from ..serving.run_folder import CHANGES_LOCK_FILE, held_lock, write_private_file

_HOLDER_FILE = "changes.json"


@contextlib.contextmanager
def change_lock(run_folder: Path, purpose: str, *, timeout: float = 0) -> Iterator[None]:
    """Hold the lock of a server's changes, which a rollout holds, too.

    Args:
        run_folder: run folder of the server.
        purpose: what this process does, for the message to another one.
        timeout: seconds to wait for another process that holds the lock.

    Raises:
        ServerError: another process holds the lock; the message names it.
    """

    def reason() -> str:
        return (
            f"{_holder(run_folder)} changes the server of {run_folder} just now, and this would "
            "interleave with it; nothing was changed: try again when it has ended"
        )

    with held_lock(run_folder / CHANGES_LOCK_FILE, timeout, reason):
        try:
            holder = {"pid": os.getpid(), "purpose": purpose, "since": time.strftime("%H:%M:%S")}
            write_private_file(run_folder / _HOLDER_FILE, json.dumps(holder))
            yield
        finally:
            (run_folder / _HOLDER_FILE).unlink(missing_ok=True)


def _holder(run_folder: Path) -> str:
    """Name the process that holds the lock, for a message."""
    try:
        holder = json.loads((run_folder / _HOLDER_FILE).read_text())
        return f"`{holder['purpose']}` (pid {holder['pid']}, since {holder['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        # Its holder has just taken the lock, or has just ended.
        return "another process"
