"""Server processes: started, counted with all their children, and ended whatever happens."""

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


@contextmanager
def started(
    command: Sequence[str], log: Path, environment: Mapping[str, str]
) -> Iterator[psutil.Popen]:
    """A process; it and all its children have ended when the context ends."""
    with log.open("wb") as output:
        process = _start(command, output, environment)
        try:
            yield process
        finally:
            end(process)


def _start(
    command: Sequence[str], output: IO[bytes], environment: Mapping[str, str]
) -> psutil.Popen:
    return psutil.Popen(
        list(command),
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        # An interrupt at the keyboard reaches this program, which then ends the servers.
        start_new_session=True,
    )


def end(process: psutil.Process) -> None:
    """Terminate a process and its children; kill those that stay."""
    # Children are asked for first: those of a dead parent cannot be found any more.
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
    """A process and all its children."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and all its children, so far."""
    found = 0.0
    for each in processes(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = each.cpu_times()
            # Children that ended are counted at their parent.
            found += times.user + times.system + times.children_user + times.children_system
    return found


@dataclass(frozen=True)
class Memory:
    """Megabytes (10^6); shared pages count by their share (PSS)."""

    total: float = 0
    without_java: float = 0

    @classmethod
    def of(cls, pid: int) -> Memory:
        """What a process and all its children have now."""
        total = java = 0
        for each in processes(pid):
            # AccessDenied and NoSuchProcess: it ends just now.
            with contextlib.suppress(psutil.Error):
                share = each.memory_full_info().pss
                total += share
                java += share if each.name() == "java" else 0
        return cls(round(total / 1e6, 1), round((total - java) / 1e6, 1))

    def peak(self, other: Memory) -> Memory:
        """The larger of each."""
        return Memory(max(self.total, other.total), max(self.without_java, other.without_java))


class MemoryWatch:
    """Samples the memory of a process and its children beside other work."""

    def __init__(self, pid: int, seconds: float) -> None:
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
        # Not at the start: nothing has grown yet, and the sample itself takes time.
        while not self._done.wait(self._seconds):
            self.peak = self.peak.peak(Memory.of(self._pid))
