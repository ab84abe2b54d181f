"""Functions of the user's own in a worker of TorchServe: decode, and postprocess."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from probe_ensemble import probes

from torchserve_ensemble.archiver.build import build_archive
from torchserve_ensemble.handlers.base.errors import RequestError
from torchserve_ensemble.serving.server import Server
from torchserve_ensemble.serving.settings import ServerSettings, throw_away

pytestmark = pytest.mark.e2e

OWN = """
import numpy


def decode(content):
    if content[:3] != b"TOY":
        raise ValueError("no toy file")
    return numpy.frombuffer(content, ">u2", offset=3).reshape(4, 4)


def reverse(output):
    return output.flip(1)
"""


def toy(value: int) -> bytes:
    return b"TOY" + struct.pack(">16H", *[value] * 16)


def test_own_code_runs_in_the_worker(tmp_path: Path) -> None:
    probes(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "example.toy").write_bytes(toy(300))
    path = tmp_path / "ensemble.yaml"
    content = json.loads(path.read_text())
    content["preprocessing"]["small"] |= {
        "decode": "own.py:decode",
        "example": "example.toy",
        "window": {"center": 500, "width": 1000},
    }
    content["members"][2]["postprocess"] = "own.py:reverse"
    path.write_text(json.dumps(content))
    store = tmp_path / "store"
    build_archive(path, store)
    settings = ServerSettings(store, ("probes-1.0.mar",), overrides=throw_away())
    with Server.start(settings, tmp_path / "run") as server:
        server.wait_ready()
        with server.client() as client:
            images = [("dark.toy", toy(100)), ("bright.toy", toy(900))]
            dark, bright = client.predict("probes", images)["predictions"]
            assert (dark["label"], bright["label"]) == ("dark", "bright")
            assert dark["members"]["c"]["label"] == "bright"
            with pytest.raises(RequestError, match="own.py, line 7: ValueError") as caught:
                client.predict("probes", [*images, ("bad.toy", b"something else")])
        assert caught.value.status == 400
