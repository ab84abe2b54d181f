"""Only the server's user can hold a worker; a hold ends when it is released, or after a limit."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from torchserve_ensemble.handlers.frontend import holding
from torchserve_ensemble.handlers.frontend.holding import hold_if_requested, hold_seconds


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder, in which the files of holds lie."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_without_the_file_the_worker_is_not_held(folder: Path) -> None:
    hold_if_requested(60)
    assert list(folder.iterdir()) == []


def test_a_worker_is_held_until_it_is_released(folder: Path) -> None:
    (folder / f"ts-ensemble-hold-{os.getpid()}").touch()
    thread = threading.Thread(target=hold_if_requested, args=(60,))
    thread.start()
    acknowledgement = folder / f"ts-ensemble-held-{os.getpid()}"
    deadline = time.monotonic() + 10
    while not acknowledgement.exists():
        assert time.monotonic() < deadline
    assert thread.is_alive()
    acknowledgement.unlink()
    thread.join(10)
    assert not thread.is_alive()
    assert list(folder.iterdir()) == []


def test_a_hold_that_nobody_releases_ends(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "MAX_HOLD_SECONDS", 0.05)
    assert hold_seconds(60) == 0.05
    (folder / f"ts-ensemble-hold-{os.getpid()}").touch()
    hold_if_requested(60)
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_another_user_cannot_hold_a_worker(folder: Path) -> None:
    request = folder / f"ts-ensemble-hold-{os.getpid()}"
    request.touch()
    os.chown(request, 12345, -1)
    hold_if_requested(60)
    assert request.exists()


def test_a_hold_ends_before_torchserve_takes_the_answer_for_lost() -> None:
    assert hold_seconds(60) == 20
    assert hold_seconds(5) == 2.5
