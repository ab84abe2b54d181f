"""Counts the workers of a version, which share the cores of this machine."""

from __future__ import annotations

import os
from pathlib import Path

_PROCESSES = Path("/proc")


def count_workers(pid: int | None = None, processes: Path = _PROCESSES) -> int:
    """Count the processes that TorchServe runs for the version to which a worker belongs.

    The number in the archive is only the one of its registration, and nothing tells a worker when
    the version is scaled. TorchServe's Java is the parent of all workers, and gives the workers of
    one version the same ``PYTHONPATH``, which has the folder of their archive.

    Args:
        pid: process id of the worker; None: this process.
        processes: the folder in which Linux describes each process.

    Returns:
        The number, this worker included; 0 if it cannot be found out, as on other systems.
    """
    own = _family(processes / str(os.getpid() if pid is None else pid))
    if own is None:
        return 0
    return sum(_family(folder) == own for folder in processes.glob("[0-9]*"))


def _family(process: Path) -> tuple[str, bytes] | None:
    """Return a process's parent and PYTHONPATH; None if it has ended, or is another user's."""
    try:
        # The name of the program, in parentheses, may itself contain spaces and parentheses.
        parent = (process / "stat").read_text(errors="replace").rpartition(")")[2].split()[1]
        # os.environ may have been changed since the process started.
        variables = (process / "environ").read_bytes().split(b"\0")
    except (OSError, IndexError):
        return None
    path = next((each for each in variables if each.startswith(b"PYTHONPATH=")), None)
    return None if path is None else (parent, path)
