"""The process in which a shadow's new members run: on one thread, when no core is wanted.

It computes on the CPU, also beside a worker that uses a GPU, whose speed it then does not touch.
"""

from __future__ import annotations

import ctypes
import logging
import signal
import socket
import sys
from pathlib import Path

from .candidate_messages import receive, send

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
"""Operation of Linux' prctl: the signal that this process gets when its parent's thread ends."""


def _end_with_parent() -> None:
    """Have this process killed when the worker ends, even if it hangs then."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def serve(spec_path: Path, connection: socket.socket) -> None:
    """Load the new members, and compute them for each message until the worker is gone.

    Args:
        spec_path: the spec, which has a `rollout` with new members.
        connection: connection to the worker.

    Raises:
        SpecError, MemberError: the spec or a member cannot be loaded.
    """
    import torch

    from ..engine.runtime import Runtime
    from ..spec import Engine, load_spec
    from .shadow import new_members
    from .transfer import inputs_from_message, scores_to_message

    torch.set_num_threads(1)
    spec = load_spec(spec_path)
    runtime = Runtime.load(
        spec.only(new_members(spec)),
        spec_path.parent,
        torch.device("cpu"),
        compiled=spec.runtime.engine is not Engine.TORCH,
    )
    send(connection, "ready")
    while True:
        try:
            message = receive(connection)
        except EOFError:
            return
        send(connection, scores_to_message(runtime.run(inputs_from_message(message))))


def main(spec_path: Path, descriptor: int) -> None:
    """Run the process.

    Args:
        spec_path: the spec, whose archive was checked, because compiled executables are run.
        descriptor: number of the file descriptor of the connection to the worker.
    """
    _end_with_parent()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="candidate: %(message)s")
    with socket.socket(fileno=descriptor) as connection:
        serve(spec_path, connection)
