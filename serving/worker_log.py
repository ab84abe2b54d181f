"""Reads from TorchServe's log which workers died, and why."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from pathlib import Path

from ..handlers.base.errors import WorkerDiedError

# A line reads: time, [LEVEL ], name of the thread, text. The frontend has a thread for each worker,
# W-PORT-NAME_VERSION, and one for each of the worker's outputs, with -stdout or -stderr behind it.
_WORKER_LINE = re.compile(
    r"^\S+ \[\w+ ?\] (?P<thread>W-\d+-\S+?)(?P<stream>-stdout|-stderr)? (?P<rest>.*)$"
)
_DEATH = re.compile(r"State change \S+ -> WORKER_STOPPED")
_LOAD_FAILURE = re.compile(r"Failed to load model: (?P<archive>\S+)")
_ERROR_LINE = re.compile(r"\[ERROR\]|^(Exception in thread|Caused by: |[\w.$]+(Exception|Error)\b)")
_RAISED = re.compile(r"[\w.]+(Error|Exception|Exit)\b")
_PRINTED_BY_WORKER = "MODEL_LOG - "
_END_OF_OUTPUT = "Stopped Scanner"
_MAX_WAIT_FOR_OUTPUT_SECONDS = 2.0
# Lines that every healthy worker prints; they do not help to explain its death.
_IGNORED_OUTPUT = ("[METRICS]", "Backend received inference")
_MAX_SHOWN_LINES = 10


@dataclass(frozen=True)
class DeadWorker:
    """A worker that ended, and why.

    Attributes:
        model: ``NAME_VERSION``, as TorchServe names the model in its log.
        traceback: the worker's own traceback, or the last lines that the worker printed.
        reason: the line that says what went wrong.
        worker: the worker's identifier in the management API.
    """

    model: str
    traceback: str
    reason: str
    worker: str = ""

    def error(self) -> WorkerDiedError:
        """The error to raise to a caller who waits until this worker has loaded its model."""
        return WorkerDiedError(
            f"the worker of {self.model} died while it loaded: {self.reason}", self.traceback
        )


@dataclass
class WorkerLog:
    """Follows a server's log and collects what it says about each worker.

    One thread of the frontend logs the death of a worker, and another one logs the worker's
    output. The traceback may therefore follow the death, so a worker is reported as dead only when
    its output has ended, too.

    Attributes:
        path: the server's log.
        position: number of bytes that have been read.
    """

    path: Path
    position: int = 0
    _output: dict[str, list[str]] = field(default_factory=dict)
    """Name of a worker's thread -> the lines that the worker printed."""
    _death_times: dict[str, float] = field(default_factory=dict)
    """Name of a dead worker's thread -> the monotonic time at which its death was read."""
    _ended_outputs: set[str] = field(default_factory=set)
    """Names of the threads whose worker's output has ended."""
    _incomplete_line: bytes = b""

    def dead_workers(self) -> list[DeadWorker]:
        """The workers whose death was logged completely since the last call."""
        for line in self._new_lines():
            self._read(line)
        now = time.monotonic()
        complete = [
            thread
            for thread, death_time in self._death_times.items()
            if thread in self._ended_outputs or now - death_time > _MAX_WAIT_FOR_OUTPUT_SECONDS
        ]
        return [self._remove_dead(thread) for thread in complete]

    def failed_archives(self) -> dict[str, str]:
        """The archives that TorchServe could not load at its start, each with the reason."""
        lines = self._text().splitlines()
        return {
            failure["archive"]: next((text for text in lines[at + 1 : at + 2]), "")
            for at, line in enumerate(lines)
            if (failure := _LOAD_FAILURE.search(line)) and "WARN" in line
        }

    def from_first_error(self) -> str:
        """The lines of the log that begin with its first error; empty if it has no error."""
        return from_first_error(self._text())

    def _new_lines(self) -> list[str]:
        """Read the lines that were completed since the last call."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            # The log is rotated: a file that is shorter than before is a new file.
            if self.path.stat().st_size < self.position:
                self.position, self._incomplete_line = 0, b""
            file.seek(self.position)
            content = file.read()
        self.position += len(content)
        *lines, self._incomplete_line = (self._incomplete_line + content).split(b"\n")
        return [line.decode(errors="replace") for line in lines]

    def _read(self, line: str) -> None:
        """Note what one line says about a worker: its output, the output's end, or its death."""
        match = _WORKER_LINE.match(line)
        if match is None:
            return
        thread, rest = match["thread"], match["rest"]
        if _PRINTED_BY_WORKER in rest:
            printed = rest.partition(_PRINTED_BY_WORKER)[2]
            if not any(ignored in printed for ignored in _IGNORED_OUTPUT):
                self._output.setdefault(thread, []).append(printed)
        elif _END_OF_OUTPUT in rest and match["stream"] == "-stdout":
            self._ended_outputs.add(thread)
        elif match["stream"] is None and _DEATH.search(rest):
            self._death_times[thread] = time.monotonic()

    def _remove_dead(self, thread: str) -> DeadWorker:
        """Remove what was collected about a dead worker, and return it."""
        del self._death_times[thread]
        self._ended_outputs.discard(thread)
        _, worker, model = thread.split("-", 2)
        return _dead_worker(worker, model, self._output.pop(thread, []))

    def _text(self) -> str:
        """Return the whole log; empty if it does not exist yet."""
        return self.path.read_text(errors="replace") if self.path.exists() else ""


def from_first_error(text: str, max_lines: int = 15) -> str:
    """The lines of a log that begin with its first error; empty if it has no error.

    Args:
        text: the log.
        max_lines: number of lines to return at most.
    """
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if _ERROR_LINE.search(line)), len(lines))
    return "\n".join(lines[start : start + max_lines])


def _dead_worker(worker: str, model: str, output: list[str]) -> DeadWorker:
    """Find the traceback and the reason of a death in what the worker printed.

    Args:
        worker: the worker's identifier.
        model: ``NAME_VERSION`` of its model.
        output: the lines that the worker printed.
    """
    first = next((i for i, line in enumerate(output) if line.startswith("Traceback")), None)
    if first is None:
        shown = output[-_MAX_SHOWN_LINES:]
        if errors := [line for line in shown if _RAISED.match(line)]:
            return DeadWorker(model, "\n".join(shown), errors[-1], worker)
        last_line = f"its last line was: {shown[-1]}" if shown else "it printed nothing"
        reason = f"it ended without a traceback (killed, or out of memory?); {last_line}"
        return DeadWorker(model, "\n".join(shown), reason, worker)
    # After its own traceback the worker prints another one, of TorchServe's loop around it.
    last = next(
        (i for i in range(first, len(output)) if output[i].startswith("Backend worker process")),
        len(output),
    )
    shown = output[first:last] if last > first else output[first:]
    reasons = [line for line in shown if _RAISED.match(line)]
    reason = reasons[-1] if reasons else shown[-1]
    return DeadWorker(model, "\n".join(shown), reason, worker)
