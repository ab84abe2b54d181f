"""What TorchServe's console says about its workers: which one died, and why."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

_LINE = re.compile(
    r"^\S+ \[\w+ ?\] (?P<thread>W-\d+-\S+?)(?P<stream>-stdout|-stderr)? (?P<rest>.*)$"
)
_DIED = re.compile(r"State change \S+ -> WORKER_STOPPED")
_PRINTED = "MODEL_LOG - "
_NOISE = ("[METRICS]", "Backend received inference")


@dataclass(frozen=True)
class DeadWorker:
    """A worker that ended.

    Attributes:
        model: ``NAME_VERSION``, as TorchServe names it in its log.
        traceback: the worker's own traceback, or the last lines that it printed.
        reason: the line that says what went wrong.
    """

    model: str
    traceback: str
    reason: str


@dataclass
class WorkerLog:
    """Follows a console log from a position on.

    Attributes:
        path: the server's console output.
        position: where reading goes on, in bytes.
    """

    path: Path
    position: int = 0
    _printed: dict[str, list[str]] = field(default_factory=dict)
    _partial: bytes = b""

    def dead_workers(self) -> list[DeadWorker]:
        """Workers that ended since the last call."""
        with self.path.open("rb") as file:
            file.seek(self.position)
            content = file.read()
        self.position += len(content)
        *lines, self._partial = (self._partial + content).split(b"\n")
        return [dead for line in lines if (dead := self._read(line.decode(errors="replace")))]

    def _read(self, line: str) -> DeadWorker | None:
        found = _LINE.match(line)
        if found is None:
            return None
        thread, rest = found["thread"], found["rest"]
        if _PRINTED in rest:
            printed = rest.partition(_PRINTED)[2]
            if not any(noise in printed for noise in _NOISE):
                self._printed.setdefault(thread, []).append(printed)
        elif _DIED.search(rest) and found["stream"] is None:
            printed_lines = self._printed.pop(thread, [])
            return _dead(thread.split("-", 2)[2], printed_lines)
        return None

    def tail(self, lines: int = 15) -> str:
        """The last lines of the log."""
        text = self.path.read_text(errors="replace") if self.path.exists() else ""
        return "\n".join(text.splitlines()[-lines:])


def _dead(model: str, printed: list[str]) -> DeadWorker:
    first = next((i for i, line in enumerate(printed) if line.startswith("Traceback")), None)
    if first is None:
        shown = printed[-10:]
        last_words = f"its last line was: {shown[-1]}" if shown else "it printed nothing"
        reason = f"it ended without a traceback (killed, or out of memory?); {last_words}"
        return DeadWorker(model, "\n".join(shown), reason)
    # The worker prints its traceback, then one more of TorchServe's own loop around it.
    last = next(
        (i for i in range(first, len(printed)) if printed[i].startswith("Backend worker process")),
        len(printed),
    )
    shown = printed[first:last] if last > first else printed[first:]
    reasons = [line for line in shown if re.match(r"[\w.]+(Error|Exception|Exit)\b", line)]
    return DeadWorker(model, "\n".join(shown), reasons[-1] if reasons else shown[-1])
