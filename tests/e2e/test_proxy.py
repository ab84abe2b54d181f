"""Tests deploy/nginx.conf in front of a real TorchServe; only addresses and certificates differ."""

from __future__ import annotations

import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from nginx import NGINX, running_nginx
from probe_ensemble import image
from requests.adapters import HTTPAdapter

from torchserve_ensemble.serving.addresses import free_ports
from torchserve_ensemble.serving.server import Server

ROOT = Path(__file__).parent.parent.parent
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        NGINX is None or shutil.which("openssl") is None,
        reason="nginx or openssl is not installed: apt-get install nginx-light openssl",
    ),
]
NUM_HALF_OPEN = 200
PROXY_TIMEOUT_SECONDS = 10


@dataclass(frozen=True)
class Proxy:
    port: int
    certificate: Path

    def session(self, source: str = "127.0.0.1") -> requests.Session:
        """Make a session of a client; nginx takes each source address for another client."""
        session = requests.Session()
        session.trust_env = False
        session.verify = str(self.certificate)
        session.mount("https://", _From(source))
        return session

    def url(self, path: str) -> str:
        return f"https://127.0.0.1:{self.port}{path}"

    def connect(self, source: str = "127.0.0.1") -> ssl.SSLSocket:
        context = ssl.create_default_context(cafile=str(self.certificate))
        plain = socket.create_connection(("127.0.0.1", self.port), 10, (source, 0))
        return context.wrap_socket(plain, server_hostname="127.0.0.1")


class _From(HTTPAdapter):
    """Sends requests from a given source address."""

    def __init__(self, source: str) -> None:
        self._source = source
        super().__init__()

    def init_poolmanager(self, *arguments: object, **options: object) -> None:
        super().init_poolmanager(  # type: ignore[no-untyped-call]
            *arguments, source_address=(self._source, 0), **options
        )


