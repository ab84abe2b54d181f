"""The worker's side of the process in which a shadow's new members run."""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from .candidate_messages import receive, send

logger = logging.getLogger(__name__)

_MAX_PAUSE_SECONDS = 60.0
"""A process that ends again and again is started anew after 1, 2, 4 ... seconds, at most these."""

_POLL_SECONDS = 0.1
"""A process that is late is looked at so often."""

_SECONDS_TO_TRANSFER = 5.0
"""A message that has begun must be through in this time."""


class NotRunningError(Exception):
    """The candidate's process has ended or could not be started."""


class CandidateProcess:
    """Starts the process, asks it, and ends it if it hangs.

    It belongs to one thread; only `pause` and `resume` may be called by another one.
    """

    def __init__(self, command: Sequence[str], *, startup_seconds: float) -> None:
        """Keep how the process is started.

        Args:
            command: the program and its arguments. The number of the file descriptor of the
                connection is added.
            startup_seconds: time in which it must have loaded the members.
        """
        self._command = list(command)
        self._startup_seconds = startup_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._pause_seconds = 1.0
        self._may_start_at = 0.0
        self._lock = threading.Lock()
        self._computes = self._is_held = False
        self._stopped_at: float | None = None
        self._stopped_seconds = 0.0

    @property
    def pid(self) -> int | None:
        """The process; None if it does not run."""
        return None if self._process is None else self._process.pid

    def pause(self) -> None:
        """Stop the process while the worker computes. It is not stopped while it loads."""
        with self._lock:
            self._is_held = True
            self._stop_or_continue()

    def resume(self) -> None:
        """Let the process go on: the worker waits for requests."""
        with self._lock:
            self._is_held = False
            self._stop_or_continue()

    def _set_computes(self, computes: bool) -> None:
        """Note whether the process computes; it must run while a message is transferred."""
        with self._lock:
            self._computes = computes
            self._stop_or_continue()

    def _stop_or_continue(self) -> None:
        """Stop or continue the process, if that is due. The lock must be held."""
        must_stop = self._is_held and self._computes
        if must_stop is (self._stopped_at is not None):
            return
        now = time.monotonic()
        if self._stopped_at is not None:
            self._stopped_seconds += now - self._stopped_at
        self._stopped_at = now if must_stop else None
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP if must_stop else signal.SIGCONT)

    def _running_seconds(self) -> float:
        """Return a clock that stands still while the process is stopped."""
        with self._lock:
            now = time.monotonic() if self._stopped_at is None else self._stopped_at
            return now - self._stopped_seconds

    def ensure_running(self) -> None:
        """Start the process if it does not run, and wait until it has loaded the members.

        Raises:
            NotRunningError: it ended while it loaded, or has ended so often that it is not started
                yet again.
        """
        if self._process is not None and self._process.poll() is None:
            return
        self.end()
        if time.monotonic() < self._may_start_at:
            raise NotRunningError("it waits to be started again")
        ours, theirs = socket.socketpair()
        self._connection = ours
        # The worker's PYTHONPATH begins with the archive, whose root must not be imported from.
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [*self._command, str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    env=environment,
                )
            _yield_to_others(self._process.pid)
            receive(ours, self._startup_seconds)
        except (OSError, EOFError) as error:
            self._give_up(f"it could not be started: {error!r}")

    def ask(self, content: object, seconds: float) -> Any:
        """Send a message and return the answer.

        Args:
            content: the message.
            seconds: time in which the answer must begin to arrive.

        Raises:
            TimeoutError: it has not. `recover` must be called before the next message.
            NotRunningError: the process has ended.
        """
        assert self._connection is not None
        end = time.monotonic() + seconds
        self._set_computes(False)
        try:
            send(self._connection, content, _SECONDS_TO_TRANSFER)
        except OSError as error:
            self._give_up(f"it does not read: {error!r}")
        self._set_computes(True)
        if not self._has_answer(end - time.monotonic()):
            raise TimeoutError
        answer = self._receive()
        self._pause_seconds = 1.0
        return answer

    def recover(self, seconds: float) -> None:
        """Wait for a late answer and throw it away; end the process if none comes.

        Args:
            seconds: time to wait, without the time for which the process was stopped.

        Raises:
            NotRunningError: the process has ended, or was ended.
        """
        end = self._running_seconds() + seconds
        while not self._has_answer(min(seconds, _POLL_SECONDS)):
            if self._running_seconds() >= end:
                self._give_up(f"it did not answer for {seconds:.0f} more seconds and was ended")
        self._receive()

    def end(self) -> None:
        """End the process, whatever it does."""
        self._set_computes(False)
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _has_answer(self, seconds: float) -> bool:
        assert self._connection is not None
        readable, _, _ = select.select([self._connection], [], [], max(0.0, seconds))
        return bool(readable)

    def _receive(self) -> Any:
        assert self._connection is not None
        self._set_computes(False)
        try:
            return receive(self._connection, _SECONDS_TO_TRANSFER)
        except (OSError, EOFError) as error:
            self._give_up(f"its answer did not arrive: {error!r}")

    def _give_up(self, reason: str) -> NoReturn:
        """End the process, and let some time pass before it is started again.

        Raises:
            NotRunningError: always.
        """
        status = None if self._process is None else self._process.poll()
        self.end()
        self._may_start_at = time.monotonic() + self._pause_seconds
        logger.error(
            "the candidate's process is not running: %s%s; it is started again in %.0f s",
            reason,
            "" if status is None else f" (exit status {status})",
            self._pause_seconds,
        )
        self._pause_seconds = min(_MAX_PAUSE_SECONDS, 2 * self._pause_seconds)
        raise NotRunningError(reason)


def _yield_to_others(pid: int) -> None:
    """Let a process compute only when no other one wants the core; its new threads inherit this."""
    try:
        os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
    except (AttributeError, PermissionError):  # Not on Linux, or forbidden in a container.
        os.setpriority(os.PRIO_PROCESS, pid, 19)
