"""Let the owner of the server take this worker out of service between two batches.

TorchServe ends a worker with ``kill -9`` when it scales down or unregisters, whatever the worker is
computing. A worker that is held computes nothing and takes nothing from the queue, so ending it
loses no request. Only whoever can write into the server's temporary folder can hold a worker.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

MAX_HOLD_SECONDS = 20.0
"""A verb that was killed must not keep a worker for longer."""

_POLL_SECONDS = 0.01


def hold_seconds(response_timeout: float) -> float:
    """How long a worker is held at most.

    Args:
        response_timeout: seconds after which TorchServe takes an answer of the worker for lost, and
            confuses it with the next one if it comes after all.
    """
    return min(MAX_HOLD_SECONDS, response_timeout / 2)


def hold_if_asked(response_timeout: float) -> None:
    """Wait while this worker is to be held; return at once otherwise.

    The request is the file ``ts-ensemble-hold-PID``. Renaming it to ``ts-ensemble-held-PID``
    acknowledges it; removing that file releases the worker.

    Args:
        response_timeout: of the model, in seconds.
    """
    folder = Path(tempfile.gettempdir())
    asked = folder / f"ts-ensemble-hold-{os.getpid()}"
    held = folder / f"ts-ensemble-held-{os.getpid()}"
    try:
        # The folder of a plain `torchserve --start` may be one that everybody can write to.
        if asked.lstat().st_uid not in (0, os.getuid()):
            return
        asked.rename(held)
    except OSError:
        return
    deadline = time.monotonic() + hold_seconds(response_timeout)
    while held.exists() and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    held.unlink(missing_ok=True)
