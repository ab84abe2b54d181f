"""Tests that all blocks of docs/first-hour.md work one after another, as a reader types them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from image_files import encoded
from PIL import Image

from torchserve_ensemble.serving.addresses import free_ports
from torchserve_ensemble.serving.server import Server

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]
PORTS = ("8080", "8081", "8082", "7070", "7071")


@pytest.mark.long
def test_first_hour(tmp_path: Path) -> None:
    free = dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True))

    def localised(text: str) -> str:
        return re.sub(rf"\b({'|'.join(PORTS)})\b", lambda port: free[port[0]], text)

    (tmp_path / "config.properties").write_text(
        localised((ROOT / "config.properties").read_text(encoding="utf-8"))
    )
    for name in ("a.png", "b.png"):
        picture = Image.linear_gradient("L").convert("RGB").resize((320, 240))
        (tmp_path / name).write_bytes(encoded(picture, "PNG"))
    page = (ROOT / "docs" / "first-hour.md").read_text(encoding="utf-8")
    # The title of a Python block is the name of the file into which it belongs.
    blocks = re.findall(
        r'^```(python|yaml|sh)(?: title="([^"\n]+)")?\n(.*?)^```', page, re.DOTALL | re.MULTILINE
    )
    kinds = ["python", "yaml", "python", "python", "sh", "sh", "sh", "sh"]
    assert [kind for kind, _, _ in blocks] == kinds
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    outputs = []
    try:
        for kind, file_name, text in blocks:
            if kind == "yaml" or file_name:
                (tmp_path / (file_name or "ensemble.yaml")).write_text(text)
                continue
            command = (
                [sys.executable, "-c", text]
                if kind == "python"
                else ["bash", "-euo", "pipefail", "-c", localised(text)]
            )
            # The output goes to a file, because a server that keeps running would keep a pipe open.
            output = tmp_path / "output.txt"
            with output.open("w") as file:
                status = subprocess.call(
                    command,
                    cwd=tmp_path,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    timeout=180,
                )
            outputs.append(output.read_text())
            assert status == 0, f"{text}\n{outputs[-1]}"
    finally:
        server = Server.attach(tmp_path / ".ts-ensemble")
        if server is not None:
            server.stop()
    _, predicted, checked, served, over_http, replaced = outputs
    assert "shufflenet" in predicted
    assert "2 with the same decision" in checked
    assert "READY" in served
    assert '"code": 400' in over_http or '"code":400' in over_http
    assert over_http.count('"sample"') == 2
    assert "stopped" in replaced
