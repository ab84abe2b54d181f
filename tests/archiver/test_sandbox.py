"""Tests that a confined process can do nothing but compute: hostile pickles run in it."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

from torchserve_ensemble.archiver.sandbox import Bounds, run_confined
from torchserve_ensemble.handlers.base.errors import MemberError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="seccomp is Linux's")

SMALL = Bounds(seconds=60, memory_bytes=200_000_000, output_bytes=1_000_000)


class Hostile:
    """An object whose pickle runs a program, and becomes the value of its name `result`."""

    def __init__(self, program: str) -> None:
        self.program = program

    def __reduce__(self) -> tuple[Any, ...]:
        # One expression: it runs the program in a dict of names, and takes one out of it.
        text = (
            f"(lambda names: (exec({self.program!r}, names), names.get('result'))[1])"
            "({'__builtins__': __builtins__})"
        )
        return eval, (text,)


def run(
    folder: Path,
    program: str,
    bounds: Bounds = SMALL,
    job: str = "hostile_job",
    *,
    confined: bool = True,
) -> tuple[Any, bytes]:
    file = folder / "hostile.pt"
    file.write_bytes(pickle.dumps(Hostile(program)))
    written = bytearray()
    report = run_confined(job, file, bounds, written.extend, confined=confined)
    return report["result"], bytes(written)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("open('/etc/passwd').read()", "tried to open, change or look for a file"),
        ("open('MARKER', 'w').write('x')", "tried to open, change or look for a file"),
        ("import os; os.unlink('VICTIM')", "tried to open, change or look for a file"),
        ("import os; os.rename('VICTIM', 'MARKER')", "tried to open, change or look for a file"),
        ("import os; os.stat('VICTIM')", "tried to open, change or look for a file"),
        ("import os; os.listdir('/')", "tried to open, change or look for a file"),
        ("import socket; socket.socket()", "tried to use the network"),
        ("import socket; socket.socketpair()", "tried to use the network"),
        ("import subprocess; subprocess.run(['touch', 'MARKER'])", "tried to start a process"),
        ("import os; os.fork()", "tried to start a process"),
        ("import os; os.posix_spawn('/bin/touch', ['touch', 'MARKER'], {})", "start a process"),
        ("import os; os.execv('/bin/touch', ['touch', 'MARKER'])", "tried to start a process"),
        ("import threading; threading.Thread(target=print).start()", "tried to start a process"),
        (f"import os; os.kill({os.getpid()}, 9)", "to reach another process"),
        ("x = bytearray(10**9)", "needs more than the 200 MB of memory"),
        ("x = []\nwhile True: x.append(bytearray(10**6))", "needs more than the 200 MB"),
        ("import os; os._exit(0)", "ended before its answer was whole"),
        ("import ctypes; ctypes.string_at(0)", r"crashed while it was loaded \(SIGSEGV\)"),
        ("import ctypes; ctypes.CDLL(None).syscall(0x40000000 + 39)", "SIGSYS"),
        ("result = b'x' * 2_000_000", "the result has more than 1 MB"),
        ("import sys; sys.setrecursionlimit(10**6); raise ValueError('\\x1b[2J')", "x1b"),
        ("import pathlib_that_is_missing", "cannot be loaded|tried to open"),
    ],
)
def test_hostile_code_is_stopped_with_its_own_message(
    tmp_path: Path, program: str, message: str
) -> None:
    victim, marker = tmp_path / "victim", tmp_path / "marker"
    victim.write_text("whole")
    program = program.replace("VICTIM", str(victim)).replace("MARKER", str(marker))
    with pytest.raises(MemberError, match=message) as caught:
        run(tmp_path, program)
    assert str(caught.value).startswith(str(tmp_path / "hostile.pt"))
    assert caught.value.message.isprintable()
    assert victim.read_text() == "whole"
    assert not marker.exists()


@pytest.mark.parametrize("program", ["while True: pass", "import time; time.sleep(1000)"])
def test_what_never_ends_is_ended(tmp_path: Path, program: str) -> None:
    bounds = Bounds(seconds=0.5, memory_bytes=200_000_000, output_bytes=1)
    with pytest.raises(MemberError, match="not loaded after 0.5 seconds"):
        run(tmp_path, program, bounds)


def test_no_fork_of_a_fork_bomb_succeeds(tmp_path: Path) -> None:
    program = (
        "import os\nresult = 0\nfor _ in range(1000):\n"
        "  try:\n    os.fork()\n    result += 1\n  except OSError: pass"
    )
    assert run(tmp_path, program) == (0, b"")


def test_a_thread_of_an_imported_library_is_confined_too(tmp_path: Path) -> None:
    program = "import hostile_job; result = hostile_job.opened_by_an_older_thread()"
    assert run(tmp_path, program) == ("PermissionError", b"")


def test_the_process_has_no_other_file_and_no_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TS_ENSEMBLE_TOKEN", "secret")
    program = (
        "import os\nresult = sorted(os.environ)\nfor number in range(3, 100):\n"
        "  try: result.append(str(os.fstat(number)))\n  except OSError: pass"
    )
    with (tmp_path / "secret").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        names, _ = run(tmp_path, program)
    assert names == ["MKL_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"] or names == [
        "LC_CTYPE",
        "MKL_NUM_THREADS",
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
    ]


def test_calls_that_no_list_names_are_refused(tmp_path: Path) -> None:
    # io_uring_setup, bpf, userfaultfd, prctl, mount, shmget, dup: what a list could have forgotten.
    program = (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nresult = []\n"
        "for number in (425, 321, 323, 157, 165, 29, 32, 451, 9999):\n"
        "  libc.syscall(number, 0, 0, 0, 0)\n  result.append(ctypes.get_errno())"
    )
    errors, _ = run(tmp_path, program)
    assert errors == [1] * 9


def test_a_machine_without_the_filter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MemberError, match=r"cannot confine a process \(no filter.*riscv64.*--with"):
        run(tmp_path, "result = 1", job="hostile_job_elsewhere")
    assert run(tmp_path, "result = 1", job="hostile_job_elsewhere", confined=False) == (1, b"")


def test_without_a_sandbox_resources_are_still_limited(tmp_path: Path) -> None:
    with pytest.raises(MemberError, match="Too many open files"):
        run(tmp_path, "open('/etc/passwd')", confined=False)
    with pytest.raises(MemberError, match="needs more than the 200 MB"):
        run(tmp_path, "bytearray(10**9)", confined=False)


def test_a_file_cannot_ask_to_be_loaded_without_the_sandbox(tmp_path: Path) -> None:
    for forged in ('"kind": "no sandbox", "detail": "Trust me"', '"kind": "call", "call": []'):
        program = f"import os; os.write(1, {('{' + forged + '}').encode()!r} + b'\\n'); os._exit(1)"
        with pytest.raises(MemberError, match="cannot be loaded") as caught:
            run(tmp_path, program)
        assert "--without-sandbox" not in caught.value.message


def test_what_is_no_report_is_refused(tmp_path: Path) -> None:
    for line in (b"[1]\n", b"nonsense\n", b"[" * 100_000 + b"\n"):
        with pytest.raises(MemberError, match="did not answer as it must"):
            run(tmp_path, f"import os; os.write(1, {line!r}); os._exit(0)")


def test_what_the_process_prints_is_not_taken_for_its_answer(tmp_path: Path) -> None:
    assert run(tmp_path, "print('{}')\nresult = b'tensors'") == ("bytes", b"tensors")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(MemberError, match="cannot be read: No such file"):
        run_confined("hostile_job", tmp_path / "missing.pt", SMALL, print)
