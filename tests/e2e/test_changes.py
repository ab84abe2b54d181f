"""Tests that a real server is changed, drained and stopped without harm to its clients.

The clients check every answer. ``benchmarks.swaps`` does the same for longer, and measures the
waiting times in docs/operations.md.
"""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import psutil
import pytest
import torch
from probe_ensemble import image
from safetensors.torch import save_file

from benchmarks.swaps import Images, checked_clients
from torchserve_ensemble.archiver.build import build_archive
from torchserve_ensemble.cli import main
from torchserve_ensemble.handlers.base.errors import ServerError, WorkerDiedError
from torchserve_ensemble.serving.changes import Changes
from torchserve_ensemble.serving.client import InferenceClient
from torchserve_ensemble.serving.run_folder import server_log
from torchserve_ensemble.serving.server import Server
from torchserve_ensemble.serving.settings import ServerSettings, throw_away
from torchserve_ensemble.serving.worker_log import WorkerLog

pytestmark = pytest.mark.e2e
IMAGES = [("dark", image(0.1)), ("bright", image(0.9))]
RIGHT = ["dark", "bright"]

# A member that reads from a file how many seconds it takes, or that its worker shall die.
SLOW = """
import os
import time
from pathlib import Path

import torch
from torch import nn


class Slow(nn.Module):
    def __init__(self, file):
        super().__init__()
        self.file = Path(file)
        self.bound = nn.Parameter(torch.zeros(()))

    def forward(self, batch):
        text = self.file.read_text() if self.file.exists() else "0"
        if text == "die":
            raise RuntimeError("told to die")
        time.sleep(float(text))
        brightness = batch.mean(dim=(1, 2, 3))
        return torch.stack([1 - brightness, brightness], dim=1)
"""


@pytest.fixture(scope="module")
def pace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file with the number of seconds that a batch takes, or with "die"."""
    return tmp_path_factory.mktemp("pace") / "seconds"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, pace: Path) -> Path:
    """Three versions of one ensemble, and an archive that cannot be extracted."""
    folder, store = tmp_path_factory.mktemp("slow"), tmp_path_factory.mktemp("slow-store")
    (folder / "slow.py").write_text(SLOW)
    save_file({"bound": torch.tensor(0.0)}, folder / "a.safetensors")
    for version in ("1.0", "1.1", "1.2"):
        spec = {
            "name": "slow",
            "version": version,
            "task": "classification",
            "labels": ["dark", "bright"],
            "preprocessing": {"small": {"resize": [2, 2]}},
            "serving": {"batch_size": 1},
            "runtime": {"engine": "torch", "score_cache_mb": 0},
            "members": [
                {
                    "name": "a",
                    "architecture": "slow.py:Slow",
                    "arguments": {"file": str(pace)},
                    "weights": "a.safetensors",
                }
            ],
        }
        (folder / "ensemble.yaml").write_text(json.dumps(spec))
        build_archive(folder / "ensemble.yaml", store)
    whole = (store / "slow-1.2.mar").read_bytes()
    (store / "half.mar").write_bytes(whole[: len(whole) // 2])
    return store


@pytest.fixture(scope="module")
def shared(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that every test must leave with version 1.0 and one worker."""
    with _start(store, tmp_path_factory.mktemp("run")) as server:
        yield server


@pytest.fixture
def server(shared: Server, pace: Path) -> Iterator[Server]:
    pace.unlink(missing_ok=True)
    yield shared
    pace.unlink(missing_ok=True)
    with shared.management() as management:
        assert [each.version for each in management.versions("slow")] == ["1.0"]
        (version,) = management.describe("slow")
        assert len(version.workers) == 1, "a test left its workers"
        assert version.ready


def _start(store: Path, run_folder: Path) -> Server:
    settings = ServerSettings(store, ("slow-1.0.mar",), overrides=throw_away())
    server = Server.start(settings, run_folder)
    try:
        server.wait_ready()
    except BaseException:
        server.stop()
        raise
    return server


