"""Runs code that nobody trusts in a process that can reach nothing, and takes its answer.

The process gets the file that it works on as an open descriptor, and a pipe for its answer. It has
an empty environment and no other descriptor. It first imports what the work needs, which is code of
this installation alone; then `confinement` takes its rights away, and only then it reads the file.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from threading import Event, Timer
from typing import IO, Any, BinaryIO, Protocol, cast

from ..handlers.base.errors import MemberError
from ..handlers.base.quoting import shown
from .confinement import (
    READ_FILES,
    START_PROCESSES,
    USE_NETWORK,
    NoSandboxError,
    end_with_parent,
    forbid_system_calls,
    limit_resources,
)

# The process gets the import path of this one, and nothing else of its surroundings.
_PROGRAM = (
    "import json, sys; arguments = json.loads(sys.argv[1]); sys.path[:] = arguments.pop('path'); "
    f"from {__name__} import work; work(**arguments)"
)
# Without the user's environment and packages, without writing byte code, without warnings.
_OPTIONS = ("-I", "-B", "-W", "ignore")
# Libraries would start threads for each processor while they are imported.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_BLOCK_BYTES = 1024**2
_MAX_REPORT_BYTES = 1024**2

_WHAT_WAS_TRIED = {
    READ_FILES: "tried to open, change or look for a file",
    USE_NETWORK: "tried to use the network",
    START_PROCESSES: "tried to start a process or thread, or to reach another process",
}
_EXPLAINED_SIGNALS = {
    signal.SIGSYS: "made a system call that no program on this machine needs",
    signal.SIGXCPU: "used all the processor time that it may have",
    signal.SIGKILL: "was ended by the system, perhaps because memory ran out",
}


@dataclass(frozen=True)
class Bounds:
    """What a confined process may use.

    Attributes:
        seconds: time, on the clock and on the processor.
        memory_bytes: memory beyond that of the imported libraries.
        output_bytes: length of the answer.
    """

    seconds: float
    memory_bytes: int
    output_bytes: int


class Job(Protocol):
    """A module with the work of a confined process."""

    def warm_up(self) -> None:
        """Import everything that `answer` needs, since a confined process can import nothing."""

    def answer(self, source: BinaryIO, **arguments: Any) -> Iterator[dict[str, Any] | memoryview]:
        """Yield a report as an object of JSON, and then the blocks of the answer."""


def run_confined(
    job: str,
    source: Path,
    bounds: Bounds,
    write: Callable[[bytes], object],
    *,
    arguments: dict[str, Any] | None = None,
    confined: bool = True,
) -> dict[str, Any]:
    """Let a module work on a file in a confined process.

    The report and the blocks may have been written by whatever code the file holds. The caller must
    check them as it would check the file.

    Args:
        job: name of the module, see `Job`.
        source: the file, which the process gets as an open descriptor.
        bounds: what the process may use.
        write: called with each block of the answer.
        arguments: further arguments of the job's `answer`.
        confined: False only limits resources, for machines without a filter of system calls.

    Returns:
        The job's report.

    Raises:
        MemberError: the file cannot be read, the process failed, tried something that it must not,
            or exceeded a bound; or this machine cannot confine a process.
    """
    child_arguments = {
        "path": [entry for entry in sys.path if Path(entry).is_absolute()],
        "job": job,
        "arguments": arguments or {},
        "memory_bytes": bounds.memory_bytes,
        # Ends the process if this one cannot do so any more.
        "cpu_seconds": int(bounds.seconds) + 5,
        "confined": confined,
    }
    try:
        file = source.open("rb")
    except OSError as error:
        raise MemberError(f"{source}: cannot be read: {error.strerror}") from error
    with (
        file,
        subprocess.Popen(
            [sys.executable, *_OPTIONS, "-c", _PROGRAM, json.dumps(child_arguments)],
            stdin=file,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_ENVIRONMENT,
            cwd="/",
            start_new_session=True,
        ) as process,
    ):
        is_late = Event()

        def end() -> None:
            is_late.set()
            process.kill()

        # The time for imports, which are trusted, does not count; the process says when it begins.
        timer = Timer(bounds.seconds, end)
        try:
            answer = cast("IO[bytes]", process.stdout)
            state = _line(answer, source)
            timer.start()
            # Only now does the process read the file, whose code could send any report.
            report = _line(answer, source) if state == {"ready": True} else state
            _copy(answer, write, bounds.output_bytes, source)
            status = process.wait()
        finally:
            timer.cancel()
            process.kill()
    if is_late.is_set():
        raise MemberError(
            f"{source}: not loaded after {bounds.seconds:g} seconds, and ended; if the file is "
            "very large, --timeout SECONDS waits longer"
        )
    if state.get("kind") == "no sandbox":
        raise MemberError(
            f"{source}: this machine cannot confine a process ({state.get('detail')}), and a "
            "pickle may run any code; convert it on Linux, or give --without-sandbox if you trust "
            "whoever made the file as you trust your own code"
        )
    _raise_failure(source, report, status, bounds)
    return report


def work(
    job: str, arguments: dict[str, Any], memory_bytes: int, cpu_seconds: int, confined: bool
) -> None:
    """Do the work of the confined process, which `run_confined` starts."""
    end_with_parent()
    module = cast("Job", import_module(job))
    module.warm_up()
    # Opened anew, since sys.stdin has a name, which some readers of files look for on the disk.
    source, answer = os.fdopen(0, "rb", closefd=False), sys.stdout.buffer
    # What the work prints must not mix with the answer.
    sys.stdout = sys.stderr
    os.closerange(3, 65536)
    try:
        limit_resources(memory_bytes=memory_bytes, cpu_seconds=cpu_seconds)
        if confined:
            forbid_system_calls()
    except NoSandboxError as error:
        _end(answer, {"kind": "no sandbox", "detail": str(error)})
    _send(answer, {"ready": True})
    try:
        for block in module.answer(source, **arguments):
            if isinstance(block, dict):
                _send(answer, block)
            else:
                answer.write(block)
        answer.flush()
    except BaseException as error:
        _end(answer, _described(error))
    os._exit(0)


def _described(error: BaseException) -> dict[str, Any]:
    """Return what a confined process reports of an error."""
    if isinstance(error, MemberError):
        return {"kind": "refused", "detail": str(error)}
    detail = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or "allocate memory" in detail:
        return {"kind": "memory", "detail": detail}
    if isinstance(error, RuntimeError) and "start new thread" in detail:
        return {"kind": "call", "call": START_PROCESSES, "detail": detail}
    if isinstance(error, OSError):
        return {"kind": "call", "call": error.errno, "detail": detail}
    return {"kind": "error", "detail": detail}


def _send(answer: BinaryIO, content: dict[str, Any]) -> None:
    answer.write(json.dumps(content).encode() + b"\n")
    answer.flush()


def _end(answer: BinaryIO, failure: dict[str, Any]) -> None:
    """Report a failure, and end without any clean-up that code of the file could have changed."""
    _send(answer, failure)
    os._exit(1)


def _line(answer: IO[bytes], source: Path) -> dict[str, Any]:
    """Read one line with an object of JSON; an empty one if the process has ended.

    Raises:
        MemberError: the line is something else.
    """
    line = answer.readline(_MAX_REPORT_BYTES)
    if not line:
        return {}
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise MemberError(f"{source}: the confined process did not answer as it must")
    return content


def _copy(
    answer: IO[bytes], write: Callable[[bytes], object], max_bytes: int, source: Path
) -> None:
    num_bytes = 0
    while block := answer.read(_BLOCK_BYTES):
        num_bytes += len(block)
        if num_bytes > max_bytes:
            raise MemberError(
                f"{source}: the result has more than {max_bytes / 1e6:,.0f} MB; if the file is "
                "trusted to need it, --memory MB allows more"
            )
        write(block)


def _raise_failure(source: Path, report: dict[str, Any], status: int, bounds: Bounds) -> None:
    """Raise what a process reported, or what its exit status says.

    Raises:
        MemberError: the process failed.
    """
    kind, detail = report.get("kind"), shown(str(report.get("detail", "")))
    call = report.get("call") if kind == "call" else None
    tried = _WHAT_WAS_TRIED.get(call) if isinstance(call, int) else None
    if kind == "refused":
        raise MemberError(f"{source}: {_printable(report.get('detail'))}")
    if kind == "memory":
        raise MemberError(
            f"{source}: needs more than the {bounds.memory_bytes / 1e6:,.0f} MB of memory that it "
            "may have; if the file is trusted to need them, --memory MB allows more"
        )
    if tried is not None:
        raise MemberError(
            f"{source}: the code in this file {tried}, which its sandbox does not allow ({detail})"
        )
    if kind is not None:
        raise MemberError(f"{source}: cannot be loaded ({detail})")
    if status < 0:
        name = signal.Signals(-status).name
        what = _EXPLAINED_SIGNALS.get(signal.Signals(-status), "crashed while it was loaded")
        raise MemberError(f"{source}: the code in this file {what} ({name})")
    if status != 0 or not report:
        raise MemberError(
            f"{source}: the confined process ended before its answer was whole (exit {status})"
        )


def _printable(detail: object) -> str:
    """Return a sentence of the confined process, short and without control characters."""
    text = str(detail)[:2000]
    return "".join(each if each.isprintable() else "?" for each in text)
