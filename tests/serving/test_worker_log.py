"""What a server's log says about its workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchserve_ensemble.serving import worker_log
from torchserve_ensemble.serving.worker_log import WorkerLog, trouble

THREAD = "W-9000-digits_1.0"
TRACEBACK = [
    "Backend worker process died.",
    "Traceback (most recent call last):",
    '  File "ensemble_entry.py", line 1, in initialize',
    "    raise RuntimeError(1)",
    "RuntimeError: cannot load ensemble 'digits': no weights",
]


def printed(*lines: str) -> str:
    return "".join(
        f"2026-01-01T00:00:00,1 [INFO ] {THREAD}-stdout MODEL_LOG - {x}\n" for x in lines
    )


DIED = (
    f"2026-01-01T00:00:00,1 [DEBUG] {THREAD} org.pytorch.serve.wlm.WorkerThread - {THREAD} "
    "State change WORKER_STARTED -> WORKER_STOPPED\n"
)
SILENT = (
    f"2026-01-01T00:00:00,1 [INFO ] {THREAD}-stdout org.pytorch.serve.wlm.WorkerLifeCycle - "
    f"Stopped Scanner - {THREAD}-stdout\n"
)


@pytest.fixture
def log(tmp_path: Path) -> WorkerLog:
    return WorkerLog(tmp_path / "server.log")


def add(log: WorkerLog, text: str) -> None:
    with log.path.open("a") as file:
        file.write(text)


def test_no_log_yet(log: WorkerLog) -> None:
    assert log.dead_workers() == []
    assert log.cause() == ""
    assert log.not_loaded() == {}


def test_a_death_with_its_traceback(log: WorkerLog) -> None:
    add(log, printed("Torch worker started.", *TRACEBACK) + DIED + SILENT)
    (dead,) = log.dead_workers()
    assert dead.model == "digits_1.0"
    assert dead.reason == TRACEBACK[-1]
    assert dead.traceback.splitlines() == TRACEBACK[1:]
    assert log.dead_workers() == [], "told once"


def test_lines_that_come_after_the_death_belong_to_it(log: WorkerLog) -> None:
    """The frontend's state change may be logged before the worker's last lines."""
    add(log, printed(*TRACEBACK[:2]) + DIED)
    assert log.dead_workers() == []
    add(log, printed(*TRACEBACK[2:]) + SILENT)
    (dead,) = log.dead_workers()
    assert dead.reason == TRACEBACK[-1]


def test_output_that_never_ends_is_not_waited_for(
    log: WorkerLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_log, "_LAST_LINE_SECONDS", 0)
    add(log, printed(*TRACEBACK) + DIED)
    (dead,) = [*log.dead_workers(), *log.dead_workers()]
    assert dead.reason == TRACEBACK[-1]


def test_a_line_that_is_only_half_there(log: WorkerLog) -> None:
    whole = printed(*TRACEBACK) + DIED + SILENT
    for start in range(0, len(whole), 37):
        add(log, whole[start : start + 37])
        found = log.dead_workers()
    assert [dead.reason for dead in found] == [TRACEBACK[-1]]


def test_a_worker_that_was_killed_leaves_no_traceback(log: WorkerLog) -> None:
    add(log, printed("Loading model", "[METRICS]x") + DIED + SILENT)
    (dead,) = log.dead_workers()
    assert "killed, or out of memory" in dead.reason
    assert "Loading model" in dead.reason


def test_two_deaths_of_a_worker_that_was_started_again(log: WorkerLog) -> None:
    add(log, printed(*TRACEBACK) + DIED + SILENT)
    again = [*TRACEBACK[:-1], "ValueError: another"]
    first = log.dead_workers()
    add(log, printed(*again) + DIED + SILENT)
    second = log.dead_workers()
    assert [d.reason for d in (*first, *second)] == [TRACEBACK[-1], "ValueError: another"]


def test_rotation(log: WorkerLog) -> None:
    add(log, "x\n" * 1000)
    assert log.dead_workers() == []
    log.path.write_text("")
    add(log, printed(*TRACEBACK) + DIED + SILENT)
    assert len(log.dead_workers()) == 1


def test_archives_that_could_not_be_loaded(log: WorkerLog) -> None:
    add(
        log,
        "2026 [WARN ] main org.pytorch.serve.ModelServer - Failed to load model: a.mar\n"
        "org.pytorch.serve.archive.model.ModelNotFoundException: Model not found at: a.mar\n"
        "\tat x\n",
    )
    (reason,) = log.not_loaded().values()
    assert "Model not found at: a.mar" in reason


def test_trouble_is_shown_from_where_it_starts() -> None:
    quiet = "2026 [INFO ] main x - fine\n" * 20
    noise = "2026 [INFO ] main x - shutting down\n" * 40
    loud = quiet + 'Exception in thread "main" java.lang.Error: port\n\tat a\n' + noise
    assert trouble(loud, lines=2).splitlines() == loud.splitlines()[20:22]
    assert trouble(quiet) == ""
