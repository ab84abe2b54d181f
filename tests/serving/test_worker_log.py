"""Deaths of workers are read from a server's log, with their reasons."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchserve_ensemble.serving import worker_log
from torchserve_ensemble.serving.worker_log import WorkerLog, from_first_error

THREAD = "W-9000-digits_1.0"
TRACEBACK = [
    "Backend worker process died.",
    "Traceback (most recent call last):",
    '  File "ensemble_entry.py", line 1, in initialize',
    "    raise RuntimeError(1)",
    "RuntimeError: cannot load ensemble 'digits': no weights",
]


def printed(*lines: str) -> str:
    """Return the log lines of a worker that printed `lines`."""
    return "".join(
        f"2026-01-01T00:00:00,1 [INFO ] {THREAD}-stdout MODEL_LOG - {line}\n" for line in lines
    )


DIED = (
    f"2026-01-01T00:00:00,1 [DEBUG] {THREAD} org.pytorch.serve.wlm.WorkerThread - {THREAD} "
    "State change WORKER_STARTED -> WORKER_STOPPED\n"
)
OUTPUT_ENDED = (
    f"2026-01-01T00:00:00,1 [INFO ] {THREAD}-stdout org.pytorch.serve.wlm.WorkerLifeCycle - "
    f"Stopped Scanner - {THREAD}-stdout\n"
)


@pytest.fixture
def log(tmp_path: Path) -> WorkerLog:
    return WorkerLog(tmp_path / "server.log")


def add(log: WorkerLog, text: str) -> None:
    with log.path.open("a") as file:
        file.write(text)


def test_a_log_that_does_not_exist_yet_reports_nothing(log: WorkerLog) -> None:
    assert log.dead_workers() == []
    assert log.from_first_error() == ""
    assert log.failed_archives() == {}


def test_a_death_is_reported_once_with_its_traceback(log: WorkerLog) -> None:
    add(log, printed("Torch worker started.", *TRACEBACK) + DIED + OUTPUT_ENDED)
    (dead,) = log.dead_workers()
    assert dead.model == "digits_1.0"
    assert dead.reason == TRACEBACK[-1]
    assert dead.traceback.splitlines() == TRACEBACK[1:]
    assert log.dead_workers() == [], "reported once"


def test_output_that_follows_the_death_belongs_to_it(log: WorkerLog) -> None:
    """The frontend's state change may be logged before the worker's last lines."""
    add(log, printed(*TRACEBACK[:2]) + DIED)
    assert log.dead_workers() == []
    add(log, printed(*TRACEBACK[2:]) + OUTPUT_ENDED)
    (dead,) = log.dead_workers()
    assert dead.reason == TRACEBACK[-1]


def test_output_that_never_ends_is_not_waited_for(
    log: WorkerLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_log, "_MAX_WAIT_FOR_OUTPUT_SECONDS", 0)
    add(log, printed(*TRACEBACK) + DIED)
    (dead,) = [*log.dead_workers(), *log.dead_workers()]
    assert dead.reason == TRACEBACK[-1]


def test_a_line_is_read_only_when_it_is_complete(log: WorkerLog) -> None:
    whole = printed(*TRACEBACK) + DIED + OUTPUT_ENDED
    for start in range(0, len(whole), 37):
        add(log, whole[start : start + 37])
        dead_workers = log.dead_workers()
    assert [dead.reason for dead in dead_workers] == [TRACEBACK[-1]]


def test_a_worker_that_was_killed_leaves_no_traceback(log: WorkerLog) -> None:
    add(log, printed("Loading model", "[METRICS]x") + DIED + OUTPUT_ENDED)
    (dead,) = log.dead_workers()
    assert "killed, or out of memory" in dead.reason
    assert "Loading model" in dead.reason


def test_each_death_of_a_restarted_worker_has_its_own_reason(log: WorkerLog) -> None:
    add(log, printed(*TRACEBACK) + DIED + OUTPUT_ENDED)
    again = [*TRACEBACK[:-1], "ValueError: another"]
    first = log.dead_workers()
    add(log, printed(*again) + DIED + OUTPUT_ENDED)
    second = log.dead_workers()
    assert [d.reason for d in (*first, *second)] == [TRACEBACK[-1], "ValueError: another"]


def test_a_rotated_log_is_read_from_its_start(log: WorkerLog) -> None:
    add(log, "x\n" * 1000)
    assert log.dead_workers() == []
    log.path.write_text("")
    add(log, printed(*TRACEBACK) + DIED + OUTPUT_ENDED)
    assert len(log.dead_workers()) == 1


def test_archives_that_torchserve_could_not_load_are_reported_with_the_reason(
    log: WorkerLog,
) -> None:
    add(
        log,
        "2026 [WARN ] main org.pytorch.serve.ModelServer - Failed to load model: a.mar\n"
        "org.pytorch.serve.archive.model.ModelNotFoundException: Model not found at: a.mar\n"
        "\tat x\n",
    )
    (reason,) = log.failed_archives().values()
    assert "Model not found at: a.mar" in reason


def test_a_log_is_shown_from_its_first_error_on() -> None:
    quiet = "2026 [INFO ] main x - fine\n" * 20
    noise = "2026 [INFO ] main x - shutting down\n" * 40
    loud = quiet + 'Exception in thread "main" java.lang.Error: port\n\tat a\n' + noise
    assert from_first_error(loud, max_lines=2).splitlines() == loud.splitlines()[20:22]
    assert from_first_error(quiet) == ""


def test_an_error_in_one_line_is_the_reason_without_a_traceback(log: WorkerLog) -> None:
    line = "ArchiveError: models/1: it is not signed"
    add(log, printed("a warning", line) + DIED + OUTPUT_ENDED)
    (dead,) = log.dead_workers()
    assert dead.reason == line
    assert "traceback" not in dead.error().message