@pytest.fixture(scope="module")
def proxy(probe_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("nginx")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    command += ["-subj", "/CN=ensemble", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    (port,) = free_ports(1)
    text = (ROOT / "deploy" / "nginx.conf").read_text()
    for shipped, here in (
        ("127.0.0.1:8080", probe_server.inference_address.removeprefix("http://")),
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("/etc/ssl/certs/ensemble.pem", str(certificate)),
        ("/etc/ssl/private/ensemble.key", str(key)),
    ):
        assert text.count(shipped) == 1, shipped
        text = text.replace(shipped, here)
    with running_nginx(folder, text, port):
        yield Proxy(port, certificate)


def test_tls_and_the_routes_of_clients(proxy: Proxy, probe_server: Server) -> None:
    with proxy.session() as session:
        answer = session.post(proxy.url("/predictions/probes"), data=image(0.9), timeout=30)
        assert (answer.status_code, answer.json()["predictions"][0]["label"]) == (200, "bright")
        form = session.post(
            proxy.url("/predictions/probes/1.0"),
            files=[("file", image(0.9)), ("file", image(0.1))],
            timeout=30,
        )
        assert len(form.json()["predictions"]) == 2
        assert session.get(proxy.url("/ping"), timeout=30).json() == {"status": "Healthy"}
        infer = session.post(proxy.url("/v2/models/probes/infer"), json={}, timeout=30)
        assert infer.status_code == 400, "the ensemble itself answers"
    with pytest.raises(requests.exceptions.SSLError):
        requests.get(proxy.url("/ping"), timeout=30)


@pytest.mark.parametrize(
    "path",
    [
        "/models",
        "/models/probes",
        "/predictions/../models",
        "/predictions/%2e%2e/models",
        "/predictions/..%2fmodels",
        "//models",
        "/token?type=management",
        "/metrics",
        "/workflows",
        "/",
        "/api-description",
    ],
)
def test_management_is_not_reachable(proxy: Proxy, path: str) -> None:
    with proxy.connect() as connection:
        request = f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        connection.sendall(request.encode())
        assert b" 404 " in read(connection).partition(b"\r\n")[0]


def test_nginx_adds_a_host_header_if_there_is_none(proxy: Proxy) -> None:
    with proxy.connect() as connection:
        body = image(0.9)
        head = f"POST /predictions/probes HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        assert b"bright" in read(connection)


def test_a_body_above_the_limit_is_refused_unread(proxy: Proxy) -> None:
    with proxy.connect() as connection:
        connection.sendall(head(proxy, 100 * 1024**2 + 1))
        assert b" 413 " in read(connection).partition(b"\r\n")[0]
    with proxy.connect() as connection:
        # Without a length nginx finds out while it reads the body.
        connection.sendall(head(proxy, None))
        chunk = b"100000\r\n" + bytes(2**20) + b"\r\n"
        try:
            for _ in range(102):
                connection.sendall(chunk)
        except OSError:
            return
        assert b" 413 " in read(connection).partition(b"\r\n")[0]


def test_a_form_of_countless_fields_is_refused_unread(proxy: Proxy) -> None:
    """TorchServe's frontend would take gigabytes for it."""
    for length in ("Content-Length: 40000000", "Transfer-Encoding: chunked"):
        with proxy.connect() as connection:
            connection.sendall(
                b"POST /predictions/probes HTTP/1.1\r\nHost: x\r\nContent-Type: "
                b"application/x-www-form-urlencoded; charset=utf-8\r\n"
                + length.encode()
                + b"\r\n\r\n"
            )
            assert b" 413 " in read(connection).partition(b"\r\n")[0]


@pytest.mark.long
def test_half_open_uploads_are_cut_while_others_are_answered(
    proxy: Proxy, probe_server: Server
) -> None:
    """Uploads that stop, headers that stop, and handshakes that never begin."""
    began = time.monotonic()
    with ExitStack() as stack:
        stopped: list[socket.socket] = []
        for number in range(NUM_HALF_OPEN):
            connection = stack.enter_context(proxy.connect())
            connection.sendall(head(proxy, 10**7) + bytes(1000) if number % 2 else b"POST /pre")
            stopped.append(connection)
        for _ in range(20):
            stopped.append(stack.enter_context(socket.create_connection(("127.0.0.1", proxy.port))))
        opened = time.monotonic()
        answered = 0
        with proxy.session("127.0.0.2") as session:
            while time.monotonic() < opened + PROXY_TIMEOUT_SECONDS + 5 and stopped:
                before = time.monotonic()
                answer = session.post(proxy.url("/predictions/probes"), data=image(0.9), timeout=5)
                assert answer.status_code == 200
                assert time.monotonic() - before < 5
                answered += 1
                stopped = [each for each in stopped if not is_closed(each)]
                time.sleep(0.2)
    assert stopped == [], f"open {time.monotonic() - began:.0f} s after the first"
    assert answered > 10
    # None of these requests reached TorchServe.
    log = (probe_server.run_folder / "logs" / "access_log.log").read_text()
    assert not re.search(r'"POST /pre ', log)


def test_the_requests_of_one_client_at_a_time_are_limited(proxy: Proxy) -> None:
    with ExitStack() as stack:
        for _ in range(16):
            connection = stack.enter_context(proxy.connect("127.0.0.3"))
            connection.sendall(head(proxy, 10**6) + bytes(1000))
        with proxy.session("127.0.0.3") as session:
            deadline = time.monotonic() + 5
            status = 0
            while status != 429 and time.monotonic() < deadline:
                status = session.get(proxy.url("/ping"), timeout=5).status_code
        assert status == 429
        with proxy.session("127.0.0.4") as session:
            assert session.get(proxy.url("/ping"), timeout=5).status_code == 200


def head(proxy: Proxy, length: int | None) -> bytes:
    size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return (
        f"POST /predictions/probes HTTP/1.1\r\nHost: 127.0.0.1:{proxy.port}\r\n"
        f"Content-Type: application/octet-stream\r\n{size}\r\n\r\n"
    ).encode()


def read(connection: socket.socket) -> bytes:
    """Read until the other side closes the connection, or sends nothing for ten seconds."""
    connection.settimeout(10)
    content = b""
    try:
        while data := connection.recv(65536):
            content += data
            if b" 413 " in content:
                break
    except OSError:
        pass
    return content


def is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        while connection.recv(65536):
            pass
    except (BlockingIOError, ssl.SSLWantReadError):
        return False
    except OSError:
        return True
    return True
