"""What TorchServe's log says about its workers: which one died, and why."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from pathlib import Path

from ..handlers.base.errors import WorkerDiedError

_LINE = re.compile(
    r"^\S+ \[\w+ ?\] (?P<thread>W-\d+-\S+?)(?P<stream>-stdout|-stderr)? (?P<rest>.*)$"
)
_DIED = re.compile(r"State change \S+ -> WORKER_STOPPED")
_NOT_LOADED = re.compile(r"Failed to load model: (?P<archive>\S+)")
_TROUBLE = re.compile(r"\[ERROR\]|^(Exception in thread|Caused by: |[\w.$]+(Exception|Error)\b)")
_PRINTED = "MODEL_LOG - "
_LAST_LINE = "Stopped Scanner"
_LAST_LINE_SECONDS = 2.0
_NOISE = ("[METRICS]", "Backend received inference")


@dataclass(frozen=True)
class DeadWorker:
    """A worker that ended.

    Attributes:
        model: ``NAME_VERSION``, as TorchServe names it in its log.
        traceback: the worker's own traceback, or the last lines that it printed.
        reason: the line that says what went wrong.
        worker: its identifier in the management API.
    """

    model: str
    traceback: str
    reason: str
    worker: str = ""

    def error(self) -> WorkerDiedError:
        """The error for whoever waits until it has loaded its model."""
        return WorkerDiedError(
            f"the worker of {self.model} died while it loaded: {self.reason}", self.traceback
        )


@dataclass
class WorkerLog:
    """Follows a server's log from a position on.

    A death is told by the frontend's thread, the traceback by another one that reads the worker's
    output, so the traceback may come later: a death counts once the output has ended too.

    Attributes:
        path: the server's log.
        position: where reading goes on, in bytes.
    """

    path: Path
    position: int = 0
    _printed: dict[str, list[str]] = field(default_factory=dict)
    _died: dict[str, float] = field(default_factory=dict)
    _silent: set[str] = field(default_factory=set)
    _partial: bytes = b""

    def dead_workers(self) -> list[DeadWorker]:
        """Workers that ended since the last call."""
        for line in self._new_lines():
            self._read(line)
        now = time.monotonic()
        complete = [
            thread
            for thread, noticed in self._died.items()
            if thread in self._silent or now - noticed > _LAST_LINE_SECONDS
        ]
        return [self._take(thread) for thread in complete]

    def _new_lines(self) -> list[str]:
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            # A shorter file is a new one: the old one was rotated away.
            if self.path.stat().st_size < self.position:
                self.position, self._partial = 0, b""
            file.seek(self.position)
            content = file.read()
        self.position += len(content)
        *lines, self._partial = (self._partial + content).split(b"\n")
        return [line.decode(errors="replace") for line in lines]

    def _read(self, line: str) -> None:
        found = _LINE.match(line)
        if found is None:
            return
        thread, rest = found["thread"], found["rest"]
        if _PRINTED in rest:
            printed = rest.partition(_PRINTED)[2]
            if not any(noise in printed for noise in _NOISE):
                self._printed.setdefault(thread, []).append(printed)
        elif _LAST_LINE in rest and found["stream"] == "-stdout":
            self._silent.add(thread)
        elif found["stream"] is None and _DIED.search(rest):
            self._died[thread] = time.monotonic()

    def _take(self, thread: str) -> DeadWorker:
        del self._died[thread]
        self._silent.discard(thread)
        _, worker, model = thread.split("-", 2)
        return _dead(worker, model, self._printed.pop(thread, []))

    def not_loaded(self) -> dict[str, str]:
        """Archives that TorchServe was told to load at the start and could not -> its reason."""
        lines = self._text().splitlines()
        return {
            found["archive"]: next((text for text in lines[at + 1 : at + 2]), "")
            for at, line in enumerate(lines)
            if (found := _NOT_LOADED.search(line)) and "WARN" in line
        }

    def cause(self) -> str:
        """The log from where trouble starts; empty if it tells of none."""
        return trouble(self._text())

    def _text(self) -> str:
        return self.path.read_text(errors="replace") if self.path.exists() else ""


def trouble(text: str, lines: int = 15) -> str:
    """From the first line of a log that tells of trouble on; empty if none does."""
    all_lines = text.splitlines()
    start = next((i for i, line in enumerate(all_lines) if _TROUBLE.search(line)), len(all_lines))
    return "\n".join(all_lines[start : start + lines])


def _dead(worker: str, model: str, printed: list[str]) -> DeadWorker:
    first = next((i for i, line in enumerate(printed) if line.startswith("Traceback")), None)
    if first is None:
        shown = printed[-10:]
        last_words = f"its last line was: {shown[-1]}" if shown else "it printed nothing"
        reason = f"it ended without a traceback (killed, or out of memory?); {last_words}"
        return DeadWorker(model, "\n".join(shown), reason, worker)
    # The worker prints its traceback, then one more of TorchServe's own loop around it.
    last = next(
        (i for i in range(first, len(printed)) if printed[i].startswith("Backend worker process")),
        len(printed),
    )
    shown = printed[first:last] if last > first else printed[first:]
    reasons = [line for line in shown if re.match(r"[\w.]+(Error|Exception|Exit)\b", line)]
    reason = reasons[-1] if reasons else shown[-1]
    return DeadWorker(model, "\n".join(shown), reason, worker)
