"""Holds single workers: a held worker computes nothing and takes nothing from its queue.

A hold is asked for and acknowledged by files beside the worker's socket. The other side is
``handlers/frontend/holding.py``, which runs in the worker.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from ..handlers.base.errors import ServerError
from .management import Worker

_RENEWAL_SHARE = 0.75
"""A hold that has lasted for this share of its time is renewed, so that it cannot expire in use."""


@dataclass(frozen=True)
class WorkerHold:
    """The hold of one worker, which need not have begun.

    Attributes:
        request_file: exists from the request until the worker acknowledges it.
        acknowledgement_file: exists while the worker is held; the worker renames the request file
            to it. Removing it releases the worker.
        max_seconds: time after which the worker goes on by itself.
    """

    request_file: Path
    acknowledgement_file: Path
    max_seconds: float

    @classmethod
    def of_worker(cls, worker: Worker, max_seconds: float) -> WorkerHold:
        """Find the files for a worker of this machine; this does not hold the worker yet.

        Raises:
            ServerError: the worker's process belongs to another machine or user.
        """
        try:
            process = psutil.Process(worker.pid)
            command = " ".join(process.cmdline())
            folder = Path(process.environ().get("TMPDIR", "/tmp"))
        except psutil.Error as error:
            raise ServerError(
                f"worker {worker.id} (pid {worker.pid}) cannot be reached from here: {error}"
            ) from error
        if "model_service_worker.py" not in command or worker.id not in command:
            raise ServerError(f"pid {worker.pid} is not worker {worker.id} on this machine")
        return cls(
            folder / f"ts-ensemble-hold-{worker.pid}",
            folder / f"ts-ensemble-held-{worker.pid}",
            max_seconds,
        )

    def is_active(self) -> bool:
        """Whether the worker is held, and will be for at least a quarter of the hold's time."""
        try:
            held_seconds = time.time() - self.acknowledgement_file.stat().st_ctime
        except FileNotFoundError:
            return False
        return held_seconds < _RENEWAL_SHARE * self.max_seconds

    def request(self) -> None:
        """Ask the worker to stop after its batch, unless it is held; an old hold is renewed."""
        if not self.is_active():
            self.acknowledgement_file.unlink(missing_ok=True)
        if not self.request_file.exists() and not self.acknowledgement_file.exists():
            with contextlib.suppress(FileExistsError):
                flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
                os.close(os.open(self.request_file, flags, 0o600))

    def release(self) -> None:
        """Let the worker go on, or withdraw a request that it has not seen."""
        self.request_file.unlink(missing_ok=True)
        self.acknowledgement_file.unlink(missing_ok=True)
