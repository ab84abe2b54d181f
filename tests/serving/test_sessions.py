"""A token is sent only to the server for which it is meant."""

from __future__ import annotations

import datetime
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from torchserve_ensemble.handlers.base.errors import ServerError
from torchserve_ensemble.serving.client import InferenceClient
from torchserve_ensemble.serving.finding import management_client
from torchserve_ensemble.serving.management import ManagementClient
from torchserve_ensemble.serving.sessions import is_this_machine, open_session
from torchserve_ensemble.serving.tokens import given_token, read_token


class Recorder:
    """An HTTP server that answers every request.

    Attributes:
        requests: path and Authorization header of each request.
        address: URL of the server.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, str | None]] = []
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer()

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self._answer()

            def do_CONNECT(self) -> None:
                recorder.requests.append((self.path, self.headers["Proxy-Authorization"]))
                self.send_error(403)

            def _answer(self) -> None:
                recorder.requests.append((self.path, self.headers["Authorization"]))
                body = b'{"models": [], "predictions": []}'
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[Recorder]:
    """A server on this machine."""
    recorder = Recorder()
    yield recorder
    recorder.close()


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Recorder]:
    """A proxy that the environment names, and a .netrc with a password for every server."""
    recorder = Recorder()
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, recorder.address)
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    netrc = tmp_path / "netrc"
    netrc.write_text("default login somebody password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    yield recorder
    recorder.close()


def test_tokens_for_this_machine_pass_no_proxy(
    server: Recorder, proxy: Recorder, tmp_path: Path
) -> None:
    with ManagementClient(server.address, token="token") as management:
        management.models()
    with InferenceClient(server.address, token="token") as client:
        client.predict("a", [("a.png", b"")])
    key_file = tmp_path / "key_file.json"
    expired = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC).isoformat()
    keys = {"management": {"key": "old", "expiration time": expired}, "API": {"key": "token"}}
    key_file.write_text(json.dumps(keys))
    read_token(key_file, "management", server.address)
    paths, tokens = zip(*server.requests, strict=True)
    assert paths == ("/models?limit=100", "/predictions/a", "/token?type=management")
    assert tokens == ("Bearer token",) * 3
    assert proxy.requests == []


def test_no_password_of_netrc_is_sent_on_this_machine(server: Recorder, proxy: Recorder) -> None:
    with ManagementClient(server.address) as management:
        management.models()
    assert server.requests == [("/models?limit=100", None)]
    assert proxy.requests == []


def test_for_other_machines_the_proxy_is_used_but_netrc_replaces_no_token(proxy: Recorder) -> None:
    with ManagementClient("http://ensemble.example.org:8081", token="token") as management:
        management.models()
    assert proxy.requests == [("http://ensemble.example.org:8081/models?limit=100", "Bearer token")]


@pytest.mark.parametrize("address", ["127.0.0.1:1", "[::1]:1", "localhost:1", "0.0.0.0:1"])
def test_grpc_on_this_machine_passes_no_proxy(proxy: Recorder, address: str) -> None:
    pytest.importorskip("grpc")
    with (
        InferenceClient(address, transport="grpc", token="token", timeout=5) as client,
        pytest.raises(ServerError),
    ):
        client.predict("a", [("a.png", b"")])
    assert proxy.requests == []


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("http://127.0.0.1:8080", True),
        ("127.0.0.1:7070", True),
        ("localhost:7070", True),
        ("http://LOCALHOST:1", True),
        ("http://[::1]:8080", True),
        ("http://0.0.0.0:8080", True),
        ("http://10.0.0.1:8080", False),
        ("http://127.0.0.1.example.org", False),
        ("http://localhost.example.org", False),
        ("http://127.0.0.1@example.org", False),
        ("http://[::1", False),
        ("", False),
    ],
)
def test_addresses_of_this_machine_are_recognised(address: str, expected: bool) -> None:
    assert is_this_machine(address) is expected
    with open_session(address, None) as session:
        assert session.trust_env is not expected


def test_a_token_comes_from_the_argument_the_file_or_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "token"
    environment = {"TS_ENSEMBLE_TOKEN": "from-environment"}

    def token_of(token: str | None = None, file: Path | None = None) -> str | None:
        return given_token("management", token=token, file=file, environment=environment)

    assert token_of("argument") == "argument"
    assert token_of() == "from-environment"
    file.write_text("from-file\n")
    assert token_of(file=file) == "from-file"
    file.write_text('{"management": {"key": "m"}, "inference": {"key": "i"}}')
    assert token_of(file=file) == "m"
    for damaged in ("", "two\nlines", "{}", "{", '{"management": 1}'):
        file.write_text(damaged)
        with pytest.raises(ServerError, match="token"):
            token_of(file=file)
    with pytest.raises(ServerError, match="no management token can be read"):
        token_of(file=tmp_path / "none")
    assert given_token("inference", token=None, file=None, environment={}) is None


def test_a_token_of_this_folder_is_not_sent_to_another_machine(
    proxy: Recorder, server: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TS_ENSEMBLE_TOKEN", raising=False)
    Path("key_file.json").write_text('{"management": {"key": "local"}}')
    for address in (server.address, "http://ensemble.example.org"):
        with management_client(
            run_folder=Path("none"), address=address, token=None, token_file=None, timeout=5
        ) as management:
            management.models()
    assert server.requests[0][1] == "Bearer local"
    assert "local" not in str(proxy.requests)
