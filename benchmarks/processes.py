"""Starts server processes, measures them with all their children, and always ends them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

_END_SECONDS = 10
"""Time for processes to end after SIGTERM, and again after SIGKILL."""


@contextmanager
def started(
    command: Sequence[str], log: Path, environment: Mapping[str, str]
) -> Iterator[psutil.Popen]:
    """Start a process. When the context ends, the process and all its children are ended.

    Args:
        command: the command and its arguments.
        log: file for everything that the process prints.
        environment: variables in addition to those of this process.
    """
    with log.open("wb") as output:
        process = _start(command, output, environment)
        try:
            yield process
        finally:
            end(process)


def _start(
    command: Sequence[str], output: IO[bytes], environment: Mapping[str, str]
) -> psutil.Popen:
    """Start a process in a session of its own, and write everything that it prints to a file."""
    return psutil.Popen(
        list(command),
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        # In a session of its own the server does not get an interrupt from the keyboard. This
        # program gets it, and ends the servers.
        start_new_session=True,
    )


def end(process: psutil.Process) -> None:
    """Terminate a process and its children, and kill those that do not end in time."""
    # The children are listed first, because children of a dead process cannot be found.
    family = processes(process.pid)
    with contextlib.suppress(psutil.NoSuchProcess):
        process.terminate()
    psutil.wait_procs([process], timeout=_END_SECONDS)
    _, alive = psutil.wait_procs(family, timeout=1)
    for each in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.terminate()
    _, alive = psutil.wait_procs(alive, timeout=_END_SECONDS)
    for each in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    psutil.wait_procs(alive, timeout=_END_SECONDS)


def processes(pid: int) -> list[psutil.Process]:
    """List a process and all its children; empty if the process has ended."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_seconds(pid: int) -> float:
    """Add up the user and system time that a process and all its children have used so far."""
    seconds = 0.0
    for each in processes(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = each.cpu_times()
            # The times of children that have ended are kept by their parent.
            seconds += times.user + times.system + times.children_user + times.children_system
    return seconds


@dataclass(frozen=True)
class Memory:
    """Memory of a process and its children, in megabytes (10^6 bytes).

    A page that several processes share counts in each of them by its share (PSS).

    Attributes:
        total: memory of all processes.
        without_java: memory of all processes except Java.
    """

    total: float = 0
    without_java: float = 0

    @classmethod
    def of(cls, pid: int) -> Memory:
        """Measure the memory of a process and all its children."""
        total = java = 0
        for each in processes(pid):
            # A process that is just ending raises AccessDenied or NoSuchProcess.
            with contextlib.suppress(psutil.Error):
                share = each.memory_full_info().pss
                total += share
                java += share if each.name() == "java" else 0
        return cls(round(total / 1e6, 1), round((total - java) / 1e6, 1))

    def peak(self, other: Memory) -> Memory:
        """Return the larger value of each attribute."""
        return Memory(max(self.total, other.total), max(self.without_java, other.without_java))


class MemoryWatch:
    """Measures the memory of a process and its children again and again in a thread.

    Attributes:
        peak: the largest memory so far.
    """

    def __init__(self, pid: int, seconds: float) -> None:
        """Prepare the thread, which runs within a ``with`` block.

        Args:
            pid: id of the process.
            seconds: time between two measurements.
        """
        self.peak = Memory()
        self._pid = pid
        self._seconds = seconds
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        # The first measurement waits, because memory has not grown yet and measuring takes time.
        while not self._done.wait(self._seconds):
            self.peak = self.peak.peak(Memory.of(self._pid))
