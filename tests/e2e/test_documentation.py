"""Tests that each ```sh block of README.md, requests.md, trust.md and registry.md works as printed.

The tests change only the ports: they put free ones into the commands and into config.properties.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests

from examples import data
from examples.presence.train import train
from torchserve_ensemble.serving.addresses import free_ports
from torchserve_ensemble.serving.java import find_java
from torchserve_ensemble.serving.server import Server

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parent.parent.parent
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.DOTALL | re.MULTILINE)


def runnable_blocks(document: str) -> list[str]:
    blocks = BLOCK.findall((ROOT / document).read_text())
    assert blocks, f"{document} has no runnable block"
    return blocks


class Reader:
    """A reader who types the commands of a document, in a new folder with some images."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ports = (8080, 8081, 8082, 7070, 7071)
        self.ports = dict(zip(map(str, ports), map(str, free_ports(len(ports))), strict=True))
        self._fill()
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        temporary = folder / "temporary"
        temporary.mkdir()
        # A plain torchserve would pass PYTHONPATH on to its workers. A reader has not set it.
        self.environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        self.environment |= {"PATH": path, "TEMP": str(temporary), "COLUMNS": "120"}
        self.environment["JAVA_HOME"] = str(find_java().home)

    def _fill(self) -> None:
        example = self.folder / "examples" / "presence"
        example.mkdir(parents=True)
        for file in ("ensemble.yaml", "members.py"):
            shutil.copy(ROOT / "examples" / "presence" / file, example)
        training, held_out = data.load()
        train(example, training)
        (self.folder / "model_store").mkdir()
        (self.folder / "images").mkdir()
        for name, file in zip(
            ("a", "b", "images/1", "images/2", "images/3"), held_out.files, strict=False
        ):
            (self.folder / f"{name}.png").write_bytes(file)
        config = (ROOT / "config.properties").read_text()
        (self.folder / "config.properties").write_text(self.localised(config))

    def localised(self, text: str) -> str:
        return re.sub(r"\b(8080|8081|8082|7070|7071)\b", lambda m: self.ports[m[0]], text)

    def types(self, text: str, **variables: str) -> str:
        """Run lines one after the other and return their output; a failing line fails the test."""
        # The output goes to a file, because a server that keeps running would keep a pipe open.
        output = self.folder / "output.txt"
        with output.open("w") as file:
            status = subprocess.call(
                ["bash", "-euo", "pipefail", "-c", self.localised(text)],
                cwd=self.folder,
                env=self.environment | variables,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=120,
            )
        printed = output.read_text()
        assert status == 0, f"{text}\n{printed}"
        return printed


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    reader = Reader(tmp_path_factory.mktemp("reader"))
    yield reader
    server = Server.attach(reader.folder / ".ts-ensemble")
    if server is not None:
        server.stop()
    for process in psutil.process_iter():
        if belongs_to(reader, process):
            process.kill()


def test_readme(reader: Reader) -> None:
    every_day, versions, local, start, ask = runnable_blocks("README.md")
    printed = reader.types(every_day)
    assert "presence-1.0.mar" in printed
    assert "READY" in printed
    printed = reader.types(versions)
    assert "stopped" in printed
    assert reader.types(local)
    reader.types(start)
    try:
        wait_until_ready(reader)
        answer = reader.types(ask)
    finally:
        # `torchserve --stop` does not wait until the server has ended.
        wait_until_gone(reader)
    assert '"policy":{"name":"any"' in answer
    assert answer.count('"sample"') == 2


def test_requests(reader: Reader) -> None:
    reader.types("ts-ensemble serve presence-1.0.mar --set disable_token_authorization=true")
    try:
        server = f"http://127.0.0.1:{reader.ports['8080']}"
        for block in runnable_blocks("docs/requests.md"):
            for line in block.splitlines():
                printed = reader.types(line, SERVER=server)
                assert '"code"' not in printed, f"{line}\n{printed}"
    finally:
        reader.types("ts-ensemble stop")
    assert (reader.folder / "scores.safetensors").stat().st_size > 0


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the page makes keys with openssl")
def test_trust(reader: Reader) -> None:
    if not (reader.folder / "model_store" / "presence-1.0.mar").exists():
        reader.types("ts-ensemble build examples/presence/ensemble.yaml")
    (block,) = runnable_blocks("docs/trust.md")
    try:
        printed = reader.types(block)
    finally:
        reader.types("ts-ensemble stop || true")
    assert "presence-1.0.mar: signed by the key" in printed
    assert "which release.pub trusts" in printed
    assert "trusted     only archives that a key of release.pub signed" in printed
    assert "READY" in printed


def test_registry(reader: Reader) -> None:
    """The archives are those that README.md builds."""
    (block,) = runnable_blocks("docs/registry.md")
    printed = reader.types(block)
    assert re.search(
        r"sent +[\d,]+ bytes in \d files\nskipped +[\d,]+ bytes in 1\d\d files", printed
    )
    assert (reader.folder / "elsewhere" / "presence-1.0.mar").is_file()


def wait_until_ready(reader: Reader, seconds: float = 60) -> None:
    """Ask the management API until the worker is READY, as a user of a plain TorchServe would."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        key_file = reader.folder / "key_file.json"
        try:
            token = json.loads(key_file.read_text())["management"]["key"]
            answer = requests.get(
                f"http://127.0.0.1:{reader.ports['8081']}/models/presence",
                headers={"Authorization": f"Bearer {token}"},
                timeout=5,
            )
            if [w["status"] for w in answer.json()[0]["workers"]] == ["READY"]:
                return
        except (OSError, ValueError, KeyError, requests.RequestException):
            pass
        time.sleep(0.2)
    raise AssertionError("a plain TorchServe was not ready in time")


def wait_until_gone(reader: Reader) -> None:
    pid_file = Path(reader.environment["TEMP"]) / ".model_server.pid"
    if pid_file.exists():
        psutil.Process(int(pid_file.read_text())).terminate()
    processes = [p for p in psutil.process_iter() if belongs_to(reader, p)]
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive


def belongs_to(reader: Reader, process: psutil.Process) -> bool:
    """Whether the reader started a process, which has the reader's temporary folder then."""
    try:
        return bool(process.environ().get("TEMP") == reader.environment["TEMP"])
    except psutil.Error:
        return False
