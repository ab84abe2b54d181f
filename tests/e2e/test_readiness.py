"""Readiness of a real TorchServe with a killed, a stopped and a hung worker."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import requests

from torchserve_ensemble.cli import main
from torchserve_ensemble.handlers.base.errors import ServerError
from torchserve_ensemble.serving.readiness import ReadinessCheck, ReadinessServer
from torchserve_ensemble.serving.server import Server
from torchserve_ensemble.serving.settings import ServerSettings, throw_away

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def server(probe_store: Path, run_folder: Path) -> Iterator[Server]:
    settings = ServerSettings(probe_store, ("probes-1.0.mar",), overrides=throw_away())
    with Server.start(settings, run_folder) as server:
        server.wait_ready()
        yield server


def worker_pid(server: Server) -> int:
    with server.management() as management:
        return management.describe("probes")[0].workers[0].pid


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, 5)
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def wait_until(condition: Callable[[], bool], seconds: float) -> float:
    """Wait until a condition holds, and return how long that took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() < start + seconds
        time.sleep(0.02)
    return time.monotonic() - start


def ready(run_folder: Path, *options: str) -> int:
    return main(["ready", "probes", "--run-folder", str(run_folder), *options])


def test_a_healthy_model_is_ready(
    server: Server, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ready(run_folder) == 0
    assert capsys.readouterr().out.startswith("probes 1.0 is ready: 1 of 1 workers READY, one an")
    assert ready(run_folder, "--json", "--model-version", "1.0") == 0
    assert json.loads(capsys.readouterr().out)["ready"] is True
    assert ready(run_folder, "--workers", "2") == 1
    assert "not ready: 1 of 2 workers READY" in capsys.readouterr().out
    assert main(["ready", "prob", "--run-folder", str(run_folder)]) == 1
    assert "no model 'prob' is registered" in capsys.readouterr().out


def test_a_stopped_worker_is_named(
    server: Server, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pid = worker_pid(server)
    with stopped(pid):
        assert ready(run_folder) == 1
        assert f"0 of 1 workers READY; stopped: pid {pid}: kill -CONT {pid}" in (
            capsys.readouterr().out
        )
        assert requests.get(f"{server.inference_address}/ping", timeout=5).ok
    assert ready(run_folder) == 0


def test_a_hung_worker_is_noticed_and_is_sent_one_probe_only(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    # From another machine the state of a process cannot be seen, only that no answer comes.
    monkeypatch.setattr("torchserve_ensemble.serving.readiness.is_loopback", lambda _: False)
    check = ReadinessCheck(lambda timeout: server.management(timeout), "probes", deadline=0.5)
    assert check.check().ready
    with stopped(worker_pid(server)):
        for _ in range(3):
            start = time.monotonic()
            readiness = check.check()
            assert time.monotonic() - start < 2
            assert not readiness.ready
            assert "no worker has answered for" in readiness.reason
        with server.management() as management:
            # The worker has taken one probe, and there is no other.
            assert management.describe("probes")[0].pending_requests == 0
    wait_until(lambda: check.check().ready, 20)


def test_a_load_balancer_sees_a_killed_worker(server: Server) -> None:
    check = ReadinessCheck(lambda timeout: server.management(timeout), "probes", deadline=1)
    with ReadinessServer(check, ("127.0.0.1", 0), interval=0.1, deadline=1) as readiness:
        threading.Thread(target=readiness.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{readiness.server_port}"
        wait_until(lambda: requests.get(f"{url}/ready", timeout=5).status_code == 200, 5)
        assert requests.get(f"{url}/other", timeout=5).status_code == 404
        pid = worker_pid(server)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: requests.get(f"{url}/ready", timeout=5).status_code == 503, 3)
        # TorchServe says at first that the dead worker is READY; then no probe is answered.
        reason = requests.get(f"{url}/ready", timeout=5).json()["reason"]
        assert re.search("0 of 1 workers READY|no worker has answered|Worker died", reason), reason
        assert requests.get(f"{server.inference_address}/ping", timeout=5).ok
        # TorchServe starts another worker.
        wait_until(lambda: requests.get(f"{url}/ready", timeout=5).status_code == 200, 60)
        assert worker_pid(server) != pid
        with pytest.raises(ServerError, match="cannot be listened on"):
            ReadinessServer(check, ("127.0.0.1", readiness.server_port), interval=1, deadline=1)
        readiness.shutdown()


def test_the_verb_serves_http_until_it_is_terminated(server: Server, run_folder: Path) -> None:
    verb = ["-m", "torchserve_ensemble", "ready", "probes", "--run-folder", str(run_folder)]
    with subprocess.Popen(
        [sys.executable, *verb, "--http", "0", "--interval", "0.1"],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[1]
            wait_until(lambda: requests.get(url, timeout=5).status_code == 200, 10)
            process.terminate()
            assert process.wait(10) == 0
        finally:
            process.kill()


def test_without_a_server_nothing_is_ready(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ready(tmp_path) == 1
    assert "no server runs in" in capsys.readouterr().out
    assert main(["ready", "probes", "--management", "http://127.0.0.1:9", "--timeout", "1"]) == 1
    assert "probes is not ready" in capsys.readouterr().out
    assert ready(tmp_path, "--http", "nowhere") == 1
    assert "write PORT or ADDRESS:PORT" in capsys.readouterr().err
