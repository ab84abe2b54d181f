"""Lets the server's owner hold this worker between two batches, and end it without losing requests.

When TorchServe scales down or unregisters a model, it ends workers with ``kill -9``, even while
they compute. A worker that is held computes nothing and takes no request from the queue, so that
ending it loses none. The owner holds a worker by creating a file in the server's temporary folder;
nobody who cannot write there can do so.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

MAX_HOLD_SECONDS = 20.0
"""A worker goes on after this time, even if the command that holds it was killed meanwhile."""

_POLL_SECONDS = 0.01


def hold_seconds(response_timeout: float) -> float:
    """Return the longest time that a worker is held, in seconds.

    Args:
        response_timeout: the model's response timeout in seconds. TorchServe takes an answer that
            comes later for the answer to the next request.
    """
    return min(MAX_HOLD_SECONDS, response_timeout / 2)


def hold_if_requested(response_timeout: float) -> None:
    """Wait as long as the owner of the server holds this worker; return at once if nobody does.

    The owner creates the file ``ts-ensemble-hold-PID``. The worker renames it to
    ``ts-ensemble-held-PID`` as a sign that it is held, and goes on when the owner removes that file
    or after `hold_seconds`.

    Args:
        response_timeout: the model's response timeout in seconds.
    """
    folder = Path(tempfile.gettempdir())
    request = folder / f"ts-ensemble-hold-{os.getpid()}"
    held = folder / f"ts-ensemble-held-{os.getpid()}"
    try:
        # With a plain `torchserve --start` everybody may be able to write into the folder.
        if request.lstat().st_uid not in (0, os.getuid()):
            return
        request.rename(held)
    except OSError:
        return
    deadline = time.monotonic() + hold_seconds(response_timeout)
    while held.exists() and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    held.unlink(missing_ok=True)
