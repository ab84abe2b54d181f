"""Tests that FlexServe's clients work behind a real nginx when only their base URL changes.

The client here was written from the description of FlexServe's own client: it opens every file of a
folder, posts all of them under the name ``file``, and prints the JSON of the answer.
"""

from __future__ import annotations

import ast
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from nginx import NGINX, running_nginx
from probe_ensemble import image

from torchserve_ensemble.cli import main
from torchserve_ensemble.serving.addresses import free_ports
from torchserve_ensemble.serving.server import Server

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed: apt-get install nginx-light"),
]

BASE_URL = "http://127.0.0.1:5050"
CLIENT = """
import os
import requests


def opened(folder):
    return [("file", open(os.path.join(folder, name), "rb")) for name in sorted(os.listdir(folder))]


if __name__ == "__main__":
    print(requests.post("http://127.0.0.1:5050/batch", files=opened("data")).json())
    with open("data/0.png", "rb") as file:
        print(requests.post("http://127.0.0.1:5050/classify", files={"file": file}).json())
    print(requests.get("http://127.0.0.1:5050/models").json())
"""
BRIGHTNESS = (0.6, 0.1, 0.9)


@pytest.fixture(scope="module")
def base_url(probe_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("flexserve")
    (port,) = free_ports(1)
    configuration = folder / "flexserve.conf"
    arguments = ["--run-folder", str(probe_server.run_folder), "--output", str(configuration)]
    assert main(["proxy", "probes", *arguments, "--listen", f"127.0.0.1:{port}"]) == 0
    assert stat.S_IMODE(configuration.stat().st_mode) == 0o600, "it holds a token"
    with running_nginx(folder, configuration.read_text(), port):
        yield f"http://127.0.0.1:{port}"


def test_flexserves_client_with_another_base_url(base_url: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for index, brightness in enumerate(BRIGHTNESS):
        (tmp_path / "data" / f"{index}.png").write_bytes(image(brightness))
    assert CLIENT.count(BASE_URL) == 3
    (tmp_path / "client.py").write_text(CLIENT.replace(BASE_URL, base_url))
    printed = subprocess.run(
        [sys.executable, "client.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    batch, classify, models = map(ast.literal_eval, printed.splitlines())
    assert batch == {
        "a": ["bright", "dark", "bright"],
        "b": ["bright", "dark", "bright"],
        "c": ["dark", "dark", "bright"],
    }
    assert classify == {"a": "bright", "b": "bright", "c": "dark"}
    assert models == {"model 0": "a", "model 1": "b", "model 2": "c"}


def test_classify_reads_the_first_file(base_url: str) -> None:
    files = [("file", image(0.1)), ("file", image(0.9))]
    answer = requests.post(f"{base_url}/classify", files=files, timeout=30)
    assert answer.json() == {"a": "dark", "b": "dark", "c": "dark"}


def test_models_is_json(base_url: str) -> None:
    answer = requests.get(f"{base_url}/models", timeout=30)
    assert answer.headers["Content-Type"] == "application/json"
    assert requests.head(f"{base_url}/models", timeout=30).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/batch", 405),
        ("GET", "/classify", 405),
        ("POST", "/models", 405),
        ("POST", "/batch", 400),
        ("GET", "/", 404),
        ("GET", "/predictions/probes", 404),
        ("GET", "/models/probes", 404),
        ("GET", "/batch/../models/probes", 404),
    ],
)
def test_other_requests_do_not_reach_torchserve(
    base_url: str, method: str, path: str, status: int
) -> None:
    assert requests.request(method, f"{base_url}{path}", timeout=30).status_code == status


def test_a_file_that_is_no_image_is_refused(base_url: str) -> None:
    answer = requests.post(f"{base_url}/batch", files={"file": b"junk"}, timeout=30)
    assert answer.status_code == 400
    assert "message" in answer.json()


def test_a_clients_header_chooses_neither_format_nor_token(base_url: str) -> None:
    answer = requests.post(
        f"{base_url}/batch?response=lines",
        files={"file": image(0.9)},
        headers={"response": "tensors", "Authorization": "Bearer other"},
        timeout=30,
    )
    assert answer.json() == {"a": ["bright"], "b": ["bright"], "c": ["bright"]}