def _alive(family: list[psutil.Process]) -> list[psutil.Process]:
    """Select the processes that run; a zombie has ended, but nobody has read its status yet."""
    return [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def _verb(server: Server, *arguments: str) -> int:
    return main([*arguments, "--run-folder", str(server.run_folder)])


def _ask(server: Server, version: str | None = None, **settings: Any) -> list[str]:
    with InferenceClient(server.inference_address, **{"retries": 0} | settings) as client:
        predictions = client.predict("slow", IMAGES, version=version)["predictions"]
    return [each["label"] for each in predictions]


def _wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _pending(server: Server) -> int:
    with server.management() as management:
        return management.describe("slow")[0].pending_requests


@contextmanager
def _in_flight(
    server: Server, pace: Path, count: int, seconds: str = "1.5"
) -> Iterator[list[Future[list[str]]]]:
    """Send requests, and wait until every worker computes one and the others are in the queue.

    Args:
        server: the server.
        pace: the file with the number of seconds that a batch takes.
        count: number of requests.
        seconds: how long each request takes.
    """
    pace.write_text(seconds)
    with server.management() as management, ThreadPoolExecutor(count) as pool:
        (version,) = management.describe("slow")
        futures = [pool.submit(_ask, server) for _ in range(count)]
        _wait_until(lambda: _pending(server) == count - len(version.workers))
        yield futures


def test_replacing_and_scaling_lose_no_request_and_hold_up_no_client(server: Server) -> None:
    def ask(images: Images) -> list[Any]:
        return plain.predict("slow", images)["predictions"]

    questions = [(IMAGES, ask_once(server))]
    with (
        InferenceClient(server.inference_address, retries=0, timeout=20) as plain,
        checked_clients([ask] * 8, questions) as outcomes,
    ):
        time.sleep(2)
        begin = time.monotonic()
        normal = outcomes.longest(begin - 1, begin)
        for old, new in (("1.0", "1.1"), ("1.1", "1.0")):
            assert _verb(server, "register", f"slow-{new}.mar") == 0
            assert _verb(server, "set-default", "slow", new) == 0
            assert _verb(server, "unregister", "slow", old) == 0
        for workers in ("2", "1"):
            assert _verb(server, "scale", "slow", workers) == 0
        longest = outcomes.longest(begin, time.monotonic())
    assert outcomes.lost == []
    assert outcomes.wrong == 0
    assert len(outcomes.waits) > 100
    assert longest < normal + 1


def ask_once(server: Server) -> list[Any]:
    with server.client() as client:
        predictions: list[Any] = client.predict("slow", IMAGES)["predictions"]
        return predictions


@pytest.mark.long
def test_scaling_down_and_unregistering_wait_for_what_is_computed(
    server: Server, pace: Path
) -> None:
    assert _verb(server, "scale", "slow", "2") == 0
    with _in_flight(server, pace, 6) as futures:
        assert _verb(server, "scale", "slow", "1") == 0
    assert [future.result() for future in futures] == [RIGHT] * 6
    pace.unlink()
    assert _verb(server, "register", "slow-1.1.mar") == 0
    with _in_flight(server, pace, 6) as futures:
        assert _verb(server, "set-default", "slow", "1.1") == 0
        assert _verb(server, "unregister", "slow", "1.0") == 0
    assert [future.result() for future in futures] == [RIGHT] * 6
    pace.unlink()
    assert _verb(server, "register", "slow-1.0.mar") == 0
    assert _verb(server, "set-default", "slow", "1.0") == 0
    assert _verb(server, "unregister", "slow", "1.1") == 0


def test_draining_ends_after_the_drain_timeout(
    server: Server, pace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _verb(server, "scale", "slow", "2") == 0
    with _in_flight(server, pace, 4, "2") as futures:
        assert _verb(server, "scale", "slow", "1", "--drain-timeout", "0.3") == 1
    assert "still computes: wait, raise --drain-timeout" in capsys.readouterr().err
    assert [future.result() for future in futures] == [RIGHT] * 4, "no worker was ended"
    with server.management() as management:
        assert len(management.describe("slow")[0].workers) == 2
    with _in_flight(server, pace, 4, "2") as futures:
        command = ("scale", "slow", "1", "--drain-timeout", "0.3", "--force")
        assert _verb(server, *command) == 0
        with server.management() as management:
            assert len(management.describe("slow")[0].workers) == 1
        pace.unlink()


def test_a_version_that_clients_keep_naming_is_not_unregistered(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _verb(server, "register", "slow-1.1.mar") == 0
    ending = threading.Event()

    def keep_asking() -> int:
        count = 0
        with InferenceClient(server.inference_address, retries=0) as client:
            while not ending.is_set():
                client.predict("slow", IMAGES, version="1.1")
                count += 1
        return count

    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(keep_asking) for _ in range(8)]
        status = _verb(server, "unregister", "slow", "1.1", "--drain-timeout", "1")
        ending.set()
        assert all(future.result() > 0 for future in futures)
    assert status == 1
    assert "requests still arrive after 1 s and wait in the queue" in capsys.readouterr().err
    assert _verb(server, "unregister", "slow", "1.1") == 0


def test_the_default_of_several_versions_stays(server: Server) -> None:
    assert _verb(server, "register", "slow-1.1.mar") == 0
    with server.management() as management:
        with pytest.raises(ServerError, match="make another version the default first"):
            Changes(management).unregister("slow", "1.0")
        management.scale("slow", 0, version="1.1")
        with pytest.raises(ServerError, match=r"no worker of slow 1\.1 is READY"):
            Changes(management).set_default("slow", "1.1")
        Changes(management).unregister("slow", "1.1")


def test_whoever_unregisters_the_last_version_learns_that_the_endpoint_is_gone(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        assert _verb(server, "unregister", "slow") == 0
        assert "it was the last version: /predictions/slow is gone" in capsys.readouterr().out
    finally:
        assert _verb(server, "register", "slow-1.0.mar") == 0


def test_a_change_is_undone_if_its_new_workers_die(server: Server, pace: Path) -> None:
    pace.write_text("die")
    with server.management() as management:
        changes = Changes(management, WorkerLog(server_log(server.run_folder)))
        with pytest.raises(WorkerDiedError, match="told to die") as caught:
            changes.scale("slow", 2)
        assert "Traceback" in caught.value.worker_traceback
        with pytest.raises(ServerError, match="died while it loaded"):
            Changes(management).scale("slow", 2)
        with pytest.raises(WorkerDiedError, match="told to die"):
            server.register("slow-1.1.mar")
        pace.unlink()
        _wait_until(lambda: len(management.describe("slow")[0].workers) == 1)
    assert _ask(server) == RIGHT


def test_why_an_archive_is_not_registered(server: Server, store: Path) -> None:
    with pytest.raises(ServerError, match="half.mar is truncated or no archive"):
        server.register("half.mar", check_archive=False)
    with pytest.raises(ServerError, match="this version is registered already"):
        server.register("slow-1.0.mar")
    with pytest.raises(ServerError, match="Model not found at: none.mar"):
        server.register("none.mar", check_archive=False)
    with server.management() as management, pytest.raises(ServerError, match="truncated"):
        management.register("half.mar")


def test_a_model_without_workers_says_so(server: Server) -> None:
    assert _verb(server, "scale", "slow", "0") == 0
    with server.client() as client, pytest.raises(ServerError, match=r"slow 1\.0 has no worker"):
        client.predict("slow", IMAGES)
    assert _verb(server, "scale", "slow", "1") == 0
    assert _ask(server) == RIGHT


def test_a_worker_that_is_stopped_is_shown(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    with server.management() as management:
        pid = management.describe("slow")[0].workers[0].pid
    os.kill(pid, signal.SIGSTOP)
    try:
        _wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
        assert _verb(server, "status") == 0
        shown = re.sub(r"[^\w()]+", " ", capsys.readouterr().out)
        assert f"READY but stopped (pid {pid})" in shown
        assert _verb(server, "scale", "slow", "0", "--drain-timeout", "0.5") == 1
        assert f"kill -CONT {pid}" in capsys.readouterr().err
    finally:
        os.kill(pid, signal.SIGCONT)
    assert _ask(server) == RIGHT


@pytest.mark.parametrize("transport", ["rest", "grpc"])
def test_clients_repeat_what_a_dying_worker_computed(
    server: Server, pace: Path, transport: Literal["rest", "grpc"]
) -> None:
    address = server.inference_address if transport == "rest" else server._state.grpc_address
    with server.management() as management:
        pid = management.describe("slow")[0].workers[0].pid
        pace.write_text("2")
        with (
            InferenceClient(address, transport=transport) as client,
            ThreadPoolExecutor(2) as pool,
        ):
            futures = [pool.submit(client.predict, "slow", IMAGES) for _ in range(2)]
            _wait_until(lambda: _pending(server) == 1)
            pace.unlink()
            os.kill(pid, signal.SIGKILL)
            for future in futures:
                assert [each["label"] for each in future.result()["predictions"]] == RIGHT
        _wait_until(lambda: management.describe("slow")[0].ready)


@pytest.mark.long
def test_stop_answers_what_has_arrived(store: Path, tmp_path: Path, pace: Path) -> None:
    pace.unlink(missing_ok=True)
    with _start(store, tmp_path / "run") as server:
        family = server.processes()
        with _in_flight(server, pace, 6) as futures:
            assert _verb(server, "stop", "--drain-timeout", "0.2") == 1, "no process is ended"
            assert _verb(server, "stop") == 0
        assert [future.result() for future in futures] == [RIGHT] * 6
        pace.unlink()
    assert not _alive(family)


def test_stop_ends_the_processes_of_a_killed_launcher(store: Path, tmp_path: Path) -> None:
    with _start(store, tmp_path / "run") as server:
        family = server.processes()
        assert len(family) == 3
        os.kill(server.pid, signal.SIGKILL)
        _wait_until(lambda: len(server.processes()) == 2)
        assert _ask(server) == RIGHT, "Java and the worker run on"
    assert not _alive(family)
